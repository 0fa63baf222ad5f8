"""By what a device knows its gateways, as they tell it: added, moved on, given up, and never by a stranger."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.trust.server_keys import learn, merged
from protocol import keys
from protocol import messages as m
from protocol.errors import InputError
from protocol.keys import PublicKey

A, B, C, D = (bytes([n]) * 32 for n in range(4))
OTHER = PublicKey(D, "elsewhere", 7450)


def named(data: bytes, name: str = "gateway", port: int | None = None) -> PublicKey:
    return PublicKey(data, name, port)


def awaited(data: bytes, after: bytes, port: int | None = None) -> PublicKey:
    return PublicKey(data, f"replaces-{keys.fingerprint(after)}", port)


def told(*data: bytes, port: int | None = None) -> list[m.ServerKey]:
    return [m.ServerKey(data[0]), *(m.ServerKey(key, port) for key in data[1:])]


@pytest.mark.parametrize(
    ("known", "said", "by", "then"),
    [
        ([named(A)], told(A), A, [named(A)]),
        ([named(A)], told(A, B, port=7448), A, [named(A), awaited(B, A, 7448)]),
        ([named(A), awaited(B, A)], told(A, B), A, [named(A), awaited(B, A)]),
        ([named(A), awaited(B, A)], told(A, B), B, [named(A), awaited(B, A)]),
        ([named(A), awaited(B, A, 7448)], told(B), B, [named(B)]),
        ([named(A), awaited(B, A)], told(A), A, [named(A)]),
        ([named(A), awaited(C, A)], told(A, B), A, [named(A), awaited(B, A)]),
        ([named(A), OTHER], told(A, B), A, [named(A), OTHER, awaited(B, A)]),
        ([named(A), OTHER, awaited(B, A)], told(B), B, [OTHER, named(B)]),
        ([named(A), OTHER], told(D), D, [named(A), OTHER]),
        # both were handed over by hand: whose they are is not known, so both stay
        ([named(A), named(B)], told(B), B, [named(A), named(B)]),
        # lies, and answers that say nothing of the key that was proven
        ([named(A)], told(B, C), A, [named(A)]),
        ([named(A)], told(B), A, [named(A)]),
        ([named(A)], told(B), B, [named(A)]),
        ([named(A)], [], A, [named(A)]),
    ],
)
def test_what_a_gateway_tells_changes_what_is_believed(
    known: list[PublicKey], said: list[m.ServerKey], by: bytes, then: list[PublicKey]
) -> None:
    assert merged(known, said, by) == tuple(then)


KEYS = st.sampled_from([A, B, C, D])


@given(st.lists(st.tuples(st.lists(KEYS, min_size=1, max_size=2, unique=True), KEYS), max_size=12))
def test_the_key_that_was_proven_stays_believed_and_few_are_kept(said: list[tuple[list[bytes], bytes]]) -> None:
    known = (named(A), OTHER)
    for data, by in said:
        after = merged(known, [m.ServerKey(key) for key in data], by)
        if by in {key.data for key in known}:
            assert by in {key.data for key in after}
        else:
            assert after == known
        assert len(after) == len({key.data for key in after}) <= 4
        known = after


def test_the_file_is_replaced_only_where_something_changes(tmp_path: Path) -> None:
    path = tmp_path / "server.pub"
    keys.write_public(path, (named(A),))
    before = path.stat().st_ino
    assert learn(tmp_path, told(A), A) == ""
    assert path.stat().st_ino == before
    assert "is replacing its key" in learn(tmp_path, told(A, B, port=7448), A)
    assert keys.read_public(path) == (named(A), awaited(B, A, 7448))
    assert "has replaced its key" in learn(tmp_path, told(B), B)
    assert keys.read_public(path) == (named(B),)
    path.unlink()
    with pytest.raises(InputError, match=r"server\.pub cannot be read"):
        learn(tmp_path, told(B), B)
