"""Who wins where, when every placement was measured once: the cells of model x slowness of the device x uplink.

Law: pure. A cell is composed by the one latency formula from measured stages; a slower device multiplies what the
device does and nothing else. A split wins only against all baselines of a contest together, and placements of ours
that miss the accuracy bound do not count, while a baseline may (the world sends JPEG at quality 90 whatever it costs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from protocol.latency import LinkState, PlacementCost, adjusted, latency_s

Kind = Literal["edge", "cloud", "split"]

SLOWDOWNS = (1.0, 3.0, 10.0, 30.0)
MBITS = (0.25, 1.0, 5.0, 20.0, 100.0)
STRICTLY = 1.05  # a split strictly beats the baselines when they take this many times as long
NEAR = 1.2  # who is nearly as fast as the best baseline may save the gateway's seconds
LOSSLESS = ("raw", "zstd", "png")
WORLD = "jpeg90"  # what the world sends, in whichever of its two forms is smaller
BITS_PER_MBIT = 1e6


class Candidate(NamedTuple):
    """One placement. `coding` names the codec of the input, or the rung of what crosses: "" the 8-bit codes, raw or
    zstd; "dec." stands before it where the planes are decorrelated. `cost` is that of a device as fast as this machine;
    `keeps` tells whether it keeps the accuracy bound.
    """

    name: str
    kind: Kind
    coding: str
    cost: PlacementCost
    achieved: float
    keeps: bool

    @property
    def label(self) -> str:
        """Short enough for a table's cell."""
        if self.kind == "split":
            return f"split {self.coding or 'q8'}"
        return "edge-only" if self.kind == "edge" else self.coding

    @property
    def gateway_s(self) -> float:
        """Seconds of the gateway's processor for one request."""
        return self.cost.decode_s + self.cost.tail_s


@dataclass(frozen=True)
class Contest:
    """Against whom a split has to win: `edge-only` always, and what `admits` of the codings of full-cloud."""

    name: str
    meaning: str
    admits: Callable[[Candidate], bool]


CONTESTS = (
    Contest("jpeg q90", "edge-only and cloud-only JPEG q90, whatever its accuracy", lambda c: c.coding == WORLD),
    Contest("same accuracy", "edge-only and every cloud-only coding that keeps the bound", lambda c: c.keeps),
    Contest("jpeg barred", "edge-only and cloud-only raw, zstd, PNG", lambda c: c.coding in LOSSLESS),
    Contest("input private", "edge-only alone: the input may not leave the device", lambda c: False),
)
JPEG_Q90 = CONTESTS[0]


class Cell(NamedTuple):
    """One situation, and what every placement takes there in seconds."""

    slowdown: float
    mbit: float
    seconds: dict[str, float]
    candidates: dict[str, Candidate]

    def baselines(self, contest: Contest) -> list[Candidate]:
        return [c for c in self.candidates.values() if c.kind == "edge" or (c.kind == "cloud" and contest.admits(c))]

    def splits(self, *, old: bool = False) -> list[Candidate]:
        """Ours; with `old` those alone that send all 8 bits, and the planes as they are."""
        kept = (c for c in self.candidates.values() if c.kind == "split" and c.keeps)
        return [c for c in kept if not (old and c.coding)]

    def fastest(self, among: Iterable[Candidate]) -> Candidate | None:
        return min(among, key=lambda c: self.seconds[c.name], default=None)

    def least_s(self, among: Iterable[Candidate]) -> float:
        return min((self.seconds[c.name] for c in among), default=math.inf)

    def gain(self, contest: Contest, *, old: bool = False) -> float:
        """How many times as long as the best split the best baseline takes; 0 where nothing can be split."""
        return self.least_s(self.baselines(contest)) / self.least_s(self.splits(old=old))

    def winner(self, contest: Contest) -> Candidate:
        """The fastest of the baselines and the splits; a tie goes to the baseline."""
        found = self.fastest([*self.baselines(contest), *self.splits()])
        assert found is not None, "edge-only is always there"
        return found

    def regret(self, contest: Contest) -> float:
        """By which factor the plan as a whole (everything that keeps the bound) is slower than the best baseline."""
        plan = [c for c in self.candidates.values() if c.keeps]
        return self.least_s(plan) / self.least_s(self.baselines(contest)) - 1.0


class Thrift(NamedTuple):
    """Who serves a cell with the fewest seconds of the gateway, nearly as fast as the best baseline.

    `saved` is by which factor a split's seconds are fewer than those of cloud-only JPEG q90 (inf where it needs none);
    None where no split is near. `over_cloud` tells that cloud-only was the faster baseline.
    """

    winner: Candidate
    saved: float | None
    over_cloud: bool


def compose(candidates: Sequence[Candidate], slowdown: float, mbit: float, *, rtt_s: float) -> Cell:
    """One cell. The downlink is as fast as the uplink; the answer's bytes count."""
    bytes_per_s = mbit * BITS_PER_MBIT / 8
    link = LinkState(bytes_per_s, rtt_s, bytes_per_s)
    seconds = {c.name: latency_s(adjusted(c.cost, edge_factor=slowdown), link) for c in candidates}
    return Cell(slowdown, mbit, seconds, {c.name: c for c in candidates})


def grid(candidates: Sequence[Candidate], *, rtt_s: float) -> list[Cell]:
    """All cells of one model, row by row."""
    return [compose(candidates, slowdown, mbit, rtt_s=rtt_s) for slowdown in SLOWDOWNS for mbit in MBITS]


def smaller(candidates: Sequence[Candidate], name: str) -> Candidate:
    """The one of fewer bytes under another name: nobody is to say that the baseline was the weaker of two."""
    return min(candidates, key=lambda c: c.cost.up_nbytes)._replace(name=name)


def thrift(cell: Cell) -> Thrift:
    """Within NEAR of the best of edge-only and JPEG q90: fewest gateway seconds, ties to the faster."""
    baselines = cell.baselines(JPEG_Q90)
    bound_s = NEAR * cell.least_s(baselines)
    near = [c for c in (*baselines, *cell.splits()) if cell.seconds[c.name] <= bound_s]
    winner = min(near, key=lambda c: (c.gateway_s, cell.seconds[c.name]))
    cheapest = min((c.gateway_s for c in near if c.kind == "split"), default=None)
    cloud_s = min((c.gateway_s for c in baselines if c.kind == "cloud"), default=0.0)
    fastest = cell.fastest(baselines)
    saved = None if cheapest is None else cloud_s / cheapest if cheapest else math.inf
    return Thrift(winner, saved, fastest is not None and fastest.kind == "cloud")


class Count(NamedTuple):
    """How often a split wins a contest, and by how much; `gains` of the cells won strictly, greatest first."""

    cells: int
    strictly: int
    at_all: int
    gains: tuple[float, ...]

    @property
    def share(self) -> float:
        return self.strictly / self.cells if self.cells else 0.0


def count(cells: Sequence[Cell], contest: Contest, *, old: bool = False) -> Count:
    """A contest over many cells."""
    gains = sorted((cell.gain(contest, old=old) for cell in cells), reverse=True)
    strictly = tuple(g for g in gains if g >= STRICTLY)
    return Count(len(gains), len(strictly), sum(g > 1.0 for g in gains), strictly)


def winners(cells: Sequence[Cell], contest: Contest) -> dict[str, int]:
    """How many cells each kind of placement wins, most first; splits by whether they need a codec of ours."""
    found: dict[str, int] = {}
    for cell in cells:
        winner = cell.winner(contest)
        name = winner.label if winner.kind != "split" else "split q8" if not winner.coding else "split, new codecs"
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
