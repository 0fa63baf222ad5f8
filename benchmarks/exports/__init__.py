"""Networks as people export them: torch modules with seeded random weights, written as ONNX by torch's exporters.

Law: torch lives in an environment of its own, which `python -m benchmarks.exports` makes; everybody else meets only the
files that it writes. Equality of head and tail with the whole does not need knowledge in the weights, but it does need
real exporters: their Shape chains, masks, constants and names are what a splitter meets in service.
"""

from __future__ import annotations

import os
from pathlib import Path

NAMES = ("resnet18", "resnet50", "vgg16", "mobilenet_v2", "vit_tiny", "bert", "detector")


def folder() -> Path:
    """Where the exports are kept: ISTHMUS_EXPORTS, else `isthmus/exports` in the user's cache."""
    chosen = os.environ.get("ISTHMUS_EXPORTS")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "isthmus" / "exports"


def exported() -> dict[str, Path]:
    """The exports that were made on this machine, by name."""
    found = {name: folder() / f"{name}.onnx" for name in NAMES}
    return {name: path for name, path in found.items() if path.is_file()}
