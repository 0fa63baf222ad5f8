"""Bundles over the air, put together from the settings: shelf, trust, courier and what may be fetched when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edge_agent.bundles.addresses import Addresses
from edge_agent.bundles.courier import Courier
from edge_agent.bundles.policy import MIB, Policy
from edge_agent.bundles.shelf import Shelf
from edge_agent.bundles.smoke import Smoke
from edge_agent.bundles.trusting import Trusting
from edge_agent.bundles.update import TrialRules
from edge_agent.bundles.updater import Updater
from edge_agent.config import AgentSettings
from edge_agent.device.providers import plans_in
from edge_agent.resolver import Asking, ask_srv, parse
from edge_agent.trust.server_keys import learn
from edge_agent.trust.store import TrustStore
from protocol import messages as m
from protocol.bundle import Bundle
from protocol.errors import InputError
from protocol.signing import Statement, Trust
from protocol.sockets import parse_endpoint


def updater_of(
    settings: AgentSettings,
    shelf: Shelf,
    trusting: TrustStore,
    *,
    switch: Callable[[Path | None], None],
    base: Bundle | None,
    told: Callable[[str, str], None],
    crashed: Callable[[BaseException], None],
    addresses: Callable[[], Addresses] | None = None,
) -> Updater:
    """`addresses` gives whom to ask, anew each time; else they are those of the settings. Raises InputError."""
    updates, stop = settings.updates, threading.Event()
    if addresses is None:
        own = addresses_of(settings, told)
        addresses = lambda: own  # noqa: E731 - as whoever gives others does
    return Updater(
        shelf,
        switch=switch,
        smoke=Smoke(
            timeout_s=updates.try_s,
            memory_nbytes=updates.try_mib * MIB,
            providers=settings.device.providers,
            plans=plans_in(settings.device.plans_dir, settings.state_dir),
            stop=stop,
        ),
        courier=Courier(
            lambda: addresses()(),
            bytes_per_s=updates.mib_per_s * MIB,
            stop=stop,
            keys_told=_keeper(settings, told),
            named=lambda: bool(addresses()),
        )
        if updates.enabled
        else None,
        trusting=_Trusting(trusting),
        policy=policy_of(settings),
        base=base,
        told=told,
        crashed=crashed,
        stop=stop,
    )


def policy_of(settings: AgentSettings) -> Policy:
    """What the device takes, and when."""
    updates = settings.updates
    return Policy(
        model=updates.model,
        automatic=updates.automatic,
        check_every_s=updates.check_every_s,
        most_nbytes=updates.most_mib * MIB,
        reserve_nbytes=updates.reserve_mib * MIB,
        trial=TrialRules(good_answers=updates.trial_answers, least_s=updates.trial_s),
    )


class _Trusting(Trusting):
    """The device's own store of trust, as updates want it."""

    def __init__(self, store: TrustStore) -> None:
        self._store = store

    def trust(self, *, received: bool = False, kept: bool = False) -> Trust:
        return self._store.trust(received=received, kept=kept)

    def accept(self, statement: Statement) -> None:
        self._store.accept(statement)

    def take_revocations(self, data: bytes) -> object:
        return self._store.take_revocations(data)


def trust_of(settings: AgentSettings) -> TrustStore:
    """Whom this device believes about bundles."""
    folder = settings.keys.dir or settings.state_dir / "keys"
    return TrustStore(folder, policy=settings.bundle.signatures, threshold=settings.bundle.signers)


def _keeper(
    settings: AgentSettings, told: Callable[[str, str], None]
) -> Callable[[tuple[m.ServerKey, ...], bytes], None]:
    """Keeps server.pub up to date; nothing where the settings name the key themselves."""
    folder = settings.keys.dir

    def keep(keys: tuple[m.ServerKey, ...], by: bytes) -> None:
        if folder is None or settings.keys.server_key:
            return
        try:
            said = learn(folder, keys, by)
        except InputError as error:
            said = f"the gateway tells its keys, and they cannot be kept: {error}"
        if said:
            told("server_key", said)

    return keep


def addresses_of(settings: AgentSettings, told: Callable[[str, str], None] = lambda event, text: None) -> Addresses:
    """Every gateway of the settings, by address, name or SRV record. Raises InputError."""
    gateways, encrypted = settings.gateways, settings.keys.dir is not None
    servers = tuple(parse_endpoint(text) for text in gateways.name_servers)
    asking = Asking(
        allowed=lambda endpoint: encrypted or gateways.insecure or endpoint.is_loopback,
        srv=partial(ask_srv, servers=servers),
    )
    sources = [parse(text) for text in gateways.endpoints]
    keys = settings.keys
    return Addresses(sources, keys_dir=keys.dir, server_key=keys.server_key, asking=asking, told=told)
