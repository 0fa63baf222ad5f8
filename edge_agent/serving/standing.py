"""How the daemon stands, as one JSON document: what `edge-agent status` asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from protocol.errors import InputError
from protocol.oip.routes import Answer, Call, Route

SCHEMA = 1


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """`reason` says why it is not `well`. `failed` are placements whose head could not be loaded, and why."""

    model: str
    bundle: str
    placements: tuple[str, ...]
    failed: dict[str, str]
    gateway: str
    connected: bool
    serves_alone: bool
    well: bool
    reason: str
    uptime_s: float
    pending: int
    known_answers: int
    state_dir: str
    schema: int = SCHEMA


def routes(standing: Callable[[], Standing]) -> list[Route]:
    """`standing` is called on a thread of the loop's pool."""

    async def status(_: Call) -> Answer:
        return Answer(msgspec.json.encode(await asyncio.to_thread(standing)))

    return [Route("GET", "/v2/isthmus/status", "infer", "How the daemon stands", status)]


def read(document: Mapping[str, Any]) -> Standing:
    """Raises InputError for what is none."""
    try:
        return msgspec.convert(document, Standing)
    except msgspec.ValidationError as error:
        raise InputError(f"this is no status of an edge-agent ({error})", "ask an edge-agent") from error


def lines(standing: Standing) -> list[str]:
    """For people."""
    health = "well" if standing.well else f"unwell: {standing.reason}"
    if standing.connected:
        gateway = f"gateway {standing.gateway}"
    elif standing.gateway:
        gateway = f"gateway {standing.gateway} does not answer"
    else:
        gateway = "no gateway is named"
    alone = "can answer alone" if standing.serves_alone else "cannot answer alone"
    return [
        f"{standing.model}: {health}, up {standing.uptime_s:.0f} s, {standing.pending} requests in flight",
        f"{gateway}; the device {alone}",
        f"bundle {standing.bundle[:12]}, placements {', '.join(standing.placements)}",
        *(f"  {placement} is out: {reason}" for placement, reason in standing.failed.items()),
    ]
