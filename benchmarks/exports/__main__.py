"""Makes the exports: `python -m benchmarks.exports [NAME...]`. Needs the package index once, for torch.

Law: this file makes the environment and starts the script in it; it imports no torch itself. Taken is torch's build for
the CPU (200 MB); only where its index cannot be reached the one of the ordinary index, which on Linux brings CUDA
(some GB). ISTHMUS_EXPORTS names another folder. Exit codes: 0 done, 2 unknown network, 7 no environment or no export.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.exports import NAMES, folder

TORCH = "torch==2.13.0"
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
PACKAGES = (TORCH, "onnx==1.23.2", "onnxscript==0.7.2", "numpy")
SCRIPT = Path(__file__).with_name("networks.py")


def main(names: list[str]) -> int:
    unknown = [n for n in names if n not in NAMES]
    if unknown:
        print(f"no network {unknown[0]!r}; these are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    target = folder()
    try:
        target.mkdir(parents=True, exist_ok=True)
        python = _environment(target / "environment")
    except OSError as error:
        print(f"{target} cannot be written ({error.strerror}); name another folder in ISTHMUS_EXPORTS", file=sys.stderr)
        return 7
    except subprocess.CalledProcessError:
        print("torch could not be installed, pip says why above; mend that and start again", file=sys.stderr)
        return 7
    done = subprocess.run([str(python), str(SCRIPT), str(target), *(names or NAMES)], check=False)
    if done.returncode:
        print("not all networks were exported, torch says why above; those listed are whole", file=sys.stderr)
    return 7 if done.returncode else 0


def _environment(place: Path) -> Path:
    python = place / "bin" / "python"
    if not (place / "complete").is_file():
        print(f"making an environment with torch in {place}", flush=True)
        venv.create(place, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        light = [*install, "--no-deps", "--retries", "1", "--index-url", CPU_BUILDS, TORCH]
        if subprocess.run(light, check=False, capture_output=True).returncode:
            print(f"{CPU_BUILDS} cannot be reached: torch comes from the ordinary index, perhaps with CUDA", flush=True)
        subprocess.run([*install, *PACKAGES], check=True)  # and what torch needs besides itself
        (place / "complete").touch()
    return python


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
