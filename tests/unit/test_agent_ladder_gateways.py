"""Several gateways: which one a request goes to, which one next, and what each may cost."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from protocol.control.availability import Device
from protocol.control.causes import Cause, Why
from protocol.control.fleet import WORTH_LEAVING, Fleet, Load
from protocol.control.flights import CancelRemote, Finish, Instruction, Phase, Prepare, RefusalCode, Send
from protocol.control.ladder import Ladder
from protocol.control.planner import Candidate, Planner
from protocol.latency import LinkState
from protocol.messages import RejectCode
from tests.ladder_scenes import COSTS, LINK, NOW, ROWS, SEGMENTS, LadderScene, planner

CUT_OFF = Why(Cause.LINK, "the cable is cut")


class Scene(LadderScene):
    """A ladder over two gateways, `a` in use, both up, unless said otherwise."""

    def __init__(self, *ids: str, hedge: bool = False, names: tuple[str, ...] = ("a", "b")) -> None:
        rows = [ROWS[i] for i in ids]
        super().__init__(Ladder(rows, planner(*ids), gateways=names, chance=random.Random(1), hedge=hedge))
        for name in names:
            self.ladder.link_measured(LINK, gateway=name)
            self.up(name)
        self.ladder.fleet.in_use = "a"

    def up(self, name: str, *held: str, requests: int = 8, nbytes: int = 10**6) -> list[Instruction]:
        digests = frozenset(SEGMENTS[h] for h in held or SEGMENTS)
        return self.note(
            self.ladder.link_up(
                held=digests, credit_requests=requests, credit_nbytes=nbytes, gateway=name, now=self.now
            )
        )

    def submit(self, seq: int = 1, *, budget_s: float = 1.0, priority: int = 4) -> list[Instruction]:
        return self.note(self.ladder.submitted(seq, self.now + budget_s, priority=priority, now=self.now))

    def prepared(self, seq: int = 1, *, nbytes: int = 5_000) -> list[Instruction]:
        flight = self.ladder.flights[seq]
        placement = "edge" if flight.hedge else flight.placement
        nbytes = 0 if placement == "edge" else nbytes
        return self.note(self.ladder.prepared(seq, flight.generation, nbytes, COSTS[placement].edge_s, now=self.now))

    def send(self, seq: int = 1, *, budget_s: float = 1.0, nbytes: int = 5_000) -> Send:
        self.submit(seq, budget_s=budget_s)
        (sent,) = self.prepared(seq, nbytes=nbytes)
        assert isinstance(sent, Send)
        return sent

    def answer(self, gateway: str, seq: int = 1, attempt: int = 1) -> list[Instruction]:
        return self.note(self.ladder.answered(seq, attempt, 0.001, gateway=gateway, now=self.now))

    def reject(
        self,
        code: RejectCode,
        gateway: str = "a",
        seq: int = 1,
        *,
        attempt: int = 1,
        retry_after_s: float = 0.0,
        credit: int | None = None,
    ) -> list[Instruction]:
        return self.note(
            self.ladder.rejected(
                seq, attempt, code, "because", retry_after_s, credit=credit, gateway=gateway, now=self.now
            )
        )


def sent_to(out: list[Instruction]) -> list[tuple[str, str, int]]:
    return [(i.placement, i.gateway, i.attempt) for i in out if isinstance(i, Send)]


# ---- the choice -----------------------------------------------------------------------------------------------------


def test_a_request_is_prepared_for_and_sent_to_the_gateway_in_use_and_the_answer_says_so() -> None:
    s = Scene("cut", "cloud", "edge")
    assert s.submit() == [Prepare(1, "cut", "a")]
    assert sent_to(s.prepared()) == [("cut", "a", 1)]
    assert s.answer("a") == [Finish(1, "cut", 1, (), gateway="a")]


def test_the_gateway_in_use_is_left_only_for_one_that_promises_clearly_less_wait() -> None:
    s = Scene("cut", "edge")
    s.ladder.link_measured(LinkState(1e6, LINK.rtt_s * (1 - WORTH_LEAVING / 2)), gateway="b")
    assert s.submit(1) == [Prepare(1, "cut", "a")]
    s.ladder.link_measured(LinkState(1e6, LINK.rtt_s, queue_s=0.05), gateway="a")
    assert s.submit(2) == [Prepare(2, "cut", "b")]
    s.ladder.link_measured(LINK, gateway="a")
    s.ladder.link_measured(LINK, gateway="b")
    assert s.submit(3) == [Prepare(3, "cut", "b")], "it is remembered"


def test_what_is_in_flight_at_a_gateway_counts_as_its_wait() -> None:
    s = Scene("cut", "edge")
    s.send(1, nbytes=20_000)
    assert s.submit(2) == [Prepare(2, "cut", "b")]


def test_many_gateways_are_all_used_when_their_waits_say_so() -> None:
    names = tuple("abcdefgh")
    s = Scene("cut", names=names)
    for seq in range(64):
        s.submit(seq, budget_s=9.0)
        s.prepared(seq, nbytes=20_000)
    assert {f.gateway for f in s.ladder.in_flight()} == set(names)


def test_devices_that_start_together_do_not_all_begin_with_the_same_gateway() -> None:
    begun = set()
    for seed in range(20):
        ladder = Ladder([ROWS["cut"]], Planner([Candidate("cut", COSTS["cut"])]), gateways=("a", "b"),
                        chance=random.Random(seed))  # fmt: skip
        for name in ("a", "b"):
            ladder.link_measured(LINK, gateway=name)
            ladder.link_up(held=frozenset({SEGMENTS["cut"]}), credit_requests=8, credit_nbytes=10**6, gateway=name,
                           now=NOW)  # fmt: skip
        (prepare,) = ladder.submitted(1, NOW + 1, now=NOW)
        assert isinstance(prepare, Prepare)
        begun.add(prepare.gateway)
    assert begun == {"a", "b"}


def test_a_gateway_that_holds_more_of_the_bundle_is_preferred() -> None:
    s = Scene("cut", "cloud", "edge")
    s.up("a", "cloud")
    assert s.submit() == [Prepare(1, "cut", "b")]


def test_a_gateway_of_a_higher_rank_is_used_only_without_the_others() -> None:
    s = Scene("cut", "edge")
    s.ladder.gateway_found("b", rank=10)
    s.ladder.link_measured(LinkState(1e6, 0.001), gateway="b")
    assert s.send(1).gateway == "a"
    s.ladder.link_lost(CUT_OFF, gateway="a", now=s.now)
    assert s.ladder.flights[1].gateway == "b"
    assert s.submit(2) == [Prepare(2, "cut", "b")]


def test_a_gateway_of_the_lowest_rank_is_used_even_where_another_could_do_more() -> None:
    s = Scene("cut", "cloud", "edge")
    s.ladder.gateway_found("b", rank=10)
    s.up("a", "cut")
    assert s.submit() == [Prepare(1, "cut", "a")]


def drawn_first(weights: dict[str, int], count: int = 400) -> dict[str, int]:
    """How often each gateway is the first of a device that is told these weights."""
    chance, drawn = random.Random(3), dict.fromkeys(weights, 0)
    for _ in range(count):
        fleet = Fleet(Device([ROWS["cut"]]), weights, chance)
        for name, weight in weights.items():
            fleet.of(name).link, fleet.of(name).weight = LINK, weight
        drawn[fleet.choose(list(fleet.remotes.values()), {}).name] += 1
    return drawn


def test_the_first_gateway_of_a_device_is_drawn_with_the_weights_of_dns() -> None:
    drawn = drawn_first({"a": 60, "b": 20, "c": 20})
    assert 200 <= drawn["a"] <= 280
    assert 50 <= drawn["b"] <= 110
    assert 50 <= drawn["c"] <= 110


def test_a_weight_of_nought_is_drawn_next_to_never_beside_others_and_like_them_without() -> None:
    assert drawn_first({"a": 1, "b": 0})["b"] <= 15
    assert 150 <= drawn_first({"a": 0, "b": 0})["b"] <= 250


def test_a_heavy_gateway_is_left_all_the_same_where_another_promises_less_wait() -> None:
    s = Scene("cut")
    s.ladder.gateway_found("a", weight=100)
    s.ladder.gateway_found("b", weight=1)
    s.ladder.link_measured(LinkState(1e6, 0.01, queue_s=0.5), gateway="a")
    assert s.submit() == [Prepare(1, "cut", "b")]


def test_two_choices_of_predicted_wait_spread_a_fleet_of_devices() -> None:
    """Devices with memory, one gateway each at a time: the fullest one has little more than its share."""
    chance = random.Random(7)
    queues = dict.fromkeys("abcde", 0)
    fleets = []
    for _ in range(100):
        scene = Scene("cut", names=tuple(queues))
        scene.ladder.fleet.in_use = ""
        fleet = Fleet(scene.ladder.device, queues, chance)
        fleets.append(fleet)
    for _ in range(20):
        for fleet in fleets:
            before = fleet.in_use
            if before:
                queues[before] -= 1
            for name, waiting in queues.items():
                fleet.of(name).link = LinkState(1e6, 0.002, queue_s=0.002 * waiting)
            queues[fleet.choose(list(fleet.remotes.values()), {}).name] += 1
    assert sum(queues.values()) == 100
    assert max(queues.values()) <= 1.5 * 100 / len(queues)


# ---- another gateway ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [RejectCode.BUSY, RejectCode.DRAINING, RejectCode.FORBIDDEN, RejectCode.DEADLINE, RejectCode.INTERNAL],
)
def test_what_one_gateway_cannot_do_now_another_does_with_what_is_prepared_under_the_same_id(code: RejectCode) -> None:
    s = Scene("cut", "cloud", "edge")
    s.send()
    out = s.reject(code)
    assert sent_to(out) == [("cut", "b", 2)]
    assert not any(isinstance(i, Prepare) for i in out)
    (finish,) = s.answer("b", attempt=2)
    assert isinstance(finish, Finish)
    assert (finish.gateway, finish.attempts, finish.code) == ("b", 2, None)
    assert finish.degraded == (f"gateway {code}: because",)


@pytest.mark.parametrize("code", [RejectCode.BUSY, RejectCode.DRAINING])
def test_when_both_gateways_are_busy_the_device_does_it_and_neither_gets_more_load(code: RejectCode) -> None:
    s = Scene("cut", "cloud", "edge")
    s.send()
    s.reject(code, "a", retry_after_s=1.0)
    out = s.reject(code, "b", attempt=2, retry_after_s=1.0)
    assert Prepare(1, "edge") in out
    assert s.submit(2) == [Prepare(2, "edge")]


def test_a_gateway_that_asked_for_a_pause_is_left_alone_and_the_other_one_serves() -> None:
    s = Scene("cut", "cloud", "edge")
    s.send(1)
    s.reject(RejectCode.BUSY, retry_after_s=0.5)
    s.answer("b", attempt=2)
    for seq in range(2, 6):
        assert s.send(seq, budget_s=5.0).gateway == "b"
        s.answer("b", seq)


def test_a_request_that_leaves_a_silent_gateway_is_cancelled_there() -> None:
    s = Scene("cut", "cloud", "edge")
    s.send(budget_s=5.0)
    out = s.wake()
    assert out[0] == CancelRemote(1, "a")
    assert sent_to(out) == [("cut", "b", 2)]


def test_what_stayed_out_at_a_silent_gateway_goes_to_another_one_as_soon_as_that_is_there() -> None:
    s = Scene("cut", "cloud")
    s.note(s.ladder.link_lost(CUT_OFF, gateway="b", now=s.now))
    s.ladder.fleet.of("a").heard(now=s.now)
    s.now += 0.1
    s.send(budget_s=5.0)
    assert s.wake() == [], "what is sent again would only follow it"
    s.up("b")
    out = s.note(s.ladder.tick(now=s.now))
    assert out[0] == CancelRemote(1, "a")
    assert sent_to(out) == [("cut", "b", 2)]


def test_an_answer_of_the_gateway_that_was_left_is_as_good_and_the_other_one_is_told() -> None:
    s = Scene("cut", "cloud", "edge")
    s.send(budget_s=5.0)
    s.wake()
    out = s.answer("a", attempt=1)
    late = Finish(1, "cut", 2, ("the gateway did not answer in time",), gateway="a", causes=(Cause.SILENCE,))
    assert out == [CancelRemote(1, "b"), late]
    assert s.answer("b", attempt=2) == []


def test_nobody_can_answer_an_attempt_that_was_sent_to_another_gateway() -> None:
    s = Scene("cut", "edge")
    s.send()
    assert s.answer("b", attempt=1) == []
    assert s.reject(RejectCode.INTERNAL, "b") == []
    assert s.ladder.flights[1].phase is Phase.SENT


def test_a_segment_that_is_unknown_here_is_done_by_the_gateway_that_holds_it() -> None:
    s = Scene("cut", "cloud", "edge")
    s.send()
    assert sent_to(s.reject(RejectCode.UNKNOWN_SEGMENT)) == [("cut", "b", 2)]
    assert s.submit(2) == [Prepare(2, "cut", "b")]


def test_a_segment_that_nobody_else_holds_goes_full_cloud() -> None:
    s = Scene("cut", "cloud", "edge")
    s.up("b", "cloud")
    s.send()
    assert Prepare(1, "cloud", "a") in s.reject(RejectCode.UNKNOWN_SEGMENT)


def test_a_failed_head_goes_full_cloud_at_whichever_gateway_can() -> None:
    s = Scene("cut", "cloud", "edge")
    s.up("a", "cut")
    s.up("b", "cloud")
    assert s.submit() == [Prepare(1, "cut", "a")]
    flight = s.ladder.flights[1]
    assert s.ladder.preparation_failed(1, flight.generation, "broke", now=s.now) == [Prepare(1, "cloud", "b")]


@pytest.mark.parametrize("code", [RejectCode.BAD_REQUEST, RejectCode.TOO_LARGE])
def test_a_request_that_is_wrong_is_not_carried_from_gateway_to_gateway(code: RejectCode) -> None:
    s = Scene("cut", "cloud")
    s.send()
    (finish,) = s.reject(code)
    assert isinstance(finish, Finish)
    assert finish.code is RefusalCode.BAD_REQUEST


def test_a_lost_link_sends_what_was_in_flight_and_what_waited_to_the_other_gateway() -> None:
    s = Scene("cut", "edge")
    s.up("a", requests=1)
    s.up("b", requests=0)
    s.send(1, budget_s=5.0)
    s.submit(2, budget_s=5.0)
    assert s.prepared(2) == []
    s.up("b")
    assert sent_to(s.note(s.ladder.link_lost(CUT_OFF, gateway="a", now=s.now))) != []
    assert {f.gateway for f in s.ladder.flights.values()} == {"b"}


def test_a_request_that_was_being_prepared_when_its_gateway_vanished_goes_to_the_other_one() -> None:
    s = Scene("cut", "edge")
    s.submit()
    s.ladder.link_lost(CUT_OFF, gateway="a", now=s.now)
    assert sent_to(s.prepared()) == [("cut", "b", 1)]


def test_without_edge_only_a_request_waits_for_whichever_gateway_comes_back_first() -> None:
    s = Scene("cut")
    s.send(budget_s=10.0)
    for name in ("a", "b"):
        s.ladder.link_lost(CUT_OFF, gateway=name, now=s.now)
    assert s.ladder.flights[1].phase is Phase.READY
    s.now += 1.0
    assert sent_to(s.up("b")) == [("cut", "b", 3)] or sent_to(s.ladder.tick(now=s.now)) == []


def test_a_gateway_that_can_do_it_another_way_is_better_than_waiting() -> None:
    s = Scene("cut", "cloud")
    s.up("b", "cloud")
    s.send(budget_s=5.0)
    out = s.note(s.ladder.link_lost(CUT_OFF, gateway="a", now=s.now))
    assert Prepare(1, "cloud", "b") in out


def test_no_request_moves_to_a_gateway_that_could_not_be_in_time() -> None:
    s = Scene("cut", "edge")
    s.ladder.link_measured(LinkState(1e4, 0.3), gateway="b")  # 5 kB take half a second
    s.send(budget_s=0.5)
    out = s.reject(RejectCode.BUSY)
    assert Prepare(1, "edge") in out
    assert sent_to(out) == []


def test_a_gateway_that_is_gone_for_good_is_not_waited_for() -> None:
    s = Scene("cut", "edge")
    s.send()
    out = s.note(s.ladder.gateway_gone("a", "no longer named", now=s.now))
    assert sent_to(out) == [("cut", "b", 2)]
    assert set(s.ladder.fleet.remotes) == {"b"}
    assert s.answer("a", attempt=1) != [], "its answer is still good"


def test_requests_wait_where_no_gateway_is_known_yet_and_go_to_the_first_one_found() -> None:
    s = Scene("cut", names=())
    s.submit(budget_s=5.0)
    assert s.prepared() == []
    s.ladder.gateway_found("c")
    assert sent_to(s.up("c")) == [("cut", "c", 1)]


# ---- credit and window ----------------------------------------------------------------------------------------------


def test_when_the_credit_of_one_gateway_is_used_up_the_other_one_gets_the_next() -> None:
    s = Scene("cut")
    s.up("a", requests=1)
    s.ladder.link_measured(LinkState(1e6, 0.1), gateway="b")  # further away: it is not chosen for its wait
    assert s.send(1, budget_s=5.0).gateway == "a"
    assert s.send(2, budget_s=5.0).gateway == "b"


def test_a_refusal_that_grants_less_than_the_credit_is_obeyed_until_its_pause_is_over_and_answers_widen_it() -> None:
    s = Scene("cut", names=("a",))
    for seq in (1, 2, 3):
        s.send(seq, budget_s=9.0)
    s.reject(RejectCode.BUSY, seq=3, retry_after_s=0.01, credit=0)
    s.now += 0.02
    assert sent_to(s.note(s.ladder.tick(now=s.now))) == [], "two are in flight, and no more was granted"
    assert len(sent_to(s.answer("a", 1))) == 1
    s.submit(4, budget_s=9.0)
    assert s.prepared(4) == []
    assert len(sent_to(s.answer("a", 2))) == 1
    remote = s.ladder.fleet.of("a")
    assert remote.most_requests(now=s.now) < 8 == remote.most_requests(now=s.now + 1.0), "it says nothing for ever"


def test_head_and_transfer_overlap_but_nothing_queues_where_it_cannot_be_taken_back() -> None:
    s = Scene("cut", names=("a",))
    sent = 0
    for seq in range(8):
        s.submit(seq, budget_s=9.0)
        sent += len(sent_to(s.prepared(seq, nbytes=15_000)))
    window = s.ladder.fleet.of("a").window_nbytes
    assert sent == 2, "the one that is travelling, and the next one behind it"
    assert (sent - 1) * 15_000 <= window < sent * 15_000
    assert len(sent_to(s.answer("a", 0))) == 1


def test_the_window_is_open_while_the_link_is_unknown_or_fast() -> None:
    s = Scene("cut", names=("a",))
    for link in (None, LinkState(1e9, 0.001)):
        s.ladder.link_measured(link, gateway="a")
        assert len([s.send(seq + (100 if link else 0), budget_s=9.0) for seq in range(3)]) == 3


def test_of_those_that_wait_the_most_urgent_goes_first_and_else_the_oldest() -> None:
    s = Scene("cut", names=("a",))
    s.up("a", requests=1)
    s.send(1, budget_s=9.0)
    for seq, priority in ((2, 9), (3, 4), (4, 0), (5, 4)):
        s.submit(seq, budget_s=9.0, priority=priority)
        s.prepared(seq)
    order = []
    flying = 1
    for _ in range(4):
        (_, sent) = s.answer("a", flying)
        assert isinstance(sent, Send)
        order.append(flying := sent.seq)
    assert order == [4, 3, 5, 2]


# ---- hedge ----------------------------------------------------------------------------------------------------------


def hedged(budget_s: float = 0.5) -> Scene:
    s = Scene("cut", "edge", hedge=True, names=("a",))
    s.send(budget_s=budget_s)
    assert s.wake() == [Prepare(1, "edge")]
    assert s.ladder.flights[1].phase is Phase.SENT, "nothing is cancelled: the answer may still be first"
    return s


def test_a_hedge_starts_while_twice_the_usual_reserve_is_left() -> None:
    s = hedged()
    assert NOW + 0.5 - s.now >= 3 * COSTS["edge"].edge_s - 1e-9


def test_the_gateways_answer_wins_if_it_is_first() -> None:
    s = hedged()
    assert s.answer("a") == [Finish(1, "cut", 1, (), gateway="a", hedged=True)]


def test_the_devices_answer_wins_if_it_is_first_and_the_gateway_is_told() -> None:
    s = hedged()
    assert s.prepared() == [CancelRemote(1, "a"), Finish(1, "edge", 1, (), hedged=True)]
    assert s.answer("a") == []


def test_a_hedge_that_fails_leaves_the_attempt_alone() -> None:
    s = hedged()
    assert s.ladder.preparation_failed(1, s.ladder.flights[1].generation, "no memory", now=s.now) == []
    (finish,) = s.answer("a")
    assert isinstance(finish, Finish)
    assert (finish.placement, finish.degraded) == ("cut", ("edge: no memory",))


@pytest.mark.parametrize("end", ["rejected", "lost", "silent"])
def test_when_the_attempt_beside_a_hedge_fails_the_hedge_is_the_request(end: str) -> None:
    s = hedged()
    generation = s.ladder.flights[1].generation
    if end == "rejected":
        out = s.reject(RejectCode.BUSY)
    elif end == "lost":
        out = s.note(s.ladder.link_lost(CUT_OFF, gateway="a", now=s.now))
    else:
        s.now = s.ladder.flights[1].attempt_until
        out = s.note(s.ladder.tick(now=s.now))
    assert not any(isinstance(i, Prepare) for i in out), "it runs already"
    assert s.ladder.flights[1].generation == generation
    (*_, finish) = s.prepared()
    assert isinstance(finish, Finish)
    assert (finish.placement, finish.code, finish.hedged) == ("edge", None, True)


def test_a_request_with_time_enough_is_not_hedged_while_it_is_within_its_prediction() -> None:
    s = Scene("cut", "edge", hedge=True, names=("a",))
    s.send(budget_s=5.0)
    s.now += COSTS["cut"].edge_s + 0.01
    assert s.ladder.tick(now=s.now) == []
    assert s.answer("a") == [Finish(1, "cut", 1, (), gateway="a")]


def test_the_gateway_of_a_hedged_request_may_work_for_as_long_as_the_caller_waits() -> None:
    plain, backed = Scene("cut", "edge", names=("a",)), Scene("cut", "edge", hedge=True, names=("a",))
    assert backed.send(budget_s=0.5).budget_s > plain.send(budget_s=0.5).budget_s


# ---- the nouns ------------------------------------------------------------------------------------------------------


def test_a_link_that_was_never_measured_is_nobodys_first_choice() -> None:
    s = Scene("cut", "edge")
    s.ladder.link_measured(None, gateway="a")
    assert s.submit() == [Prepare(1, "cut", "b")]


def test_loads_count_what_is_unanswered_by_gateway() -> None:
    s = Scene("cut", "edge")
    s.send(1, nbytes=300)
    s.send(2, nbytes=500)
    assert Fleet.loads(s.ladder.flights.values()) == {"a": Load(2, 800)}
    assert replace(Prepare(1, "cut", "a"), gateway="") == Prepare(1, "cut")
