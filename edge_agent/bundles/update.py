"""All decisions about an update: events in, instructions out; what must survive a reboot is in the record. Pure.

           Offered            Fetched              Verified            Tried              Switched
    IDLE ---------> FETCHING ---------> VERIFYING ----------> TESTING ---------> SWITCHING ---------> ON_TRIAL
      ^                 |                   |                    |                   |                 |     |
      |<--- Failed -----+<------------------+<-------------------+<------------------+                 |     |
      |<---------------------------- good answers, long enough: proven = current ----------------------+     |
      |                                                                                                      |
    REVERTED <--- Switched --- REVERTING <--- too many bad answers, an unhealthy one, or a crash at each start

Whoever carries out the instructions writes the record down first. Every instruction may be carried out twice: after a
stop at any point `Started` gives the right one again, while `record.current` runs. It changes in two places only: when
an agent on the candidate has started (it then runs on trial), and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from edge_agent.bundles.record import Record, Step, changed

RESTING = (Step.IDLE, Step.REVERTED)


@dataclass(frozen=True, slots=True)
class TrialRules:
    """When an update is proven, and when it has failed."""

    good_answers: int = 20
    least_s: float = 60.0
    most_bad: int = 3  # bad answers are no reason while they are fewer than this,
    bad_share: float = 0.1  # or a smaller share of all
    most_starts: int = 3  # of the process without a confirmation: then it is the bundle that ends it


# ---- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The process has started (again)."""


@dataclass(frozen=True, slots=True)
class Offered:
    bundle: str
    again: bool = False  # an operator wants it, though it was bad
    by_hand: bool = False  # it was put on the shelf here


@dataclass(frozen=True, slots=True)
class Fetched:
    pass


@dataclass(frozen=True, slots=True)
class Verified:
    pass


@dataclass(frozen=True, slots=True)
class Tried:
    pass


@dataclass(frozen=True, slots=True)
class Switched:
    """The agent that serves now runs `bundle`; empty: none serves."""

    bundle: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The step could not be done. `for_good`: the bundle is to blame, and is not taken again."""

    reason: str
    for_good: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """A request ended; `ok` is False where the bundle failed, not where a link or a deadline did."""

    ok: bool


@dataclass(frozen=True, slots=True)
class Health:
    """The known question was answered, rightly or not."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Unusable:
    """These bundles must not run: `for_good` revoked, else damaged on the disk. With the reason of each."""

    bundles: Mapping[str, str]
    for_good: bool


@dataclass(frozen=True, slots=True)
class RollBack:
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Started | Offered | Fetched | Verified | Tried | Switched | Failed | Answered | Health | Unusable | RollBack | Tick
)


# ---- instructions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch:
    bundle: str


@dataclass(frozen=True, slots=True)
class Verify:
    bundle: str


@dataclass(frozen=True, slots=True)
class Try:
    bundle: str


@dataclass(frozen=True, slots=True)
class Switch:
    """Serve with this bundle; where it is empty with the one in the settings, or not at all."""

    bundle: str


@dataclass(frozen=True, slots=True)
class Confirm:
    """It is proven: whatever must not be taken any more because of that may be written down."""

    bundle: str


@dataclass(frozen=True, slots=True)
class Prune:
    """Bundles that the record does not want may go."""


@dataclass(frozen=True, slots=True)
class Say:
    text: str


Instruction = Fetch | Verify | Try | Switch | Confirm | Prune | Say

_ON_THE_WAY: dict[Step, type[Fetch] | type[Verify] | type[Try] | type[Switch]] = {
    Step.FETCHING: Fetch,
    Step.VERIFYING: Verify,
    Step.TESTING: Try,
    Step.SWITCHING: Switch,
}


@dataclass(slots=True)
class _Trial:
    since: float
    good: int = 0
    bad: int = 0
    healthy: bool = False


@dataclass(slots=True)
class Update:
    """One device's updates. `record` is what to write down after every event, before anything is carried out."""

    record: Record
    rules: TrialRules = field(default_factory=TrialRules)
    base: str = ""  # the bundle in the settings: what runs while `record.current` is empty
    _trial: _Trial | None = None

    def handle(self, event: Event, *, now: float) -> list[Instruction]:
        """`now` is monotonic seconds. Events that do not belong to the step (late ones) change nothing."""
        match event:
            case Started():
                return self._started(now)
            case Offered():
                return self._offered(event)
            case Fetched():
                return self._onward(Step.FETCHING, Step.VERIFYING)
            case Verified():
                return self._onward(Step.VERIFYING, Step.TESTING)
            case Tried():
                return self._onward(Step.TESTING, Step.SWITCHING)
            case Switched(bundle):
                return self._switched(bundle, now)
            case Failed(reason, for_good):
                return self._failed(reason, for_good)
            case Unusable(bundles, for_good):
                return self._unusable(bundles, for_good)
            case RollBack(reason):
                return self._roll_back(reason)
            case Answered() | Health() | Tick():
                return self._on_trial(event, now)

    def restored(self) -> Callable[[], None]:
        """Goes back to what is now: for whoever could not write down what an event has changed."""
        record, trial = self.record, self._trial and replace(self._trial)

        def restore() -> None:
            self.record, self._trial = record, trial

        return restore

    def again(self) -> list[Instruction]:
        """What the step is about, once more; nothing at rest and on trial."""
        step, record = self.record.step, self.record
        return [_ON_THE_WAY[step](record.candidate)] if step in _ON_THE_WAY else []

    @property
    def is_resting(self) -> bool:
        return self.record.step in RESTING

    def wake_at(self) -> float | None:
        """When a trial may end by time alone (monotonic seconds)."""
        return None if self._trial is None else self._trial.since + self.rules.least_s

    def trial(self, *, now: float) -> str:
        """How the trial goes, for people; empty without one."""
        if self._trial is None:
            return ""
        trial, rules = self._trial, self.rules
        return (
            f"{trial.good} of {rules.good_answers} good answers, {trial.bad} bad, "
            f"{now - trial.since:.0f} of {rules.least_s:.0f} s"
        )

    # ---- the way there ----------------------------------------------------------------------------------------------

    def _started(self, now: float) -> list[Instruction]:
        record = self.record
        match record.step:
            case Step.IDLE | Step.REVERTED:  # we may have been stopped before its number was remembered
                return [Confirm(record.proven)] if record.proven else []
            case Step.REVERTING:  # what it goes back to is what has just started
                return self._switched(record.current, now)
            case Step.FETCHING:  # a slow link takes many starts
                return [Fetch(record.candidate)]
        starts = record.starts + 1
        if starts > self.rules.most_starts:
            reason = f"this device was stopped {starts - 1} times while the bundle was {record.step}"
            return self._failed(reason, for_good=True) if record.step is not Step.ON_TRIAL else self._revert(reason)
        self.record = changed(record, starts=starts)
        if record.step is Step.ON_TRIAL:
            self._trial = _Trial(now)
            return [Say(f"bundle {record.current[:12]} is still on trial")]
        return [_ON_THE_WAY[record.step](record.candidate)]

    def _offered(self, offered: Offered) -> list[Instruction]:
        record, bundle = self.record, offered.bundle
        free = self.is_resting or (record.step is Step.FETCHING and offered.again)  # what an operator wants goes first
        if not free or bundle == (record.current or self.base):
            return []
        if offered.again:
            record = changed(record, bad=tuple(b for b in record.bad if b.bundle != bundle))
        if record.why_bad(bundle) is not None:
            return []
        self.record = changed(
            record, step=Step.FETCHING, candidate=bundle, by_hand=offered.by_hand, asked=offered.again, starts=0
        )
        how = "was installed here" if offered.by_hand else "is new: fetching what is missing"
        return [Say(f"bundle {bundle[:12]} {how}"), Fetch(bundle)]

    def _onward(self, at: Step, to: Step) -> list[Instruction]:
        if self.record.step is not at:
            return []
        self.record = changed(self.record, step=to, starts=0)
        return [_ON_THE_WAY[to](self.record.candidate)]

    def _switched(self, bundle: str, now: float) -> list[Instruction]:
        record = self.record
        if record.step is Step.SWITCHING and bundle == record.candidate:
            self._trial = _Trial(now)
            self.record = changed(record, step=Step.ON_TRIAL, current=bundle, candidate="", starts=0)
            return [Say(f"bundle {bundle[:12]} serves, on trial")]
        if record.step is Step.REVERTING and bundle == record.current:
            self.record = changed(record, step=Step.REVERTED, starts=0)
            return [Say(record.said), Prune()]
        return []

    def _failed(self, reason: str, for_good: bool) -> list[Instruction]:
        record = self.record
        if record.step is Step.REVERTING:
            return [Say(f"going back failed too: {reason}")]
        if record.step not in _ON_THE_WAY:
            return []
        said = f"bundle {record.candidate[:12]} was not taken: {reason}"
        if for_good:
            record = record.with_bad(record.candidate, reason)
        self.record = changed(record, step=Step.IDLE, candidate="", starts=0, said=said)
        return [Say(said), Prune()] if for_good else [Say(said)]

    # ---- on trial ---------------------------------------------------------------------------------------------------

    def _on_trial(self, event: Answered | Health | Tick, now: float) -> list[Instruction]:
        trial, rules = self._trial, self.rules
        if trial is None:
            return []
        match event:
            case Health(ok=False, reason=reason):
                return self._revert(f"its known answer is wrong: {reason}")
            case Health():
                trial.healthy = True
                trial.good += 1
            case Answered(ok):
                trial.good += ok
                trial.bad += not ok
        if trial.bad >= rules.most_bad and trial.bad >= rules.bad_share * (trial.bad + trial.good):
            return self._revert(f"{trial.bad} of {trial.bad + trial.good} answers failed")
        if trial.good < rules.good_answers or not trial.healthy or now - trial.since < rules.least_s:
            return []
        self._trial = None
        record = self.record
        said = f"bundle {record.current[:12]} is proven after {trial.good} good answers"
        self.record = changed(
            record,
            step=Step.IDLE,
            proven=record.current,
            previous=record.proven,
            back_to=record.current if record.asked else "",
            starts=0,
            said=said,
        )
        return [Say(said), Confirm(record.current), Prune()]

    def _revert(self, reason: str) -> list[Instruction]:
        return self._leave(self.record.current, self.record.proven, reason, for_good=True)

    def _leave(self, bundle: str, to: str, reason: str, *, for_good: bool) -> list[Instruction]:
        """Run `to` instead of the current `bundle`."""
        record = self.record.with_bad(bundle, reason) if for_good else self.record
        if record.step is not Step.ON_TRIAL:
            record = changed(record, back_to=to or record.back_to)
        self._trial = None
        where = f"back to {to[:12]}" if to else "there is no other bundle to go back to"
        said = f"bundle {bundle[:12]} was given up: {reason}; {where}"
        self.record = changed(record, step=Step.REVERTING, current=to, candidate="", starts=0, said=said)
        return [Switch(to)]

    # ---- from outside -----------------------------------------------------------------------------------------------

    def _unusable(self, bundles: Mapping[str, str], for_good: bool) -> list[Instruction]:
        record = self.record
        if for_good:
            for bundle, reason in bundles.items():
                record = record if record.why_bad(bundle) else record.with_bad(bundle, reason)
        kept = [b for b in (record.proven, record.previous) if b and b not in bundles]
        self.record = changed(record, proven=kept[0] if kept else "", previous=kept[1] if len(kept) > 1 else "")
        if record.current in bundles:
            return self._leave(record.current, self.record.proven, bundles[record.current], for_good=for_good)
        if record.candidate in bundles:
            return self._failed(bundles[record.candidate], for_good)
        return []

    def _roll_back(self, reason: str) -> list[Instruction]:
        record = self.record
        if record.step is Step.ON_TRIAL:
            return self._revert(reason)
        if record.step not in (*RESTING, Step.FETCHING) or not record.previous or not record.current:
            return []
        self.record = changed(record, proven=record.previous, previous="")
        return self._leave(record.current, record.previous, reason, for_good=True)
