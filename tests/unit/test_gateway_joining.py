"""Cuts that share a suffix: one batch holds them all, everybody gets their own answer, and trouble stays at its bridge.

Cut `a` sends a [N,3] and its bridge adds 1; cut `b` sends b [2,N], whose bridge gives each row's sum three times. The
suffix returns 10 times what it takes. Whether joining pays is told from curves that the tests draw, or by a clock that
only engines move: a busy machine must not have a say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloud_gateway.desk import Desk
from cloud_gateway.models import joining, lanes
from cloud_gateway.models.catalogue import Catalogue, Defaults
from cloud_gateway.models.joining import Alike, JoinedLane, alike, is_worth, joined_lane
from cloud_gateway.models.lanes import Bridge, Lane, LaneRules, Segment
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.rungs import Offer
from cloud_gateway.models.served import Joint, ServedVersion, Tail
from cloud_gateway.models.settings import ModelSettings, Wanted
from cloud_gateway.models.worker import Runner
from cloud_gateway.models.workshop import Workshop
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.work import Computed, Item, NotComputed, Outcome
from protocol import codecs, wire
from protocol.bundle import BoundaryTensor
from protocol.engines.base import Engine
from protocol.engines.fake import FakeEngine
from protocol.errors import EngineError
from protocol.messages import PlacementKind, RejectCode
from protocol.tensors import Array, Tensors, TensorSpec

Function = Callable[[Tensors], dict[str, Array]]

A = BoundaryTensor(TensorSpec("a", "float32", ("N", 3)), "raw", 0)
B = BoundaryTensor(TensorSpec("b", "float32", (2, "N")), "raw", 1)
S = TensorSpec("s", "float32", ("N", 3))
Y = TensorSpec("y", "float32", ("N", 3))
HEAVY_S = 0.0005


class Clock:
    """Stands in for the module `time` where batches are measured: their runs take what the tests say."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    monotonic = perf_counter


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    scripted = Clock()
    monkeypatch.setattr(lanes, "time", scripted)
    monkeypatch.setattr(joining, "time", scripted)
    return scripted


def through_a(tensors: Tensors) -> dict[str, Array]:
    return {"s": tensors["a"] + 1}


def through_b(tensors: Tensors) -> dict[str, Array]:
    return {"s": np.repeat(tensors["b"].sum(0)[:, None], 3, axis=1)}


def suffix(tensors: Tensors) -> dict[str, Array]:
    return {"y": tensors["s"] * 10}


def fake(function: Function, inputs: TensorSpec, outputs: TensorSpec = S) -> FakeEngine:
    engine = FakeEngine(function, inputs=(inputs,), outputs=(outputs,))
    engine.activate()
    return engine


def tail(name: str, boundary: BoundaryTensor, *, joint: bool = True) -> Tail:
    """The tail of cut `name`; its own graph's key begins with its name, its bridge's with the name in capitals."""
    plain = Tail(
        key=name * 64,
        label=f"cut-{name}/tail",
        placement=f"cut-{name}",
        kind=PlacementKind.CUT,
        precision="fp32",
        segment=name.encode() * 32,
        boundary=(boundary,),
        batchable=True,
        output_axes={"y": 0},
        graph=lambda: b"",
    )
    if not joint:
        return plain
    bridge, common = replace(plain, key=name.upper() * 64), replace(plain, key="S" * 64, label="suffix")
    return replace(plain, joint=Joint(bridge, common, {"s": 0}))


TAILS = (tail("a", A), tail("b", B))


def lane_of(one: Tail, **rules: object) -> Lane:
    assert one.boundary is not None
    engine = fake(lambda tensors: {"y": tensors[one.placement[-1]]}, one.boundary[0].spec, Y)
    return Lane(
        one.key, engine, boundary=one.boundary, output_axes={"y": 0}, batchable=True,
        rules=LaneRules(**rules),  # type: ignore[arg-type]
    )  # fmt: skip


def group() -> Alike:
    (found,) = alike(TAILS, [lane_of(t) for t in TAILS])
    return found


class Bench:
    """A joined lane behind a desk, and what its runner made of what was offered."""

    def __init__(
        self,
        a: Function = through_a,
        b: Function = through_b,
        common: Function = suffix,
        *,
        choose: Callable[[FakeEngine], Engine] = lambda engine: engine,
    ) -> None:
        self.a, self.b, self.suffix = fake(a, A.spec), fake(b, B.spec), fake(common, S, Y)
        bridges = {n * 64: Bridge(n * 64, choose(e), (b,)) for n, e, b in (("A", self.a, A), ("B", self.b, B))}
        self.lane = JoinedLane("S" * 64, choose(self.suffix), group(), bridges, LaneRules())
        self.segments: dict[str, Segment] = {}
        for name, boundary in (("a", A), ("b", B)):
            scope = Scope("toy", "1", f"cut-{name}")
            self.segments[name] = Segment(
                self.lane, (boundary,), "bundle", "fp32", scope.placement, scope, bridge=bridges[name.upper() * 64]
            )
        self.segments["s"] = Segment(self.lane, self.lane.boundary, "", "", "health", Scope("", "", "health"))
        self.desk = Desk(Limits(), threads=1)
        self.desk.open(self.lane)

    def offer(self, name: str, array: Array, *, checksum: int | None = None) -> Item:
        header, data = codecs.encode(name, array.astype(np.float32), "raw")
        rows, layout = self.segments[name].fit((header,))
        now = time.monotonic()
        item = Item(
            self.segments[name], (header,), [data], [1], wire.checksum([data]) if checksum is None else checksum, rows,
            layout, header.nbytes, now, now + 60, 4, "one", self, None,
        )  # fmt: skip
        assert self.desk.submit(item) is None
        return item

    def run(self) -> dict[int, Outcome]:
        """What became of each item of the first batch, by the item's id."""
        dispatch = self.desk.take(0)
        assert dispatch is not None
        made = Runner(self.desk, Ledger(now=time.monotonic())).run(0, dispatch)
        return {id(outcome.item): outcome for outcome in made if isinstance(outcome, Computed | NotComputed)}

    def post_all(self, items: Iterable[Outcome], /) -> None: ...


def answer(outcome: Outcome) -> list[list[float]]:
    assert isinstance(outcome, Computed), outcome
    return codecs.decode(outcome.headers[0], outcome.buffers[0]).tolist()  # type: ignore[no-any-return]


# ---- running --------------------------------------------------------------------------------------------------------


def test_one_batch_holds_several_cuts_and_each_request_gets_its_own_rows() -> None:
    bench = Bench()
    first = bench.offer("a", np.full((1, 3), 1.0))
    second = bench.offer("b", np.array([[1.0, 2.0], [3.0, 4.0]]))  # two rows along axis 1
    third = bench.offer("a", np.full((2, 3), 5.0))
    made = bench.run()
    assert answer(made[id(first)]) == [[20.0] * 3]
    assert answer(made[id(second)]) == [[40.0] * 3, [60.0] * 3]
    assert answer(made[id(third)]) == [[60.0] * 3] * 2
    assert (bench.a.calls, bench.b.calls, bench.suffix.calls) == (1, 1, 1)
    assert {o.batch_size for o in made.values() if isinstance(o, Computed)} == {5}
    assert bench.lane.curve.typical(5) > 0


def test_what_is_asked_of_the_suffix_itself_joins_the_cuts() -> None:
    bench = Bench()
    asked, other = bench.offer("s", np.full((1, 3), 7.0)), bench.offer("a", np.zeros((1, 3)))
    assert answer(bench.run()[id(asked)]) == [[70.0] * 3]
    assert answer(bench.run()[id(other)]) == [[10.0] * 3]


def test_a_bridge_that_fails_costs_only_its_own_requests() -> None:
    def fails(tensors: Tensors) -> dict[str, Array]:
        raise RuntimeError("broken")

    bench = Bench(b=fails)
    kept = [bench.offer("a", np.full((1, 3), float(i))) for i in range(3)]
    lost = bench.offer("b", np.ones((2, 1)))
    made = bench.run()
    assert [answer(made[id(item)])[0][0] for item in kept] == [10.0, 20.0, 30.0]
    refusal = made[id(lost)]
    assert isinstance(refusal, NotComputed)
    assert refusal.code is RejectCode.INTERNAL
    assert bench.suffix.calls == 1, "the others stay together"


def test_bridges_that_disagree_about_a_row_are_not_joined_and_nobody_gets_anothers_answer() -> None:
    def twice(tensors: Tensors) -> dict[str, Array]:
        return {"s": np.concatenate([through_b(tensors)["s"]] * 2)}

    bench = Bench(b=twice)
    one, other = bench.offer("a", np.zeros((1, 3))), bench.offer("b", np.ones((2, 1)))
    made = bench.run()
    assert answer(made[id(one)]) == [[10.0] * 3]
    assert answer(made[id(other)]) == [[20.0] * 3] * 2  # alone it is as its own tail would have it


def test_a_damaged_payload_leaves_the_batch_and_the_rest_is_answered() -> None:
    bench = Bench()
    bad, good = bench.offer("b", np.ones((2, 1)), checksum=1), bench.offer("a", np.zeros((1, 3)))
    made = bench.run()
    assert isinstance(made[id(bad)], NotComputed)
    assert answer(made[id(good)]) == [[10.0] * 3]
    assert bench.b.calls == 0


def test_parts_of_a_lane_whose_engines_fail_move_to_the_next_and_every_request_is_answered_once() -> None:
    """Each part has two engines; the better ones are lost in turn, a bridge's and then the suffix's."""
    lost: list[str] = []
    calls = {"a": through_a, "b": through_b, "s": suffix}

    def gpu(name: str) -> Function:
        def run(tensors: Tensors) -> dict[str, Array]:
            if name in lost:
                raise RuntimeError("CUDA failure 719: unspecified launch failure")
            return calls[name](tensors)

        return run

    def choose(cpu: FakeEngine) -> Engine:
        (spec,) = cpu.inputs
        better = FakeEngine(gpu(spec.name), label="gpu", inputs=cpu.inputs, outputs=cpu.outputs)
        engine = PreferredEngine(
            [Offer("gpu", lambda: better), Offer("cpu", lambda: cpu)], label="t", workshop=workshop
        )
        engine.activate()
        return engine

    workshop = Workshop()
    workshop.enter = lambda engine: None  # type: ignore[method-assign]
    bench = Bench(choose=choose)
    bench.lane.warm_up()
    assert len(bench.lane.engines) == 3
    for gone in ("b", "s"):
        lost.append(gone)
        asked = bench.offer("a", np.full((1, 3), 1.0)), bench.offer("b", np.array([[1.0], [3.0]]))
        made = bench.run()
        assert [answer(made[id(item)]) for item in asked] == [[[20.0] * 3], [[40.0] * 3]]
        moved = [engine.kind for engine in bench.lane.engines if isinstance(engine, PreferredEngine)]
        assert moved == (["gpu", "gpu", "cpu"] if gone == "b" else ["cpu", "gpu", "cpu"])


# ---- deciding -------------------------------------------------------------------------------------------------------


def taking(function: Function, clock: Clock, seconds: Callable[[int], float]) -> Function:
    """The same, but a batch of n rows takes that many seconds."""

    def takes(tensors: Tensors) -> dict[str, Array]:
        made = function(tensors)
        clock.now_s += seconds(next(iter(made.values())).shape[0])
        return made

    return takes


@pytest.mark.parametrize(
    ("seconds", "worth"),
    [(lambda rows: 0.001, True), (lambda rows: 0.00025 * rows, False)],
    ids=["batching pays", "pays nothing"],
)
def test_a_lane_is_worth_it_where_a_batch_of_all_takes_clearly_less_than_a_batch_of_each(
    seconds: Callable[[int], float], worth: bool, clock: Clock
) -> None:
    lane = Bench(common=taking(suffix, clock, seconds)).lane
    lane.max_rows = 4
    apart = []
    for one, through in zip(TAILS, (through_a, through_b), strict=True):
        assert one.boundary is not None

        def whole(tensors: Tensors, through: Function = through) -> dict[str, Array]:
            return suffix(through(tensors))

        engine = fake(taking(whole, clock, seconds), one.boundary[0].spec, Y)
        axes = one.output_axes
        apart.append(Lane(one.key, engine, boundary=one.boundary, output_axes=axes, batchable=True, rules=LaneRules()))
    assert is_worth(lane, apart) is worth
    lane.max_rows = 1
    assert not is_worth(lane, apart), "batches of one have no company"


def test_only_tails_that_may_batch_and_have_known_shapes_are_alike() -> None:
    free = BoundaryTensor(TensorSpec("b", "float32", ("N", None)), "raw", 0)
    assert list(alike((TAILS[0], tail("b", B, joint=False)), [lane_of(t) for t in TAILS])) == []
    assert list(alike((TAILS[0], tail("b", free)), [lane_of(TAILS[0]), lane_of(tail("b", free))])) == []
    assert list(alike(TAILS, [lane_of(t, sizes=(1, 4)) for t in TAILS])) == []
    shared = lane_of(TAILS[0])
    assert list(alike((TAILS[0], TAILS[0]), [shared, shared])) == [], "two codings of one cut share its lane anyway"


def test_a_bridge_that_gives_something_else_is_refused_and_its_engines_are_given_back() -> None:
    engines: list[FakeEngine] = []

    def make(part: Tail) -> FakeEngine:
        wrong = TensorSpec("t", "float32", ("N", 3))
        engines.append(FakeEngine(suffix, inputs=(S,), outputs=(Y if part.key[0] == "S" else wrong,)))
        return engines[-1]

    with pytest.raises(EngineError, match="does not give what the common suffix takes"):
        joined_lane("k", group(), make)
    for engine in engines:
        with pytest.raises(EngineError, match="not active"):
            engine.infer({})


# ---- in the catalogue -----------------------------------------------------------------------------------------------


class Shelf:
    """A catalogue whose engines move the clock; `heavy` names what costs something, whatever the rows."""

    def __init__(self, heavy: str, clock: Clock, *, merge: bool = True, broken: str = "") -> None:
        self.heavy, self.clock, self.broken = heavy, clock, broken
        self.told: list[str] = []
        self.active: dict[str, FakeEngine] = {}
        self.desk = Desk(Limits(), threads=1)
        self.warmed: list[Lane] = []
        self.catalogue = Catalogue(
            self.desk,
            Defaults(warm_up_s=0.05, merge=merge),
            orphaned=lambda items: None,
            engine=self._engine,
            warmed=self.warmed.append,
            told=lambda event, text: self.told.append(f"{event}: {text}"),
        )

    def _engine(self, part: Tail, wanted: Wanted) -> FakeEngine:
        kind = part.key[0]
        functions: dict[str, tuple[Function, TensorSpec, TensorSpec]] = {
            "A": (through_a, A.spec, S),
            "B": (through_b, B.spec, S),
            "S": (suffix, S, Y),
            "a": (lambda t: suffix(through_a(t)), A.spec, Y),
            "b": (lambda t: suffix(through_b(t)), B.spec, Y),
        }
        function, inputs, outputs = functions[kind]

        def takes(tensors: Tensors) -> dict[str, Array]:
            if kind in self.broken:
                raise MemoryError("no room")
            self.clock.now_s += HEAVY_S if kind in self.heavy else 0.0
            return function(tensors)

        self.active[kind] = FakeEngine(takes, inputs=(inputs,), outputs=(outputs,))
        return self.active[kind]

    def serve(self, number: int) -> ServedVersion:
        version = ServedVersion(
            "m", number, Path(), "bundle", f"{number}" * 64, bytes(32), (*TAILS, replace(TAILS[0], segment=b"q" * 32)),
            ModelSettings(),
        )  # fmt: skip
        self.catalogue.load(version)
        self.catalogue.warm_up(version)
        self.catalogue.publish(version)
        return version

    def running(self) -> set[str]:
        return {kind for kind, engine in self.active.items() if engine._active}


def test_where_the_suffix_is_what_costs_all_cuts_get_one_lane_and_their_own_are_given_back(clock: Clock) -> None:
    shelf = Shelf("abS", clock)
    version = shelf.serve(1)
    (lane,) = shelf.catalogue.lanes.values()
    assert shelf.warmed == [lane]
    assert lane.users == 3
    assert {segment.lane for segment in shelf.catalogue.segments.values()} == {lane}
    assert len({segment.bridge for segment in shelf.catalogue.segments.values()}) == 2
    assert shelf.running() == {"A", "B", "S"}
    shelf.catalogue.unload(version)
    assert shelf.running() == set()
    assert shelf.catalogue.lanes == {}


def test_a_second_version_of_the_same_graphs_takes_the_lane_that_is_there(clock: Clock) -> None:
    shelf = Shelf("abS", clock)
    first = shelf.serve(1)
    (lane,) = shelf.catalogue.lanes.values()
    shelf.serve(2)
    assert list(shelf.catalogue.lanes.values()) == [lane]
    shelf.catalogue.unload(first)
    assert list(shelf.catalogue.lanes.values()) == [lane]
    assert lane.users == 3
    assert shelf.warmed == [lane]


@pytest.mark.parametrize(("heavy", "merge"), [("abAB", True), ("abS", False)], ids=["bridges cost", "never"])
def test_cuts_keep_their_own_lanes_where_joining_does_not_pay_or_is_not_wanted(
    heavy: str, merge: bool, clock: Clock
) -> None:
    shelf = Shelf(heavy, clock, merge=merge)
    shelf.serve(1)
    assert len(shelf.catalogue.lanes) == 2
    assert shelf.running() == {"a", "b"}
    assert all(segment.bridge is None for segment in shelf.catalogue.segments.values())


@pytest.mark.parametrize("broken", ["S", "B"], ids=["the suffix", "a bridge"])
def test_what_cannot_be_joined_is_served_apart_and_the_operator_is_told(broken: str, clock: Clock) -> None:
    shelf = Shelf("abS", clock, broken=broken)
    shelf.serve(1)
    assert shelf.running() == {"a", "b"}
    (sentence,) = shelf.told
    assert sentence.startswith("merge: cuts of m version 1 keep lanes of their own: ")
    assert "no room" in sentence
