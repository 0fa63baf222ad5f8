"""What is to run on a machine with a GPU runs on a SIMULATED one: whole processes, and the children that they start.

`simulation/machine` first in PYTHONPATH makes them find a driver, TensorRT, pycuda, cuda-python and a GPU build of ONNX
Runtime. Nothing here says anything about a GPU. `gate.sh` runs the same in full.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MACHINE = Path(__file__).parent / "simulation" / "machine"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(MACHINE), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_the_tests_for_a_gpu_pass_on_a_simulated_one() -> None:
    which = "(residual and not rtx) or bytes or more_than or replays"
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu/test_on_a_gpu.py", "-k", which)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "11 passed" in said, said
    assert "skipped" not in said, said


def test_the_benchmark_of_gpus_measures_a_simulated_one(tmp_path: Path) -> None:
    target = tmp_path / "gpu.json"
    settings = ("kinds=onnxruntime-cuda", "tails=tail_light", "window_s=0.02")
    done = run(
        "-m", "benchmarks", "gpu", "--quick", "--json", str(target), *(x for s in settings for x in ("--set", s))
    )
    assert done.returncode in (0, 1), done.stderr  # 1: targets, which are for a GPU
    results = json.loads(target.read_text())["results"]
    rows = {row["name"].removeprefix("tail_light, onnxruntime-cuda: "): row for row in results}
    assert "Simulated GPU" in rows.pop("GPU")["note"]
    assert [row for row in rows.values() if not row["n"]] == []
    assert "CUDAExecutionProvider" in rows["throughput over a bare loop"]["note"]
    assert rows["apart from the processor"]["ok"] is True
    assert "binding over run, batch 32" in rows  # on the GPU, not on the processor
