"""Fetching over a socket: from gateways that fall silent, lie, are busy or are gone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from edge_agent.bundles.courier import Courier, Interrupted, Stopped
from edge_agent.bundles.disk import Disk
from edge_agent.ways import Ways
from protocol import messages as m
from protocol import sockets, wire
from protocol.bundle import sha256
from protocol.errors import IsthmusError, NetworkError, WireError
from protocol.sockets import Endpoint

DATA = bytes(range(256)) * 4096  # 1 MiB: eight parts
SHA = sha256(DATA)
Answer = Callable[[m.FetchPart | m.AskOffers], list[wire.Buffer] | None]


def part_of(question: m.FetchPart | m.AskOffers, data: bytes = DATA) -> list[wire.Buffer]:
    assert isinstance(question, m.FetchPart)
    part = data[question.offset : question.offset + question.nbytes]
    return wire.pack(m.FilePart(question.file, question.offset, len(part), len(data), wire.checksum((part,))), (part,))


@contextmanager
def gateway(answer: Answer) -> Iterator[Ways]:
    """A bare ROUTER that answers as it is told; None is silence."""
    context = sockets.make_context()
    sock, endpoint = sockets.router(context, Endpoint("127.0.0.1", 0))
    end = threading.Event()

    def serve() -> None:
        try:
            while not end.is_set():
                if sock.poll(10):
                    route, header = sock.recv_multipart()[:2]
                    frames = answer(wire.unpack_header(header))  # type: ignore[arg-type]
                    with contextlib.suppress(zmq.ZMQError):  # whoever asked has gone
                        if frames is not None:
                            sock.send_multipart([route, *frames])
        finally:
            sock.close(0)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Ways(endpoint)
    finally:
        end.set()
        thread.join()
        context.term()


def test_a_file_comes_whole_from_the_gateway_that_has_it(tmp_path: Path) -> None:
    def knows_nothing(question: m.FetchPart | m.AskOffers) -> list[wire.Buffer]:
        if isinstance(question, m.AskOffers):
            return wire.pack(m.Offers((), "nothing here"))
        return wire.pack(m.NoPart(question.file, question.offset, m.NoPartCode.UNKNOWN, "never heard of it"))

    with gateway(knows_nothing) as first, gateway(part_of) as second:
        courier = Courier([first, second])
        courier.fetch(SHA, len(DATA), tmp_path / "part", Disk())
        assert (tmp_path / "part").read_bytes() == DATA
        assert courier.fetched_nbytes == len(DATA)
        with pytest.raises(WireError, match="never heard of it"):
            Courier([first]).fetch(SHA, len(DATA), tmp_path / "other", Disk())
        assert Courier([first]).offers().reason == "nothing here"


def test_a_fetch_that_is_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    with gateway(part_of) as way:
        courier = Courier([way])
        courier.interrupted = lambda: courier.fetched_nbytes > 0
        with pytest.raises(Interrupted):
            courier.fetch(SHA, len(DATA), tmp_path / "part", Disk())
        came = courier.fetched_nbytes
        assert 0 < came < len(DATA)
        courier.interrupted = lambda: False
        courier.fetch(SHA, len(DATA), tmp_path / "part", Disk())
        assert (tmp_path / "part").read_bytes() == DATA
        assert courier.fetched_nbytes == len(DATA), "nothing was asked for twice"


def test_what_was_lost_with_a_connection_is_asked_for_again_on_the_next(tmp_path: Path) -> None:
    """Every third question is never answered, so that a connection falls silent again and again."""
    asked: list[int] = []

    def forgetful(question: m.FetchPart | m.AskOffers) -> list[wire.Buffer] | None:
        assert isinstance(question, m.FetchPart)
        asked.append(question.offset)
        return None if len(asked) % 3 == 0 else part_of(question)

    with gateway(forgetful) as ways:
        Courier([ways], patience_s=0.4).fetch(SHA, len(DATA), tmp_path / "part", Disk())
    assert (tmp_path / "part").read_bytes() == DATA
    assert len(asked) > 8


def test_a_busy_gateway_is_asked_again_when_it_said(tmp_path: Path) -> None:
    asked: list[int] = []

    def busy(question: m.FetchPart | m.AskOffers) -> list[wire.Buffer]:
        assert isinstance(question, m.FetchPart)
        asked.append(question.offset)
        if len(asked) < 4:
            return wire.pack(m.NoPart(question.file, question.offset, m.NoPartCode.BUSY, "busy", 1000))
        return part_of(question)

    with gateway(busy) as ways:
        Courier([ways]).fetch(SHA, len(DATA), tmp_path / "part", Disk())
    assert (tmp_path / "part").read_bytes() == DATA


def test_another_file_under_that_digest_is_thrown_away(tmp_path: Path) -> None:
    with gateway(lambda question: part_of(question, bytes(len(DATA)))) as ways:
        with pytest.raises(WireError, match=f"what came is not the file {SHA[:12]}"):
            Courier([ways]).fetch(SHA, len(DATA), tmp_path / "part", Disk())
        assert not (tmp_path / "part").exists()


def test_a_beginning_that_is_not_the_files_is_thrown_away_and_comes_right_the_next_time(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(b"torn by a power cut" * 10)
    with gateway(part_of) as ways:
        with pytest.raises(WireError):
            Courier([ways]).fetch(SHA, len(DATA), part, Disk())
        Courier([ways]).fetch(SHA, len(DATA), part, Disk())
        assert part.read_bytes() == DATA
        part.write_bytes(DATA + b"too long")
        Courier([ways]).fetch(SHA, len(DATA), part, Disk())
        assert part.read_bytes() == DATA


@pytest.mark.parametrize(
    ("lie", "sentence"),
    [
        (lambda question: part_of(question, DATA * 2), "says the file has 2097152 bytes"),
        (lambda question: part_of(question)[:1], "sent 0 bytes where 131072 were asked for"),
        (lambda question: [*part_of(question)[:1], b"x" * 131072], "damaged on its way"),
        (lambda question: wire.pack(m.VersionMismatch(2, 3)), "another version"),
        (lambda question: [b"HTTP/1.1 400 Bad Request"], "major version"),
    ],
)
def test_a_gateway_that_lies_is_refused_in_a_sentence(tmp_path: Path, lie: Answer, sentence: str) -> None:
    with gateway(lie) as ways, pytest.raises(IsthmusError, match=sentence):
        Courier([ways]).fetch(SHA, len(DATA), tmp_path / "part", Disk())


def test_where_nobody_answers_the_fetch_ends_and_what_came_is_kept(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(DATA[:1000])
    with gateway(lambda question: None) as silent:
        courier = Courier([silent], patience_s=0.05)
        with pytest.raises(NetworkError, match="fallen silent after 1000 of 1048576 bytes"):
            courier.fetch(SHA, len(DATA), tmp_path / "part", Disk())
        assert (tmp_path / "part").read_bytes() == DATA[:1000]
        with pytest.raises(NetworkError, match="no gateway answers"):
            courier.offers()
    with pytest.raises(NetworkError, match="no gateway is known"):
        Courier([]).offers()


def test_a_gateway_that_is_busy_for_ever_keeps_others_waiting_no_longer(tmp_path: Path) -> None:
    def busy(question: m.FetchPart | m.AskOffers) -> list[wire.Buffer]:
        assert isinstance(question, m.FetchPart)
        return wire.pack(m.NoPart(question.file, question.offset, m.NoPartCode.BUSY, "busy", 1000))

    with gateway(busy) as first, gateway(part_of) as second:
        Courier([first, second], stall_s=0.3).fetch(SHA, len(DATA), tmp_path / "part", Disk())
    assert (tmp_path / "part").read_bytes() == DATA


def test_fetching_ends_when_the_daemon_does(tmp_path: Path) -> None:
    stop = threading.Event()

    def answer(question: m.FetchPart | m.AskOffers) -> list[wire.Buffer]:
        stop.set()
        return part_of(question)

    with gateway(answer) as ways, pytest.raises(Stopped):
        Courier([ways], stop=stop).fetch(SHA, len(DATA), tmp_path / "part", Disk())
