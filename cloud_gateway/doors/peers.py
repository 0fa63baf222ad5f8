"""Who is connected by ZeroMQ: session, boot id and tenant by route; whoever is silent too long is forgotten. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from protocol.control.session import Event, Role, Session, State

SILENT_PEER_S = 30.0
MOST_PEERS = 10_000


@dataclass(slots=True)
class Peer:
    session: Session
    heard_at: float
    boots: tuple[bytes, ...] = ()  # from its Hello: the ids of its requests begin with one of them
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
