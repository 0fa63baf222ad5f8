"""Makes the exports: `python -m benchmarks.exports [NAME...]`. Needs the package index once, for torch (200 MB).

Law: this file makes the environment and starts the script in it; it imports no torch itself.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.exports import NAMES, folder

PACKAGES = ("torch==2.13.0", "onnx==1.23.2", "onnxscript==0.7.2", "numpy")
SCRIPT = Path(__file__).with_name("networks.py")


def main(names: list[str]) -> int:
    unknown = [n for n in names if n not in NAMES]
    if unknown:
        print(f"no network {unknown[0]!r}; these are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    target = folder()
    target.mkdir(parents=True, exist_ok=True)
    python = _environment(target / "environment")
    done = subprocess.run([str(python), str(SCRIPT), str(target), *(names or NAMES)], check=False)
    return done.returncode


def _environment(place: Path) -> Path:
    python = place / "bin" / "python"
    if not (place / "complete").is_file():
        print(f"making an environment with torch in {place}")
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (place / "complete").touch()
    return python


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
