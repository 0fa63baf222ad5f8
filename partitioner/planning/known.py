"""The question that every device is asked before it serves the bundle, and what its heads answered at the build."""

from __future__ import annotations

import math
from collections.abc import Mapping

from partitioner.planning.workshop import Workshop
from protocol import known
from protocol.bundle import Known, PlacementEntry
from protocol.engines.ort import OrtEngine
from protocol.tensors import Array


def make_known(
    shop: Workshop, placements: tuple[PlacementEntry, ...], files: Mapping[str, bytes]
) -> tuple[Known, bytes] | str:
    """The first held-out sample, put to every head, and how far each may be off; or why no question is shipped."""
    question = shop.samples.feed(shop.samples.held_out[0])
    truth = shop.yardstick.expected[0]
    seen = set()
    answers: dict[str, dict[str, Array]] = {}
    most: dict[str, float] = {}
    for entry in placements:
        if entry.head is None or entry.head in seen:
            continue
        seen.add(entry.head)
        with OrtEngine(files[entry.head], label=entry.head, threads=shop.threads) as engine:
            made = engine.infer(question)
        right = {name: known.thinned(truth.get(name, values)) for name, values in made.items()}
        off, _ = known.worst(made, right)
        if math.isfinite(off):  # some models answer with values that are no numbers
            answers[entry.head] = right
            most[entry.head] = known.allowed(off, entry.precision)
    if not answers:
        return "no head answers with numbers: devices try the bundle with noise"
    data = known.encode(question, answers)
    if len(data) > known.MOST_NBYTES:
        return f"a sample and its answers take {len(data) / 1e6:.1f} MB: devices try the bundle with noise"
    return known.described(most), data
