"""What a gateway offers: files by digest, a pace, bounds, and one sentence for whatever it does not send."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.offers.offered import OfferedBundle
from cloud_gateway.offers.offering import WINDOW, Brought, Offering
from protocol import messages as m
from protocol import wire
from protocol.errors import BundleError
from protocol.pace import Pace
from tests.bundles import bundle_in
from tests.waiting import until

WAIT_S = 20.0


@dataclass(frozen=True)
class Version:
    name: str
    digest: str
    folder: Path
    format: str = "bundle"


class Door:
    """Stands where the sockets' thread would: takes what is brought, in order."""

    def __init__(self, *versions: Version, offer: tuple[str, ...] = ("*",), rate: float = 1e9) -> None:
        self.came: queue.Queue[Brought] = queue.Queue()
        self.told: list[tuple[str, str]] = []
        self.versions = list(versions)
        self.offering = Offering(
            lambda: self.versions, self.came.put, offer=offer, rate=rate,
            told=lambda event, text: self.told.append((event, text)), crashed=lambda error: pytest.fail(repr(error)),
        )  # fmt: skip

    def ask(self, message: m.AskOffers | m.FetchPart, route: bytes = b"peer") -> Brought:
        at_once = self.offering.ask(route, message)
        return Brought(route, at_once) if at_once is not None else self.came.get(timeout=WAIT_S)


@pytest.fixture
def version(tmp_path: Path) -> Version:
    bundle = bundle_in(tmp_path / "bundle", {"cut-1/head.onnx": b"h" * 300_000, "edge.onnx": b"edge"}, model="digits")
    return Version("served-as", bundle.digest, bundle.root)


@pytest.fixture
def door(version: Version) -> Iterator[Door]:
    door = Door(version)
    door.offering.start()
    yield door
    door.offering.stop()


@pytest.mark.parametrize("model", ["", "digits", "served-as"])
def test_a_bundle_is_offered_under_the_name_in_its_manifest_and_the_one_it_is_served_as(door: Door, model: str) -> None:
    answer = door.ask(m.AskOffers(model)).message
    assert isinstance(answer, m.Offers)
    [offer] = answer.offers
    assert (offer.model, offer.bundle.hex(), offer.files) == ("digits", door.versions[0].digest, 2)
    assert offer.nbytes == 300_004
    assert offer.signature is None


def test_a_file_comes_in_stretches_and_ends_where_it_ends(door: Door, version: Version) -> None:
    digest = _digest_of(version, "cut-1/head.onnx")
    got = bytearray()
    while len(got) < 300_000:
        brought = door.ask(m.FetchPart(digest, len(got), wire.PART_NBYTES))
        part = brought.message
        assert isinstance(part, m.FilePart)
        assert (part.offset, part.total_nbytes, part.nbytes) == (len(got), 300_000, len(brought.payload[0]))
        assert part.checksum == wire.checksum(brought.payload)
        got += brought.payload[0]
    assert bytes(got) == b"h" * 300_000
    refusal = door.ask(m.FetchPart(digest, 300_000, 1)).message
    assert isinstance(refusal, m.NoPart)
    assert (refusal.code, refusal.reason) == (m.NoPartCode.RANGE, "that file ends at 300000")


def test_a_digest_that_is_not_offered_is_refused_with_a_reason(door: Door) -> None:
    answer = door.ask(m.FetchPart(b"\0" * 32, 0, 1)).message
    assert isinstance(answer, m.NoPart)
    assert answer.code is m.NoPartCode.UNKNOWN


def test_a_model_that_the_settings_do_not_name_is_neither_offered_nor_sent(version: Version) -> None:
    door = Door(version, offer=("another",))
    door.offering.start()
    answer = door.ask(m.AskOffers("digits")).message
    assert answer == m.Offers((), "this gateway offers no bundle of a model called 'digits'")
    refusal = door.ask(m.FetchPart(_digest_of(version, "edge.onnx"), 0, 1)).message
    assert isinstance(refusal, m.NoPart)
    door.offering.retune(offer=("digits",), rate=1e9)
    answer = door.ask(m.AskOffers()).message
    assert isinstance(answer, m.Offers)
    assert len(answer.offers) == 1
    door.offering.stop()


def test_without_settings_nothing_is_offered_and_no_thread_is_needed(version: Version) -> None:
    door = Door(version, offer=())
    for message in (m.AskOffers(), m.FetchPart(_digest_of(version, "edge.onnx"), 0, 1)):
        answer = door.ask(message).message
        assert isinstance(answer, m.Offers | m.NoPart)
        assert "updates.offer" in answer.reason
    door.offering.stop()


def test_what_a_version_no_longer_serves_is_no_longer_sent(door: Door, version: Version) -> None:
    digest = _digest_of(version, "edge.onnx")
    assert isinstance(door.ask(m.FetchPart(digest, 0, 4)).message, m.FilePart)
    door.versions.clear()
    door.offering.retune(offer=("*",), rate=1e9)  # looks again
    assert isinstance(door.ask(m.FetchPart(digest, 0, 4)).message, m.NoPart)


def test_a_peer_that_asks_for_more_than_its_window_is_told_when_to_come_back(version: Version) -> None:
    door = Door(version)  # not started: nothing is answered
    part = m.FetchPart(_digest_of(version, "edge.onnx"), 0, 4)
    assert [door.offering.ask(b"greedy", part) for _ in range(WINDOW)] == [None] * WINDOW
    refusal = door.offering.ask(b"greedy", part)
    assert isinstance(refusal, m.NoPart)
    assert refusal.code is m.NoPartCode.BUSY
    assert refusal.retry_after_us > 0
    assert door.offering.ask(b"another", part) is None
    door.offering.start()
    for _ in range(WINDOW + 1):
        assert isinstance(door.came.get(timeout=WAIT_S).message, m.FilePart)
    assert isinstance(door.ask(part, b"greedy").message, m.FilePart)
    door.offering.stop()


@pytest.mark.parametrize("change", ["link", "hard link", "shorter", "gone", "folder link"])
def test_what_is_no_longer_the_plain_file_that_was_listed_is_not_read(
    tmp_path: Path, version: Version, change: str
) -> None:
    offered = OfferedBundle.open(version.folder)
    file = offered.files[_digest_of(version, "cut-1/head.onnx")]
    path = version.folder / "cut-1" / "head.onnx"
    (secret := tmp_path / "secret").write_bytes(b"h" * 300_000)
    match change:
        case "link":
            path.unlink()
            path.symlink_to(secret)
        case "hard link":
            path.unlink()
            path.hardlink_to(secret)
        case "shorter":
            path.write_bytes(b"h")
        case "gone":
            path.unlink()
        case "folder link":
            path.parent.rename(tmp_path / "moved")
            path.parent.symlink_to(tmp_path / "moved")
    with pytest.raises(BundleError):
        file.read(0, 10)


def test_a_bundle_that_cannot_be_opened_is_told_of_once_and_not_offered(tmp_path: Path) -> None:
    door = Door(Version("broken", "0" * 64, tmp_path))
    door.offering.start()
    for _ in range(2):
        answer = door.ask(m.AskOffers()).message
        assert isinstance(answer, m.Offers)
        assert answer.offers == ()
    assert [event for event, _ in door.told] == ["not_offered"]
    door.offering.stop()


def test_a_list_of_revocations_is_offered_like_any_file_and_anew_when_it_changes(version: Version) -> None:
    door = Door(version)
    listed = version.folder.parent / "revocations.json"
    door.offering._revocations = listed
    listed.write_bytes(b"list 0")  # it looks at once when it starts
    door.offering.start()
    for data in (b"list 1", b"list number 2"):
        listed.write_bytes(data)
        door.offering.retune(offer=("*",), rate=1e9)  # looks again
        answer = door.ask(m.AskOffers()).message
        assert isinstance(answer, m.Offers)
        assert answer.revocations == hashlib.sha256(data).digest()
        brought = door.ask(m.FetchPart(answer.revocations, 0, answer.revocations_nbytes))
        assert brought.payload == (data,)
    listed.unlink()
    door.offering.retune(offer=("*",), rate=1e9)
    assert isinstance(door.ask(m.AskOffers()).message, m.Offers)
    assert [event for event, _ in door.told] == ["revocations_unreadable"]
    door.offering.stop()


def test_stopping_does_not_wait_for_the_pace(version: Version) -> None:
    door = Door(version, rate=1.0)
    door.offering.start()
    digest = _digest_of(version, "cut-1/head.onnx")
    for _ in range(WINDOW):
        door.offering.ask(b"peer", m.FetchPart(digest, 0, wire.PART_NBYTES))
    assert isinstance(door.came.get(timeout=WAIT_S).message, m.FilePart)
    door.offering.stop()


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 10)), min_size=1, max_size=50))
def test_no_more_leaves_than_the_rate_and_one_burst_allow(takes: list[tuple[int, float]]) -> None:
    pace = Pace(rate=1000.0, burst_nbytes=5000, now=0.0)
    now, taken = 0.0, 0
    for nbytes, rest_s in takes:
        now += rest_s
        wait_s = pace.take(nbytes, now=now)
        now += wait_s
        taken += nbytes
        assert taken <= 5000 + 1000.0 * now + 1e-3


def test_a_pace_waits_no_longer_than_it_must() -> None:
    pace = Pace(rate=100.0, burst_nbytes=50, now=0.0)
    assert pace.take(50, now=0.0) == 0.0
    assert pace.take(100, now=0.0) == pytest.approx(1.0)
    pace.retune(1000.0, now=1.0)
    assert pace.take(100, now=1.0) == pytest.approx(0.1)


def _digest_of(version: Version, name: str) -> bytes:
    offered = OfferedBundle.open(version.folder)
    return next(digest for digest, file in offered.files.items() if file.name == name)


def test_a_name_to_be_offered_that_is_not_served_is_told_at_the_start_and_once(version: Version) -> None:
    door = Door(version, offer=("digits", "faces"))
    door.offering.start()
    until(lambda: door.told, "nothing was told")
    assert door.told == [("offer_unknown", "updates.offer names 'faces': no such bundle is served, none is offered")]
    for _ in range(2):
        door.offering.retune(offer=("digits", "faces"), rate=1e9)  # the next question looks again
        assert isinstance(door.ask(m.AskOffers("digits")).message, m.Offers)
    assert len(door.told) == 1
    door.offering.retune(offer=("*",), rate=1e9)
    door.ask(m.AskOffers(""))
    door.offering.retune(offer=("faces",), rate=1e9)
    door.ask(m.AskOffers(""))
    assert len(door.told) == 2, "it is another mistake after it was mended"
    door.offering.stop()
