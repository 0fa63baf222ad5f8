"""A gateway whose key is pinned and that was taken over: it may refuse to work, not keep the device from working."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
import zmq

from edge_agent.agent import Agent, AgentConfig
from edge_agent.link import GREET_IVL_S
from edge_agent.outcomes import Answer, Refusal
from protocol import messages as m
from protocol import sockets, wire
from protocol.bundle import Bundle
from tests.waiting import PATIENCE_S, until

EPOCH = b"takeover"
Say = Callable[[m.Message], None]


def welcome_of(bundle: Bundle) -> m.Welcome:
    segments = tuple(bytes.fromhex(e.segment) for e in bundle.manifest.placements if e.segment)
    return m.Welcome(EPOCH, "evil", 64, 1 << 26, segments, (bytes.fromhex(bundle.manifest.model.digest),))


class Hostile:
    """A gateway that answers greetings and pings, then whatever `also` says to each message, and `always` says always.

    `heard` counts what came, by type.
    """

    def __init__(
        self,
        welcome: m.Welcome,
        also: Callable[[m.Message, Say], None] = lambda message, say: None,
        always: m.Message | None = None,
    ) -> None:
        self.heard: Counter[str] = Counter()
        self._welcome, self._also, self._always = welcome, also, always
        self._context = sockets.make_context()
        self._socket, self.endpoint = sockets.router(self._context, sockets.Endpoint("127.0.0.1", 0))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        self._socket.close(0)
        self._context.term()

    def _run(self) -> None:
        routes: set[bytes] = set()
        while not self._stop.is_set():
            if self._socket.poll(0 if self._always and routes else 5):
                route, head, *_ = self._socket.recv_multipart()
                routes.add(route)
                self._answer(route, wire.unpack_header(head))
            for route in routes if self._always else ():
                for _ in range(500):
                    self._say(route, self._always)

    def _answer(self, route: bytes, message: m.Message) -> None:
        self.heard[type(message).__name__] += 1
        if isinstance(message, m.Hello):
            self._say(route, self._welcome)
        elif isinstance(message, m.Ping):
            self._say(route, m.Pong(message.number))
        self._also(message, lambda answer: self._say(route, answer))

    def _say(self, route: bytes, message: m.Message | None) -> None:
        assert message is not None
        try:
            self._socket.send_multipart([route, *wire.pack(message)], zmq.NOBLOCK)
        except zmq.ZMQError:  # full, or gone
            self._stop.wait(0.001)


@contextmanager
def served_by(hostile: Hostile, bundle: Path, **config: Any) -> Iterator[Agent]:
    try:
        with Agent(AgentConfig(bundle=bundle, gateway=f"tcp://127.0.0.1:{hostile.endpoint.port}", **config)) as agent:
            until(lambda: hostile.heard["Hello"] > 0, "the agent does not come")
            yield agent
    finally:
        hostile.close()


@pytest.mark.parametrize("flood", ["Welcome", "Drain"])
def test_a_gateway_that_never_stops_talking_does_not_keep_the_device_from_answering(
    flood: str, toy_bundle: Path, toy_samples: npt.NDArray[Any]
) -> None:
    welcome = welcome_of(Bundle.open(toy_bundle))
    hostile = Hostile(welcome, always=welcome if flood == "Welcome" else m.Drain("x" * 200))
    with served_by(hostile, toy_bundle, placements=("edge-only",)) as agent:
        for _ in range(3):
            outcome = agent.submit({"x": toy_samples[:1]}, deadline_s=3.0).result(PATIENCE_S)
            assert isinstance(outcome, Answer), outcome


def test_what_a_gateway_says_neither_rules_a_terminal_nor_forges_a_line(
    toy_bundle: Path, toy_samples: npt.NDArray[Any]
) -> None:
    text = "\x1b]0;owned\x07\x1b[2J\nready\r\u202e"

    def also(message: m.Message, say: Say) -> None:
        if isinstance(message, m.Infer):
            say(m.Reject(message.request, message.attempt, m.RejectCode.BAD_REQUEST, text, 0, 0))

    hostile = Hostile(welcome_of(Bundle.open(toy_bundle)), also)
    with served_by(hostile, toy_bundle, placements=("full-cloud",)) as agent:
        assert agent.wait_ready(PATIENCE_S)
        outcome = agent.submit({"x": toy_samples[:1]}, deadline_s=9.0).result(PATIENCE_S)
        assert isinstance(outcome, Refusal)
        said = "".join((outcome.reason, *outcome.degraded))
        assert "owned" in said
        assert said.isprintable()


def test_a_gateway_that_wants_to_be_greeted_again_and_again_is_not_obeyed(
    toy_bundle: Path, toy_samples: npt.NDArray[Any]
) -> None:
    def also(message: m.Message, say: Say) -> None:
        if isinstance(message, m.Hello | m.Ping):
            say(m.NeedHello(EPOCH))

    hostile, began = Hostile(welcome_of(Bundle.open(toy_bundle)), also), time.monotonic()
    with served_by(hostile, toy_bundle) as agent:
        until(lambda: hostile.heard["Ping"] >= 4)
        assert isinstance(agent.submit({"x": toy_samples[:1]}, deadline_s=9.0).result(PATIENCE_S), Answer)
        assert hostile.heard["Hello"] <= 5 + 2 * (time.monotonic() - began) / GREET_IVL_S
