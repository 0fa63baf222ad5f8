"""The daemon and its store: late answers, a store that cannot be had, and what lets waiting requests go at once."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edge_agent.daemon import Daemon
from edge_agent.local_client import LocalClient, unwrap
from edge_agent.store.tickets import State, Wish
from protocol.control.flights import RefusalCode
from protocol.oip.service import OpenGuard
from tests.daemons import daemon_of, got
from tests.gateways import gateway_of
from tests.waiting import until

Images = npt.NDArray[Any]
STORE = "/v2/isthmus/store"


def put(daemon: Daemon, images: Images) -> str:
    assert daemon.store is not None
    return daemon.store.journal.put(Wish({"x": images[:1]}, model="model", tenant=OpenGuard.TENANT))


def is_answered(daemon: Daemon, ticket: str) -> bool:
    assert daemon.store is not None
    found = daemon.store.journal.look(ticket)
    return found is not None and found.state is State.ANSWERED


def test_a_request_in_the_store_is_answered_late_and_survives_the_daemon(
    toy_bundle: Path, tmp_path: Path, toy_samples: Images
) -> None:
    with daemon_of(toy_bundle, tmp_path / "s", settings={"store.enabled": True}) as first:
        ticket = put(first, toy_samples)
        until(lambda: is_answered(first, ticket))
    with daemon_of(toy_bundle, tmp_path / "s", settings={"store.enabled": True}) as second:
        code, body = got(second, f"{STORE}/{ticket}")
        assert code == 200
        assert '"placement":"edge-only"' in body


def test_a_store_that_cannot_be_opened_keeps_nobody_from_being_served_and_is_tried_again(
    toy_bundle: Path, tmp_path: Path, toy_samples: Images
) -> None:
    state, log = tmp_path / "s", io.StringIO()
    state.mkdir()
    (state / "store").write_text("a file lies where the store's folder should be")
    with daemon_of(toy_bundle, state, settings={"store.enabled": True}, log=log) as daemon:
        assert daemon.store is not None
        with LocalClient(daemon.door.unix_socket or "") as client:
            assert client.is_ready()
            unwrap(client.infer({"x": toy_samples[:1]}, deadline_s=20.0))
        for method, path in (
            ("POST", f"{STORE}/model"),
            ("GET", STORE),
            ("GET", f"{STORE}/00-1"),
            ("DELETE", f"{STORE}/1"),
        ):
            code, body = got(daemon, path, method=method)
            refused = json.loads(body)
            assert (code, refused["code"]) == (503, "NOT_READY"), (path, body)
            assert "the store cannot be used now" in refused["error"]
            assert "cannot be written" in refused["error"]
        assert "cannot be written" in json.loads(got(daemon, "/status.json")[1])["store"]["trouble"]
        assert "\nisthmus_agent_store_up 0\n" in got(daemon, "/metrics")[1]
        assert "without its store" in daemon.in_a_sentence()
        (state / "store").unlink()
        daemon.store.retry()
        until(lambda: "\nisthmus_agent_store_up 1\n" in got(daemon, "/metrics")[1], "it was not tried again")
        assert got(daemon, STORE)[0] == 200
        ticket = put(daemon, toy_samples)
        until(lambda: is_answered(daemon, ticket), "what was stored is not sent")
    said = [json.loads(line).get("text", "") for line in log.getvalue().splitlines()]
    assert any(text.startswith("requests for late answers are refused: the store") for text in said)
    assert "requests for late answers are taken again" in said


def test_what_waits_in_the_store_goes_as_soon_as_a_gateway_is_there_again(
    toy_bundle: Path, tmp_path: Path, toy_samples: Images
) -> None:
    gateway = gateway_of(toy_bundle)
    gateway.start()
    where = str(gateway.endpoint)
    settings = {"store.enabled": True, "gateways.wait_s": 20.0}
    with daemon_of(toy_bundle, tmp_path / "s", gateways=(where,), settings=settings) as daemon:
        assert daemon.store is not None
        gateway.close()
        until(lambda: not daemon.agent.wait_ready(0), "the link was not lost")
        pacing = daemon.store._forwarder._pacing  # as after many refusals: nothing is tried for an hour
        pacing.refused(0, RefusalCode.NO_PLACEMENT, now=time.monotonic() + 3600.0)
        ticket = put(daemon, toy_samples)
        until(lambda: "refused" in json.loads(got(daemon, STORE)[1])["why"], "it does not wait")
        assert not is_answered(daemon, ticket)
        with gateway_of(toy_bundle, bind=where):
            until(lambda: is_answered(daemon, ticket), "nobody woke the store")
