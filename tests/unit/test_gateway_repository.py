"""The model folder as it lies on disk: what is a model, what is a version, and what is still being written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx
import pytest

from cloud_gateway.models.repository import Glance, Repository
from cloud_gateway.models.settings import VersionPolicy
from protocol.errors import BundleError, InputError
from tests import models

MODEL = models.residual().SerializeToString()


def put(root: Path, name: str, version: str = "1", *, file: str = "model.onnx") -> Path:
    folder = root / name / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(MODEL)
    return folder


def quiet(glance: Glance, name: str = "a", version: int = 1) -> bool:
    return glance.models[name].versions[version].quiet


def fingerprint(glance: Glance, name: str = "a", version: int = 1) -> str:
    return glance.models[name].versions[version].fingerprint


# ---- what is there --------------------------------------------------------------------------------------------------


def test_numbered_folders_are_versions_of_the_model_that_holds_them(tmp_path: Path) -> None:
    put(tmp_path, "a", "1")
    put(tmp_path, "a", "12")
    put(tmp_path, "b.v2", "3")
    glance = Repository(tmp_path).look(now=0)
    assert {name: set(model.versions) for name, model in glance.models.items()} == {"a": {1, 12}, "b.v2": {3}}
    assert glance.warnings == ()


def test_hidden_files_are_ignored_without_a_word(tmp_path: Path) -> None:
    put(tmp_path, "a")
    put(tmp_path, ".git")
    put(tmp_path, "a", ".tmp-2")
    (tmp_path / "README").write_text("ours")
    (tmp_path / "a" / "labels.txt").write_text("cat")
    glance = Repository(tmp_path).look(now=0)
    assert (set(glance.models), set(glance.models["a"].versions), glance.warnings) == ({"a"}, {1}, ())


@pytest.mark.parametrize("version", ["latest", "01", "0", "1.0", "-1", "9" * 19])
def test_a_version_folder_without_a_proper_number_is_named_and_passed_over(tmp_path: Path, version: str) -> None:
    put(tmp_path, "a")
    put(tmp_path, "a", version)
    glance = Repository(tmp_path).look(now=0)
    assert set(glance.models["a"].versions) == {1}
    assert glance.warnings == (f"{tmp_path / 'a' / version} is no version: versions are numbered 1, 2, ...",)


def test_what_no_address_can_carry_is_no_model(tmp_path: Path) -> None:
    put(tmp_path, "ein modell")
    glance = Repository(tmp_path).look(now=0)
    assert glance.models == {}
    assert "is no model" in glance.warnings[0]


def test_links_to_models_and_versions_are_named_and_not_followed(tmp_path: Path) -> None:
    real = put(tmp_path / "elsewhere", "real")
    (tmp_path / "root").mkdir()
    put(tmp_path / "root", "a")
    os.symlink(real.parent, tmp_path / "root" / "b")
    os.symlink(real, tmp_path / "root" / "a" / "2")
    glance = Repository(tmp_path / "root").look(now=0)
    assert {name: set(model.versions) for name, model in glance.models.items()} == {"a": {1}}
    assert len(glance.warnings) == 2


def test_a_model_without_versions_says_where_one_belongs(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert Repository(tmp_path).look(now=0).warnings == (
        f"{tmp_path / 'a'} holds no version: put the model into {tmp_path / 'a' / '1'}",
    )


def test_a_folder_that_is_not_there_is_the_operators_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Repository(tmp_path / "nowhere").look(now=0)


# ---- what changed, and what is still being written ------------------------------------------------------------------


def test_what_lies_there_complete_at_the_first_look_is_quiet_at_once(tmp_path: Path) -> None:
    put(tmp_path, "a")
    assert quiet(Repository(tmp_path).look(now=0))


def test_what_comes_later_is_quiet_when_it_has_stayed_the_same_for_a_while(tmp_path: Path) -> None:
    put(tmp_path, "a")
    repository = Repository(tmp_path, quiet_s=1.0)
    repository.look(now=0)
    folder = put(tmp_path, "a", "2")
    assert not quiet(repository.look(now=10), version=2)
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"more")
    assert not quiet(repository.look(now=11), version=2), "it grew"
    later = repository.look(now=11.9)
    assert (quiet(later, version=2), later.quiet) == (False, False)
    later = repository.look(now=12)
    assert (quiet(later, version=2), later.quiet) == (True, True)


def test_a_bundle_without_its_digest_is_still_being_written_even_at_the_first_look(
    toy_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_bundle, tmp_path / "a" / "1")
    (tmp_path / "a" / "1" / "manifest.json.sha256").unlink()
    repository = Repository(tmp_path, quiet_s=1.0)
    assert not quiet(repository.look(now=0))
    assert quiet(repository.look(now=1)), "it does not change any more: opening it will say what is wrong"


def test_who_asks_says_that_the_folder_is_complete(tmp_path: Path) -> None:
    put(tmp_path, "a")
    repository = Repository(tmp_path)
    repository.look(now=0, trusting=True)
    put(tmp_path, "a", "2")
    assert quiet(repository.look(now=0, trusting=True), version=2)


def test_every_kind_of_change_gives_another_fingerprint(tmp_path: Path) -> None:
    folder = put(tmp_path, "a")
    repository = Repository(tmp_path)
    seen = {fingerprint(repository.look(now=0))}

    def changed() -> bool:
        seen.add(now := fingerprint(repository.look(now=0)))
        return len(seen) == len(history) and bool(now)

    history = [0]
    assert changed(), "nothing was done, and nothing is new"
    times = (folder / "model.onnx").stat()
    (folder / "model.onnx").write_bytes(bytes(len(MODEL)))
    os.utime(folder / "model.onnx", ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps times
    history.append(1)
    assert changed()
    (folder / "weights.bin").write_bytes(b"w")
    history.append(2)
    assert changed()
    (folder / "weights.bin").rename(folder / "other.bin")
    history.append(3)
    assert changed()
    (tmp_path / "a" / "config.pbtxt").write_text("max_batch_size: 4")
    history.append(4)
    assert changed()
    (folder / ".nfs000").write_bytes(b"hidden")
    assert changed(), "hidden files are nobody's business"


# ---- policies -------------------------------------------------------------------------------------------------------


def test_a_model_without_a_policy_has_the_gateways(tmp_path: Path) -> None:
    put(tmp_path, "a")
    assert Repository(tmp_path, policy=VersionPolicy("all")).look(now=0).models["a"].policy == VersionPolicy("all")


def test_a_model_may_state_its_policy_and_a_wrong_one_leaves_the_last_that_was_right(tmp_path: Path) -> None:
    put(tmp_path, "a")
    config = tmp_path / "a" / "config.pbtxt"
    config.write_text("version_policy { specific { versions: [1, 3] } }")
    repository = Repository(tmp_path)
    assert repository.look(now=0).models["a"].policy == VersionPolicy("specific", versions=(1, 3))
    config.write_text("version_policy { none {} }")
    glance = repository.look(now=1)
    assert glance.models["a"].policy == VersionPolicy("specific", versions=(1, 3))
    assert glance.warnings[0].startswith(f"{config}, line 1 in version_policy: the policy is empty")


def test_a_configuration_that_is_a_link_or_too_large_is_told(tmp_path: Path) -> None:
    put(tmp_path, "a")
    put(tmp_path, "b")
    (tmp_path / "elsewhere.pbtxt").write_text("max_batch_size: 4")
    os.symlink(tmp_path / "elsewhere.pbtxt", tmp_path / "a" / "config.pbtxt")
    (tmp_path / "b" / "config.pbtxt").write_bytes(b"#" * (1 << 20) + b"#")
    linked, large = Repository(tmp_path).look(now=0).warnings
    assert "is a symbolic link; put a plain file there" in linked
    assert "holds 1048577 bytes; a configuration has 1048576 at most" in large


def test_a_folder_whose_name_is_no_text_is_named_so_that_it_can_be_written_down(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    (warning,) = Repository(tmp_path).look(now=0).warnings
    assert warning.encode()
    assert "is no model" in warning


# ---- bundles named by hand ------------------------------------------------------------------------------------------


def test_bundles_named_by_hand_are_versions_of_their_models_and_all_are_served(toy_bundle: Path) -> None:
    repository = Repository(None, [toy_bundle, toy_bundle])
    glance = repository.look(now=0)
    (name,) = repository.bundles
    assert set(glance.models[name].versions) == {1, 2}
    assert glance.models[name].policy == VersionPolicy("all")
    opened = repository.open(name, 2, build=5)
    assert (opened.identity, opened.folder) == ((name, 2, 5), toy_bundle)


def test_a_bundle_named_by_hand_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        Repository(None, [tmp_path]).look(now=0)


def test_a_bundle_named_by_hand_keeps_its_name_from_a_model_in_the_folder(toy_bundle: Path, tmp_path: Path) -> None:
    (name,) = Repository(None, [toy_bundle]).look(now=0).models
    put(tmp_path, name, "7")
    glance = Repository(tmp_path, [toy_bundle]).look(now=0)
    assert set(glance.models[name].versions) == {1}
    assert "a bundle that was named by hand" in glance.warnings[0]


def test_a_version_is_opened_with_its_name_number_and_build(tmp_path: Path) -> None:
    folder = put(tmp_path, "a", "4")
    onnx.load(folder / "model.onnx")
    assert Repository(tmp_path).open("a", 4, build=2).identity == ("a", 4, 2)
