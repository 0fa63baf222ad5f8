"""Whom updates are asked from: names that resolve late, change, or stop resolving."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.bundles.addresses import Addresses
from edge_agent.bundles.courier import Courier
from edge_agent.config import AgentSettings, GatewaysSettings
from edge_agent.resolver import Asking, Target, parse
from edge_agent.updating import addresses_of
from protocol.errors import NetworkError
from protocol.sockets import Endpoint

SRV = parse("srv://_isthmus._tcp.example.org")


class Names:
    """A resolver's answers, as they are now."""

    def __init__(self) -> None:
        self.hosts: dict[str, str] = {}
        self.targets: tuple[Target, ...] = ()

    def asking(self, *, private: bool = False) -> Asking:
        return Asking(allowed=lambda e: e.is_loopback or not private, hosts=self.host, srv=self.srv)

    def host(self, host: str, port: int) -> tuple[Endpoint, ...]:
        if host not in self.hosts:
            raise NetworkError(f"the name {host!r} does not resolve", "check it")
        return (Endpoint(self.hosts[host], port),)

    def srv(self, name: str) -> tuple[tuple[Target, ...], float]:
        if not self.targets:
            raise NetworkError(f"the SRV record {name!r} does not resolve", "check it")
        return tuple(sorted(self.targets)), 60.0


def found(addresses: Addresses) -> list[str]:
    return [str(ways.current.endpoint) for ways in addresses()]


def test_a_gateway_that_is_named_by_a_record_is_asked_for_updates_at_its_address_lowest_priority_first() -> None:
    names = Names()
    names.hosts = {"one": "127.0.0.1", "two": "127.0.0.2"}
    names.targets = (Target(20, "one", 7447), Target(10, "two", 7448))
    assert found(Addresses([SRV], asking=names.asking())) == ["tcp://127.0.0.2:7448", "tcp://127.0.0.1:7447"]


def test_a_name_that_resolves_only_later_is_found_then_and_one_that_stops_resolving_stays() -> None:
    names, told = Names(), []
    addresses = Addresses(
        [parse("tcp://one:7447"), SRV], asking=names.asking(), told=lambda event, text: told.append(text)
    )
    assert addresses
    assert found(addresses) == found(addresses) == []
    assert len(told) == 2, "each trouble is told once"
    names.hosts = {"one": "127.0.0.1"}
    assert found(addresses) == ["tcp://127.0.0.1:7447"]
    names.hosts = {}
    assert found(addresses) == ["tcp://127.0.0.1:7447"]
    names.hosts = {"one": "127.0.0.9"}
    assert found(addresses) == ["tcp://127.0.0.9:7447"], "its address has changed"


def test_a_way_that_was_turned_to_stays_while_the_name_means_the_same() -> None:
    names = Names()
    names.hosts = {"one": "127.0.0.1"}
    addresses = Addresses([parse("tcp://one:7447")], asking=names.asking())
    [before] = addresses()
    [after] = addresses()
    assert before is after


def test_without_keys_no_address_on_another_machine_is_asked() -> None:
    names, told = Names(), []
    names.hosts = {"one": "192.0.2.1"}
    addresses = Addresses(
        [parse("tcp://one:7447")], asking=names.asking(private=True), told=lambda event, text: told.append(text)
    )
    assert found(addresses) == []
    assert "off this machine, and there are no keys" in told[0]


def test_the_settings_name_gateways_by_address_and_by_record(tmp_path: Path) -> None:
    endpoints = ("tcp://127.0.0.1:7447", "srv://_isthmus._tcp.example.org")
    gateways = GatewaysSettings(endpoints=endpoints, name_servers=("127.0.0.1:1",))
    addresses = addresses_of(AgentSettings(state_dir=tmp_path, gateways=gateways))
    assert [source.text for source in addresses._sources] == list(endpoints)
    assert not addresses_of(AgentSettings(state_dir=tmp_path))


def test_a_courier_looks_for_gateways_anew_whenever_it_asks_for_offers() -> None:
    looks: list[int] = []

    def find() -> tuple[()]:
        looks.append(len(looks))
        return ()

    courier = Courier(find)
    for _ in range(2):
        with pytest.raises(NetworkError, match="no gateway is known"):
            courier.offers()
    assert looks == [0, 1]
