"""The two daemons as an operator uses them: started, asked, killed, drained, and given wrong input."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.processes import ROOT, Process, finished, running


@pytest.fixture
def gateway(toy_bundle: Path) -> Iterator[tuple[Process, str]]:
    with running("cloud-gateway", "serve", str(toy_bundle), "--http", "off", "--bind", "tcp://127.0.0.1:0") as process:
        line = process.line()
        assert line.startswith("ready tcp://127.0.0.1:")
        yield process, line.split()[1]


@pytest.fixture
def samples(tmp_path: Path, toy_samples: npt.NDArray[Any]) -> Path:
    path = tmp_path / "samples.npz"
    np.savez(path, x=toy_samples)
    return path


def agent_run(bundle: Path, source: Path | str, *options: str) -> tuple[str, ...]:
    return ("edge-agent", "infer", str(source), "--bundle", str(bundle), *options)


def test_the_agent_prints_ready_and_one_json_line_for_every_sample(
    gateway: tuple[Process, str], toy_bundle: Path, samples: Path, toy_reference: npt.NDArray[Any]
) -> None:
    with running(*agent_run(toy_bundle, samples, "--gateway", gateway[1])) as agent:
        assert agent.line() == f"ready {gateway[1]}"
        answers = [json.loads(line) for line in agent.rest()]
        assert agent.wait() == 0
    assert [a["index"] for a in answers] == list(range(32))
    assert {a["status"] for a in answers} == {"answered"}
    for answer in answers:
        assert answer["placement"] in {"full-cloud", "cut-1", "cut-2", "edge-only"}
        assert answer["latency_ms"] > 0
        assert len(answer["bundle"]) == 64
    agreeing = np.mean([a["outputs"]["logits"]["argmax"][0] for a in answers] == toy_reference.argmax(axis=1))
    assert agreeing >= 0.8
    assert "answered 32" in "".join(agent.errors)


def test_a_killed_gateway_costs_no_answer_and_a_new_one_is_found(
    toy_bundle: Path, samples: Path, tmp_path: Path
) -> None:
    serve = ("cloud-gateway", "serve", str(toy_bundle), "--http", "off", "--bind")
    run = agent_run(
        toy_bundle, samples, "--loop", "--edge-slowdown", "100", "--placements", "full-cloud,edge-only", "--json",
        "--deadline-ms", "10000",
    )  # fmt: skip
    with running(*serve, "tcp://127.0.0.1:0") as first:
        endpoint = first.line().split()[1]
        with running(*run, "--gateway", endpoint) as agent:
            assert agent.json()["event"] == "ready"
            seen = _until(agent, lambda a: a["placement"] == "full-cloud")
            first.popen.send_signal(signal.SIGKILL)
            seen += _until(agent, lambda a: a["placement"] == "edge-only" and a["degraded"])
            with running(*serve, endpoint) as second:
                second.line()
                seen += _until(agent, lambda a: a["placement"] == "full-cloud")
                agent.popen.send_signal(signal.SIGTERM)
                *last, stopped = [json.loads(line) for line in agent.rest()]
                assert agent.wait() == 0
    seen += last
    assert [a["index"] for a in seen] == list(range(len(seen)))
    assert {a["status"] for a in seen} == {"answered"}
    assert stopped["counts"]["submitted"] == stopped["counts"]["answered"] == len(seen)


def _until(agent: Process, wanted: Any, most: int = 2000) -> list[dict[str, Any]]:
    seen = []
    for _ in range(most):
        seen.append(agent.json())
        if wanted(seen[-1]):
            return seen
    raise AssertionError(f"not within {most} answers; last: {seen[-1]}")


def test_sigterm_drains_the_gateway_and_it_says_what_it_did(gateway: tuple[Process, str]) -> None:
    process, _ = gateway
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    process.rest()
    assert "stopped" in "".join(process.errors)


def test_the_device_serves_alone_when_no_gateway_answers_and_says_so(toy_bundle: Path, samples: Path) -> None:
    done = finished(
        *agent_run(toy_bundle, samples, "--gateway", "tcp://127.0.0.1:1", "--wait-s", "0.3", "--limit", "3")
    )
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "ready edge-only"
    assert "no gateway answers at tcp://127.0.0.1:1" in done.stderr
    assert len(done.stdout.splitlines()) == 4


def test_a_bundle_that_needs_a_gateway_says_so_when_there_is_none(toy_bundle: Path, samples: Path) -> None:
    done = finished(
        *agent_run(toy_bundle, samples, "--gateway", "tcp://127.0.0.1:1", "--wait-s", "0.2", "--placements", "cut-1")
    )
    _refused(done, 6, "no gateway answers", "start the gateway")


def test_infer_prints_one_answer(toy_bundle: Path, tmp_path: Path, toy_samples: npt.NDArray[Any]) -> None:
    np.save(tmp_path / "one.npy", toy_samples[0])
    done = finished("edge-agent", "infer", str(tmp_path / "one.npy"), "--bundle", str(toy_bundle))
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert answer["placement"] == "edge-only"
    assert np.shape(answer["outputs"]["logits"]["values"]) == (1, 10)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((1, 3, 16, 16), np.uint8), "element type uint8"),
        (np.zeros((1, 3, 8, 8), np.float32), "shape [1, 3, 8, 8]"),
    ],
)
def test_a_wrong_input_to_infer_is_one_sentence(
    toy_bundle: Path, tmp_path: Path, array: npt.NDArray[Any], words: str
) -> None:
    np.save(tmp_path / "wrong.npy", array)
    done = finished("edge-agent", "infer", str(tmp_path / "wrong.npy"), "--bundle", str(toy_bundle))
    _refused(done, 3, words, "the model takes")


def test_file_names_on_stdin_are_answered_in_order_and_a_wrong_one_does_not_stop_the_others(
    toy_bundle: Path, tmp_path: Path, toy_samples: npt.NDArray[Any]
) -> None:
    np.save(tmp_path / "a.npy", toy_samples[0])
    (tmp_path / "b.npy").write_text("not numpy")
    np.save(tmp_path / "c.npy", toy_samples[1])
    with running(*agent_run(toy_bundle, "-"), stdin=True) as agent:
        assert agent.popen.stdin is not None
        agent.popen.stdin.write("".join(f"{tmp_path / name}\n" for name in ("a.npy", "b.npy", "c.npy", "gone.npy")))
        agent.popen.stdin.close()
        assert agent.line() == "ready edge-only"
        lines = [json.loads(line) for line in agent.rest()]
        assert agent.wait() == 3
    by_index = {line["index"]: line["status"] for line in lines}
    assert by_index == {0: "answered", 1: "invalid", 2: "answered", 3: "invalid"}


def test_sigterm_ends_an_agent_that_waits_for_file_names(toy_bundle: Path) -> None:
    with running(*agent_run(toy_bundle, "-"), stdin=True) as agent:
        assert agent.line() == "ready edge-only"
        agent.popen.send_signal(signal.SIGTERM)
        assert agent.wait() == 0


@pytest.mark.parametrize("name", ["manifest.json", "full.onnx", "edge.onnx", "cut-1/tail.onnx", "cut-1/head.onnx"])
def test_a_bundle_with_one_byte_changed_is_refused_by_whoever_would_run_it(
    toy_bundle: Path, samples: Path, tmp_path: Path, name: str
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(toy_bundle, bad)
    data = bytearray((bad / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bad / name).write_bytes(data)
    if "head" in name or "edge" in name:
        done = finished(*agent_run(bad, samples))
    else:
        done = finished("cloud-gateway", "serve", str(bad), "--http", "off", "--bind", "tcp://127.0.0.1:0")
    _refused(done, 4, name.split("/")[-1], "changed or damaged")


def test_a_port_in_use_is_one_sentence(toy_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = finished("cloud-gateway", "serve", str(toy_bundle), "--http", "off", "--bind", f"tcp://127.0.0.1:{port}")
    _refused(done, 6, "already in use", "--bind")


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("cloud-gateway", "serve", "no-such-bundle"), 4, "no bundle at no-such-bundle"),
        (("cloud-gateway", "serve", "docs"), 4, "not a bundle"),
        (("cloud-gateway", "serve", "BUNDLE", "--bind", "nonsense"), 3, "give tcp://HOST:PORT"),
        (("cloud-gateway", "serve", "BUNDLE", "--bind", "tcp://0.0.0.0:0"), 3, "--insecure"),
        (("edge-agent", "infer", "x", "--bundle", "no-such-bundle"), 4, "no bundle"),
        (("edge-agent", "infer", "no-such-file", "--bundle", "BUNDLE"), 3, "no source at no-such-file"),
        (("edge-agent", "infer", "README.md", "--bundle", "BUNDLE"), 3, "no .npz, .npy or image file"),
        (("edge-agent", "infer", "-", "--bundle", "BUNDLE", "--loop"), 3, "--loop"),
        (("edge-agent", "infer", "x", "--bundle", "BUNDLE", "--placements", "cut-9"), 3, "cut-9"),
        (
            ("edge-agent", "infer", "x", "--bundle", "BUNDLE", "--gateway", "tcp://192.0.2.1:1"),
            3,
            "plain text",
        ),
    ],
)
def test_wrong_arguments_are_one_sentence_with_the_documented_code(
    toy_bundle: Path, command: tuple[str, ...], code: int, words: str
) -> None:
    done = finished(*(str(toy_bundle) if part == "BUNDLE" else part for part in command))
    _refused(done, code, words)


def test_an_unknown_option_is_a_usage_error(toy_bundle: Path) -> None:
    assert finished("cloud-gateway", "serve", str(toy_bundle), "--no-such-option").returncode == 2


def test_the_foreign_client_gets_the_models_answers(
    gateway: tuple[Process, str], toy_bundle: Path, samples: Path, toy_reference: npt.NDArray[Any]
) -> None:
    done = finished(
        "python", str(ROOT / "examples" / "foreign_client.py"), "--gateway", gateway[1], "--bundle", str(toy_bundle),
        "--input", str(samples), "--count", "5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 5
    for line, wanted in zip(lines, toy_reference.argmax(axis=1), strict=False):
        assert str(wanted) in line


def _refused(done: Any, code: int, *words: str) -> None:
    assert done.returncode == code, (done.returncode, done.stderr)
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in message
