"""Large payloads on a slow link: what passes them, what waits behind them, and how long an attempt may take.

On the scenes' link (1 MB/s, 10 ms) a placement's 500,000 bytes take 0.5 s and go in chunks of 29,696, three at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.control.flights import Finish, Instruction, Phase, Prepare, Row, Send
from protocol.control.ladder import Ladder
from protocol.control.planner import Candidate, Planner
from protocol.latency import LinkState, PlacementCost
from protocol.messages import PlacementKind
from protocol.wire import PART_NBYTES

LINK = LinkState(uplink_bytes_per_s=1e6, rtt_s=0.01)
CLOUD = Row("cloud", PlacementKind.FULL_CLOUD, b"m" * 32)
LARGE, SMALL, CHUNK = 500_000, 2_000, 29 * 1024


@dataclass
class Scene:
    """One gateway, one placement."""

    takes_chunks: bool = True
    now: float = 100.0
    ladder: Ladder = field(init=False)

    def __post_init__(self) -> None:
        planner = Planner([Candidate("cloud", PlacementCost(up_nbytes=5_000, tail_s=0.001, down_nbytes=40))])
        self.ladder = Ladder([CLOUD], planner)
        self.ladder.link_measured(LINK)
        most = PART_NBYTES if self.takes_chunks else 0
        held = frozenset({b"m" * 32})
        self.ladder.link_up(held=held, credit_requests=8, credit_nbytes=10**7, chunk_nbytes=most, now=self.now)

    def request(self, seq: int, nbytes: int, *, priority: int = 4, budget_s: float = 20.0) -> list[Instruction]:
        """What is sent as soon as it is prepared."""
        out = self.ladder.submitted(seq, self.now + budget_s, priority=priority, now=self.now)
        assert [type(i) for i in out] == [Prepare]
        sent = self.ladder.prepared(seq, self.ladder.flights[seq].generation, nbytes, 0.0, now=self.now)
        self.ladder.validate()
        return sent

    def there(self, seq: int, left_nbytes: int, *, after_s: float = 0.0, attempt: int = 1) -> list[Instruction]:
        self.now += after_s
        out = self.ladder.there(seq, attempt, left_nbytes, now=self.now)
        self.ladder.validate()
        return out


def only_send(out: list[Instruction]) -> Send:
    (sent,) = out
    assert isinstance(sent, Send)
    return sent


def test_what_takes_long_is_sent_in_chunks_and_what_does_not_is_not() -> None:
    s = Scene()
    assert only_send(s.request(1, LARGE)).chunk_nbytes == CHUNK
    s.ladder.answered(1, 1, 0.001, now=s.now)
    assert only_send(s.request(2, 100_000)).chunk_nbytes == 0


def test_a_gateway_of_an_older_version_is_sent_one_message() -> None:
    assert only_send(Scene(takes_chunks=False).request(1, LARGE)).chunk_nbytes == 0


def test_an_urgent_request_passes_chunks_and_counts_only_those_that_are_out_of_hand() -> None:
    s = Scene()
    s.request(1, LARGE)
    urgent = only_send(s.request(2, SMALL, priority=0, budget_s=1.0))
    window_s = 3 * CHUNK / 1e6 + 0.01
    assert 1.0 - urgent.budget_s < 1.5 * window_s + 0.05, "it does not wait for the 0.5 s of the other"


def test_an_urgent_request_does_not_pass_one_message() -> None:
    s = Scene(takes_chunks=False)
    s.request(1, LARGE)
    assert s.request(2, SMALL, priority=0) == []


def test_an_equal_request_waits_until_the_chunks_ahead_are_nearly_through() -> None:
    s = Scene()
    s.request(1, LARGE)
    assert s.request(2, LARGE) == []
    assert s.there(1, LARGE // 2, after_s=0.25) == []
    assert only_send(s.there(1, 5_000, after_s=0.24)).seq == 2, "while the first still waits for its answer"


def test_what_has_arrived_is_no_longer_in_the_way_but_still_uses_credit() -> None:
    s = Scene()
    s.request(1, LARGE)
    s.there(1, 0, after_s=0.5)
    load = s.ladder.fleet.loads(s.ladder.flights.values())[""]
    assert (load.requests, load.nbytes, load.way_nbytes) == (1, LARGE, 0)


def test_an_attempt_that_makes_progress_is_not_given_up_however_slow() -> None:
    s = Scene()
    s.request(1, LARGE)
    first = s.ladder.flights[1].attempt_until
    for left in range(LARGE, 0, -50_000):
        assert s.there(1, left, after_s=0.8) == []
        assert s.ladder.tick(now=s.now) == []
    flight = s.ladder.flights[1]
    assert s.now > first
    assert (flight.phase, flight.attempt) == (Phase.SENT, 1)


def test_an_attempt_whose_chunks_are_not_acknowledged_is_repeated() -> None:
    s = Scene()
    s.request(1, LARGE)
    s.now = s.ladder.flights[1].attempt_until
    repeated = [i for i in s.ladder.tick(now=s.now) if isinstance(i, Send)]
    s.now += 1.0
    repeated += [i for i in s.ladder.tick(now=s.now) if isinstance(i, Send)]
    assert [r.attempt for r in repeated][:1] == [2]


def test_the_gateways_budget_shrinks_with_what_still_has_to_cross() -> None:
    s = Scene()
    sent = only_send(s.request(1, LARGE, budget_s=2.0))
    at_first = s.ladder.budget_s(1, LARGE, now=s.now)
    assert abs(at_first - sent.budget_s) < 0.02
    assert s.ladder.budget_s(1, 0, now=s.now + 1.0) < 1.0
    assert s.ladder.budget_s(1, LARGE, now=s.now + 1.5) == 0.0
    assert s.ladder.budget_s(9, 0, now=s.now) == 0.0, "nobody waits for that"


def test_news_of_an_attempt_that_is_over_changes_nothing() -> None:
    s = Scene()
    s.request(1, LARGE)
    assert s.there(1, 0, attempt=2) == []
    assert s.ladder.there(1, 1, 0, gateway="another", now=s.now) == []
    assert s.ladder.flights[1].left_nbytes == LARGE
    (finish,) = s.ladder.answered(1, 1, 0.001, now=s.now)
    assert isinstance(finish, Finish)
    assert s.there(1, 0) == []


def test_a_request_with_more_rows_than_usual_is_given_the_time_that_its_bytes_take() -> None:
    s = Scene(takes_chunks=False)
    s.request(1, 2_000_000)
    assert s.ladder.flights[1].attempt_until >= s.now + 2 * 2.0
