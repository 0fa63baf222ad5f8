"""What installs: extras that cannot spoil each other, a lock file with hashes, nothing that only training needs."""

from __future__ import annotations

import re
import subprocess
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


def test_the_edge_extra_pulls_in_no_model_tools() -> None:
    wanted = " ".join([*PROJECT["project"]["dependencies"], *EXTRAS["edge"]])
    for name in ("onnx>", "onnx-ir", "scipy", "scikit", "matplotlib", "torch"):
        assert name not in wanted


def test_the_extra_for_nvidia_is_agent_and_gateway_with_the_other_onnx_runtime() -> None:
    def but_for_the_runtime(*extras: str) -> set[str]:
        return {line for extra in extras for line in EXTRAS[extra] if not line.startswith("onnxruntime")}

    assert but_for_the_runtime("cuda") == but_for_the_runtime("edge", "gateway")


def test_what_is_copied_onto_a_machine_comes_with_the_wheel() -> None:
    target = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    shared = {path: to for path, to in target["shared-data"].items() if (ROOT / path).is_dir()}
    assert shared == {"deploy": "share/isthmus"}
    page = (ROOT / "docs" / "device.md").read_text(encoding="utf-8")
    named = re.findall(r"/opt/isthmus/share/isthmus/(\S+)", page)
    assert named
    assert [name for name in named if not (ROOT / "deploy" / name).is_file()] == []


def test_all_that_is_read_beside_the_code_is_in_its_package() -> None:
    """Pages, their styles and scripts, the gRPC contract: what git does not ignore is built into the wheel."""
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    beside = [
        path
        for name in packages
        for path in (ROOT / name).rglob("*")
        if path.suffix in (".html", ".js", ".css", ".proto")
    ]
    assert {path.suffix for path in beside} == {".html", ".js", ".css", ".proto"}
    ignored = subprocess.run(
        ["git", "check-ignore", *map(str, beside)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ignored.stdout == ""


def test_the_version_is_the_same_everywhere() -> None:
    from protocol import __version__

    assert PROJECT["project"]["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
