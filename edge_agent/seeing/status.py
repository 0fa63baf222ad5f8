"""The status document: what the status page draws and `edge-agent status` tells. Version `SCHEMA`.

Everything a person wants to see at once, from the same snapshot as the metrics. Times are seconds, None is unknown.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edge_agent.seeing.figures import Figures
from edge_agent.seeing.scene import Scene
from protocol.seeing.sums import SLACK_BOUNDS_S

SCHEMA = 2


def status_document(scene: Scene) -> dict[str, Any]:
    """Plain JSON values and frozen nouns, ready to be encoded."""
    standing = scene.standing
    events = dict(scene.snapshot.events)
    for what, number in standing.events.items():
        events[what] = events.get(what, 0) + number
    return {
        "schema": SCHEMA,
        "software": scene.software,
        "uptime_s": scene.snapshot.uptime_s,
        "ready": standing.ready,
        "reason": standing.reason,
        "now": {
            "placement": standing.placement,
            "kind": standing.kind,
            "why": standing.why,
            "flips": standing.flips,
            "degraded": standing.degraded,
        },
        "placements": standing.placements,
        "gateways": standing.gateways,
        "connected": any(gateway.ready for gateway in standing.gateways),
        "serves_alone": standing.serves_alone,
        "pending": standing.pending,
        "edge_factor": standing.edge_factor,
        "bundle": standing.bundle,
        "store": standing.store,
        "board": standing.board,
        "known_answers": standing.known_answers,
        "state_dir": standing.state_dir,
        "scopes": [_figures(figures) for figures in scene.snapshot.scopes],
        "total": _figures(scene.snapshot.total),
        "slack_bounds_s": SLACK_BOUNDS_S,
        "events": events,
        "machine": scene.machine,
    }


def status_json(scene: Scene) -> bytes:
    return msgspec.json.encode(status_document(scene))


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        **figures.scope._asdict(),
        "engine": figures.engine,
        "counters": figures.counters,
        "qps": figures.qps,
        "goodput": figures.goodput,
        "predicted_over_actual": figures.predicted_over_actual,
        "prediction_error": figures.prediction_error,
        "total": figures.total,
        "edge": figures.edge,
        "network": figures.network,
        "gateway_time": figures.gateway,
        "in_time": figures.in_time,
    }
