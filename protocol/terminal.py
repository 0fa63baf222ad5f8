"""What the three command lines share: one sentence per error, the documented exit code, JSON on stdout when asked."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import msgspec

from protocol.errors import EngineError, IsthmusError

# What an install may lack on purpose, and what brings it.
REMEDIES = {
    "onnx": "pip install 'isthmus[partition]'",
    "onnx_ir": "pip install 'isthmus[partition]'",
    "onnxruntime": "pip install 'isthmus[edge]' on a device, 'isthmus[gateway]' at a gateway",
}
_INTERRUPTED = "interrupted: nothing is left half written"


def run(app: Callable[[], Any]) -> None:
    """Run a command line and end the process with its exit code (see `protocol.errors`)."""
    interrupts = _noted_interrupts()
    try:
        with guarded():
            app()
    except Exception:
        if interrupts:
            _end(_INTERRUPTED, 130)
        traceback.print_exc()
        raise SystemExit(1) from None


@contextmanager
def guarded() -> Iterator[None]:
    """Expected trouble becomes one sentence on stderr and its exit code; a bug keeps its traceback."""
    try:
        yield
    except IsthmusError as error:
        _end(f"error: {' '.join(str(error).split())}", error.exit_code)
    except KeyboardInterrupt:
        _end(_INTERRUPTED, 130)
    except BrokenPipeError:
        # Whoever read our output has gone; that is their right. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except ModuleNotFoundError as error:
        remedy = REMEDIES.get((error.name or "").partition(".")[0])
        if remedy is None:
            raise
        _end(f"error: the package {error.name} is not installed; {remedy}", EngineError.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _end(f"error: {error.strerror}; free some and run it again", 1)


def _noted_interrupts() -> list[int]:
    """Fills when Ctrl-C is pressed: out of a library that is just loading it may come as an ImportError."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, note)
    return seen


def _end(sentence: str, code: int) -> None:
    print(sentence, file=sys.stderr)
    raise SystemExit(code) from None


def print_json(document: Any) -> None:
    """One JSON document on one line of stdout, flushed: others read it as it comes."""
    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    sys.stdout.flush()
