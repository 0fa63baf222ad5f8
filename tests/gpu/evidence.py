"""What was run on a machine with a GPU, gathered so that it can be read and pasted. The standard library alone.

    python tests/gpu/evidence.py machine WORK          what this machine is, into WORK/machine.json, and said
    python tests/gpu/evidence.py write WORK OUT        WORK's parts into OUT/evidence.json and OUT/evidence.md

`run_all.sh` leaves in WORK: `steps.tsv` (name, verdict, seconds, command), JUnit files of its tests and JSON of its
benchmarks. It has both files written after every step: a run that is cut off has left what it found.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = (
    "isthmus", "numpy", "onnx", "onnxruntime-gpu", "onnxruntime", "tensorrt", "tensorrt-rtx", "tensorrt_rtx_cu13_libs",
    "pycuda", "cuda-bindings", "cuda-python", "nvidia-cuda-runtime", "nvidia-cublas", "nvidia-cudnn-cu13",
    "nvidia-cudnn-cu12", "msgspec", "pyzmq",
)  # fmt: skip
VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MODULE_LOADING", "LD_LIBRARY_PATH", "PYTHONPATH")
WITHIN_S = 20.0


def machine() -> dict[str, Any]:
    """What moves a number or explains a failure; what cannot be told is an empty string."""
    found = {name: version for name in PACKAGES if (version := _version(name))}
    return {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpus": _says("nvidia-smi", "--query-gpu=name,uuid,driver_version,memory.total,mig.mode.current,compute_mode",
                      "--format=csv,noheader"),
        "devices": _says("nvidia-smi", "-L"),
        "nvcc": _says("nvcc", "--version").rpartition("\n")[2],
        "cpu": _cpu(),
        "cores": os.cpu_count() or 0,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "python": f"{platform.python_version()} ({sys.executable})",
        "packages": found,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "commit": _says("git", "rev-parse", "HEAD"),
    }  # fmt: skip


def write(work: Path, out: Path) -> None:
    """Both files, whole or as they were."""
    document = {"machine": _read(work / "machine.json"), "steps": steps(work)}
    _replace(out / "evidence.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    _replace(out / "evidence.md", markdown(document))


def steps(work: Path) -> list[dict[str, Any]]:
    """The steps in the order in which they ended, each with its tests or its rows."""
    lines = _text(work / "steps.tsv").splitlines()
    known = []
    for line in lines:
        name, verdict, seconds, command = (*line.split("\t"), "", "", "")[:4]
        step: dict[str, Any] = {"name": name, "verdict": verdict, "seconds": int(seconds or 0), "command": command}
        if tests := _tests(work / f"{name}.xml"):
            step["tests"] = tests
        if report := _read(work / f"{name}.json"):
            step["report"] = report
        known.append(step)
    return known


def markdown(document: dict[str, Any]) -> str:
    """The same to be read: what the machine is, each step's verdict, each test that did not pass, each figure."""
    about = document["machine"] or {}
    lines = [f"# GPU evidence, {about.get('date_utc', 'no date')}", ""]
    for key, value in about.items():
        said = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        lines += [f"- {key}: {said.replace(chr(10), '; ')}"] if said else []
    lines += ["", "| step | verdict | seconds | command |", "|---|---|---|---|"]
    for step in document["steps"]:
        command = f"`{step['command']}`" if step["command"] else ""
        lines.append(f"| {step['name']} | {_cell(step['verdict'])} | {step['seconds']} | {_cell(command)} |")
    for step in document["steps"]:
        if tests := step.get("tests"):
            lines += ["", f"## {step['name']}", "", "| test | outcome | why |", "|---|---|---|"]
            lines += [f"| {t['name']} | {t['outcome']} | {_cell(t['why'])} |" for t in tests]
        if report := step.get("report"):
            lines += ["", f"## {step['name']}", "", "| quantity | median | low | high | unit | n | target | note |"]
            lines += ["|---|---|---|---|---|---|---|---|"]
            lines += [_row(result) for result in report.get("results", [])]
    return "\n".join(lines) + "\n"


def _row(result: dict[str, Any]) -> str:
    figures = [f"{result[key]:.4g}" if result["n"] else "-" for key in ("median", "low", "high")]
    verdict = {True: " ok", False: " **missed**", None: ""}[result["ok"]]
    target = f"{result['target'] or ''}{verdict}".strip()
    return "| " + " | ".join(map(_cell, [result["name"], *figures, result["unit"], str(result["n"]), target,
                                         result["note"]])) + " |"  # fmt: skip


def _tests(path: Path) -> list[dict[str, str]]:
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return []
    tests = []
    for case in root.iter("testcase"):
        outcome, why = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = {"failure": "failed", "error": "failed", "skipped": "skipped"}[child.tag]
                why = (child.get("message") or "").strip()[:400]
        tests.append({"name": case.get("name", ""), "outcome": outcome, "seconds": case.get("time", ""), "why": why})
    return tests


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _says(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu() -> str:
    names = (
        line.partition(":")[2].strip() for line in _text(Path("/proc/cpuinfo")).splitlines() if "model name" in line
    )
    return next(names, platform.machine())


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _read(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError:
        return None


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}")
    beside.write_text(text, "utf-8")
    beside.replace(path)


if __name__ == "__main__":
    if sys.argv[1] == "machine":
        found = machine()
        _replace(Path(sys.argv[2]) / "machine.json", json.dumps(found))
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        write(Path(sys.argv[2]), Path(sys.argv[3]))
