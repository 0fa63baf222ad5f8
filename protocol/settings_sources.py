"""What the settings of both daemons have in common: where they come from, and how each says what it logs.

    LAYERS = Layers(GatewaySettings, "ISTHMUS_GATEWAY")     # its type, and the prefix of its variables
    LAYERS.load(env=os.environ).settings                    # from ISTHMUS_GATEWAY_CONFIG, if no file is given

What is read, and what goes over what, stands in `settings.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Generic, Literal, NamedTuple, TypeVar

from protocol.settings import Loaded, Section, load, setting

T = TypeVar("T", bound=Section)


class LogsSettings(Section, frozen=True):
    """What is logged."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], setting("Least level that is logged.", reloadable=True)
    ] = "info"
    format: Annotated[Literal["console", "json"], setting("Lines for people, or one JSON object a line.")] = "console"
    repeat_interval_s: Annotated[
        float, setting("A repeated event is logged once in this time, with its count.", ge=0, le=3600, reloadable=True)
    ] = 10.0


class Sources(NamedTuple):
    """Where settings are read from, besides the environment and the command line."""

    file: Path | None
    secrets_dir: Path | None

    @property
    def paths(self) -> list[Path]:
        """What a change of may mean other settings."""
        return [path for path in self if path is not None]


class Layers(Generic[T]):
    """The settings of one daemon."""

    def __init__(self, kind: type[T], prefix: str) -> None:
        self._kind = kind
        self._prefix = prefix

    def sources(self, *, file: Path | None, env: Mapping[str, str], secrets_dir: Path | None) -> Sources:
        """`PREFIX_CONFIG` and `PREFIX_SECRETS_DIR` name what the arguments do not."""
        named, folder = env.get(f"{self._prefix}_CONFIG"), env.get(f"{self._prefix}_SECRETS_DIR")
        return Sources(file or (Path(named) if named else None), secrets_dir or (Path(folder) if folder else None))

    def load(
        self,
        *,
        file: Path | None = None,
        env: Mapping[str, str],
        secrets_dir: Path | None = None,
        overrides: Mapping[str, object] | None = None,
    ) -> Loaded[T]:
        """The settings of all layers, from `sources`. Raises InputError with everything that is wrong, and where."""
        file, secrets_dir = self.sources(file=file, env=env, secrets_dir=secrets_dir)
        return load(self._kind, prefix=self._prefix, file=file, env=env, secrets_dir=secrets_dir, overrides=overrides)
