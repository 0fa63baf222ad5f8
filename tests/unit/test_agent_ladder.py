"""Every rung of the ladder: what fails, which placement comes next, and that each request ends exactly once.

The bundle of most scenes, with the latencies the planner predicts on the scenes' link (1 MB/s, 10 ms):

    cut    20 ms   head on the device, 5 kB cross
    cloud  51 ms   40 kB cross
    edge  100 ms   nothing crosses; of a request's last 150 ms all are reserved for it
"""

from __future__ import annotations

import pytest

from protocol.control.availability import NO_ANSWER, SILENT
from protocol.control.causes import Cause, Why
from protocol.control.flights import CancelRemote, Finish, Instruction, Phase, Prepare, RefusalCode, Send
from protocol.control.ladder import MOST_PENDING, Ladder
from protocol.control.planner import Candidate, Planner
from protocol.errors import InvariantViolation
from protocol.messages import RejectCode
from tests.ladder_scenes import COSTS, LINK, ROWS, SEGMENTS, LadderScene, planner

RESERVE_S = 0.150


class Scene(LadderScene):
    """One gateway."""

    def link_up(self, *held: str, requests: int = 8, nbytes: int = 1_000_000) -> list[Instruction]:
        digests = frozenset(SEGMENTS[h] for h in held or SEGMENTS)
        return self.note(
            self.ladder.link_up(held=digests, credit_requests=requests, credit_nbytes=nbytes, now=self.now)
        )

    def submit(self, seq: int = 1, *, budget_s: float = 1.0) -> list[Instruction]:
        return self.note(self.ladder.submitted(seq, self.now + budget_s, now=self.now))

    def prepared(self, seq: int = 1, *, nbytes: int = 5_000, generation: int | None = None) -> list[Instruction]:
        flight = self.ladder.flights.get(seq)
        if generation is None:
            assert flight is not None
            generation = flight.generation
        edge_s = COSTS[flight.placement].edge_s if flight else 0.0  # as planned: predictions stay as they are
        return self.note(self.ladder.prepared(seq, generation, nbytes, edge_s, now=self.now))

    def head_fails(self, seq: int = 1, reason: str = "the head broke") -> list[Instruction]:
        return self.note(self.ladder.preparation_failed(seq, self.ladder.flights[seq].generation, reason, now=self.now))

    def send(self, seq: int = 1, *, budget_s: float = 1.0, nbytes: int = 5_000) -> Send:
        """A request all the way to the wire."""
        self.submit(seq, budget_s=budget_s)
        (sent,) = self.prepared(seq, nbytes=nbytes)
        assert isinstance(sent, Send)
        return sent

    def answer(self, seq: int = 1, attempt: int = 1) -> list[Instruction]:
        return self.note(self.ladder.answered(seq, attempt, 0.001, now=self.now))

    def reject(
        self, code: RejectCode, seq: int = 1, *, attempt: int = 1, reason: str = "because", retry_after_s: float = 0.0
    ) -> list[Instruction]:
        return self.note(self.ladder.rejected(seq, attempt, code, reason, retry_after_s, now=self.now))

    def cancel(self, seq: int = 1) -> list[Instruction]:
        return self.note(self.ladder.cancelled(seq, now=self.now))

    def lose_link(self, reason: str = "the link is lost") -> list[Instruction]:
        return self.note(self.ladder.link_lost(Why(Cause.LINK, reason), now=self.now))

    def drain(self) -> list[Instruction]:
        return self.note(self.ladder.draining(Why(Cause.GATEWAY_DRAINING, "the gateway drains"), now=self.now))

    def tick(self, after_s: float = 0.0) -> list[Instruction]:
        self.now += after_s
        return self.note(self.ladder.tick(now=self.now))


def scene(*ids: str, up: bool = True) -> Scene:
    """A ladder over these placements, on the scenes' link."""
    made = Scene(Ladder([ROWS[i] for i in ids], planner(*ids)))
    made.ladder.link_measured(LINK)
    if up:
        assert made.link_up() == []
    return made


def finish_of(out: list[Instruction]) -> Finish:
    (finish,) = [i for i in out if isinstance(i, Finish)]
    return finish


# ---- the ordinary way -----------------------------------------------------------------------------------------------


def test_a_request_is_prepared_sent_and_finished_with_its_answer() -> None:
    s = scene("cut", "cloud", "edge")
    assert s.submit(1) == [Prepare(1, "cut")]
    (sent,) = s.prepared(1)
    assert isinstance(sent, Send)
    assert (sent.placement, sent.attempt) == ("cut", 1)
    assert s.answer(1) == [Finish(1, "cut", 1, ())]
    assert s.ladder.flights == {}
    assert s.ladder.next_deadline() is None


def test_edge_only_is_finished_as_soon_as_it_is_prepared() -> None:
    s = scene("edge")
    assert s.submit(1) == [Prepare(1, "edge")]
    assert s.prepared(1, nbytes=0) == [Finish(1, "edge", 0, ())]


def test_the_gateway_is_told_less_than_the_caller_allows_because_upload_and_return_take_time() -> None:
    s = scene("cut", "edge")
    sent = s.send(1, budget_s=0.3)
    assert 0.0 < sent.budget_s <= 0.3 - RESERVE_S - (5_000 / LINK.uplink_bytes_per_s + LINK.rtt_s)


def test_a_request_may_not_be_submitted_twice() -> None:
    s = scene("edge")
    s.submit(1)
    with pytest.raises(InvariantViolation, match="twice"):
        s.submit(1)


def test_too_many_pending_requests_are_refused_busy_and_the_others_are_kept() -> None:
    s = scene("edge")
    for seq in range(MOST_PENDING):
        assert s.submit(seq) == [Prepare(seq, "edge")]
    finish = finish_of(s.submit(MOST_PENDING))
    assert finish.code is RefusalCode.BUSY
    assert len(s.ladder.flights) == MOST_PENDING


# ---- the head fails -------------------------------------------------------------------------------------------------


def test_a_failed_head_goes_full_cloud() -> None:
    s = scene("cut", "cloud", "edge")
    s.submit(1)
    assert s.head_fails(1) == [Prepare(1, "cloud")]
    s.prepared(1, nbytes=40_000)
    assert s.answer(1) == [Finish(1, "cloud", 1, ("cut: the head broke",), causes=(Cause.DEVICE,))]


def test_a_failed_head_goes_edge_only_when_there_is_no_full_cloud() -> None:
    s = scene("cut", "edge")
    s.submit(1)
    assert s.head_fails(1) == [Prepare(1, "edge")]


def test_a_failed_head_goes_edge_only_when_full_cloud_cannot_be_reached() -> None:
    s = scene("cut", "cloud", "edge")
    s.submit(1)
    s.lose_link()
    assert s.head_fails(1) == [Prepare(1, "edge")]


def test_a_request_is_refused_with_every_reason_when_everything_on_the_device_fails() -> None:
    s = scene("cut", "edge")
    s.submit(1)
    s.head_fails(1, "no memory")
    (again,) = s.head_fails(1, "no memory either")
    assert isinstance(again, Finish)
    assert again.code is RefusalCode.NO_PLACEMENT
    assert again.reason == "cut: no memory; edge: no memory either"
    assert again.degraded == ("cut: no memory", "edge: no memory either")


def test_a_head_that_keeps_failing_is_avoided_until_its_breaker_lets_one_trial_pass() -> None:
    s = scene("cut", "cloud", "edge")
    for seq in range(3):
        assert s.submit(seq) == [Prepare(seq, "cut")]
        s.head_fails(seq)
    assert s.submit(3) == [Prepare(3, "cloud")]
    assert "cut" in s.ladder.unavailable(now=s.now)
    s.now += 1.0
    assert s.submit(4, budget_s=5.0) == [Prepare(4, "cut")]
    assert s.submit(5, budget_s=5.0) == [Prepare(5, "cloud")], "one trial at a time"
    s.prepared(4)
    assert s.submit(6, budget_s=5.0) == [Prepare(6, "cut")]


def test_a_detour_says_which_placement_was_wanted_and_why_it_was_not_used() -> None:
    s = scene("cut", "edge")
    s.ladder.disable("cut", "its file is damaged")
    s.submit(1)
    (finish,) = s.prepared(1, nbytes=0)
    assert isinstance(finish, Finish)
    assert finish.placement == "edge"
    assert finish.degraded == ("cut: its file is damaged",)


def test_a_late_preparation_of_an_abandoned_placement_is_ignored() -> None:
    s = scene("cut", "cloud", "edge")
    s.submit(1)
    stale = s.ladder.flights[1].generation
    s.head_fails(1)
    assert s.prepared(1, generation=stale) == []
    assert s.ladder.flights[1].phase is Phase.PREPARING


# ---- the gateway is busy or draining --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [RejectCode.BUSY, RejectCode.DRAINING])
def test_an_overloaded_gateway_means_edge_only_and_never_full_cloud(code: RejectCode) -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1)
    out = s.reject(code, retry_after_s=0.5)
    assert Prepare(1, "edge") in out
    finish = finish_of(s.prepared(1, nbytes=0))
    assert finish.code is None
    assert any(code in why and "because" in why for why in finish.degraded)


@pytest.mark.parametrize("code", [RejectCode.BUSY, RejectCode.DRAINING])
def test_an_overloaded_gateway_gets_no_more_load_until_it_asks_again(code: RejectCode) -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1)
    s.reject(code, retry_after_s=0.5)
    s.now += 0.499
    assert s.submit(2, budget_s=5.0) == [Prepare(2, "edge")]
    s.now += 0.001
    assert s.submit(3, budget_s=5.0) == [Prepare(3, "cut")]
    assert isinstance(s.prepared(3)[0], Send)


def test_an_answer_to_an_earlier_request_does_not_lift_the_pause() -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1)
    s.send(2)
    s.reject(RejectCode.BUSY, 2, retry_after_s=0.5)
    s.now += 0.01
    s.answer(1)
    assert s.submit(3) == [Prepare(3, "edge")]


def test_what_was_ready_when_the_gateway_became_busy_is_held_back_too() -> None:
    s = scene("cut", "cloud")
    s.send(1, budget_s=5.0)
    s.submit(2, budget_s=5.0)
    s.reject(RejectCode.BUSY, 1, retry_after_s=0.5)
    assert s.prepared(2) == []
    assert not any(isinstance(i, Send) for i in s.tick(0.49))
    assert any(isinstance(i, Send) for i in s.tick(0.01))


def test_without_edge_only_a_busy_gateway_is_asked_again_under_the_same_id_when_it_said() -> None:
    s = scene("cut", "cloud")
    s.send(1, budget_s=5.0)
    assert s.reject(RejectCode.BUSY, retry_after_s=0.5) == []
    assert s.wake() == [Send(1, "cut", 2, 4.5 - 1.25 * (5_000 / 1e6 + LINK.rtt_s))]
    assert s.now == pytest.approx(100.5)
    assert finish_of(s.answer(1, attempt=2)).attempts == 2


def test_after_the_pause_one_request_tries_and_the_others_wait_for_it() -> None:
    s = scene("cut", "cloud")
    for seq in (1, 2, 3):
        s.send(seq, budget_s=5.0)
    for seq in (1, 2, 3):
        s.reject(RejectCode.BUSY, seq, retry_after_s=0.5)
    assert [type(i) for i in s.tick(0.5)] == [Send]
    out = s.answer(1, attempt=2)
    assert [type(i) for i in out] == [Finish, Send, Send]


@pytest.mark.parametrize("code", [RejectCode.DEADLINE, RejectCode.INTERNAL, RejectCode.UNKNOWN_SEGMENT])
def test_a_trial_that_is_refused_for_another_reason_shows_that_the_gateway_is_there(code: RejectCode) -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1, budget_s=5.0)
    s.reject(RejectCode.BUSY, 1, retry_after_s=0.1)
    s.now += 0.1
    s.send(2, budget_s=5.0)  # the trial
    s.reject(code, 2)
    assert s.submit(3, budget_s=5.0) in ([Prepare(3, "cut")], [Prepare(3, "cloud")])


# ---- segment unknown ------------------------------------------------------------------------------------------------


def test_an_unknown_segment_goes_full_cloud_if_the_model_is_held() -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1)
    assert Prepare(1, "cloud") in s.reject(RejectCode.UNKNOWN_SEGMENT)
    s.now += 0.02
    (sent,) = s.prepared(1, nbytes=40_000)
    assert isinstance(sent, Send)
    assert (sent.placement, sent.attempt) == ("cloud", 2)
    assert s.answer(1, attempt=2)[0] == finish_of([s.ended[-1]])
    assert s.ended[-1].placement == "cloud"


def test_an_unknown_segment_goes_edge_only_if_the_model_is_not_held() -> None:
    s = scene("cut", "cloud", "edge", up=False)
    s.link_up("cut")
    s.send(1)
    assert Prepare(1, "edge") in s.reject(RejectCode.UNKNOWN_SEGMENT)


def test_a_frame_whose_reference_was_forgotten_is_encoded_anew_at_once_for_the_same_placement() -> None:
    s = scene("cut", "cloud", "edge")
    assert s.send(1).attempt == 1
    assert s.reject(RejectCode.UNKNOWN_REFERENCE) == [Prepare(1, "cut")]
    (sent,) = s.prepared(1)
    assert isinstance(sent, Send)
    assert (sent.placement, sent.attempt) == ("cut", 2)
    assert finish_of(s.answer(1, attempt=2)).degraded == ()
    assert s.send(2).placement == "cut", "nothing was held against it"


def test_a_gateway_that_never_knows_the_reference_is_left_for_another_placement() -> None:
    s = scene("cut", "edge")
    s.send(1)
    s.reject(RejectCode.UNKNOWN_REFERENCE)
    s.prepared(1)
    assert Prepare(1, "edge") in s.reject(RejectCode.UNKNOWN_REFERENCE, attempt=2)


def test_an_unknown_segment_is_not_offered_again_until_the_next_welcome() -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1)
    s.reject(RejectCode.UNKNOWN_SEGMENT)
    assert s.submit(2) == [Prepare(2, "cloud")]
    s.link_up()
    assert s.submit(3) == [Prepare(3, "cut")]


def test_a_segment_that_the_welcome_does_not_list_is_not_used() -> None:
    s = scene("cut", "cloud", "edge", up=False)
    s.link_up("cloud")
    assert s.submit(1) == [Prepare(1, "cloud")]
    assert "does not hold" in s.ladder.unavailable(now=s.now)["cut"]


def test_an_unknown_model_with_nothing_else_to_try_is_refused() -> None:
    s = scene("cloud")
    s.send(1)
    finish = finish_of(s.reject(RejectCode.UNKNOWN_SEGMENT))
    assert finish.code is RefusalCode.NO_PLACEMENT
    assert "UNKNOWN_SEGMENT" in finish.reason


# ---- the gateway cannot do it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [RejectCode.BAD_REQUEST, RejectCode.TOO_LARGE])
def test_a_bad_request_is_refused_in_the_gateways_words_when_the_device_cannot_do_it(code: RejectCode) -> None:
    s = scene("cut", "cloud")
    s.send(1)
    finish = finish_of(s.reject(code, reason="tensor 'x' is too wide"))
    assert finish.code is RefusalCode.BAD_REQUEST
    assert finish.reason == "tensor 'x' is too wide"


@pytest.mark.parametrize("code", [RejectCode.BAD_REQUEST, RejectCode.TOO_LARGE])
def test_a_bad_request_is_done_on_the_device_when_it_can(code: RejectCode) -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1)
    assert Prepare(1, "edge") in s.reject(code)


def test_a_failed_engine_at_the_gateway_means_edge_only() -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1)
    assert Prepare(1, "edge") in s.reject(RejectCode.INTERNAL)


def test_a_failed_engine_at_the_gateway_means_another_placement_when_there_is_no_edge_only() -> None:
    s = scene("cut", "cloud")
    s.send(1)
    assert Prepare(1, "cloud") in s.reject(RejectCode.INTERNAL)
    s.now += 0.02
    s.prepared(1, nbytes=40_000)
    finish = finish_of(s.reject(RejectCode.INTERNAL, attempt=2))
    assert finish.code is RefusalCode.NO_PLACEMENT
    assert finish.attempts == 2


def test_a_tail_that_keeps_failing_is_avoided_for_a_while() -> None:
    s = scene("cut", "cloud", "edge")
    for seq in range(3):
        s.send(seq)
        s.reject(RejectCode.INTERNAL, seq)
    assert s.submit(3) == [Prepare(3, "cloud")]
    s.now += 1.0
    assert s.submit(4) == [Prepare(4, "cut")]


def test_a_rejection_for_want_of_time_goes_edge_only() -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1)
    assert Prepare(1, "edge") in s.reject(RejectCode.DEADLINE)


def test_a_rejection_of_an_earlier_attempt_changes_nothing() -> None:
    s = scene("cut", "cloud")
    s.send(1, budget_s=5.0)
    s.reject(RejectCode.BUSY, retry_after_s=0.1)
    s.tick(0.1)
    assert s.reject(RejectCode.INTERNAL, attempt=1) == []
    assert s.ladder.flights[1].phase is Phase.SENT


def test_a_rejection_of_a_request_that_has_ended_changes_nothing() -> None:
    s = scene("cut", "edge")
    s.send(1)
    s.answer(1)
    assert s.reject(RejectCode.INTERNAL) == []


def test_the_same_request_is_not_sent_again_at_once_whatever_the_gateway_says() -> None:
    s = scene("cut", "cloud")
    s.send(1, budget_s=5.0)
    assert s.reject(RejectCode.DEADLINE, retry_after_s=0.0) == []
    assert s.tick() == []
    s.wake()
    assert s.ladder.flights[1].attempt == 2


# ---- no answer ------------------------------------------------------------------------------------------------------


def test_an_attempt_that_times_out_is_cancelled_and_done_on_the_device() -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1)
    assert s.wake() == [CancelRemote(1), Prepare(1, "edge")]
    assert s.now < 101.0 - RESERVE_S
    finish = finish_of(s.prepared(1, nbytes=0))
    assert finish == Finish(1, "edge", 1, ("the gateway did not answer in time",), causes=(Cause.SILENCE,))


def test_an_attempt_leaves_enough_time_for_edge_only() -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1, budget_s=0.2)
    assert s.wake() == [CancelRemote(1), Prepare(1, "edge")]
    assert s.now == pytest.approx(100.2 - RESERVE_S)


def test_without_edge_only_a_silent_attempt_is_repeated_under_the_same_id_and_not_cancelled() -> None:
    s = scene("cut", "cloud")
    s.send(1, budget_s=5.0)
    (again,) = s.wake()
    assert isinstance(again, Send)
    assert (again.seq, again.placement, again.attempt) == (1, "cut", 2)
    assert finish_of(s.answer(1, attempt=2)).attempts == 2


def test_a_gateway_that_keeps_silent_is_avoided_for_a_while() -> None:
    s = scene("cut", "cloud", "edge")
    for seq in range(3):
        s.send(seq)
    s.tick(0.5)
    assert s.submit(3) == [Prepare(3, "edge")]
    assert s.ladder.unavailable(now=s.now)["cloud"] == "the gateway does not answer"


def test_where_nothing_has_come_since_one_attempt_is_enough_until_something_comes() -> None:
    s = scene("cut", "cloud", "edge")
    remote = s.ladder.fleet.current
    remote.heard(now=s.now)
    s.now += 0.1
    s.send(1)
    assert Prepare(1, "edge") in s.wake()
    assert s.submit(2) == [Prepare(2, "edge")]
    assert s.ladder.unavailable(now=s.now)["cut"] == SILENT.sentence
    s.tick(30.0)
    assert s.submit(3) == [Prepare(3, "edge")], "time alone changes nothing"
    remote.heard(now=s.now)
    assert s.submit(4) == [Prepare(4, "cut")], "no request had to be the trial"


def test_what_waits_for_a_gateway_that_fell_silent_is_done_on_the_device_at_once() -> None:
    s = scene("cut", "edge")
    s.link_up(requests=1)
    s.ladder.fleet.current.heard(now=s.now)
    s.now += 0.1
    s.send(1, budget_s=5.0)
    s.submit(2, budget_s=5.0)
    assert s.prepared(2) == [], "there is credit for one"
    out = s.wake()
    assert Prepare(1, "edge") in out
    assert Prepare(2, "edge") in out


def test_an_attempt_that_times_out_while_others_are_heard_counts_for_the_breaker_alone() -> None:
    s = scene("cut", "cloud", "edge")
    for seq in range(3):
        s.send(seq)
        s.now += 0.01
        s.ladder.fleet.current.heard(now=s.now)
        s.wake()
        assert s.ladder.fleet.current.link_reason is None
    assert s.submit(3) == [Prepare(3, "edge")]
    assert s.ladder.unavailable(now=s.now)["cut"] == NO_ANSWER.sentence


def test_what_is_heard_of_a_lost_gateway_does_not_bring_it_back() -> None:
    s = scene("cut", "edge")
    s.lose_link("the cable is cut")
    s.ladder.fleet.current.heard(now=s.now)
    assert s.submit(1) == [Prepare(1, "edge")]


def _silent_after_one(*ids: str, budget_s: float = 5.0) -> Scene:
    """One attempt is out whose time is up, and nothing has come since it was sent."""
    s = scene(*ids)
    s.ladder.fleet.current.heard(now=s.now)
    s.now += 0.1
    s.send(1, budget_s=budget_s)
    assert s.wake() == [], "what is sent again would only follow it"
    return s


def test_without_edge_only_nothing_is_sent_to_a_silent_gateway_until_something_comes() -> None:
    s = _silent_after_one("cut", "cloud")
    s.submit(2, budget_s=5.0)
    assert s.prepared(2) == []
    assert s.tick(0.5) == []
    s.ladder.fleet.current.heard(now=s.now)
    (sent,) = s.tick()
    assert isinstance(sent, Send)
    assert (sent.seq, sent.attempt) == (2, 1)
    assert finish_of(s.answer(1)).attempts == 1, "it was on its way all the time"


def test_what_stayed_out_is_sent_again_if_it_alone_is_not_answered_once_the_others_are() -> None:
    s = _silent_after_one("cut", "cloud")
    s.now += 0.5
    s.ladder.fleet.current.heard(now=s.now)
    assert s.tick() == [], "the gateway has just come back: it gets its time"
    (again,) = s.wake()
    assert isinstance(again, Send)
    assert (again.seq, again.attempt) == (1, 2)


def test_what_stayed_out_is_sent_at_once_on_the_next_connection() -> None:
    s = _silent_after_one("cut", "cloud")
    assert s.lose_link() == []
    (again,) = s.link_up("cut", "cloud")
    assert isinstance(again, Send)
    assert (again.seq, again.attempt) == (1, 2)


def test_a_refusal_of_what_stayed_out_ends_the_attempt() -> None:
    s = _silent_after_one("cut", "cloud")
    assert s.reject(RejectCode.BUSY, retry_after_s=0.2) == []
    assert s.ladder.flights[1].phase is Phase.READY


def test_what_stayed_out_is_refused_when_its_budget_is_used_up_and_nothing_is_sent_after_it() -> None:
    s = _silent_after_one("cut", "cloud", budget_s=1.0)
    s.submit(2)
    assert s.prepared(2) == []
    s.now += 0.8
    out = s.tick()
    assert finish_of([i for i in out if isinstance(i, Finish)]).code is RefusalCode.DEADLINE
    assert not any(isinstance(i, Send) for i in out)


def test_what_expired_while_the_process_stood_still_takes_no_step_before() -> None:
    """Suspended for a minute: the first request makes the gateway silent, the second is too late for the device."""
    s = scene("cut", "edge")
    s.link_up(requests=1)
    s.ladder.fleet.current.heard(now=s.now)
    s.now += 0.1
    s.send(1)
    s.submit(2)
    assert s.prepared(2) == [], "there is credit for one"
    s.submit(3, budget_s=100.0)
    assert s.prepared(3) == []
    out = s.tick(60.0)
    assert [i.seq for i in out if isinstance(i, Finish)] == [1, 2]
    assert [i.seq for i in out if isinstance(i, Prepare)] == [3]


def test_a_deadline_shorter_than_what_a_gateway_takes_does_not_make_it_silent() -> None:
    s = scene("cut", "cloud")
    s.ladder.fleet.current.heard(now=s.now)
    s.now += 0.1
    s.send(1, budget_s=0.1)
    s.wake()
    assert s.ladder.fleet.current.link_reason is None
    assert isinstance(s.send(2, budget_s=0.1), Send)


def test_a_result_after_stepping_down_still_ends_the_request_once() -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1)
    s.wake()
    generation = s.ladder.flights[1].generation
    finish = finish_of(s.answer(1, attempt=1))
    assert (finish.placement, finish.code) == ("cut", None)
    assert s.prepared(1, nbytes=0, generation=generation) == []
    assert s.ladder.next_deadline() is None


def test_a_result_of_an_earlier_attempt_is_as_good_as_any() -> None:
    s = scene("cut", "cloud")
    s.send(1, budget_s=5.0)
    s.wake()
    assert finish_of(s.answer(1, attempt=1)).code is None
    assert s.answer(1, attempt=2) == []


@pytest.mark.parametrize("attempt", [0, 2, 99])
def test_a_result_of_an_attempt_that_was_never_made_is_ignored(attempt: int) -> None:
    s = scene("cut", "edge")
    s.send(1)
    assert s.answer(1, attempt=attempt) == []
    assert 1 in s.ladder.flights


def test_duplicate_and_unknown_results_are_ignored() -> None:
    s = scene("cut", "edge")
    s.send(1)
    s.answer(1)
    assert s.answer(1) == []
    assert s.answer(77) == []
    assert len(s.ended) == 1


# ---- the link -------------------------------------------------------------------------------------------------------


def test_before_any_welcome_requests_are_done_on_the_device() -> None:
    s = scene("cut", "cloud", "edge", up=False)
    assert s.submit(1) == [Prepare(1, "edge")]
    assert finish_of(s.prepared(1, nbytes=0)).degraded == ("cut: no gateway has answered yet",)


def test_a_lost_link_sends_what_was_in_flight_to_the_device() -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1)
    out = s.lose_link("the cable is cut")
    assert Prepare(1, "edge") in out
    assert finish_of(s.prepared(1, nbytes=0)).degraded == ("the cable is cut",)


def test_a_lost_link_sends_what_was_waiting_to_the_device() -> None:
    s = scene("cut", "cloud", "edge", up=False)
    s.link_up(requests=1)
    s.send(1)
    s.submit(2)
    assert s.prepared(2) == []
    assert Prepare(2, "edge") in s.lose_link()


def test_a_request_in_preparation_when_the_link_is_lost_goes_to_the_device_and_does_not_sit_waiting() -> None:
    s = scene("cut", "cloud", "edge")
    s.submit(1, budget_s=60.0)
    s.lose_link()
    assert s.prepared(1) == [Prepare(1, "edge")]


def test_without_edge_only_a_lost_link_keeps_the_request_and_sends_it_again_under_the_same_id() -> None:
    s = scene("cut", "cloud")
    s.send(1, budget_s=5.0)
    assert s.lose_link() == []
    s.now += 1.0
    assert s.tick() == []
    (again,) = s.link_up()
    assert isinstance(again, Send)
    assert (again.seq, again.placement, again.attempt) == (1, "cut", 2)
    assert finish_of(s.answer(1, attempt=2)).code is None


@pytest.mark.parametrize("bundle", [("cut", "cloud"), ("cloud",), ("cut",)])
def test_without_edge_only_a_request_that_comes_while_the_link_is_down_waits_for_it(bundle: tuple[str, ...]) -> None:
    s = scene(*bundle, up=False)
    (prepare,) = s.submit(1, budget_s=5.0)
    assert isinstance(prepare, Prepare)
    assert s.prepared(1) == []
    assert s.tick(1.0) == []
    (sent,) = s.link_up()
    assert isinstance(sent, Send)
    assert sent.attempt == 1
    assert finish_of(s.answer(1)).code is None


def test_nothing_is_sent_while_the_link_is_down() -> None:
    s = scene("cut", "cloud")
    s.lose_link()
    for seq in range(4):
        s.submit(seq)
        assert s.prepared(seq) == []
    assert s.tick(0.5) == []


def test_a_request_waits_for_the_link_only_as_long_as_edge_only_still_fits() -> None:
    s = scene("cut", "cloud", "edge", up=False)
    s.link_up(requests=1)
    s.send(1, budget_s=5.0)
    s.submit(2, budget_s=0.2)
    assert s.prepared(2) == []
    assert s.wake() == [Prepare(2, "edge")]
    # Sending later than that would be in vain: the answer could not be back before edge-only has to start.
    assert 100.0 < s.now <= 100.2 - RESERVE_S


def test_a_draining_gateway_still_answers_what_it_holds_and_gets_nothing_new() -> None:
    s = scene("cut", "cloud", "edge", up=False)
    s.link_up(requests=1)
    s.send(1)
    s.submit(2)
    s.prepared(2)
    assert s.drain() == [Prepare(2, "edge")]
    assert s.submit(3) == [Prepare(3, "edge")]
    assert finish_of(s.answer(1)).placement == "cut"


def test_while_the_gateway_drains_a_request_without_edge_only_waits_for_the_next_welcome() -> None:
    s = scene("cut", "cloud")
    s.drain()
    s.submit(1, budget_s=5.0)
    assert s.prepared(1) == []
    assert [type(i) for i in s.link_up()] == [Send]


def test_a_send_that_could_not_be_carried_out_is_repeated_as_the_same_attempt() -> None:
    s = scene("cut", "cloud")
    s.send(1, budget_s=5.0)
    s.ladder.unsent(1, now=s.now)
    s.ladder.validate()
    assert s.tick() == []
    (again,) = s.wake()
    assert isinstance(again, Send)
    assert again.attempt == 1


def test_an_attempt_that_never_left_is_not_mistaken_for_the_one_that_did() -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1, budget_s=5.0)
    s.ladder.unsent(1, now=s.now)
    s.lose_link()
    s.link_up("cloud")
    assert s.head_fails(1) == [Prepare(1, "cloud")]
    s.now += 0.02
    (sent,) = s.prepared(1, nbytes=40_000)
    assert isinstance(sent, Send)
    assert (sent.placement, sent.attempt) == ("cloud", 1)
    assert finish_of(s.answer(1)).placement == "cloud"


# ---- the deadline ---------------------------------------------------------------------------------------------------


def test_a_request_that_is_still_prepared_at_its_deadline_is_refused() -> None:
    s = scene("edge")
    s.submit(1, budget_s=0.5)
    assert s.tick(0.499) == []
    (finish,) = s.tick(0.001)
    assert isinstance(finish, Finish)
    assert finish.code is RefusalCode.DEADLINE
    assert "device was at work" in finish.reason
    assert s.ladder.flights == {}


def test_a_request_that_is_still_at_the_gateway_at_its_deadline_is_cancelled_and_refused() -> None:
    s = scene("cloud")
    s.send(1, budget_s=0.2)
    out = s.tick(0.2)
    assert out[0] == CancelRemote(1)
    assert finish_of(out).code is RefusalCode.DEADLINE


def test_a_request_that_waits_for_the_link_until_its_deadline_is_refused() -> None:
    s = scene("cloud", up=False)
    s.submit(1, budget_s=0.5)
    s.prepared(1)
    (finish,) = s.wake()
    assert s.now == pytest.approx(100.5)
    assert isinstance(finish, Finish)
    assert finish.code is RefusalCode.DEADLINE


def test_preparation_that_ends_after_the_refusal_is_ignored() -> None:
    s = scene("edge")
    s.submit(1, budget_s=0.5)
    s.tick(0.5)
    assert s.prepared(1, nbytes=0, generation=1) == []


def test_a_budget_that_is_already_used_up_is_refused_at_the_next_tick() -> None:
    s = scene("cut", "cloud", "edge")
    s.submit(1, budget_s=-1.0)
    assert finish_of(s.tick()).code is RefusalCode.DEADLINE


def test_closing_refuses_everything_that_is_pending() -> None:
    s = scene("cut", "cloud", "edge")
    s.send(1)
    s.submit(2)
    out = s.note(s.ladder.close())
    assert {(i.seq, i.code) for i in out if isinstance(i, Finish)} == {(1, RefusalCode.CLOSED), (2, RefusalCode.CLOSED)}
    assert s.ladder.flights == {}


# ---- credit ---------------------------------------------------------------------------------------------------------


def test_no_more_requests_are_in_flight_than_the_credit_allows() -> None:
    s = scene("cut", "cloud", up=False)
    s.link_up(requests=2)
    s.send(1)
    s.send(2)
    s.submit(3)
    assert s.prepared(3) == []
    out = s.answer(1)
    assert [(type(i), i.seq) for i in out] == [(Finish, 1), (Send, 3)]


def test_no_more_bytes_are_in_flight_than_the_credit_allows() -> None:
    s = scene("cut", "cloud", up=False)
    s.link_up(nbytes=10_000)
    s.send(1, nbytes=6_000)
    s.submit(2)
    assert s.prepared(2, nbytes=4_001) == []
    assert [type(i) for i in s.answer(1)] == [Finish, Send]


def test_credit_is_used_to_the_last_byte() -> None:
    s = scene("cut", "cloud", up=False)
    s.link_up(nbytes=10_000)
    s.send(1, nbytes=6_000)
    assert s.send(2, nbytes=4_000).attempt == 1


def test_what_waits_for_credit_goes_out_oldest_first() -> None:
    s = scene("cut", "cloud", up=False)
    s.link_up(requests=1)
    s.send(1)
    for seq in (2, 3):
        s.submit(seq)
        s.prepared(seq)
    assert [i.seq for i in s.answer(1)] == [1, 2]
    assert [i.seq for i in s.answer(2)] == [2, 3]


def test_a_request_larger_than_the_whole_credit_goes_alone() -> None:
    s = scene("cut", "cloud", up=False)
    s.link_up(nbytes=1_000)
    s.send(1, nbytes=900)
    s.submit(2)
    assert s.prepared(2, nbytes=5_000) == []
    assert [type(i) for i in s.answer(1)] == [Finish, Send]
    s.submit(3)
    assert s.prepared(3, nbytes=1) == []


def test_no_credit_means_no_requests_at_all() -> None:
    s = scene("cut", "cloud", up=False)
    s.link_up(requests=0)
    s.submit(1)
    assert s.prepared(1) == []
    assert [type(i) for i in s.link_up(requests=1)] == [Send]


def test_a_request_that_stepped_down_gives_its_credit_back() -> None:
    s = scene("cut", "cloud", "edge", up=False)
    s.link_up(requests=1)
    s.send(1, budget_s=0.3)
    s.submit(2, budget_s=5.0)
    s.prepared(2)
    out = s.wake()
    assert CancelRemote(1) in out
    assert any(isinstance(i, Send) and i.seq == 2 for i in out)


# ---- disabled placements --------------------------------------------------------------------------------------------


def test_a_disabled_placement_is_never_used() -> None:
    s = scene("cut", "cloud", "edge")
    s.ladder.disable("cut", "its head cannot be loaded")
    assert s.submit(1) == [Prepare(1, "cloud")]
    s.link_up()
    assert s.submit(2) == [Prepare(2, "cloud")]
    assert s.ladder.unavailable(now=s.now) == {"cut": "its head cannot be loaded"}


def test_a_disabled_full_cloud_is_no_way_out_for_a_failed_head_nor_for_a_lost_link() -> None:
    s = scene("cut", "cloud", "edge")
    s.ladder.disable("cloud", "not wanted")
    s.submit(1)
    assert s.head_fails(1) == [Prepare(1, "edge")]
    alone = scene("cloud", up=False)
    alone.ladder.disable("cloud", "not wanted")
    assert finish_of(alone.submit(1)).code is RefusalCode.NO_PLACEMENT


def test_a_disabled_edge_only_is_no_way_out() -> None:
    s = scene("cut", "cloud", "edge")
    s.ladder.disable("edge", "its file is damaged")
    s.send(1, budget_s=5.0)
    assert s.lose_link() == []
    assert [type(i) for i in s.link_up()] == [Send]


def test_a_bundle_whose_every_placement_is_disabled_refuses_with_the_reasons() -> None:
    s = scene("cut", "edge")
    s.ladder.disable("cut", "no head")
    s.ladder.disable("edge", "no engine")
    finish = finish_of(s.submit(1))
    assert finish.code is RefusalCode.NO_PLACEMENT
    assert finish.reason == "no head; no engine"


# ---- waking up ------------------------------------------------------------------------------------------------------


def test_an_idle_ladder_wants_no_alarm() -> None:
    assert scene("cut", "edge").ladder.next_deadline() is None


def test_no_alarm_comes_later_than_the_callers_deadline() -> None:
    s = scene("cut", "cloud", "edge")
    s.submit(1, budget_s=0.5)
    assert s.ladder.next_deadline() == pytest.approx(100.5)
    s.prepared(1)
    at = s.ladder.next_deadline()
    assert at is not None
    assert at < 100.5


# ---- uploads are not repeated in vain -------------------------------------------------------------------------------


def test_a_gateway_that_says_twice_that_it_is_too_late_is_not_asked_a_third_time() -> None:
    s = scene("cut")
    s.send(1, budget_s=5.0)
    assert s.reject(RejectCode.DEADLINE, reason="90 ms do not fit 80 ms") == []
    (again,) = s.tick(0.1)
    assert isinstance(again, Send)
    finish = finish_of(s.reject(RejectCode.DEADLINE, attempt=2, reason="91 ms do not fit 79 ms"))
    assert finish.code is RefusalCode.DEADLINE
    assert len(finish.degraded) == 1, "two reasons of one kind are one reason"


def test_the_gateway_may_work_as_long_as_the_caller_waits_unless_the_device_takes_over_before() -> None:
    travel_s = 1.25 * (5_000 / LINK.uplink_bytes_per_s + LINK.rtt_s)
    alone, backed = scene("cut", "cloud"), scene("cut", "cloud", "edge")
    whole, part = alone.send(1, budget_s=30.0), backed.send(1, budget_s=30.0)
    assert whole.budget_s == pytest.approx(30.0 - travel_s)
    assert part.budget_s == pytest.approx(backed.ladder.flights[1].attempt_until - backed.now - travel_s)
    assert part.budget_s < 1.0


def test_an_attempt_may_take_longer_while_others_are_being_uploaded() -> None:
    s = scene("cut")
    s.send(1, budget_s=60.0, nbytes=5_000)
    alone_s = s.ladder.flights[1].attempt_until - s.now
    s.send(2, budget_s=60.0, nbytes=5_000)
    behind_s = s.ladder.flights[2].attempt_until - s.now
    assert behind_s == pytest.approx(alone_s + 5_000 / LINK.uplink_bytes_per_s)


def test_a_gateway_cannot_hold_an_agent_off_for_days() -> None:
    s = scene("cut", "edge")
    s.send(1, budget_s=60.0)
    s.reject(RejectCode.BUSY, retry_after_s=1e9)
    s.now += 31.0
    assert s.submit(2, budget_s=60.0) == [Prepare(2, "cut")]


def test_an_answer_that_comes_after_the_deadline_is_a_refusal() -> None:
    s = scene("edge")
    s.submit(1, budget_s=0.1)
    s.now += 0.2
    assert finish_of(s.prepared(1, nbytes=0)).code is RefusalCode.DEADLINE


def test_an_agent_whose_gateway_never_answered_says_so_and_one_without_a_gateway_does_not() -> None:
    for expects, reasons in ((True, 1), (False, 0)):
        ladder = Ladder([ROWS["edge"]], Planner([Candidate("edge", COSTS["edge"])]), expects_gateway=expects)
        ladder.submitted(1, 101.0, now=100.0)
        (finish,) = ladder.prepared(1, 1, 0, 0.01, now=100.01)
        assert isinstance(finish, Finish)
        assert len(finish.degraded) == reasons


# ---- callers that go away -------------------------------------------------------------------------------------------


def test_a_request_whose_caller_goes_away_ends_there_and_the_gateway_is_told() -> None:
    s = scene("cut", "edge")
    s.send(1)
    out = s.cancel(1)
    assert out[0] == CancelRemote(1)
    assert finish_of(out).code is RefusalCode.CANCELLED
    assert s.answer(1) == [], "it came too late for anybody"
    assert s.cancel(1) == []


def test_a_head_that_nobody_waits_for_any_more_is_not_sent() -> None:
    s = scene("cut", "edge")
    assert s.submit(1) == [Prepare(1, "cut")]
    assert [type(i) for i in s.cancel(1)] == [Finish]
    assert s.prepared(1, generation=1) == []


def test_who_goes_away_makes_room_for_who_waits_for_credit() -> None:
    s = scene("cut")
    s.link_up(requests=1)
    s.send(1)
    s.submit(2)
    assert s.prepared(2) == []
    sent = s.cancel(1)[-1]
    assert isinstance(sent, Send)
    assert sent.seq == 2


def test_who_goes_away_while_his_request_waits_to_be_sent_again_leaves_no_work_at_the_gateway() -> None:
    s = scene("cut")
    s.send(1, budget_s=5.0)
    s.lose_link()
    s.link_up()
    s.lose_link()
    assert s.cancel(1)[0] == CancelRemote(1)


def test_a_trial_that_is_withdrawn_lets_another_follow_at_once() -> None:
    s = scene("cut")
    breaker = s.ladder.device.breakers["cut"]
    for _ in range(3):
        breaker.failed(Why(Cause.DEVICE, "the head broke"), now=s.now)
    s.now += 5.0
    assert s.submit(1) == [Prepare(1, "cut")]
    assert breaker.refuses(now=s.now), "the first is the trial"
    s.cancel(1)
    assert not breaker.refuses(now=s.now)


def test_an_answer_says_what_was_planned_unless_it_took_a_detour() -> None:
    s = scene("cut", "edge")
    s.send(1)
    planned = finish_of(s.answer(1))
    assert planned.predicted_s == pytest.approx(0.020, rel=0.05)
    s.submit(2)
    s.head_fails(2)
    assert finish_of(s.prepared(2, nbytes=0)).predicted_s is None
