"""The envelope: its encoding against the published one, and one spelling only, so that no byte changes unnoticed."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import dsse
from protocol.dsse import Envelope, Signature
from protocol.errors import UntrustedError

signatures = st.builds(Signature, st.text(max_size=64), st.binary(max_size=80))
envelopes = st.builds(
    Envelope,
    st.binary(max_size=200),
    st.text(max_size=60),
    st.lists(signatures, min_size=1, max_size=4).map(tuple),
)


def test_what_is_signed_is_encoded_as_the_specifications_example() -> None:
    said = dsse.pae("http://example.com/HelloWorld", b"hello world")
    assert said == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_lengths_count_bytes_not_characters() -> None:
    assert dsse.pae("größe", b"\xff\x00") == b"DSSEv1 7 gr\xc3\xb6\xc3\x9fe 2 \xff\x00"


def parsed(encoding: bytes) -> tuple[str, bytes]:
    """The independent way back: what a reader of the specification would write."""
    magic, length, rest = encoding.split(b" ", 2)
    assert magic == b"DSSEv1"
    kind, rest = rest[: int(length)], rest[int(length) :]
    assert rest[:1] == b" "
    size, body = rest[1:].split(b" ", 1)
    assert len(body) == int(size)
    return kind.decode(), body


@given(st.text(max_size=60), st.binary(max_size=200))
def test_no_two_documents_are_signed_alike(kind: str, payload: bytes) -> None:
    assert parsed(dsse.pae(kind, payload)) == (kind, payload)


@given(envelopes)
def test_an_envelope_is_read_as_it_was_written(envelope: Envelope) -> None:
    assert dsse.decode(dsse.encode(envelope), name="it") == envelope


@given(envelopes)
def test_others_read_the_same_fields(envelope: Envelope) -> None:
    document = json.loads(dsse.encode(envelope))
    assert base64.b64decode(document["payload"], validate=True) == envelope.payload
    assert document["payloadType"] == envelope.payload_type
    assert [(s["keyid"], base64.b64decode(s["sig"])) for s in document["signatures"]] == [
        (s.keyid, s.sig) for s in envelope.signatures
    ]
    assert list(document) == ["payload", "payloadType", "signatures"]


@given(envelopes, st.data())
def test_a_changed_byte_is_refused_or_changes_what_is_read(envelope: Envelope, data: st.DataObject) -> None:
    written = bytearray(dsse.encode(envelope))
    at = data.draw(st.integers(0, len(written) - 1))
    written[at] ^= data.draw(st.integers(1, 255))
    try:
        found = dsse.decode(bytes(written), name="it")
    except UntrustedError:
        return
    assert found != envelope


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_refused_with_a_sentence(data: bytes) -> None:
    with pytest.raises(UntrustedError, match="is no DSSE envelope"):
        dsse.decode(data, name="signature.json")


@pytest.mark.parametrize(
    "data",
    [
        b'{"payload":"","payloadType":"","signatures":[]}',
        b'{"payload":"","payloadType":"","signatures":[{"keyid":"","sig":""}]}',  # not as we write it
        b"[" * 5000,
        b" " * (dsse.MOST_NBYTES + 1),
    ],
    ids=["no signature", "other spacing", "deep", "large"],
)
def test_what_encode_does_not_write_is_not_read(data: bytes) -> None:
    with pytest.raises(UntrustedError):
        dsse.decode(data, name="it")
