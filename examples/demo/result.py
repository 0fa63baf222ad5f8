"""The demo's one document: what `result.json` holds, the page shows and `--json` prints. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from examples.demo.phases import Slot
from examples.demo.plan import colours, no_cut_sentence, plan_sentence
from examples.demo.record import STAGES, Measured, Record
from protocol.bundle import Manifest, PlacementEntry

READING = (
    "Every dot is one answer, at the moment the demo received it; an answer counts for the phase in which it arrived.",
    "Bars are means over the first four phases, where link, gateway and device were sound, and include the agent's own "
    "probing after each change. Diamonds are what the bundle predicted from separate timings of head and tail, before "
    "anything ran together.",
    "Requests follow one another without a pause, one at a time, so faster placements answer more of them.",
    "Head, link, gateway and this record share one machine; on a busy one every figure is worse than it has to be.",
)


def document(
    *,
    model: str,
    declared: str,
    story: str,
    manifest: Manifest,
    record: Record,
    slots: Sequence[Slot],
    costs: Sequence[Measured],
    predicted: Mapping[float, Mapping[str, float]],
    conditions: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that is told at the end, as JSON types; NaN never occurs in a written document (see `written`)."""
    broken = record.verdict()
    total = record.total()
    used = {a.placement for a in record.answers}
    return {
        "ok": not broken,
        "verdict": _verdict(record, broken),
        "model": model,
        "declared": declared,
        "data": story[:1].upper() + story[1:],
        "word": record.truth.word,
        "plan_notes": [note for note in _plan_notes(manifest, used) if note],
        "reading": list(READING),
        "conditions": dict(conditions),
        "colours": colours(manifest),
        "rates_mbit": list(predicted),
        "events": {slot.phase.name: slot.phase.event for slot in slots},
        "phases": [
            asdict(record.phase(i)) | {"from_s": round(slot.from_s, 3), "to_s": round(slot.to_s, 3)}
            for i, slot in enumerate(slots)
        ],
        "total": asdict(total),
        "submitted": record.submitted,
        "duplicates": record.duplicates,
        "agent_counts": record.counts or {},
        "placements": [_placement(p, costs, predicted) for p in manifest.placements],
        "stage_names": list(STAGES),
        "measured": [asdict(m) for m in costs],
    }


def _verdict(record: Record, broken: Sequence[str]) -> str:
    if broken:
        return "Not kept: " + "; ".join(broken) + "."
    total, word = record.total(), record.truth.word
    beside = f" (the whole fp32 model on the same requests: {total.reference:.2%})" if record.truth.labelled else ""
    refused = f"{total.refused:,} were refused with a reason" if total.refused else "none was refused"
    return (
        f"Each of {record.submitted:,} requests ended exactly once: {total.answered:,} were answered, {refused}, "
        f"none was lost; {word} was {total.accuracy:.2%}{beside}."
    )


def _plan_notes(manifest: Manifest, used: set[str]) -> list[str]:
    return [f"Plan: {plan_sentence(manifest)}.", no_cut_sentence(manifest, used)]


def _placement(
    entry: PlacementEntry, costs: Sequence[Measured], predicted: Mapping[float, Mapping[str, float]]
) -> dict[str, Any]:
    return {
        "id": entry.id,
        "kind": str(entry.kind),
        "crosses": ", ".join(entry.cut) or "nothing",
        "precision": "-" if entry.head is None else entry.precision,
        "up_nbytes": entry.cost.up_nbytes,
        "predicted_ms": {f"{rate:g}": ms[entry.id] for rate, ms in predicted.items()},
        "measured_ms": {f"{m.rate_mbit:g}": m.latency_ms for m in costs if m.placement == entry.id},
        "measured_count": {f"{m.rate_mbit:g}": m.count for m in costs if m.placement == entry.id},
        "notes": list(entry.notes),
    }


def written(value: Any) -> Any:
    """The same document with NaN as null, which is all that JSON knows."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {key: written(part) for key, part in value.items()}
    return [written(part) for part in value] if isinstance(value, list | tuple) else value
