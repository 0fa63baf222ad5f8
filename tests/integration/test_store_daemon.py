"""The daemon with a store, killed as soon as it has given a ticket: the late answer comes from the next one."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.processes import Process, running
from tests.waiting import until

Array = npt.NDArray[Any]


def daemon(bundle: Path, state_dir: Path) -> list[str]:
    given = ["store.enabled=true", "gateways.wait_s=0", "http.bind=127.0.0.1:0", f"state_dir={state_dir}"]
    return ["edge-agent", "run", "--bundle", str(bundle), "--json", *[w for g in given for w in ("--set", g)]]


def address(process: Process) -> str:
    return f"http://{process.json(60.0)['http']}/v2/isthmus/store"


def asked(method: str, url: str, body: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(url, data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_ticket_of_a_daemon_that_was_killed_is_answered_once_by_the_next(
    tmp_path: Path, toy_bundle: Path, toy_samples: Array
) -> None:
    model = json.loads((toy_bundle / "manifest.json").read_text("utf-8"))["model"]["name"]
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3, 16, 16], "data": toy_samples[0].ravel().tolist()}
    with running(*daemon(toy_bundle, tmp_path)) as process:
        status, document = asked("POST", f"{address(process)}/{model}", json.dumps({"inputs": [tensor]}).encode())
        assert status == 202, document
        process.popen.kill()
    ticket = document["ticket"]
    with running(*daemon(toy_bundle, tmp_path)) as process:
        store = address(process)
        until(lambda: asked("GET", f"{store}/{ticket}")[0] == 200, "it was not answered")
        status, answer = asked("DELETE", f"{store}/{ticket}")
        assert status == 200
        assert answer["parameters"]["ticket"] == ticket
        assert np.array(answer["outputs"][0]["data"]).shape == (10,)
        assert asked("GET", f"{store}/{ticket}")[0] == 404
