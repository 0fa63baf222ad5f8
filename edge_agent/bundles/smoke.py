"""The first run of a new bundle, in a child process with bounds: what crashes, hangs or eats all memory ends it alone.

python -m edge_agent.bundles.smoke FOLDER MEMORY_NBYTES [PROVIDER ...]      one line on stdout: why not, or empty
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MOST_TEXT = 900
_HEADROOM = ("MemoryError", "bad_alloc", "out of memory", "Failed to allocate")


class Smoke:
    """How a bundle is tried. `memory_nbytes` bounds the child's data, `timeout_s` its whole life."""

    def __init__(
        self, *, timeout_s: float = 120.0, memory_nbytes: int = 2 << 30, providers: Sequence[str] = ()
    ) -> None:
        self._timeout_s = timeout_s
        self._memory_nbytes = memory_nbytes
        self._providers = tuple(providers)

    def __call__(self, folder: Path) -> str:
        """Why the bundle in `folder` must not serve, or "". Blocks until the child has ended."""
        command = [
            sys.executable, "-m", "edge_agent.bundles.smoke", str(folder), str(self._memory_nbytes), *self._providers
        ]  # fmt: skip
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            out, trouble = child.communicate(timeout=self._timeout_s)
        except subprocess.TimeoutExpired:
            return f"it had not answered a known question after {self._timeout_s:g} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.communicate()
        return _verdict(child.returncode, out.decode("utf-8", "replace"), trouble.decode("utf-8", "replace"))


def _verdict(code: int, out: str, trouble: str) -> str:
    if code == 0:
        return out.strip()[:MOST_TEXT]
    last = next((line for line in reversed(trouble.splitlines()) if line.strip()), "")
    if any(word in trouble for word in _HEADROOM):
        return "it does not run in the memory that a trial may take"
    if code < 0:
        return f"it ended the process that tried it ({_signal_name(-code)})"
    return f"it could not be tried: {last[:300]}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# ---- in the child ---------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    folder, memory_nbytes, *order = arguments
    os.nice(10)  # requests go before
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(memory_nbytes)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from edge_agent.bundles.first_run import judge  # with the engine library: its memory is bounded by now

    print(judge(Path(folder), order))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
