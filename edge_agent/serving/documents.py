"""How the daemon stands and why, as JSON documents: what `edge-agent status` and `explain` ask for.

The status is one document under two names: `/status.json` beside the page, and `/v2/isthmus/status` for programs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from edge_agent.seeing.scene import Scene
from protocol.errors import IsthmusError
from protocol.oip.routes import Answer, Call, Route
from protocol.oip.service import OipError, Refusal
from protocol.seeing.routes import ViewRoutes
from protocol.seeing.views import Views


def routes(views: Views[Scene], explain: Callable[[], dict[str, Any]]) -> list[Route]:
    """`explain` is called on threads of the loop's pool; what it raises is a refusal."""
    seen = ViewRoutes(views)

    async def why(_: Call) -> Answer:
        try:
            return Answer(msgspec.json.encode(await asyncio.to_thread(explain)))
        except IsthmusError as error:
            raise OipError(Refusal.NOT_READY, str(error)[:900]) from error

    return [
        *seen.routes(),
        Route("GET", "/v2/isthmus/status", "infer", "How the daemon stands", seen.status),
        Route("GET", "/v2/isthmus/explain", "infer", "Why requests run where they run, and what would flip it", why),
    ]
