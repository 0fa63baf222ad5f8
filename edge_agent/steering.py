"""New settings reach a daemon that serves: what each reloadable field changes, in one place.

What the agent itself is made of (gateways, placements, heads, objective) changes as a bundle does: another agent with
the new settings is put beside the one that serves and takes over, and no request is lost. Everything else is a number
somewhere. What is wrong, or needs a restart, stays as it was and is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.config import AgentSettings
from protocol.settings import Loaded
from protocol.settings_reload import Reload, Reloader, Watch

if TYPE_CHECKING:
    from edge_agent.daemon import Daemon

ANEW = ("gateways", "planner", "device", "bundle.placements")  # what an agent is made of


class Steering(Watch[AgentSettings]):
    """`start` watches the files; `now` reads them again at once and may be called from a signal."""

    def __init__(self, daemon: Daemon, read: Callable[[], Loaded[AgentSettings]], *, watched: Sequence[Path]) -> None:
        self._daemon = daemon
        reloader = Reloader(read, started=daemon.settings)
        for part in ANEW:
            reloader.subscribe(part, daemon.serve_with)
        for part in ("requests", "logs", "drain", "health", "updates"):
            reloader.subscribe(part, daemon.retune)
        super().__init__(reloader, watched, told=self._tell, crashed=daemon.crash)

    def _tell(self, reload: Reload) -> None:
        self._daemon.reloaded(reload.outcome, str(reload))
