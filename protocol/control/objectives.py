"""What "best" means: one score in seconds-equivalents, the less the better. Pure.

    score = latency * s  +  deadline * budget * P(late)  +  energy * J  +  bytes * B  +  cloud * cloud seconds

Each weight is a price in seconds: `energy=2` says that one joule of the device is worth two seconds of waiting,
`bytes=0.1/MB` that a million bytes on the link are worth a tenth of one. `deadline` prices an answer that comes too
late in whole budgets, so that with weight 1 a request that is surely late counts like one that takes its whole budget.

Text is `name[=weight[/unit]]`, separated by commas. Latency has the weight 1 unless it is named. A single name without
a weight means "that above all": its weight is 1 and latency keeps BREAKS_TIES, for between equals the faster is better.

P(late) takes the time of an answer as normally distributed: the stages are many and none dominates the tail for long.
Standard deviations come from the measured spreads of device and gateway, of the link from message to message, and of
the waits, whose standard deviation is near their mean (exponential in heavy traffic, Kingman 1961).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from protocol.errors import InputError

BREAKS_TIES = 0.01
_UNITS: Mapping[str, Mapping[str, float]] = {
    "latency": {"s": 1.0},
    "deadline": {"budget": 1.0},
    "energy": {"J": 1.0, "mJ": 1e-3, "kJ": 1e3},
    "bytes": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    "cloud": {"s": 1.0, "min": 60.0, "h": 3600.0},
}
_PLAIN_UNIT = {"bytes": "MB"}  # a byte alone is too little to have a price
_EXAMPLES = "write latency, deadline, energy, bytes or cloud, or a list such as energy=2/J,bytes=0.1/MB"


class Objective(msgspec.Struct, frozen=True):
    """Weights, each at least 0 and at least one above: `energy` in seconds per joule, `nbytes` in seconds per byte,
    `cloud` in seconds per second of the gateway, `deadline` in budgets per answer that is late."""

    latency: float = 1.0
    deadline: float = 0.0
    energy: float = 0.0
    nbytes: float = 0.0
    cloud: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Objective:
        """The objective that `text` describes. Raises InputError naming the part that makes no sense."""
        parts = [part.strip() for part in text.split(",")]
        if len(parts) == 1 and parts[0] in _UNITS:
            name = parts[0]
            latency = 1.0 if name == "latency" else BREAKS_TIES
            return cls(**{"latency": latency, **_weight(name, "1", text)})
        weights: dict[str, float] = {}
        for part in parts:
            name, equals, value = part.partition("=")
            name = name.strip()
            if name not in _UNITS or not equals:
                raise InputError(f"the objective {text!r}: {part!r} is not NAME=WEIGHT", _EXAMPLES)
            field = _weight(name, value.strip(), text)
            if weights.keys() & field.keys():
                raise InputError(f"the objective {text!r} weighs {name} twice", "name each once")
            weights |= field
        made = cls(**weights)
        if not any(msgspec.structs.astuple(made)):
            raise InputError(f"the objective {text!r} weighs nothing", _EXAMPLES)
        return made

    def __str__(self) -> str:
        """The text that `parse` reads as this objective."""
        weights = {
            "latency": self.latency,
            "deadline": self.deadline,
            "energy": self.energy,
            "bytes": self.nbytes * 1e6,
            "cloud": self.cloud,
        }
        given = {name: w for name, w in weights.items() if w != (name == "latency")}
        said = ",".join(f"{name}={w:.12g}{'/MB' if name == 'bytes' else ''}" for name, w in given.items())
        return said or "latency"

    @property
    def is_latency(self) -> bool:
        """Whether only latency counts: then a score is nothing else."""
        return self == LATENCY

    def score(
        self,
        latency_s: float,
        *,
        late: float = 0.0,
        budget_s: float = 0.0,
        energy_j: float = 0.0,
        nbytes: float = 0.0,
        cloud_s: float = 0.0,
    ) -> float:
        """Seconds-equivalents of one request; `late` is the probability to miss a budget of `budget_s`."""
        return (
            self.latency * latency_s
            + self.deadline * budget_s * late
            + self.energy * energy_j
            + self.nbytes * nbytes
            + self.cloud * cloud_s
        )


LATENCY = Objective()


def probability_late(expected_s: float, deviation_s: float, budget_s: float) -> float:
    """How likely an answer expected after `expected_s`, with this standard deviation, comes after `budget_s`."""
    if deviation_s <= 0:
        return float(expected_s > budget_s)
    return 0.5 * math.erfc((budget_s - expected_s) / (deviation_s * math.sqrt(2)))


def _weight(name: str, text: str, whole: str) -> dict[str, float]:
    number, slash, unit = text.partition("/")
    units = _UNITS[name]
    per = units.get(unit.strip() if slash else _PLAIN_UNIT.get(name, next(iter(units))))
    if per is None:
        remedy = f"the price of {name} is per {', '.join(units)}"
        raise InputError(f"the objective {whole!r}: {unit!r} is no unit of {name}", remedy)
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise InputError(f"the objective {whole!r}: the weight {number!r} is no number from 0 on", _EXAMPLES)
    return {{"bytes": "nbytes"}.get(name, name): weight / per}
