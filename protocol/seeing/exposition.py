"""Prometheus' text format, version 0.0.4: families with a type and a help, one line for each series. Pure.

Written here and not by prometheus-client, which puts `_total` behind every counter: Triton's have none, and a dashboard
finds a metric by its name. That package reads what is written here in the tests. What is unknown (None) has no line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

T = TypeVar("T")
Value = int | float | None


class Series(NamedTuple):
    """One line: what follows the family's name, the labels as `labels()` writes them, and the value."""

    suffix: str
    labels: str
    value: Value


@dataclass(frozen=True, slots=True)
class Family(Generic[T]):
    """One metric of the table: how it is called and documented, and its series in a `T`."""

    name: str
    kind: str  # counter, gauge, histogram or summary
    help: str
    labels: tuple[str, ...]  # every name that its series bear, for the documentation
    read: Callable[[T], Iterable[Series]]


def labels(**values: object) -> str:
    """`model="digits",version="1"`: whatever a model is called, it stays within its quotes."""
    return ",".join(f'{name}="{escaped(str(value))}"' for name, value in values.items())


def escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def joined(*parts: str) -> str:
    return ",".join(part for part in parts if part)


def buckets(bounds: Iterable[float], counts: Iterable[int], count: int, total: float, scope: str) -> Iterable[Series]:
    """A histogram. `counts` are cumulative, one for each bound; `count` and `total` are of everything."""
    for bound, reached in zip(bounds, counts, strict=True):
        yield Series("_bucket", joined(scope, f'le="{_number(float(bound))}"'), reached)
    yield Series("_bucket", joined(scope, 'le="+Inf"'), count)
    yield from summary(count, total, scope)


def summary(count: int, total: float, scope: str) -> Iterable[Series]:
    """A sum and how many values it has."""
    yield Series("_sum", scope, total)
    yield Series("_count", scope, count)


def text(families: Iterable[Family[T]], of: T) -> bytes:
    """The whole page. A family without a series says nothing, not even its name."""
    lines: list[str] = []
    for family in families:
        name = family.name
        found = [
            f"{name}{suffix}{{{inside}}} {_number(value)}" if inside else f"{name}{suffix} {_number(value)}"
            for suffix, inside, value in family.read(of)
            if value is not None
        ]
        if found:
            lines += (f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}", *found)
    lines.append("")
    return "\n".join(lines).encode()


def _number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return repr(value)
