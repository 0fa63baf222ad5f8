"""A life cycle on a stage: a host made of sets, and a model folder that tests change by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cloud_gateway.models.lifecycle import LifeCycle
from cloud_gateway.models.settings import VersionPolicy
from cloud_gateway.models.states import (
    Event,
    Failed,
    FoundModel,
    Idle,
    Instruction,
    Load,
    LoadAsked,
    Loaded,
    Publish,
    Ref,
    Reply,
    Same,
    Scanned,
    Sighting,
    State,
    Unload,
    UnloadAsked,
    Warmed,
    WarmUp,
    Withdraw,
)

LATEST, ALL = VersionPolicy(), VersionPolicy("all")


class Stage:
    """A life cycle with a host made of sets: carries instructions out, in order, and refuses what no host could do."""

    def __init__(self, *, automatic: bool = True, preserve: bool = True) -> None:
        self.automatic = automatic
        self.life = LifeCycle(automatic=automatic, preserve=preserve)
        self.now = 0.0
        self.todo: list[Instruction] = []
        self.folder: dict[str, dict[int, Sighting]] = {}
        self.policies: dict[str, VersionPolicy] = {}
        self.loaded: set[Ref] = set()
        self.warm: set[Ref] = set()
        self.published: dict[tuple[str, int], list[Ref]] = {}
        self.flying: list[Ref] = []
        self.replies: dict[int, str] = {}
        self.asked = 0
        self.done: list[Instruction] = []
        self.writes = 0

    # ---- the folder -------------------------------------------------------------------------------------------------

    def put(self, version: int, *, name: str = "m", quiet: bool = True) -> None:
        """Write a new content into a version folder."""
        self.writes += 1
        self.folder.setdefault(name, {})[version] = Sighting(f"content-{self.writes}", quiet)

    def remove(self, version: int, *, name: str = "m") -> None:
        self.folder.get(name, {}).pop(version, None)

    def scan(self) -> None:
        found = {n: FoundModel(dict(v), self.policies.get(n, LATEST)) for n, v in self.folder.items()}
        self.tell(Scanned(found))

    # ---- talking to it ----------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        for instruction in self.life.handle(event, now=self.now):
            if isinstance(instruction, Load | WarmUp):
                self.todo.append(instruction)
            else:
                self._carry_out(instruction)
        assert len(self.todo) <= 1, "one thing at a time"
        self.life.validate()

    def load(self, version: int | None = None, *, name: str = "m") -> int:
        self.asked += 1
        self.tell(LoadAsked(name, version, self.asked))
        return self.asked

    def unload(self, version: int | None = None, *, name: str = "m") -> int:
        self.asked += 1
        self.tell(UnloadAsked(name, version, self.asked))
        return self.asked

    def _carry_out(self, prompt: Instruction) -> None:
        self.done.append(prompt)
        match prompt:
            case Publish(ref):
                assert ref in self.warm
                assert ref not in self.published.get((ref.name, ref.version), []), "published twice"
                self.published.setdefault((ref.name, ref.version), []).append(ref)
            case Withdraw(ref):
                self.published[ref.name, ref.version].remove(ref)
            case Unload(ref):
                assert not any(ref in refs for refs in self.published.values()), "unloaded while requests find it"
                assert ref not in self.flying, "unloaded under a request"
                self.loaded.remove(ref)
                self.warm.discard(ref)
            case Reply(ticket, problem):
                assert ticket not in self.replies, "answered twice"
                self.replies[ticket] = problem

    def step(self, *, fail: str = "", same: bool = False) -> None:
        """Carry out what takes its time; it may fail."""
        todo = self.todo.pop(0)
        self.done.append(todo)
        match todo:
            case Load(ref) if same and self.published.get((ref.name, ref.version)):
                self.tell(Same(ref))
            case Load(ref) | WarmUp(ref) if fail:
                self.tell(Failed(ref, fail))
            case Load(ref):
                assert ref not in self.loaded
                self.loaded.add(ref)
                self.tell(Loaded(ref))
            case WarmUp(ref):
                assert ref in self.loaded
                self.warm.add(ref)
                self.tell(Warmed(ref))

    def run(self, *, fail: Iterable[int] = ()) -> None:
        """Carry out everything; the versions in `fail` do not load."""
        for _ in range(200):
            for ref in self.life.draining():
                if ref not in self.flying:
                    self.tell(Idle(ref))
            if not self.todo:
                return
            todo = self.todo[0]
            self.step(fail="broken" if isinstance(todo, Load) and todo.ref.version in fail else "")
        raise AssertionError("never comes to rest")

    def serving(self, name: str = "m") -> list[int]:
        return sorted(version for (n, version), refs in self.published.items() if refs and n == name)

    def state(self, version: int, name: str = "m") -> State:
        return next(s.state for s in self.life.standings() if (s.name, s.version) == (name, version))

    def reason(self, version: int, name: str = "m") -> str:
        return next(s.reason for s in self.life.standings() if (s.name, s.version) == (name, version))


def staged(*versions: int, policy: VersionPolicy = LATEST, fail: Sequence[int] = (), preserve: bool = True) -> Stage:
    stage = Stage(preserve=preserve)
    stage.policies["m"] = policy
    for version in versions:
        stage.put(version)
    stage.scan()
    stage.run(fail=fail)
    return stage


def kinds(instructions: Iterable[Instruction]) -> list[tuple[str, int]]:
    return [(type(i).__name__, i.ref.version) for i in instructions if not isinstance(i, Reply)]
