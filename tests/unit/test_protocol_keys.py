"""CURVE keys as files: what is written is read again, what is open to others is refused, no message tells a secret."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import keys, sockets
from protocol.errors import InputError
from protocol.keys import KeyPair, PublicKey


@pytest.fixture
def pair() -> KeyPair:
    return keys.make_pair("camera-7")


def test_a_pair_is_read_as_it_was_written(tmp_path: Path, pair: KeyPair) -> None:
    keys.write_pair(tmp_path / "agent.key", pair)
    assert keys.read_pair(tmp_path / "agent.key") == pair


def test_every_pair_is_another(pair: KeyPair) -> None:
    assert len({keys.make_pair("a").secret for _ in range(20)} | {pair.secret}) == 21


def test_a_secret_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path, pair: KeyPair) -> None:
    before = os.umask(0)
    try:
        keys.write_pair(tmp_path / "agent.key", pair)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "agent.key").stat().st_mode) == 0o600


def test_a_secret_that_is_there_is_not_replaced_by_accident(tmp_path: Path, pair: KeyPair) -> None:
    path = tmp_path / "agent.key"
    keys.write_pair(path, pair)
    with pytest.raises(InputError, match="is there already"):
        keys.write_pair(path, keys.make_pair("other"))
    assert keys.read_pair(path) == pair
    keys.write_pair(path, other := keys.make_pair("other"), overwrite=True)
    assert keys.read_pair(path) == other
    assert [p.name for p in tmp_path.iterdir()] == ["agent.key"]  # nothing half-written stays behind


@pytest.mark.parametrize(("mode", "refused"), [(0o600, False), (0o400, False), (0o440, False), (0o640, False),
                                               (0o604, True), (0o644, True), (0o660, True), (0o666, True),
                                               (0o601, True), (0o610, True), (0o602, True)])  # fmt: skip
def test_a_secret_that_everybody_may_read_or_others_write_is_refused(
    tmp_path: Path, pair: KeyPair, mode: int, refused: bool
) -> None:
    path = tmp_path / "agent.key"
    keys.write_pair(path, pair)
    path.chmod(mode)
    if refused:
        with pytest.raises(InputError, match=f"mode {mode:04o}.*chmod 600"):
            keys.read_pair(path)
    else:
        assert keys.read_pair(path) == pair


def test_a_mounted_secret_may_be_a_link(tmp_path: Path, pair: KeyPair) -> None:
    keys.write_pair(tmp_path / "real.key", pair)
    (tmp_path / "agent.key").symlink_to("real.key")
    assert keys.read_pair(tmp_path / "agent.key") == pair


def test_neither_repr_nor_any_refusal_shows_the_secret(tmp_path: Path, pair: KeyPair) -> None:
    path = tmp_path / "agent.key"
    secret = pair.secret.hex()
    assert secret not in repr(pair)
    for text in (f"isthmus-curve-secret {secret}", f"isthmus-curve-secret {secret}0 camera-7", secret):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(InputError) as refused:
            keys.read_pair(path)
        assert secret[:16] not in str(refused.value)
    with pytest.raises(InputError, match="secret key stands where a public one belongs") as refused:
        keys.parse_public(f"isthmus-curve-secret {secret} camera-7")
    assert secret not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"# only a remark\n", b"\xff\xfe", b"isthmus-curve-secret zz name\n",
                                     b"x" * 70_000, b"isthmus-curve-public " + b"0" * 64 + b" name\n"])  # fmt: skip
def test_what_is_no_secret_key_is_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agent.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InputError):
        keys.read_pair(path)


def test_a_missing_or_special_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        keys.read_pair(tmp_path / "agent.key")
    with pytest.raises(InputError, match="not a plain file"):
        keys.read_private(Path("/dev/null"))


def test_public_keys_are_read_as_they_were_written_with_names_ports_and_remarks(tmp_path: Path, pair: KeyPair) -> None:
    path = tmp_path / "server.pub"
    both = (pair.public, PublicKey(keys.make_pair("next").public.data, "next", 7448))
    keys.write_public(path, both)
    path.write_text("# the gateway in the cellar\n\n" + path.read_text())
    assert keys.read_public(path) == both


@pytest.mark.parametrize("line", ["isthmus-curve-public", "isthmus-curve-public 00 name",
                                  "isthmus-curve-public " + "0" * 64, "isthmus-curve-public " + "0" * 64 + " -name",
                                  "isthmus-curve-public " + "0" * 64 + " a port=0",
                                  "isthmus-curve-public " + "0" * 64 + " a port=65536",
                                  "isthmus-curve-public " + "0" * 64 + " a prot=7", "ssh-ed25519 AAAA me"])  # fmt: skip
def test_what_is_no_public_key_is_refused(line: str) -> None:
    with pytest.raises(InputError):
        keys.parse_public(line)


def test_other_tools_keys_are_read_too() -> None:
    # The test keys of ZeroMQ RFC 32 and of libzmq's own manual.
    z85 = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
    assert keys.parse_public(z85).data.hex() == "54fcba24e93249969316fb617c872bb0c1d1ff14800427c594cbfacf1bc2d652"
    assert keys.parse_key(keys.parse_key(z85).hex()) == keys.parse_key(z85)


@given(st.text(max_size=80))
def test_no_text_is_taken_for_a_key_by_accident(text: str) -> None:
    try:
        data = keys.parse_key(text)
    except InputError:
        return
    assert len(data) == keys.KEY_NBYTES


@given(st.text(max_size=70))
def test_a_name_needs_no_quoting_anywhere(name: str) -> None:
    try:
        keys.require_name(name)
    except InputError:
        return
    assert name.isascii()
    assert not set(name) & set(" \t\n/'\"\\$`*?[]{}()<>|;&!~#=,:")
    assert not name.startswith(("-", "."))


def test_the_public_key_follows_from_the_secret_one(pair: KeyPair) -> None:
    assert sockets.curve_public(pair.secret) == pair.public.data


def test_a_fingerprint_is_short_and_tells_keys_apart(pair: KeyPair) -> None:
    other = keys.make_pair("camera-7")
    assert len(pair.public.fingerprint) == 16
    assert pair.public.fingerprint != other.public.fingerprint


def test_nothing_is_written_where_nothing_can_be(tmp_path: Path, pair: KeyPair) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        keys.write_pair(tmp_path / "missing" / "agent.key", pair)
