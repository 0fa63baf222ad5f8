"""The command line: every wrong input is one sentence with a remedy and a documented exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from partitioner.cli import app
from partitioner.planning import build as building
from tests import models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.write(models.residual(), tmp_path)
    np.savez(tmp_path / "data.npz", x=models.image_samples(24))
    return tmp_path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def split(folder: Path, *more: object, model: str = "model.onnx", data: str = "data.npz") -> Any:
    return run("split", folder / model, "-o", folder / "bundle", "--calibration", folder / data, *more)


def assert_refused(result: Any, code: int, *parts: str) -> None:
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def test_one_cut_makes_a_bundle_and_tells_about_it(folder: Path) -> None:
    result = split(folder, "--cut", "r3", "--cut", "r1,c3")
    assert result.exit_code == 0, result.output
    for text in ("full-cloud", "cut-1", "cut-2", "edge-only", "agreement"):
        assert text in result.stdout
    assert run("verify", folder / "bundle").exit_code == 0


@pytest.mark.parametrize("wanted", [("--cut", "r3"), ("--auto", "--budget-s", "0")])
def test_a_host_that_takes_the_processor_while_it_is_measured_ends_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wanted: tuple[str, ...]
) -> None:
    for clock in ("thread_time", "process_time"):
        monkeypatch.setattr(time, clock, lambda: 7.0)
    result = split(folder, *wanted)
    assert result.exit_code == 0, result.exception


def test_json_is_one_document_on_stdout(folder: Path) -> None:
    result = split(folder, "--auto", "--budget-s", "0", "--json")
    document = json.loads(result.stdout)
    assert result.stderr == ""
    assert document["manifest"]["placements"][0]["id"] == "full-cloud"
    assert len({tuple(m["cut"]) for m in document["manifest"]["measured"]}) == 1
    seen = json.loads(run("verify", folder / "bundle", "--data", folder / "data.npz", "--json").stdout)
    assert seen["files"] >= 2
    assert len(json.loads(run("inspect", folder / "model.onnx", "--json").stdout)["cuts"]) > 5


def test_inspect_lists_inputs_outputs_and_cuts(folder: Path) -> None:
    result = run("inspect", folder / "model.onnx")
    assert "x: float32 [N, 3, 16, 16]" in result.stdout
    assert "r1, c3" in result.stdout


def test_random_inputs_are_announced(folder: Path) -> None:
    result = run("split", folder / "model.onnx", "-o", folder / "bundle", "--cut", "r3")
    assert result.exit_code == 0
    assert "inputs are random" in result.stderr


def test_a_missing_model_or_data_file(folder: Path) -> None:
    assert_refused(split(folder, "--auto", model="none.onnx"), 3, "there is no file", "none.onnx")
    assert_refused(split(folder, "--auto", data="none.npz"), 3, "there is no file", "none.npz")
    assert not (folder / "bundle").exists()


def test_a_file_that_is_no_model(folder: Path) -> None:
    (folder / "text.onnx").write_text("This is not a model.")
    assert_refused(split(folder, "--auto", model="text.onnx"), 3, "is not an ONNX", "export")
    assert_refused(run("inspect", folder / "data.npz"), 3, "is not an ONNX")


def test_an_unknown_tensor_names_the_nearest(folder: Path) -> None:
    assert_refused(split(folder, "--cut", "r33"), 3, "no tensor or node 'r33'", "did you mean 'r3'")
    assert not (folder / "bundle").exists()


def test_a_cut_that_does_not_separate_names_what_also_crosses(folder: Path) -> None:
    assert_refused(split(folder, "--cut", "c3"), 3, "does not separate", "'r1' also crosses", "--cut c3,r1")


def test_calibration_of_the_wrong_shape_type_or_name(folder: Path) -> None:
    x = models.image_samples(24)
    for bad, parts in (
        ({"x": x.transpose(0, 2, 3, 1)}, ("shape [24, 16, 16, 3]", "[samples, 3, 16, 16]")),
        ({"x": x.astype(np.uint8)}, ("element type uint8", "float32")),
        ({"image": x}, ("no array 'x'", "x: float32 [N, 3, 16, 16]")),
        ({"x": x[:5]}, ("holds 5 samples", "at least 8")),
        ({"x": np.full_like(x, np.nan)}, ("NaN", "leave those samples out")),
    ):
        np.savez(folder / "bad.npz", **bad)
        assert_refused(split(folder, "--cut", "r3", data="bad.npz"), 3, *parts)
    (folder / "bad.npz").write_bytes(b"PK\x03\x04 not a zip after all")
    assert_refused(split(folder, "--cut", "r3", data="bad.npz"), 3, "bad.npz")
    assert not (folder / "bundle").exists()


def test_an_existing_bundle(folder: Path) -> None:
    (folder / "bundle").mkdir()
    assert_refused(split(folder, "--cut", "r3"), 3, "exists already", "--force")


def test_a_place_that_cannot_be_written_is_refused_before_any_work(folder: Path) -> None:
    result = run("split", folder / "none.onnx", "-o", folder / "data.npz" / "bundle", "--auto")
    assert_refused(result, 3, "is no writable folder", "choose another place")


def test_int8_that_misses_its_bound_exits_with_five(folder: Path) -> None:
    models.write(models.outliers(), folder, "hard.onnx")
    result = split(folder, "--cut", "restored", "--precision", "int8", model="hard.onnx")
    assert_refused(result, 5, "meets the bound", "--precision auto")
    assert not (folder / "bundle").exists()


def test_a_damaged_or_missing_bundle(folder: Path) -> None:
    assert_refused(run("verify", folder / "bundle"), 4, "there is no bundle")
    assert split(folder, "--cut", "r3").exit_code == 0
    path = folder / "bundle" / "full.onnx"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    assert_refused(run("verify", folder / "bundle"), 4, "full.onnx", "was changed or damaged")


def test_an_interrupt_exits_with_130_and_writes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "observed_topology", interrupted)
    listing = sorted(os.listdir(folder))
    result = split(folder, "--cut", "r3")
    assert result.exit_code == 130
    assert result.stderr == "interrupted: nothing is left half written\n"
    assert sorted(os.listdir(folder)) == listing


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--auto", "--cut", "r3"],
        ["--cut", "r3", "--bound", "2"],
        ["--cut", "r3", "--precision", "int4"],
        ["--nope"],
    ],
)
def test_a_wrong_command_line_exits_with_two(folder: Path, flags: list[str]) -> None:
    assert split(folder, *flags).exit_code == 2


def test_help_answers_without_importing_the_heavy_libraries() -> None:
    heavy = ("onnx", "onnx_ir", "onnxruntime", "numpy")
    code = f"import sys, partitioner.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_module_runs_as_a_program(folder: Path) -> None:
    command = [sys.executable, "-m", "partitioner", "inspect", str(folder / "none.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 3
    assert done.stderr.startswith("error: there is no file")
    assert done.stdout == ""
