"""What seeing costs: the account on a request's way, and one look at everything with all labels in use.

The gateway is as busy as one can be: the shipped number of scopes, every sample window full of a minute at 2,000
answers a second. Processor time of this thread, so that neighbours do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks import scrape_agent
from benchmarks.results import Options, Result
from cloud_gateway.seeing.ledger import MOST_SCOPES, Ledger, Scope
from cloud_gateway.seeing.metrics import Scene, metrics_text
from cloud_gateway.seeing.standing import LaneState, ModelState, Standing
from cloud_gateway.seeing.status import status_json
from protocol.seeing.machine import Machine

ANSWERS_PER_S = 2000
MINUTE_S = 60
CODES = ("BUSY", "DEADLINE", "BAD_REQUEST", "INTERNAL")
MOST_SCRAPE_MS = 20.0
MOST_REQUEST_US = 3.0


def run(options: Options) -> list[Result]:
    """Scrape, status document, and the account per request, of either daemon."""
    repeats = max(options.repeats, 3 if options.quick else 10)
    scopes = [Scope(f"model-{i}", "1", "cut-1") for i in range(MOST_SCOPES - 1)]
    ledger, now = busy(scopes)
    scene = Scene(ledger.snapshot(now=now), standing(scopes), Machine().read(now=now), "isthmus")
    page = metrics_text(scene)
    note = f"{len(scopes)} scopes, {page.count(b'{')} series, {len(page) / 1e3:.0f} kB"

    def scrape() -> None:
        whole = Scene(ledger.snapshot(now=now), standing(scopes), machine.read(now=now), "isthmus")
        metrics_text(whole)

    machine = Machine()
    return [
        Result.bounded("scrape", "ms", timed(scrape, repeats, 1e3), at_most=MOST_SCRAPE_MS, note=note),
        Result.of("of it the snapshot", "ms", timed(lambda: ledger.snapshot(now=now), repeats, 1e3)),
        Result.of("status document", "ms", timed(lambda: status_json(scene), repeats, 1e3)),
        Result.bounded(
            "account of a request", "us", per_request(repeats), at_most=MOST_REQUEST_US, note="batch of 1: 3 calls"
        ),
        *scrape_agent.results(lambda work, scale: timed(work, repeats, scale)),
    ]


def busy(scopes: list[Scope]) -> tuple[Ledger, float]:
    """A ledger after a minute's load spread over all scopes, and the time then."""
    ledger = Ledger(now=0.0)
    now = 0.0
    for i in range(ANSWERS_PER_S * MINUTE_S):
        now = i / ANSWERS_PER_S
        serve(ledger, scopes[i % len(scopes)], now, rows=1 + i % 16)
    for scope in scopes:
        for code in CODES:
            ledger.refused(scope, code, slack_s=0.02, budget_s=0.05)
    return ledger, now


def serve(ledger: Ledger, scope: Scope, now: float, *, rows: int = 1) -> None:
    ledger.offered(scope)
    ledger.executed(
        scope, rows=rows, requests=rows, decode_s=0.0003, compute_s=0.004, predicted_s=0.005, engine="ort", now=now
    )
    ledger.answered(scope, queue_s=0.001, residence_s=0.006, budget_s=0.05, late=False, now=now)


def standing(scopes: list[Scope]) -> Standing:
    return Standing(
        ready=True,
        models=tuple(ModelState(s.model, s.version, "AVAILABLE") for s in scopes),
        lanes=tuple(LaneState(f"{i:08x}", "tail", (s,), "ort") for i, s in enumerate(scopes)),
        pending=dict.fromkeys(scopes, 1),
    )


def per_request(repeats: int, calls: int = 20_000) -> list[float]:
    """Microseconds of a whole request's account at `ANSWERS_PER_S`, for each repeat."""
    ledger, scope = Ledger(now=0.0), Scope("model", "1", "cut-1")

    def block() -> None:
        for i in range(calls):
            serve(ledger, scope, i / ANSWERS_PER_S)

    return [took / calls for took in timed(block, repeats, 1e6)]


def timed(work: Callable[[], object], repeats: int, scale: float) -> list[float]:
    """Processor time of `work` in seconds times `scale`, after one run that does not count."""
    work()
    samples = []
    for _ in range(repeats):
        began = time.thread_time()
        work()
        samples.append((time.thread_time() - began) * scale)
    return samples
