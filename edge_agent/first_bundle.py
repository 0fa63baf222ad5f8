"""A device on its first day: whether a bundle can come to it over the air, and what it says while it waits."""

from __future__ import annotations

from edge_agent.config import AgentSettings
from protocol.errors import InputError

ASK_EVERY_S = 15.0  # until it has come, the device is of no use


def awaited(settings: AgentSettings) -> str:
    """What a device without any bundle waits for. Raises InputError, with what to do, where none would ever come."""
    gateways, updates = ", ".join(settings.gateways.endpoints), settings.updates
    if not gateways or not updates.enabled or not updates.automatic:
        missing = "no gateway is named" if not gateways else "updates.enabled or updates.automatic is off"
        raise InputError(
            f"no bundle is named, none is installed, and none will come over the air: {missing}",
            "name one with --bundle or bundle.path, or `edge-agent bundles install DIR`",
        )
    return f"the first one of {updates.model!r} from {gateways}" if updates.model else f"the first one from {gateways}"
