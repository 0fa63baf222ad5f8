"""A device becomes known through real sockets: with one token, once, and whoever has none gets nowhere."""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
import zmq
from typer.testing import CliRunner

from cloud_gateway.access import invitations as inviting
from cloud_gateway.access.audit import AuditLog
from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.invitations import Invitation
from cloud_gateway.access.invite_cli import keys_app
from cloud_gateway.gateway import Gateway
from edge_agent.agent import Agent, AgentConfig
from edge_agent.bundles.courier import Courier
from edge_agent.cli import app as edge_agent_app
from edge_agent.config import AgentSettings, GatewaysSettings, KeysSettings
from edge_agent.doctor.case import Case
from edge_agent.doctor.examination import examine
from edge_agent.doctor.registry import chosen
from edge_agent.outcomes import Answer
from edge_agent.trust import identity
from edge_agent.trust.enrol import enrol
from edge_agent.updating import _keeper, addresses_of
from protocol import invitation, keys
from protocol import messages as m
from protocol.errors import InputError, NetworkError
from protocol.sockets import CurveClient
from tests.gateways import gateway_of
from tests.waiting import PATIENCE_S, until
from tests.wire_client import WireClient


class Place:
    """A gateway with keys, and the operator who invites."""

    def __init__(self, gateway: Gateway, folder: KeyFolder) -> None:
        self.gateway = gateway
        self.folder = folder

    @property
    def endpoint(self) -> str:
        return str(self.gateway.endpoint)

    def invite(self, name: str, *, lasts_s: int = 1000) -> str:
        server = self.folder.server_keys().current.public.data
        token = invitation.make_token(os.urandom(40), server)
        now = int(time.time())
        digest = invitation.digest_of(token.id, token.secret)
        made = Invitation(name=name, id=token.id.hex(), digest=digest, made=now - 10, expires=now + lasts_s)
        with self.folder.locked():
            roster = self.folder.roster()
            self.folder.change_invitations(lambda before: inviting.invite(before, roster, made))
        until(lambda: (t := self.gateway.authority.table) is not None and t.guests_until > 0, "nobody may come")
        return token.text()

    @property
    def names(self) -> list[str]:
        return [agent.name for agent in self.folder.roster().agents]

    @property
    def record(self) -> list[str]:
        return [f"{r.action} {r.target} {r.outcome}" for r in AuditLog(self.folder.audit_log).records()]


@pytest.fixture
def place(toy_bundle: Path, tmp_path: Path) -> Iterator[Place]:
    with _place(toy_bundle, tmp_path) as made:
        yield made


@contextmanager
def _place(toy_bundle: Path, tmp_path: Path, **more: object) -> Iterator[Place]:
    folder = KeyFolder(tmp_path / "gateway-keys")
    folder.make()
    with folder.locked():
        folder.create("gateway")
    settings: dict[str, object] = {"access.keys_dir": str(folder.path), "drain.grace_s": 2.0, **more}
    with gateway_of(toy_bundle, settings=settings) as gateway:
        yield Place(gateway, folder)


def test_an_enrolled_device_is_answered_and_its_key_was_never_elsewhere(
    place: Place, toy_bundle: Path, toy_samples: npt.NDArray[Any], tmp_path: Path
) -> None:
    device = tmp_path / "device"
    made = enrol(place.endpoint, place.invite("camera-7"), device)
    assert made.name == "camera-7"
    assert place.names == ["camera-7"]
    assert (device / "agent.key").stat().st_mode & 0o777 == 0o600
    secret = keys.read_pair(device / "agent.key").secret
    assert all(secret.hex() not in path.read_text() for path in place.folder.path.iterdir())
    assert any(line.startswith("keys.enroll camera-7") and line.endswith("done") for line in place.record)
    config = AgentConfig(bundle=toy_bundle, gateway=place.endpoint, keys=device, placements=("full-cloud",))
    with Agent(config) as agent:
        assert agent.wait_ready(PATIENCE_S)
        outcome = agent.submit({"x": toy_samples[:1]}, deadline_s=PATIENCE_S).result()
    assert isinstance(outcome, Answer), outcome


def test_the_two_commands_fit_together(place: Place, tmp_path: Path) -> None:
    invited = CliRunner().invoke(keys_app, ["invite", "camera-7", "--keys", str(place.folder.path)])
    assert invited.exit_code == 0, invited.output
    until(lambda: (t := place.gateway.authority.table) is not None and t.guests_until > 0, "nobody may come")
    device = tmp_path / "device"
    words = ["--gateway", place.endpoint, "--token", invited.stdout, "--keys", str(device), "--json"]
    enrolled = CliRunner().invoke(edge_agent_app, ["enroll", *words])
    assert enrolled.exit_code == 0, enrolled.output
    said = json.loads(enrolled.stdout)
    assert (said["name"], said["keys"]) == ("camera-7", str(device))
    assert said["fingerprint"] == keys.read_pair(device / "agent.key").public.fingerprint
    assert invited.stdout.strip() not in enrolled.output


def test_both_server_keys_are_kept_while_the_gateways_key_is_replaced(place: Place, tmp_path: Path) -> None:
    with place.folder.locked():
        place.folder.begin_rotation(7448)
    made = enrol(place.endpoint, place.invite("camera-7"), tmp_path / "device")
    assert [(key.data, key.port) for key in made.server] == [(key.data, key.port) for key in place.folder.public_keys()]
    assert keys.read_public(tmp_path / "device" / "server.pub") == made.server


def test_a_device_that_asks_during_a_rotation_survives_it_untouched_and_one_that_was_off_is_told_what_to_do(
    place: Place, toy_bundle: Path, tmp_path: Path
) -> None:
    asks, off = tmp_path / "asks", tmp_path / "off"
    enrol(place.endpoint, place.invite("camera-7"), asks)
    enrol(place.endpoint, place.invite("camera-8"), off)
    before = place.folder.server_keys().current.public.data
    with place.folder.locked():
        place.folder.begin_rotation(7448)
    authority = place.gateway.authority
    until(lambda: len(authority.server_keys()) == 2, "the gateway did not notice")
    settings = AgentSettings(
        state_dir=tmp_path, keys=KeysSettings(dir=asks), gateways=GatewaysSettings(endpoints=(place.endpoint,))
    )
    told: list[str] = []
    keep = _keeper(settings, lambda event, text: told.append(text))
    courier = Courier(addresses_of(settings), patience_s=1.0, keys_told=keep)
    courier.offers()
    assert [key.data for key in keys.read_public(asks / "server.pub")] == [k.key for k in authority.server_keys()]
    assert ["is replacing its key" in text for text in told] == [True]
    with place.folder.locked():
        place.folder.finish_rotation()
    until(lambda: [k.key for k in authority.server_keys()] != [before], "the gateway did not notice")
    until(lambda: len(authority.server_keys()) == 1, "the gateway did not notice")
    config = AgentConfig(bundle=toy_bundle, gateway=place.endpoint, keys=asks)
    with Agent(config) as agent:
        assert agent.wait_ready(PATIENCE_S)
    courier.offers()
    assert before not in {key.data for key in keys.read_public(asks / "server.pub")}, (
        "the old key is believed no longer"
    )
    case = Case(overrides={"gateways.endpoints": [place.endpoint], "keys.dir": str(off)})
    [handshake] = examine(case, chosen(("network.handshake",)))
    assert handshake.status == "fail"
    assert "copy its server.pub into the folder of keys, or `edge-agent enroll --replace`" in handshake.remedy


def test_of_many_devices_with_one_token_one_becomes_known(place: Place, tmp_path: Path) -> None:
    token = place.invite("camera-7")
    place.invite("camera-8")  # so that strangers may still come in when the first token is used up
    outcomes: list[str] = []

    def try_it(number: int) -> None:
        try:
            outcomes.append(enrol(place.endpoint, token, tmp_path / f"device-{number}", patience_s=PATIENCE_S).name)
        except InputError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=try_it, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("camera-7") == 1
    assert sum("was used already" in outcome for outcome in outcomes) == 3
    assert place.names == ["camera-7"]


def test_a_device_whose_answer_was_lost_asks_again_and_is_welcome(place: Place, tmp_path: Path) -> None:
    token = place.invite("camera-7")
    first = enrol(place.endpoint, token, tmp_path / "device")
    (tmp_path / "device" / "server.pub").unlink()
    assert enrol(place.endpoint, token, tmp_path / "device") == first
    assert place.names == ["camera-7"]


def test_wrong_expired_and_withdrawn_tokens_are_refused_in_a_sentence(place: Place, tmp_path: Path) -> None:
    place.invite("camera-9")
    expired = place.invite("camera-7", lasts_s=-5)
    withdrawn = place.invite("camera-8")
    with place.folder.locked():
        place.folder.change_invitations(lambda known: inviting.withdraw(known, "camera-8", utc=int(time.time())))
    good = invitation.parse_token(withdrawn)
    wrong = good._replace(secret=bytes(32)).text()
    for token, part in ((expired, "has expired"), (withdrawn, "was withdrawn"), (wrong, "not known here")):
        with pytest.raises(InputError, match=part):
            enrol(place.endpoint, token, tmp_path / "device")
        assert any(part in line for line in place.record)
    assert place.names == []
    assert not (tmp_path / "device" / "server.pub").exists()


def test_a_copied_key_gets_no_second_name(place: Place, tmp_path: Path) -> None:
    enrol(place.endpoint, place.invite("camera-7"), tmp_path / "device")
    with pytest.raises(InputError, match="known as camera-7 already: two devices must not share one"):
        enrol(place.endpoint, place.invite("camera-8"), tmp_path / "device")
    assert place.names == ["camera-7"]


def test_while_nobody_is_invited_a_stranger_is_not_let_in(place: Place, tmp_path: Path) -> None:
    server = place.folder.server_keys().current.public.data
    token = invitation.make_token(bytes(40), server).text()
    with pytest.raises(InputError, match="no invitation is open there"):
        enrol(place.endpoint, token, tmp_path / "device")
    assert place.gateway.stats().get("guests", 0) == 0


def test_a_gateway_with_another_key_never_sees_the_secret(place: Place, tmp_path: Path) -> None:
    place.invite("camera-7")
    other = invitation.make_token(bytes(40), keys.make_pair("other").public.data).text()
    with pytest.raises(NetworkError, match="no gateway with the token's key"):
        enrol(place.endpoint, other, tmp_path / "device", patience_s=1.0)
    assert place.gateway.stats().get("guests", 0) == 0


def test_a_device_that_knows_another_gateway_is_not_enrolled_by_accident(place: Place, tmp_path: Path) -> None:
    device = tmp_path / "device"
    identity.identity(device)
    keys.write_public(device / "server.pub", (keys.make_pair("other").public,))
    token = place.invite("camera-7")
    with pytest.raises(InputError, match="names another gateway"):
        enrol(place.endpoint, token, device)
    assert place.names == []
    assert enrol(place.endpoint, token, device, replace=True).name == "camera-7"


def test_a_guest_that_says_anything_else_is_hung_up_on_and_served_nothing(place: Place) -> None:
    place.invite("camera-7")
    pair = keys.make_pair("stranger")
    curve = CurveClient(pair.secret, place.folder.server_keys().current.public.data)
    stats = place.gateway.stats
    for message in (m.Hello(bytes(8), "stranger", "test", bytes(32)), m.Ping(1), m.AskOffers("")):
        heard, let_in = stats().get("guests", 0), stats().get("access_zap_200", 0)
        with WireClient(place.endpoint, curve=curve) as client:
            client.send(message)
            until(functools.partial(_more, stats, "guests", heard), "it was not heard")
            # Its socket knocks anew by itself when its connection was ended: once for the first time, once for that.
            until(functools.partial(_more, stats, "access_zap_200", let_in + 1), "it was not hung up on")
            assert client.silent(0.0)
    assert stats().get("hellos", 0) == 0
    assert place.gateway.frontend.agents == 0


def test_a_guest_that_stays_silent_is_hung_up_on_and_a_known_agent_is_not(place: Place, tmp_path: Path) -> None:
    device = tmp_path / "device"
    enrol(place.endpoint, place.invite("camera-7"), device)
    place.invite("camera-8")
    place.gateway.frontend._newcomers._patience_s = 0.5
    server = place.folder.server_keys().current.public.data
    stats = place.gateway.stats
    known = CurveClient(keys.read_pair(device / "agent.key").secret, server)
    with WireClient(place.endpoint, curve=known) as agent:
        agent.send(m.Hello(agent.boot, "camera-7", "test", bytes(32)))
        assert isinstance(agent.receive(), m.Welcome)
        with WireClient(place.endpoint, curve=CurveClient(keys.make_pair("stranger").secret, server)):
            until(functools.partial(_more, stats, "strangers_hung_up_on", 0), "it was not hung up on")
        agent.send(m.Ping(1))
        assert isinstance(agent.receive(), m.Pong), "the connection of a known agent stands"


def test_a_front_that_is_a_process_hands_on_what_shows_a_token_and_nothing_else(
    toy_bundle: Path, tmp_path: Path
) -> None:
    with _place(toy_bundle, tmp_path, **{"zmq.front": "process"}) as place:
        token = place.invite("camera-7")
        place.invite("camera-8")
        stats = place.gateway.stats
        stranger = keys.make_pair("stranger")
        curve = CurveClient(stranger.secret, place.folder.server_keys().current.public.data)

        def is_refused() -> bool:
            """Knock with a new socket each time: one that came before the front knew of the invitation has given up."""
            with WireClient(place.endpoint, curve=curve) as client:
                if client.socket.poll(1000, zmq.POLLOUT):
                    client.send(m.Ping(1))
                    assert client.silent(0.3)
            return _more(stats, "front_guests_refused", 0)

        until(is_refused, "the front has let it pass")
        made = enrol(place.endpoint, token, tmp_path / "device")
        assert made.name == "camera-7"
        assert stats().get("guests", 0) == stats()["enrolment_enrolled"] == 1
        assert place.names == ["camera-7"]


def _more(stats: Callable[[], dict[str, int]], name: str, than: int) -> bool:
    return stats().get(name, 0) > than
