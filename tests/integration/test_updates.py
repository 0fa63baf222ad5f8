"""Bundles over the air, from a real gateway to a real agent: fetched, tried, switched to, kept or given up."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt
import pytest

from cloud_gateway.gateway import Gateway
from edge_agent.agent import Agent, AgentConfig
from edge_agent.bundles.courier import Courier
from edge_agent.bundles.first_run import judge
from edge_agent.bundles.policy import Policy
from edge_agent.bundles.record import Step
from edge_agent.bundles.shelf import Shelf
from edge_agent.bundles.smoke import Smoke
from edge_agent.bundles.switch import Stage, Swap
from edge_agent.bundles.trusting import Trusting
from edge_agent.bundles.update import TrialRules
from edge_agent.bundles.updater import Updater
from edge_agent.outcomes import Answer
from edge_agent.trust.store import TrustStore
from edge_agent.ways import Ways
from protocol import signers, signing
from protocol.bundle import MANIFEST, MANIFEST_DIGEST, Bundle, encode_manifest, sha256
from protocol.signing import Trust
from protocol.sockets import parse_endpoint
from tests.gateways import gateway_of
from tests.waiting import until

QUICK = TrialRules(good_answers=5, least_s=0.0, most_bad=2)
PATIENCE_S = 60.0  # a child process starts, and the machine may be busy


class Unsigned(Trusting):
    def trust(self, *, received: bool = False, kept: bool = False) -> Trust:
        return Trust(allow_unsigned=True)


def renamed(bundle: Path, target: Path, note: str) -> Bundle:
    """The same bundle with another manifest, and so another digest."""
    shutil.copytree(bundle, target)
    opened = Bundle.open(target)
    listing = encode_manifest(msgspec.structs.replace(opened.manifest, notes=(note,)))
    (target / MANIFEST).write_bytes(listing)
    (target / MANIFEST_DIGEST).write_text(f"{sha256(listing)}  {MANIFEST}\n")
    return Bundle.open(target)


class Device:
    """An agent with its shelf, as the daemon composes them."""

    def __init__(
        self,
        state: Path,
        base: Path,
        gateway: Gateway,
        *,
        policy: Policy | None = None,
        trusting: Trusting | TrustStore | None = None,
        smoke: Callable[[Path], str] = judge,
    ) -> None:
        """The first run is made in this process, unless `smoke` is a child's."""
        self.told: list[str] = []
        self.swaps: list[Swap] = []
        self.stage: Stage[Agent] = Stage()
        self.base = Bundle.open(base)
        self.gateway = str(gateway.endpoint)
        stop = threading.Event()
        self.courier = Courier([Ways(parse_endpoint(self.gateway))], stop=stop)
        self.shelf = Shelf(state / "bundles")
        self.updater = Updater(
            self.shelf,
            switch=self._serve,
            smoke=smoke,
            courier=self.courier,
            trusting=trusting or Unsigned(),
            policy=policy or Policy(trial=QUICK),
            base=self.base,
            told=lambda event, text: self.told.append(text),
            crashed=lambda error: self.told.append(f"crashed: {error!r}"),
            stop=stop,
        )

    def _serve(self, folder: Path | None) -> None:
        agent = Agent(AgentConfig(bundle=folder or self.base.root, gateway=self.gateway))
        self.swaps.append(self.stage.swap(agent))

    def __enter__(self) -> Device:
        self.updater.begin(self._serve)
        self.updater.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.updater.close()
        self.stage.swap(None)

    @property
    def running(self) -> str:
        assert self.stage.agent is not None
        return self.stage.agent.bundle.digest

    def ask(self, sample: npt.NDArray[Any]) -> Future[Any]:
        future = self.stage.submit({"x": sample[None]}, deadline_s=20.0)
        future.add_done_callback(lambda f: self.updater.answered(isinstance(f.result(), Answer)))
        return future

    def until(self, true: Callable[[], object], what: str) -> None:
        until(true, f"{what}; {self.updater.look().record}; {self.told}", within_s=PATIENCE_S)


@pytest.fixture
def fresh(toy_bundle: Path, tmp_path: Path) -> Bundle:
    return renamed(toy_bundle, tmp_path / "fresh", "built later")


@pytest.fixture
def gateway(fresh: Bundle) -> Iterator[Gateway]:
    with gateway_of(fresh.root, settings={"updates.offer": ["*"], "updates.mib_per_s": 1000.0}) as gateway:
        yield gateway


def test_an_offered_bundle_is_fetched_tried_served_and_proven_while_requests_are_answered(
    toy_bundle: Path, fresh: Bundle, gateway: Gateway, tmp_path: Path, toy_samples: npt.NDArray[Any]
) -> None:
    with Device(tmp_path / "state", toy_bundle, gateway, smoke=Smoke(timeout_s=PATIENCE_S)) as device:
        outcomes = []

        def proven() -> bool:
            outcomes.append(device.ask(toy_samples[len(outcomes) % len(toy_samples)]))
            if device.updater.look().record.step is Step.ON_TRIAL:
                device.updater.health(True)
            return device.updater.look().record.proven == fresh.digest

        device.until(proven, "the bundle was not proven")
        answers = [outcome.result(30) for outcome in outcomes]
        assert all(isinstance(answer, Answer) for answer in answers), "no request is lost by a switch"
        assert {answer.bundle for answer in answers} == {device.base.digest, fresh.digest}
        assert device.running == fresh.digest
        assert device.swaps[-1].left_nobody
        held = device.shelf.folder(fresh.digest)
        assert (held / "full.onnx").exists()
        assert not (held / "cut-1" / "tail.onnx").exists(), "a device does not fetch what only gateways run"
    with Device(tmp_path / "state", toy_bundle, gateway) as again:
        assert again.running == fresh.digest
        assert again.updater.look().record.step is Step.IDLE


def test_a_bundle_that_answers_badly_on_trial_is_given_up_and_never_taken_again(
    toy_bundle: Path, fresh: Bundle, gateway: Gateway, tmp_path: Path
) -> None:
    with Device(tmp_path / "state", toy_bundle, gateway) as device:
        device.until(lambda: device.updater.look().record.step is Step.ON_TRIAL, "it did not come to a trial")
        assert device.running == fresh.digest
        device.updater.health(False, "another answer in 'logits'")
        device.until(lambda: device.updater.look().record.step is Step.REVERTED, "it was not given up")
        assert device.running == device.base.digest
        assert device.updater.look().record.why_bad(fresh.digest) == (
            "its known answer is wrong: another answer in 'logits'"
        )
        checked = device.updater.look().checked_at
        device.updater.check_now()
        device.until(lambda: device.updater.look().checked_at != checked, "nobody asked again")
        assert device.updater.look().record.candidate == ""
        assert device.shelf.held() == []


def test_a_head_that_computes_something_else_never_serves(toy_bundle: Path, tmp_path: Path, gateway: Gateway) -> None:
    lie = renamed(toy_bundle, tmp_path / "lie", "edge-only is not the model")
    manifest = lie.manifest
    cut = next(p.head for p in manifest.placements if p.head and p.head.startswith("cut-1"))
    placements = tuple(msgspec.structs.replace(p, head=cut) if p.id == "edge-only" else p for p in manifest.placements)
    listing = encode_manifest(msgspec.structs.replace(manifest, placements=placements))
    (lie.root / MANIFEST).write_bytes(listing)
    (lie.root / MANIFEST_DIGEST).write_text(f"{sha256(listing)}\n")
    reason = Smoke(timeout_s=PATIENCE_S)(lie.root)
    assert reason
    assert "edge-only" in reason


def test_a_signed_bundle_is_taken_an_unsigned_one_refused_and_a_revoked_one_given_up(
    toy_bundle: Path, fresh: Bundle, gateway: Gateway, tmp_path: Path
) -> None:
    key = signers.make_key("builder")
    store = TrustStore(tmp_path / "keys")
    store.believe((key.public,))
    with Device(tmp_path / "state", toy_bundle, gateway, trusting=store) as device:
        device.until(lambda: "is not signed" in device.updater.look().record.said, "it was not refused")
        model = fresh.manifest.model
        statement = signing.Statement(fresh.digest, model.name, model.digest, 7, key.public.key_id, "2026-11-21")
        (fresh.root / "signature.json").write_bytes(signing.sign_statement(statement, [key]))
        gateway.offering.retune(offer=("*",), rate=1e9)
        device.updater.check_now()
        device.until(lambda: device.updater.look().record.step is Step.ON_TRIAL, "it was not taken")
        assert device.running == fresh.digest
        for _ in range(5):
            device.updater.health(True)
        device.until(lambda: store.remembered().floors == {model.name: 7}, "its counter was not remembered")
    listed = signing.Revocations(1, {fresh.digest: "leaks its training data"})
    (tmp_path / "revocations.json").write_bytes(signing.sign_revocations(listed, [key]))
    with Device(tmp_path / "state", toy_bundle, gateway, trusting=store) as again:
        assert again.running == fresh.digest
        gateway.offering._revocations = tmp_path / "revocations.json"
        gateway.offering.retune(offer=("*",), rate=1e9)
        again.updater.check_now()
        again.until(lambda: again.updater.look().record.step is Step.REVERTED, "it was not stopped")
        assert again.running == again.base.digest
        assert "leaks its training data" in (again.updater.look().record.why_bad(fresh.digest) or "")


def test_what_has_come_is_kept_when_the_link_dies_and_what_is_there_is_not_fetched_again(
    toy_bundle: Path, fresh: Bundle, gateway: Gateway, tmp_path: Path
) -> None:
    shelf = Shelf(tmp_path / "state" / "bundles")
    shelf.make()
    courier = Courier([Ways(parse_endpoint(str(gateway.endpoint)))])
    [offer] = courier.offers("").offers
    assert offer.bundle.hex() == fresh.digest
    entry = fresh.manifest.files["full.onnx"]
    data = (fresh.root / "full.onnx").read_bytes()
    half = entry.nbytes // 2
    shelf.part(entry.sha256).write_bytes(data[:half])
    courier.fetch(entry.sha256, entry.nbytes, shelf.part(entry.sha256), shelf.disk)
    assert shelf.part(entry.sha256).read_bytes() == data
    assert courier.fetched_nbytes == entry.nbytes - half
    before = courier.fetched_nbytes
    courier.fetch(entry.sha256, entry.nbytes, shelf.part(entry.sha256), shelf.disk)
    assert courier.fetched_nbytes == before
