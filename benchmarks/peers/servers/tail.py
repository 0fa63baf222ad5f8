"""The model that every peer serves, and the one way to run it: one thread, warm, batch in, batch out.

Environment: TAIL_MODEL (path of the ONNX file), TAIL_MAX_BATCH, TAIL_DELAY_MS, TAIL_THREADS.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime as ort

SHAPE = (256, 14, 14)
MAX_BATCH = int(os.environ.get("TAIL_MAX_BATCH", "16"))
DELAY_MS = float(os.environ.get("TAIL_DELAY_MS", "0"))
THREADS = int(os.environ.get("TAIL_THREADS", "1"))


class Tail:
    """One warm session; `run` takes float32 [N, 256, 14, 14] and returns float32 [N, classes]."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(os.environ["TAIL_MODEL"], options, providers=["CPUExecutionProvider"])
        for batch in (1, 2, 4, 8, MAX_BATCH):
            self.run(np.zeros((batch, *SHAPE), np.float32))

    def run(self, batch: np.ndarray) -> np.ndarray:
        return self._session.run(None, {"x": batch})[0]


def tensor(payload: bytes) -> np.ndarray:
    """One request's tensor, not copied."""
    return np.frombuffer(payload, np.float32).reshape(SHAPE)
