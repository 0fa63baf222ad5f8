"""Why requests run where they run, in sentences and as JSON. Pure: what is said here was found by the planner.

The most important sentence first: where the next request goes, then the conditions, why it is none of the others, and
what would change that.
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.control.explanation import Considered, Explanation
from protocol.phrases import SAYS_LITTLE, all_of, capital, flip_if, ms, number, one_of, sum_of, times, trade

SCHEMA = 1


def document(seen: Explanation) -> dict[str, Any]:
    """For `--json` and the daemon's route: the facts with the sentences that a person would read."""
    facts: dict[str, Any] = msgspec.to_builtins(seen)
    return {"schema": SCHEMA, "sentences": sentences(seen), **facts}


def read(found: dict[str, Any]) -> Explanation:
    """The explanation in such a document. Raises msgspec.ValidationError for another one."""
    return msgspec.convert({k: v for k, v in found.items() if k not in ("schema", "sentences")}, Explanation)


def sentences(seen: Explanation) -> list[str]:
    """The whole answer."""
    said = [_headline(seen), _conditions(seen)]
    said += [_why_not(seen, other) for other in seen.placements if other.id != seen.using]
    said.append(_flips(seen))
    return said


def _headline(seen: Explanation) -> str:
    if seen.using is None:
        reasons = dict.fromkeys(p.reason for p in seen.placements)
        return f"No placement can be used now: {'; '.join(reasons)}."
    best = seen.of(seen.using)
    said = f"The next request runs as {best.id}: {sum_of(best.stages)}{_waiting(best)}."
    if seen.current is None:
        return f"Nothing was asked yet. {said}"
    if seen.current == seen.using:
        return said
    held = seen.of(seen.current)
    if held.verdict == "unavailable":
        return f"{said} {capital(held.id)} is planned, but {held.reason}."
    return f"{said} Until now it was {held.id}."


def _waiting(one: Considered) -> str:
    return f", and {ms(one.wait_s)} in the device's own queues" if one.wait_s > SAYS_LITTLE * one.expected_s else ""


def _conditions(seen: Explanation) -> str:
    link = f"{number(seen.mbit)} Mbit/s up, {ms(seen.rtt_s)} round trip"
    if not seen.measured:
        link = f"no link was measured yet, {link} are assumed"
    elif seen.doubt is not None:
        link = f"{link} (the rate is known within {_percent(2 * seen.doubt)})"
    parts = [link]
    if seen.queue_s > 0:
        parts.append(f"{ms(seen.queue_s)} of waiting at the gateway")
    parts.append(_device(seen.edge_factor))
    if seen.requests_per_s > 0:
        parts.append(f"{number(seen.requests_per_s)} requests per second")
    if seen.objective != "latency":
        parts.append(f"weighed by {seen.objective}")
    return f"That holds for {', '.join(parts)}."


def _device(factor: float) -> str:
    if abs(factor - 1) < 0.05:
        return "a device as fast as planned"
    return f"a device {times(factor)} as slow as planned" if factor > 1 else f"a device {times(1 / factor)} faster"


def _why_not(seen: Explanation, other: Considered) -> str:
    name = capital(other.id)
    if other.verdict == "unavailable":
        return f"{name} cannot be used: {other.reason}."
    if other.verdict == "overloaded":
        return f"{name} cannot keep up: it would be busy {other.utilisation:.0%} of the time."
    if seen.using is None:
        return f"{name} would take {ms(other.expected_s)}."
    best = seen.of(seen.using)
    if other.verdict == "not clearly better" or (other.verdict == "current" and other.score < best.score):
        gain = f"{ms(best.score - other.score)} better"
        return f"{name} looks {gain}, which is less than the {ms(seen.gain_needed_s)} that estimates can tell apart."
    behind_s = other.expected_s - best.expected_s
    if abs(behind_s) <= SAYS_LITTLE * best.expected_s:
        return f"{name} takes as long ({ms(other.expected_s)})."
    if behind_s < 0:
        return f"{name} is {ms(-behind_s)} faster, but worse when weighed by {seen.objective}."
    return f"{name} is {ms(behind_s)} slower, because it {trade(best.stages, other.stages)}."


def _flips(seen: Explanation) -> str:
    if seen.using is None:
        return "Nothing but one of these becoming usable changes that."
    if not seen.flips:
        if any(p.verdict == "unavailable" for p in seen.placements):
            return "Nothing changes that while the others cannot be used."
        return "Nothing that a link or a machine could do changes that."
    return f"Another would be best {one_of([flip_if(flip) for flip in seen.flips])}."


def summary(seen: Explanation) -> str:
    """One line, for a status page: `cut-1, 46.1 ms; above 42.9 Mbit/s full-cloud would be best`."""
    if seen.using is None:
        return "no placement can be used now"
    best = f"{seen.using}, {ms(seen.of(seen.using).expected_s)}"
    lost = [p.id for p in seen.placements if p.verdict == "unavailable"]
    return f"{best}; {all_of(lost)} cannot be used" if lost else best


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
