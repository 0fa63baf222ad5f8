"""Engines that load, fail and rest at any time: the best that works serves, and none is forgotten."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloud_gateway.models.preference import (
    LONGEST_REST_S,
    Begin,
    Broke,
    Drop,
    Event,
    Load,
    Loaded,
    NotLoaded,
    Preference,
    RungState,
    Tick,
    Use,
)

KINDS = ("tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")
kinds = st.sampled_from(KINDS)


class PreferenceMachine(RuleBasedStateMachine):
    """A shell that carries out what it is told, and knows what is loaded, what is being loaded, and what serves."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.room = Preference(KINDS)
        self.begun = False
        self.loading: list[str] = []
        self.loaded: set[str] = set()
        self.gone: set[str] = set()
        self.serves: str | None = None

    def tell(self, event: Event) -> None:
        for instruction in self.room.handle(event, now=self.now):
            if isinstance(instruction, Load):
                assert instruction.kind not in self.loading, "it is being loaded already"
                assert instruction.kind not in self.loaded | self.gone
                self.loading.append(instruction.kind)
            elif isinstance(instruction, Use):
                assert instruction.kind in self.loaded, "what serves is loaded"
                assert instruction.kind != self.serves, "it serves already"
                self.serves = instruction.kind
            else:
                assert isinstance(instruction, Drop)
                assert instruction.kind != self.serves, "what serves is not given back"
                self.loaded.discard(instruction.kind)

    @rule(absent=st.sets(kinds, max_size=2))
    @precondition(lambda self: not self.begun)
    def begin(self, absent: set[str]) -> None:
        self.begun = True
        self.gone = set(absent)
        self.room = Preference(KINDS, dict.fromkeys(absent, "not here"))
        self.tell(Begin())
        assert self.loading == [kind for kind in KINDS if kind not in absent]

    @rule()
    @precondition(lambda self: self.loading)
    def it_loads(self) -> None:
        kind = self.loading.pop(0)
        self.loaded.add(kind)
        self.tell(Loaded(kind))

    @rule(for_good=st.booleans())
    @precondition(lambda self: self.loading)
    def it_does_not_load(self, for_good: bool) -> None:
        kind = self.loading.pop(0)
        if for_good:
            self.gone.add(kind)
        self.tell(NotLoaded(kind, "no room", for_good))

    @rule(kind=kinds)
    @precondition(lambda self: self.begun)
    def a_batch_fails(self, kind: str) -> None:
        """Also one that was begun before the engine was given up."""
        before, was_ready = self.serves, kind in self.loaded
        self.tell(Broke(kind, "lost"))
        if was_ready and len(self.loaded) == 1 and kind in self.loaded:
            assert self.serves == before, "the last one that works is never given up"

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 60.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.tell(Tick())

    @rule()
    @precondition(lambda self: self.room.next_wake() is not None)
    def the_next_wake_brings_something(self) -> None:
        wake = self.room.next_wake()
        assert wake is not None
        before = len(self.loading)
        self.now = max(self.now, wake)
        self.tell(Tick())
        assert len(self.loading) > before

    @invariant()
    def the_best_that_is_loaded_serves(self) -> None:
        self.room.validate()
        best = next((kind for kind in KINDS if kind in self.loaded), None)
        assert self.room.in_use == best
        if best is not None:
            assert self.serves == best

    @invariant()
    def none_is_forgotten(self) -> None:
        if not self.begun:
            return
        for kind, rung in self.room.rungs.items():
            states = {
                RungState.LOADING: kind in self.loading,
                RungState.READY: kind in self.loaded,
                RungState.RESTING: self.now <= rung.rests_until <= self.now + LONGEST_REST_S,
                RungState.ABSENT: kind in self.gone,
            }
            assert states.get(rung.state), f"{kind} is {rung.state}"

    @invariant()
    def a_failed_batch_goes_to_another_that_is_loaded_and_never_round_in_circles(self) -> None:
        for kind in KINDS:
            seen = [kind]
            while (after := self.room.after(seen[-1])) is not None:
                assert after in self.loaded
                assert after not in seen
                seen.append(after)


TestPreference = PreferenceMachine.TestCase
