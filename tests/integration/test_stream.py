"""A camera's frames through a real agent and a real gateway: differences cross, answers are those of whole frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import typer

from cloud_gateway.gateway import Gateway
from cloud_gateway.models.references import References
from edge_agent.client import Client, unwrap
from partitioner.options import PlanFlags
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search
from partitioner.planning.recheck import recheck
from protocol import codecs
from protocol.bundle import Bundle, PlacementEntry
from protocol.engines.ort import OrtEngine
from tests import models
from tests.gateways import gateway_of
from tests.wire_client import placement

Array = npt.NDArray[Any]
PLACEMENTS = ("cut-1", "full-cloud.delta")


@pytest.fixture(scope="module")
def frames() -> Array:
    """uint8 [48, 32, 32, 3]: a wide textured picture that the camera pans over now and then, with a little noise."""
    rng = np.random.default_rng(8)
    scene = np.kron(rng.integers(0, 256, (16, 24, 3)), np.ones((2, 2, 1)))
    made = np.stack([scene[:, i // 6 : i // 6 + 32] for i in range(48)])
    return np.clip(made + (rng.random(made.shape) < 0.003), 0, 255).astype(np.uint8)


def built(folder: Path, frames: Array, *, stream: bool) -> Path:
    np.savez(folder / "frames.npz", x=frames)
    order = Order(
        model=models.write(models.residual(), folder),
        target=folder / "bundle",
        cuts=(("r1",),),
        calibration=folder / "frames.npz",
        precision="fp32",
        inputs=("x,scale=1/255,size=32x32,resize=16x16",),
        search=Search(memory=False),
        recipe_budget_s=0.0,
        lossless_input=True,
        bound=1.0,
        stream=stream,
    )
    return build(order, Silent()).target


@pytest.fixture(scope="module")
def stream_bundle(tmp_path_factory: pytest.TempPathFactory, frames: Array) -> Path:
    return built(tmp_path_factory.mktemp("stream"), frames, stream=True)


@pytest.fixture(scope="module")
def single_bundle(tmp_path_factory: pytest.TempPathFactory, frames: Array) -> Path:
    return built(tmp_path_factory.mktemp("single"), frames, stream=False)


@pytest.fixture
def gateway(stream_bundle: Path) -> Iterator[Gateway]:
    with gateway_of(stream_bundle, settings={"drain.grace_s": 0.5}) as running:
        yield running


def entry_of(root: Path, id_: str) -> PlacementEntry:
    return placement(Bundle.open(root), id_)


def wanted(root: Path, id_: str, x: Array) -> Array:
    """head -> codec, frame by frame alone -> tail, in this process; float32 [1, 10]."""
    entry, opened = entry_of(root, id_), Bundle.open(root)
    values: dict[str, Array] = {"x": x}
    if entry.head:
        with OrtEngine(opened.graph(entry.head), label="head") as head:
            values = dict(head.infer(values))
    names = {b.spec.name: b for b in entry.boundary}
    sent = {n: codecs.decode(*codecs.encode(n, values[n], b.codec, b.levels)) for n, b in names.items()}
    assert entry.tail is not None
    with OrtEngine(opened.graph(entry.tail), label="tail") as tail:
        return tail.infer(sent)["logits"]


def test_a_stream_is_planned_with_differences_and_single_pictures_are_not(
    stream_bundle: Path, single_bundle: Path
) -> None:
    entries = Bundle.open(stream_bundle).manifest.placements
    assert {b.codec for e in entries if e.id in PLACEMENTS for b in e.boundary} == {"delta"}
    assert Bundle.open(stream_bundle).manifest.conditions.stream
    assert not any(b.codec == "delta" for e in Bundle.open(single_bundle).manifest.placements for b in e.boundary)
    after, alone = (entry_of(root, "cut-1").cost.up_nbytes for root in (stream_bundle, single_bundle))
    assert after < 0.8 * alone


def test_frames_judge_that_come_after_those_that_calibrate(stream_bundle: Path) -> None:
    certificates = [e.certificate for e in Bundle.open(stream_bundle).manifest.placements if e.certificate]
    assert {c.samples for c in certificates} == {24}
    checked = recheck(stream_bundle, stream_bundle.parent / "frames.npz")
    assert {p.samples for p in checked.placements} == {24}


def test_a_stream_without_frames_to_calibrate_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="--stream needs --calibration"):
        PlanFlags(stream=True).check()
    PlanFlags(stream=True, calibration=tmp_path).check()


@pytest.mark.parametrize("id_", PLACEMENTS)
def test_every_frame_is_answered_as_if_it_had_crossed_alone_and_all_but_the_first_are_small(
    gateway: Gateway, stream_bundle: Path, frames: Array, id_: str
) -> None:
    with Client(stream_bundle, gateway=str(gateway.endpoint), placements=(id_,)) as client:
        assert client.wait_ready(20)
        answers = [unwrap(client.infer({"x": f[None]}, deadline_s=5)) for f in frames[:10]]
    for frame, answer in zip(frames, answers, strict=False):
        assert (answer.placement, answer.attempts) == (id_, 1)
        np.testing.assert_allclose(answer.outputs["logits"], wanted(stream_bundle, id_, frame[None]), atol=1e-5)
    first, *others = (answer.up_nbytes for answer in answers)
    assert np.median(others) < 0.8 * first
    assert "rejected_UNKNOWN_REFERENCE" not in gateway.stats()


def test_a_camera_that_writes_every_frame_into_the_same_array_costs_no_refusal(
    gateway: Gateway, stream_bundle: Path, frames: Array
) -> None:
    buffer = np.empty((1, *frames.shape[1:]), np.uint8)
    with Client(stream_bundle, gateway=str(gateway.endpoint), placements=("full-cloud.delta",)) as client:
        assert client.wait_ready(20)
        for frame in frames[:6]:
            buffer[0] = frame
            assert unwrap(client.infer({"x": buffer}, deadline_s=5)).attempts == 1


def test_many_frames_on_their_way_at_once_refer_to_what_is_surely_there(
    gateway: Gateway, stream_bundle: Path, frames: Array
) -> None:
    with Client(stream_bundle, gateway=str(gateway.endpoint), placements=("cut-1",)) as client:
        assert client.wait_ready(20)
        for some in np.split(frames[:40], 5):
            pending = [client.agent.submit({"x": f[None]}, deadline_s=10) for f in some]
            for frame, future in zip(some, pending, strict=True):
                got = unwrap(future.result(timeout=15)).outputs["logits"]
                np.testing.assert_allclose(got, wanted(stream_bundle, "cut-1", frame[None]), atol=1e-4)
        assert client.agent.uplink.stats["rejected_UNKNOWN_REFERENCE"] == 0


def test_a_gateway_that_forgot_costs_one_refusal_and_no_answer(
    gateway: Gateway, stream_bundle: Path, frames: Array
) -> None:
    lane = gateway.catalogue.segments[bytes.fromhex(entry_of(stream_bundle, "cut-1").segment or "")].lane
    with Client(stream_bundle, gateway=str(gateway.endpoint), placements=("cut-1",)) as client:
        assert client.wait_ready(20)
        unwrap(client.infer({"x": frames[0][None]}, deadline_s=5))
        lane.references = References()
        got = unwrap(client.infer({"x": frames[1][None]}, deadline_s=5))
        assert (got.attempts, got.degraded) == (2, ())
        np.testing.assert_allclose(got.outputs["logits"], wanted(stream_bundle, "cut-1", frames[1][None]), atol=1e-5)
        after = unwrap(client.infer({"x": frames[2][None]}, deadline_s=5))
        assert (after.attempts, after.up_nbytes < got.up_nbytes) == (1, True), "the stream goes on in differences"
        assert client.agent.uplink.stats["rejected_UNKNOWN_REFERENCE"] == 1


def test_another_gateway_process_is_sent_a_whole_frame_first(stream_bundle: Path, frames: Array) -> None:
    first = gateway_of(stream_bundle, settings={"drain.grace_s": 0.0})
    first.start()
    endpoint = str(first.endpoint)
    with Client(stream_bundle, gateway=endpoint, placements=("cut-1",)) as client:
        assert client.wait_ready(20)
        whole, difference = (unwrap(client.infer({"x": f[None]}, deadline_s=5)).up_nbytes for f in frames[:2])
        assert difference < whole
        first.close()
        with gateway_of(stream_bundle, bind=endpoint) as second:
            got = unwrap(client.infer({"x": frames[2][None]}, deadline_s=30))
            np.testing.assert_allclose(
                got.outputs["logits"], wanted(stream_bundle, "cut-1", frames[2][None]), atol=1e-5
            )
            assert got.up_nbytes > difference
            # At most the one that was encoded before the first gateway's end was noticed.
            assert second.stats().get("rejected_UNKNOWN_REFERENCE", 0) <= 1
