"""Names of gateways to addresses, in a thread of its own, again and again: libzmq would freeze every socket meanwhile.

    tcp://10.0.0.5:7447                an address: nothing to resolve
    tcp://gateway.example.org:7447     a host: one gateway with as many addresses as it has
    srv://_isthmus._tcp.example.org    DNS SRV (RFC 2782): a gateway for every target

Targets of a lower priority come first, strictly: others are used only while none of them can be. Among those of one
priority the weight is the share in the draw of who is asked at first, and of who it is compared with later; then the
wait that gateways report decides (`protocol.control.fleet`). SRV records are asked for again when they expire, within
bounds; the system's resolver tells no time to live, so hosts are asked for again every half minute. While a name does
not resolve, whoever was found before stays.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edge_agent.errands import Found, Resolved
from protocol.errors import InputError, NetworkError
from protocol.sockets import Endpoint, parse_endpoint

HOST_IVL_S = 30.0
TTL_S = (5.0, 300.0)  # between two questions, whatever the record says
RETRY_S = (0.5, 15.0)  # after a failure, doubled each time
QUESTION_S = 5.0  # at most for one answer
MOST_GATEWAYS = 16
MOST_ADDRESSES = 8


class Source(NamedTuple):
    """What names gateways. `host` is literal, a host's name, or the name of an SRV record (then `port` is 0)."""

    text: str
    host: str
    port: int
    is_srv: bool

    @property
    def literal(self) -> Endpoint | None:
        try:
            socket.inet_pton(socket.AF_INET6 if ":" in self.host else socket.AF_INET, self.host)
        except OSError:
            return None
        return Endpoint(self.host, self.port)

    @property
    def is_local(self) -> bool:
        """Whether it can only mean this machine."""
        literal = self.literal
        if literal is not None:
            return literal.is_loopback
        return not self.is_srv and (self.host == "localhost" or self.host.endswith(".localhost"))


class Target(NamedTuple):
    """One line of an SRV answer."""

    priority: int
    host: str
    port: int
    weight: int = 0


def parse(text: str) -> Source:
    """Raises InputError."""
    if text.startswith("srv://"):
        name = text.removeprefix("srv://").rstrip(".")
        if not name or len(name) > 253 or any(not 0 < len(label) < 64 for label in name.split(".")) or "/" in name:
            raise InputError(f"{text!r} is no name of an SRV record", "write srv://_isthmus._tcp.example.org")
        return Source(f"srv://{name}", name, 0, True)
    endpoint = parse_endpoint(text)
    if endpoint.host == "*" or endpoint.port == 0:
        raise InputError(
            f"{text!r} is nowhere to connect to", "write tcp://HOST:PORT, for example tcp://127.0.0.1:7447"
        )
    return Source(str(endpoint), endpoint.host, endpoint.port, False)


def require_private(source: Source, *, insecure: bool) -> None:
    """Refuse plain text off this machine unless it was asked for by name. Raises InputError."""
    if not source.is_local and not insecure:
        raise InputError(
            f"connecting to {source.text} would send activations in plain text over a network",
            "give it keys (`cloud-gateway keys init`, then --keys), use a loopback address (a tunnel ends there), "
            "or say --insecure",
        )


def addresses(host: str, port: int) -> tuple[Endpoint, ...]:
    """Of a host, as the system's resolver orders them; blocks. Raises NetworkError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        fact = f"the name {host!r} does not resolve ({error})"
        raise NetworkError(fact, "check the name or use an address") from error
    endpoints = dict.fromkeys(Endpoint(str(entry[4][0]), port) for entry in found)
    return tuple(endpoints)[:MOST_ADDRESSES]


def ask_srv(name: str, *, servers: Sequence[Endpoint] = ()) -> tuple[tuple[Target, ...], float]:
    """Targets and time to live in seconds; blocks. `servers` instead of the system's. Raises NetworkError."""
    import dns.exception
    import dns.nameserver
    import dns.resolver

    try:
        resolver = dns.resolver.Resolver(configure=not servers)
        if servers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(server.host, server.port) for server in servers]
        answer = resolver.resolve(name, "SRV", lifetime=QUESTION_S, raise_on_no_answer=True)
    except dns.exception.DNSException as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        fact = f"the SRV record {name!r} does not resolve ({why})"
        raise NetworkError(fact, "check the name, or list the gateways as tcp://HOST:PORT") from error
    found = [Target(r.priority, r.target.to_text(omit_final_dot=True), r.port, r.weight) for r in answer]
    targets = tuple(t for t in sorted(found) if t.host not in ("", ".") and t.port)  # "." says: no such service
    if not targets:
        raise NetworkError(f"the SRV record {name!r} names no gateway", "add a target to it")
    return targets[:MOST_GATEWAYS], float(answer.rrset.ttl if answer.rrset is not None else TTL_S[0])


@dataclass(frozen=True, slots=True)
class Asking:
    """Who is asked; `allowed` says whether an address may be connected to."""

    allowed: Callable[[Endpoint], bool] = lambda _: True
    hosts: Callable[[str, int], tuple[Endpoint, ...]] = addresses
    srv: Callable[[str], tuple[tuple[Target, ...], float]] = ask_srv


class Resolver:
    """Posts what it finds."""

    def __init__(
        self, sources: Sequence[Source], post: Callable[[Resolved], None], asking: Asking | None = None
    ) -> None:
        self._sources = sources
        self._post = post
        self._asking = asking or Asking()
        self._failures: dict[Source, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="isthmus-resolver", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait for a question that is being asked."""
        self._stop.set()

    def join(self) -> None:
        self._thread.join(timeout=QUESTION_S * 2)

    def _run(self) -> None:
        due = dict.fromkeys(self._sources, time.monotonic())
        while not self._stop.is_set():
            source = min(due, key=due.__getitem__)
            if self._stop.wait(max(due[source] - time.monotonic(), 0.0)):
                return
            resolved, again_s = self.resolve(source)
            if self._stop.is_set():
                return
            self._post(resolved)
            due[source] = time.monotonic() + again_s

    def resolve(self, source: Source) -> tuple[Resolved, float]:
        """What the source stands for now, and in how many seconds to ask again."""
        try:
            found, again_s = self._ask(source)
        except NetworkError as error:
            failures = self._failures[source] = self._failures.get(source, 0) + 1
            again_s = min(RETRY_S[0] * 2 ** min(failures - 1, 10), RETRY_S[1])
            return Resolved(source.text, (), str(error)), again_s
        self._failures.pop(source, None)
        return Resolved(source.text, found), again_s

    def _ask(self, source: Source) -> tuple[tuple[Found, ...], float]:
        if not source.is_srv:
            return (self._found(source.host, source.port),), HOST_IVL_S
        targets, ttl_s = self._asking.srv(source.host)
        found: dict[str, Found] = {}
        trouble: NetworkError | None = None
        for target in targets:
            try:
                gateway = self._found(target.host, target.port, target.priority, target.weight)
                found.setdefault(gateway.name, gateway)
            except NetworkError as error:  # others may resolve
                trouble = error
        if not found and trouble is not None:
            raise trouble
        return tuple(found.values()), min(max(ttl_s, TTL_S[0]), TTL_S[1])

    def _found(self, host: str, port: int, rank: int = 0, weight: int = 0) -> Found:
        known = self._asking.hosts(host, port)
        endpoints = tuple(endpoint for endpoint in known if self._asking.allowed(endpoint))
        if not endpoints:
            fact = f"{host} is {known[0].host if known else 'nowhere'}, off this machine, and there are no keys"
            raise NetworkError(fact, "give it keys (--keys), or say --insecure")
        return Found(str(Endpoint(host, port)), endpoints, rank, weight)
