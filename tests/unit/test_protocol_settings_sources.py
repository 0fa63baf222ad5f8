"""Where settings come from: the command line names files first, the daemon's own variables after it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest

from protocol.errors import InputError
from protocol.settings import Section, setting
from protocol.settings_sources import Layers, Sources


class Water(Section, frozen=True):
    """What is boiled."""

    litres: Annotated[int, setting("How much.", ge=1)] = 1


class Kettle(Section, frozen=True):
    """A daemon that boils water."""

    water: Annotated[Water, setting("What is boiled.")] = Water()


LAYERS = Layers(Kettle, "KETTLE")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kettle.toml"
    path.write_text("water.litres = 2\n")
    return path


def test_a_variable_names_the_file_where_nobody_else_does(file: Path) -> None:
    env = {"KETTLE_CONFIG": str(file)}
    assert LAYERS.load(env=env).settings.water.litres == 2
    assert LAYERS.load(env={}).settings.water.litres == 1
    with pytest.raises(InputError, match=r"other\.toml"):
        LAYERS.load(file=file.with_name("other.toml"), env=env)


def test_what_is_watched_is_what_was_read(file: Path, tmp_path: Path) -> None:
    found = LAYERS.sources(file=None, env={"KETTLE_CONFIG": str(file), "KETTLE_SECRETS_DIR": str(tmp_path)},
                           secrets_dir=None)  # fmt: skip
    assert found == Sources(file, tmp_path)
    assert found.paths == [file, tmp_path]
    assert LAYERS.sources(file=None, env={}, secrets_dir=tmp_path).paths == [tmp_path]


def test_secrets_and_overrides_go_over_the_file(file: Path, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "water.litres").write_text("3")
    assert LAYERS.load(file=file, env={}, secrets_dir=secrets).settings.water.litres == 3
    assert (
        LAYERS.load(file=file, env={}, secrets_dir=secrets, overrides={"water.litres": "4"}).settings.water.litres == 4
    )
