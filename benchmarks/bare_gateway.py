"""The reference that the gateway is measured against: ZeroMQ and ONNX Runtime, and nothing else.

No versions, sessions, deadlines, duplicates, refusals, checksums, metrics or fallback; one thread, greedy batching.
This is what a weekend would produce, and the least that any server of this kind can cost. `python -m
benchmarks.bare_gateway MODEL`
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort
import zmq

MAX_BATCH = 16


def main() -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    name, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape[1:]
    for batch in (1, 2, 4, 8, MAX_BATCH):
        session.run(None, {name: np.zeros((batch, *shape), np.float32)})
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    print(f"ready tcp://127.0.0.1:{port}", flush=True)
    while True:
        router.poll()
        requests: list[list[zmq.Frame]] = []
        while len(requests) < MAX_BATCH:
            try:
                requests.append(router.recv_multipart(zmq.NOBLOCK, copy=False))
            except zmq.Again:
                break
        tensors = [np.frombuffer(b"".join(f.buffer for f in r[2:]), np.float32).reshape(1, *shape) for r in requests]
        answers = session.run(None, {name: tensors[0] if len(tensors) == 1 else np.concatenate(tensors)})[0]
        for request, answer in zip(requests, answers, strict=True):
            router.send_multipart([request[0].bytes, request[1].bytes, answer.tobytes()])


if __name__ == "__main__":
    main()
