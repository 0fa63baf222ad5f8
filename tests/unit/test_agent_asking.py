"""Asking a running daemon: where it is, and what its answer says to people."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from edge_agent import cli_ask
from edge_agent.local_client import LocalClient
from protocol.errors import InputError, NetworkError


def gateway(**given: Any) -> dict[str, Any]:
    return {"name": "tcp://g:1", "ready": True, "reason": "", "state": "ready", "rtt_s": 0.002} | given


def seen(*gateways: dict[str, Any]) -> dict[str, Any]:
    return {
        "ready": True, "reason": "", "uptime_s": 1.0, "pending": 0, "serves_alone": True, "placements": [],
        "gateways": gateways, "store": None, "bundle": {"model": "m", "digest": "", "version": ""},
        "now": {"placement": "", "degraded": "", "why": ""},
    }  # fmt: skip


def test_the_round_trip_of_a_lost_link_is_not_told() -> None:
    assert "gateway tcp://g:1: ready, round trip 2.0 ms" in cli_ask.lines(seen(gateway()))
    assert "gateway tcp://g:1: lost" in cli_ask.lines(seen(gateway(ready=False, reason="lost")))


def test_a_daemon_is_found_by_its_folder_as_by_its_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ISTHMUS_AGENT_SOCKET", raising=False)
    assert cli_ask.where(None, None, tmp_path) == str(tmp_path / "run" / "agent.sock")
    assert cli_ask.where("a.sock", None) == "a.sock"
    with pytest.raises(InputError, match="both say where the daemon is; give one of them"):
        cli_ask.where("a.sock", None, tmp_path)
    monkeypatch.setenv("ISTHMUS_AGENT_SOCKET", "a.sock")  # what was typed counts more
    assert cli_ask.where("a.sock", None, tmp_path) == str(tmp_path / "run" / "agent.sock")


class _Gateway(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b'{"error": "no route", "code": "NOT_FOUND"}')

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the library's
        pass


def test_what_answers_and_is_no_agent_is_called_that() -> None:
    with HTTPServer(("127.0.0.1", 0), _Gateway) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            with (
                LocalClient(f"http://127.0.0.1:{server.server_port}") as client,
                pytest.raises(NetworkError, match="is no edge-agent"),
            ):
                client.document("/v2/isthmus/status")
        finally:
            server.shutdown()
            serving.join()
