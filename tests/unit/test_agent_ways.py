"""The ways to a gateway, in the order in which they are tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.ways import Way, Ways
from protocol import keys
from protocol.errors import InputError
from protocol.keys import PublicKey
from protocol.sockets import CurveClient, Endpoint

GATEWAY = Endpoint("192.0.2.1", 7447)
MINE, OLD, NEW = (keys.make_pair(name) for name in ("camera-7", "gateway", "gateway"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys.write_pair(tmp_path / "agent.key", MINE)
    keys.write_public(tmp_path / "server.pub", (OLD.public,))
    return tmp_path


def _way(server: keys.KeyPair, port: int = 7447) -> Way:
    return Way(GATEWAY._replace(port=port), CurveClient(MINE.secret, server.public.data))


def _round(ways: Ways) -> list[Way]:
    tried = []
    for _ in range(ways.count):
        tried.append(ways.current)
        ways.turn()
    return tried


def test_without_keys_there_is_one_way_in_plain_text() -> None:
    ways = Ways(GATEWAY)
    assert _round(ways) == [Way(GATEWAY)]
    assert ways.current == Way(GATEWAY)


def test_the_current_key_is_tried_first_and_the_next_one_at_both_ports(folder: Path) -> None:
    keys.write_public(folder / "server.pub", (OLD.public, PublicKey(NEW.public.data, "gateway", 7448)))
    ways = Ways(GATEWAY, folder)
    assert _round(ways) == [_way(OLD), _way(NEW), _way(NEW, 7448)]
    assert ways.current == _way(OLD)


def test_a_key_that_is_copied_later_is_tried_next(folder: Path) -> None:
    ways = Ways(GATEWAY, folder)
    keys.write_public(folder / "server.pub", (NEW.public,))
    assert ways.current == _way(OLD)
    ways.turn()
    assert ways.current == _way(NEW)


def test_a_file_that_cannot_be_read_changes_nothing(folder: Path) -> None:
    ways = Ways(GATEWAY, folder)
    (folder / "server.pub").write_text("half a li")
    ways.turn()
    assert ways.current == _way(OLD)


@pytest.mark.parametrize("how", ["hex", "line", "file"])
def test_a_server_key_may_be_given_instead_of_the_file(folder: Path, tmp_path: Path, how: str) -> None:
    keys.write_public(tmp_path / "other.pub", (NEW.public,))
    given = {"hex": NEW.public.data.hex(), "line": NEW.public.line(), "file": str(tmp_path / "other.pub")}[how]
    assert Ways(GATEWAY, folder, given).current == _way(NEW)


def test_what_is_missing_or_open_to_others_is_refused_before_anything_starts(folder: Path) -> None:
    with pytest.raises(InputError, match="--keys DIR"):
        Ways(GATEWAY, None, NEW.public.data.hex())
    (folder / "agent.key").chmod(0o644)
    with pytest.raises(InputError, match="open to others"):
        Ways(GATEWAY, folder)
    (folder / "agent.key").unlink()
    with pytest.raises(InputError, match=r"agent\.key"):
        Ways(GATEWAY, folder)


def test_a_gateway_without_a_known_address_has_no_way_until_one_is_found(folder: Path) -> None:
    ways = Ways((), folder)
    assert ways.count == 0
    ways.turn()
    ways.move((GATEWAY,))
    assert (ways.count, ways.current) == (1, _way(OLD))


def test_several_addresses_are_tried_in_turn_and_a_move_keeps_the_one_in_use_if_it_stays() -> None:
    one, two, three = (GATEWAY._replace(host=f"192.0.2.{n}") for n in (1, 2, 3))
    ways = Ways((one, two))
    assert _round(ways) == [Way(one), Way(two)]
    ways.turn()
    ways.move((three, two))
    assert ways.current == Way(two)
    ways.move((three,))
    assert ways.current == Way(three)


def test_keys_that_somebody_has_written_are_noticed_until_they_are_read(folder: Path) -> None:
    ways = Ways(GATEWAY, folder)
    assert not ways.have_changed()
    keys.write_public(folder / "server.pub", (NEW.public,))
    assert ways.have_changed()
    ways.turn()
    assert not ways.have_changed()
    keys.write_pair(folder / "agent.key", keys.make_pair("camera-7"), overwrite=True)
    assert ways.have_changed()
    ways.turn()
    (folder / "agent.key").unlink()
    assert ways.have_changed(), "one that is gone is another one, too"


def test_a_server_key_in_a_file_of_its_own_is_looked_at_as_well(folder: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.pub"
    keys.write_public(theirs, (OLD.public,))
    ways = Ways(GATEWAY, folder, str(theirs))
    keys.write_public(theirs, (NEW.public,))
    assert ways.have_changed()
    ways.turn()
    assert ways.current == _way(NEW)
    assert not ways.have_changed()


def test_in_plain_text_no_key_can_change() -> None:
    assert not Ways(GATEWAY).have_changed()
