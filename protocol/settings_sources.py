"""Where one daemon's settings come from: its type, the prefix of its variables, and the files that these may name.

LAYERS = Layers(GatewaySettings, "ISTHMUS_GATEWAY")
LAYERS.load(env=os.environ).settings             # from ISTHMUS_GATEWAY_CONFIG, if no file is given
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from protocol.settings import Loaded, Section, load

T = TypeVar("T", bound=Section)


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
