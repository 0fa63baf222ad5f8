"""What changed, as it is worth a line of the log: placement, link, degradation. Pure: nouns in, lines out.

    looked(standing)    -> placement, gateway_lost, gateway_found, unready, ready, bundle
    finished(outcome)   -> degraded_begins, degraded_ends, refused

An answer from elsewhere than planned begins a degradation; it ends when answers come as planned again and none has been
degraded for `CALM_S`, so that one bad second is one line at its beginning and one at its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edge_agent.outcomes import Outcome, Refusal
from edge_agent.seeing.standing import AgentStanding, GatewayStanding

CALM_S = 2.0
Field = str | int | float | None


@dataclass(frozen=True, slots=True)
class Line:
    """One event for the log: its level, its name, and what is said of it."""

    level: Literal["debug", "info", "warning", "error"]
    event: str
    fields: Mapping[str, Field] = field(default_factory=dict)


class Chronicle:
    """Remembers only what the last line said. `looked` and `finished` may not be called at once."""

    def __init__(self) -> None:
        self._before: AgentStanding | None = None
        self._since: float | None = None  # when the degradation began
        self._latest = 0.0  # the latest degraded answer
        self._count = 0

    def looked(self, standing: AgentStanding) -> list[Line]:
        """The first look tells where things stand; later ones what is no longer as it was."""
        before, self._before = self._before, standing
        lines: list[Line] = []
        if standing.placement and (before is None or before.placement != standing.placement):
            said = {"placement": standing.placement, "why": standing.why}
            lines.append(Line("info", "placement", said | ({"was": before.placement} if before else {})))
        known = {g.name: g for g in before.gateways} if before else {}
        for gateway in standing.gateways:
            lines += _link(known.get(gateway.name), gateway)
        gone = known.keys() - {g.name for g in standing.gateways}
        lines += [Line("info", "gateway_forgotten", {"gateway": name}) for name in sorted(gone)]
        if before is None or before.ready != standing.ready:
            if not standing.ready:
                lines.append(Line("warning", "unready", {"reason": standing.reason}))
            elif before is not None:
                lines.append(Line("info", "ready"))
        if before is not None and before.bundle.digest != standing.bundle.digest:
            bundle = standing.bundle
            said = {"model": bundle.model, "version": bundle.version, "digest": bundle.digest[:12]}
            lines.append(Line("info", "bundle", said | {"was": before.bundle.digest[:12]}))
        return lines

    def finished(self, outcome: Outcome, *, budget_s: float, now: float) -> list[Line]:
        """One request ended."""
        if isinstance(outcome, Refusal):
            return [
                Line(
                    "warning",
                    "refused",
                    {
                        "request": outcome.request,
                        "code": str(outcome.code),
                        "reason": outcome.reason,
                        "slack_ms": round(outcome.slack_s * 1e3, 3),
                        "budget_ms": round(budget_s * 1e3, 3),
                    },
                )
            ]
        if outcome.degraded:
            self._latest = now
            self._count += 1
            if self._since is not None:
                return []
            self._since, self._count = now, 1
            said: dict[str, Field] = {
                "request": outcome.request,
                "placement": outcome.placement,
                "cause": ", ".join(outcome.causes),
                "reason": outcome.degraded[-1],
            }
            return [Line("warning", "degraded_begins", said)]
        if self._since is None or now - self._latest < CALM_S:
            return []
        lasted_s, self._since = self._latest - self._since, None
        said = {"request": outcome.request, "placement": outcome.placement, "answers": self._count}
        return [Line("info", "degraded_ends", said | {"lasted_s": round(lasted_s, 3)})]


def _link(before: GatewayStanding | None, now: GatewayStanding) -> list[Line]:
    if (before.ready if before else False) == now.ready:
        return []
    if now.ready:
        ms = None if now.rtt_s is None else round(now.rtt_s * 1e3, 3)
        return [Line("info", "gateway_found", {"gateway": now.name, "rtt_ms": ms})]
    return [Line("warning", "gateway_lost", {"gateway": now.name, "link": now.state, "reason": now.reason})]
