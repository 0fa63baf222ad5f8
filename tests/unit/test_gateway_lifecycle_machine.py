"""The life cycle in any order of events: ten thousand sequences, and a state machine that looks for worse."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloud_gateway.models.lifecycle import LONGEST_PAUSE_S
from cloud_gateway.models.settings import VersionPolicy
from cloud_gateway.models.states import (
    Idle,
    Sighting,
    Tick,
)
from tests.lifecycle_stage import ALL, LATEST, Stage


class Rehearsal(Stage):
    """A stage that anything may happen on. It watches what must never happen."""

    def __init__(self, *, automatic: bool = True) -> None:
        super().__init__(automatic=automatic)
        self.told_to_go: set[str] = set()
        self.scanned: dict[str, frozenset[int]] = {}
        self.heeded: dict[str, frozenset[int]] = {}  # what the policy names of that which was seen

    def begin_request(self, version: int, name: str) -> None:
        if refs := self.published.get((name, version)):
            self.flying.append(refs[-1])

    def end_request(self, which: int) -> None:
        if self.flying:
            ref = self.flying.pop(which % len(self.flying))
            assert ref in self.warm, "a request ends where it began"

    def idle(self) -> None:
        for ref in self.life.draining():
            if ref not in self.flying:
                self.tell(Idle(ref))

    def check(self, served: set[str]) -> None:
        """`served`: the models that served before what was just done."""
        for name in served:
            assert self.serving(name) or self._excused(name), f"{name} served and now nothing does"

    def act(self, choice: int, version: int, name: str, flag: bool) -> None:
        served = {n for n in ("a", "b") if self.serving(n)}
        self.now += 0.5
        match choice:
            case 0:
                self.put(version, name=name, quiet=flag or not self.automatic)
            case 1:
                self.remove(version, name=name)
            case 2:
                for versions in self.folder.values():
                    for number, sighting in versions.items():
                        versions[number] = Sighting(sighting.fingerprint, quiet=True)
            case 3 | 4:
                self.scan()
            case 5:
                self.load(version if flag else None, name=name)
            case 6:
                self.unload(version if flag else None, name=name)
            case 7:
                self.begin_request(version, name)
            case 8:
                self.end_request(version)
            case 9:
                self.policies[name] = (LATEST, VersionPolicy("latest", 2), ALL, VersionPolicy("specific", 1, (1, 2)))[
                    version
                ]
            case 10:
                self.idle()
                self.tell(Tick())
            case _ if self.todo:
                self.step(fail="" if version else "broken", same=flag)
        self.check(served)

    def _excused(self, name: str) -> bool:
        """A model may cease to serve only when that was asked for: unloaded, removed, or named by no policy."""
        return name in self.told_to_go or not self.heeded.get(name)

    def scan(self) -> None:
        seen = {name: self.policies.get(name, LATEST).choose(versions) for name, versions in self.folder.items()}
        self.scanned = seen
        self.heeded = seen if self.automatic else self.heeded
        super().scan()

    def load(self, version: int | None = None, *, name: str = "m") -> int:
        self.told_to_go -= {name} if version is None else set()
        if not self.automatic and version is None:
            self.heeded[name] = self.scanned.get(name, frozenset())
        return super().load(version, name=name)

    def unload(self, version: int | None = None, *, name: str = "m") -> int:
        self.told_to_go.add(name)
        return super().unload(version, name=name)

    def finish(self) -> None:
        """Whatever happened, it comes to rest, and every request has been answered."""
        self.flying.clear()
        for versions in self.folder.values():
            for number, sighting in versions.items():
                versions[number] = Sighting(sighting.fingerprint, quiet=True)
        self.scan()
        if not self.automatic:
            for name in [n for n, versions in self.folder.items() if versions]:
                self.load(name=name)
        self.run()
        self.now += LONGEST_PAUSE_S
        self.tell(Tick())
        self.run()
        assert set(self.replies) == set(range(1, self.asked + 1)), "every request is answered exactly once"
        alive = {refs[-1] for refs in self.published.values() if refs}
        assert self.loaded == alive, "nothing is held that does not serve"
        assert all(len(refs) <= 1 for refs in self.published.values())


class AnyOrder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stage = Rehearsal()

    @rule(choice=st.integers(0, 15), version=st.integers(0, 3), name=st.sampled_from("ab"), flag=st.booleans())
    def act(self, choice: int, version: int, name: str, flag: bool) -> None:
        self.stage.act(choice, version, name, flag)

    @invariant()
    def holds(self) -> None:
        self.stage.life.validate()

    def teardown(self) -> None:
        self.stage.finish()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("automatic", [True, False])
def test_ten_thousand_sequences_of_operations_leave_no_model_without_a_version_and_no_request_without_an_answer(
    automatic: bool,
) -> None:
    """Each sequence is replayed by its number: Rehearsal with random.Random(number)."""
    sequences = 100_000 if os.environ.get("ISTHMUS_EXAMPLES") == "explore" else 5_000
    for number in range(sequences):
        rng = random.Random(number)
        stage = Rehearsal(automatic=automatic)
        try:
            for _ in range(rng.randrange(6, 26)):
                stage.act(rng.randrange(16), rng.randrange(4), rng.choice("ab"), rng.random() < 0.5)
            stage.finish()
        except AssertionError as error:
            raise AssertionError(f"sequence {number}: {error}") from error
