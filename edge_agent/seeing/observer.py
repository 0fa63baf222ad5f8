"""The one object that the daemon tells of finished requests and that answers whoever looks.

    finished request --observe--> ledger, log         scrape, page, `status` --views--> one look at everything
                                                      once a second: a look, so that the log tells what changed

Nothing is kept up to date on a request's way but the account. Times are read here, from one clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from edge_agent.outcomes import Answer, Outcome
from edge_agent.seeing.chronicle import Chronicle, Line
from edge_agent.seeing.ledger import Ledger
from edge_agent.seeing.metrics import metrics_text
from edge_agent.seeing.page import page_html
from edge_agent.seeing.scene import Scene
from edge_agent.seeing.standing import AgentStanding
from edge_agent.seeing.status import status_json
from protocol import __version__
from protocol.seeing.machine import Machine
from protocol.seeing.views import Views

if TYPE_CHECKING:  # the log is the daemon's; an agent inside an application has none
    from protocol.seeing.logs import Logs

LOOK_EVERY_S = 1.0


class Observer:
    """`standing` is asked on the thread of whoever looks. Any thread may call any method."""

    def __init__(
        self,
        standing: Callable[[], AgentStanding],
        *,
        logs: Logs | None = None,
        clock: Callable[[], float] = time.monotonic,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._standing = standing
        self._logs = logs
        self._log = None if logs is None else logs.get()
        self._clock = clock
        self._look_every_s = look_every_s
        self.ledger = Ledger(now=clock())
        self.views: Views[Scene] = Views(self.scene, metrics=metrics_text, status=status_json, page=page_html)
        self._machine = Machine()
        self._chronicle = Chronicle()
        self._lock = threading.Lock()  # the chronicle's
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="isthmus-seeing", daemon=True)

    def start(self) -> None:
        """Begin to look once a second, so that the log tells what changes."""
        self._thread.start()

    def close(self) -> None:
        """Safe to call twice, and before `start`."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def observe(self, outcome: Outcome, *, budget_s: float) -> None:
        """One request has ended: call it once for each, where nobody waits for the answer any more if that can be.

        `budget_s` is what its caller gave it; what the plan had said is in the answer.
        """
        now = self._clock()
        predicted_s = outcome.predicted_s if isinstance(outcome, Answer) else None
        self.ledger.observe(outcome, budget_s=budget_s, predicted_s=predicted_s, now=now)
        if self._log is None:
            return
        with self._lock:
            lines = self._chronicle.finished(outcome, budget_s=budget_s, now=now)
        self._write(lines)
        if self._logs is not None and self._logs.level == "debug" and isinstance(outcome, Answer):
            self._write([answered(outcome)])

    def scene(self) -> Scene:
        """Everything at this moment."""
        now = self._clock()
        standing = self._look()
        return Scene(self.ledger.snapshot(now=now), standing, self._machine.read(now=now), f"isthmus {__version__}")

    def look(self) -> None:
        """Write down what changed since the look before; `start` has it done once a second."""
        standing = self._look()
        with self._lock:
            lines = self._chronicle.looked(standing)
        self._write(lines)

    def _look(self) -> AgentStanding:
        standing = self._standing()
        bundle = standing.bundle
        if bundle.digest:
            self.ledger.introduce(bundle.digest, bundle.model, bundle.version)
        return standing

    def _watch(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:  # whatever is looked at may be broken; who looks goes on, and says so
                self._write([Line("error", "look_failed", {"reason": f"{type(error).__name__}: {error}"})])
            if self._stop.wait(self._look_every_s):
                return

    def _write(self, lines: Iterable[Line]) -> None:
        if self._log is not None:
            for line in lines:
                getattr(self._log, line.level)(line.event, **line.fields)


def answered(answer: Answer) -> Line:
    """What level debug says of every answer: where it was made and how long each stage took."""
    t = answer.timings
    return Line(
        "debug",
        "answered",
        {
            "request": answer.request,
            "placement": answer.placement,
            "engine": answer.engine,
            "total_ms": round(t.total_s * 1e3, 3),
            "edge_ms": round(t.edge_s * 1e3, 3),
            "network_ms": round(t.network_s * 1e3, 3),
            "compute_ms": round(t.compute_s * 1e3, 3),
            "attempts": answer.attempts,
            "degraded": "; ".join(answer.degraded),
            "cause": ", ".join(answer.causes),
        },
    )
