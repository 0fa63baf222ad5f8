"""An explanation in sentences. Pure: what is said here was found in `explain`, and nothing is found here."""

from __future__ import annotations

from partitioner.people.explain import Explanation, NoSplit, Ranked
from protocol.messages import PlacementKind
from protocol.phrases import SAYS_LITTLE, SPENDS, capital, flip_if, ms, number, one_of, sum_of, times, trade


def sentences(seen: Explanation) -> list[str]:
    """The whole answer, the most important sentence first."""
    said = [_headline(seen), _why(seen)]
    said += [s for s in (_no_split(seen), _flips(seen)) if s]
    said.append(_map(seen))
    said += [s for s in (_proof(seen),) if s]
    return said


def headline(seen: Explanation) -> str:
    """One line: what to do, and the conditions under which that holds."""
    best = seen.best
    what = {
        PlacementKind.CUT: f"Split at {', '.join(best.crossing)}",
        PlacementKind.FULL_CLOUD: "Do not split: send the input",
        PlacementKind.EDGE_ONLY: "Do not split: stay on the device",
    }[best.kind]
    return f"{what}, {ms(best.total_s)} at {seen.mbit:g} Mbit/s"


def conditions(seen: Explanation) -> str:
    """The conditions under which all of it holds."""
    parts = [f"{number(seen.rtt_s * 1e3)} ms round trip", _device(seen)]
    if seen.cloud_load:
        parts.append(f"a gateway busy {seen.cloud_load:.0%} of the time")
    if seen.quantile != 0.5:
        parts.append(f"machines at their {seen.quantile:.0%} quantile")
    return ", ".join(parts)


def _device(seen: Explanation) -> str:
    if seen.edge_slowdown == 1:
        return "a device as fast as the measuring machine"
    return f"a device {seen.edge_slowdown:g} times slower than the measuring machine"


def _headline(seen: Explanation) -> str:
    return f"At {seen.mbit:g} Mbit/s ({conditions(seen)}) {name(seen.best)} is best: {sum_of(seen.best.stages)}."


def _why(seen: Explanation) -> str:
    second = seen.runner_up
    if second is None:
        return "There is no other placement in this bundle."
    if second.ratio < 1 + SAYS_LITTLE:
        return f"{capital(name(second))} is as good ({ms(second.total_s)})."
    behind_s = second.total_s - seen.best.total_s
    return (
        f"The next best, {name(second)}, is {ms(behind_s)} slower ({times(second.ratio)} as long), because it "
        f"{trade(seen.best.stages, second.stages)}."
    )


def _no_split(seen: Explanation) -> str | None:
    found = seen.no_split
    if found is None:
        return None
    if found.nearest is None:
        remembered = next((n for n in seen.notes if n.startswith("do not split")), None)
        return f"Do not split: this bundle holds no cut{f' ({remembered})' if remembered else ''}."
    if found.ratio < 1 + SAYS_LITTLE and not found.anywhere:
        return f"Splitting gains nothing here: {_named(found)} takes as long as {found.against}."
    where = "at any bandwidth" if found.anywhere else f"at {number(found.mbit)} Mbit/s"
    which = (
        "the only cut that was measured" if found.compared == 1 else f"the nearest of {found.compared} cuts measured"
    )
    nearest = f"{which}, {_named(found)}, takes {times(found.ratio)} as long as {found.against}"
    if found.anywhere:
        nearest += f" even at {number(found.mbit)} Mbit/s, where it comes closest"
    more = (
        " The search ended before it was stable: a larger --budget-s may find a better cut."
        if found.ended_early
        else ""
    )
    return f"Do not split {where}, because {nearest}: {_blamed(found)}{_shrunk(found)}.{more}"


def _named(found: NoSplit) -> str:
    tensors = ", ".join(found.crossing)
    # A cut that the bundle does not hold goes by its tensors already.
    return found.nearest or "" if (found.nearest or "").startswith(tensors) else f"{found.nearest} ({tensors})"


def _blamed(found: NoSplit) -> str:
    if found.blame is None or found.lost_s <= 0:
        return "it is slower throughout"
    return f"it spends {ms(found.lost_s)} more {SPENDS[found.blame]} and is {ms(found.behind_s)} behind in all"


def _shrunk(found: NoSplit) -> str:
    if found.shrink is None:
        return "; no codec could make up for that"
    return f"; it would draw level if its payload were {found.shrink:.3g} times smaller"


def _flips(seen: Explanation) -> str:
    if not seen.flips:
        return "Nothing that a link or a machine could do changes that."
    return f"Another would be best {one_of([flip_if(flip) for flip in seen.flips])}."


def _map(seen: Explanation) -> str:
    if len(seen.stretches) == 1:
        return f"Whatever the bandwidth, {seen.stretches[0].id} is best."
    parts = []
    for stretch in seen.stretches:
        if stretch.from_mbit is None:
            parts.append(f"{stretch.id} up to {number(stretch.to_mbit or 0.0)} Mbit/s")
        elif stretch.to_mbit is None:
            parts.append(f"{stretch.id} above that")
        else:
            parts.append(f"{stretch.id} up to {number(stretch.to_mbit)}")
    return f"Over all bandwidths: {', '.join(parts)}."


def _proof(seen: Explanation) -> str | None:
    proof = seen.certificate
    if proof is None:
        return None
    inputs = f"{proof.samples} {'random inputs' if proof.random_inputs else 'samples held out of calibration'}"
    compared = f"(whole model {proof.reference:.4f}, at least {proof.bound:.4f} was asked for)"
    half = f", with its tail in float16 {seen.half.achieved:.4f}" if seen.half is not None else ""
    return f"{capital(seen.best.id)} answers with {proof.metric} {proof.achieved:.4f}{half} {compared} on {inputs}."


def name(ranked: Ranked) -> str:
    """`cut-1 (stem3/relu)`; the other two kinds speak for themselves."""
    if ranked.kind is PlacementKind.CUT:
        return f"{ranked.id} ({', '.join(ranked.crossing)})"
    return ranked.id
