"""The ladder under whatever order of events: nothing lost, nothing ended twice, no wake-up promise unkept."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.control.causes import Cause, Why
from protocol.control.flights import CancelRemote, Finish, Instruction, Phase, Prepare, Row, Send
from protocol.control.ladder import Ladder
from protocol.control.planner import Candidate, Planner
from protocol.latency import LinkState, PlacementCost
from protocol.messages import PlacementKind, RejectCode

ROWS = (
    Row("cut-1", PlacementKind.CUT, b"1" * 32),
    Row("cut-2", PlacementKind.CUT, b"2" * 32),
    Row("cloud", PlacementKind.FULL_CLOUD, b"m" * 32),
    Row("edge", PlacementKind.EDGE_ONLY, None),
)
COSTS = {
    "cut-1": PlacementCost(edge_s=0.004, up_nbytes=5_000, tail_s=0.001, down_nbytes=40),
    "cut-2": PlacementCost(edge_s=0.010, up_nbytes=1_000, tail_s=0.001, down_nbytes=40),
    "cloud": PlacementCost(up_nbytes=40_000, tail_s=0.002, down_nbytes=40),
    "edge": PlacementCost(edge_s=0.060),
}
KINDS = {row.id: row.kind for row in ROWS}
BUNDLES = [
    ("cut-1", "cut-2", "cloud", "edge"),
    ("cut-1", "cloud"),
    ("cut-1", "edge"),
    ("cloud", "edge"),
    ("cloud",),
    ("cut-2",),
    ("edge",),
]
NO_HEAD = ["", "", "cut-2", "cloud", "edge"]  # which head cannot be loaded
LINKS = [None, LinkState(1e6, 0.01), LinkState(2e4, 0.2), LinkState(1e8, 0.001, queue_s=0.05)]
FLEETS = [("",), ("a", "b"), ("a", "b", "c")]
picks = st.integers(0, 1000)


@dataclass
class Caller:
    """What the outside knows of one request."""

    deadline: float
    attempts: dict[int, str] = field(default_factory=dict)  # attempt -> placement
    gateways: dict[int, str] = field(default_factory=dict)  # attempt -> gateway
    ended: int = 0


@dataclass
class Gateway:
    """What the outside knows of one gateway."""

    up: bool = False
    credit: tuple[int, int] = (0, 0)
    pause_until: float = 0.0


class LadderMachine(RuleBasedStateMachine):
    """Plays shell, link and gateway. `carry_out` checks every instruction against what the outside knows."""

    @initialize(
        bundle=st.sampled_from(BUNDLES),
        names=st.sampled_from(FLEETS),
        link=st.sampled_from(LINKS),
        up=st.booleans(),
        broken=st.sampled_from(NO_HEAD),
        hedge=st.booleans(),
        seed=st.integers(0, 100),
    )
    def begin(
        self,
        bundle: tuple[str, ...],
        names: tuple[str, ...],
        link: LinkState | None,
        up: bool,
        broken: str,
        hedge: bool,
        seed: int,
    ) -> None:
        self.now = 1000.0
        rows = [row for row in ROWS if row.id in bundle]
        self.ladder = Ladder(
            rows,
            Planner([Candidate(row.id, COSTS[row.id]) for row in rows]),
            gateways=names,
            chance=random.Random(seed),
            hedge=hedge,
        )
        self.names = names
        self.gateways = {name: Gateway() for name in names}
        for name in names:
            self.ladder.link_measured(link, gateway=name)
        self.placements = bundle
        self.callers: dict[int, Caller] = {}
        self.jobs: list[tuple[int, int, str]] = []  # (seq, generation, placement) on the device, some of them stale
        self.wire: list[tuple[int, int]] = []  # (seq, attempt) that a gateway may still answer, some of them twice
        self.sent_at = 0.0
        self.disabled: set[str] = set()
        if broken in bundle[1:]:
            self.disabled.add(broken)
            self.ladder.disable(broken, "its file is damaged")
        if up:
            for pick in range(len(names)):
                self.welcome_with_everything(pick)

    def picked(self, pick: int) -> str:
        return self.names[pick % len(self.names)]

    # ---- what the shell does ----------------------------------------------------------------------------------------

    def carry_out(self, out: list[Instruction], *, answers: int | None = None) -> None:
        """`answers` is the request that these instructions may finish with an answer, and must."""
        for instruction in out:
            caller = self.callers[instruction.seq]
            assert not caller.ended, f"{instruction} comes after the request has ended"
            match instruction:
                case Prepare(seq, placement, gateway):
                    assert gateway in self.ladder.fleet.remotes or gateway == ""
                    assert placement in self.placements
                    assert placement not in self.disabled, "a disabled placement is never used"
                    self.jobs.append((seq, self.ladder.flights[seq].generation, placement))
                case Send(seq, placement, attempt, budget_s, gateway):
                    assert self.gateways[gateway].up, "nothing is sent while the link is down"
                    assert self.now >= self.gateways[gateway].pause_until, "the gateway asked for a pause"
                    assert KINDS[placement] is not PlacementKind.EDGE_ONLY
                    assert attempt == len(caller.attempts) + 1, "attempts are numbered without gaps"
                    assert 0.0 <= budget_s <= caller.deadline - self.now
                    caller.attempts[attempt], caller.gateways[attempt] = placement, gateway
                    self.wire.append((seq, attempt))
                    self.sent_at = self.now
                case CancelRemote(_, gateway):
                    assert gateway in caller.gateways.values(), "only what was sent there is cancelled"
                case Finish(seq, placement, attempts, degraded, code, reason, gateway, causes=causes):
                    caller.ended += 1
                    assert bool(degraded) == bool(causes), "every sentence has a cause"
                    assert attempts == len(caller.attempts)
                    assert (code is None) == (seq == answers), "answered if and only if there is an answer"
                    assert code is None or reason, "a refusal has a reason"
                    assert code is not None or placement in self.placements
                    assert gateway == "" or gateway in caller.gateways.values()
        for name in {i.gateway for i in out if isinstance(i, Send)}:
            flying, (requests, nbytes) = self.ladder.in_flight(name), self.gateways[name].credit
            assert len(flying) <= requests
            assert len(flying) == 1 or sum(f.nbytes for f in flying) <= nbytes
        if answers is not None:
            assert self.callers[answers].ended == 1

    def tick(self) -> None:
        self.carry_out(self.ladder.tick(now=self.now))
        for seq, caller in self.callers.items():
            assert caller.ended or self.now < caller.deadline, f"request {seq} outlived its deadline"

    # ---- events -----------------------------------------------------------------------------------------------------

    @rule(budget_s=st.sampled_from([-0.1, 0.0, 0.02, 0.1, 0.4, 1.0, 8.0]), priority=st.sampled_from([4, 4, 0]))
    def submit(self, budget_s: float, priority: int = 4) -> None:
        seq = len(self.callers) + 1
        self.callers[seq] = Caller(self.now + budget_s)
        self.carry_out(self.ladder.submitted(seq, self.now + budget_s, priority=priority, now=self.now))

    @rule(budget_s=st.sampled_from([0.4, 1.0, 8.0]), nbytes=st.sampled_from([100, 5_000]))
    def submit_and_prepare(self, budget_s: float, nbytes: int) -> None:
        self.submit(budget_s)
        if self.jobs and self.jobs[-1][0] == len(self.callers):
            self.job_is_done(len(self.jobs) - 1, nbytes, 1.0)

    @precondition(lambda self: self.jobs)
    @rule(pick=picks, nbytes=st.sampled_from([0, 100, 5_000, 50_000]), slow=st.sampled_from([0.5, 1.0, 3.0]))
    def job_is_done(self, pick: int, nbytes: int, slow: float) -> None:
        seq, generation, placement = self.jobs.pop(pick % len(self.jobs))
        flight = self.ladder.flights.get(seq)
        hedge = flight is not None and flight.hedge == generation
        current = hedge or (flight is not None and (flight.phase, flight.generation) == (Phase.PREPARING, generation))
        local = KINDS[placement] is PlacementKind.EDGE_ONLY
        out = self.ladder.prepared(seq, generation, nbytes, COSTS[placement].edge_s * slow, now=self.now)
        in_time = seq in self.callers and self.now < self.callers[seq].deadline
        self.carry_out(out, answers=seq if current and local and in_time else None)

    @precondition(lambda self: self.ladder.flights and len(self.callers) % 3 == 0)
    @rule(pick=picks)
    def caller_goes_away(self, pick: int) -> None:
        seq = sorted(self.ladder.flights)[pick % len(self.ladder.flights)]
        out = self.ladder.cancelled(seq, now=self.now)
        told = {i.gateway for i in out if isinstance(i, CancelRemote) and i.seq == seq}
        assert told == set(self.callers[seq].gateways.values()), "whoever may be at work on it is told"
        self.carry_out(out)
        assert self.callers[seq].ended == 1
        assert self.ladder.cancelled(seq, now=self.now) == []

    @precondition(lambda self: self.jobs)
    @rule(pick=picks)
    def job_fails(self, pick: int) -> None:
        seq, generation, _ = self.jobs.pop(pick % len(self.jobs))
        self.carry_out(self.ladder.preparation_failed(seq, generation, "the head broke", now=self.now))

    @precondition(lambda self: self.wire)
    @rule(pick=picks, again=st.booleans())
    def gateway_answers(self, pick: int, again: bool) -> None:
        at = pick % len(self.wire)
        seq, attempt = self.wire[at] if again else self.wire.pop(at)
        caller = self.callers[seq]
        known = attempt in caller.attempts and not caller.ended
        gateway = caller.gateways.get(attempt, self.names[0])
        out = self.ladder.answered(seq, attempt, 0.002, gateway=gateway, now=self.now)
        if known:
            finish = next(i for i in out if isinstance(i, Finish))
            assert finish.placement == caller.attempts[attempt], "the answer says where it was made"
            assert finish.gateway == gateway or finish.code is not None
        self.carry_out(out, answers=seq if known and self.now < caller.deadline else None)

    @precondition(lambda self: self.wire)
    @rule(pick=picks, left=st.sampled_from([0.0, 0.5, 0.9]))
    def part_of_it_arrives(self, pick: int, left: float) -> None:
        seq, attempt = self.wire[pick % len(self.wire)]
        gateway = self.callers[seq].gateways.get(attempt, self.names[0])
        flight = self.ladder.flights.get(seq)
        left_nbytes = int(left * flight.left_nbytes) if flight is not None else 0
        self.carry_out(self.ladder.there(seq, attempt, left_nbytes, gateway=gateway, now=self.now))
        assert self.ladder.budget_s(seq, left_nbytes, now=self.now) <= max(self.callers[seq].deadline - self.now, 0.0)

    @precondition(lambda self: self.wire)
    @rule(
        pick=picks,
        code=st.sampled_from(list(RejectCode)),
        retry_after_s=st.sampled_from([0.0, 0.05, 2.0]),
        credit=st.sampled_from([None, 0, 3]),
    )
    def gateway_rejects(self, pick: int, code: RejectCode, retry_after_s: float, credit: int | None) -> None:
        seq, attempt = self.wire.pop(pick % len(self.wire))
        flight = self.ladder.flights.get(seq)
        current = flight is not None and flight.phase is Phase.SENT and flight.attempt == attempt
        gateway = self.callers[seq].gateways.get(attempt, self.names[0])
        if current and code in (RejectCode.BUSY, RejectCode.DRAINING):
            known = self.gateways[gateway]
            known.pause_until = max(known.pause_until, self.now + retry_after_s)
        out = self.ladder.rejected(
            seq, attempt, code, "because", retry_after_s, credit=credit, gateway=gateway, now=self.now
        )
        if not current:
            assert out == []
        self.carry_out(out)

    @precondition(lambda self: not all(g.up for g in self.gateways.values()) or len(self.callers) % 4 == 0)
    @rule(
        pick=picks,
        held=st.sets(st.sampled_from(ROWS[:3])),
        requests=st.sampled_from([0, 1, 2, 8]),
        nbytes=st.sampled_from([0, 6_000, 10**6]),
        chunk_nbytes=st.sampled_from([0, 131_072]),
    )
    def welcome(self, pick: int, held: set[Row], requests: int, nbytes: int, chunk_nbytes: int = 131_072) -> None:
        name = self.picked(pick)
        if self.gateways[name].up:
            self.loses_link(pick)  # the shell greets anew only on a new connection
        self.gateways[name] = Gateway(True, (requests, nbytes))
        digests = frozenset(row.segment for row in held if row.segment is not None)
        out = self.ladder.link_up(
            held=digests,
            credit_requests=requests,
            credit_nbytes=nbytes,
            chunk_nbytes=chunk_nbytes,
            gateway=name,
            now=self.now,
        )
        self.carry_out(out)

    @precondition(lambda self: not all(g.up for g in self.gateways.values()) or len(self.callers) % 4 == 0)
    @rule(pick=picks)
    def welcome_with_everything(self, pick: int) -> None:
        self.welcome(pick, set(ROWS[:3]), 8, 10**6)

    @precondition(lambda self: len(self.callers) % 4 == 0)  # else there is little to see but lost links
    @rule(pick=picks)
    def loses_link(self, pick: int) -> None:
        name = self.picked(pick)
        self.gateways[name].up = False
        out = self.ladder.link_lost(Why(Cause.LINK, "the link is lost"), gateway=name, now=self.now)
        self.carry_out(out)
        assert not self.ladder.in_flight(name)

    @precondition(lambda self: len(self.names) > 1 and len(self.callers) % 4 == 2)
    @rule(pick=picks)
    def is_gone_and_another_one_is_found(self, pick: int) -> None:
        name = self.picked(pick)
        self.gateways[name].up = False
        self.carry_out(self.ladder.gateway_gone(name, "it is no longer named", now=self.now))
        self.ladder.gateway_found(name, rank=pick % 2)

    @precondition(lambda self: self.ladder.in_flight())
    @rule(pick=picks, code=st.sampled_from(list(RejectCode)), retry_after_s=st.sampled_from([0.0, 0.05, 2.0]))
    def gateway_rejects_what_flies(self, pick: int, code: RejectCode, retry_after_s: float) -> None:
        flying = self.ladder.in_flight()
        flight = flying[pick % len(flying)]
        self.gateway_rejects(self.wire.index((flight.seq, flight.attempt)), code, retry_after_s, None)

    @precondition(lambda self: len(self.callers) % 4 == 1)
    @rule(pick=picks)
    def gateway_drains(self, pick: int) -> None:
        name = self.picked(pick)
        self.gateways[name].up = False
        self.carry_out(
            self.ladder.draining(Why(Cause.GATEWAY_DRAINING, "the gateway drains"), gateway=name, now=self.now)
        )

    @precondition(lambda self: self.wire)
    @rule()
    def last_send_cannot_be_carried_out(self) -> None:
        seq, attempt = self.wire[-1]
        flight = self.ladder.flights.get(seq)
        if flight is None or (flight.phase, flight.attempt) != (Phase.SENT, attempt) or self.now > self.sent_at:
            return  # the shell says so at once, or never
        self.wire.pop()
        del self.callers[seq].attempts[attempt], self.callers[seq].gateways[attempt]
        self.ladder.unsent(seq, now=self.now)

    @rule(pick=picks, link=st.sampled_from(LINKS))
    def link_is_measured(self, pick: int, link: LinkState | None) -> None:
        self.ladder.link_measured(link, gateway=self.picked(pick))

    @rule(pick=picks)
    def something_is_heard(self, pick: int) -> None:
        self.ladder.fleet.of(self.picked(pick)).heard(now=self.now)

    @rule(after_s=st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.05, 0.3, 1.0, 12.0]))
    def time_passes(self, after_s: float) -> None:
        self.now += after_s
        self.tick()

    @precondition(lambda self: self.callers)
    @rule()
    def alarm_rings(self) -> None:
        """At the moment asked for, a few ticks settle everything: the next promise lies in the future."""
        at = self.ladder.next_deadline()
        assert (at is None) == all(c.ended for c in self.callers.values()), "whatever is pending has an alarm"
        if at is None:
            return
        self.now = max(self.now, at)
        for _ in range(4):
            self.tick()
            at = self.ladder.next_deadline()
            if at is None or at > self.now:
                return
        raise AssertionError(f"the ladder asks for {at} at {self.now} again and again")

    # ---- always -----------------------------------------------------------------------------------------------------

    @invariant()
    def promises_hold(self) -> None:
        if not hasattr(self, "ladder"):
            return
        self.ladder.validate()
        pending = {seq for seq, caller in self.callers.items() if not caller.ended}
        assert set(self.ladder.flights) == pending, "pending outside is pending inside"
        earliest = min((self.callers[seq].deadline for seq in pending), default=None)
        at = self.ladder.next_deadline()
        assert (at is None) == (earliest is None)
        assert at is None or earliest is None or at <= earliest

    def teardown(self) -> None:
        if not hasattr(self, "ladder"):
            return
        if len(self.callers) % 2:
            self.now = max((c.deadline for c in self.callers.values()), default=self.now)
            self.tick()
        else:
            self.carry_out(self.ladder.close())
        assert all(caller.ended == 1 for caller in self.callers.values())
        assert self.ladder.next_deadline() is None


TestLadder = LadderMachine.TestCase
TestLadder.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
