"""A process of its own that loads one segment, runs it, and prints by how many bytes its peak exceeds an empty one.

`getrusage` would report the parent's peak (it survives exec), so the kernel's high-water mark of this very address
space is read instead. Started by `sensors.peak_memory_nbytes`; prints nothing but the number.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from protocol.engines.ort import OrtEngine
from protocol.graphs import Graph

_RUNS = 2  # the first run allocates what later ones reuse


def high_water_nbytes() -> int:
    """The peak resident size of this process. Raises OSError or ValueError where the platform does not tell."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no VmHWM in /proc/self/status")


def main(folder: Path, threads: int) -> int:
    """Peak bytes of loading and running FOLDER/model.onnx on FOLDER/feed.npz, above what importing took."""
    names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    with np.load(folder / "feed.npz", allow_pickle=False) as archive:
        feed = {name: archive[f"a{i}"] for i, name in enumerate(names["feed"])}
    before = high_water_nbytes()
    external = {name: (folder / name).read_bytes() for name in names["external"]}
    model = (folder / "model.onnx").read_bytes()
    with OrtEngine(Graph(model, external) if external else model, label="footprint", threads=threads) as engine:
        for _ in range(_RUNS):
            engine.infer(feed)
    return max(high_water_nbytes() - before, 0)


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), int(sys.argv[2])))
