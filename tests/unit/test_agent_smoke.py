"""A trial's patience, what its child says, and how it is ended."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_agent.bundles.courier import Stopped
from edge_agent.bundles.smoke import Patience, Said, Smoke
from tests.processes import ROOT


def test_a_trials_own_time_stands_still_while_a_head_is_built() -> None:
    patience = Patience(120.0, now=0.0, build_s=2000.0)
    patience.heard(". building", now=100.0)
    assert patience.left_s(now=1100.0) == 1000.0
    patience.heard(". built", now=1100.0)
    assert patience.left_s(now=1110.0) == 10.0
    patience.heard(". building", now=1115.0)
    assert patience.left_s(now=1115.0) == 2000.0, "every build has its own bound"
    patience.heard(". built", now=1120.0)
    assert patience.left_s(now=1125.0) == 0.0
    assert patience.reason == "it had not answered a known question after 120 s"


def test_a_build_that_hangs_is_ended_and_said() -> None:
    patience = Patience(120.0, now=0.0, build_s=2000.0)
    patience.heard(". building", now=1.0)
    assert patience.left_s(now=2001.0) == 0.0
    assert patience.reason == "building a head for this device had not ended after 2000 s"


@pytest.mark.parametrize("line", ["", "building", "= ", ". built", "a library's . building"])
def test_other_lines_change_nothing(line: str) -> None:
    patience = Patience(120.0, now=0.0)
    patience.heard(line, now=50.0)
    assert patience.left_s(now=60.0) == 60.0


def test_saying_building_again_gains_no_time() -> None:
    patience = Patience(120.0, now=0.0, build_s=2000.0)
    for at in range(0, 2000, 500):
        patience.heard(". building", now=float(at))
    assert patience.left_s(now=2000.0) == 0.0


def test_lines_are_whole_however_they_come_in_pieces() -> None:
    said = Said()
    assert [said.lines(piece) for piece in (b". bui", b"lding\n= it", b"\n", b"rest", b"")] == [
        [], [". building"], ["= it"], [], ["rest"]
    ]  # fmt: skip
    assert list(said.kept) == [". building", "= it", "rest"]


def test_what_a_child_says_is_bounded() -> None:
    said = Said()
    for _ in range(1000):
        said.lines(b"x" * 4096)
    said.lines(b"\n" + b"y\n" * 1000)
    assert sum(map(len, said.kept)) < 10_000


def test_a_trial_is_given_up_without_a_verdict_when_the_daemon_ends(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        Smoke(stop=stop)(tmp_path)


def test_the_bound_of_memory_is_lifted_for_builds_and_what_loading_took_is_added() -> None:
    code = """
import os, resource
from edge_agent.bundles.smoke import Bound
MIB = 1 << 20
bound = Bound(256 * MIB)
soft = lambda: resource.getrlimit(resource.RLIMIT_DATA)[0]
first = soft()
with bound.lifted():
    inside = soft()
    held = bytearray(64 * MIB)
print("seen", first // MIB, inside == resource.getrlimit(resource.RLIMIT_DATA)[1], 60 <= (soft() - first) // MIB <= 70)
"""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    assert most == resource.RLIM_INFINITY or most > 512 << 20
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines == [". building", ". built", "seen 256 True True"], done.stderr
