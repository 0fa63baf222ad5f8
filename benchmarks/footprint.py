"""Suite `footprint`: what the agent costs a device besides the engine: memory, disk, and the time to be there.

Law: memory is that of a process of its own, beside a bare ONNX Runtime process with the same heads loaded and run as
often, started in the same round; the difference is the figure. Disk is what an installation of the extra `edge` lays
down, dependencies included, ONNX Runtime apart. `--set bundle=DIR` takes a bundle instead of splitting the digits.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers.processes import ROOT, ServerProcess
from benchmarks.results import Options, Result
from protocol.bundle import Bundle

OVER_BARE_MB = 60.0
_LIMIT_S = 120.0
_SETTLE_S = 1.0
_NAME = re.compile(r"[A-Za-z0-9._-]+")
ENGINES = frozenset({"onnxruntime", "onnxruntime-gpu"})


def run(options: Options) -> list[Result]:
    """The suite `footprint`."""
    with tempfile.TemporaryDirectory(prefix="isthmus-footprint-") as name:
        folder = Path(name)
        bundle = Bundle.open(options.settings.get("bundle") or _digits(folder))
        results = _memory(bundle, folder, 1 if options.quick else options.repeats)
        results += _imports(2 if options.quick else 2 * options.repeats)
        return results + _disk(folder)


def _digits(folder: Path) -> Path:
    from examples.demo import data
    from examples.demo.stage import build_bundle

    samples = data.prepare(data.DIGITS, None, folder)
    build_bundle(
        data.DIGITS, samples.calibration, folder / "bundle", slowdown=8.0, rtt_ms=10.0, budget_s=10.0, jpeg=False
    )
    return folder / "bundle"


# ---- memory ---------------------------------------------------------------------------------------------------------


def _memory(bundle: Bundle, folder: Path, rounds: int) -> list[Result]:
    heads = list(dict.fromkeys(entry.head for entry in bundle.manifest.placements if entry.head))
    root, samples = str(bundle.root), dict[str, list[float]]()
    with _gateway(bundle.root, folder) as endpoint:
        for number in range(rounds):
            found = {
                "bare": _child("bare", root, *heads)["rss"],
                "agent alone": _child("agent", root)["rss"],
                "agent with a gateway": _child("agent", root, endpoint)["rss"],
                "daemon": _daemon(bundle.root, folder / f"state-{number}", endpoint),
            }
            for kind, nbytes in found.items():
                samples.setdefault(kind, []).append(nbytes / 1e6)
    note = f"{len(heads)} heads, 50 requests"
    results = [Result.of("bare ONNX Runtime: resident memory", "MB", samples["bare"], note=note)]
    for kind in ("agent alone", "agent with a gateway", "daemon"):
        over = [one - other for one, other in zip(samples[kind], samples["bare"], strict=True)]
        results.append(Result.bounded(f"{kind}: over bare", "MB", over, at_most=OVER_BARE_MB))
    return results


def _child(*words: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.footprint_process", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()[-400:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def _gateway(bundle: Path, folder: Path) -> Iterator[str]:
    command = [_script("cloud-gateway"), "serve", str(bundle), "--bind", "tcp://127.0.0.1:0", "--http", "off"]
    with ServerProcess(command, core=None, log=folder / "gateway.log", says_ready=True) as server:
        yield server.ready_line().split()[0]


def _daemon(bundle: Path, state_dir: Path, endpoint: str) -> float:
    """Resident bytes of `edge-agent run` once it is ready and has settled."""
    command = [_script("edge-agent"), "run", "--bundle", str(bundle), "--gateway", endpoint, "--http", "off"]
    command += ["--state-dir", str(state_dir)]
    with ServerProcess(command, core=None, log=state_dir.with_suffix(".log"), says_ready=True) as server:
        server.ready_line()
        time.sleep(_SETTLE_S)
        return float(server.rss_nbytes())


def _script(name: str) -> str:
    return str(Path(sys.executable).parent / name)


# ---- imports and disk -----------------------------------------------------------------------------------------------


def _imports(rounds: int) -> list[Result]:
    """Over those of the engine's own library, in the same round: the machine's state moves both."""
    modules = ("onnxruntime", "edge_agent", "edge_agent.agent", "edge_agent.client", "edge_agent.cli")
    samples: dict[str, list[float]] = {module: [] for module in modules}
    for _ in range(rounds):
        for module in modules:
            samples[module].append(_child("import", module)["seconds"])
    engine = statistics.median(samples["onnxruntime"])
    return [
        Result.of(
            f"import {module}", "ms", [s * 1e3 for s in seconds], note=f"{statistics.median(seconds) / engine:.2f} x"
        )
        for module, seconds in samples.items()
    ]


def _disk(folder: Path) -> list[Result]:
    results = []
    if (nbytes := _wheel_nbytes(folder / "wheel")) is not None:
        results.append(Result.of("wheel of all four packages", "MB", [nbytes / 1e6]))
    ours = sum(path.stat().st_size for name in ("protocol", "edge_agent") for path in (ROOT / name).rglob("*.py"))
    results.append(Result.of("source that a device uses", "MB", [ours / 1e6], note="protocol and edge_agent"))
    sizes = {name: _installed_nbytes(name) / 1e6 for name in sorted(_closure("isthmus", "edge")) if name != "isthmus"}
    engine = sum(size for name, size in sizes.items() if name in ENGINES)
    largest = sorted(((size, name) for name, size in sizes.items() if name not in ENGINES), reverse=True)[:5]
    note = ", ".join(f"{name} {size:.1f}" for size, name in largest)
    results.append(Result.of("ONNX Runtime, installed", "MB", [engine]))
    others = sum(sizes.values()) - engine
    return [*results, Result.of(f"the other {len(sizes) - 1} dependencies, installed", "MB", [others], note=note)]


def _wheel_nbytes(target: Path) -> int | None:
    """None where `uv` is not there, or cannot build without a network."""
    if shutil.which("uv") is None:
        return None
    command = ["uv", "build", "--wheel", "--offline", "-o", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=_LIMIT_S, check=False)
    built = list(target.glob("*.whl"))
    return built[0].stat().st_size if done.returncode == 0 and built else None


def _closure(name: str, extra: str = "") -> set[str]:
    """What an installation of `name` brings along here: what is installed of what is required, all the way down."""
    found: set[str] = set()
    waiting = [(name, extra)]
    while waiting:
        name, extra = waiting.pop()
        if name in found:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or version
        found.add(name)
        for line in required:
            asked, _, marker = line.partition(";")
            wanted = re.search(r"extra == ['\"]([^'\"]+)['\"]", marker)
            if (wanted is None or wanted[1] == extra) and (word := _NAME.match(asked)):
                waiting.append((word[0].lower().replace("_", "-"), ""))
    return found


def _installed_nbytes(name: str) -> int:
    total = 0
    for path in importlib.metadata.files(name) or []:
        where = Path(str(path.locate()))
        if where.is_file() and where.suffix != ".pyc":
            total += where.stat().st_size
    return total
