"""`cloud-gateway config check | show | schema`."""

from __future__ import annotations

from cloud_gateway.config import GatewaySettings, load_settings
from protocol.settings_cli import as_markdown, as_toml, config_app

__all__ = ["app", "as_markdown", "as_toml"]


def _remarks(settings: GatewaySettings) -> tuple[str, ...]:
    from cloud_gateway.offers.remarks import remarks  # only where something is checked

    return remarks(settings)


app = config_app(GatewaySettings, load_settings, daemon="gateway", remarks=_remarks)
