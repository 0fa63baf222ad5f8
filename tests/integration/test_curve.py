"""Who comes in by the ZeroMQ door, with real sockets: every kind of server against every kind of client."""

from __future__ import annotations

import contextlib
import enum
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from cloud_gateway.access.authority import Authority
from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.roster import AgentEntry, add_agent, revoke
from cloud_gateway.gateway import Gateway
from edge_agent.agent import Agent, AgentConfig
from edge_agent.connection import Change, Connection, Shared
from edge_agent.outcomes import Answer
from edge_agent.ways import Ways
from protocol import keys, sockets
from protocol import messages as m
from protocol.bundle import Bundle
from protocol.control.session import Event
from protocol.errors import InputError
from protocol.keys import KeyPair
from protocol.mailbox import Mailbox
from protocol.sockets import CurveClient, Endpoint
from tests.gateways import gateway_of
from tests.waiting import until
from tests.wire_client import WireClient, placement

ANY_PORT = Endpoint("127.0.0.1", 0)
PATIENCE_S = 60.0  # a busy machine is no failure
GOOD, REVOKED, EXPIRED, UNKNOWN, OTHER_SERVER = (keys.make_pair(n) for n in ("good", "revoked", "expired", "x", "y"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> KeyFolder:
    return _made(tmp_path_factory.mktemp("keys"))


def _made(path: Path) -> KeyFolder:
    """Keys of a gateway that knows GOOD, and knew REVOKED and EXPIRED."""
    folder = KeyFolder(path)
    folder.make()
    with folder.locked():
        folder.create("gateway")
        for pair, expires in ((GOOD, None), (REVOKED, None), (EXPIRED, 2)):
            entry = AgentEntry(name=pair.name, key=pair.public.data.hex(), added=1, expires=expires)
            folder.change(lambda roster, entry=entry: add_agent(roster, entry))  # type: ignore[misc]
        folder.change(lambda roster: revoke(roster, "revoked", utc=2))
    return folder


class Door:
    """A ROUTER as the gateway's, with its authority but nothing behind it."""

    def __init__(
        self, folder: KeyFolder | None, *, insecure: bool = False, attended: bool = True, plain: bool = False
    ) -> None:
        """Not `attended`: nobody answers libzmq. `plain`: it offers plain text although there are keys."""
        self.context = sockets.make_context()
        self.authority = Authority(folder, insecure=insecure)
        self.moved = 0
        if attended:
            self.authority.start(self.context, self._on_moved)
        secret = None if folder is None or plain else folder.server_keys().current.secret
        self.socket, self.endpoint = sockets.router(self.context, ANY_PORT, secret=secret, guarded=True)
        self.bound = {} if secret is None else {self.endpoint: secret}

    def listen(self) -> None:
        sockets.listen(self.socket, self.bound, self.authority.secrets(self.endpoint))

    def receive(self) -> tuple[bytes, str]:
        """What came, and the user id that it bears."""
        assert self.socket.poll(int(PATIENCE_S * 1000)), "nothing came"
        frames = self.socket.recv_multipart(copy=False)
        return frames[-1].bytes, str(frames[-1].get("User-Id"))

    def _on_moved(self) -> None:
        self.moved += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.authority.stop()
        self.socket.close(0)
        self.context.term()


class Ending(enum.Enum):
    """How a first handshake ends, as the client's monitor tells."""

    IN = zmq.EVENT_HANDSHAKE_SUCCEEDED
    REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH
    HUNG_UP = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    OTHER_LANGUAGE = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class Client:
    def __init__(self, endpoint: Endpoint, curve: CurveClient | None) -> None:
        self._context = sockets.make_context()
        self.socket, self._monitor = sockets.watched_dealer(self._context, endpoint, curve)

    def ending(self) -> Ending:
        """The next end of a handshake."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if self._monitor.poll(100):
                event = recv_monitor_message(self._monitor)["event"]
                if event in {e.value for e in Ending}:
                    return Ending(event)
        raise TimeoutError("no handshake has ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(0)
        self._context.term()


SERVERS: dict[str, Callable[[KeyFolder], Door]] = {
    "keys": lambda folder: Door(folder),
    "keys, but nobody attends": lambda folder: Door(folder, attended=False),
    "keys, but plain text is offered": lambda folder: Door(folder, plain=True),
    "no keys": lambda folder: Door(None),
    "no keys, and nobody attends": lambda folder: Door(None, attended=False),
    "insecure": lambda folder: Door(None, insecure=True),
}
CLIENTS: dict[str, KeyPair | None] = {
    "no key": None, "the key of a known agent": GOOD, "an unknown key": UNKNOWN, "a revoked key": REVOKED,
    "an expired key": EXPIRED, "a known key, but another server's": GOOD,
}  # fmt: skip


def _expected(server: str, client: str) -> set[Ending]:
    speaks_curve = server in ("keys", "keys, but nobody attends")
    if speaks_curve != (client != "no key"):
        return {Ending.OTHER_LANGUAGE, Ending.HUNG_UP}  # whichever side notices first hangs up
    if "nobody attends" in server:
        return {Ending.HUNG_UP}
    if client == "no key":
        return {Ending.REFUSED if server.startswith("keys") else Ending.IN}
    if client == "the key of a known agent":
        return {Ending.IN}
    return {Ending.HUNG_UP if client == "a known key, but another server's" else Ending.REFUSED}


@pytest.mark.parametrize(("server", "client"), list(itertools.product(SERVERS, CLIENTS)))
def test_every_server_ends_every_clients_handshake_as_it_should(
    folder: KeyFolder, server: str, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "nobody attends" in server:
        monkeypatch.setattr(sockets, "HANDSHAKE_IVL_MS", 1000)  # all that can happen is that this ends
    pair = CLIENTS[client]
    key = (OTHER_SERVER if "another server's" in client else folder.server_keys().current).public.data
    curve = CurveClient(pair.secret, key) if pair else None
    with SERVERS[server](folder) as door, Client(door.endpoint, curve) as knocking:
        ending = knocking.ending()
        assert ending in _expected(server, client)
        if ending is not Ending.IN:
            assert not door.socket.poll(0)
            return
        knocking.socket.send(b"hello")
        said, user_id = door.receive()
        assert said == b"hello"
        assert door.authority.tenant(user_id) == (pair.name if pair else "")
        assert door.authority.refusal(user_id) is None


def test_a_roster_that_cannot_be_read_turns_newcomers_away_for_now_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "HANDSHAKE_IVL_MS", 1000)  # after "try later" libzmq waits as long before it does
    folder = _made(tmp_path)
    curve = CurveClient(GOOD.secret, folder.server_keys().current.public.data)
    with Door(folder) as door, Client(door.endpoint, curve) as early:
        assert early.ending() is Ending.IN
        (tmp_path / "roster.json").chmod(0o644)
        door.authority.look(utc=time.time())
        with Client(door.endpoint, curve) as late:
            assert late.ending() is Ending.HUNG_UP  # 300: the same socket knocks again by itself
            early.socket.send(b"still here")
            assert door.authority.refusal(door.receive()[1]) is None
            (tmp_path / "roster.json").chmod(0o600)
            door.authority.look(utc=time.time())
            while (ending := late.ending()) is Ending.HUNG_UP:
                pass
            assert ending is Ending.IN


def test_whoever_is_revoked_is_refused_with_the_next_message_and_at_the_door(tmp_path: Path) -> None:
    folder = _made(tmp_path)
    curve = CurveClient(GOOD.secret, folder.server_keys().current.public.data)
    with Door(folder) as door, Client(door.endpoint, curve) as client:
        assert client.ending() is Ending.IN
        with folder.locked():
            folder.change(lambda roster: revoke(roster, "good", utc=int(time.time())))
        end = time.monotonic() + PATIENCE_S
        refusal = None
        while refusal is None and time.monotonic() < end:  # the authority looks once a second
            client.socket.send(b"and now?")
            refusal = door.authority.refusal(door.receive()[1])
        assert refusal is not None
        assert "revoked" in refusal
        with Client(door.endpoint, curve) as again:
            assert again.ending() is Ending.REFUSED


def test_one_context_has_one_gatekeeper() -> None:
    with Door(None) as door, pytest.raises(sockets.NetworkError, match="authenticated"):
        sockets.gatekeeper(door.context)


# ---- the agent's side ------------------------------------------------------------------------------------------------


class Knocker:
    """An agent's connection, driven as the uplink does."""

    def __init__(self, ways: Ways) -> None:
        self.ways = ways
        self.seen: list[Change] = []
        self.recreated: list[str] = []
        self._mailbox: Mailbox[object] = Mailbox()
        self._shared = Shared(self._mailbox.fileno())
        self._connection = Connection(ways, self._shared)
        self._connection.open(now=time.monotonic())

    def until(self, wanted: Change) -> None:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            self._shared.poll(20)
            for change in self._connection.changes():
                self.seen.append(change)
                if change is Change.LOST:
                    self._connection.handle(Event.DISCONNECT, now=time.monotonic())
                if change is wanted:
                    return
            if (why := self._connection.overdue(now=time.monotonic())) is not None:
                self.recreated.append(why.sentence)
                self._connection.recreate(now=time.monotonic())
        raise TimeoutError(f"no {wanted} within {PATIENCE_S} s; seen {self.seen}")

    def says(self, door: Door) -> str:
        """Send something; the user id with which it comes."""
        assert self._connection._socket is not None
        self._connection._socket.send(b"hello")
        return door.receive()[1]

    def close(self) -> None:
        self._connection.close()
        self._shared.close()
        self._mailbox.close()


@pytest.fixture
def knockers() -> Iterator[list[Knocker]]:
    made: list[Knocker] = []
    yield made
    for knocker in made:
        knocker.close()


def _agent_folder(path: Path, server: KeyFolder) -> Path:
    path.mkdir()
    keys.write_pair(path / "agent.key", GOOD)
    keys.write_public(path / "server.pub", server.public_keys())
    return path


def test_a_server_key_is_rotated_while_agents_stay_connected(
    tmp_path: Path, knockers: list[Knocker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.connection.RECREATE_S", 1.0)  # for the one that gets the new key late
    folder = _made(tmp_path / "keys")
    with Door(folder) as door, Door(None) as other:
        port = other.endpoint.port  # one that is free in a moment
        old = _agent_folder(tmp_path / "old", folder)
        other.socket.unbind(str(other.endpoint))
        knockers.append(first := Knocker(Ways(door.endpoint, old)))
        first.until(Change.HANDSHAKE)

        with folder.locked():
            folder.begin_rotation(port)
        door.authority.look(utc=time.time())
        assert door.moved
        _listen(door)
        both = _agent_folder(tmp_path / "both", folder)
        new = folder.server_keys().next
        assert new is not None
        # Who knows only the next key finds it at the next port; who knows both begins with the current one.
        knockers.append(second := Knocker(Ways(door.endpoint, both, f"{new.public.line()} port={port}")))
        knockers.append(third := Knocker(Ways(door.endpoint, both)))
        second.until(Change.HANDSHAKE)
        third.until(Change.HANDSHAKE)
        assert second.ways.current.endpoint.port == port
        assert not third.recreated
        assert {door.authority.tenant(k.says(door)) for k in (first, second, third)} == {"good"}

        second.seen.clear()
        with folder.locked():
            folder.finish_rotation()
        door.authority.look(utc=time.time())
        _listen(door)
        second.says(door)  # on the connection that it has
        assert Change.LOST not in second.seen
        third.until(Change.HANDSHAKE)
        assert third.ways.current.endpoint == door.endpoint
        assert third.ways.current.curve == CurveClient(GOOD.secret, new.public.data)
        keys.write_public(old / "server.pub", folder.public_keys())  # copied late, read without a restart
        first.until(Change.HANDSHAKE)
        assert door.authority.tenant(first.says(door)) == "good"


def test_an_agent_that_is_hung_up_on_looks_at_its_keys_again_soon(
    tmp_path: Path, knockers: list[Knocker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.connection.RECREATE_S", 3600.0)
    monkeypatch.setattr("edge_agent.connection.TURN_S", 0.2)
    folder = _made(tmp_path / "keys")
    mine = _agent_folder(tmp_path / "mine", folder)
    keys.write_public(mine / "server.pub", (OTHER_SERVER.public,))
    with Door(folder) as door:
        knockers.append(knocker := Knocker(Ways(door.endpoint, mine)))
        knocker.until(Change.HUNG_UP)
        keys.write_public(mine / "server.pub", folder.public_keys())
        knocker.until(Change.HANDSHAKE)
        assert knocker.recreated[0] == "the gateway hangs up: its key may be another than we know"


def _listen(door: Door) -> None:
    """The port may take a moment to be free."""

    def is_free() -> bool:
        with contextlib.suppress(sockets.NetworkError):
            door.listen()
            return True
        return False

    until(is_free, "the port is not free")


def test_an_agent_whose_key_is_not_known_says_so_and_comes_in_once_it_is(
    tmp_path: Path, knockers: list[Knocker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.knocking.KNOCK_S", (0.1, 0.2))
    folder = _made(tmp_path / "keys")
    path = _agent_folder(tmp_path / "agent", folder)
    keys.write_pair(path / "agent.key", UNKNOWN, overwrite=True)
    with Door(folder) as door:
        knockers.append(knocker := Knocker(Ways(door.endpoint, path)))
        knocker.until(Change.REFUSED)
        entry = AgentEntry(name="late", key=UNKNOWN.public.data.hex(), added=1)
        with folder.locked():
            folder.change(lambda roster: add_agent(roster, entry))
        knocker.until(Change.HANDSHAKE)
        assert knocker.recreated[0] == str(Change.REFUSED)
        assert door.authority.tenant(knocker.says(door)) == "late"


def test_an_agent_that_is_turned_away_knocks_again_as_soon_as_it_has_another_key(
    tmp_path: Path, knockers: list[Knocker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.connection.RECREATE_S", 3600.0)
    monkeypatch.setattr("edge_agent.knocking.KNOCK_S", (3600.0, 3600.0))
    folder = _made(tmp_path / "keys")
    path = _agent_folder(tmp_path / "agent", folder)
    keys.write_pair(path / "agent.key", UNKNOWN, overwrite=True)
    with Door(folder) as door:
        knockers.append(knocker := Knocker(Ways(door.endpoint, path)))
        knocker.until(Change.REFUSED)
        keys.write_pair(path / "agent.key", GOOD, overwrite=True)
        knocker.until(Change.HANDSHAKE)
        assert door.authority.tenant(knocker.says(door)) == "good"


# ---- the whole gateway -----------------------------------------------------------------------------------------------


def _gateway(bundle: Path, folder: KeyFolder) -> Gateway:
    return gateway_of(bundle, settings={"access.keys_dir": str(folder.path), "drain.grace_s": 2.0})


def _answers(client: WireClient, bundle: Path, samples: npt.NDArray[Any], number: int) -> m.Message:
    client.send(*client.infer(placement(Bundle.open(bundle), "full-cloud"), {"x": samples[:1]}, number))
    return client.receive()


def test_a_gateway_with_keys_answers_its_agents_and_stops_when_one_is_revoked(
    toy_bundle: Path, toy_samples: npt.NDArray[Any], tmp_path: Path
) -> None:
    folder = _made(tmp_path)
    curve = CurveClient(GOOD.secret, folder.server_keys().current.public.data)
    with _gateway(toy_bundle, folder) as gateway, WireClient(str(gateway.endpoint), curve=curve) as client:
        client.greet()
        assert isinstance(_answers(client, toy_bundle, toy_samples, 1), m.Result)
        with folder.locked():
            folder.change(lambda roster: revoke(roster, "good", utc=int(time.time())))
        end = time.monotonic() + PATIENCE_S
        number = 1
        while isinstance(reply := _answers(client, toy_bundle, toy_samples, number := number + 1), m.Result):
            assert time.monotonic() < end
        assert isinstance(reply, m.Reject)
        assert "revoked" in reply.reason


def test_a_gateway_that_starts_while_its_key_is_rotated_answers_to_both(
    toy_bundle: Path, toy_samples: npt.NDArray[Any], tmp_path: Path
) -> None:
    folder = _made(tmp_path)
    with Door(None) as other:
        port = other.endpoint.port
    with folder.locked():
        folder.begin_rotation(port)
    server = folder.server_keys()
    assert server.next is not None
    with _gateway(toy_bundle, folder) as gateway:
        ways = ((gateway.endpoint, server.current), (Endpoint("127.0.0.1", port), server.next))
        for number, (endpoint, pair) in enumerate(ways, 1):
            with WireClient(str(endpoint), curve=CurveClient(GOOD.secret, pair.public.data)) as client:
                client.greet()
                assert isinstance(_answers(client, toy_bundle, toy_samples, number), m.Result)


def test_an_agent_with_keys_is_answered_by_the_gateways_engine(
    toy_bundle: Path, toy_samples: npt.NDArray[Any], tmp_path: Path
) -> None:
    folder = _made(tmp_path / "keys")
    device = _agent_folder(tmp_path / "device", folder)
    with _gateway(toy_bundle, folder) as gateway:
        config = AgentConfig(bundle=toy_bundle, gateway=str(gateway.endpoint), keys=device, placements=("full-cloud",))
        with Agent(config) as agent:
            assert agent.wait_ready(PATIENCE_S)
            outcome = agent.submit({"x": toy_samples[:1]}, deadline_s=PATIENCE_S).result()
    assert isinstance(outcome, Answer), outcome
    assert outcome.placement == "full-cloud"


def test_a_gateway_off_this_machine_wants_keys_and_names_the_command(toy_bundle: Path) -> None:
    with pytest.raises(InputError, match="cloud-gateway keys init"):
        gateway_of(toy_bundle, bind="tcp://0.0.0.0:0")
