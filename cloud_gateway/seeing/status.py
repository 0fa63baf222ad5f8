"""The status document: what `cloud-gateway status --json` prints and the status page draws. Version `SCHEMA`.

Everything a person wants to see at once, from the same snapshot as the metrics. Times are seconds, None is unknown.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cloud_gateway.seeing.figures import Figures
from cloud_gateway.seeing.metrics import Scene
from protocol.seeing.sums import SLACK_BOUNDS_S

SCHEMA = 1


def status_document(scene: Scene) -> dict[str, Any]:
    """Plain JSON values and frozen nouns, ready to be encoded."""
    standing = scene.standing
    return {
        "schema": SCHEMA,
        "software": scene.software,
        "uptime_s": scene.snapshot.uptime_s,
        "ready": standing.ready,
        "draining": standing.draining,
        "reason": standing.reason,
        "models": standing.models,
        "lanes": [
            {
                "key": lane.key,
                "label": lane.label,
                "scopes": [scope._asdict() for scope in lane.scopes],
                "engine": lane.engine,
                "engines": lane.engines,
                "instances": lane.instances,
                "busy": lane.busy,
                "batch_bound": lane.batch_bound,
                "unbatched": lane.unbatched,
                "predicted_s": lane.predicted_s,
                "wait_s": lane.wait_s,
                "pending_requests": lane.pending_requests,
                "pending_nbytes": lane.pending_nbytes,
            }
            for lane in standing.lanes
        ],
        "scopes": [
            {**_figures(figures), "pending": standing.pending.get(figures.scope, 0)}
            for figures in scene.snapshot.scopes
        ],
        "total": _figures(scene.snapshot.total),
        "slack_bounds_s": SLACK_BOUNDS_S,
        "pending": {
            "requests": standing.pending_requests,
            "nbytes": standing.pending_nbytes,
            "limit_requests": standing.pending_limit_requests,
            "limit_nbytes": standing.pending_limit_nbytes,
        },
        "agents": standing.agents,
        "credit": {"requests": standing.credit_requests, "nbytes": standing.credit_nbytes},
        "gpu_memory": {
            "reserved_nbytes": standing.engines.gpu_reserved_nbytes,
            "limit_nbytes": standing.engines.gpu_limit_nbytes,
        },
        "events": scene.snapshot.events,
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
        "residence": figures.residence,
        "queue": figures.queue,
        "compute": figures.compute,
        "in_time": figures.in_time,
    }
