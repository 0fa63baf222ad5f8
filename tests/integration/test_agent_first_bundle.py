"""A device on its first day: no bundle, a gateway that will offer one, and applications that already ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest

from edge_agent.local_client import LocalClient, unwrap
from edge_agent.outcomes import Refusal
from protocol.control.flights import RefusalCode
from protocol.errors import InputError
from tests.daemons import Manager, daemon_of, got
from tests.gateways import gateway_of
from tests.waiting import until

Images = npt.NDArray[Any]
NONE = {"bundle.path": None, "bundle.signatures": "unsigned", "updates.check_every_s": 1.0}


def test_a_device_without_a_bundle_is_live_and_not_ready_and_serves_the_first_that_a_gateway_offers(
    toy_bundle: Path, tmp_path: Path, toy_samples: Images
) -> None:
    gateway = gateway_of(toy_bundle)  # it offers nothing yet
    gateway.start()
    where = str(gateway.endpoint)
    manager = Manager(tmp_path / "notify")
    env = {"NOTIFY_SOCKET": str(manager.path)}
    with daemon_of(None, tmp_path / "s", gateways=(where,), settings=NONE, env=env) as daemon:
        assert got(daemon, "/v2/health/live")[0] == 200
        assert got(daemon, "/v2/health/ready")[0] == 503
        code, body = got(daemon, "/v2/isthmus/status")
        status = json.loads(body)
        assert (code, status["ready"]) == (200, False)
        assert f"it waits for the first one from {where}" in status["reason"]
        heard = manager.heard()
        assert "READY=1" in heard, "systemd would give up a start that waits for days"
        assert any(line.startswith("STATUS=no bundle serves on this device: it waits for") for line in heard)
        with LocalClient(daemon.door.unix_socket or "", model="model") as client:
            refused = client.infer({"x": toy_samples[:1]}, deadline_s=20.0)
            assert isinstance(refused, Refusal)
            assert refused.code is RefusalCode.NO_PLACEMENT
            assert "it waits for the first one" in refused.reason
            gateway.close()
            with gateway_of(toy_bundle, bind=where, settings={"updates.offer": ["*"]}):
                until(client.is_ready, "the first bundle never came", within_s=60.0)
                unwrap(client.infer({"x": toy_samples[:1]}, deadline_s=20.0))
        assert got(daemon, "/v2/health/ready")[0] == 200
        assert "STATUS=serves model" in "\n".join(manager.heard())
        daemon._switch(None)  # as when it is revoked
        assert (got(daemon, "/v2/health/live")[0], got(daemon, "/v2/health/ready")[0]) == (200, 503)
        assert "STATUS=no bundle serves on this device: it waits for the next one" in "\n".join(manager.heard())
    manager.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gateways.endpoints": []}, "no gateway is named"),
        ({"updates.enabled": False}, r"updates\.enabled"),
        ({"updates.automatic": False}, r"updates\.automatic"),
    ],
)
def test_a_device_to_which_no_bundle_can_come_says_how_to_get_one(
    settings: dict[str, object], words: str, tmp_path: Path
) -> None:
    given = NONE | {"gateways.endpoints": ["tcp://127.0.0.1:1"]} | settings
    with pytest.raises(InputError, match=f"{words}.*`edge-agent bundles install DIR`"):
        daemon_of(None, tmp_path / "s", settings=given).start()
