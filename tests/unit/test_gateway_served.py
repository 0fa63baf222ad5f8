"""What a version folder holds: three formats that look alike once opened, and nothing but plain files inside."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, numpy_helper

from cloud_gateway.models.served import ServedVersion, open_bundle, open_version, safe_name
from cloud_gateway.models.settings import VersionPolicy
from protocol.bundle import Bundle
from protocol.engines.ort import OrtEngine
from protocol.errors import BundleError, InputError, ModelError
from protocol.messages import PlacementKind
from tests import models

CONFIG = """
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [3, 16, 16] }]
output [{ name: "logits" data_type: TYPE_FP32 dims: [10] }]
"""


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """models/toy/1/model.onnx"""
    folder = tmp_path / "models" / "toy" / "1"
    folder.mkdir(parents=True)
    onnx.save(models.residual(), folder / "model.onnx")
    return folder


@pytest.fixture
def weighty(tmp_path: Path) -> Path:
    """A model that keeps its large weights in a file beside it."""
    folder = tmp_path / "models" / "weighty" / "1"
    folder.mkdir(parents=True)
    model = models.residual()
    external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=256)
    onnx.save(model, folder / "model.onnx")
    return folder


def point_at(folder: Path, location: str) -> None:
    """Let the model's first weight name the file `location`."""
    model = models.residual()
    weight = model.graph.initializer[0]
    external_data_helper.set_external_data(weight, location)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    (folder / "model.onnx").write_bytes(model.SerializeToString())


# ---- the three formats ----------------------------------------------------------------------------------------------


def test_a_bundle_gives_one_tail_for_every_placement_with_work_for_a_gateway(toy_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "toy" / "3"
    shutil.copytree(toy_bundle, folder)
    bundle = Bundle.open(toy_bundle)

    version = open_version("toy", 3, folder)

    entries = list(bundle.remote_segments())
    assert (version.name, version.version, version.format, version.digest) == ("toy", 3, "bundle", bundle.digest)
    assert version.model_digest.hex() == bundle.manifest.model.digest
    assert [tail.placement for tail in version.tails] == [entry.id for entry in entries]
    for tail, entry in zip(version.tails, entries, strict=True):
        assert tail.key == bundle.manifest.files[entry.tail or ""].sha256
        assert tail.key == hashlib.sha256(tail.graph()).hexdigest()
        assert tail.segment is not None
        assert tail.segment.hex() == entry.segment
        assert tail.boundary == entry.boundary
    assert version.settings.inputs == bundle.manifest.model.inputs


def test_a_bundle_named_directly_is_called_like_its_model(toy_bundle: Path) -> None:
    version = open_bundle(toy_bundle)
    assert (version.name, version.version) == (safe_name(Bundle.open(toy_bundle).manifest.model.name), 1)


def test_a_plain_model_is_served_whole_under_the_digest_that_agents_call_it_by(plain: Path) -> None:
    version = open_version("toy", 1, plain)
    data = (plain / "model.onnx").read_bytes()
    (tail,) = version.tails
    assert version.format == "onnx"
    assert version.digest == tail.key == hashlib.sha256(data).hexdigest()
    assert tail.segment == version.model_digest == hashlib.sha256(data).digest()
    assert tail.kind is PlacementKind.FULL_CLOUD
    assert (tail.boundary, tail.batchable) == (None, None), "nobody knows before the engine is loaded"
    assert tail.graph() == data


def test_a_triton_folder_brings_its_settings_along(plain: Path) -> None:
    (plain.parent / "config.pbtxt").write_text(CONFIG)
    version = open_version("toy", 1, plain)
    assert version.format == "triton"
    assert version.settings.max_batch_size == 8
    assert version.settings.inputs[0].shape == (None, 3, 16, 16)


def test_the_configuration_may_name_another_model_file(plain: Path) -> None:
    (plain.parent / "config.pbtxt").write_text('default_model_filename: "net.onnx"')
    (plain / "model.onnx").rename(plain / "net.onnx")
    assert open_version("toy", 1, plain).tails[0].graph() == (plain / "net.onnx").read_bytes()


def test_a_bundle_may_have_a_configuration_but_states_its_own_tensors(toy_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "toy" / "1"
    shutil.copytree(toy_bundle, folder)
    config = folder.parent / "config.pbtxt"
    config.write_text("instance_group { count: 2 } version_policy { all {} }")
    version = open_version("toy", 1, folder)
    assert version.settings.instances == 2
    assert version.settings.version_policy == VersionPolicy("all")
    assert version.settings.inputs == Bundle.open(toy_bundle).manifest.model.inputs
    config.write_text(CONFIG)
    with pytest.raises(InputError, match=r"config.pbtxt, line 3: input is not read here"):
        open_version("toy", 1, folder)


# ---- weights beside the model ---------------------------------------------------------------------------------------


def test_weights_beside_a_plain_model_are_handed_to_the_engine_from_memory(weighty: Path) -> None:
    image = np.ones((1, 3, 16, 16), np.float32)
    with OrtEngine(models.residual().SerializeToString(), label="whole") as engine:
        expected = engine.infer({"x": image})
    with OrtEngine(open_version("weighty", 1, weighty).tails[0].graph(), label="weighty") as engine:
        assert np.array_equal(engine.infer({"x": image})["logits"], expected["logits"])


def test_another_weight_is_another_model(weighty: Path) -> None:
    before = open_version("weighty", 1, weighty)
    data = bytearray((weighty / "weights.bin").read_bytes())
    data[100] ^= 1
    (weighty / "weights.bin").write_bytes(data)
    assert open_version("weighty", 1, weighty).digest != before.digest
    with pytest.raises(ModelError, match="changed after the folder was opened"):
        before.tails[0].graph()


@pytest.mark.parametrize("location", ["../other.bin", "/etc/passwd", "sub/weights.bin", "a\\b", "", "model.onnx"])
def test_weights_lie_beside_the_model_and_nowhere_else(plain: Path, location: str) -> None:
    (plain / "sub").mkdir()
    (plain / "sub" / "weights.bin").write_bytes(bytes(864))
    (plain.parent / "other.bin").write_bytes(bytes(864))
    point_at(plain, location)
    with pytest.raises(ModelError):
        open_version("toy", 1, plain)


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("file", ["model.onnx", "weights.bin"])
def test_links_are_not_followed(weighty: Path, tmp_path: Path, link: object, file: str) -> None:
    outside = tmp_path / "outside"
    (weighty / file).rename(outside)
    assert callable(link)
    link(outside, weighty / file)
    with pytest.raises(ModelError, match=r"symbolic link|plain file"):
        open_version("weighty", 1, weighty)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_neither_form_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"neither a bundle \(manifest.json\) nor a model \(model.onnx\)"):
        open_version("toy", 1, tmp_path)


def test_a_file_that_is_no_model_is_refused(plain: Path) -> None:
    (plain / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="damaged"):
        open_version("toy", 1, plain)


def test_a_model_that_changes_between_opening_and_loading_is_not_loaded(plain: Path) -> None:
    (tail,) = open_version("toy", 1, plain).tails
    model = models.residual()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "more"))
    onnx.save(model, plain / "model.onnx")
    with pytest.raises(ModelError, match="changed after the folder was opened"):
        tail.graph()


def test_a_damaged_bundle_is_refused(toy_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "toy" / "1"
    shutil.copytree(toy_bundle, folder)
    (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes() + b" ")
    with pytest.raises(BundleError, match="does not match"):
        open_version("toy", 1, folder)


# ---- when nothing would change --------------------------------------------------------------------------------------


def test_the_same_model_in_another_build_is_the_same_content_but_another_identity(plain: Path) -> None:
    first, again = open_version("toy", 1, plain), open_version("toy", 1, plain, build=2)
    assert first.same_content(again)
    assert first.identity != again.identity


def test_which_versions_are_wanted_is_no_content_but_how_they_are_served_is(plain: Path) -> None:
    def with_config(text: str) -> ServedVersion:
        (plain.parent / "config.pbtxt").write_text(text)
        return open_version("toy", 1, plain)

    one = with_config("version_policy { latest { num_versions: 1 } }")
    assert one.same_content(with_config("version_policy { all {} }"))
    assert not one.same_content(with_config("instance_group { count: 2 }"))


@pytest.mark.parametrize(
    ("name", "safe"), [("digits", "digits"), ("ResNet 50 (v1.5)", "ResNet-50-v1.5"), ("../..", "model"), ("é", "model")]
)
def test_names_are_made_safe_for_folders_and_addresses(name: str, safe: str) -> None:
    assert safe_name(name) == safe
