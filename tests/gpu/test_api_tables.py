"""Our calls against the recorded signatures of the real bindings: TensorRT 10.3, 10.13, 10.16, 11.4 and TensorRT-RTX.

The engine's tests run all of our calls on a simulation. Here the simulation is held against what the real bindings
offer, so that it cannot be kinder than they are: all its classes, methods, parameters and constants are in every table.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

TABLES = sorted((Path(__file__).parent / "api").glob("*.json"))
# The simulated TensorRT against every table; what RTX has beside it against that of RTX.
PAIRS = [("tensorrt", table) for table in TABLES] + [("tensorrt_rtx", t) for t in TABLES if "rtx" in t.stem]
each_pair = pytest.mark.parametrize(("library", "table"), PAIRS, ids=lambda value: getattr(value, "stem", value))


def test_five_versions_are_recorded() -> None:
    assert [path.stem for path in TABLES] == [
        "tensorrt-10.13", "tensorrt-10.16", "tensorrt-10.3", "tensorrt-11.4", "tensorrt-rtx-1.7",
    ]  # fmt: skip


@each_pair
def test_every_method_that_we_call_is_there_with_our_parameters(simulated_gpu: Any, library: str, table: Path) -> None:
    simulation = importlib.import_module(library)
    recorded = json.loads(table.read_text())["classes"]
    culprits = []
    for name, kind in vars(simulation).items():
        if not inspect.isclass(kind) or issubclass(kind, enum.Enum) or name.startswith("_"):
            continue
        for method, member in vars(kind).items():
            if method.startswith("_") or inspect.isclass(member):
                continue
            if method not in recorded[name]:
                culprits.append(f"{name}.{method}")
            elif inspect.isfunction(member):
                mine = list(inspect.signature(member).parameters)
                overloads = recorded[name][method]
                if mine not in [overload[: len(mine)] for overload in overloads]:
                    culprits.append(f"{name}.{method}({', '.join(mine)}): {overloads}")
            elif recorded[name][method] is not None:
                culprits.append(f"{name}.{method} is a method there")
    assert culprits == []


@each_pair
def test_every_attribute_that_we_set_is_a_property_there(simulated_gpu: Any, library: str, table: Path) -> None:
    simulation = importlib.import_module(library)
    recorded = json.loads(table.read_text())["classes"]
    kinds = {"IBuilderConfig": 3, "IRuntimeConfig": 1} if library == "tensorrt_rtx" else {"IBuilderConfig": 3}
    for kind, count in kinds.items():
        made = getattr(simulation, kind)()
        ours = [name for name in vars(made) if not name.startswith("_") and name != "profiles"]
        assert len(ours) == count
        assert [name for name in ours if recorded[kind].get(name, "absent") is not None] == []


@each_pair
def test_every_constant_that_we_name_is_there(simulated_gpu: Any, library: str, table: Path) -> None:
    simulation = importlib.import_module(library)
    recorded = json.loads(table.read_text())["enums"]
    culprits = [
        f"{name}.{member}"
        for name, kind in vars(simulation).items()
        if inspect.isclass(kind) and issubclass(kind, enum.Enum)
        for member in kind.__members__
        if member not in recorded[name]
    ]
    assert culprits == []
    assert {"INTERNAL_ERROR", "ERROR", "WARNING"} <= set(recorded["ILogger.Severity"])
