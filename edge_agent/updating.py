"""Bundles over the air, put together from the settings: shelf, trust, courier and what may be fetched when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent.bundles.courier import Courier, GatewayWays
from edge_agent.bundles.shelf import Shelf
from edge_agent.bundles.smoke import Smoke
from edge_agent.bundles.update import TrialRules
from edge_agent.bundles.updater import MIB, Policy, Trusting, Updater
from edge_agent.config import AgentSettings
from edge_agent.trust.store import TrustStore
from edge_agent.ways import Ways
from protocol import sockets
from protocol.bundle import Bundle
from protocol.errors import IsthmusError
from protocol.signing import Statement, Trust


def updater_of(
    settings: AgentSettings,
    shelf: Shelf,
    trusting: TrustStore,
    *,
    switch: Callable[[Path | None], None],
    base: Bundle | None,
    told: Callable[[str, str], None],
    crashed: Callable[[BaseException], None],
) -> Updater:
    """Raises InputError for what cannot be made."""
    updates, stop = settings.updates, threading.Event()
    ways = _ways(settings, told) if _may_receive(settings, trusting) else ()
    return Updater(
        shelf,
        switch=switch,
        smoke=Smoke(timeout_s=updates.try_s, memory_nbytes=updates.try_mib * MIB, providers=settings.device.providers),
        courier=Courier(ways, bytes_per_s=updates.mib_per_s * MIB, stop=stop) if ways else None,
        trusting=_Trusting(trusting),
        policy=Policy(
            automatic=updates.automatic,
            check_every_s=updates.check_every_s,
            most_nbytes=updates.most_mib * MIB,
            reserve_nbytes=updates.reserve_mib * MIB,
            trial=TrialRules(good_answers=updates.trial_answers, least_s=updates.trial_s),
        ),
        base=base,
        told=told,
        crashed=crashed,
        stop=stop,
    )


class _Trusting(Trusting):
    """The device's own store of trust, as updates want it."""

    def __init__(self, store: TrustStore) -> None:
        self._store = store

    def trust(self, *, received: bool = False) -> Trust:
        return self._store.trust(received=received)

    def accept(self, statement: Statement) -> None:
        self._store.accept(statement)

    def take_revocations(self, data: bytes) -> object:
        return self._store.take_revocations(data)


def trust_of(settings: AgentSettings) -> TrustStore:
    """Whom this device believes about bundles."""
    return TrustStore(settings.keys.dir or settings.state_dir / "keys", policy=settings.bundle.signatures)


def _may_receive(settings: AgentSettings, trusting: TrustStore) -> bool:
    """Without a key to check signatures with, whatever came over the air would be refused: nobody is asked then."""
    return settings.updates.enabled and (bool(trusting.known()) or settings.bundle.signatures == "unsigned")


def _ways(settings: AgentSettings, told: Callable[[str, str], None]) -> Sequence[GatewayWays]:
    """To every gateway that is named by its address; one whose name cannot be resolved now is left out."""
    found: list[GatewayWays] = []
    for text in settings.gateways.endpoints:
        if text.startswith("srv://"):
            continue
        try:
            endpoint = sockets.resolve(sockets.parse_endpoint(text))
            if settings.keys.dir is None:
                sockets.require_loopback(endpoint, insecure=settings.gateways.insecure, doing="connecting to")
            found.append(Ways(endpoint, settings.keys.dir, settings.keys.server_key))
        except IsthmusError as error:
            told("no_updates_from", f"{text}: {error}")
    return found
