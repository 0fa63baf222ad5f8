"""`make demo`, shortened: the whole stage with its processes, and the promise that decides its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.processes import finished

pytestmark = pytest.mark.timeout(900)  # dozens of processes, one after the other


def test_the_demo_loses_nothing_and_writes_its_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = finished(
        "python", "-m", "examples.demo", "--phase-s", "1.5", "--budget-s", "3", "--out", str(out), "--json",
        timeout_s=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    total = result["total"]
    assert total["lost"] == result["duplicates"] == 0
    assert total["answered"] > 50
    assert {phase["name"] for phase in result["phases"]} >= {"100 Mbit/s", "gateway killed", "head fails"}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page
    assert "https://" not in page
    assert (out / "timeline.png").stat().st_size > 10_000


def test_the_demo_takes_anyones_model_and_says_that_its_inputs_are_random(tmp_path: Path) -> None:
    model = models.write(models.tokens(), tmp_path)  # two int64 inputs; nothing like an image
    out = tmp_path / "out"
    done = finished(
        "python", "-m", "examples.demo", "--model", str(model), "--phase-s", "0.7", "--budget-s", "2",
        "--out", str(out), timeout_s=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "random" in done.stdout + done.stderr


def test_data_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", other=np.zeros((32, 3)))
    model = models.write(models.residual(), tmp_path)
    done = finished(
        "python", "-m", "examples.demo", "--model", str(model), "--data", str(tmp_path / "bad.npz"),
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "'x'" in done.stderr
