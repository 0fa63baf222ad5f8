"""docs/json.md names every key that `--json` prints, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from partitioner.people.explain import Explanation
from partitioner.people.half_cli import Halved
from partitioner.people.inspection import Inspection
from partitioner.people.replay import Simulated
from partitioner.planning.plans import PlanDocument
from partitioner.planning.recheck import Verified
from partitioner.planning.sign import Signed
from protocol.bundle import Conditions, Measured
from protocol.signing import Revocations

DOCS = Path(__file__).parents[2] / "docs" / "json.md"
OF_THE_MANIFEST = (Conditions, Measured)


def structs(root: Any) -> Iterator[type[msgspec.Struct]]:
    if root in OF_THE_MANIFEST:
        return
    if isinstance(root, type) and issubclass(root, msgspec.Struct):
        yield root
        for hint in get_type_hints(root).values():
            yield from structs(hint)
    for argument in get_args(root):
        yield from structs(argument)


def test_every_key_is_documented() -> None:
    written = {
        name: tuple(re.findall(r"`(\w+)`", keys))
        for name, keys in re.findall(r"^\| `([A-Z]\w+)` \| (.*?) \|", DOCS.read_text("utf-8"), re.MULTILINE)
    }
    roots = (Inspection, PlanDocument, Verified, Explanation, Simulated, Halved, Signed, Revocations)
    assert written == {s.__name__: s.__struct_fields__ for root in roots for s in structs(root)}
