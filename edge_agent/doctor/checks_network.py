"""Does every gateway answer, does it hold what we need, and is the link as the plan assumed?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edge_agent.doctor.case import Case
from edge_agent.doctor.verdicts import UnmetError, Verdict, fail, ok, skip, together, warn

if TYPE_CHECKING:
    from edge_agent.doctor.probe import GatewayProbe
    from protocol.bundle import Bundle

LEAST_MTU = 1280
LEAST_SEND_NBYTES = 1_000_000
SLOWER_RTT, RTT_SLACK_S = 2.0, 0.01
SLOW_RESOLVE_S = 1.0
_MBIT = 1e6 / 8


def resolve(case: Case) -> Verdict:
    def judge(probe: GatewayProbe) -> Verdict:
        if probe.literal is None or probe.resolve_s is None:
            return _problem(probe, "resolve")
        fact = f"{probe.endpoint} is {probe.literal}"
        fact += f", the first of {probe.targets}" if probe.targets > 1 else ""
        if probe.resolve_s > SLOW_RESOLVE_S:
            return warn(f"{fact}, found only after {probe.resolve_s:.1f} s", "use a nearer resolver, or the address")
        return ok(fact)

    return _each(case, judge)


def connect(case: Case) -> Verdict:
    def judge(probe: GatewayProbe) -> Verdict:
        if probe.connect_s is None:
            return _problem(probe, "connect")
        return ok(f"{probe.literal} accepts connections, after {probe.connect_s * 1e3:.1f} ms")

    return _each(case, judge)


def handshake(case: Case) -> Verdict:
    def judge(probe: GatewayProbe) -> Verdict:
        if probe.refused:
            raise UnmetError(f"{probe.endpoint} refuses our key (network.key)")
        if probe.handshake_s is None:
            return _problem(probe, "handshake")
        how = "encrypted" if probe.encrypted else "plain text"
        return ok(f"{probe.endpoint}: {how}, {probe.handshake_s * 1e3:.1f} ms")

    return _each(case, judge)


def key(case: Case) -> Verdict:
    def judge(probe: GatewayProbe) -> Verdict:
        if probe.refused:
            return fail(f"{probe.endpoint}: {probe.problems['key'][0]}", probe.problems["key"][1])
        if probe.handshake_s is None:
            raise UnmetError(f"{probe.endpoint} was not reached (network.handshake)")
        return ok(f"{probe.endpoint} knows this device") if probe.encrypted else skip("no keys are in use")

    return _each(case, judge)


def welcome(case: Case) -> Verdict:
    def judge(probe: GatewayProbe) -> Verdict:
        if probe.welcome is None:
            return _problem(probe, "welcome")
        seen = probe.welcome
        credit = f"{seen.credit_requests} requests and {seen.credit_nbytes / 1e6:.1f} MB at once"
        if seen.shared_key:
            remedy = "remove the copied agent.key from one of them, and `edge-agent enroll` it anew"
            return warn(f"{probe.endpoint} hears another device that speaks with this device's key", remedy)
        if not seen.credit_requests:
            return warn(f"{probe.endpoint} ({seen.software}) grants no credit", "see the gateway's limits")
        return ok(f"{probe.endpoint} runs {seen.software} and grants {credit}")

    return _each(case, judge)


def segments(case: Case) -> Verdict:
    bundle = case.bundle()

    def judge(probe: GatewayProbe) -> Verdict:
        if probe.welcome is None:
            raise UnmetError(f"{probe.endpoint} did not welcome us (network.welcome)")
        held = {digest.hex() for digest in (*probe.welcome.segments, *probe.welcome.models)}
        wanted = {entry.id: entry.segment for entry in bundle.remote_segments()}
        lacking = [id_ for id_, segment in wanted.items() if segment not in held]
        fact = f"{probe.endpoint} holds {len(wanted) - len(lacking)} of {len(wanted)} placements of this bundle"
        remedy = "give the gateway this very bundle: head and tail of different builds are never combined"
        if wanted and len(lacking) == len(wanted):
            return fail(fact, remedy)
        return warn(f"{fact}, not {', '.join(lacking)}", remedy) if lacking else ok(fact)

    return _each(case, judge)


def round_trip(case: Case) -> Verdict:
    bundle = case.bundle_or_none()

    def judge(probe: GatewayProbe) -> Verdict:
        if probe.rtt_s is None:
            return _problem(probe, "rtt")
        fact = f"{probe.endpoint}: {probe.rtt_s * 1e3:.2f} ms"
        if bundle is None:
            return ok(fact)
        planned = bundle.manifest.conditions.rtt_s
        fact += f", planned {planned * 1e3:g}"
        if probe.rtt_s > SLOWER_RTT * planned + RTT_SLACK_S:
            return warn(
                fact, f"plan for it (`partitioner split --rtt-ms {probe.rtt_s * 1e3:.0f}`), or a nearer gateway"
            )
        return ok(fact)

    return _each(case, judge)


def bandwidth(case: Case) -> Verdict:
    """The uplink as padded pings see it, and what the bundle's plan says for it."""
    bundle = case.bundle_or_none()

    def judge(probe: GatewayProbe) -> Verdict:
        if probe.rtt_s is None:
            raise UnmetError(f"{probe.endpoint} was not measured (network.round_trip)")
        if probe.up_bytes_per_s is None:
            return ok(f"{probe.endpoint}: faster than a probe can measure")
        mbit = probe.up_bytes_per_s / _MBIT
        shown = f"{mbit:.0f}" if mbit >= 100 else f"{mbit:.3g}"
        fact = f"{probe.endpoint}: about {shown} Mbit/s up"
        return ok(fact) if bundle is None else _planned(bundle, mbit, fact)

    return _each(case, judge)


def _planned(bundle: Bundle, mbit: float, fact: str) -> Verdict:
    plan = bundle.manifest.plan
    if not plan:
        return ok(fact)
    slowest = min(to for _, _, to in plan)
    for id_, from_mbit, to_mbit in plan:
        if to_mbit <= mbit <= from_mbit:
            return ok(f"{fact}; planned for {slowest:g} and more, here {id_} is best")
    if mbit < slowest:
        return warn(f"{fact}; planned for {slowest:g} and more", "plan for it: `partitioner plan` shows what is best")
    return ok(f"{fact}; faster than planned, {plan[0][0]} is best")


def mtu(case: Case) -> Verdict:
    def judge(probe: GatewayProbe) -> Verdict:
        if probe.path_mtu is None:
            raise UnmetError(f"{probe.endpoint} was not connected, or its path does not say (network.connect)")
        fact = f"{probe.endpoint}: packets of {probe.path_mtu} bytes"
        if probe.path_mtu < LEAST_MTU:
            return warn(
                fact, "a tunnel makes them small: raise its MTU, or set TCP's segment size to fit (MSS clamping)"
            )
        return ok(fact)

    return _each(case, judge)


def congestion(case: Case) -> Verdict:
    """On a lossy link 100 KB take 372 ms with cubic and 108 with BBR (20 Mbit/s, 50 ms, 1 % loss; measured)."""
    used = case.tree.text("proc/sys/net/ipv4/tcp_congestion_control")
    offered = (case.tree.text("proc/sys/net/ipv4/tcp_available_congestion_control") or "").split()
    if used is None:
        return skip("this system does not say")
    if used.startswith("bbr"):
        return ok(used)
    load = "" if "bbr" in offered else "modprobe tcp_bbr, then "
    return warn(f"{used}: uploads over lossy radio links collapse", f"{load}sysctl net.ipv4.tcp_congestion_control=bbr")


def idle_restart(case: Case) -> Verdict:
    """After 1.5 s without traffic the same upload takes 182 ms instead of 108 where TCP starts slowly again."""
    value = case.tree.number("proc/sys/net/ipv4/tcp_slow_start_after_idle")
    if value is None:
        return skip("this system does not say")
    if value:
        fact = "TCP starts slowly again after every pause"
        return warn(fact, "sysctl net.ipv4.tcp_slow_start_after_idle=0 (and in /etc/sysctl.d)")
    return ok("TCP keeps its speed over pauses")


def buffers(case: Case) -> Verdict:
    words = (case.tree.text("proc/sys/net/ipv4/tcp_wmem") or "").split()
    if len(words) != 3 or not words[2].isdigit():
        return skip("this system does not say")
    most = int(words[2])
    fact = f"a connection may have {most / 1e6:.2f} MB under way"
    if most < LEAST_SEND_NBYTES:
        return warn(fact, "sysctl net.ipv4.tcp_wmem='4096 65536 4194304': fast links with long round trips need it")
    return ok(fact)


def _each(case: Case, judge: Callable[[GatewayProbe], Verdict]) -> Verdict:
    """All gateways; one that cannot be judged counts as skipped."""

    def judged(probe: GatewayProbe) -> Verdict:
        try:
            return judge(probe)
        except UnmetError as reason:
            return skip(str(reason))

    _ = case.gateways  # says that there are none
    return together(judged(probe) for probe in case.probes())


_STEPS = ("resolve", "connect", "handshake", "key", "welcome", "rtt")


def _problem(probe: GatewayProbe, step: str) -> Verdict:
    """The step's own problem is a failure; an earlier step's is that one's."""
    if step in probe.problems:
        fact, remedy = probe.problems[step]
        return fail(f"{probe.endpoint}: {fact}", remedy or "check the address, the network and firewalls")
    earlier = next((name for name in _STEPS if name in probe.problems), "connect")
    names = {"rtt": "round_trip"}
    return skip(f"{probe.endpoint} was not reached (network.{names.get(earlier, earlier)})")
