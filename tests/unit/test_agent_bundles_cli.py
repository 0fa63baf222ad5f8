"""`edge-agent bundles` as an operator types it: without a daemon, beside one, and against what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_agent.bundles.cli import app
from edge_agent.bundles.record import Step
from edge_agent.bundles.shelf import Shelf
from edge_agent.bundles.wishes import Wish, take_wish
from protocol.errors import BundleError, InputError, UntrustedError
from tests.bundles import bundle_in
from tests.updating import Device, FolderGateway


def run(state: Path, *arguments: str) -> Any:
    """What the command printed, as JSON. Raises what it raised."""
    done = CliRunner().invoke(app, [*arguments, "--state-dir", str(state), "--json"], catch_exceptions=False)
    return json.loads(done.stdout)


def test_a_device_without_bundles_says_so(tmp_path: Path) -> None:
    said = run(tmp_path, "list")
    assert (said["current"], said["held"], said["step"]) == ("", [], "idle")
    text = CliRunner().invoke(app, ["list", "--state-dir", str(tmp_path)]).stdout
    assert "no bundle is installed" in text


def test_a_real_bundle_is_installed_tried_listed_and_started_on_trial(tmp_path: Path, toy_bundle: Path) -> None:
    done = run(tmp_path, "install", str(toy_bundle))
    assert (done["done"], done["step"]) == (True, "on trial")
    [held] = run(tmp_path, "list")["held"]
    assert (held["digest"], held["trouble"]) == (done["bundle"], "")
    again = run(tmp_path, "install", str(toy_bundle))
    assert again == {"bundle": done["bundle"], "done": True}
    text = CliRunner().invoke(app, ["list", "--state-dir", str(tmp_path)]).stdout
    assert f"{done['bundle'][:12]}  " in text
    assert "(current)" in text


def test_a_bundle_that_does_not_run_here_is_not_installed(tmp_path: Path) -> None:
    bundle = bundle_in(tmp_path / "new", {"edge.onnx": b"no graph"})
    with pytest.raises(BundleError, match="does not load here"):
        run(tmp_path / "state", "install", str(bundle.root))
    assert run(tmp_path / "state", "list")["held"] == []


def test_a_device_that_knows_a_key_installs_nothing_that_is_not_signed(tmp_path: Path, toy_bundle: Path) -> None:
    from edge_agent.trust.store import TrustStore
    from protocol import signers

    TrustStore(tmp_path / "keys").believe((signers.make_key("builder").public,))
    with pytest.raises(UntrustedError, match="is not signed"):
        run(tmp_path, "install", str(toy_bundle))
    assert Shelf(tmp_path / "bundles").held() == []


def test_beside_a_daemon_the_daemon_is_told(tmp_path: Path) -> None:
    old, new = bundle_in(tmp_path / "old", {"edge.onnx": b"1"}), bundle_in(tmp_path / "new", {"edge.onnx": b"2"})
    state = tmp_path / "state"
    for bundle in (old, new):
        device = Device(state / "bundles", FolderGateway(bundle.root))
        device.start()
        device.update()
        device.close()
    third = bundle_in(tmp_path / "third", {"edge.onnx": b"3"})
    daemon = Device(state / "bundles", None)
    daemon.start()
    assert run(state, "install", str(third.root)) == {"bundle": third.digest, "done": False}
    assert take_wish(daemon.shelf) == Wish("install", third.digest)
    assert (daemon.shelf.incoming(third.digest) / "edge.onnx").read_bytes() == b"3"
    assert run(state, "rollback", "--reason", "slow") == {"bundle": "", "done": False}
    assert take_wish(daemon.shelf) == Wish("roll back", reason="slow")
    assert run(state, "prune") == {"done": False}
    assert take_wish(daemon.shelf) == Wish("prune")
    daemon.close()
    assert run(state, "rollback")["bundle"] == old.digest
    daemon = Device(state / "bundles", None)
    daemon.start()
    assert (daemon.serves, daemon.step) == (old.digest, Step.REVERTED)
    daemon.close()
    assert run(state, "prune") == {"done": True, "removed": [], "nbytes": 0}, "what is not wanted went with the other"


def test_what_an_operator_cannot_have_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no bundle to go back to"):
        run(tmp_path, "rollback")
    with pytest.raises(InputError, match="no gateway is known"):
        run(tmp_path, "offers")
    with pytest.raises(BundleError, match="there is no bundle at"):
        run(tmp_path, "install", str(tmp_path / "nothing"))
