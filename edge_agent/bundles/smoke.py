"""The first run of a new bundle, in a child process with bounds: what crashes, hangs or eats all memory ends it alone.

python -m edge_agent.bundles.smoke FOLDER MEMORY_NBYTES PLANS|- [PROVIDER ...]

The child says what it does on stdout, a line each: `. building` and `. built` around whatever may have to be compiled
for this device first, and at last `= ` with why the bundle must not serve, or nothing. Other lines are a library's.

A plan takes minutes, so the child's own time stands still while one is being built; each has a bound of its own. It is
built into the folder of plans that heads are loaded from later: the switch finds it. The build is a process of its own
and knows no bound of memory but the machine's, and neither does what a GPU's libraries map while they load; all the
rest has the bound. Where the machine's memory ends, the kernel is told to end these processes first.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

MOST_TEXT = 900
MOST_BUILD_S = 2400.0  # of one head: the engine gives a build up after 1,800 s, and then what it built is loaded
_MOST_KEPT, _LONGEST = 200, 4096  # lines of what the child says, its end, and characters of one
_LOOK_S = 0.5
_BUILDING, _BUILT, _VERDICT = ". building", ". built", "= "
_HEADROOM = ("MemoryError", "bad_alloc", "out of memory", "Failed to allocate")


class Patience:
    """How long a trial may still take: `own_s` in all, without what passes between building and built. Pure."""

    def __init__(self, own_s: float, *, now: float, build_s: float = MOST_BUILD_S) -> None:
        self._own_s, self._build_s = own_s, build_s
        self._left_s = own_s
        self._since = now
        self._is_building = False

    def heard(self, line: str, *, now: float) -> None:
        """A line that the child said."""
        if line == _BUILDING and not self._is_building:
            self._left_s -= now - self._since
            self._since, self._is_building = now, True
        elif line == _BUILT and self._is_building:
            self._since, self._is_building = now, False

    def left_s(self, *, now: float) -> float:
        return (self._build_s if self._is_building else self._left_s) - (now - self._since)

    @property
    def reason(self) -> str:
        """Why it has ended."""
        if self._is_building:
            return f"building a head for this device had not ended after {self._build_s:g} s"
        return f"it had not answered a known question after {self._own_s:g} s"


class Smoke:
    """How a bundle is tried. `memory_nbytes` bounds the child's data, `timeout_s` its life but for builds."""

    def __init__(
        self,
        *,
        timeout_s: float = 120.0,
        memory_nbytes: int = 2 << 30,
        providers: Sequence[str] = (),
        plans: Path | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """`plans` is where built heads are kept; once `stop` is set a trial is ended, and nothing was decided."""
        self._timeout_s = timeout_s
        self._memory_nbytes = memory_nbytes
        self._providers = tuple(providers)
        self._plans = plans
        self._stop = stop or threading.Event()

    def __call__(self, folder: Path) -> str:
        """Why the bundle in `folder` must not serve, or "". Blocks until the child has ended; raises Stopped."""
        bounds = (str(self._memory_nbytes), "-" if self._plans is None else str(self._plans))
        child = subprocess.Popen(
            [sys.executable, "-m", "edge_agent.bundles.smoke", str(folder), *bounds, *self._providers],
            stdin=subprocess.PIPE,  # it ends when that does: with us
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        with child:
            try:
                return self._watched(child)
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)

    def _watched(self, child: subprocess.Popen[bytes]) -> str:
        assert child.stdout is not None
        assert child.stderr is not None
        patience = Patience(self._timeout_s, now=time.monotonic())
        out, trouble = Said(), Said()
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ, out)
            selector.register(child.stderr, selectors.EVENT_READ, trouble)
            while selector.get_map():
                left_s = patience.left_s(now=time.monotonic())
                if left_s <= 0.0:
                    return patience.reason
                if self._stop.is_set():
                    from edge_agent.bundles.courier import Stopped  # the child has no use for its libraries

                    raise Stopped
                for key, _ in selector.select(min(left_s, _LOOK_S)):
                    data = os.read(key.fd, 4096)
                    for line in key.data.lines(data):
                        if key.data is out:
                            patience.heard(line, now=time.monotonic())
                    if not data:
                        selector.unregister(key.fileobj)
        verdict = next((line for line in reversed(out.kept) if line.startswith(_VERDICT)), "")
        return _verdict(child.wait(), verdict.removeprefix(_VERDICT), "\n".join(trouble.kept))


class Said:
    """Lines of a pipe as they come; the last ones are kept."""

    def __init__(self) -> None:
        self.kept: deque[str] = deque(maxlen=_MOST_KEPT)
        self._rest = b""

    def lines(self, data: bytes) -> list[str]:
        """The lines that `data` completes; without data, what was left."""
        *whole, self._rest = (self._rest + data).split(b"\n") if data else (self._rest, b"")
        self._rest = self._rest[-_LONGEST:]
        found = [line[-_LONGEST:].decode("utf-8", "replace") for line in whole]
        self.kept.extend(found)
        return found


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


class Bound:
    """The bound of this process's data, lifted while a head may be built; what loading it took is then added."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        _, self._most = resource.getrlimit(resource.RLIMIT_DATA)
        self._set(nbytes)

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        _say(_BUILDING)
        before = _data_nbytes()
        self._set(self._most)
        try:
            yield
        finally:
            self._nbytes += max(0, _data_nbytes() - before)
            self._set(self._nbytes)
            _say(_BUILT)

    def _set(self, nbytes: int) -> None:
        unbounded = self._most == resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_DATA, (nbytes if unbounded else min(nbytes, self._most), self._most))


def main(arguments: Sequence[str]) -> int:
    folder, memory_nbytes, plans, *order = arguments
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):  # the unit may not let it
        os.nice(10)  # requests go before
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bound = Bound(int(memory_nbytes))
    from edge_agent.bundles.first_run import judge  # with the engine library: its memory is bounded by now

    kept = None if plans == "-" else Path(plans)
    _say(_VERDICT + judge(Path(folder), order, plans=kept, building=bound.lifted).replace("\n", " "))
    return 0


def _end_with_parent() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _say(line: str) -> None:
    """On a line of its own, whatever a library has left of one."""
    sys.stdout.write(f"\n{line}\n")
    sys.stdout.flush()


def _data_nbytes() -> int:
    """What counts against RLIMIT_DATA; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
