"""The bundle: every changed byte and every file that is not a plain one is refused, by name, before it is parsed."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import msgspec
import pytest

from protocol.bundle import (
    MANIFEST,
    MANIFEST_DIGEST,
    SCHEMA_VERSION,
    BatchProof,
    BoundaryTensor,
    Bundle,
    Conditions,
    FileEntry,
    Manifest,
    ModelInfo,
    PlacementEntry,
    encode_manifest,
    segment_digest,
    sha256,
)
from protocol.errors import BundleError
from protocol.latency import PlacementCost
from protocol.messages import PlacementKind
from protocol.tensors import TensorSpec

# No ONNX in here: opening and hashing must never look inside the files.
CONTENT = {
    "full.onnx": b"the whole model",
    "edge.onnx": b"the whole model in eight bits",
    "cut-1/head.onnx": b"its head",
    "cut-1/tail.onnx": b"its tail",
}
EVERY_FILE = (MANIFEST, MANIFEST_DIGEST, *CONTENT)
IMAGE = TensorSpec("image", "uint8", ("N", 4))
BOUNDARY = (BoundaryTensor(TensorSpec("relu_3", "uint8", ("N", 2)), "zstd", 0, 0.1, 3),)


def placement(id_: str, kind: PlacementKind, head: str | None, tail: str | None, segment: str | None) -> PlacementEntry:
    return PlacementEntry(
        id=id_,
        kind=kind,
        cut=(),
        head=head,
        tail=tail,
        segment=segment,
        precision="int8",
        boundary=BOUNDARY if kind is PlacementKind.CUT else (),
        head_outputs=(),
        batch=BatchProof(True, "seen"),
        cost=PlacementCost(edge_s=0.01),
        certificate=None,
    )


def manifest(names: dict[str, bytes] = CONTENT) -> Manifest:
    full = sha256(CONTENT["full.onnx"])
    cut = segment_digest(sha256(CONTENT["cut-1/head.onnx"]), sha256(CONTENT["cut-1/tail.onnx"]), BOUNDARY)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelInfo("toy", full, full, 17, (IMAGE,), (TensorSpec("logits", "float32", ("N", 10)),)),
        files={name: FileEntry(sha256(data), len(data)) for name, data in names.items()},
        placements=(
            placement("full-cloud", PlacementKind.FULL_CLOUD, None, "full.onnx", full),
            placement("cut-1", PlacementKind.CUT, "cut-1/head.onnx", "cut-1/tail.onnx", cut),
            placement("edge-only", PlacementKind.EDGE_ONLY, "edge.onnx", None, None),
        ),
        conditions=Conditions("here", 1.0, 1, 1, 0.02, "auto", {"isthmus": "0"}, "0" * 64, 8, "2000-01-01T00:00:00Z"),
    )


def write_manifest(root: Path, raw: bytes) -> None:
    (root / MANIFEST).write_bytes(raw)
    (root / MANIFEST_DIGEST).write_text(f"{sha256(raw)}  {MANIFEST}\n", "ascii")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    for name, data in CONTENT.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    write_manifest(path, encode_manifest(manifest()))
    return path


def open_and_read_everything(root: Path) -> None:
    bundle = Bundle.open(root)
    for name in bundle.manifest.files:
        bundle.read(name)


# ---- a sound bundle -------------------------------------------------------------------------------------------------


def test_a_sound_bundle_opens_reads_and_verifies(root: Path) -> None:
    bundle = Bundle.open(root)
    assert bundle.manifest == manifest()
    assert bundle.digest == sha256((root / MANIFEST).read_bytes())
    assert {name: bundle.read(name) for name in CONTENT} == CONTENT
    assert bundle.verify() == len(CONTENT)


def test_a_path_may_be_given_as_text(root: Path) -> None:
    assert Bundle.open(str(root)).manifest.model.name == "toy"


def test_placements_are_found_by_kind_and_by_having_work_for_a_gateway(root: Path) -> None:
    bundle = Bundle.open(root)
    full_cloud = bundle.manifest.placement(PlacementKind.FULL_CLOUD)
    assert full_cloud is not None
    assert full_cloud.id == "full-cloud"
    assert [p.id for p in bundle.remote_segments()] == ["full-cloud", "cut-1"]


def test_the_manifest_is_written_the_same_way_every_time() -> None:
    assert encode_manifest(manifest()) == encode_manifest(manifest())
    assert msgspec.json.decode(encode_manifest(manifest()), type=Manifest) == manifest()


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_changed_byte_in_any_file_is_refused_with_the_files_name(root: Path, name: str, where: str) -> None:
    data = bytearray((root / name).read_bytes())
    # In the digest file only the digest counts, not the name written after it.
    length = 64 if name == MANIFEST_DIGEST else len(data)
    data[{"first": 0, "middle": length // 2, "last": length - 1}[where]] ^= 0x01
    (root / name).write_bytes(data)
    with pytest.raises(BundleError, match=name):
        open_and_read_everything(root)


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("change", ["emptied", "longer", "shorter"])
def test_a_file_of_another_length_is_refused_with_its_name(root: Path, name: str, change: str) -> None:
    data = (root / name).read_bytes()
    cut = data[:20] if name == MANIFEST_DIGEST else data[:-1]
    longer = b"0" + data if name == MANIFEST_DIGEST else data + b" "
    (root / name).write_bytes({"emptied": b"", "longer": longer, "shorter": cut}[change])
    with pytest.raises(BundleError, match=name):
        open_and_read_everything(root)


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_missing_file_is_refused_with_its_name(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(BundleError, match=name):
        open_and_read_everything(root)


def test_two_files_that_changed_places_are_refused(root: Path) -> None:
    head, tail = root / "cut-1/head.onnx", root / "cut-1/tail.onnx"
    spare = root / "spare"
    head.rename(spare)
    tail.rename(head)
    spare.rename(tail)
    with pytest.raises(BundleError, match=r"head\.onnx"):
        open_and_read_everything(root)


def test_a_file_that_the_manifest_does_not_list_is_not_read(root: Path) -> None:
    (root / "stray.onnx").write_bytes(b"who am I")
    with pytest.raises(BundleError, match=r"stray\.onnx"):
        Bundle.open(root).read("stray.onnx")


def test_verify_finds_the_changed_file(root: Path) -> None:
    bundle = Bundle.open(root)
    (root / "cut-1/tail.onnx").write_bytes(b"its TAIL")
    with pytest.raises(BundleError, match=r"tail\.onnx"):
        bundle.verify()


# ---- files that are not plain files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_symbolic_link_is_refused_even_to_the_right_content(root: Path, name: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (root / name).rename(elsewhere)
    (root / name).symlink_to(elsewhere)
    with pytest.raises(BundleError, match=name):
        open_and_read_everything(root)


def test_a_symbolic_link_to_a_directory_inside_the_bundle_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "cut-1").rename(tmp_path / "cut-1")
    (root / "cut-1").symlink_to(tmp_path / "cut-1")
    with pytest.raises(BundleError, match="cut-1"):
        open_and_read_everything(root)


def test_the_bundle_itself_may_be_reached_through_a_symbolic_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(root)
    open_and_read_everything(tmp_path / "current")


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_second_hard_link_is_refused(root: Path, name: str, tmp_path: Path) -> None:
    os.link(root / name, tmp_path / "other-name")
    with pytest.raises(BundleError, match=name):
        open_and_read_everything(root)


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_directory_in_place_of_a_file_is_refused(root: Path, name: str) -> None:
    (root / name).unlink()
    (root / name).mkdir()
    with pytest.raises(BundleError, match=name):
        open_and_read_everything(root)


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_pipe_in_place_of_a_file_is_refused_and_nobody_waits_for_its_writer(root: Path, name: str) -> None:
    """Opening a pipe for reading blocks until somebody writes: a reader that looks only then what it is hangs."""
    (root / name).unlink()
    os.mkfifo(root / name)
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(open_and_read_everything, root)
        waited_in_vain = not wait([opened], timeout=1).done
        if waited_in_vain:
            os.close(os.open(root / name, os.O_RDWR | os.O_NONBLOCK))  # let the thread go
    assert not waited_in_vain, "the reader hangs on the pipe"
    with pytest.raises(BundleError, match=name):
        opened.result()


# ---- what a manifest may say ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "cut-1/../../secret",
        "/etc/passwd",
        "cut-1//head.onnx",
        "./full.onnx",
        "a\\b",
        "a\0b",
        "",
        ".",
        "cut-1/",
    ],
)
def test_a_path_that_is_not_plain_is_refused_on_opening(root: Path, name: str) -> None:
    write_manifest(root, encode_manifest(manifest(CONTENT | {name: b"x"})))
    with pytest.raises(BundleError):
        open_and_read_everything(root)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd"])
def test_a_path_outside_the_bundle_is_refused_by_name_before_any_file_is_touched(root: Path, name: str) -> None:
    (root.parent / "secret").write_bytes(b"x")
    write_manifest(root, encode_manifest(manifest(CONTENT | {name: b"x"})))
    with pytest.raises(BundleError, match=r"passwd|secret"):
        Bundle.open(root)


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, 99])
def test_another_schema_version_is_refused_with_both_numbers(root: Path, version: int) -> None:
    write_manifest(root, encode_manifest(msgspec.structs.replace(manifest(), schema_version=version)))
    with pytest.raises(BundleError, match=rf"version {version} .* {SCHEMA_VERSION}"):
        Bundle.open(root)


def test_a_later_schema_is_named_as_such_even_when_its_fields_are_others(root: Path) -> None:
    write_manifest(root, b'{"schema_version": 2, "everything": "else"}')
    with pytest.raises(BundleError, match="schema version 2"):
        Bundle.open(root)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"schema_version": 1}', b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_does_not_parse_is_refused_by_name(root: Path, raw: bytes) -> None:
    write_manifest(root, raw)
    with pytest.raises(BundleError, match=MANIFEST):
        Bundle.open(root)


def test_a_digest_that_is_none_is_refused(root: Path) -> None:
    raw = encode_manifest(manifest()).replace(sha256(CONTENT["edge.onnx"]).encode(), b"not-a-digest")
    write_manifest(root, raw)
    with pytest.raises(BundleError, match=MANIFEST):
        Bundle.open(root)


def test_no_bundle_at_all_is_refused_with_how_to_build_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="partitioner split"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="partitioner split"):
        Bundle.open(tmp_path)


def test_the_manifest_is_not_parsed_before_its_digest_held(root: Path) -> None:
    (root / MANIFEST).write_bytes(b"{ no json")
    with pytest.raises(BundleError, match=MANIFEST_DIGEST):
        Bundle.open(root)


# ---- segments -------------------------------------------------------------------------------------------------------


def test_a_segments_digest_depends_on_head_tail_and_every_boundary_parameter() -> None:
    tensor = BOUNDARY[0]
    replace = msgspec.structs.replace
    variants = [
        segment_digest("a" * 64, "b" * 64, BOUNDARY),
        segment_digest("c" * 64, "b" * 64, BOUNDARY),
        segment_digest("a" * 64, "c" * 64, BOUNDARY),
        segment_digest("b" * 64, "a" * 64, BOUNDARY),
        segment_digest("a" * 64, "b" * 64, ()),
        segment_digest("a" * 64, "b" * 64, (tensor, tensor)),
        segment_digest("a" * 64, "b" * 64, (replace(tensor, scale=0.2),)),
        segment_digest("a" * 64, "b" * 64, (replace(tensor, zero_point=4),)),
        segment_digest("a" * 64, "b" * 64, (replace(tensor, codec="raw"),)),
        segment_digest("a" * 64, "b" * 64, (replace(tensor, batch_axis=None),)),
        segment_digest("a" * 64, "b" * 64, (replace(tensor, spec=replace(tensor.spec, name="x")),)),
    ]
    assert len(set(variants)) == len(variants)
    assert variants[0] == segment_digest("a" * 64, "b" * 64, BOUNDARY)
