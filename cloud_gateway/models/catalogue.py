"""What this gateway holds and what requests may find: versions become lanes, and are published in one step.

    load -> warm_up -> publish ... withdraw -> (nothing in flight) -> unload        driven by the life cycle

Doors look up `segments` (by digest) and `find` (by name) without a lock: both read tables that are replaced whole.
Two versions with the same tail, to be run alike, share a lane, so that their requests batch together; the lane goes
with its last user. A model whose settings were edited therefore gets a lane of its own beside the old one.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cloud_gateway.desk import Desk
from cloud_gateway.models.asking import answered
from cloud_gateway.models.joining import Alike, JoinedLane, alike, joined_lane
from cloud_gateway.models.lanes import MAX_ROWS, WARM_UP_BUDGET_S, Lane, LaneRules, Segment
from cloud_gateway.models.plain import describe
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.served import ServedVersion, Tail
from cloud_gateway.models.settings import ModelSettings, Wanted, WarmUpSample
from cloud_gateway.scheduling.cost_curve import QUANTILE
from cloud_gateway.scheduling.lane_queue import AGEING_S
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.work import Item
from protocol.bundle import BoundaryTensor
from protocol.engines.base import Engine
from protocol.engines.ort import OrtEngine
from protocol.errors import EngineError, InvariantViolation
from protocol.messages import PlacementKind
from protocol.tensors import Array, TensorSpec

MakeEngine = Callable[[Tail, Wanted], Engine]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where a model's own settings say nothing."""

    threads: int = 1  # intra-op threads of each engine
    max_rows: int = MAX_ROWS  # bound of a batch; the measured knee may be lower
    find_knee: bool = True
    instances: int = 1
    delay_s: float = 0.0
    ageing_s: float = AGEING_S
    margin: float = 1.0
    quantile: float = QUANTILE
    warm_up_s: float = WARM_UP_BUDGET_S
    merge: bool = True  # cuts with a common suffix into one lane, where it pays


@dataclass(frozen=True, slots=True)
class Published:
    """A version that requests find: `whole` is its full-cloud segment, None if it has only cuts."""

    version: ServedVersion
    whole: Segment | None
    segments: Mapping[bytes, Segment]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(b.spec for b in self.whole.boundary) if self.whole else ()

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.whole.lane.engine.outputs if self.whole else ()


def ort_engine(tail: Tail, wanted: Wanted) -> Engine:
    return OrtEngine(tail.graph(), label=tail.label, threads=wanted.threads)


_Wishes = tuple[object, ...]


def _wishes(key: str, settings: ModelSettings) -> _Wishes:
    """The graphs and how they are run: versions that differ in it do not share a lane."""
    return (
        key, settings.max_batch_size, settings.instances, settings.threads, settings.half, settings.efficiency_delay_s,
        settings.profile_sizes, settings.max_queue_requests, settings.engines, settings.gpu_memory_nbytes,
    )  # fmt: skip


class _Loaded(NamedTuple):
    entry: Published
    lanes: tuple[Lane, ...]  # one for each tail: two tails may share one


class Catalogue:
    """The life cycle's host. Its methods are called from one thread; the tables are read by all."""

    def __init__(
        self,
        desk: Desk,
        defaults: Defaults,
        *,
        orphaned: Callable[[list[Item]], None],
        engine: MakeEngine = ort_engine,
        settings_of: Callable[[ServedVersion], ModelSettings] = lambda version: version.settings,
        warmed: Callable[[Lane], None] = lambda lane: None,
        closed: Callable[[Lane], None] = lambda lane: None,
        forgotten: Callable[[Scope], None] = lambda scope: None,
        told: Callable[[str, str], None] = lambda event, text: None,
    ) -> None:
        self.segments: Mapping[bytes, Segment] = {}
        self.models: frozenset[bytes] = frozenset()  # digests of the models that are served whole
        self._names: Mapping[str, Mapping[int, Published]] = {}
        self._desk = desk
        self.defaults = defaults  # for lanes to come
        self._orphaned = orphaned  # told of requests that still waited in a lane that was closed
        self._engine = engine
        self._settings_of = settings_of  # a version's own settings, and what the gateway's say of that model
        self._warmed, self._closed, self._forgotten = warmed, closed, forgotten
        self._told = told  # of what an operator should see
        self._lanes: dict[str, Lane] = {}
        self._wishes: dict[str, _Wishes] = {}  # of each lane
        self._loaded: dict[tuple[str, int, int], _Loaded] = {}
        self._published: list[tuple[str, int, int]] = []

    # ---- what doors ask ---------------------------------------------------------------------------------------------

    @property
    def lanes(self) -> Mapping[str, Lane]:
        """All lanes by key, as they are now."""
        return dict(self._lanes)

    def lane(self, key: str) -> Lane | None:
        return self._lanes.get(key)

    def find(self, name: str, version: int | None = None) -> Published | None:
        """The published version of that number, or the newest."""
        versions = self._names.get(name)
        if not versions:
            return None
        return versions[max(versions)] if version is None else versions.get(version)

    def published(self) -> Iterator[Published]:
        """Everything that requests find now."""
        for versions in self._names.values():
            yield from versions.values()

    def held(self) -> list[Segment]:
        """Every segment whose engine is there: published, on its way in, or draining."""
        found: list[Segment] = []
        for loaded in list(self._loaded.values()):
            found += loaded.entry.segments.values()
            if loaded.entry.whole is not None:
                found.append(loaded.entry.whole)
        return list(dict.fromkeys(found))

    # ---- what the life cycle does -----------------------------------------------------------------------------------

    def load(self, version: ServedVersion) -> None:
        """Make the engines of `version`. Raises IsthmusError; nothing is left behind then."""
        if version.identity in self._loaded:
            raise InvariantViolation(f"{version} is loaded already")
        segments: dict[bytes, Segment] = {}
        whole: Segment | None = None
        taken: list[Lane] = []
        try:
            for tail in version.tails:
                lane, boundary = self._lane(version, tail)
                lane.users += 1
                taken.append(lane)
                scope = Scope(version.name, str(version.version), tail.placement)
                settings = version.settings
                segment = Segment(
                    lane, boundary, version.digest, tail.precision, tail.placement, scope,
                    default_priority=settings.default_priority, default_timeout_s=settings.default_timeout_s,
                    may_cache=self._settings_of(version).response_cache is not False,
                )  # fmt: skip
                if tail.segment is not None:
                    # Full-cloud under several codecs is one segment: the codec stands in every request.
                    segment = segments.setdefault(tail.segment, segment)
                if tail.kind is PlacementKind.FULL_CLOUD and whole is None:
                    whole = segment
        except BaseException:
            self._give_back(taken)
            raise
        self._loaded[version.identity] = _Loaded(Published(version, whole, segments), tuple(taken))

    def warm_up(self, version: ServedVersion) -> None:
        """Run every batch size and every declared shape once before traffic does. Raises EngineError."""
        groups = list(alike(version.tails, self._loaded[version.identity].lanes)) if self.defaults.merge else []
        for group in groups:
            if (known := self._find_lane(_wishes(group.key, self._settings_of(version)))) is not None:
                self._join(version, group, known)
        for lane in dict.fromkeys(self._loaded[version.identity].lanes):
            if not lane.is_open:  # else it serves already, and its curve knows more than a warm-up could
                lane.warm_up()
        for group in groups:
            self._try_to_join(version, group)
        entry, lanes = self._loaded[version.identity]
        for lane in dict.fromkeys(lanes):
            if not lane.is_open:
                self._warmed(lane)
        if entry.whole is not None:
            for sample in version.settings.warm_up:
                run_sample(entry.whole.lane, sample)

    def publish(self, version: ServedVersion) -> None:
        """Requests find it from now on."""
        for lane in dict.fromkeys(self._loaded[version.identity].lanes):
            if not lane.is_open:
                self._desk.open(lane)
                lane.is_open = True
        self._published.append(version.identity)
        self._rebuild()

    def withdraw(self, version: ServedVersion) -> None:
        """No new request finds it; what it holds is finished."""
        if version.identity in self._published:
            self._published.remove(version.identity)
            self._rebuild()

    def in_flight(self, version: ServedVersion) -> int:
        """Requests that were admitted to this version and have no result yet."""
        entry = self._loaded[version.identity].entry
        segments = [*entry.segments.values(), *([entry.whole] if entry.whole else [])]
        return sum(segment.pending for segment in dict.fromkeys(segments))

    def unload(self, version: ServedVersion) -> None:
        """Give back what nobody else uses."""
        self.withdraw(version)
        entry, lanes = self._loaded.pop(version.identity)
        self._give_back(lanes)
        kept = {s.scope for loaded in self._loaded.values() for s in loaded.entry.segments.values()}
        for scope in dict.fromkeys(segment.scope for segment in entry.segments.values()):
            if scope not in kept:  # another build of the same version goes on counting there
                self._forgotten(scope)

    def close(self) -> None:
        """Give back everything, at the end."""
        for identity in list(self._loaded):
            self.unload(self._loaded[identity].entry.version)

    # ---- within -----------------------------------------------------------------------------------------------------

    def _lane(self, version: ServedVersion, tail: Tail) -> tuple[Lane, tuple[BoundaryTensor, ...]]:
        settings, defaults = self._settings_of(version), self.defaults
        wishes = _wishes(tail.graphs, settings)
        known = self._find_lane(wishes)
        if known is not None:
            return known, tail.boundary if tail.boundary is not None else known.boundary
        key = self._free_key(tail, wishes)
        engine = self._engine(tail, self._wanted(settings, batchable=tail.batchable is not False))
        engine.activate()
        try:
            boundary, axes = tail.boundary, tail.output_axes
            batchable = bool(tail.batchable) and settings.max_batch_size != 0
            unbatched = "" if batchable else "its bundle has no proof" if not tail.batchable else "max_batch_size is 0"
            if boundary is None:
                described = describe(engine, max_batch_size=settings.max_batch_size)
                boundary, batchable, axes = described.boundary, described.batchable, described.output_axes
                unbatched = "" if batchable else described.reason
            rules = LaneRules(
                max_rows=settings.max_batch_size or defaults.max_rows,
                find_knee=settings.max_batch_size is None and defaults.find_knee,
                instances=settings.instances or defaults.instances,
                delay_s=defaults.delay_s if settings.efficiency_delay_s is None else settings.efficiency_delay_s,
                own_delay=settings.efficiency_delay_s is not None,
                sizes=settings.profile_sizes,
                most_requests=settings.max_queue_requests,
                ageing_s=defaults.ageing_s,
                margin=defaults.margin,
                quantile=defaults.quantile,
                warm_up_s=defaults.warm_up_s,
            )
            lane = Lane(
                key, engine, boundary=boundary, output_axes=axes, batchable=batchable, rules=rules, unbatched=unbatched
            )
        except BaseException:
            engine.deactivate()
            raise
        self._keep(key, lane, wishes)
        return lane, boundary

    def _wanted(self, settings: ModelSettings, *, batchable: bool) -> Wanted:
        max_rows = 1 if settings.max_batch_size == 0 or not batchable else settings.max_batch_size
        return Wanted(
            settings.threads or self.defaults.threads,
            self.defaults.max_rows if max_rows is None else max_rows,
            settings.engines,
            settings.gpu_memory_nbytes,
            settings.half,
            max(settings.preferred_sizes, default=None),
        )

    def _keep(self, key: str, lane: Lane, wishes: _Wishes) -> None:
        """From now on it is one of ours: should its engines change places, it follows."""
        self._lanes[key], self._wishes[key] = lane, wishes
        for engine in lane.engines:
            if isinstance(engine, PreferredEngine):
                engine.fit = lane.measure
                engine.moved = functools.partial(self._moved, lane)
                engine.settled = functools.partial(self._settled, lane)
        if lane.is_measured:  # one of them may have moved before anybody listened
            self._desk.refit(lane)

    def _moved(self, lane: Lane) -> None:
        """Another engine serves the lane; called on the thread that found out."""
        self._desk.refit(lane)
        self._closed(lane)  # its known answer was another engine's

    def _settled(self, lane: Lane) -> None:
        """The same a little later, in the workshop."""
        try:
            lane.measure_if_new()
        except EngineError:  # it has failed in the meantime: its next batch says so
            return
        self._desk.refit(lane)
        if lane.is_open:
            self._warmed(lane)

    def _find_lane(self, wishes: _Wishes) -> Lane | None:
        return next((self._lanes[key] for key, others in self._wishes.items() if others == wishes), None)

    def _free_key(self, tail: Tail, wishes: _Wishes) -> str:
        """A second lane of one tail, which is run otherwise, needs a key of its own."""
        return hashlib.sha256(repr(wishes).encode()).hexdigest() if tail.key in self._lanes else tail.key

    def _try_to_join(self, version: ServedVersion, group: Alike) -> None:
        """One lane for the group where that pays, as measured now. Raises BundleError for damaged graphs."""
        if any(lane.is_open or lane.key not in self._lanes for lane in group.lanes):
            return  # others serve by them already, or the group has joined a lane that was there
        settings = self._settings_of(version)
        wishes, wanted = _wishes(group.key, settings), self._wanted(settings, batchable=True)
        key = self._free_key(group.suffix, wishes)
        try:
            lane = joined_lane(key, group, lambda part: self._engine(part, wanted))
        except EngineError as error:  # for want of memory, for example: their own lanes are there
            self._told("merge", f"cuts of {version} keep lanes of their own: {error}")
            return
        if lane is not None:
            self._keep(key, lane, wishes)
            self._join(version, group, lane)

    def _join(self, version: ServedVersion, group: Alike, joined: Lane) -> None:
        """Requests for the group's tails go to one lane. Nothing found them yet."""
        assert isinstance(joined, JoinedLane)
        entry, lanes = self._loaded[version.identity]
        now, apart = list(lanes), []
        for i, tail in enumerate(version.tails):
            if tail in group.tails and tail.segment is not None and tail.joint is not None:
                segment = entry.segments[tail.segment]
                segment.lane, segment.bridge = joined, joined.bridges[tail.joint.bridge.key]
                joined.users += 1
                apart.append(lanes[i])
                now[i] = joined
        self._loaded[version.identity] = _Loaded(entry, tuple(now))
        self._give_back(apart)

    def _give_back(self, lanes: Sequence[Lane]) -> None:
        for lane in lanes:
            lane.users -= 1
            if lane.users:
                continue
            if lane.is_open and (left := self._desk.close(lane)):
                self._orphaned(left)
            lane.is_open = False
            lane.deactivate()
            self._closed(lane)
            del self._lanes[lane.key], self._wishes[lane.key]

    def _rebuild(self) -> None:
        """New tables from what is published; of two with the same segment the one published last answers."""
        segments: dict[bytes, Segment] = {}
        names: dict[str, dict[int, Published]] = {}
        models = set()
        for identity in self._published:
            entry = self._loaded[identity].entry
            segments.update(entry.segments)
            names.setdefault(entry.version.name, {})[entry.version.version] = entry
            if entry.whole is not None:
                models.add(entry.version.model_digest)
        self.segments, self._names, self.models = segments, names, frozenset(models)


def run_sample(lane: Lane, sample: WarmUpSample) -> None:
    """Run a declared warm-up request. Raises EngineError if the model does not take it."""
    rng = np.random.default_rng(5)
    tensors: dict[str, Array] = {}
    for spec in sample.inputs:
        shape = tuple(d if isinstance(d, int) else 1 for d in spec.shape)
        if sample.batch_size:
            shape = (sample.batch_size, *shape)
        dtype = spec.numpy_dtype
        values = rng.random(shape) if sample.random and dtype.kind == "f" else np.zeros(shape)
        tensors[spec.name] = values.astype(dtype)
    for _ in range(sample.count):
        try:
            answered(lane.engine, tensors)
        except EngineError as error:
            raise EngineError(f"warm-up {sample.name!r}: {error.fact}", error.remedy) from error
