"""Placements that differ only in the codec, through a real agent and a real gateway: each gives its own answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from cloud_gateway.gateway import Gateway
from cloud_gateway.work import nbytes_of
from edge_agent.agent import Agent, AgentConfig
from edge_agent.client import Client, unwrap
from edge_agent.heads import Heads
from edge_agent.outcomes import Answer
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search
from protocol import bundle, codecs, drift, wire
from protocol import messages as m
from protocol.bundle import Bundle, Levels, PlacementEntry
from protocol.engines.ort import OrtEngine
from protocol.messages import PlacementKind
from protocol.tensors import TensorHeader
from tests import models
from tests.gateways import gateway_of
from tests.wire_client import WireClient, placement

Array = npt.NDArray[Any]
NORMAL = "scale=1/255,mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
FEW = {  # levels of the siblings that the fixture adds: two, three (sparse or not) and sixteen of them
    "q2": Levels((40,), (0, 90)),
    "q3": Levels((20, 90), (3, 50, 140)),
    "q16": Levels(tuple(range(16, 256, 16)), tuple(range(8, 256, 16))),
}
CLOUD = ("png", "jpeg95", "jpeg60")


def with_siblings(root: Path) -> Path:
    """The bundle with `cut-1` and `full-cloud` under further codecs, whatever its own planner kept of them."""
    opened = Bundle.open(root)
    manifest, files = opened.manifest, opened.manifest.files
    kept = [e for e in manifest.placements if "." not in e.id]
    added: list[PlacementEntry] = []
    for entry in kept:
        names: list[tuple[str, Levels | None]] = []
        if entry.kind is PlacementKind.CUT:
            names = list(FEW.items())
        elif entry.kind is PlacementKind.FULL_CLOUD:
            names = [(name, None) for name in CLOUD]
        for name, levels in names:
            codec = "levels" if levels else name
            sent = tuple(msgspec.structs.replace(b, codec=codec, levels=levels) for b in entry.boundary)
            segment = entry.segment
            if entry.head and entry.tail:
                segment = bundle.segment_digest(files[entry.head].sha256, files[entry.tail].sha256, sent)
            id_ = f"{entry.id}.{name}"
            added.append(msgspec.structs.replace(entry, id=id_, boundary=sent, segment=segment))
    raw = bundle.encode_manifest(msgspec.structs.replace(manifest, placements=(*kept, *added), plan=()))
    (root / bundle.MANIFEST).write_bytes(raw)
    (root / bundle.MANIFEST_DIGEST).write_text(f"{bundle.sha256(raw)}  {bundle.MANIFEST}\n")
    return root


@pytest.fixture(scope="module")
def pictures() -> Array:
    """uint8 [32, 24, 32, 3]: smooth, so that JPEG has something to keep."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (32, 6, 8, 3))
    return np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2).astype(np.uint8)


@pytest.fixture(scope="module")
def family_bundle(tmp_path_factory: pytest.TempPathFactory, pictures: Array) -> Path:
    folder = tmp_path_factory.mktemp("family")
    np.savez(folder / "data.npz", x=pictures)
    order = Order(
        model=models.write(models.residual(), folder),
        target=folder / "bundle",
        cuts=(("r1",),),
        calibration=folder / "data.npz",
        precision="fp32",
        inputs=(f"x,{NORMAL},size=24x32,resize=16x16",),
        search=Search(memory=False),
        recipe_budget_s=0.0,
        bound=1.0,
    )
    build(order, Silent())
    return with_siblings(order.target)


@pytest.fixture
def gateway(family_bundle: Path) -> Iterator[Gateway]:
    with gateway_of(family_bundle, settings={"drain.grace_s": 2.0}) as running:
        yield running


def ids(root: Path, start: str) -> list[str]:
    return [e.id for e in Bundle.open(root).manifest.placements if e.id.startswith(start)]


def in_process(root: Path, entry: PlacementEntry, x: Array) -> Array:
    """head -> encode -> decode -> tail without any network; float32 [N, 10]."""
    opened = Bundle.open(root)
    values: dict[str, Array] = {"x": x}
    if entry.head:
        with OrtEngine(opened.graph(entry.head), label="head") as head:
            values = dict(head.infer(values))
    sent = {
        b.spec.name: codecs.decode(*codecs.encode(b.spec.name, values[b.spec.name], b.codec, b.levels))
        for b in entry.boundary
    }
    assert entry.tail is not None
    with OrtEngine(opened.graph(entry.tail), label="tail") as tail:
        return tail.infer(sent)["logits"]


def crossing(root: Path, entry: PlacementEntry, x: Array) -> dict[str, Array]:
    if entry.head is None:
        return {"x": x}
    with OrtEngine(Bundle.open(root).graph(entry.head), label="head") as head:
        return dict(head.infer({"x": x}))


def asked(client: WireClient, root: Path, entry: PlacementEntry, x: Array, number: int) -> tuple[m.Infer, list[bytes]]:
    """An Infer under the placement's own codec, and its payload."""
    values = crossing(root, entry, x)
    made = [codecs.encode(b.spec.name, values[b.spec.name], b.codec, b.levels) for b in entry.boundary]
    payload = [bytes(data) for _, data in made]
    assert entry.segment is not None
    infer = m.Infer(
        request=m.RequestId(client.boot, number),
        segment=bytes.fromhex(entry.segment),
        attempt=1,
        budget_us=5_000_000,
        priority=4,
        tensors=tuple(header for header, _ in made),
        checksum=wire.checksum(payload),
    )
    return infer, payload


def with_payload(infer: m.Infer, payload: bytes) -> m.Infer:
    header = msgspec.structs.replace(infer.tensors[0], nbytes=len(payload))
    return msgspec.structs.replace(infer, tensors=(header,), checksum=wire.checksum([payload]))


def test_every_codec_of_every_family_gives_what_head_codec_and_tail_give_in_one_process(
    gateway: Gateway, family_bundle: Path, pictures: Array
) -> None:
    entries = [e for e in Bundle.open(family_bundle).manifest.placements if e.kind is not PlacementKind.EDGE_ONLY]
    assert {e.id.partition(".")[2] for e in entries} == {"", *FEW, *CLOUD}
    for entry in entries:
        with Client(family_bundle, gateway=str(gateway.endpoint), placements=(entry.id,)) as client:
            assert client.wait_ready(20)  # a connection that is made anew takes 8 s
            got = unwrap(client.infer({"x": pictures[:1]}, deadline_s=5))
        assert (got.placement, got.degraded) == (entry.id, ())
        np.testing.assert_allclose(got.outputs["logits"], in_process(family_bundle, entry, pictures[:1]), atol=1e-5)


def test_requests_under_different_codecs_of_one_cut_share_batches_and_each_gets_its_own_answer(
    gateway: Gateway, family_bundle: Path, pictures: Array
) -> None:
    entries = [placement(Bundle.open(family_bundle), id_) for id_ in ids(family_bundle, "cut-1")]
    (lane,) = {gateway.catalogue.segments[bytes.fromhex(e.segment or "")].lane for e in entries}
    gateway.desk.bound(lane, 16)  # on a tail this small batching may not pay, but it has to be right
    wanted = {n: (e, pictures[n : n + 1]) for n, e in enumerate(entries * 4)}
    answers = {n: in_process(family_bundle, e, x) for n, (e, x) in wanted.items()}
    sizes = set()
    with WireClient(str(gateway.endpoint)) as client:
        client.greet()
        messages = [asked(client, family_bundle, e, x, n) for n, (e, x) in wanted.items()]
        for round_ in range(0, 10_000, 100):
            with gateway.desk.paused():  # nothing is taken before all have come
                for infer, payload in messages:
                    request = m.RequestId(client.boot, infer.request.sequence + round_)
                    client.send(msgspec.structs.replace(infer, request=request), tuple(payload))
            for result, parts in [client.receive_all() for _ in messages]:
                assert isinstance(result, m.Result), result
                sizes.add(result.timings.batch_size)
                got = codecs.decode(result.tensors[0], wire.join_parts(result.tensors, parts)[0])
                np.testing.assert_allclose(got, answers[result.request.sequence - round_], atol=1e-4)
            if max(sizes) > 1:
                break
    assert max(sizes) > 1, sizes


def hostile(codec: str, good: bytes, elements: int) -> dict[str, bytes]:
    """Payloads that lie, by what they do."""
    cases = {"empty": b"", "one byte": good[:1], "truncated": good[: len(good) // 2]}
    if not codec.startswith("jpeg"):  # cameras append to their files what no decoder needs
        cases["followed"] = good + b"more"
    if codec == "levels":
        bomb = codecs.encode("b", np.zeros(50_000_000, np.uint8), "zstd")[1]
        cases |= {
            "a form that is none": bytes((9,)) + good[1:],
            "a bomb": bytes((1, 1, 0, 255)) + bytes(bomb),
            "a sparse bomb": bytes((2, 2, 0, 1, 255, 0)) + elements.to_bytes(4, "little") + bytes(bomb),
            "more others than elements": bytes((2, 2, 0, 1, 255, 0)) + b"\xff" * 4 + bytes(bomb),
        }
    else:
        size = np.zeros((1, 4000, 4000, 3), np.uint8)
        other = "png" if codec.startswith("jpeg") else "jpeg"
        cases |= {
            "a picture of another size": bytes(codecs.encode("b", size, codec)[1]),
            "a file of another format": bytes(codecs.encode("b", size[:, :24, :32], other)[1]),
        }
    return cases


@pytest.mark.parametrize("id_", ["cut-1.q2", "cut-1.q3", "cut-1.q16", "full-cloud.png", "full-cloud.jpeg95"])
def test_a_hostile_payload_is_refused_in_words_and_harms_nobody_in_its_batch(
    gateway: Gateway, family_bundle: Path, pictures: Array, id_: str
) -> None:
    entry = placement(Bundle.open(family_bundle), id_)
    lane = gateway.catalogue.segments[bytes.fromhex(entry.segment or "")].lane
    gateway.desk.bound(lane, 16)
    x = pictures[:1]
    with WireClient(str(gateway.endpoint)) as client:
        client.greet()
        infer, (good,) = asked(client, family_bundle, entry, x, 0)
        cases = hostile(entry.boundary[0].codec, good, infer.tensors[0].decoded_nbytes())
        with gateway.desk.paused():
            for number, bad in enumerate(cases.values(), 1):
                request = m.RequestId(client.boot, number)
                client.send(msgspec.structs.replace(with_payload(infer, bad), request=request), (bad,))
            client.send(infer, (good,))
        replies = [client.receive_all() for _ in range(len(cases) + 1)]
    told = {names[0].request.sequence: names for names in replies if isinstance(names[0], m.Reject | m.Result)}
    for number, what in enumerate(cases, 1):
        reply = told[number][0]
        assert isinstance(reply, m.Reject), what
        assert (reply.code, len(reply.reason) > 10) == (m.RejectCode.BAD_REQUEST, True), what
    result, parts = told[0]
    assert isinstance(result, m.Result), result
    answer = codecs.decode(result.tensors[0], wire.join_parts(result.tensors, parts)[0])
    np.testing.assert_allclose(answer, in_process(family_bundle, entry, x), atol=1e-4)


def test_a_lossy_request_is_admitted_by_what_it_will_hold_decoded() -> None:
    header = TensorHeader("x", "uint8", (1, 1024, 1024, 3), "jpeg95", 900)
    assert nbytes_of((header,)) == 1024 * 1024 * 3
    assert nbytes_of((msgspec.structs.replace(header, shape=(1, 4, 4, 3)),)) == 900  # or as sent, if that is more


# ---- drift ----------------------------------------------------------------------------------------------------------


def test_a_request_whose_codes_saturate_counts_as_drifted_and_an_ordinary_one_does_not(
    gateway: Gateway, family_bundle: Path, pictures: Array
) -> None:
    entry = placement(Bundle.open(family_bundle), "cut-1.q3")
    expected = drift.expected_ppm(entry.boundary)
    assert expected is not None
    with WireClient(str(gateway.endpoint)) as client:
        client.greet()
        ordinary, payload = asked(client, family_bundle, entry, pictures[:1], 1)
        for number, ppm in enumerate((int(expected), int(4 * expected) + 3_000, None), 1):
            request = m.RequestId(client.boot, number)
            client.send(msgspec.structs.replace(ordinary, request=request, outer_ppm=ppm), tuple(payload))
            assert isinstance(client.receive(), m.Result)
    assert gateway.stats()["drifted"] == 1


@pytest.mark.parametrize("id_", ["cut-1", "cut-1.q2"])
def test_the_agent_reports_the_share_of_saturated_codes_before_they_are_put_on_few_levels(
    family_bundle: Path, pictures: Array, id_: str
) -> None:
    opened = Bundle.open(family_bundle)
    entry = placement(opened, id_)
    heads = Heads(opened)
    heads.activate()
    try:
        told = heads.prepare(id_, {"x": pictures[:1]}).outer_ppm
        assert heads.prepare("full-cloud", {"x": pictures[:1]}).outer_ppm is None
    finally:
        heads.deactivate()
    (tensor,) = entry.boundary
    codes = crossing(family_bundle, entry, pictures[:1])[tensor.spec.name]
    ends = int((codes == 255).sum()) + (int((codes == 0).sum()) if tensor.zero_point else 0)
    assert told == round(1e6 * ends / codes.size)


# ---- heads and codecs that are not there ----------------------------------------------------------------------------


def test_the_head_of_a_family_is_loaded_once(family_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle.open(family_bundle)
    read: list[str] = []
    graph = opened.graph

    def noted(name: str) -> bytes:
        read.append(name)
        return graph(name)

    monkeypatch.setattr(opened, "graph", noted)
    heads = Heads(opened)
    heads.activate()
    heads.deactivate()
    assert sorted(read) == ["cut-1/head.onnx", "edge.onnx"]


def test_a_head_that_does_not_load_disables_its_whole_family_with_the_reason(
    family_bundle: Path, monkeypatch: pytest.MonkeyPatch, pictures: Array
) -> None:
    opened = Bundle.open(family_bundle)
    graph = opened.graph
    monkeypatch.setattr(opened, "graph", lambda name: b"no graph" if name.startswith("cut-1") else graph(name))
    heads = Heads(opened)
    try:
        heads.activate()
        assert sorted(heads.failed) == sorted(ids(family_bundle, "cut-1"))
        assert len(set(heads.failed.values())) == 1
        assert heads.prepare("full-cloud.jpeg95", {"x": pictures[:1]}).nbytes > 0
    finally:
        heads.deactivate()


@pytest.fixture
def without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n == "PIL" or n.startswith("PIL.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)


@pytest.mark.usefixtures("without_pillow")
def test_an_agent_without_pillow_never_chooses_what_it_cannot_encode_and_says_why(
    gateway: Gateway, family_bundle: Path, pictures: Array
) -> None:
    with Agent(AgentConfig(family_bundle, str(gateway.endpoint))) as agent:
        assert sorted(agent.heads.failed) == sorted(f"full-cloud.{name}" for name in CLOUD)
        assert all("needs Pillow" in why or "need Pillow" in why for why in agent.heads.failed.values())
        got = agent.submit({"x": pictures[:1]}, deadline_s=5.0).result(timeout=10)
        assert isinstance(got, Answer)


def test_a_gateway_without_pillow_starts_serves_the_rest_and_says_what_is_missing(
    family_bundle: Path, pictures: Array, request: pytest.FixtureRequest
) -> None:
    opened = Bundle.open(family_bundle)
    with WireClient("tcp://127.0.0.1:1") as preparing:
        jpeg = asked(preparing, family_bundle, placement(opened, "full-cloud.jpeg95"), pictures[:1], 1)
        raw = asked(preparing, family_bundle, placement(opened, "full-cloud"), pictures[:1], 2)
        levels = asked(preparing, family_bundle, placement(opened, "cut-1.q3"), pictures[:1], 3)
    request.getfixturevalue("without_pillow")
    with (
        gateway_of(family_bundle) as bare,
        WireClient(str(bare.endpoint)) as client,
    ):
        client.greet()
        replies = []
        for infer, payload in (jpeg, raw, levels):
            client.send(infer, tuple(payload))
            replies.append(client.receive())
    assert isinstance(replies[0], m.Reject)
    assert replies[0].code is m.RejectCode.BAD_REQUEST
    assert "need Pillow" in replies[0].reason
    assert [type(r) for r in replies[1:]] == [m.Result, m.Result]
