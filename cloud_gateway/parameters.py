"""What the settings mean for each part of the gateway."""

from __future__ import annotations

import os

from cloud_gateway.config import MIB, GatewaySettings
from cloud_gateway.doors.supervision import Policy
from cloud_gateway.doors.supervisor import FrontPlan
from cloud_gateway.models.catalogue import Defaults
from cloud_gateway.models.settings import VersionPolicy
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.seeing.tracing import Tracing
from protocol import sockets

AUTO_MAX_ROWS = 32  # where the knee is searched if nobody bounds the batch


def engine_threads(threads: int) -> int:
    """How many engines this machine can run side by side, one processor left to the doors."""
    usable = len(os.sched_getaffinity(0))
    return max((usable - 1) // threads, 1)


def limits_of(settings: GatewaySettings) -> Limits:
    limits = settings.limits
    return Limits(limits.pending_requests, limits.pending_mib * MIB, limits.credit_requests, limits.credit_mib * MIB)


def policy_of(settings: GatewaySettings) -> VersionPolicy:
    models = settings.models
    return VersionPolicy(models.policy, models.keep, models.versions)


def front_plan(settings: GatewaySettings, endpoint: sockets.Endpoint) -> FrontPlan:
    supervise = settings.supervise
    return FrontPlan(
        endpoint,
        memory_nbytes=settings.zmq.memory_limit_mib * MIB,
        connections=settings.limits.connections,
        keys=settings.access.keys_dir,
        insecure=settings.zmq.insecure,
        policy=Policy(pause_s=supervise.pause_s, max_restarts=supervise.max_restarts, window_s=supervise.window_s),
    )


def defaults_of(settings: GatewaySettings, workers: int) -> Defaults:
    scheduling = settings.scheduling
    return Defaults(
        threads=scheduling.threads,
        max_rows=AUTO_MAX_ROWS if scheduling.max_batch_size == "auto" else scheduling.max_batch_size,
        instances=workers if scheduling.instances == "auto" else scheduling.instances,
        delay_s=scheduling.efficiency_delay_ms / 1e3,
        ageing_s=scheduling.ageing_s,
        margin=scheduling.margin,
        quantile=scheduling.quantile,
        warm_up_s=settings.models.warm_up_s,
        merge=scheduling.merge == "auto",
    )


def tracing_of(settings: GatewaySettings) -> Tracing | None:
    tracing = settings.tracing
    if not tracing.enabled:
        return None
    given = tracing.headers.reveal() if tracing.headers is not None else ""
    headers = dict(pair.split("=", 1) for pair in given.split(",") if "=" in pair)
    return Tracing(endpoint=tracing.endpoint, service_name=tracing.service_name, headers=headers)
