"""Three placements of one bundle over a link, and a ladder that is checked after every event.

Predicted on the link (1 MB/s, 10 ms): cut 20 ms, cloud 51 ms, edge-only 100 ms.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.control.flights import Finish, Instruction, Row
from protocol.control.ladder import Ladder
from protocol.control.planner import Candidate, Planner
from protocol.latency import LinkState, PlacementCost
from protocol.messages import PlacementKind

NOW = 100.0
LINK = LinkState(uplink_bytes_per_s=1e6, rtt_s=0.01)
SEGMENTS = {"cut": b"c" * 32, "cloud": b"m" * 32}
ROWS = {
    "cut": Row("cut", PlacementKind.CUT, SEGMENTS["cut"]),
    "cloud": Row("cloud", PlacementKind.FULL_CLOUD, SEGMENTS["cloud"]),
    "edge": Row("edge", PlacementKind.EDGE_ONLY, None),
}
COSTS = {
    "cut": PlacementCost(edge_s=0.004, up_nbytes=5_000, tail_s=0.001, down_nbytes=40),
    "cloud": PlacementCost(up_nbytes=40_000, tail_s=0.001, down_nbytes=40),
    "edge": PlacementCost(edge_s=0.100),
}


def planner(*ids: str) -> Planner:
    return Planner([Candidate(id_, COSTS[id_]) for id_ in ids])


@dataclass
class LadderScene:
    """A ladder and its moment; every event is followed by `validate`."""

    ladder: Ladder
    now: float = NOW
    ended: list[Finish] = field(default_factory=list)

    def note(self, out: list[Instruction]) -> list[Instruction]:
        """What an event has led to."""
        self.ladder.validate()
        self.ended += [i for i in out if isinstance(i, Finish)]
        seqs = [f.seq for f in self.ended]
        assert len(seqs) == len(set(seqs)), "a request ended twice"
        return out

    def wake(self) -> list[Instruction]:
        """Go to the moment that the ladder asked for."""
        at = self.ladder.next_deadline()
        assert at is not None
        self.now = max(self.now, at)
        return self.note(self.ladder.tick(now=self.now))
