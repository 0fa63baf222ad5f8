"""What the gateway's settings say of one model, put over what its own folder says. Pure."""

from __future__ import annotations

import msgspec

from cloud_gateway.config import MIB, GatewaySettings
from cloud_gateway.models.settings import ModelSettings


def overridden(own: ModelSettings, settings: GatewaySettings, name: str) -> ModelSettings:
    """The model's settings; the gateway's for that name win, and "auto" asks for what is measured."""
    override = settings.models.override.get(name)
    if override is None:
        return own
    changes: dict[str, object] = {}
    if override.max_batch_size is not None:
        changes["max_batch_size"] = None if override.max_batch_size == "auto" else override.max_batch_size
    if override.instances is not None:
        changes["instances"] = override.instances
    if override.threads is not None:
        changes["threads"] = override.threads
    if override.cache is not None:
        changes["response_cache"] = override.cache
    if override.engines:
        changes["engines"] = override.engines
    if override.gpu_memory_mib is not None:
        changes["gpu_memory_nbytes"] = override.gpu_memory_mib * MIB
    if override.half is not None:
        changes["half"] = override.half
    if override.efficiency_delay_ms is not None:
        changes["efficiency_delay_s"] = override.efficiency_delay_ms / 1e3
    return msgspec.structs.replace(own, **changes)
