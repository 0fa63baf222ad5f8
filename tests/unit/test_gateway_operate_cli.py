"""`cloud-gateway status | models`: every trouble is one sentence with its exit code, whoever answers and however."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloud_gateway.cli import app
from cloud_gateway.remote import Remote, model_path
from cloud_gateway.seeing.status import SCHEMA
from protocol.errors import InputError, NetworkError


class Somebody(http.server.BaseHTTPRequestHandler):
    """Answers what the test put into `replies` (status, headers, body) and remembers what it was asked."""

    replies: list[tuple[int, dict[str, str], bytes]]
    asked: list[tuple[str, str, str | None, bytes]]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.asked.append((self.command, self.path, self.headers.get("authorization"), body))
        status, headers, reply = self.replies.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_GET = do_POST = _answer  # noqa: N815 - the library's names

    def log_message(self, *_: Any) -> None:
        pass


class Server:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None, bytes]] = []
        self.replies: list[tuple[int, dict[str, str], bytes]] = []
        handler = type("Handler", (Somebody,), {"asked": self.asked, "replies": self.replies})
        self.server = http.server.HTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def reply(self, document: Any, status: int = 200, **headers: str) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.replies.append((status, headers, body))


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text("isthmus_secret\n")
    return file


def test_the_status_says_what_a_lane_would_rather_run_on_and_why_it_does_not(server: Server) -> None:
    def engine(kind: str, state: str, reason: str = "", *, serves: bool = False) -> dict[str, object]:
        return {"kind": kind, "state": state, "serves": serves, "reason": reason, "failures": 0}

    engines = [engine("tensorrt", "absent", "no driver; install one"), engine("a", "ready", serves=True),
               engine("b", "ready")]  # fmt: skip
    lane = {"key": "1f2e", "label": "digits/1 cut-1/tail", "engine": "A", "engines": engines, "batch_bound": 4,
            "pending_requests": 0, "wait_s": 0.0}  # fmt: skip
    total = {"counters": {"offered": 0, "answered": 0, "late": 0, "refused": {}}, "residence": None}
    server.reply({"schema": SCHEMA, "software": "isthmus", "ready": True, "draining": False, "uptime_s": 1.0,
                  "agents": 0, "models": [], "lanes": [lane], "total": total})  # fmt: skip
    done = CliRunner().invoke(app, ["status", "--url", server.url])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[1:3] == [
        "  lane 1f2e (digits/1 cut-1/tail): A, batch up to 4, 0 waiting, 0.0 ms",
        "    tensorrt: absent, no driver; install one",
    ]


# ---- the client -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["127.0.0.1:7480", "ftp://here", "http://", "http://:80", "http://host:port", "http://a b", "", "http://h:0"]
)
def test_what_is_no_address_is_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(InputError, match="is not the address of a gateway"):
        Remote(url)


def test_a_call_carries_its_key_and_brings_back_the_document(server: Server, key_file: Path) -> None:
    server.reply({"a": 1})
    assert Remote(server.url + "/", key_file).document("POST", "/v2/x", {"b": 2}) == {"a": 1}
    assert server.asked == [("POST", "/v2/x", "Bearer isthmus_secret", b'{"b":2}')]


def test_an_empty_answer_is_none(server: Server) -> None:
    server.reply(b"")
    assert Remote(server.url).call("POST", "/v2/x") is None


def test_nobody_there_is_a_network_error_with_the_way_out(server: Server) -> None:
    server.server.server_close()
    with pytest.raises(NetworkError, match=r"no gateway answers at .*; start one, or name it with --url"):
        Remote(server.url).call("GET", "/")


def test_who_listens_but_does_not_answer_is_waited_for_no_longer_than_said() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(NetworkError, match=r"has not answered within 0.05 s.*goes on"):
            Remote(url, timeout_s=0.05).call("GET", "/")


def test_a_refusal_says_the_gateways_own_reason(server: Server) -> None:
    server.reply({"error": "administration over the network is off"}, 403)
    with pytest.raises(InputError, match=r"refused: administration over the network is off"):
        Remote(server.url).call("GET", "/")
    server.reply(b"<html>", 502)
    with pytest.raises(InputError, match="refused: status 502"):
        Remote(server.url).call("GET", "/")


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[1, 2]", b'"text"'])
def test_an_answer_that_is_no_document_of_a_gateway_is_one_sentence(server: Server, body: bytes) -> None:
    server.reply(body)
    with pytest.raises(InputError, match="is no gateway"):
        Remote(server.url).document("GET", "/")
    server.reply(body)
    with pytest.raises(InputError, match="is no gateway"):
        Remote(server.url).entries("GET", "/")


def test_the_key_is_shown_to_nobody_that_a_redirect_names(server: Server, key_file: Path) -> None:
    server.reply(b"", 302, location=f"{server.url}/elsewhere")
    with pytest.raises(InputError, match="status 302"):
        Remote(server.url, key_file).call("GET", "/status.json")
    assert [path for _, path, _, _ in server.asked] == ["/status.json"]


@pytest.mark.parametrize("text", ["", "two keys", "line\nline", "sch\u00fcssel"])
def test_a_file_that_does_not_hold_one_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text, "utf-8")
    with pytest.raises(InputError, match="does not hold one key"):
        Remote("http://h", tmp_path / "key")
    with pytest.raises(InputError, match="cannot be read"):
        Remote("http://h", tmp_path / "absent")


def test_a_models_name_stays_one_part_of_the_path() -> None:
    assert model_path("a/../b c?d", "load") == "/v2/repository/models/a%2F..%2Fb%20c%3Fd/load"


# ---- the commands ---------------------------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    """The command's stdout; what it raises is raised."""
    found = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    if found.exception is not None:
        raise found.exception
    return found.stdout


INDEX = [
    {"name": "digits", "version": "2", "state": "READY"},
    {"name": "broken", "version": "1", "state": "UNAVAILABLE", "reason": "the file is damaged"},
]


def test_models_are_listed_with_their_states_and_reasons(server: Server) -> None:
    server.reply(INDEX)
    lines = run("models", "list", "--url", server.url).splitlines()
    assert [line.split() for line in lines] == [
        ["digits", "2", "READY"],
        ["broken", "1", "UNAVAILABLE", "the", "file", "is", "damaged"],
    ]
    server.reply(INDEX)
    assert json.loads(run("models", "list", "--url", server.url, "--json")) == INDEX
    server.reply([])
    assert run("models", "list", "--url", server.url) == "no models\n"


@pytest.mark.parametrize("what", ["load", "unload"])
def test_loading_and_unloading_say_what_was_done(server: Server, what: str) -> None:
    server.reply(b"")
    assert run("models", what, "digits", "--url", server.url) == f"{what}ed digits\n"
    server.reply(b"")
    told = json.loads(run("models", what, "digits", "--version", "3", "--url", server.url, "--json"))
    assert told == {"ok": True, "model": "digits", "version": 3, "done": what}
    assert [(path, json.loads(body)) for _, path, _, body in server.asked] == [
        (f"/v2/repository/models/digits/{what}", {}),
        (f"/v2/repository/models/digits/{what}", {"parameters": {"version": 3}}),
    ]


def test_a_status_of_another_version_is_not_misread(server: Server) -> None:
    server.reply({"schema": 99})
    with pytest.raises(InputError, match="none that this command reads"):
        run("status", "--url", server.url)
