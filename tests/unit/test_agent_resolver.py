"""From names to gateways: what may be written, what is refused, what is asked again and when."""

from __future__ import annotations

import threading

import pytest

from edge_agent.errands import Found, Resolved
from edge_agent.resolver import (
    HOST_IVL_S,
    RETRY_S,
    TTL_S,
    Asking,
    Resolver,
    Source,
    Target,
    addresses,
    parse,
    require_private,
)
from protocol.errors import InputError, NetworkError
from protocol.sockets import Endpoint

SRV = parse("srv://_isthmus._tcp.example.org")
ADDRESSES = {"one.example.org": ("192.0.2.1",), "two.example.org": ("192.0.2.2", "2001:db8::2"), "here": ("127.0.0.1",)}


def hosts(host: str, port: int) -> tuple[Endpoint, ...]:
    if host not in ADDRESSES:
        raise NetworkError(f"the name {host!r} does not resolve", "check it")
    return tuple(Endpoint(address, port) for address in ADDRESSES[host])


def ignore(_: Resolved) -> None:
    """For resolvers that are asked here and not in their thread."""


def resolver_of(*targets: Target, ttl_s: float = 60.0) -> Resolver:
    return Resolver((SRV,), ignore, Asking(hosts=hosts, srv=lambda _: (targets, ttl_s)))


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("tcp://192.0.2.1:7447", Source("tcp://192.0.2.1:7447", "192.0.2.1", 7447, False)),
        ("gateway:7447", Source("tcp://gateway:7447", "gateway", 7447, False)),
        ("[2001:db8::1]:7", Source("tcp://[2001:db8::1]:7", "2001:db8::1", 7, False)),
        ("srv://_isthmus._tcp.example.org.", Source("srv://_isthmus._tcp.example.org", SRV.host, 0, True)),
    ],
)
def test_a_gateway_is_named_by_address_by_host_or_by_an_srv_record(text: str, source: Source) -> None:
    assert parse(text) == source


@pytest.mark.parametrize("text", ["srv://", "srv://a/b", "srv://a..b", f"srv://{'x' * 64}", "*:7447", "gateway:0", "x"])
def test_what_names_no_gateway_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="write "):
        parse(text)


def test_only_addresses_need_no_resolving() -> None:
    assert parse("127.0.0.1:1").literal == Endpoint("127.0.0.1", 1)
    assert parse("[::1]:1").literal == Endpoint("::1", 1)
    assert parse("localhost:1").literal is None
    assert SRV.literal is None


def test_plain_text_to_a_name_that_may_be_off_this_machine_is_refused_before_it_is_resolved() -> None:
    for text in ("gateway.example.org:1", "192.0.2.1:1", "srv://localhost"):
        with pytest.raises(InputError, match="plain text"):
            require_private(parse(text), insecure=False)
        require_private(parse(text), insecure=True)
    for text in ("localhost:1", "a.localhost:1", "127.0.0.9:1", "[::1]:1"):
        require_private(parse(text), insecure=False)


def test_a_host_is_one_gateway_with_all_its_addresses() -> None:
    source = parse("two.example.org:7")
    resolved, again_s = Resolver((source,), ignore, Asking(hosts=hosts)).resolve(source)
    assert resolved.found == (Found("tcp://two.example.org:7", (Endpoint("192.0.2.2", 7), Endpoint("2001:db8::2", 7))),)
    assert again_s == HOST_IVL_S


def test_every_target_of_an_srv_record_is_a_gateway_and_its_priority_its_rank() -> None:
    found = resolver_of(Target(0, "one.example.org", 1), Target(10, "two.example.org", 2)).resolve(SRV)[0].found
    assert [(f.name, f.rank) for f in found] == [("tcp://one.example.org:1", 0), ("tcp://two.example.org:2", 10)]


def test_the_weight_of_a_target_comes_along() -> None:
    found = resolver_of(Target(0, "one.example.org", 1, 60), Target(0, "two.example.org", 2, 20)).resolve(SRV)[0].found
    assert [f.weight for f in found] == [60, 20]


def test_a_target_that_does_not_resolve_costs_only_itself() -> None:
    found = resolver_of(Target(0, "gone.example.org", 1), Target(0, "one.example.org", 1)).resolve(SRV)[0].found
    assert [f.name for f in found] == ["tcp://one.example.org:1"]
    nobody = resolver_of(Target(0, "gone.example.org", 1)).resolve(SRV)[0]
    assert nobody.found == ()
    assert "gone.example.org" in nobody.trouble


@pytest.mark.parametrize(("ttl_s", "again_s"), [(0.0, TTL_S[0]), (60.0, 60.0), (86_400.0, TTL_S[1])])
def test_a_record_is_asked_for_again_when_it_expires_within_bounds(ttl_s: float, again_s: float) -> None:
    assert resolver_of(Target(0, "one.example.org", 1), ttl_s=ttl_s).resolve(SRV)[1] == again_s


def test_a_name_that_does_not_resolve_is_asked_for_again_ever_more_seldom_until_it_does() -> None:
    source = parse("gone.example.org:1")
    resolver = Resolver((source,), ignore, Asking(hosts=hosts))
    waits = [resolver.resolve(source)[1] for _ in range(12)]
    assert waits[:3] == [RETRY_S[0], 2 * RETRY_S[0], 4 * RETRY_S[0]]
    assert waits == sorted(waits)
    assert waits[-1] == RETRY_S[1]


def test_an_address_off_this_machine_is_not_found_where_nothing_is_encrypted() -> None:
    source = parse("one.example.org:1")
    resolver = Resolver((source,), ignore, Asking(hosts=hosts, allowed=lambda e: e.is_loopback))
    resolved, _ = resolver.resolve(source)
    assert resolved.found == ()
    assert "off this machine" in resolved.trouble


def test_the_systems_resolver_knows_this_machine_and_says_so_where_it_knows_nothing() -> None:
    assert all(e.is_loopback for e in addresses("localhost", 7447))
    with pytest.raises(NetworkError, match="does not resolve"):
        addresses("x" * 64, 1)


def test_the_thread_posts_what_it_finds_and_ends_when_it_is_told() -> None:
    posted: list[Resolved] = []
    found = threading.Event()

    def post(resolved: Resolved) -> None:
        posted.append(resolved)
        found.set()

    resolver = Resolver((parse("here:7"),), post, Asking(hosts=hosts))
    resolver.start()
    assert found.wait(20)
    resolver.stop()
    resolver.join()
    assert posted == [Resolved("tcp://here:7", (Found("tcp://here:7", (Endpoint("127.0.0.1", 7),)),))]
