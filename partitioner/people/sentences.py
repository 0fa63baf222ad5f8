"""An explanation in sentences. Pure: what is said here was found in `explain`, and nothing is found here."""

from __future__ import annotations

from partitioner.people.explain import Explanation, Flip, NoSplit, Ranked, Stage
from protocol.messages import PlacementKind

# A difference below this share of the winner's latency is no reason worth naming.
WORTH_NAMING = 0.05
SAYS_LITTLE = 0.005

_SPENDS: dict[Stage, str] = {
    "device": "on the device",
    "encoding": "encoding",
    "upload": "sending",
    "round trip": "on the round trip",
    "cloud": "in the cloud",
    "download": "receiving",
}


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
    return f"At {seen.mbit:g} Mbit/s ({conditions(seen)}) {name(seen.best)} is best: {_sum(seen.best)}."


def _sum(ranked: Ranked) -> str:
    """`20.6 ms = device 20.6`, leaving out what is hardly there."""
    parts = [
        f"{stage} {number(seconds * 1e3)}"
        for stage, seconds in ranked.stages.named().items()
        if seconds > SAYS_LITTLE * ranked.total_s
    ]
    if len(parts) > 1:
        return f"{ms(ranked.total_s)} = {' + '.join(parts)}"
    longest = max(ranked.stages.named().items(), key=lambda stage: stage[1])[0]
    return f"{ms(ranked.total_s)}, all of it {_SPENDS[longest]}"


def _why(seen: Explanation) -> str:
    second = seen.runner_up
    if second is None:
        return "There is no other placement in this bundle."
    if second.ratio < 1 + SAYS_LITTLE:
        return f"{_capital(name(second))} is as good ({ms(second.total_s)})."
    behind_s = second.total_s - seen.best.total_s
    return (
        f"The next best, {name(second)}, is {ms(behind_s)} slower ({times(second.ratio)} as long), because it "
        f"{_trade(seen.best, second)}."
    )


def _trade(best: Ranked, other: Ranked) -> str:
    """`spends 12 ms more sending and saves 3 ms in the cloud`."""
    mine, theirs = best.stages.named(), other.stages.named()
    more = [(theirs[s] - mine[s], s) for s in mine]
    least_s = WORTH_NAMING * best.total_s
    spent = [f"{ms(d)} more {_SPENDS[s]}" for d, s in sorted(more, reverse=True) if d > least_s]
    saved = [f"{ms(-d)} {_SPENDS[s]}" for d, s in sorted(more) if -d > least_s]
    text = f"spends {_and(spent or ['a little more everywhere'])}"
    return f"{text}, and saves only {_and(saved)}" if saved else text


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
    return f"it spends {ms(found.lost_s)} more {_SPENDS[found.blame]} and is {ms(found.behind_s)} behind in all"


def _shrunk(found: NoSplit) -> str:
    if found.shrink is None:
        return "; no codec could make up for that"
    return f"; it would draw level if its payload were {found.shrink:.3g} times smaller"


def _flips(seen: Explanation) -> str:
    if not seen.flips:
        return "Nothing that a link or a machine could do changes that."
    return f"Another would be best {_or([_flip(flip) for flip in seen.flips])}."


def _flip(flip: Flip) -> str:
    if flip.condition == "uplink_mbit":
        return f"{flip.when} {number(flip.at)} Mbit/s ({flip.id})"
    if flip.condition == "rtt_s":
        verb = "rose above" if flip.when == "above" else "fell below"
        return f"if the round trip {verb} {number(flip.at * 1e3)} ms ({flip.id})"
    machine = "device" if flip.condition == "edge_factor" else "cloud"
    if flip.when == "above":
        return f"if the {machine} were {_factor(flip.at)} slower than assumed ({flip.id})"
    return f"if the {machine} were {_factor(1 / flip.at)} faster than assumed ({flip.id})"


def _factor(factor: float) -> str:
    return "a little" if factor < 1.005 else times(factor)


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
    return f"{_capital(seen.best.id)} answers with {proof.metric} {proof.achieved:.4f} {compared} on {inputs}."


def name(ranked: Ranked) -> str:
    """`cut-1 (stem3/relu)`; the other two kinds speak for themselves."""
    if ranked.kind is PlacementKind.CUT:
        return f"{ranked.id} ({', '.join(ranked.crossing)})"
    return ranked.id


def ms(seconds: float) -> str:
    return f"{number(seconds * 1e3)} ms"


def number(value: float) -> str:
    """Three significant digits, at most two decimals, no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(float(f'{value:.3g}'), 2):g}"


def times(ratio: float) -> str:
    return f"{ratio:.2f} times" if ratio < 10 else f"{ratio:.0f} times"


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _or(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, or {parts[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
