"""A file on its way: nothing is lost, nothing asked twice without need, and a gateway that lies is found out."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.bundles.download import Download
from protocol import messages as m
from protocol import wire
from protocol.errors import WireError

FILE = b"\x07" * 32
DATA = bytes(range(256)) * 5


def answer(question: m.FetchPart, data: bytes = DATA) -> tuple[m.FilePart, list[wire.Buffer]]:
    part = data[question.offset : question.offset + question.nbytes]
    return m.FilePart(question.file, question.offset, len(part), len(data), wire.checksum((part,))), [part]


@given(st.integers(0, len(DATA)), st.integers(1, 300), st.integers(1, 8), st.integers(0, 2**32 - 1), st.floats(0, 0.4))
def test_every_byte_comes_once_and_in_order_whatever_is_lost_busy_or_early(
    have: int, part_nbytes: int, window: int, seed: int, trouble: float
) -> None:
    chance = random.Random(seed)
    download = Download(FILE, len(DATA), have, window, part_nbytes)
    written = bytearray(DATA[:have])
    open_: list[m.FetchPart] = []
    now = 0.0
    while not download.is_done:
        while (question := download.ask(now=now)) is not None:
            open_.append(question)
            assert len(open_) <= window
        if not open_:
            now = max(now + 0.01, download.wake_at())
            continue
        question = open_.pop(chance.randrange(len(open_)))
        what = chance.random()
        if what < trouble / 2:
            download.lost()
            open_.clear()
        elif what < trouble:
            download.refused(m.NoPart(FILE, question.offset, m.NoPartCode.BUSY, "busy", 100_000), now=now)
            assert download.ask(now=now) is None, "not before it was told to"
        else:
            for data in download.came(*answer(question)):
                written += data
    assert bytes(written) == DATA


def test_an_empty_file_and_a_whole_one_need_no_question() -> None:
    assert Download(FILE, 0).is_done
    assert Download(FILE, 10, have=10).is_done
    assert Download(FILE, 0).ask(now=0.0) is None


def lie(**changes: object) -> tuple[m.FilePart, list[wire.Buffer]]:
    part, data = answer(m.FetchPart(FILE, 0, 100))
    return m.FilePart(**{name: changes.get(name, getattr(part, name)) for name in part.__struct_fields__}), data  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (lie(total_nbytes=10**12), "says the file has 1000000000000 bytes, the manifest 1280"),
        (lie(nbytes=50), "sent 100 bytes where 100 were asked for"),
        ((lie()[0], [DATA[:99]]), "sent 99 bytes where 100 were asked for"),
        ((lie()[0], []), "sent 0 bytes where 100 were asked for"),
        ((lie()[0], [DATA[1:101]]), "damaged on its way"),
    ],
)
def test_a_part_that_is_a_lie_is_refused_in_a_sentence(
    part: tuple[m.FilePart, list[wire.Buffer]], sentence: str
) -> None:
    download = Download(FILE, len(DATA), part_nbytes=100)
    download.ask(now=0.0)
    with pytest.raises(WireError, match=sentence):
        download.came(*part)


def test_what_was_not_asked_for_is_ignored() -> None:
    download = Download(FILE, len(DATA), part_nbytes=100)
    assert download.came(*answer(m.FetchPart(FILE, 0, 100))) == []
    download.ask(now=0.0)
    assert download.came(*answer(m.FetchPart(b"\x08" * 32, 0, 100))) == []
    assert download.came(*answer(m.FetchPart(FILE, 0, 100))) == [DATA[:100]]
    assert download.came(*answer(m.FetchPart(FILE, 0, 100))) == [], "twice"


@pytest.mark.parametrize("code", [m.NoPartCode.UNKNOWN, m.NoPartCode.RANGE, m.NoPartCode.UNREADABLE])
def test_a_file_that_the_gateway_does_not_send_ends_the_download_with_its_reason(code: m.NoPartCode) -> None:
    download = Download(FILE, len(DATA))
    download.ask(now=0.0)
    with pytest.raises(WireError, match="nobody knows it"):
        download.refused(m.NoPart(FILE, 0, code, "nobody knows it"), now=0.0)
