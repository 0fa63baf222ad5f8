"""What seeing costs on the device: the account of one answer, one scrape, one look at the board. Part of `scrape`.

The agent is as busy as one can be: all its scopes in use, every window full of a minute at 500 answers a second.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.results import Result
from edge_agent.device.board import look as look_at_board
from edge_agent.outcomes import Answer, StageTimings
from edge_agent.seeing.ledger import MOST_SCOPES, Ledger
from edge_agent.seeing.metrics import metrics_text
from edge_agent.seeing.observer import Observer
from edge_agent.seeing.scene import Scene
from edge_agent.seeing.standing import AgentStanding, BoardStanding, GatewayStanding, PlacementStanding
from edge_agent.seeing.status import status_json
from edge_agent.seeing.surroundings import board_standing
from protocol.seeing.machine import Machine

ANSWERS_PER_S = 500
MINUTE_S = 60
CALLS = 20_000
MOST_SCRAPE_MS = 20.0
MOST_ANSWER_US = 10.0
Timed = Callable[[Callable[[], object], float], list[float]]


def results(timed: Timed) -> list[Result]:
    """`timed(work, scale)` gives the samples of processor seconds times `scale`."""
    answers = [answer(f"cut-{number}") for number in range(MOST_SCOPES - 1)]
    ledger, now = Ledger(now=0.0), 0.0
    for i in range(ANSWERS_PER_S * MINUTE_S):
        now = i / ANSWERS_PER_S
        ledger.observe(answers[i % len(answers)], budget_s=0.1, predicted_s=0.02, now=now)
    machine, stands = Machine(), standing()
    scene = Scene(ledger.snapshot(now=now), stands, machine.read(now=now), "isthmus")
    page = metrics_text(scene)
    note = f"{len(answers)} scopes, {page.count(b'{')} series, {len(page) / 1e3:.0f} kB"

    def scrape() -> None:
        metrics_text(Scene(ledger.snapshot(now=now), stands, machine.read(now=now), "isthmus"))

    observer, one = Observer(standing), answers[0]

    def account() -> None:
        for _ in range(CALLS):
            observer.observe(one, budget_s=0.1)

    return [
        Result.bounded("agent: scrape", "ms", timed(scrape, 1e3), at_most=MOST_SCRAPE_MS, note=note),
        Result.of("agent: status document", "ms", timed(lambda: status_json(scene), 1e3)),
        Result.bounded("agent: account of an answer", "us", timed(account, 1e6 / CALLS), at_most=MOST_ANSWER_US),
        Result.of("agent: one look at the board", "ms", timed(lambda: board_standing(look_at_board()), 1e3)),
    ]


def answer(placement: str) -> Answer:
    return Answer(
        request="ab" * 8 + "-1",
        outputs={"y": np.zeros((1, 10), np.float32)},
        placement=placement,
        kind="cut",
        precision="int8",
        engine="onnxruntime",
        bundle="ab" * 32,
        timings=StageTimings(0.004, 0.001, 0.006, 0.001, 0.0005, 0.005, 0.02),
        up_nbytes=12_000,
        down_nbytes=80,
        attempts=1,
        batch_size=1,
        gateway="tcp://10.0.0.7:7447",
    )


def standing() -> AgentStanding:
    return AgentStanding(
        ready=True,
        placement="cut-1",
        kind="cut",
        placements=tuple(PlacementStanding(f"cut-{number}", "cut", 0.02) for number in range(12)),
        gateways=tuple(
            GatewayStanding(f"tcp://10.0.0.{number}:7447", "ready", True, rtt_s=0.005, uplink_bytes_per_s=1e6)
            for number in range(4)
        ),
        board=BoardStanding("board", "15W", "cpu-thermal", 60.0, 99.0),
    )
