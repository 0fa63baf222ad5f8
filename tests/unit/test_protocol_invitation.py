"""The token: read as it was written, and damage of any kind is a sentence that does not repeat the secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import invitation
from protocol.errors import InputError
from protocol.invitation import Token

tokens = st.builds(
    Token,
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)


@given(tokens)
def test_a_token_is_read_as_it_was_written(token: Token) -> None:
    assert invitation.parse_token(token.text()) == token
    assert invitation.parse_token(f"  {token.text()}\n") == token


@given(tokens, st.data())
def test_a_token_that_was_cut_or_mistyped_is_refused_without_telling_its_secret(
    token: Token, data: st.DataObject
) -> None:
    text = token.text()
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("0123456789abcdef_ X"))
    damaged = data.draw(st.sampled_from((text[:at], text[:at] + text[at + 1 :], text[:at] + letter + text[at + 1 :])))
    if damaged == text:
        return
    with pytest.raises(InputError, match="the token is damaged") as refused:
        invitation.parse_token(damaged)
    assert token.secret.hex() not in str(refused.value)


def test_a_token_does_not_show_its_secret_by_accident() -> None:
    token = invitation.make_token(bytes(range(40)), bytes(32))
    assert token.secret.hex() not in f"{token!r} {token}"
    assert token.secret == bytes(range(8, 40))


def test_what_is_kept_depends_on_id_and_secret() -> None:
    kept = {invitation.digest_of(bytes([a]) * 8, bytes([b]) * 32) for a in range(3) for b in range(3)}
    assert len(kept) == 9


def test_a_token_of_too_little_chance_is_not_made() -> None:
    with pytest.raises(ValueError, match="random bytes"):
        invitation.make_token(bytes(39), bytes(32))
