"""Who is connected by ZeroMQ: session, boot id and tenant by route; whoever is silent too long is forgotten. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from protocol import messages as m
from protocol.control.session import Event, Role, Session, State

SILENT_PEER_S = 30.0
# A device that changes its bundle speaks with two processes' worth of boot ids for as long as old requests take.
TWIN_S = 60.0
TWIN_TOLD_S = 600.0  # after that it may have been mended
TWIN_ALIVE_S = 10.0  # agents ping every second
MOST_PEERS = 10_000
SETTLED = 64  # more than anybody announces in one round trip


@dataclass(slots=True)
class Peer:
    session: Session
    heard_at: float
    boots: tuple[bytes, ...] = ()  # from its Hello: the ids of its requests begin with one of them
    # Requests (and attempts) that need no chunks (any more), of which some may still come: known, refused, given up.
    settled: deque[tuple[m.RequestId, int]] = field(default_factory=lambda: deque(maxlen=SETTLED))
    tenant: str = ""  # whose credit its requests use; "" where that is whose boot id they begin with

    def tenant_of(self, boot: bytes) -> str:
        """A request that outlived its device's process is the same tenant's as before, key or not."""
        return self.tenant or boot.hex()

    @property
    def is_greeted(self) -> bool:
        return self.session.state is State.GREETED


class Peers:
    """Routes in the order in which they were last heard."""

    def __init__(self) -> None:
        self._peers: OrderedDict[bytes, Peer] = OrderedDict()
        self._newest: dict[str, tuple[bytes, float]] = {}  # route that greeted last under each key's name, and when
        self._twins: dict[str, float] = {}  # whose key two devices share, and when both were heard last

    def __len__(self) -> int:
        return len(self._peers)

    def heard(self, route: bytes, *, now: float) -> Peer:
        """The peer behind `route`, known from now on if it was not."""
        peer = self._peers.get(route)
        if peer is None:
            peer = self._peers[route] = Peer(Session(Role.GATEWAY), now)
        peer.heard_at = now
        self._peers.move_to_end(route)
        return peer

    def greet(self, route: bytes, peer: Peer, boots: tuple[bytes, ...], tenant: str, *, now: float) -> None:
        """It has said Hello. `tenant` is the name that its key has, "" without one."""
        peer.session.handle(Event.HELLO)
        peer.boots, peer.tenant = boots, tenant
        if tenant:
            self._newest[tenant] = (route, now)

    def is_twin(self, peer: Peer, *, now: float) -> bool:
        """Whether `peer`, which was just heard, shares its key with another device that is alive too. True once a name.

        A device that was restarted is no twin of itself: its old process says nothing any more.
        """
        route, since = self._newest.get(peer.tenant, (b"", now))
        other = self._peers.get(route)
        if other is None or other.boots[:1] == peer.boots[:1]:
            return False
        if now - since < TWIN_S or now - other.heard_at > TWIN_ALIVE_S:
            return False
        is_news = peer.tenant not in self._twins
        self._twins[peer.tenant] = now
        return is_news

    def shares_key(self, tenant: str, *, now: float) -> bool:
        """Whether two devices have spoken with the key of this name lately."""
        return tenant in self._twins and now - self._twins[tenant] < TWIN_TOLD_S

    def drop(self, route: bytes) -> None:
        self._peers.pop(route, None)

    def forget_silent(self, *, now: float) -> None:
        while self._peers:
            route, peer = next(iter(self._peers.items()))
            if now - peer.heard_at < SILENT_PEER_S and len(self._peers) <= MOST_PEERS:
                return
            if peer.is_greeted:
                peer.session.handle(Event.SILENCE)
            del self._peers[route]

    def greeted(self) -> list[bytes]:
        """Routes of those who have greeted and are still heard. Any thread may ask."""
        return [route for route, peer in self._peers.copy().items() if peer.is_greeted]
