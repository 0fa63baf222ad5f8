"""The front as a process of its own: killed, starved and flooded, it costs time and never a request."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zmq

from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.roster import AgentEntry, add_agent, revoke
from cloud_gateway.doors.relay import MOST_PARTS
from cloud_gateway.doors.routes import is_front, peer_of, to_route, user_id_of
from cloud_gateway.doors.supervision import Policy
from cloud_gateway.doors.supervisor import FrontPlan, FrontProcess
from cloud_gateway.gateway import Gateway
from edge_agent.agent import Agent, AgentConfig
from edge_agent.outcomes import Answer
from protocol import keys, sockets, wire
from protocol import messages as m
from protocol.bundle import Bundle, PlacementEntry
from protocol.errors import InputError, NetworkError
from protocol.keys import KeyPair
from protocol.sockets import CurveClient, Endpoint
from tests.gateways import gateway_of
from tests.processes import ROOT, running
from tests.waiting import until
from tests.wire_client import PATIENCE_S, WireClient, placement

Array = npt.NDArray[Any]
MIB = 1 << 20
SMALL_NBYTES = 384 * MIB  # enough for a front, and soon too little for one that is flooded
QUICK = Policy(pause_s=0.0)


# ---- a whole gateway ------------------------------------------------------------------------------------------------


def fronted(*bundles: Path, **more: Any) -> Gateway:
    settings = {"zmq.front": "process", "supervise.pause_s": 0.0, "drain.grace_s": 5.0} | more.pop("settings", {})
    return gateway_of(*bundles, settings=settings, **more)


@pytest.fixture
def entry(toy_bundle: Path) -> PlacementEntry:
    return placement(Bundle.open(toy_bundle), "full-cloud")


def front_of(gateway: Gateway) -> FrontProcess:
    assert gateway.front is not None
    return gateway.front


def kill(front: FrontProcess, sign: signal.Signals = signal.SIGKILL) -> None:
    """And wait until the next one is ready."""
    pid, restarts = front.pid, front.stats()["restarts"]
    assert pid is not None
    os.kill(pid, sign)
    until(lambda: front.stats()["restarts"] > restarts and front.serving, "the next front serves")


def test_it_serves_like_a_thread_and_drains_what_it_holds_when_the_gateway_ends(
    toy_bundle: Path, toy_samples: Array, toy_reference: Array, entry: PlacementEntry
) -> None:
    with fronted(toy_bundle) as gateway, WireClient(str(gateway.endpoint)) as client:
        front = front_of(gateway)
        pid, folder = front.pid, Path(front.hub).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        client.greet()
        client.send(*client.infer(entry, {"x": toy_samples[:1]}, 1))
        assert isinstance(client.receive(), m.Result)
        with gateway.desk.paused():
            client.send(*client.infer(entry, {"x": toy_samples[:1]}, 2))
            until(lambda: gateway.stats().get("requests") == 2, "the request is held")
            ending = threading.Thread(target=gateway.close)
            ending.start()
            assert isinstance(client.receive(), m.Drain)
        last, parts = client.receive_all()
        ending.join(PATIENCE_S)
    assert isinstance(last, m.Result)
    got = np.frombuffer(b"".join(parts), np.float32)
    np.testing.assert_allclose(got, toy_reference[0], atol=1e-5)
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)


def test_a_front_that_is_killed_mid_traffic_loses_nothing_and_nothing_runs_twice(
    toy_bundle: Path, toy_samples: Array
) -> None:
    burst = 25
    sample = {"x": toy_samples[:1]}
    with fronted(toy_bundle) as gateway:
        front = front_of(gateway)
        config = AgentConfig(bundle=toy_bundle, gateway=str(gateway.endpoint), placements=("full-cloud",))
        with Agent(config) as agent:
            assert agent.wait_ready(PATIENCE_S)
            with gateway.desk.paused():  # once while the gateway holds as many as the agent's window lets out ...
                futures = [agent.submit(sample, deadline_s=30.0) for _ in range(burst)]
                until(lambda: gateway.stats().get("requests", 0) >= 2, "requests are held")
                kill(front)
            for answered in (0, burst // 2):  # ... and twice in the middle of things
                futures += [agent.submit(sample, deadline_s=30.0) for _ in range(burst)]
                futures[answered - burst].result(timeout=40)
                kill(front)
            outcomes = [future.result(timeout=40) for future in futures]
        stats = gateway.stats()
    assert [type(outcome) for outcome in outcomes] == [Answer] * (3 * burst), outcomes
    assert stats["results"] == 3 * burst, "each ran exactly once"
    assert stats["requests"] > 3 * burst, "those that were held were asked for again"
    assert stats["front_restarts"] == 3


def test_answers_that_died_with_the_front_are_given_again_to_who_asks_again(
    toy_bundle: Path, toy_samples: Array, entry: PlacementEntry
) -> None:
    with fronted(toy_bundle) as gateway, WireClient(str(gateway.endpoint)) as client:
        client.greet()
        with gateway.desk.paused():
            for number in (1, 2):
                client.send(*client.infer(entry, {"x": toy_samples[:1]}, number))
            until(lambda: gateway.stats().get("requests") == 2, "both requests are held")
            kill(front_of(gateway))
            client.greet()
            client.send(*client.infer(entry, {"x": toy_samples[:1]}, 1, attempt=2))  # while it waits: attached
            until(lambda: gateway.stats().get("duplicates_attached") == 1, "the repetition has come")
        first = client.receive()
        client.send(*client.infer(entry, {"x": toy_samples[:1]}, 2, attempt=2))  # when it is done: answered
        second = client.receive()
        stats = gateway.stats()
    assert isinstance(first, m.Result)
    assert isinstance(second, m.Result)
    assert (first.request.sequence, first.attempt, second.request.sequence, second.attempt) == (1, 2, 2, 2)
    assert (stats["results"], stats["duplicates_answered"]) == (2, 1)


def test_a_gateway_whose_port_is_taken_says_so_and_leaves_nothing_behind(toy_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gateway = fronted(toy_bundle, bind=f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(NetworkError, match=r"already in use.*--bind"):
            gateway.start()


# ---- the front alone: the test is its gateway ------------------------------------------------------------------------


class Stage:
    """A front, and the gateway's end of its socket."""

    def __init__(self, **more: Any) -> None:
        self.told: list[tuple[str, str]] = []
        self.gave_up: list[BaseException] = []
        plan = replace(FrontPlan(Endpoint("127.0.0.1", 0), policy=QUICK), **more)
        self.front = FrontProcess(
            plan, told=lambda event, text: self.told.append((event, text)), gave_up=self.gave_up.append
        )
        self.context = sockets.make_context()
        self.front.listen()
        self.hub = sockets.hub(self.context, self.front.hub)

    def receive(self, patience_s: float = PATIENCE_S) -> list[bytes]:
        """The next message of a peer; the front's own marks are answered on the way."""
        end = time.monotonic() + patience_s
        while self.hub.poll(max(0, int((end - time.monotonic()) * 1000))):
            route, header, *parts = self.hub.recv_multipart()
            if not is_front(route):
                return [route, header, *parts]
            mark = wire.unpack_header(header)
            assert isinstance(mark, m.Ping)
            self.hub.send_multipart([route, *wire.pack(m.Pong(mark.number, 0))])
        raise TimeoutError("nothing has come through the front")

    def reached_by(self, client: WireClient, number: int) -> list[bytes]:
        """The client's ping, which it repeats: what goes into a connection just as its front dies is gone."""
        for _ in range(int(PATIENCE_S)):
            client.send(m.Ping(number))
            with contextlib.suppress(TimeoutError):
                return self.receive(patience_s=1.0)
        raise TimeoutError(f"none of {PATIENCE_S:.0f} pings has come through the front")

    def counted(self, name: str, least: int = 1) -> None:
        until(lambda: self.front.stats().get(name, 0) >= least, f"{name} reaches {least}: {self.front.stats()}")

    def close(self) -> None:
        self.hub.close(0)
        self.context.term()
        self.front.stop()


@contextmanager
def stage(**more: Any) -> Iterator[Stage]:
    stage = Stage(**more)
    try:
        stage.front.start()
        yield stage
    finally:
        stage.close()


@pytest.fixture(scope="module")
def it() -> Iterator[Stage]:
    """One for all tests that it should survive."""
    with stage(memory_nbytes=SMALL_NBYTES, policy=replace(QUICK, silence_s=10 * PATIENCE_S)) as shared:
        yield shared
        assert shared.front.stats()["restarts"] == 0


def peer(endpoint: Endpoint) -> socket.socket:
    """A connection that speaks ZMTP 3.0 by hand, up to where messages begin. Raises OSError if it is hung up on."""
    sock = socket.create_connection((endpoint.host, endpoint.port), timeout=PATIENCE_S)
    sock.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    ready = b"\x05READY\x0bSocket-Type" + len(b"DEALER").to_bytes(4) + b"DEALER"
    sock.sendall(bytes((4, len(ready))) + ready)
    answer = b""
    while b"ROUTER" not in answer:
        part = sock.recv(256)
        if not part:
            sock.close()
            raise ConnectionResetError("hung up on")
        answer += part
    return sock


def flood(sock: socket.socket, data: bytes, most_nbytes: int) -> bool:
    """Send parts of a message that never ends; whether we were hung up on."""
    try:
        for _ in range(most_nbytes // len(data)):
            sock.sendall(data)
    except OSError:
        return True
    return False


LONG_PART = b"\x03" + (128 * 1024).to_bytes(8) + bytes(128 * 1024)  # more follows
EMPTY_PARTS = b"\x01\x00" * 32768


@pytest.mark.parametrize("data", [LONG_PART, EMPTY_PARTS], ids=["long parts", "empty parts"])
def test_whoever_never_ends_a_message_is_hung_up_on_and_the_others_are_served(it: Stage, data: bytes) -> None:
    before = it.front.stats().get("hoarders", 0)
    with WireClient(str(it.front.endpoint)) as good:
        with peer(it.front.endpoint) as bad:
            assert flood(bad, data, 4 * SMALL_NBYTES)
        it.counted("hoarders", before + 1)
        good.send(m.Ping(7))
        route, header = it.receive()
        assert wire.unpack_header(header) == m.Ping(7)
        it.hub.send_multipart([route, *wire.pack(m.Pong(7, 0))])
        assert good.receive() == m.Pong(7, 0)


def test_a_message_of_too_many_parts_goes_no_further_and_costs_its_sender_the_connection(it: Stage) -> None:
    with peer(it.front.endpoint) as bad:
        bad.sendall(b"\x01\x00" * (MOST_PARTS + 1) + b"\x00\x00")
        assert bad.recv(1) == b"", "the connection is closed"
    it.counted("too_large")
    assert not it.hub.poll(0)


def test_an_answer_for_a_connection_of_an_earlier_front_reaches_nobody(it: Stage) -> None:
    with WireClient(str(it.front.endpoint)) as client:
        client.send(m.Ping(1))
        route, _ = it.receive()
        id_ = peer_of(route, life=1)
        assert id_
        it.hub.send_multipart([to_route(2, id_), *wire.pack(m.Pong(99, 0))])
        it.hub.send_multipart([b"nonsense", b""])
        it.hub.send_multipart([route, *wire.pack(m.Pong(1, 0))])
        assert client.receive() == m.Pong(1, 0)
    it.counted("stale_answers", 2)


def test_signals_that_are_meant_for_the_gateway_do_not_end_the_front(it: Stage) -> None:
    with WireClient(str(it.front.endpoint)) as client:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(it.front.pid or 0, number)
        client.send(m.Ping(3))
        assert wire.unpack_header(it.receive()[1]) == m.Ping(3)


def test_what_the_gateway_does_not_read_is_bounded(it: Stage) -> None:
    """The gateway sleeps: its peers fill a window and the memory of the front up to its mark, and no more."""
    before = it.front.stats().get("hoarders", 0)
    message = b"\x02" + (64 * 1024).to_bytes(8) + bytes(64 * 1024)
    with peer(it.front.endpoint) as eager:
        assert flood(eager, message, 4 * SMALL_NBYTES), "it was never told to stop"
    it.counted("hoarders", before + 1)
    it.counted("under_way_nbytes")  # figures come now and then: an older hoarder may have been the one that was counted
    assert it.front.stats()["under_way_nbytes"] <= SMALL_NBYTES // 8 + 64 * 1024
    with WireClient(str(it.front.endpoint)) as client:  # and after its awakening everything goes on
        client.send(m.Ping(5))
        while len(header := it.receive()[1]) == 64 * 1024:
            pass
        assert wire.unpack_header(header) == m.Ping(5)


def test_more_connections_than_allowed_are_hung_up_on() -> None:
    with stage(connections=2) as it:
        first, second = peer(it.front.endpoint), peer(it.front.endpoint)
        with contextlib.suppress(OSError), socket.create_connection(it.front.endpoint, timeout=PATIENCE_S) as third:
            while third.recv(256):
                pass
        it.counted("connections_refused")
        for sock in (first, second):
            sock.sendall(b"\x00\x04ping")
            assert it.receive()[1:] == [b"ping"]
            sock.close()


@pytest.mark.parametrize("trouble", ["killed", "hanging", "starving"])
def test_a_front_that_cannot_go_on_is_replaced_at_the_same_port(trouble: str) -> None:
    policy = replace(QUICK, silence_s=3.0)  # it says something every second
    with stage(policy=policy) as it, WireClient(str(it.front.endpoint)) as client:
        client.send(m.Ping(1))
        it.receive()
        pid = it.front.pid
        assert pid is not None
        if trouble == "killed":
            os.kill(pid, signal.SIGKILL)
        elif trouble == "hanging":
            os.kill(pid, signal.SIGSTOP)
        else:
            resource.prlimit(pid, resource.RLIMIT_DATA, (MIB, MIB))
            with contextlib.suppress(OSError), peer(it.front.endpoint) as hungry:
                flood(hungry, EMPTY_PARTS, 64 * MIB)  # libzmq refuses a long part, but cannot do without a short one
        with pytest.raises(NetworkError, match="already in use"):
            sockets.listener(it.front.endpoint)
        it.counted("restarts")
        route, header = it.reached_by(client, 2)
        assert wire.unpack_header(header) == m.Ping(2)
        assert not peer_of(route, life=1)
        assert it.front.pid != pid
        said = [event for event, _ in it.told]
        assert said[0] == "front_ready"
        assert ("front_killed" if trouble == "hanging" else "front_ended") in said


def test_a_front_that_cannot_come_up_says_why() -> None:
    words = r"cannot live in 50 MiB of memory; give it at least \d+ MiB"
    with pytest.raises(NetworkError, match=words), stage(memory_nbytes=50 * MIB):
        pass


def test_a_front_that_ends_too_often_is_given_up_where_that_is_wanted() -> None:
    with stage(policy=Policy(pause_s=0.0, max_restarts=0)) as it:
        os.kill(it.front.pid or 0, signal.SIGKILL)
        until(lambda: bool(it.gave_up), "it is given up")
        assert "ended 1 times within 60 s" in str(it.gave_up[0])


def test_a_front_never_outlives_its_gateway() -> None:
    program = (
        "import sys\n"
        "from tests.integration.test_front_process import Stage\n"
        "it = Stage(); it.front.start(); print(it.front.pid, it.front.hub, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as gateway:
        assert gateway.stdout is not None
        pid, hub = gateway.stdout.readline().split()
        gateway.kill()
    descriptor = None
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(int(pid))
    if descriptor is not None:
        poller = zmq.Poller()
        poller.register(descriptor, zmq.POLLIN)
        assert poller.poll(int(PATIENCE_S * 1000)), "the front lives on without its gateway"
        os.close(descriptor)
    assert not Path(hub).parent.exists(), "what the gateway could not clear away"


def test_a_front_is_asked_for_its_socket_only_when_it_has_one() -> None:
    front = FrontProcess(FrontPlan(Endpoint("127.0.0.1", 0)), told=lambda event, text: None)
    with pytest.raises(InputError, match="listen"):
        _ = front.hub


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def keyed(tmp_path: Path) -> tuple[KeyFolder, KeyPair]:
    """The keys of a gateway, and those of the one agent that it knows."""
    folder, pair = KeyFolder(tmp_path / "keys"), keys.make_pair("camera")
    folder.make()
    with folder.locked():
        folder.create("gateway")
        folder.change(lambda r: add_agent(r, AgentEntry(name=pair.name, key=pair.public.data.hex(), added=1)))
    return folder, pair


def test_keys_are_checked_where_connections_end_and_names_reach_the_gateway(keyed: tuple[KeyFolder, KeyPair]) -> None:
    folder, pair = keyed
    curve = CurveClient(pair.secret, folder.server_keys().current.public.data)
    with stage(keys=folder.path) as it:
        endpoint = it.front.endpoint
        stranger = CurveClient(keys.make_pair("stranger").secret, curve.server)
        with WireClient(str(endpoint)) as plain, WireClient(str(endpoint), curve=stranger) as unknown:
            with WireClient(str(endpoint), curve=curve) as known:
                known.send(m.Ping(1))
                route, _ = it.receive()
                assert user_id_of(route).startswith("camera/")
            assert not any(client.socket.poll(0, zmq.POLLOUT) for client in (plain, unknown))

        with sockets.listener(Endpoint("127.0.0.1", 0))[0] as free, folder.locked():
            port = free.getsockname()[1]
            following = folder.begin_rotation(port)
        with WireClient(f"127.0.0.1:{port}", curve=CurveClient(pair.secret, following.public.data)) as early:
            early.send(m.Ping(2))  # the front has seen the new key and listens there too
            assert user_id_of(it.receive()[0]).startswith("camera/")
            kill(it.front)
            assert peer_of(it.reached_by(early, 3)[0], life=2)  # and so does the next front


def test_who_is_revoked_is_told_so_through_the_front(
    toy_bundle: Path, toy_samples: Array, entry: PlacementEntry, keyed: tuple[KeyFolder, KeyPair]
) -> None:
    folder, pair = keyed
    curve = CurveClient(pair.secret, folder.server_keys().current.public.data)
    with (
        fronted(toy_bundle, settings={"access.keys_dir": str(folder.path)}) as gateway,
        WireClient(str(gateway.endpoint), curve=curve) as client,
    ):
        client.greet()
        client.send(*client.infer(entry, {"x": toy_samples[:1]}, 1))
        assert isinstance(client.receive(), m.Result)
        with folder.locked():
            folder.change(lambda roster: revoke(roster, "camera", utc=int(time.time())))
        numbers = itertools.count(2)

        def refused() -> bool:
            client.send(*client.infer(entry, {"x": toy_samples[:1]}, next(numbers)))
            return isinstance(client.receive(), m.Reject)

        until(refused, "the key holds no longer")
        assert gateway.stats()["rejected_FORBIDDEN"] == 1


def test_sigterm_for_all_processes_at_once_drains_through_the_front(
    toy_bundle: Path, toy_samples: Array, entry: PlacementEntry
) -> None:
    """As a service manager and Ctrl-C do it: the front gets the signal too."""
    serve = ("cloud-gateway", "serve", str(toy_bundle), "--bind", "tcp://127.0.0.1:0", "--http", "off")
    with running(*serve, "--set", "zmq.front=process") as process:
        endpoint = process.line().split()[1]
        with WireClient(endpoint) as client:
            client.greet()
            for number in range(30):
                client.send(*client.infer(entry, {"x": toy_samples[:1]}, number))
            threads = Path(f"/proc/{process.popen.pid}/task").iterdir()
            (front,) = [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]
            for pid in (front, process.popen.pid):
                os.kill(pid, signal.SIGTERM)
            seen = [client.receive() for _ in range(31)]
        assert process.wait() == 0
    assert Counter(type(message) for message in seen)[m.Drain] == 1
    answered = {message.request.sequence for message in seen if isinstance(message, m.Result | m.Reject)}
    assert answered == set(range(30)), "each is answered, or refused because it came too late"
