"""The cache in front of a real desk, with a real engine thread behind it: equal requests are computed once."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from cloud_gateway import cache_redis
from cloud_gateway.cache_redis import RedisShelf
from cloud_gateway.cached_desk import CachedDesk
from cloud_gateway.desk import Desk
from cloud_gateway.models.lanes import Lane, LaneRules, Segment
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.rungs import Offer
from cloud_gateway.models.workshop import Workshop
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.work import Computed, Item, NotComputed, Outcome, Reference
from protocol import codecs, wire
from protocol.bundle import BoundaryTensor
from protocol.engines.fake import FakeEngine
from protocol.messages import RejectCode
from protocol.tensors import TensorSpec
from tests.redis_server import TinyRedis, shelf_at
from tests.waiting import until

X = BoundaryTensor(TensorSpec("x", "float32", ("N", 3)), "raw", 0)


class Bench:
    """A door, and a desk whose engine thread is this test: `compute` runs what waits."""

    def __init__(self) -> None:
        engine = FakeEngine(lambda tensors: {"y": tensors["x"] * 2}, inputs=(X.spec,))
        rules = LaneRules()
        self.lane = Lane("f" * 64, engine, boundary=(X,), output_axes={"y": 0}, batchable=True, rules=rules)
        self.segment = Segment(self.lane, (X,), "bundle", "int8", "cut-1", Scope("toy", "1", "cut-1"))
        self.desk = Desk(Limits(pending_requests=2), threads=1)
        self.desk.open(self.lane)
        self.posted: queue.Queue[Outcome] = queue.Queue()
        self.computed = 0

    def post_all(self, items: Iterable[Outcome], /) -> None:
        for item in items:
            self.posted.put(item)

    def item(self, value: float = 1.0, *, segment: Segment | None = None, checksum: bool = True) -> Item:
        header, buffer = codecs.encode("x", np.full((1, 3), value, np.float32), "raw")
        now = time.monotonic()
        return Item(
            segment=segment or self.segment, headers=(header,), parts=[buffer], counts=[1],
            checksum=wire.checksum([buffer]) if checksum else None, rows=1, layout=((3,),), nbytes=header.nbytes,
            arrived=now, deadline=now + 60, priority=4, tenant="one", door=self, ticket=None,
        )  # fmt: skip

    def compute(self, keep: Callable[[list[Outcome]], None]) -> Computed:
        """Run the one request that waits, as an engine thread would."""
        dispatch = self.desk.take(0)
        assert dispatch is not None
        (item,) = dispatch.batch
        self.computed += 1
        header, buffer = codecs.encode("y", np.full((1, 3), 7, np.float32), "raw")
        done = Computed(
            item, (header,), (buffer,), wire.checksum([buffer]), queue_s=0.1, decode_s=0.1, compute_s=0.2,
            batch_size=1, engine="fake",
        )  # fmt: skip
        keep([done])
        self.desk.finished(0, [item])
        self.post_all([done])
        outcome = self.posted.get(timeout=10)
        assert outcome is done
        return done

    def answer(self) -> Computed:
        outcome = self.posted.get(timeout=10)
        assert isinstance(outcome, Computed)
        return outcome


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def cached(bench: Bench) -> CachedDesk:
    return CachedDesk(bench.desk.submit, size_nbytes=100_000, ttl_s=60.0)


def test_an_equal_request_is_answered_from_the_shelf_and_says_so(bench: Bench, cached: CachedDesk) -> None:
    assert cached.submit(bench.item()) is None
    first = bench.compute(cached.keep)
    again = bench.item()
    assert cached.submit(again) is None
    answer = bench.answer()
    assert answer.item is again
    assert (answer.headers, answer.buffers) == (first.headers, tuple(map(bytes, first.buffers)))
    assert answer.checksum == first.checksum
    assert (answer.engine, answer.compute_s, answer.decode_s, answer.batch_size) == ("fake (cached)", 0.0, 0.0, 1)
    assert bench.computed == 1
    assert cached.counts == {"misses": 1, "hits": 1}
    assert cached.nbytes > 0
    assert bench.desk.pending() == (0, 0), "an answer from the shelf was never admitted"


def test_a_door_whose_channel_checks_itself_gets_no_checksum(bench: Bench, cached: CachedDesk) -> None:
    cached.submit(bench.item())
    bench.compute(cached.keep)
    cached.submit(bench.item(checksum=False))
    assert bench.answer().checksum == 0


def test_another_payload_or_another_placement_is_computed(bench: Bench, cached: CachedDesk) -> None:
    other = Segment(bench.lane, (X,), "bundle", "int8", "full-cloud", Scope("toy", "1", "full-cloud"))
    for item in (bench.item(), bench.item(2.0), bench.item(segment=other)):
        cached.submit(item)
        bench.compute(cached.keep)
    assert bench.computed == 3


def test_frames_of_a_stream_pass_by(bench: Bench, cached: CachedDesk) -> None:
    for _ in range(2):
        item = bench.item()
        item.reference = Reference((b"boot", b"segment"), 1, keep=True)
        cached.submit(item)
        bench.compute(cached.keep)
    assert bench.computed == 2
    assert cached.counts == {}


def test_models_that_do_not_want_it_are_computed(bench: Bench) -> None:
    cached = CachedDesk(bench.desk.submit, size_nbytes=100_000, ttl_s=60.0, wants=lambda s: s.precision != "int8")
    for _ in range(2):
        cached.submit(bench.item())
        bench.compute(cached.keep)
    assert bench.computed == 2


def test_refusals_are_not_kept_and_reach_the_door_as_they_are(bench: Bench, cached: CachedDesk) -> None:
    assert cached.submit(bench.item(1.0)) is None
    assert cached.submit(bench.item(2.0)) is None
    verdict = cached.submit(bench.item(3.0))
    assert verdict is not None
    assert verdict.code is RejectCode.BUSY
    cached.keep([NotComputed(bench.item(), RejectCode.INTERNAL, "failed")])
    assert cached.nbytes == 0


def test_a_smaller_shelf_forgets(bench: Bench, cached: CachedDesk) -> None:
    cached.submit(bench.item())
    bench.compute(cached.keep)
    cached.resize(0, 60.0)
    assert cached.nbytes == 0


# ---- with Redis -----------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[TinyRedis]:
    tiny = TinyRedis()
    yield tiny
    tiny.close()


@pytest.fixture
def far(server: TinyRedis) -> Iterator[RedisShelf]:
    with shelf_at(server) as shelf:
        yield shelf


def test_what_one_gateway_computed_another_finds_in_redis_and_then_on_its_own_shelf(far: RedisShelf) -> None:
    gateways = [Bench(), Bench()]
    one, other = (CachedDesk(g.desk.submit, size_nbytes=100_000, ttl_s=60.0, far=far) for g in gateways)
    assert one.submit(gateways[0].item()) is None
    gateways[0].compute(one.keep)
    for _ in range(2):
        assert other.submit(gateways[1].item()) is None
        assert gateways[1].answer().engine == "fake (cached)"
    assert gateways[1].computed == 0
    assert other.counts == {"misses": 1, "hits": 1, "redis_misses": 1, "redis_kept": 1, "redis_hits": 1}


def test_a_gateway_that_never_runs_float16_finds_no_answer_of_one_that_may(far: RedisShelf) -> None:
    def in_order(precision: str) -> Bench:
        bench = Bench()
        offers = [Offer("gpu", FakeEngine, precision=precision), Offer("cpu", FakeEngine)]
        bench.lane.engine = PreferredEngine(offers, label="t", workshop=Workshop())
        return bench

    gateways = [in_order("float16"), in_order(""), in_order("float16")]
    for gateway in gateways:
        desk = CachedDesk(gateway.desk.submit, size_nbytes=100_000, ttl_s=60.0, far=far)
        assert desk.submit(gateway.item()) is None
        until(lambda gateway=gateway: gateway.desk.pending()[0] or not gateway.posted.empty())
        if gateway.posted.empty():
            gateway.compute(desk.keep)
    assert [gateway.computed for gateway in gateways] == [1, 1, 0]


def test_a_refusal_after_redis_was_asked_reaches_the_door(bench: Bench, far: RedisShelf) -> None:
    cached = CachedDesk(bench.desk.submit, size_nbytes=100_000, ttl_s=60.0, far=far)
    for value in (1.0, 2.0, 3.0):
        assert cached.submit(bench.item(value)) is None
    refused = bench.posted.get(timeout=10)
    assert isinstance(refused, NotComputed)
    assert refused.code is RejectCode.BUSY


def test_a_redis_that_fails_costs_nothing_but_the_hit(
    bench: Bench, server: TinyRedis, far: RedisShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_redis, "time", SimpleNamespace(monotonic=lambda: 0.0))  # or it is tried again after 1 s
    server.broken = True
    cached = CachedDesk(bench.desk.submit, size_nbytes=100_000, ttl_s=60.0, far=far)
    for value in range(6):
        assert cached.submit(bench.item(float(value))) is None
        bench.compute(cached.keep)
    assert bench.computed == 6
    assert cached.counts["redis_failed"] == 3
