"""`cloud-gateway config check | show | schema`."""

from __future__ import annotations

from cloud_gateway.config import GatewaySettings, load_settings
from protocol.settings_cli import as_markdown, as_toml, config_app

__all__ = ["app", "as_markdown", "as_toml"]

app = config_app(GatewaySettings, load_settings, daemon="gateway")
