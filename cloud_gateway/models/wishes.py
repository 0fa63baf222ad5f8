"""What is wanted of one model, what of it is held, and which of that goes on serving. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloud_gateway.models.states import FoundModel, Ref, Standing, State, Step, following

RISING = (State.NEW, State.LOADING, State.WARMING)
_RANK = (State.AVAILABLE, State.WARMING, State.LOADING, State.NEW, State.ERROR, State.DRAINING)


@dataclass(slots=True)
class Build:
    ref: Ref
    fingerprint: str
    since: float
    state: State = State.NEW
    reason: str = ""

    def step(self, step: Step, now: float, reason: str = "") -> None:
        self.state, self.reason, self.since = following(self.state, step), reason, now


@dataclass(slots=True)
class Model:
    """What is known about one model. `found` is what was seen last, `heeded` what decisions are made on."""

    name: str
    follows: bool  # its policy is followed; otherwise only what was asked for by number is served
    found: FoundModel | None = None
    heeded: FoundModel | None = None
    pinned: set[int] = field(default_factory=set)  # asked for by number
    banned: set[int] = field(default_factory=set)  # unloaded by number
    known: set[int] = field(default_factory=set)  # were quiet once: what is still being copied is not chosen
    unloaded: dict[int, float] = field(default_factory=dict)  # served once, and when that ended
    failures: dict[int, tuple[int, float]] = field(default_factory=dict)  # how often in a row; not again before
    builds: list[Build] = field(default_factory=list)  # oldest first; none that is UNLOADED

    def chosen(self, *, among: set[int]) -> frozenset[int]:
        """What the policy and the requests name, whether or not it can be had."""
        if self.heeded is None:
            return frozenset()
        among = among & self.heeded.versions.keys() - self.banned
        policy = self.heeded.policy.choose(among) if self.follows else frozenset()
        return policy | (self.pinned & among)

    def hoped(self) -> frozenset[int]:
        """The same with those that are still being copied."""
        return self.chosen(among=set(self.heeded.versions)) if self.heeded else frozenset()

    def wanted(self) -> frozenset[int]:
        chosen = self.chosen(among=self.known)
        if self.heeded is None or not self.follows or self.heeded.policy.kind != "latest":
            return chosen
        failed = {version for version in self.known if self.is_current(version, State.ERROR)}
        return chosen | self.chosen(among=self.known - failed)

    def versions(self) -> set[int]:
        """Those that lie in the repository or are held."""
        return {build.ref.version for build in self.builds} | set(self.found.versions if self.found else ())

    def fingerprint(self, version: int) -> str | None:
        sighting = self.heeded.versions.get(version) if self.heeded else None
        return sighting.fingerprint if sighting is not None else None

    def of(self, version: int, *states: State) -> list[Build]:
        return [b for b in self.builds if b.ref.version == version and (not states or b.state in states)]

    def is_current(self, version: int, *states: State) -> bool:
        """Whether a build in one of these states has what lies in the folder now."""
        return any(self.holds(build) for build in self.of(version, *states))

    def holds(self, build: Build) -> bool:
        return build.fingerprint == self.fingerprint(build.ref.version)

    def serving(self) -> set[int]:
        return {b.ref.version for b in self.builds if b.state is State.AVAILABLE}

    def is_rising(self) -> bool:
        """Whether something is on its way up, or still being copied."""
        versions = self.heeded.versions if self.heeded else {}
        return any(b.state in RISING for b in self.builds) or any(not versions[v].quiet for v in self.hoped())

    def is_useful(self, build: Build) -> bool:
        """Whether what was begun is still worth finishing: wanted, or better than nothing."""
        version = build.ref.version
        spare = self.follows and not self.serving() and version not in self.banned
        return self.holds(build) and (version in self.wanted() or spare)

    def kept(self, *, preserve: bool) -> set[int]:
        """The versions whose serving builds go on serving."""
        serving, wanted, hoped = self.serving(), self.wanted(), self.hoped()
        if not preserve:
            return {v for v in serving & wanted if self.is_current(v, State.AVAILABLE) or not self.of(v, State.NEW)}
        kept = set(serving & wanted)
        if not hoped:
            return kept
        there = self.heeded.versions.keys() if self.heeded else set()
        spare = sorted((serving - wanted - self.banned) & there)
        lacking = max(0, len(hoped) - len(kept))
        kept.update(spare[len(spare) - min(lacking, len(spare)) :])
        return kept or set(sorted(serving - there - self.banned)[-1:])

    def drop(self, version: int, state: State) -> None:
        self.builds = [b for b in self.builds if b.ref.version != version or b.state is not state]

    def standing(self, version: int) -> Standing:
        builds = sorted(self.of(version), key=lambda b: _RANK.index(b.state))
        if not builds:
            since = self.unloaded.get(version)
            state = State.NEW if since is None else State.UNLOADED
            return Standing(self.name, version, state, self._why_not(version), since or 0.0, None)
        best = builds[0]
        failed = [b.reason for b in builds[1:] if b.state is State.ERROR]
        reason = best.reason
        if best.state is State.AVAILABLE and failed:
            reason = f"what its folder holds now cannot be served: {failed[-1]}"
        elif best.state is State.AVAILABLE and version not in self.hoped():
            reason = f"stands in for version {', '.join(map(str, sorted(self.hoped() - self.serving())))}"
        return Standing(self.name, version, best.state, reason, best.since, best.ref)

    def _why_not(self, version: int) -> str:
        if version in self.banned:
            return "unloaded on request"
        if not self.follows:
            return "not asked for"
        if self.heeded is not None and version in self.heeded.versions and version not in self.known:
            return "still being copied"
        policy = self.heeded.policy if self.heeded else None
        return f"not wanted by the policy ({policy})" if policy else ""
