"""The foreign client against a gateway of twenty lines, neither of which knows this project's packages."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from examples import foreign_client

CLIENT = Path(__file__).parents[2] / "examples" / "foreign_client.py"
PART_NBYTES = 131_072
SEGMENT = bytes(range(32))
EPOCH = b"epoch---"
SIDE = 400  # 160,000 bytes a sample: two parts
WELCOME = [EPOCH, "test gateway", 32, 32 * 1024 * 1024, [SEGMENT], [SEGMENT]]

Frames = list[bytes]
Run = Callable[..., tuple[int, str, str]]
Answer = Callable[[int, list[Any], Frames], list[Frames]]


def message(kind: int, fields: list[Any], *parts: bytes, version: int = 1) -> Frames:
    return [bytes((version, kind)) + msgpack.packb(fields), *parts]


@contextmanager
def gateway(answer: Answer) -> Iterator[str]:
    """A ROUTER that answers every message with what `answer(type, fields, parts)` returns."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    stop = context.socket(zmq.PAIR)
    stop.bind("inproc://stop")
    stopped = context.socket(zmq.PAIR)
    stopped.connect("inproc://stop")

    def serve() -> None:
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(stopped, zmq.POLLIN)
        while stopped not in dict(poller.poll()):
            route, header, *parts = router.recv_multipart()
            for frames in answer(header[1], msgpack.unpackb(header[2:]), parts):
                router.send_multipart([route, *frames])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        stop.send(b"")
        thread.join(10)
        context.destroy(linger=0)


def result(fields: list[Any], parts: Frames, *, damaged: bool = False) -> Frames:
    """What a gateway would answer whose model is: class = first pixel."""
    request, segment, attempt, budget_us, priority, tensors, checksum = fields[:7]
    ((name, dtype, shape, codec, nbytes),) = tensors
    assert (segment, priority, name, dtype, codec) == (SEGMENT, 4, "image", "uint8", "raw")
    assert shape == [1, SIDE, SIDE]
    assert 0 < budget_us <= 5_000_000
    assert [len(p) for p in parts] == [PART_NBYTES, nbytes - PART_NBYTES]
    assert zlib.crc32(b"".join(parts)) == checksum
    scores = np.zeros((1, 10), np.float32)
    scores[0, parts[0][0]] = 1
    data = scores.tobytes()
    timings = [1500, 100, 50, 1250, 3]
    out = [["scores", "float32", [1, 10], "raw", len(data)]]
    summary = [request, attempt, out, zlib.crc32(data) ^ damaged, timings, "numpy", "fp32", "bundle"]
    return message(5, summary, data)


def well(kind: int, fields: list[Any], parts: Frames) -> list[Frames]:
    return [message(2, WELCOME)] if kind == 1 else [result(fields, parts)]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    image = {"name": "image", "dtype": "uint8", "shape": ["N", SIDE, SIDE]}
    placements = [
        {"id": "edge-only", "kind": "edge-only", "segment": None, "boundary": []},
        {"id": "full-cloud", "kind": "full-cloud", "segment": SEGMENT.hex(), "boundary": [{"spec": image}]},
    ]
    document = {"model": {"digest": SEGMENT.hex()}, "placements": placements}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    pixels = np.zeros((3, SIDE, SIDE), np.uint8)
    pixels[:, 0, 0] = (7, 1, 4)
    np.savez(tmp_path / "data.npz", image=pixels)
    return ["--bundle", str(tmp_path), "--input", str(tmp_path / "data.npz")]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The client in this process: starting an interpreter for every case would take longer than all of them."""

    def run_client(*arguments: str) -> tuple[int, str, str]:
        code = foreign_client.main(list(arguments))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run_client


def run_process(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, str(CLIENT), *arguments], capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout, done.stderr


def assert_refused(outcome: tuple[int, str, str], exit_code: int, *words: str) -> None:
    code, _, stderr = outcome
    assert code == exit_code, stderr
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1, "one clear sentence"
    assert all(word in stderr for word in words), stderr


def test_it_asks_for_each_sample_in_turn_and_prints_a_line_for_each_answer(arguments: list[str]) -> None:
    with gateway(well) as endpoint:
        code, stdout, stderr = run_process("--gateway", endpoint, *arguments, "--count", "4")
    assert (code, stderr) == (0, "")
    classes = (7, 1, 4, 7)
    assert stdout.splitlines() == [
        f"{i}: scores argmax {c}, 1.25 ms compute, batch of 3" for i, c in enumerate(classes)
    ]


def test_after_a_restart_of_the_gateway_it_greets_again_and_repeats_the_request_under_its_id(
    run: Run, arguments: list[str]
) -> None:
    seen: list[tuple[int, Any]] = []

    def forgetful(kind: int, fields: list[Any], parts: Frames) -> list[Frames]:
        seen.append((kind, fields[0] if kind == 4 else None))
        if kind == 4 and sum(k == 4 for k, _ in seen) == 1:
            return [message(3, [EPOCH, fields[0]])]
        return well(kind, fields, parts)

    with gateway(forgetful) as endpoint:
        code, stdout, _ = run("--gateway", endpoint, *arguments)
    assert (code, stdout.count("argmax 7")) == (0, 1)
    assert [kind for kind, _ in seen] == [1, 4, 1, 4]
    assert seen[1][1] == seen[3][1]


def test_of_several_full_cloud_entries_it_takes_the_one_that_is_sent_as_it_is(
    run: Run, arguments: list[str], tmp_path: Path
) -> None:
    document = json.loads((tmp_path / "manifest.json").read_bytes())
    _, plain = document["placements"]
    plain["boundary"][0]["codec"] = "zstd"
    jpeg = {**plain, "id": "full-cloud.jpeg90", "segment": "ff" * 32, "boundary": [{**plain["boundary"][0]}]}
    jpeg["boundary"][0]["codec"] = "jpeg90"
    document["placements"] = [jpeg, plain]
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with gateway(well) as endpoint:
        code, stdout, stderr = run("--gateway", endpoint, *arguments)
    assert (code, stdout.count("argmax 7"), stderr) == (0, 1, "")


def test_a_bundle_without_a_full_cloud_placement_is_told_so(run: Run, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"model": {"digest": "00"}, "placements": []}))
    assert_refused(run(*arguments), 4, "no full-cloud placement")


def test_a_refusal_is_told_with_code_reason_and_when_to_come_back(run: Run, arguments: list[str]) -> None:
    def busy(kind: int, fields: list[Any], parts: Frames) -> list[Frames]:
        if kind == 1:
            return well(kind, fields, parts)
        return [message(6, [fields[0], fields[2], "BUSY", "1024 requests are pending", 10, 250_000, 0])]

    with gateway(busy) as endpoint:
        assert_refused(run("--gateway", endpoint, *arguments), 9, "BUSY", "1024 requests are pending", "0.25 s")


def test_a_gateway_of_another_version_is_told_with_both_versions(run: Run, arguments: list[str]) -> None:
    with gateway(lambda *_: [message(0, [2, 3], version=0)]) as endpoint:
        assert_refused(run("--gateway", endpoint, *arguments), 8, "2 to 3", "speaks 1")


def test_a_damaged_result_is_not_believed(run: Run, arguments: list[str]) -> None:
    def damaging(kind: int, fields: list[Any], parts: Frames) -> list[Frames]:
        return well(kind, fields, parts) if kind == 1 else [result(fields, parts, damaged=True)]

    with gateway(damaging) as endpoint:
        assert_refused(run("--gateway", endpoint, *arguments), 8, "checksum")


def test_a_gateway_that_never_answers_is_given_up_in_time(run: Run, arguments: list[str]) -> None:
    with gateway(lambda *_: []) as endpoint:
        assert_refused(run("--gateway", endpoint, *arguments, "--timeout", "0.1"), 6, endpoint, "0.1 s")


def test_a_gateway_without_this_model_is_told_so(run: Run, arguments: list[str]) -> None:
    with gateway(lambda *_: [message(2, [*WELCOME[:4], [], []])]) as endpoint:
        assert_refused(run("--gateway", endpoint, *arguments), 9, "does not hold")


def test_without_a_gateway_a_bundle_or_fitting_data_it_says_which(
    run: Run, arguments: list[str], tmp_path: Path
) -> None:
    nowhere = "tcp://127.0.0.1:9"
    assert_refused(run("--gateway", nowhere, *arguments, "--timeout", "0.1"), 6, nowhere)
    assert_refused(run("--bundle", str(tmp_path / "none"), *arguments[2:]), 4, "manifest.json")
    np.savez(tmp_path / "other.npz", picture=np.zeros(3))
    assert_refused(run(*arguments[:2], "--input", str(tmp_path / "other.npz")), 3, "image")


def test_it_imports_none_of_our_packages() -> None:
    code = f"import runpy, sys; runpy.run_path({str(CLIENT)!r}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"protocol", "edge_agent", "cloud_gateway", "partitioner", "msgspec"} & set(loaded)
