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
from edge_agent.outcomes import Answer
from edge_agent.trust.store import TrustStore
from partitioner.cli import app
from protocol import signers
from protocol.bundle import MANIFEST, MANIFEST_DIGEST, SIGNATURE, sha256
from protocol.errors import BundleError, UntrustedError
from protocol.signing import Trust
from tests.waiting import PATIENCE_S


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
