"""What the three command lines share: one sentence per error, the documented exit code, JSON on stdout when asked."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from protocol.errors import EngineError, IsthmusError

# What an install may lack on purpose, and what brings it.
REMEDIES = {
    "onnx": "pip install 'isthmus[partition]'",
    "onnx_ir": "pip install 'isthmus[partition]'",
    "onnxruntime": "pip install 'isthmus[edge]' on a device, 'isthmus[gateway]' at a gateway",
}


def run(app: Callable[[], Any]) -> None:
    """Run a command line and end the process with its exit code (see `protocol.errors`)."""
    try:
        app()
    except IsthmusError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read our output has gone; that is their right. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except ModuleNotFoundError as error:
        remedy = REMEDIES.get((error.name or "").partition(".")[0])
        if remedy is None:
            traceback.print_exc()
            raise SystemExit(1) from None
        print(f"error: the package {error.name} is not installed; {remedy}", file=sys.stderr)
        raise SystemExit(EngineError.exit_code) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def print_json(document: Any) -> None:
    """One JSON document on one line of stdout, flushed: others read it as it comes."""
    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    sys.stdout.flush()
