"""A question whose answers are known: what travels with a bundle, how far off is too far, and files that are none."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from protocol import known
from protocol.bundle import MANIFEST, MANIFEST_DIGEST, Bundle, FileEntry, encode_manifest, sha256
from protocol.errors import BundleError
from protocol.tensors import Array
from tests.bundles import bundle_in

HEAD = "edge.onnx"


def bundle_with(folder: Path, data: bytes) -> Bundle:
    made = bundle_in(folder, {HEAD: b"edge", "full.onnx": b"full"})
    (folder / known.FILE).write_bytes(data)
    listing = encode_manifest(
        replace(
            made.manifest,
            files={**made.manifest.files, known.FILE: FileEntry(sha256(data), len(data))},
            known=known.described({HEAD: 0.02}),
        )
    )
    (folder / MANIFEST).write_bytes(listing)
    (folder / MANIFEST_DIGEST).write_text(f"{sha256(listing)}  {MANIFEST}\n")
    return Bundle.open(folder)


def drawn(*shape: int) -> Array:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def question_of(bundle: Bundle) -> dict[str, Array]:
    return {
        s.name: drawn(*(d if isinstance(d, int) else 1 for d in s.shape)).astype(s.numpy_dtype)
        for s in bundle.manifest.model.inputs
    }


def test_question_and_answers_come_back_as_they_were_put_in(tmp_path: Path) -> None:
    question = question_of(bundle_in(tmp_path / "plain", {HEAD: b"edge"}))
    answers = {HEAD: {"logits": drawn(1, 10), "codes": np.arange(9, dtype=np.uint8)}}
    data = known.encode(question, answers)
    assert data == known.encode(question, answers), "the same values give the same file"
    found = known.of(bundle_with(tmp_path / "bundle", data))
    assert found is not None
    for name, values in question.items():
        assert found[0][name].dtype == values.dtype
        assert np.array_equal(found[0][name], values)
    assert {n: v.tolist() for n, v in found[1][HEAD].items()} == {n: v.tolist() for n, v in answers[HEAD].items()}


def test_values_that_fit_are_kept_in_half_the_room() -> None:
    exact = {"x": np.arange(2048, dtype=np.float32).repeat(2)}
    assert len(known.encode(exact, {})) < 4096 * 4
    assert len(known.encode({"x": drawn(4096)}, {})) > 4096 * 4


def test_long_tensors_are_thinned_evenly() -> None:
    values = np.arange(100_000)
    kept = known.thinned(values.reshape(100, 1000))
    assert len(kept) <= known.MOST_VALUES
    assert set(np.diff(kept)) == {13}
    assert np.array_equal(known.thinned(values[:5]), values[:5])


@pytest.mark.parametrize(
    ("made", "least", "most"),
    [
        (drawn(1000), 0.0, 0.0),
        (drawn(1000) + 0.01, 0.005, 0.02),
        (drawn(1000) * 1.1, 0.09, 0.11),
        (np.random.default_rng(4).standard_normal(1000), 1.2, 1.6),
        (-drawn(1000), 1.9, 2.1),
        (drawn(999), np.inf, np.inf),
        (np.full(1000, np.nan), np.inf, np.inf),
    ],
)
def test_the_measure_tells_small_differences_from_other_values(made: Array, least: float, most: float) -> None:
    assert least <= known.deviation(made, drawn(1000)) <= most


def test_an_offset_does_not_make_other_values_look_alike() -> None:
    noise = np.random.default_rng(5).standard_normal(1000)
    assert known.deviation(noise + 100, drawn(1000) + 100) > 1.0


def test_one_number_is_compared_by_its_size() -> None:
    assert known.deviation(np.array([2.02]), np.array([2.0])) == pytest.approx(0.01)
    assert known.deviation(np.array([0.0]), np.array([0.0])) == 0.0
    assert known.deviation(np.array([1.0]), np.array([0.0])) == np.inf


def test_a_head_may_be_off_by_what_the_build_measured_and_some() -> None:
    assert known.allowed(0.0, "fp32") == 0.01
    assert known.allowed(0.1, "int8") == pytest.approx(0.4)
    assert known.worst({"a": drawn(5)}, {"a": drawn(5), "gone": drawn(5)}) == (np.inf, "gone")


def squeezed() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **{"question:x": np.zeros(10_000_000, np.uint8)})  # type: ignore[arg-type]
    return out.getvalue()


def flagged(bit: int) -> bytes:
    """An archive whose member says of itself that it is encrypted (0x1) or a patch (0x20), in both its headers."""
    out = io.BytesIO()
    np.savez(out, **{"question:x": np.zeros(10, np.uint8)})  # type: ignore[arg-type]
    data = bytearray(out.getvalue())
    data[data.index(b"PK\x03\x04") + 6] |= bit
    data[data.index(b"PK\x01\x02") + 8] |= bit
    return bytes(data)


@pytest.mark.parametrize("data", [flagged(0x1), flagged(0x20)])
def test_an_archive_that_claims_to_be_encrypted_or_a_patch_is_refused_in_a_sentence(
    tmp_path: Path, data: bytes
) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        known.of(bundle_with(tmp_path, data))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no archive", squeezed(), known.encode({}, {}), bytes(2 << 20)])
def test_what_is_no_such_file_is_refused_in_a_sentence(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BundleError, match=r"known\.npz"):
        known.of(bundle_with(tmp_path, data))


def test_a_bundle_without_one_asks_nothing(tmp_path: Path) -> None:
    assert known.of(bundle_in(tmp_path, {HEAD: b"edge"})) is None
