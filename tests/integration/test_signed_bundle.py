"""A bundle as the partitioner builds it, signed by the command, opened by an agent that wants to know who vouches."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from edge_agent.agent import Agent, AgentConfig
from edge_agent.bundles.cli import app as bundles_app
from edge_agent.daemon import Daemon
from edge_agent.outcomes import Answer
from edge_agent.trust.store import TrustStore
from partitioner.cli import app
from protocol import signers
from protocol.bundle import MANIFEST, MANIFEST_DIGEST, SIGNATURE, sha256
from protocol.errors import BundleError, UntrustedError
from protocol.signing import Trust
from tests.daemons import daemon_of
from tests.waiting import PATIENCE_S, until


@pytest.fixture(scope="module")
def signed(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle with its signature, beside release.key and release.pub."""
    folder = tmp_path_factory.mktemp("signed") / "bundle"
    shutil.copytree(toy_bundle, folder)
    for words in (
        ["keys", "new", str(folder.parent), "--name", "release"],
        ["sign", str(folder), "--key", str(folder.parent / "release.key")],
    ):
        assert CliRunner().invoke(app, words).exit_code == 0
    return folder


def _store(signed: Path, at: Path) -> TrustStore:
    store = TrustStore(at / "keys")
    store.believe(signers.read_verify_keys(signed.parent / "release.pub"))
    return store


def _serve(folder: Path, trust: Trust) -> None:
    with Agent(AgentConfig(bundle=folder, trust=trust)):
        pass


def test_a_signed_bundle_answers_and_an_older_one_is_refused_after_it_was_confirmed(
    signed: Path, tmp_path: Path, toy_samples: npt.NDArray[Any]
) -> None:
    store = _store(signed, tmp_path)
    with Agent(AgentConfig(bundle=signed, trust=store.trust(received=True))) as agent:
        assert isinstance(agent.submit({"x": toy_samples[:1]}, deadline_s=PATIENCE_S).result(), Answer)
        statement = agent.bundle.statement
    assert statement is not None
    store.accept(statement)
    older = tmp_path / "older"
    shutil.copytree(signed, older)
    (older / SIGNATURE).unlink()
    words = ["sign", str(older), "--key", str(signed.parent / "release.key"), "--counter", str(statement.counter - 1)]
    assert CliRunner().invoke(app, words).exit_code == 0
    with pytest.raises(UntrustedError, match="older ones are not taken again"):
        _serve(older, store.trust())
    _serve(signed, store.trust())


def _unsigned(folder: Path) -> None:
    (folder / SIGNATURE).unlink()


def _rewritten(folder: Path) -> None:
    """As somebody would who can write the folder, and mends the digest that finds accidents."""
    raw = (folder / MANIFEST).read_bytes().replace(b'"accuracy"', b'"agreement"')
    (folder / MANIFEST).write_bytes(raw + b" ")
    (folder / MANIFEST_DIGEST).write_text(f"{sha256(raw + b' ')}  {MANIFEST}\n")


def _other_head(folder: Path) -> None:
    path = folder / "edge.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")


@pytest.mark.parametrize("spoil", [_unsigned, _rewritten, _other_head])
def test_what_was_changed_after_it_was_signed_runs_nowhere(
    signed: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(signed, folder)
    spoil(folder)
    with pytest.raises(BundleError):
        _serve(folder, _store(signed, tmp_path).trust())


def test_verify_tells_who_vouches_for_a_bundle(signed: Path) -> None:
    shown = CliRunner().invoke(app, ["verify", str(signed), "--trust", str(signed.parent / "release.pub")])
    assert shown.exit_code == 0
    assert "signed by release; it holds" in shown.output


def test_an_operator_goes_back_to_an_older_number_on_a_daemon_and_it_serves_after_a_restart_too(
    signed: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    (store := TrustStore(state / "keys")).believe(signers.read_verify_keys(signed.parent / "release.pub"))
    older, newer = (_numbered(signed, tmp_path / str(number), number) for number in (5, 7))
    quick = {"updates.trial_answers": 1, "updates.trial_s": 0.0}

    def bundles(*words: str) -> None:
        done = CliRunner().invoke(bundles_app, [*words, "--state-dir", str(state)], catch_exceptions=False)
        assert done.exit_code == 0, done.output

    def proven(daemon: Daemon, digest: str) -> bool:
        daemon._updates.health(ok=True)
        return daemon._updates.look().record.proven == digest

    bundles("install", str(older))
    daemon = daemon_of(None, state, settings=quick)
    daemon.start()
    try:
        until(lambda: proven(daemon, digest_of(older)), "the first was not proven", within_s=60)
        bundles("install", str(newer))
        until(lambda: proven(daemon, digest_of(newer)), "the second was not proven", within_s=60)
        until(lambda: set(store.remembered().floors.values()) == {7}, "its number was not remembered")
        bundles("rollback", "--reason", "worse at night")
        until(lambda: daemon.agent.bundle.digest == digest_of(older), "it did not go back", within_s=60)
    finally:
        daemon.close()
    again = daemon_of(None, state, settings=quick)
    again.start()
    try:
        assert again.agent.bundle.digest == digest_of(older)
    finally:
        again.close()
    with pytest.raises(UntrustedError, match="older ones are not taken again"):
        CliRunner().invoke(
            bundles_app,
            ["install", str(_numbered(signed, tmp_path / "6", 6)), "--state-dir", str(state)],
            catch_exceptions=False,
        )


def _numbered(signed: Path, folder: Path, number: int) -> Path:
    """A bundle of its own with that number."""
    shutil.copytree(signed, folder)
    (folder / SIGNATURE).unlink()
    raw = (folder / MANIFEST).read_bytes() + b"\n" * number
    (folder / MANIFEST).write_bytes(raw)
    (folder / MANIFEST_DIGEST).write_text(f"{sha256(raw)}  {MANIFEST}\n")
    words = ["sign", str(folder), "--key", str(signed.parent / "release.key"), "--counter", str(number)]
    assert CliRunner().invoke(app, words).exit_code == 0
    return folder


def digest_of(folder: Path) -> str:
    return sha256((folder / MANIFEST).read_bytes())
