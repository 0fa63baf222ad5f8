"""An environment of its own for each peer, made by uv from the package index and kept in a cache.

Law: nothing here touches our own environment or its lock file. Every environment gets the ONNX Runtime that we run
ourselves, so that what differs is the server and not its engine.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

INSTALL_LIMIT_S = 600.0


class UnavailableError(RuntimeError):
    """This system cannot run here; the message is the reason, for the report."""


def cache() -> Path:
    """Where the environments live: $ISTHMUS_PEERS, else ~/.cache/isthmus-peers."""
    return Path(os.environ.get("ISTHMUS_PEERS") or Path.home() / ".cache" / "isthmus-peers")


def environment(name: str, packages: Sequence[str]) -> Path:
    """The folder of a virtual environment that holds `packages`. Made on first use; raises UnavailableError."""
    home = cache() / name
    wanted = [*packages, f"onnxruntime=={importlib.metadata.version('onnxruntime')}", "numpy"]
    stamp = home / "isthmus-packages.txt"
    if stamp.is_file() and stamp.read_text("utf-8").split("\n") == wanted:
        return home
    uv = shutil.which("uv") or _beside_us()
    if uv is None:
        raise UnavailableError("uv is not installed, and it makes the peers' environments; pip install uv")
    _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)])
    finders = ["--find-links", links] if (links := os.environ.get("PIP_FIND_LINKS")) else []
    _run([uv, "pip", "install", "--quiet", "--python", str(home / "bin" / "python"), *finders, *wanted])
    stamp.write_text("\n".join(wanted), "utf-8")
    return home


def _beside_us() -> str | None:
    ours = Path(sys.executable).with_name("uv")
    return str(ours) if ours.is_file() else None


def _run(command: Sequence[str]) -> None:
    env = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, env=env)
    except subprocess.TimeoutExpired as expired:
        raise UnavailableError(f"{' '.join(command[:3])} took more than {INSTALL_LIMIT_S:.0f} s") from expired
    if done.returncode:
        raise UnavailableError(f"{' '.join(command[:3])} failed: {done.stderr.strip().splitlines()[-1:]}")
