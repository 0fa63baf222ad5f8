"""Gateways for tests: in this process, on free ports, with nothing but what the test asks for."""

from __future__ import annotations

from pathlib import Path

from cloud_gateway.config import from_flags, load_settings
from cloud_gateway.gateway import Gateway


def gateway_of(
    *bundles: Path,
    bind: str = "tcp://127.0.0.1:0",
    http: str = "off",
    repository: Path | None = None,
    settings: dict[str, object] | None = None,
) -> Gateway:
    """A gateway that is not started. `settings` are dotted keys, as in `--set`."""
    overrides = from_flags(bundles=bundles, bind=bind, http=http, repository=repository) | (settings or {})
    return Gateway(load_settings(env={}, overrides=overrides).settings)
