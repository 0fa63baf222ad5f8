"""What Triton's statistics say of the requests of one bundle. Pure; touched by the event loop alone."""

from __future__ import annotations

from edge_agent.outcomes import Answer
from protocol.oip.service import BatchStatistics, Duration, InferStatistics, ModelStatistics


class Counting:
    """Counts one bundle's requests by what they ended in."""

    def __init__(self) -> None:
        self._answered = 0
        self._failed = 0
        self._failed_s = 0.0
        self._total_s = 0.0
        self._queue_s = 0.0
        self._input_s = 0.0
        self._compute_s = 0.0
        self._last_ms = 0

    def answered(self, answer: Answer, *, at_ms: int) -> None:
        """`at_ms` is wall-clock time in milliseconds since the epoch: the protocol wants it so."""
        t = answer.timings
        self._answered += 1
        self._total_s += t.total_s
        self._queue_s += t.queue_s
        self._input_s += t.encode_s + t.decode_s
        self._compute_s += t.edge_s + t.compute_s
        self._last_ms = at_ms

    def failed(self, after_s: float) -> None:
        self._failed += 1
        self._failed_s += after_s

    def totals(self) -> dict[str, int]:
        return {"answered": self._answered, "not_answered": self._failed}

    def statistics(self, name: str, version: str) -> ModelStatistics:
        """`compute_input` is encoding and decoding, `compute_infer` head and tail, `queue` the gateway's."""
        answered = self._answered
        compute = _duration(answered, self._compute_s)
        return ModelStatistics(
            name,
            version,
            last_inference=self._last_ms,
            inference_count=answered,
            execution_count=answered,
            inference_stats=InferStatistics(
                success=_duration(answered, self._total_s),
                fail=_duration(self._failed, self._failed_s),
                queue=_duration(answered, self._queue_s),
                compute_input=_duration(answered, self._input_s),
                compute_infer=compute,
                compute_output=_duration(answered, 0.0),
            ),
            batch_stats=[BatchStatistics(1, compute_infer=compute)] if answered else [],
        )


def _duration(count: int, seconds: float) -> Duration:
    return Duration(count, int(seconds * 1e9))
