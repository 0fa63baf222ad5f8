"""Records what the real TensorRT bindings offer, from wheels alone: `python tests/gpu/record_api.py OUT.json WHEEL...`

    python -m pip download --no-deps tensorrt_cu13_bindings==11.4.0.106
    python tests/gpu/record_api.py tests/gpu/api/tensorrt-11.4.json tensorrt_cu13_bindings-*.whl

A bindings wheel holds the extension module without the libraries that it is linked to. Their place is taken by shared
objects that define every symbol it wants and do nothing; the module then imports, and each class tells its methods with
their parameters. Needs gcc, and the Python that the wheel is for. `tensorrt_rtx` is recorded as it is installed:
`python tests/gpu/record_api.py tests/gpu/api/tensorrt-rtx-1.7.json --installed tensorrt_rtx`.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

# What our code holds in its hands; the rest of the API is none of its business.
CLASSES = (
    "ILogger", "Builder", "INetworkDefinition", "OnnxParser", "ParserError", "IBuilderConfig", "IOptimizationProfile",
    "ITimingCache", "IHostMemory", "IProgressMonitor", "Runtime", "ICudaEngine", "IExecutionContext", "ITensor",
    "IRuntimeConfig", "IRuntimeCache",
)  # fmt: skip
ENUMS = (
    "NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "HardwareCompatibilityLevel", "TensorIOMode",
    "DataType", "ExecutionContextAllocationStrategy", "DynamicShapesKernelSpecializationStrategy",
)  # fmt: skip
_LINE = re.compile(r"^(?:\d+\. )?\w+\((?P<parameters>.*)\)(?: -> (?P<result>.*))?$")


def record(module: Any) -> dict[str, Any]:
    """Version; of each class its methods with the names of their parameters, one list an overload; enum members."""
    classes = {name: _methods(getattr(module, name)) for name in CLASSES if hasattr(module, name)}
    enums = {name: _members(getattr(module, name)) for name in ENUMS if hasattr(module, name)}
    severity = _members(module.ILogger.Severity)
    return {"version": str(module.__version__), "classes": classes, "enums": {**enums, "ILogger.Severity": severity}}


def written(table: dict[str, Any]) -> str:
    """The table as JSON with a line for each class and enum."""
    rooms = []
    for room in ("classes", "enums"):
        lines = (f'"{name}": {json.dumps(entry, sort_keys=True)}' for name, entry in sorted(table[room].items()))
        rooms.append(f'"{room}": {{\n' + ",\n".join(lines) + "\n}")
    return f'{{"version": "{table["version"]}",\n' + ",\n".join(rooms) + "}\n"


def _members(kind: Any) -> list[str]:
    return sorted(kind.__members__)


def _methods(kind: Any) -> dict[str, list[list[str]] | None]:
    """None for a property."""
    found: dict[str, list[list[str]] | None] = {}
    for name in dir(kind):
        if name.startswith("_") and name != "__init__":
            continue
        member = inspect.getattr_static(kind, name)
        if isinstance(member, property):
            found[name] = None
        elif callable(getattr(kind, name)):
            found[name] = _overloads(getattr(kind, name).__doc__ or "")
    return found


def _overloads(doc: str) -> list[list[str]]:
    matches = [m for line in doc.split("\n") if (m := _LINE.match(line.strip()))]
    return [[p.split(":")[0].strip() for p in _split(m["parameters"])] for m in matches if "*args" not in m[0]]


def _split(parameters: str) -> list[str]:
    """At commas that stand in no bracket."""
    parts, depth = [""], 0
    for character in parameters:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def from_wheel(wheel: Path) -> Any:
    """The bindings' extension module over libraries that do nothing."""
    folder = Path(tempfile.mkdtemp(prefix="bindings-"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    extension = next(folder.glob("tensorrt_bindings/tensorrt*.so"))
    listing = subprocess.run(["readelf", "-d", extension], check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED.*\[(lib(?:nv|cuda)[^\]]*)\]", listing)
    symbols = subprocess.run(
        ["readelf", "-W", "--dyn-syms", extension], check=True, capture_output=True, text=True
    ).stdout
    names = sorted({
        line.split()[7].split("@")[0]
        for line in symbols.splitlines()
        if " UND " in line and len(line.split()) > 7 and _is_theirs(line.split()[7])
    })  # fmt: skip
    source = folder / "nothing.c"
    source.write_text("".join(f"void* isthmus_{i}(void) __asm__(\"{n}\"); void* isthmus_{i}(void) {{ return 0; }}\n"
                              for i, n in enumerate(names)))  # fmt: skip
    for library in needed:
        target = folder / library
        subprocess.run(["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library}", "-o", target, source], check=True)
        ctypes.CDLL(str(target), os.RTLD_GLOBAL | os.RTLD_NOW)
    sys.path.insert(0, str(extension.parent))
    module = importlib.import_module("tensorrt")
    module.__version__ = wheel.name.split("-")[1]
    return module


def _is_theirs(name: str) -> bool:
    return name.startswith(("create", "get", "cuda", "init")) or "nvinfer" in name.lower() or "nvonnx" in name.lower()


def main() -> None:
    out, *rest = sys.argv[1:]
    module = importlib.import_module(rest[1]) if rest[0] == "--installed" else from_wheel(Path(rest[0]))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(written(record(module)))
    print(out, module.__version__)
    sys.stdout.flush()
    os._exit(0)  # nothing of what was faked may be torn down


if __name__ == "__main__":
    main()
