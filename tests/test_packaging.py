"""What installs: extras that cannot spoil each other, a lock file with hashes, nothing that only training needs."""

from __future__ import annotations

import tomllib
from itertools import combinations
from typing import Any

import pytest

from tests.processes import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK: dict[str, Any] = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


def _runtime(extra: str) -> str | None:
    """Which of the two ONNX Runtimes an extra brings."""
    names = {requirement.split(">")[0].split("[")[0].strip() for requirement in EXTRAS[extra]}
    found = names & {"onnxruntime", "onnxruntime-gpu"}
    assert len(found) <= 1, f"{extra} brings both"
    return found.pop() if found else None


def test_extras_with_different_onnx_runtimes_are_declared_as_conflicts() -> None:
    declared = {frozenset(item["extra"] for item in conflict) for conflict in PROJECT["tool"]["uv"]["conflicts"]}
    clashing = {
        frozenset(pair)
        for pair in combinations(EXTRAS, 2)
        if None not in (kinds := {_runtime(extra) for extra in pair}) and len(kinds) == 2
    }
    assert clashing
    assert clashing == declared


def test_every_locked_file_has_a_hash_and_comes_from_the_package_index() -> None:
    for package in LOCK["package"]:
        if package["source"].get("editable") == ".":
            continue
        assert package["source"] == {"registry": "https://pypi.org/simple"}, package["name"]
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        assert files, package["name"]
        assert all(file["hash"].startswith("sha256:") for file in files), package["name"]


@pytest.mark.parametrize("name", ["torch", "ray"])
def test_what_is_only_for_training_or_other_houses_is_not_locked(name: str) -> None:
    assert name not in {package["name"] for package in LOCK["package"]}


def test_resolving_runs_no_code_of_packages_that_have_only_source() -> None:
    stated = {entry["name"] for entry in PROJECT["tool"]["uv"]["dependency-metadata"]}
    source_only = {package["name"] for package in LOCK["package"] if "sdist" in package and "wheels" not in package}
    assert source_only <= stated
    assert stated <= {package["name"] for package in LOCK["package"]}


def test_what_needs_a_gpu_comes_only_with_the_extras_that_say_so() -> None:
    for extra, wanted in EXTRAS.items():
        names = {requirement.split(">")[0].split("[")[0] for requirement in wanted}
        on_gpu = names & {"tensorrt", "tensorrt-rtx", "pycuda", "cuda-python", "onnxruntime-gpu"}
        assert bool(on_gpu) == (extra in ("cuda", "tensorrt", "tensorrt-rtx")), extra


def test_the_gateway_on_cuda_is_the_gateway_with_another_onnx_runtime() -> None:
    assert {r.replace("onnxruntime-gpu[cuda,cudnn]", "onnxruntime") for r in EXTRAS["cuda"]} == set(EXTRAS["gateway"])


def test_the_edge_extra_pulls_in_no_model_tools() -> None:
    wanted = " ".join([*PROJECT["project"]["dependencies"], *EXTRAS["edge"]])
    for name in ("onnx>", "onnx-ir", "scipy", "scikit", "matplotlib", "torch"):
        assert name not in wanted


def test_the_version_is_the_same_everywhere() -> None:
    from protocol import __version__

    assert PROJECT["project"]["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
