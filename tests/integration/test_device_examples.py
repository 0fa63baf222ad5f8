"""The examples for devices, against a daemon with a model of pictures: each runs, or says what is missing."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from edge_agent.daemon import Daemon
from edge_agent.local_client import LocalClient
from examples.devices import asking, camera, folder
from examples.devices.web import answering
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search
from protocol.tensors import TensorSpec
from tests import models
from tests.daemons import daemon_of


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """It serves a model that takes uint8 pictures [N, 3, 16, 16]."""
    place = tmp_path_factory.mktemp("pictures")
    net = models.Net()
    net.add("Cast", ["picture"], "f", to=int(onnx.TensorProto.FLOAT))
    net.add("Relu", [net.conv("f", "c", 3, 4)], "r")
    net.classify("r", 4)
    model = net.model({"picture": (onnx.TensorProto.UINT8, ["N", 3, 16, 16])}, {"logits": ["N", models.CLASSES]})
    order = Order(model=models.write(model, place), target=place / "bundle", cuts=(("r",),), precision="fp32",
                  search=Search(memory=False), recipe_budget_s=0.0, bound=0.5)  # fmt: skip
    daemon = daemon_of(build(order, Silent()).target, place / "s")
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    place = tmp_path / "in"
    place.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 24), (number * 80, 10, 200)).save(place / f"{number}.png")
    (place / "3.png").write_bytes(b"no picture")
    return place


def run(monkeypatch: pytest.MonkeyPatch, module: object, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["example", *arguments])
    asking.ended(module.main)  # type: ignore[attr-defined]


def test_a_folder_is_answered_file_by_file(
    daemon: Daemon, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, folder, str(pictures), "--socket", str(daemon.door.unix_socket), "--deadline-ms", "20000")
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["0.png", "1.png", "2.png", "3.png"]
    assert all("edge-only" in line for line in said[:3])
    assert "not a readable image" in said[3]


def test_frames_are_fitted_and_answered(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    frames = (np.full((48, 64, 3), level, np.uint8) for level in (0, 128, 255))
    with LocalClient(daemon.door.unix_socket or "") as client:
        asking.watch(frames, client, deadline_s=20.0, limit=2)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["frame 1", "frame 2"]


def test_a_frame_keeps_its_middle_and_its_colours() -> None:
    frame = np.zeros((20, 40, 3), np.uint8)
    frame[:, 10:30] = (255, 100, 0)  # the middle square
    colour = asking.fitted(frame, TensorSpec("x", "uint8", (None, 3, 10, 10)))
    assert colour.shape == (1, 3, 10, 10)
    np.testing.assert_array_equal(np.unique(colour[0], axis=None), [0, 100, 255])
    assert (colour[0, 0] == 255).all()
    grey = asking.fitted(frame, TensorSpec("x", "uint8", (None, 1, 10, 10)))
    assert (grey == 135).all()
    assert asking.fitted(frame, TensorSpec("x", "uint8", (None, 3, None, None))).shape == (1, 3, 20, 40)


@pytest.mark.parametrize(
    ("options", "library", "otherwise"),
    [
        (("no-such-film.mp4",), "cv2", "error: OpenCV cannot open no-such-film.mp4"),
        (("--gstreamer", "videotestsrc ! fakesink"), "gi", "error: the pipeline hands its frames to nobody"),
    ],
)
def test_a_camera_without_its_library_says_which_to_install(
    options: tuple[str, ...], library: str, otherwise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec(library) is not None
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, camera, *options)
    assert str(ended.value).startswith(otherwise if there else "error: ")
    assert there or "not installed" in str(ended.value)


def test_a_web_application_answers_pictures_and_refuses_the_rest(daemon: Daemon, pictures: Path) -> None:
    with LocalClient(daemon.door.unix_socket or "") as client:
        spec = asking.picture_input(client)
        server = ThreadingHTTPServer(("127.0.0.1", 0), answering(client, spec, 20.0))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/"
            with urllib.request.urlopen(url, (pictures / "0.png").read_bytes(), timeout=30) as answer:
                found = json.loads(answer.read())
            assert found["placement"] == "edge-only"
            assert np.shape(found["outputs"]["logits"]) == (1, models.CLASSES)
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(url, b"no picture", timeout=30)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def test_a_daemon_that_does_not_run_is_one_sentence(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="start one with `edge-agent run`"):
        run(monkeypatch, folder, str(pictures), "--socket", str(tmp_path / "none.sock"))
