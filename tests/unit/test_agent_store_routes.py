"""The store's routes: tickets and late answers over HTTP, in the forms of the standard protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edge_agent.outcomes import Answer, StageTimings
from edge_agent.store.journal import Journal
from edge_agent.store.routes import PATH, routes
from edge_agent.store.tickets import Caps, State
from protocol.errors import InputError
from protocol.oip.app import OipApp
from protocol.oip.service import AccessDenied, OpenGuard, Role
from protocol.tensors import Array, Tensors
from tests.oip import ToyService


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Names(OpenGuard):
    """Whoever shows a credential is called by it."""

    def check(self, *, role: Role, credential: str | None, address: str, nbytes: int) -> str:
        if credential is None:
            raise AccessDenied(401, "who are you?")
        return credential


class Door:
    """The application as a client sees it, without a socket."""

    def __init__(self, app: OipApp) -> None:
        self._app = app

    def __call__(
        self, method: str, path: str, body: bytes = b"", *, who: str = "ann", headers: dict[str, str] | None = None
    ) -> Reply:
        given = {"content-length": str(len(body)), "authorization": f"Bearer {who}", **(headers or {})}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
            "client": ("127.0.0.1", 1),
        }
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self._app(scope, receive, send))
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], found, b"".join(m["body"] for m in sent[1:]))


def accepts(model: str, inputs: Tensors) -> None:
    if model != "echo":
        raise InputError(f"no model {model!r}", "ask for echo")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "store", Caps(most_tickets=3)) as opened:
        yield opened


@pytest.fixture
def door(journal: Journal) -> Door:
    extra = routes(journal, accepts, why=lambda: "live requests go first")
    return Door(OipApp(ToyService(), Names(), extra=extra))


def question(binary: bool = False, **parameters: object) -> bytes:
    document: dict[str, Any] = {
        "id": "mine",
        "parameters": {**parameters, "binary_data_output": binary},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}],
    }
    return json.dumps(document).encode()


def an_answer() -> Answer:
    outputs: dict[str, Array] = {"y": np.array([[1.0, 2.0]], np.float32), "z": np.array([7], np.int64)}
    return Answer("r", outputs, "cut-1", "cut", "int8", "toy", "b", StageTimings(total_s=0.5), 1, 1, 1, 1)


def stored(door: Door, body: bytes = b"", **options: Any) -> str:
    reply = door("POST", f"{PATH}/echo", body or question(), **options)
    assert reply.status == 202, reply.body
    ticket: str = reply.json["ticket"]
    assert reply.headers["location"] == f"{PATH}/{ticket}"
    return ticket


def test_a_stored_request_gets_a_ticket_and_waits(door: Door, journal: Journal) -> None:
    ticket = stored(door, question(priority=3, store_life_s=60))
    reply = door("GET", f"{PATH}/{ticket}")
    assert reply.status == 202
    assert (reply.json["state"], reply.json["attempts"]) == ("waiting", 0)
    assert 50 < reply.json["left_s"] <= 60
    [found] = journal.entries()
    assert (found.model, found.tenant, found.priority) == ("echo", "ann", 2)
    tensors = journal.inputs(ticket)
    assert tensors is not None
    assert tensors["x"].tolist() == [[1.5, 2.5]]


def test_the_late_answer_is_that_of_infer_with_its_provenance_and_stays_until_it_is_deleted(
    door: Door, journal: Journal
) -> None:
    ticket = stored(door)
    journal.answer(ticket, an_answer())
    for method, status in (("GET", 200), ("GET", 200), ("DELETE", 200), ("GET", 404), ("DELETE", 404)):
        reply = door(method, f"{PATH}/{ticket}")
        assert reply.status == status
        if status == 200:
            assert reply.json["id"] == "mine"
            assert [output["name"] for output in reply.json["outputs"]] == ["y", "z"]
            assert reply.json["outputs"][0]["data"] == [1.0, 2.0]
            assert reply.json["parameters"]["placement"] == "cut-1"
            assert reply.json["parameters"]["ticket"] == ticket


def test_tensors_go_in_and_come_out_as_bytes_where_that_was_asked_for(door: Door, journal: Journal) -> None:
    tensor = np.array([[0.5, 0.25]], np.float32)
    head = json.dumps(
        {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"inference-header-content-length": str(len(head))}
    ticket = stored(door, head + tensor.tobytes(), headers=headers)
    tensors = journal.inputs(ticket)
    assert tensors is not None
    assert np.array_equal(tensors["x"], tensor)
    journal.answer(ticket, an_answer())
    reply = door("GET", f"{PATH}/{ticket}")
    at = int(reply.headers["inference-header-content-length"])
    assert [output["name"] for output in json.loads(reply.body[:at])["outputs"]] == ["y"]
    assert np.frombuffer(reply.body[at:], np.float32).tolist() == [1.0, 2.0]


def test_a_large_request_is_stored_whole(door: Door, journal: Journal) -> None:
    tensor = np.arange(100_000, dtype=np.float32)
    entry = {"name": "x", "datatype": "FP32", "shape": [100_000], "parameters": {"binary_data_size": tensor.nbytes}}
    head = json.dumps({"inputs": [entry]}).encode()
    ticket = stored(door, head + tensor.tobytes(), headers={"inference-header-content-length": str(len(head))})
    tensors = journal.inputs(ticket)
    assert tensors is not None
    assert np.array_equal(tensors["x"], tensor)


def test_what_will_never_be_answered_is_gone_and_says_why(door: Door, journal: Journal) -> None:
    ticket = stored(door)
    journal.refuse(ticket, "BAD_REQUEST", "it does not fit")
    reply = door("GET", f"{PATH}/{ticket}")
    assert reply.status == 410
    assert (reply.json["state"], reply.json["code"], reply.json["reason"]) == (
        "refused",
        "BAD_REQUEST",
        "it does not fit",
    )


def test_a_waiting_request_can_be_called_back(door: Door, journal: Journal) -> None:
    ticket = stored(door)
    reply = door("DELETE", f"{PATH}/{ticket}")
    assert (reply.status, reply.json["state"]) == (200, "waiting")
    assert journal.entries() == []


def test_nobody_sees_anothers_ticket(door: Door, journal: Journal) -> None:
    ticket = stored(door, who="ann")
    for method in ("GET", "DELETE"):
        assert door(method, f"{PATH}/{ticket}", who="bob").status == 404
    assert door("GET", f"{PATH}/{ticket}", who="ann").status == 202


def test_a_request_sent_again_under_its_key_is_stored_once(door: Door, journal: Journal) -> None:
    assert stored(door, question(store_key="k")) == stored(door, question(store_key="k"))
    assert len(journal.entries()) == 1


def test_a_full_store_is_busy_and_says_when_to_come_back(door: Door) -> None:
    for _ in range(3):
        stored(door)
    reply = door("POST", f"{PATH}/echo", question())
    assert (reply.status, reply.json["code"]) == (503, "BUSY")
    assert "full" in reply.json["error"]
    assert int(reply.headers["retry-after"]) > 0


def test_a_store_that_is_closed_is_not_ready(door: Door, journal: Journal) -> None:
    journal.close()
    assert door("POST", f"{PATH}/echo", question()).status == 503


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (f"{PATH}/other", question(), 400),
        (f"{PATH}/echo", b"{", 400),
        (f"{PATH}/echo", question(store_life_s=-1), 400),
        (f"{PATH}/echo", question(store_life_s="long"), 400),
        (f"{PATH}/echo", question(store_key=1), 400),
        (f"{PATH}/echo", question(timeout=-1), 400),
    ],
)
def test_what_cannot_be_stored_is_refused_with_a_reason(
    door: Door, journal: Journal, path: str, body: bytes, status: int
) -> None:
    reply = door("POST", path, body)
    assert reply.status == status
    assert reply.json["error"]
    assert journal.entries() == []


def test_what_is_no_ticket_is_not_found(door: Door) -> None:
    assert door("GET", f"{PATH}/echo").status == 404


def test_one_look_tells_what_lies_there_and_what_is_waited_for(door: Door) -> None:
    stored(door)
    document = door("GET", PATH).json
    assert document["tickets"] == {state.value: int(state is State.WAITING) for state in State}
    assert document["why"] == "live requests go first"
    assert 0 < document["nbytes"] < document["most_nbytes"]
