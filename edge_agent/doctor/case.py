"""What the checks look at: settings, board, bundle, heads and gateways, each made at most once and only when asked for.

What cannot be had raises UnmetError in every check that needs it, with the sentence that names the check which says
why; so one fault is reported once, and what depends on it is skipped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from edge_agent.device.tree import Tree
from edge_agent.doctor.verdicts import UnmetError
from protocol.errors import InputError

if TYPE_CHECKING:  # an installation that lacks some of these is to be looked at, too
    from edge_agent.config import AgentSettings
    from edge_agent.device.board import BoardView
    from edge_agent.doctor.probe import GatewayProbe
    from edge_agent.heads import Heads
    from protocol.bundle import Bundle
    from protocol.settings import Loaded

T = TypeVar("T")


class Once(Generic[T]):
    """Makes something when it is first asked for, and never again. Thread-safe.

    Calling it gives the thing, or raises UnmetError with `otherwise` where it could not be made (or is not made yet);
    `really` is for the one check that says why.
    """

    def __init__(self, make: Callable[[], T], otherwise: str) -> None:
        self._make = make
        self._otherwise = otherwise
        self._begun = False
        self._lock = threading.Lock()
        self._made: list[T] = []
        self._error: Exception | None = None

    def __call__(self) -> T:
        try:
            return self.really()
        except UnmetError:
            raise
        except Exception as error:
            raise UnmetError(self._otherwise) from error

    def really(self) -> T:
        """Raises what making it raised."""
        with self._lock:
            first, self._begun = not self._begun, True
        if first:
            try:
                self._made.append(self._make())
            except Exception as error:
                self._error = error
        if self._error is not None:
            raise self._error
        if not self._made:
            raise UnmetError(self._otherwise)
        return self._made[0]

    @property
    def made(self) -> T | None:
        return self._made[0] if self._made else None


class Case:
    """One examination. `root` is where procfs and sysfs are looked for; constructing reads nothing."""

    def __init__(
        self,
        *,
        file: Path | None = None,
        secrets_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
        overrides: Mapping[str, object] | None = None,
        root: Path = Path("/"),
    ) -> None:
        self.file = file
        self.secrets_dir = secrets_dir
        self.env = dict(env or {})
        self.overrides = dict(overrides or {})
        self.tree = Tree(root)
        self.loaded = Once(self._load, "the settings are not valid (configuration.valid)")
        self.bundle = Once(self._open, "no bundle can be opened (bundle.opens)")
        self.heads = Once(self._activate, "the heads could not be loaded (bundle.heads)")
        self.probes = Once(self._probe, "no gateway could be asked (network.connect)")

    @cached_property
    def board(self) -> BoardView:
        from edge_agent.device.board import look

        return look(self.tree.root)

    @property
    def settings(self) -> AgentSettings:
        return self.loaded().settings

    @property
    def gateways(self) -> Sequence[str]:
        """What is configured; UnmetError when there is none."""
        found = self.settings.gateways.endpoints
        if not found:
            raise UnmetError("no gateway is configured: everything runs on the device")
        return found

    @property
    def bundle_path(self) -> Path | None:
        """Where the bundle that is served lies; None when none is named or installed."""
        from edge_agent.doctor.installed import current_bundle

        return self.settings.bundle.path or current_bundle(self.settings.state_dir)

    def close(self) -> None:
        """Give back what was loaded."""
        if self.heads.made is not None:
            self.heads.made.deactivate()

    def _load(self) -> Loaded[AgentSettings]:
        from edge_agent.config import load_settings

        return load_settings(file=self.file, env=self.env, secrets_dir=self.secrets_dir, overrides=self.overrides)

    def _open(self) -> Bundle:
        from protocol.bundle import Bundle

        path = self.bundle_path
        if path is None:
            raise InputError(
                "no bundle is named, and none is installed", "`edge-agent bundles install DIR`, or --bundle"
            )
        return Bundle.open(path)

    def _activate(self) -> Heads:
        from edge_agent.device.providers import plans_in
        from edge_agent.heads import Heads

        device = self.settings.device
        heads = Heads(
            self.bundle(),
            threads=device.threads,
            slowdown=device.slowdown,
            order=device.providers,
            plans=plans_in(device.plans_dir, self.settings.state_dir),
        )
        heads.activate()
        return heads

    def _probe(self) -> tuple[GatewayProbe, ...]:
        from edge_agent.doctor.probe import probe_all

        return probe_all(self.settings, self.gateways, self.bundle_or_none())

    def bundle_or_none(self) -> Bundle | None:
        """The bundle if it opens. Whether it does is another check's matter."""
        try:
            return self.bundle()
        except UnmetError:
            return None
