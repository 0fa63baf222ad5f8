"""What is asked of every server, and what is right: a few seeded tensors and ONNX Runtime's own answers to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from benchmarks import tails

Array = npt.NDArray[Any]
COUNT = 8
TOLERANCE = 1e-3  # a batch of 16 rounds differently from a batch of 1


@dataclass(frozen=True, slots=True)
class Questions:
    """`tensors` are float32 [1, 256, 14, 14]; `answers` float32 [classes], one each."""

    tensors: tuple[Array, ...]
    answers: tuple[Array, ...]

    @classmethod
    def of(cls, model: Path) -> Questions:
        """Draw the tensors and ask ONNX Runtime directly."""
        rng = np.random.default_rng(3)
        session = session_of(model)
        drawn = tuple(rng.standard_normal((1, *tails.INPUT), dtype=np.float32) for _ in range(COUNT))
        return cls(drawn, tuple(session.run(None, {"x": tensor})[0][0] for tensor in drawn))

    def is_right(self, which: int, answer: bytes | memoryview) -> bool:
        """Whether `answer`, float32 in memory order, is the answer to tensor number `which`."""
        expected = self.answers[which]
        if memoryview(answer).nbytes != expected.nbytes:
            return False
        return np.allclose(np.frombuffer(answer, np.float32), expected, rtol=TOLERANCE, atol=TOLERANCE)


def session_of(model: Path) -> ort.InferenceSession:
    """ONNX Runtime as every server here runs it: one thread, no spinning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
