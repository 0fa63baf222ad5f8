"""How the daemon stands and why, as JSON documents: what `edge-agent status` and `explain` ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from edge_agent.seeing.standing import AgentStanding
from protocol.errors import IsthmusError
from protocol.oip.routes import Answer, Call, Route
from protocol.oip.service import OipError, Refusal

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


def routes(
    standing: Callable[[], Standing], sight: Callable[[], AgentStanding], explain: Callable[[], dict[str, Any]]
) -> list[Route]:
    """All three are called on threads of the loop's pool; what they raise is a refusal."""

    def look() -> dict[str, Any]:
        seen = sight()
        now = {"placement": seen.placement, "kind": seen.kind, "why": seen.why, "degraded": seen.degraded}
        return {**msgspec.to_builtins(standing()), "now": now, "gateways": msgspec.to_builtins(seen.gateways)}

    async def told(look: Callable[[], dict[str, Any]]) -> Answer:
        try:
            return Answer(msgspec.json.encode(await asyncio.to_thread(look)))
        except IsthmusError as error:
            raise OipError(Refusal.NOT_READY, str(error)[:900]) from error

    async def status(_: Call) -> Answer:
        return await told(look)

    async def why(_: Call) -> Answer:
        return await told(explain)

    return [
        Route("GET", "/v2/isthmus/status", "infer", "How the daemon stands", status),
        Route("GET", "/v2/isthmus/explain", "infer", "Why requests run where they run, and what would flip it", why),
    ]
