"""What requests may find while versions come and go: lanes are shared, replaced and given back, nothing is left."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloud_gateway.desk import Desk
from cloud_gateway.models.catalogue import Catalogue, Defaults, run_sample
from cloud_gateway.models.lanes import Lane, Segment
from cloud_gateway.models.served import ServedVersion, Tail
from cloud_gateway.models.settings import ModelSettings, Wanted, WarmUpSample
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.work import Item, Outcome
from protocol import codecs
from protocol.bundle import BoundaryTensor
from protocol.engines.fake import FakeEngine
from protocol.errors import EngineError, InvariantViolation
from protocol.messages import PlacementKind, RejectCode
from protocol.tensors import Array, Tensors, TensorSpec

SPEC = TensorSpec("x", "float32", ("N", 3))
X = BoundaryTensor(SPEC, "raw", 0)


def tail(key: str = "a", *, segment: str = "s", placement: str = "full-cloud", plain: bool = False) -> Tail:
    kind = PlacementKind.FULL_CLOUD if placement == "full-cloud" else PlacementKind.CUT
    return Tail(
        key=key * 64,
        label=f"{placement}/tail",
        placement=placement,
        kind=kind,
        precision="fp32",
        segment=segment.encode() * 32,
        boundary=None if plain else (X,),
        batchable=None if plain else True,
        output_axes={"y": 0},
        graph=lambda: b"",
    )


def version(number: int = 1, *tails: Tail, name: str = "m", build: int = 1, **settings: object) -> ServedVersion:
    return ServedVersion(
        name=name,
        version=number,
        folder=Path(),
        format="bundle",
        digest=f"{number}" * 64,
        model_digest=bytes([number]) * 32,
        tails=tails or (tail(),),
        settings=ModelSettings(**settings),  # type: ignore[arg-type]
        build=build,
    )


class Shelf:
    """A catalogue over fake engines, and all that it told."""

    def __init__(self, defaults: Defaults | None = None) -> None:
        self.desk = Desk(Limits(), threads=1)
        self.engines: list[FakeEngine] = []
        self.orphans: list[Item] = []
        self.warmed: list[Lane] = []
        self.closed: list[Lane] = []
        self.forgotten: list[Scope] = []
        self.spec = SPEC
        self.broken: set[str] = set()  # keys of tails whose engines do not load
        self.posted: queue.Queue[Outcome] = queue.Queue()
        self.catalogue = Catalogue(
            self.desk,
            defaults or Defaults(warm_up_s=0.01),
            orphaned=self.orphans.extend,
            engine=self._engine,
            warmed=self.warmed.append,
            closed=self.closed.append,
            forgotten=self.forgotten.append,
        )

    def _engine(self, tail: Tail, wanted: Wanted) -> FakeEngine:
        if tail.key[0] in self.broken:
            raise EngineError(f"{tail.label} does not load", "")

        def twice(tensors: Tensors) -> dict[str, Array]:
            return {"y": tensors["x"] * 2}

        output = TensorSpec("y", "float32", ("N", 3))
        self.engines.append(FakeEngine(twice, label=tail.label, inputs=(self.spec,), outputs=(output,)))
        return self.engines[-1]

    def serve(self, version: ServedVersion) -> None:
        self.catalogue.load(version)
        self.catalogue.warm_up(version)
        self.catalogue.publish(version)

    def whole(self, name: str = "m", number: int | None = None) -> Segment:
        found = self.catalogue.find(name, number)
        assert found is not None
        assert found.whole is not None
        return found.whole

    def item(self, segment: Segment) -> Item:
        header, buffer = codecs.encode("x", np.ones((1, 3), np.float32), "raw")
        now = time.monotonic()
        return Item(
            segment, (header,), [buffer], [1], None, 1, ((3,),), header.nbytes, now, now + 60, 4, "one", self, None
        )

    def post_all(self, items: Iterable[Outcome], /) -> None:
        for item in items:
            self.posted.put(item)

    def is_active(self, engine: FakeEngine) -> bool:
        try:
            engine.infer({"x": np.ones((1, 3), np.float32)})
        except EngineError:
            return False
        return True


# ---- from load to unload --------------------------------------------------------------------------------------------


def test_a_version_is_found_by_name_by_number_and_by_digest_from_publish_to_withdraw() -> None:
    shelf, one = Shelf(), version()
    shelf.catalogue.load(one)
    shelf.catalogue.warm_up(one)
    assert shelf.catalogue.find("m") is None
    assert not shelf.catalogue.segments
    shelf.catalogue.publish(one)
    assert shelf.whole() is shelf.whole(number=1) is shelf.catalogue.segments[b"s" * 32]
    assert shelf.catalogue.models == {one.model_digest}
    assert [p.version for p in shelf.catalogue.published()] == [one]
    shelf.catalogue.withdraw(one)
    assert shelf.catalogue.find("m") is None
    assert not shelf.catalogue.segments
    assert not shelf.catalogue.models
    shelf.catalogue.withdraw(one)  # twice is once


def test_the_newest_version_answers_who_names_none() -> None:
    shelf = Shelf()
    for number, key in ((2, "b"), (1, "a")):
        shelf.serve(version(number, tail(key, segment=key)))
    assert shelf.whole() is shelf.whole(number=2)
    assert shelf.catalogue.find("m", 3) is None
    assert shelf.catalogue.find("other") is None


def test_unloading_gives_back_engines_lanes_and_labels() -> None:
    shelf, one = Shelf(), version()
    shelf.serve(one)
    lane = shelf.whole().lane
    shelf.catalogue.unload(one)
    assert not shelf.is_active(shelf.engines[0])
    assert shelf.closed == [lane]
    assert shelf.forgotten == [Scope("m", "1", "full-cloud")]
    assert not shelf.catalogue.lanes
    assert shelf.desk.look(lane, now=0.0) is None


def test_closing_gives_back_everything() -> None:
    shelf = Shelf()
    shelf.serve(version(1, tail("a", segment="a"), tail("b", segment="b", placement="cut-1")))
    shelf.catalogue.load(version(2, tail("c", segment="c")))  # never published
    shelf.catalogue.close()
    assert [shelf.is_active(engine) for engine in shelf.engines] == [False] * 3
    assert not shelf.catalogue.lanes


def test_what_only_loaded_and_never_opened_is_given_back_too() -> None:
    shelf, one = Shelf(), version()
    shelf.catalogue.load(one)
    shelf.catalogue.unload(one)
    assert not shelf.is_active(shelf.engines[0])
    assert not shelf.catalogue.lanes


def test_loading_twice_is_a_bug_and_says_so() -> None:
    shelf = Shelf()
    shelf.catalogue.load(version())
    with pytest.raises(InvariantViolation, match="loaded already"):
        shelf.catalogue.load(version())


def test_a_model_that_has_only_cuts_is_found_but_not_served_whole() -> None:
    shelf = Shelf()
    shelf.serve(version(1, tail(placement="cut-1")))
    found = shelf.catalogue.find("m")
    assert found is not None
    assert (found.whole, found.inputs, found.outputs) == (None, (), ())
    assert not shelf.catalogue.models


def test_a_model_served_whole_says_what_it_takes_and_gives() -> None:
    shelf = Shelf()
    shelf.serve(version())
    found = shelf.catalogue.find("m")
    assert found is not None
    assert found.inputs == (SPEC,)
    assert [spec.name for spec in found.outputs] == ["y"]


def test_one_tail_under_several_codings_is_one_segment() -> None:
    shelf = Shelf()
    shelf.serve(version(1, tail(), replace(tail(), placement="full-cloud-zstd")))
    assert len(shelf.catalogue.segments) == 1
    assert len(shelf.catalogue.lanes) == 1


# ---- shared lanes ---------------------------------------------------------------------------------------------------


def test_versions_with_the_same_tail_share_a_lane_which_goes_with_its_last_user() -> None:
    shelf, one, two = Shelf(), version(1, tail(segment="s")), version(2, tail(segment="t"))
    shelf.serve(one)
    shelf.serve(two)
    assert shelf.whole(number=1).lane is shelf.whole(number=2).lane
    assert len(shelf.engines) == len(shelf.warmed) == 1, "a lane that serves is not measured again"
    shelf.catalogue.unload(one)
    assert shelf.is_active(shelf.engines[0])
    assert shelf.desk.submit(shelf.item(shelf.whole(number=2))) is None
    shelf.catalogue.unload(two)
    assert not shelf.is_active(shelf.engines[0])


def test_of_two_versions_with_the_same_segment_the_one_published_last_answers_and_the_other_after_it() -> None:
    shelf, one, two = Shelf(), version(1), version(2)
    shelf.serve(one)
    first = shelf.catalogue.segments[b"s" * 32]
    shelf.serve(two)
    assert shelf.catalogue.segments[b"s" * 32] is shelf.whole(number=2) is not first
    shelf.catalogue.unload(two)
    assert shelf.catalogue.segments[b"s" * 32] is first


def test_a_model_whose_settings_were_edited_gets_a_lane_that_follows_them() -> None:
    shelf, before = Shelf(), version(max_batch_size=4)
    after = version(build=2, max_batch_size=2, instances=3, efficiency_delay_s=0.25)
    shelf.serve(before)
    shelf.serve(after)
    shelf.catalogue.unload(before)
    lane = shelf.whole().lane
    assert (lane.rules.max_rows, lane.rules.instances, lane.rules.delay_s) == (2, 3, 0.25)
    assert [*shelf.catalogue.lanes.values()] == [lane]
    again = version(build=3, max_batch_size=2, instances=3, efficiency_delay_s=0.25)
    shelf.serve(again)
    assert shelf.whole().lane is lane, "what is run alike is run together"


def test_a_new_build_of_a_version_goes_on_under_its_labels() -> None:
    shelf, old, new = Shelf(), version(), version(1, tail("b", segment="b"), build=2)
    shelf.serve(old)
    shelf.serve(new)
    shelf.catalogue.unload(old)
    assert shelf.forgotten == []
    shelf.catalogue.unload(new)
    assert shelf.forgotten == [Scope("m", "1", "full-cloud")]


@pytest.mark.parametrize(("own", "delay_s"), [(None, 0.5), (0.0, 0.0), (0.1, 0.1)])
def test_a_model_may_wait_less_than_the_others_or_not_at_all(own: float | None, delay_s: float) -> None:
    shelf = Shelf(Defaults(delay_s=0.5, warm_up_s=0.01))
    shelf.serve(version(efficiency_delay_s=own))
    rules = shelf.whole().lane.rules
    assert (rules.delay_s, rules.own_delay) == (delay_s, own is not None)


@pytest.mark.parametrize(("own", "may"), [(None, True), (True, True), (False, False)])
def test_answers_may_be_kept_unless_the_model_says_no(own: bool | None, may: bool) -> None:
    shelf = Shelf()
    shelf.serve(version(response_cache=own))
    assert shelf.whole().may_cache is may


# ---- trouble --------------------------------------------------------------------------------------------------------


def test_a_load_that_fails_half_way_leaves_nothing_behind() -> None:
    shelf = Shelf()
    shelf.broken = {"b"}
    wrong = version(1, tail("a", segment="a"), tail("b", segment="b", placement="cut-1"))
    with pytest.raises(EngineError, match="does not load"):
        shelf.catalogue.load(wrong)
    assert not shelf.catalogue.lanes
    assert not shelf.is_active(shelf.engines[0])
    shelf.broken = set()
    shelf.serve(wrong)  # and may be tried again
    assert len(shelf.catalogue.lanes) == 2


def test_a_failed_load_does_not_take_a_shared_lane_with_it() -> None:
    shelf = Shelf()
    shelf.serve(version(1, tail("a", segment="a")))
    shelf.broken = {"b"}
    with pytest.raises(EngineError):
        shelf.catalogue.load(version(2, tail("a", segment="c"), tail("b", segment="b", placement="cut-1")))
    assert shelf.is_active(shelf.engines[0])
    assert shelf.whole().lane.users == 1


def test_a_segment_found_just_before_its_lane_closes_is_told_that_it_is_unknown() -> None:
    shelf, one = Shelf(), version()
    shelf.serve(one)
    found = shelf.whole()
    shelf.catalogue.unload(one)
    verdict = shelf.desk.submit(shelf.item(found))
    assert verdict is not None
    assert verdict.code is RejectCode.UNKNOWN_SEGMENT
    assert found.pending == 0
    assert shelf.desk.pending() == (0, 0)


def test_what_waits_in_a_lane_that_is_closed_by_force_is_handed_out_and_its_credit_given_back() -> None:
    shelf, one = Shelf(), version()
    shelf.serve(one)
    item = shelf.item(shelf.whole())
    assert shelf.desk.submit(item) is None
    assert shelf.catalogue.in_flight(one) == 1
    shelf.catalogue.unload(one)
    assert shelf.orphans == [item]
    assert item.segment.pending == 0
    assert shelf.desk.pending() == (0, 0)


def test_requests_in_flight_are_counted_for_the_version_that_admitted_them() -> None:
    shelf, one, two = Shelf(), version(1, tail(segment="s")), version(2, tail(segment="t"))
    shelf.serve(one)
    shelf.serve(two)
    with shelf.desk.paused():
        assert shelf.desk.submit(shelf.item(shelf.whole(number=1))) is None
        assert (shelf.catalogue.in_flight(one), shelf.catalogue.in_flight(two)) == (1, 0)


# ---- warm-up --------------------------------------------------------------------------------------------------------


def test_declared_warm_up_requests_are_run_as_often_as_they_say() -> None:
    shelf = Shelf()
    sample = WarmUpSample("three", (msgspec.structs.replace(SPEC, shape=(3,)),), batch_size=2, count=3, random=True)
    one = version(warm_up=(sample,))
    shelf.catalogue.load(one)
    shelf.catalogue.warm_up(one)
    calls = shelf.engines[0].calls
    shelf.catalogue.warm_up(one)  # the lane is measured again until it is open
    run_sample(shelf.warmed[0], sample)
    assert shelf.engines[0].calls >= calls + 3


def test_a_warm_up_request_that_the_model_does_not_take_names_itself() -> None:
    shelf = Shelf()
    shelf.serve(version())
    with pytest.raises(EngineError, match="warm-up 'odd'"):
        run_sample(shelf.whole().lane, WarmUpSample("odd", (TensorSpec("z", "float32", (1,)),)))


def test_a_plain_graph_gets_its_boundary_from_its_engine_and_its_batching_from_a_proof() -> None:
    shelf = Shelf()
    shelf.serve(version(1, tail(plain=True)))
    lane = shelf.whole().lane
    assert lane.batchable
    assert [b.spec for b in shelf.whole().boundary] == [SPEC]


@pytest.mark.parametrize(("bound", "max_rows"), [(0, 1), (1, 1), (4, 4)])
def test_a_bundle_that_is_proven_batchable_still_keeps_to_the_bound_that_its_settings_declare(
    bound: int, max_rows: int
) -> None:
    shelf = Shelf()
    shelf.serve(version(max_batch_size=bound))
    lane = shelf.whole().lane
    assert (lane.max_rows, lane.batchable) == (max_rows, bound != 0)
    assert lane.unbatched == ("" if bound else "max_batch_size is 0")


def test_a_model_that_cannot_be_batched_although_it_asks_for_it_says_why() -> None:
    shelf = Shelf()
    shelf.serve(version(1, tail("a", segment="a"), replace(tail("b", segment="b", placement="cut-1"), batchable=False)))
    reasons = {lane.key[0]: lane.unbatched for lane in shelf.catalogue.lanes.values()}
    assert reasons == {"a": "", "b": "its bundle has no proof"}
    fixed = Shelf()
    fixed.spec = msgspec.structs.replace(SPEC, shape=(1, 3))
    fixed.serve(version(1, tail(plain=True), max_batch_size=8))
    assert fixed.whole().lane.unbatched == "the first dimension of 'x' is fixed"
