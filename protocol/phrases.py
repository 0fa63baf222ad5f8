"""How figures and comparisons are said, in both explanations alike. Pure: what is said here was found elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocol.stages import Flip, Stage, Stages

WORTH_NAMING = 0.05  # a difference below this share of the winner's latency is no reason worth naming
SAYS_LITTLE = 0.005

SPENDS: Mapping[Stage, str] = {
    "device": "on the device",
    "encoding": "encoding",
    "upload": "sending",
    "round trip": "on the round trip",
    "cloud": "in the cloud",
    "download": "receiving",
}


def sum_of(stages: Stages) -> str:
    """`20.6 ms = device 20.6`, leaving out what is hardly there."""
    total_s = stages.total_s
    parts = [
        f"{stage} {number(seconds * 1e3)}"
        for stage, seconds in stages.named().items()
        if seconds > SAYS_LITTLE * total_s
    ]
    if len(parts) > 1:
        return f"{ms(total_s)} = {' + '.join(parts)}"
    longest = max(stages.named().items(), key=lambda stage: stage[1])[0]
    return f"{ms(total_s)}, all of it {SPENDS[longest]}"


def trade(best: Stages, other: Stages) -> str:
    """`spends 12 ms more sending and saves 3 ms in the cloud`."""
    mine, theirs = best.named(), other.named()
    more = [(theirs[s] - mine[s], s) for s in mine]
    least_s = WORTH_NAMING * best.total_s
    spent = [f"{ms(d)} more {SPENDS[s]}" for d, s in sorted(more, reverse=True) if d > least_s]
    saved = [f"{ms(-d)} {SPENDS[s]}" for d, s in sorted(more) if -d > least_s]
    text = f"spends {all_of(spent or ['a little more everywhere'])}"
    return f"{text}, and saves only {all_of(saved)}" if saved else text


def flip_if(flip: Flip) -> str:
    """`above 42.9 Mbit/s (full-cloud)`: the condition under which another placement takes over, and which."""
    if flip.condition == "uplink_mbit":
        return f"{flip.when} {number(flip.at)} Mbit/s ({flip.id})"
    if flip.condition in ("rtt_s", "queue_s"):
        verb = "rose above" if flip.when == "above" else "fell below"
        what = "round trip" if flip.condition == "rtt_s" else "wait at the gateway"
        return f"if the {what} {verb} {number(flip.at * 1e3)} ms ({flip.id})"
    machine = "device" if flip.condition == "edge_factor" else "cloud"
    if flip.when == "above":
        return f"if the {machine} were {_factor(flip.at)} slower than assumed ({flip.id})"
    return f"if the {machine} were {_factor(1 / flip.at)} faster than assumed ({flip.id})"


def ms(seconds: float) -> str:
    return f"{number(seconds * 1e3)} ms"


def number(value: float) -> str:
    """Three significant digits, at most two decimals, no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(float(f'{value:.3g}'), 2):g}"


def times(ratio: float) -> str:
    return f"{ratio:.2f} times" if ratio < 10 else f"{ratio:.0f} times"


def all_of(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def one_of(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, or {parts[-1]}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _factor(factor: float) -> str:
    return "a little" if factor < 1.005 else times(factor)
