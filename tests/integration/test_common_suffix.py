"""Two cuts of a real bundle share a suffix: one batch holds both, and the answers are those of their tails."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cloud_gateway.desk import Desk
from cloud_gateway.models.joining import alike, joined_lane
from cloud_gateway.models.lanes import Lane, LaneRules, Segment
from cloud_gateway.models.served import ServedVersion, Tail, open_bundle, tail_of
from cloud_gateway.models.worker import Runner
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.work import Computed, Item, Outcome
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search
from protocol import codecs, wire
from protocol import messages as m
from protocol.bundle import Bundle
from protocol.engines.ort import OrtEngine
from protocol.errors import BundleError
from protocol.tensors import Array
from tests import models
from tests.gateways import gateway_of
from tests.wire_client import WireClient, placement

CUTS = ("cut-1", "cut-2")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("suffix")
    np.savez(folder / "data.npz", x=models.image_samples())
    order = Order(
        models.write(models.residual(), folder),
        folder / "bundle",
        cuts=(("r1",), ("r3",)),
        calibration=folder / "data.npz",
        search=Search(memory=False),
        precision="fp32",
        bound=0.2,
        common_suffix=True,
    )
    return Bundle.open(build(order, Silent()).target)


def crossing(bundle: Bundle, cut: str) -> dict[str, Array]:
    """What a device sends under that cut, of the sample with the cut's number."""
    entry = placement(bundle, cut)
    assert entry.head is not None
    number = CUTS.index(cut)
    with OrtEngine(bundle.graph(entry.head), label=cut) as head:
        made = head.infer({"x": models.image_samples()[number : number + 1]})
    return {name: made[name] for name in entry.cut}


def expected(bundle: Bundle, cut: str, *, optimise: bool) -> Array:
    entry = placement(bundle, cut)
    assert entry.tail is not None
    with OrtEngine(bundle.graph(entry.tail), label=cut, optimise=optimise) as tail:
        return tail.infer(crossing(bundle, cut))["logits"]


class Served:
    """The bundle's two cuts in one lane, whether or not that pays, and requests by hand."""

    def __init__(self, version: ServedVersion, *, optimise: bool) -> None:
        def engine(part: Tail) -> OrtEngine:
            return OrtEngine(part.graph(), label=part.label, optimise=optimise)

        tails = [tail for tail in version.tails if tail.placement in CUTS]
        self.apart = [self._lane(tail, engine(tail)) for tail in tails]
        (found,) = alike(tails, self.apart)
        lane = joined_lane("joined", found, engine, worth=lambda lane, apart: True)
        assert lane is not None
        self.lane, self.found = lane, found
        self.lane.max_rows = 16
        self.segments = {}
        for tail in tails:
            assert tail.boundary is not None
            assert tail.joint is not None
            scope = Scope("toy", "1", tail.placement)
            bridge = lane.bridges[tail.joint.bridge.key]
            self.segments[tail.placement] = Segment(
                lane, tail.boundary, version.digest, "fp32", tail.placement, scope, bridge=bridge
            )
        self.desk = Desk(Limits(), threads=1)
        self.desk.open(lane)

    @staticmethod
    def _lane(tail: Tail, engine: OrtEngine) -> Lane:
        engine.activate()
        assert tail.boundary is not None
        axes = tail.output_axes
        return Lane(tail.key, engine, boundary=tail.boundary, output_axes=axes, batchable=True, rules=LaneRules())

    def close(self) -> None:
        for lane in (self.lane, *self.apart):
            lane.deactivate()

    def run(self, requests: Iterable[tuple[str, dict[str, Array]]]) -> list[Computed]:
        """The outcomes of one batch, in the order of the requests."""
        items = [self._item(cut, tensors) for cut, tensors in requests]
        for item in items:
            assert self.desk.submit(item) is None
        dispatch = self.desk.take(0)
        assert dispatch is not None
        made = Runner(self.desk, Ledger(now=time.monotonic())).run(0, dispatch)
        found = {id(outcome.item): outcome for outcome in made if isinstance(outcome, Computed)}
        return [found[id(item)] for item in items]

    def _item(self, cut: str, tensors: dict[str, Array]) -> Item:
        segment = self.segments[cut]
        encoded = [codecs.encode(b.spec.name, tensors[b.spec.name], b.codec) for b in segment.boundary]
        headers, parts = tuple(h for h, _ in encoded), [data for _, data in encoded]
        rows, layout = segment.fit(headers)
        now = time.monotonic()
        return Item(
            segment, headers, parts, [1] * len(parts), wire.checksum(parts), rows, layout, 0, now, now + 60, 4, "one",
            self, None,
        )  # fmt: skip

    def post_all(self, items: Iterable[Outcome], /) -> None: ...


@pytest.fixture
def served(bundle: Bundle, request: Any) -> Iterator[Served]:
    found = Served(open_bundle(Path(bundle.root)), optimise=request.param)
    yield found
    found.close()


def logits(done: Computed) -> Array:
    return codecs.decode(done.headers[0], done.buffers[0])


@pytest.mark.parametrize("served", [False], indirect=True)
def test_alone_a_request_is_answered_as_by_its_own_tail_bit_for_bit(bundle: Bundle, served: Served) -> None:
    for cut in CUTS:
        (done,) = served.run([(cut, crossing(bundle, cut))])
        assert np.array_equal(logits(done), expected(bundle, cut, optimise=False))


@pytest.mark.parametrize("served", [True], indirect=True)
def test_one_batch_holds_both_cuts_and_answers_like_their_tails(bundle: Bundle, served: Served) -> None:
    done = served.run([(cut, crossing(bundle, cut)) for cut in (*CUTS, *CUTS)])
    assert [one.batch_size for one in done] == [4] * 4
    for one, cut in zip(done, (*CUTS, *CUTS), strict=True):
        np.testing.assert_allclose(logits(one), expected(bundle, cut, optimise=True), atol=1e-5)


def test_a_manifest_that_names_a_suffix_it_does_not_list_is_refused(bundle: Bundle) -> None:
    files = {name: entry for name, entry in bundle.manifest.files.items() if name != "suffix.onnx"}
    other = Bundle(bundle.root, msgspec.structs.replace(bundle.manifest, files=files), bundle.digest)
    with pytest.raises(BundleError, match=r"the graph 'suffix.onnx' of suffix is not listed"):
        tail_of(other, placement(other, "cut-1"))


@pytest.mark.parametrize("merge", ["auto", "never"])
def test_a_gateway_answers_both_cuts_however_it_serves_them(bundle: Bundle, merge: str) -> None:
    settings: dict[str, object] = {"scheduling.merge": merge}
    with gateway_of(bundle.root, settings=settings) as gateway, WireClient(str(gateway.endpoint)) as client:
        client.greet()
        for number, cut in enumerate(CUTS, 1):
            client.send(*client.infer(placement(bundle, cut), crossing(bundle, cut), number))
            result, parts = client.receive_all()
            assert isinstance(result, m.Result), result
            (data,) = wire.join_parts(result.tensors, parts)
            np.testing.assert_allclose(
                codecs.decode(result.tensors[0], data), expected(bundle, cut, optimise=True), atol=1e-5
            )
