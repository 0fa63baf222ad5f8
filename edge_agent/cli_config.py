"""`edge-agent config check | show | schema`."""

from __future__ import annotations

from edge_agent.config import AgentSettings, load_settings
from protocol.settings_cli import config_app

app = config_app(AgentSettings, load_settings, daemon="agent")
