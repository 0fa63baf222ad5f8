"""Every fault once, short: nothing is lost, told twice, mixed up or executed twice in one life, and it heals."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.model import numbered_bundle
from benchmarks.faults.scenarios import SCENARIOS
from benchmarks.faults.scene import UnplayableError

SECONDS = 0.5
# One of each kind: all of them, and longer, are the benchmark's.
PLAYED = ("sigkill_gateway", "one_of_two_dies", "sigstop_gateway", "blackhole", "half_open_up", "rst_storm",
          "one_byte_per_s", "http_on_port", "sigkill_agent", "clock_jumps", "loss_2_percent", "full_disk", "hedge",
          "revoked_key")  # fmt: skip
PATIENCE_S = 60.0  # how late an answer may be on a machine that is busy with other things


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_bundle(tmp_path_factory.mktemp("numbered"))


@pytest.mark.parametrize("name", PLAYED)
def test_every_request_ends_once_whatever_breaks(name: str, bundle: Path, tmp_path: Path) -> None:
    try:
        verdict = SCENARIOS[name].play(bundle, tmp_path / "ledger", SECONDS)
    except UnplayableError as reason:
        pytest.skip(str(reason))
    assert verdict.broken == []
    assert verdict.latest_s < PATIENCE_S, verdict
    assert verdict.by_gateway > 0
    assert verdict.asked == verdict.by_gateway + verdict.by_device + verdict.refused + verdict.gone
