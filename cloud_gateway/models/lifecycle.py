"""Which versions are served: events in, instructions out. Pure; `now` is monotonic seconds.

After every event each model is brought nearer to what is wanted:

1. A version is *wanted* if its model's policy chooses it among those in the folder, or if somebody asked for it, unless
   it was unloaded on request. Under `latest`, the next older versions are wanted as well in the place of those that
   failed, so that a gateway that restarts beside a broken new version still serves the one before.
2. What is wanted and not there is begun, newest first: Load, WarmUp, Publish.
3. What is not wanted is retired, but never before its replacement is AVAILABLE (unless `preserve` is off, for machines
   that cannot hold both): every wanted version that is not there yet is stood in for by an older one. A removed
   version is kept only as the last of its model. An explicit unload asks for the gap and gets it at once.
4. A retired version is withdrawn, finishes what it began, and is unloaded when it is idle.

A build that failed is not tried again until its folder changes (then after a growing pause) or somebody asks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from cloud_gateway.models.states import (
    ENDED,
    Event,
    Failed,
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
    Standing,
    State,
    Step,
    Tick,
    Unload,
    UnloadAsked,
    Warmed,
    WarmUp,
    Withdraw,
)
from cloud_gateway.models.wishes import RISING, Build, Model
from protocol.errors import InvariantViolation

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Ask:
    """A request that waits for its end: versions to come, or builds to go."""

    ticket: int
    name: str
    coming: frozenset[int] = frozenset()
    going: frozenset[Ref] = frozenset()


class LifeCycle:
    """All models of one gateway. `automatic`: changes of the folder are followed, and policies without being asked."""

    def __init__(self, *, automatic: bool, preserve: bool = True) -> None:
        self._automatic = automatic
        self._preserve = preserve
        self._models: dict[str, Model] = {}
        self._asks: list[_Ask] = []
        self._numbers = itertools.count(1)

    def handle(self, event: Event, *, now: float) -> list[Instruction]:
        """Decide what follows from `event`. Instructions are to be carried out in their order and at once, but for Load
        and WarmUp, which take their time: of those no more than one is ever outstanding.
        """
        out: list[Instruction] = []
        if isinstance(event, Scanned):
            self._scanned(event)
        elif isinstance(event, LoadAsked):
            self._load_asked(event, out)
        elif isinstance(event, UnloadAsked):
            self._unload_asked(event, out)
        elif not isinstance(event, Tick):
            self._outcome(event, out, now)
        for model in self._models.values():
            self._wish(model, out, now)
            self._retire(model, out, now)
        for model in self._models.values():
            self._start(model, out, now)
        self._reply(out)
        for name in [m.name for m in self._models.values() if not m.builds and m.found is None]:
            del self._models[name]
        return out

    def next_wake(self, *, now: float) -> float | None:
        """When a Tick is due: a version that failed may be tried again."""
        waiting = [(m, b.ref.version) for m in self._models.values() for b in m.builds if b.state is State.NEW]
        times = [m.failures[v][1] for m, v in waiting if v in m.failures]
        return min((time for time in times if time > now), default=None)

    def draining(self) -> list[Ref]:
        """The builds of which Idle is to be told."""
        return [b.ref for m in self._models.values() for b in m.builds if b.state is State.DRAINING]

    def is_settled(self) -> bool:
        """Whether every model serves something, or nothing of it is on its way up.

        Newer versions on their way do not unsettle a model that serves.
        """
        return all(m.serving() or not m.is_rising() for m in self._models.values())

    def standings(self) -> list[Standing]:
        """One for every version that lies in the repository or is held, by name and number."""
        return [
            model.standing(version) for _, model in sorted(self._models.items()) for version in sorted(model.versions())
        ]

    def validate(self) -> None:
        """Raises InvariantViolation if something holds that never may."""
        for model in self._models.values():
            for version in model.serving():
                if len(model.of(version, State.AVAILABLE)) > 1:
                    raise InvariantViolation(f"two builds of {model.name} {version} are AVAILABLE")
            if any(b.state is State.UNLOADED for b in model.builds):
                raise InvariantViolation(f"{model.name} keeps a build that is UNLOADED")
        for ask in self._asks:
            asked = self._models.get(ask.name)
            going = asked is not None and any(b.ref in ask.going for b in asked.builds)
            if asked is None or not (going or (ask.coming and asked.is_rising())):
                raise InvariantViolation(f"request {ask.ticket} waits for nothing")

    # ---- events -----------------------------------------------------------------------------------------------------

    def _scanned(self, event: Scanned) -> None:
        for name, found in event.models.items():
            self._models.setdefault(name, Model(name, follows=self._automatic)).found = found
        for name, model in self._models.items():
            model.found = event.models.get(name)
            gone = model.unloaded.keys() - (model.found.versions.keys() if model.found else set())
            for version in gone:
                del model.unloaded[version]
            if self._automatic:
                self._heed(model)

    def _heed(self, model: Model) -> None:
        """Let decisions follow what was seen."""
        model.heeded = model.found
        versions = model.found.versions if model.found else {}
        model.known = {v for v in versions if v in model.known or versions[v].quiet}
        model.banned &= versions.keys()
        model.pinned &= versions.keys()
        for version in set(model.failures) - versions.keys():
            del model.failures[version]

    def _load_asked(self, event: LoadAsked, out: list[Instruction]) -> None:
        model = self._models.get(event.name)
        if model is None or model.found is None:
            out.append(Reply(event.ticket, f"there is no model {event.name!r} in the repository"))
            return
        held = ", ".join(map(str, sorted(model.found.versions))) or "none"
        if event.version is not None and event.version not in model.found.versions:
            fact = f"model {event.name!r} has no version {event.version} in the repository; it has {held}"
            out.append(Reply(event.ticket, fact))
            return
        self._heed(model)
        if event.version is None:
            model.follows = True
            model.banned.clear()
        else:
            model.pinned.add(event.version)
            model.banned.discard(event.version)
        coming = model.hoped() if event.version is None else frozenset({event.version})
        if not coming:
            fact = f"the policy of model {event.name!r} ({model.found.policy}) wants none of its versions ({held})"
            out.append(Reply(event.ticket, fact))
        for version in coming:
            model.failures.pop(version, None)
            model.drop(version, State.ERROR)
        if coming:
            self._asks.append(_Ask(event.ticket, event.name, coming=coming))

    def _unload_asked(self, event: UnloadAsked, out: list[Instruction]) -> None:
        model = self._models.get(event.name)
        if model is None:
            out.append(Reply(event.ticket, f"there is no model {event.name!r} here"))
            return
        if event.version is not None and event.version not in model.versions():
            out.append(Reply(event.ticket, f"there is no version {event.version} of model {event.name!r} here"))
            return
        if event.version is None:
            model.follows = False
            model.pinned.clear()
            model.banned.clear()
        else:
            model.pinned.discard(event.version)
            model.banned.add(event.version)
        builds = model.builds if event.version is None else model.of(event.version)
        going = frozenset(b.ref for b in builds if b.state not in ENDED)
        self._asks.append(_Ask(event.ticket, event.name, going=going))

    def _outcome(self, event: Loaded | Same | Warmed | Failed | Idle, out: list[Instruction], now: float) -> None:
        model = self._models.get(event.ref.name)
        build = next((b for b in model.builds if b.ref == event.ref), None) if model else None
        if model is None or build is None:
            raise InvariantViolation(f"{type(event).__name__} of a build that is not held: {event.ref}")
        version = event.ref.version
        if isinstance(event, Loaded):
            build.step(Step.LOADED, now)
            if model.is_useful(build):
                out.append(WarmUp(build.ref))
            else:
                self._end(model, build, Step.DROPPED, out, now)
        elif isinstance(event, Warmed):
            if not model.is_useful(build):
                self._end(model, build, Step.DROPPED, out, now)
                return
            build.step(Step.WARMED, now)
            out.append(Publish(build.ref))
            model.failures.pop(version, None)
            model.unloaded.pop(version, None)
            model.drop(version, State.ERROR)
        elif isinstance(event, Failed):
            if build.state is State.WARMING:
                out.append(Unload(build.ref))
            build.step(Step.FAILED, now, event.reason)
            times = model.failures.get(version, (0, 0.0))[0] + 1
            model.failures[version] = times, now + min(FIRST_PAUSE_S * 2 ** min(times - 1, 16), LONGEST_PAUSE_S)
        elif isinstance(event, Same):
            build.step(Step.SAME, now)
            model.builds.remove(build)
            for other in (model.of(version, State.AVAILABLE) or model.of(version, State.DRAINING))[-1:]:
                other.fingerprint = build.fingerprint
        else:
            self._end(model, build, Step.IDLE, out, now)

    # ---- towards what is wanted -------------------------------------------------------------------------------------

    def _wish(self, model: Model, out: list[Instruction], now: float) -> None:
        """Give every wanted version a build, or take a draining one back; forget failures that concern nobody."""
        wanted, versions = model.wanted(), model.heeded.versions if model.heeded else {}
        for build in [b for b in model.builds if b.state is State.ERROR]:
            version = build.ref.version
            asked_for = version in model.pinned or (model.follows and version not in model.banned)
            if version not in versions or not asked_for or (versions[version].quiet and not model.holds(build)):
                model.builds.remove(build)
        for version in sorted(wanted, reverse=True):
            if not versions[version].quiet or model.is_current(version, *RISING, State.AVAILABLE, State.ERROR):
                continue
            back = [b for b in model.of(version, State.DRAINING) if model.holds(b)]
            if back:
                back[-1].step(Step.WANTED, now)
                out.append(Publish(back[-1].ref))
                model.builds.remove(back[-1])
                model.builds.append(back[-1])  # the newest is the one that serves
                continue
            ref = Ref(model.name, version, next(self._numbers))
            model.builds.append(Build(ref, versions[version].fingerprint, now))

    def _retire(self, model: Model, out: list[Instruction], now: float) -> None:
        keep = model.kept(preserve=self._preserve)
        for build in [b for b in model.builds if b.state is State.AVAILABLE]:
            newest = model.of(build.ref.version, State.AVAILABLE)[-1]
            if build is not newest or build.ref.version not in keep:
                build.step(Step.RETIRED, now)
                out.append(Withdraw(build.ref))

    def _start(self, model: Model, out: list[Instruction], now: float) -> None:
        wanted = model.wanted()
        for build in [b for b in model.builds if b.state is State.NEW]:
            version = build.ref.version
            times, not_before = model.failures.get(version, (0, now))
            if version not in wanted or not model.holds(build):
                build.step(Step.DROPPED, now)
                model.builds.remove(build)
            elif now < not_before:
                build.reason = f"its folder changed, but {times} loads failed: a pause before the next"
            elif not self._preserve and any(b.state is State.DRAINING for b in model.builds):
                build.reason = "waits until what it replaces is unloaded"
            elif any(b.state in (State.LOADING, State.WARMING) for m in self._models.values() for b in m.builds):
                build.reason = "waits for its turn"
            else:
                build.step(Step.START, now)
                out.append(Load(build.ref))

    def _end(self, model: Model, build: Build, step: Step, out: list[Instruction], now: float) -> None:
        build.step(step, now)
        out.append(Unload(build.ref))
        model.builds.remove(build)
        model.unloaded[build.ref.version] = now

    # ---- answers ----------------------------------------------------------------------------------------------------

    def _reply(self, out: list[Instruction]) -> None:
        for ask in list(self._asks):
            problems = self._not_coming(ask) if ask.coming else self._not_going(ask)
            if problems is not None:
                out.append(Reply(ask.ticket, "; ".join(problems)))
                self._asks.remove(ask)

    def _not_going(self, ask: _Ask) -> list[str] | None:
        """Why versions that were to go stay; None while some have yet to go."""
        model = self._models[ask.name]
        there = [b for b in model.builds if b.ref in ask.going and b.state not in ENDED]
        back = sorted({b.ref.version for b in there} & model.hoped())
        if len(back) < len({b.ref.version for b in there}):
            return None
        return [f"version {version} was asked for again before it was unloaded" for version in back]

    def _not_coming(self, ask: _Ask) -> list[str] | None:
        """Why versions that were to come did not; None while it is not known of all."""
        model, problems = self._models[ask.name], []
        for version in sorted(ask.coming):
            failed = [b for b in model.of(version, State.ERROR) if model.holds(b)]
            if version not in model.hoped():
                problems.append(f"version {version} was unloaded or removed before it was available")
            elif failed:
                problems.append(f"version {version}: {failed[-1].reason}")
            elif not model.is_current(version, State.AVAILABLE):
                return None
        return problems
