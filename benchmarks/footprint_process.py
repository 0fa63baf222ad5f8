"""One process whose memory is looked at: a bare ONNX Runtime with some heads loaded, or the agent with its bundle.

    python -m benchmarks.footprint_process bare BUNDLE HEAD...
    python -m benchmarks.footprint_process agent BUNDLE [GATEWAY]
    python -m benchmarks.footprint_process import MODULE

Prints one JSON line with `rss` and `peak` in bytes, as the kernel counts them when the work is done. The first imports
nothing but numpy and ONNX Runtime: it is what every device pays that runs a head at all.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protocol.tensors import TensorSpec

REQUESTS = 50


def resident() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {"rss": found["VmRSS"], "peak": found["VmHWM"]}


def bare(folder: Path, heads: list[str]) -> dict[str, int]:
    import numpy as np

    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as ours does
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [ort.InferenceSession((folder / name).read_bytes(), options) for name in heads]
    types = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}
    for session in sessions:
        feed = {
            value.name: np.zeros([d if isinstance(d, int) else 1 for d in value.shape], types[value.type])
            for value in session.get_inputs()
        }
        for _ in range(REQUESTS):
            session.run(None, feed)
    return resident()


def agent(folder: Path, gateway: str | None) -> dict[str, int]:
    from edge_agent.agent import Agent, AgentConfig

    with Agent(AgentConfig(bundle=folder, gateway=gateway)) as running:
        if gateway is not None and not running.wait_ready(20.0):
            raise SystemExit(f"no gateway answers at {gateway}")
        inputs = {spec.name: _zeros(spec) for spec in running.bundle.manifest.model.inputs}
        for _ in range(REQUESTS):
            running.submit(inputs, deadline_s=10.0).result()
        return resident()


def imported(module: str) -> dict[str, float]:
    began = time.perf_counter()
    if module:
        importlib.import_module(module)
    return {"seconds": time.perf_counter() - began, **resident()}


def _zeros(spec: TensorSpec) -> Any:
    import numpy as np

    return np.zeros([d if isinstance(d, int) else 1 for d in spec.shape], spec.numpy_dtype)


if __name__ == "__main__":
    kind, *words = sys.argv[1:]
    if kind == "bare":
        print(json.dumps(bare(Path(words[0]), words[1:])))
    elif kind == "agent":
        print(json.dumps(agent(Path(words[0]), words[1] if len(words) > 1 else None)))
    else:
        print(json.dumps(imported(words[0] if words else "")))
