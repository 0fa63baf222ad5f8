"""A busy agent as whoever looks at it sees it: a minute of answers from two placements, some trouble, one board."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_agent.outcomes import Answer, Refusal, StageTimings
from edge_agent.seeing.ledger import Ledger
from edge_agent.seeing.scene import Scene
from edge_agent.seeing.standing import (
    AgentStanding,
    BoardStanding,
    BundleStanding,
    GatewayStanding,
    PlacementStanding,
    StoreStanding,
)
from protocol.control.causes import Cause, Why, causes, sentences
from protocol.control.flights import RefusalCode
from protocol.seeing.machine import MachineState
from protocol.seeing.nvml import Gpu

DIGEST = "ab" * 32
BUNDLE = BundleStanding("digits", "3", DIGEST, state="confirmed", signed_by="factory", built_at=1.7e9, unheard_s=12.0)
LOST = Why(Cause.LINK, "no gateway answers")
HOSTILE = "<img src=x onerror=alert(1)>"


def answer(number: int = 1, *, kind: str = "cut", total_s: float = 0.02, degraded: Sequence[Why] = ()) -> Answer:
    """An answer of `cut-1` over the link, or of `edge-only`."""
    remote = kind != "edge-only"
    timings = StageTimings(
        edge_s=0.004 if remote else total_s - 0.001,
        encode_s=0.001 if remote else 0.0,
        network_s=0.006 if remote else 0.0,
        queue_s=0.001 if remote else 0.0,
        decode_s=0.0005 if remote else 0.0,
        compute_s=0.005 if remote else 0.0,
        total_s=total_s,
    )
    return Answer(
        request=f"{'ab' * 8}-{number}",
        outputs={"logits": np.zeros((1, 10), np.float32)},
        placement="cut-1" if remote else "edge-only",
        kind=kind,
        precision="int8",
        engine="onnxruntime-1.26.0/CPUExecutionProvider",
        bundle=DIGEST,
        timings=timings,
        up_nbytes=12_000 if remote else 0,
        down_nbytes=80 if remote else 0,
        attempts=1,
        batch_size=1,
        degraded=sentences(degraded),
        causes=causes(degraded),
    )


def refusal(number: int = 1, code: RefusalCode = RefusalCode.DEADLINE, slack_s: float = 0.03) -> Refusal:
    return Refusal(f"{'ab' * 8}-{number}", code, "the budget ran out: waiting for the gateway", slack_s)


def busy_ledger() -> Ledger:
    """60 s at 50 answers a second: 9 of 10 through the cut at 20 ms, the rest alone at 45 ms because of a lost link."""
    ledger = Ledger(now=0.0)
    ledger.introduce(DIGEST, "digits", "3")
    for i in range(3000):
        alone = i % 10 == 0
        outcome = answer(i, kind="edge-only", total_s=0.045, degraded=(LOST.about("cut-1"),)) if alone else answer(i)
        predicted_s = 0.045 if alone else 0.018
        ledger.observe(outcome, budget_s=0.1, predicted_s=predicted_s, now=i / 50)
    for i in range(12):
        ledger.observe(refusal(i), budget_s=0.1, predicted_s=None, now=59.5)
    return ledger


def standing() -> AgentStanding:
    return AgentStanding(
        ready=True,
        placement="cut-1",
        kind="cut",
        why="It is predicted to take 18 ms; the next best, edge-only, would take 45 ms.",
        flips=("below 3.1 Mbit/s (edge-only)", "if the round trip rose above 28 ms (edge-only)"),
        placements=(
            PlacementStanding("full-cloud", "full-cloud", 0.061),
            PlacementStanding("cut-1", "cut", 0.018),
            PlacementStanding("cut-2", "cut", 0.024, unavailable="its head could not be loaded"),
            PlacementStanding("edge-only", "edge-only", 0.045),
        ),
        gateways=(
            GatewayStanding(
                "tcp://10.0.0.7:7447", "ready", True, in_use=True, uplink_bytes_per_s=2.4e6, downlink_bytes_per_s=2.4e6,
                rtt_s=0.0052, queue_s=0.001, wait_s=0.0074, in_flight=2, in_flight_nbytes=24_000,
            ),
            GatewayStanding(HOSTILE, "disconnected", False, reason="no gateway answers"),
        ),
        pending=3,
        edge_factor=1.4,
        events={"placement_switches": 4, "sockets_recreated": 2},
        bundle=BUNDLE,
        store=StoreStanding(waiting=4, answered=1, nbytes=3 * 2**20, limit_nbytes=64 * 2**20, oldest_s=95.0),
        board=BoardStanding("NVIDIA Jetson Orin Nano", "15W", "cpu-thermal", 71.5, 99.0, "", 0.4, 9.2),
    )  # fmt: skip


def machine() -> MachineState:
    return MachineState(64 * 2**20, 12.0, 0.5, 9, 30, 0.41, 8 * 2**30, 2**30, (Gpu("gpu.0", 0.25, None, None),))


def scene() -> Scene:
    return Scene(busy_ledger().snapshot(now=60.0), standing(), machine(), "isthmus 9")


def new_scene() -> Scene:
    """An agent that has done nothing yet and knows nothing of its board."""
    unknown = MachineState(None, None, None, None, None, None, None, None, ())
    return Scene(Ledger(now=0.0).snapshot(now=0.0), AgentStanding(ready=False, reason="starting"), unknown, "isthmus 9")
