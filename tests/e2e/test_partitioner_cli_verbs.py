"""`partitioner explain | simulate | report` as a person types them: output, JSON, exit codes, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from partitioner.cli import app

VERBS = ("explain", "simulate", "report")


def run(*arguments: object) -> Any:
    """The command line within this process, as `python -m partitioner` would run it."""
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"NO_COLOR": "1"})


def program(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("partitioner"), *map(str, arguments)]
    environ = {**os.environ, "NO_COLOR": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environ)


def document(*arguments: object) -> Any:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    return json.loads(done.stdout)


def assert_refused(done: Any, code: int, *parts: str) -> None:
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


def arguments_of(verb: str, bundle: object, folder: Path) -> list[object]:
    return [verb, bundle, *(["-o", folder / "page.html"] if verb == "report" else [])]


def test_explain_answers_in_sentences(toy_bundle: Path) -> None:
    done = program("explain", toy_bundle, "--mbit", "10")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("At 10 Mbit/s (")
    assert " is best: " in lines[0]
    assert any(line.startswith(("Over all bandwidths:", "Whatever the bandwidth")) for line in lines)


def test_explain_gives_its_structure_as_json(toy_bundle: Path) -> None:
    seen = document(
        "explain", toy_bundle, "--mbit", "2", "--edge-slowdown", "5", "--rtt-ms", "3", "--cloud-load", "0.5"
    )
    assert (seen["mbit"], seen["rtt_s"], seen["edge_slowdown"], seen["cloud_load"]) == (2.0, 0.003, 5.0, 0.5)
    assert {r["id"] for r in seen["ranking"]} >= {"full-cloud", "cut-1", "cut-2", "edge-only"}
    assert seen["best"]["id"] == seen["ranking"][0]["id"]


def test_simulate_reports_shares_reactions_and_regret(toy_bundle: Path) -> None:
    done = run("simulate", toy_bundle, "--trace", "outage")
    assert done.exit_code == 0, done.output
    for part in ("isthmus", "oracle", "edge-only", "regret against the oracle", "over the trace outage"):
        assert part in done.stdout


def test_simulate_is_exact_by_seed(toy_bundle: Path) -> None:
    first, again = (run("simulate", toy_bundle, "--trace", "lte", "--seed", "7", "--json").stdout for _ in range(2))
    assert first == again
    assert json.loads(first)["requests"] == 600


def test_simulate_reads_a_table(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "drive.csv").write_text("t_s,mbit\n0,20\n5,0.5\n")
    seen = document("simulate", toy_bundle, "--trace", tmp_path / "drive.csv", "--requests-per-s", "2")
    assert (seen["trace"], seen["length_s"], seen["requests"]) == ("drive.csv", 10.0, 20)


def test_report_says_what_it_wrote(toy_bundle: Path, tmp_path: Path) -> None:
    seen = document("report", toy_bundle, "-o", tmp_path / "page.html", "--mbit", "5")
    page = tmp_path / "page.html"
    assert seen["page"] == str(page)
    assert seen["nbytes"] == page.stat().st_size
    assert seen["explanation"]["mbit"] == 5.0


@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_bundle_exits_with_four(verb: str, tmp_path: Path) -> None:
    assert_refused(run(*arguments_of(verb, tmp_path / "none", tmp_path)), 4, "there is no bundle", "partitioner split")
    assert not (tmp_path / "page.html").exists()


def test_wrong_conditions_exit_with_three(toy_bundle: Path, tmp_path: Path) -> None:
    assert_refused(run("explain", toy_bundle, "--mbit", "0"), 3, "--mbit must be a number above 0")
    assert_refused(run("explain", toy_bundle, "--cloud-load", "1"), 3, "--cloud-load", "0.5 doubles its times")
    assert_refused(run("report", toy_bundle, "-o", tmp_path / "page.html", "--rtt-ms", "-1"), 3, "--rtt-ms")
    assert_refused(run("report", toy_bundle, "-o", tmp_path), 3, "cannot be a file", "give the path of a file")
    assert_refused(run("report", toy_bundle, "-o", tmp_path / "none" / "page.html"), 3, "in a folder that exists")


@pytest.mark.parametrize("verb", [["plan"], ["profile", "--role", "edge"]])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(verb: list[str], tmp_path: Path) -> None:
    refused = run(*verb, tmp_path / "missing.onnx", "-o", tmp_path / "none" / "out.json")
    assert_refused(refused, 3, "out.json cannot be a file")


def test_an_unknown_objective_is_refused_before_the_work(tmp_path: Path) -> None:
    refused = run("plan", tmp_path / "missing.onnx", "--pareto", "latency_s,beauty")
    assert_refused(refused, 3, "'beauty' is no objective of --pareto", "energy_j", "accuracy")


def test_a_wrong_trace_names_its_line_and_the_remedy(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("t_s,mbit\n0,20\n1,fast\n")
    refused = run("simulate", toy_bundle, "--trace", tmp_path / "t.csv")
    assert_refused(refused, 3, "t.csv, line 3", "'1,fast' holds no two numbers", "as in 12.5,8")
    assert_refused(run("simulate", toy_bundle, "--trace", "nowhere"), 3, "give one of step, lte, outage")


@pytest.mark.parametrize("flags", [["--mbit", "fast"], ["--nope"]])
def test_a_wrong_command_line_exits_with_two(toy_bundle: Path, flags: list[str]) -> None:
    assert run("explain", toy_bundle, *flags).exit_code == 2


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("ex", ["explain"]),
        ("simulate bundle --trace ou", ["outage"]),
        ("simulate bundle --trace drive.cs", []),  # the shell then offers files
        ("split model --precision ", ["auto", "int8", "fp32"]),
        ("plan model --pareto latency_s,en", ["latency_s,energy_j"]),
    ],
)
def test_a_shell_completes_verbs_flags_and_their_values(typed: str, offered: list[str]) -> None:
    words = f"partitioner {typed}"
    asked = {"_PARTITIONER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert program(**asked).stdout.split() == offered


def test_help_lists_the_verbs_in_the_order_of_use_and_every_flag_in_full_at_80_columns() -> None:
    listed = program("--help", COLUMNS="80").stdout
    verbs = ["inspect", "profile", "plan", "split", "verify", "half", "sign", "revoke", "explain", "simulate", "report",
             "keys"]  # fmt: skip
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("│ ") and line[2].isalpha()] == verbs
    for verb in ("plan", "split"):
        told = program(verb, "--help", COLUMNS="80").stdout
        assert "…" not in told
        for panel in ("Machines and link", "Samples and precision", "What every placement must keep"):
            assert panel in told
        assert "--recipe-budget-s " in told


def test_whoever_stops_reading_is_no_error(toy_bundle: Path) -> None:
    command = [Path(sys.executable).with_name("partitioner"), "explain", str(toy_bundle)]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as broken:
        done = subprocess.run(command, stdout=broken, stderr=subprocess.PIPE, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_under_the_output_is_one_sentence(toy_bundle: Path) -> None:
    command = [Path(sys.executable).with_name("partitioner"), "explain", str(toy_bundle), "--json"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=240)
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device; free some and run it again\n"


def test_a_package_that_is_not_installed_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "onnx.py").write_text("raise ModuleNotFoundError('no onnx here', name='onnx')\n")
    done = program("inspect", tmp_path / "onnx.py", PYTHONPATH=str(tmp_path))
    assert done.returncode == 7
    assert done.stderr == "error: the package onnx is not installed; pip install 'isthmus[partition]'\n"


def test_an_interrupt_while_the_command_line_loads_leaves_no_traceback(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    done = program("explain", toy_bundle, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (130, "interrupted: nothing is left half written\n")


def test_explaining_and_simulating_load_none_of_the_workbenchs_libraries(toy_bundle: Path) -> None:
    heavy = ("onnx", "onnx_ir", "onnxruntime", "scipy")
    for verb in ("explain", "simulate"):
        code = (
            f"import sys; from typer.testing import CliRunner; from partitioner.cli import app; "
            f"assert CliRunner().invoke(app, ['{verb}', {str(toy_bundle)!r}]).exit_code == 0; "
            f"print([m for m in {heavy} if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "[]", done.stdout + done.stderr
