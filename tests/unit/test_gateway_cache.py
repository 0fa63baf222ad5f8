"""The result cache: what a key depends on, what the shelf keeps and for how long, and a Redis that misbehaves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloud_gateway.cache import ENTRY_NBYTES, LARGEST_SHARE, Kept, Shelf, key_of
from cloud_gateway.cache_redis import PREFIX, RedisShelf
from protocol.errors import InputError, InvariantViolation
from protocol.tensors import TensorHeader
from tests.redis_server import TinyRedis, shelf_at

HEADER = TensorHeader("x", "float32", (1, 4), "raw", 16)
WORK = ("digest", "bundle", "int8", "cut-1")
PAYLOAD = np.arange(4, dtype=np.float32).tobytes()
KEY = key_of(WORK, [HEADER], [PAYLOAD])


def answer(nbytes: int = 100) -> Kept:
    return Kept((TensorHeader("y", "uint8", (nbytes,), "raw", nbytes),), (bytes(nbytes),), "engine", 0.01)


# ---- keys -----------------------------------------------------------------------------------------------------------


def test_equal_work_has_one_key_however_its_payload_is_cut_into_parts() -> None:
    assert key_of(WORK, [HEADER], [PAYLOAD[:7], memoryview(PAYLOAD)[7:]]) == KEY
    assert len(KEY) == 32


@pytest.mark.parametrize(
    "other",
    [
        key_of(("digest2", *WORK[1:]), [HEADER], [PAYLOAD]),
        key_of((*WORK[:3], "full-cloud"), [HEADER], [PAYLOAD]),
        key_of(WORK, [TensorHeader("z", "float32", (1, 4), "raw", 16)], [PAYLOAD]),
        key_of(WORK, [TensorHeader("x", "int32", (1, 4), "raw", 16)], [PAYLOAD]),
        key_of(WORK, [TensorHeader("x", "float32", (4, 1), "raw", 16)], [PAYLOAD]),
        key_of(WORK, [TensorHeader("x", "float32", (1, 4), "zstd", 16)], [PAYLOAD]),
        key_of(WORK, [HEADER], [PAYLOAD[:-1] + b"\x01"]),
        key_of(WORK, [HEADER, HEADER], [PAYLOAD]),
        key_of(("dig", "estbundle", *WORK[2:]), [HEADER], [PAYLOAD]),
    ],
)
def test_whatever_the_answer_depends_on_changes_the_key(other: bytes) -> None:
    assert other != KEY


def test_large_payloads_that_differ_in_one_element_differ() -> None:
    large = np.zeros(100_000, np.float32)
    changed = large.copy()
    changed[50_000] = 1
    assert key_of(WORK, [HEADER], [large.data.cast("B")]) != key_of(WORK, [HEADER], [changed.data.cast("B")])


# ---- the shelf ------------------------------------------------------------------------------------------------------


def test_an_answer_is_found_until_its_time_is_over() -> None:
    shelf = Shelf(100_000, ttl_s=2.0)
    assert shelf.find(b"a", now=0.0) is None
    shelf.keep(b"a", answer(), now=1.0)
    assert shelf.find(b"a", now=2.999) == answer()
    assert shelf.find(b"a", now=3.0) is None
    assert (shelf.nbytes, len(shelf)) == (0, 0)
    assert shelf.counts == {"misses": 2, "hits": 1, "expired": 1}


def test_a_shorter_time_of_its_own_is_kept_and_a_longer_one_is_not() -> None:
    shelf = Shelf(100_000, ttl_s=2.0)
    shelf.keep(b"a", answer(), now=0.0, ttl_s=1.0)
    shelf.keep(b"b", answer(), now=0.0, ttl_s=9.0)
    assert shelf.find(b"a", now=1.5) is None
    assert shelf.find(b"b", now=1.5) is not None
    assert shelf.find(b"b", now=2.5) is None


def test_what_was_used_longest_ago_makes_room() -> None:
    size = answer().nbytes
    shelf = Shelf(LARGEST_SHARE * size, ttl_s=9.0)
    for name in range(LARGEST_SHARE):
        shelf.keep(bytes([name]), answer(), now=0.0)
    assert shelf.find(b"\x00", now=1.0) is not None
    shelf.keep(b"new", answer(), now=1.0)
    assert shelf.find(b"\x01", now=1.0) is None
    assert shelf.find(b"\x00", now=1.0) is not None
    assert shelf.counts["evicted"] == 1


def test_an_answer_that_would_sweep_out_many_others_is_not_kept() -> None:
    shelf = Shelf(LARGEST_SHARE * 1000, ttl_s=9.0)
    shelf.keep(b"a", answer(1000 - ENTRY_NBYTES), now=0.0)
    shelf.keep(b"b", answer(1001 - ENTRY_NBYTES), now=0.0)
    assert shelf.find(b"a", now=0.0) is not None
    assert shelf.find(b"b", now=0.0) is None
    assert shelf.counts["too_large"] == 1


def test_a_smaller_shelf_forgets_at_once() -> None:
    shelf = Shelf(100_000, ttl_s=9.0)
    for name in range(9):
        shelf.keep(bytes([name]), answer(), now=0.0)
    shelf.resize(2000, ttl_s=1.0)
    assert len(shelf) == 3
    assert shelf.find(b"\x08", now=5.0) is not None, "it keeps the time that it was given"
    shelf.nbytes += 1
    with pytest.raises(InvariantViolation):
        shelf.validate()


class ShelfMachine(RuleBasedStateMachine):
    """Beside a dictionary that forgets nothing but what is over: the shelf may forget more, never invent."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf(20_000, ttl_s=5.0)
        self.truth: dict[bytes, tuple[Kept, float]] = {}
        self.now = 0.0

    @rule(key=st.binary(max_size=1), nbytes=st.integers(0, 3000), ttl_s=st.floats(0, 9))
    def keep(self, key: bytes, nbytes: int, ttl_s: float) -> None:
        kept = answer(nbytes)
        before = self.shelf.counts["too_large"]
        self.shelf.keep(key, kept, now=self.now, ttl_s=ttl_s)
        if self.shelf.counts["too_large"] == before:
            self.truth[key] = (kept, self.now + min(ttl_s, self.shelf.ttl_s))

    @rule(key=st.binary(max_size=1))
    def find(self, key: bytes) -> None:
        found = self.shelf.find(key, now=self.now)
        if found is not None:
            kept, until = self.truth[key]
            assert found == kept
            assert self.now < until

    @rule(seconds=st.floats(0, 4))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(size=st.integers(1000, 30_000), ttl_s=st.floats(0.1, 9))
    def resize(self, size: int, ttl_s: float) -> None:
        self.shelf.resize(size, ttl_s)

    @invariant()
    def bounded(self) -> None:
        self.shelf.validate()


TestShelfMachine = ShelfMachine.TestCase
TestShelfMachine.settings = settings(max_examples=60, stateful_step_count=40)


# ---- Redis ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[TinyRedis]:
    server = TinyRedis()
    yield server
    server.close()


@pytest.fixture
def far(server: TinyRedis) -> Iterator[RedisShelf]:
    with shelf_at(server) as shelf:
        yield shelf


def found(far: RedisShelf, key: bytes) -> tuple[Kept | None, float] | None:
    """What `ask` hands over; None when it does not ask at all."""
    got: list[tuple[Kept | None, float]] = []
    done = threading.Event()

    def then(kept: Kept | None, left_s: float) -> None:
        got.append((kept, left_s))
        done.set()

    if not far.ask(key, then):
        return None
    assert done.wait(10)
    return got[0]


def test_redis_gives_back_what_was_kept_and_how_long_it_is_good(server: TinyRedis, far: RedisShelf) -> None:
    assert found(far, KEY) == (None, 0.0)
    far.keep(KEY, answer(), ttl_s=7.0)
    assert found(far, KEY) == (answer(), 7.0)
    assert list(server.values) == [PREFIX + KEY]
    assert far.counts == {"misses": 1, "kept": 1, "hits": 1}


def test_bytes_that_are_no_answer_are_not_found(server: TinyRedis, far: RedisShelf) -> None:
    for damaged in (b"", b"\xc1", b"\x81\xa6engine\x01", b"\x80" * 1000):
        server.values[PREFIX + KEY] = damaged
        assert found(far, KEY) == (None, 0.0)
    assert far.counts["damaged"] == 4


def test_a_redis_that_fails_is_left_alone_and_nobody_waits_for_it(server: TinyRedis, far: RedisShelf) -> None:
    server.broken = True
    assert [found(far, KEY) for _ in range(3)] == [(None, 0.0)] * 3
    assert found(far, KEY) is None
    far.keep(KEY, answer(), ttl_s=1.0)
    assert far.counts == {"failed": 3, "skipped": 1}


def test_whatever_a_server_says_that_is_no_redis_is_its_own_trouble(server: TinyRedis, far: RedisShelf) -> None:
    server.noise = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    assert found(far, KEY) == (None, 0.0)
    server.noise = b":5\r\n:6\r\n"
    assert found(far, KEY) == (None, 0.0)


def test_a_redis_that_nobody_runs_fails_without_a_word_to_the_caller() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    shelf = RedisShelf(f"redis://127.0.0.1:{port}", timeout_s=0.5, crashed=lambda error: pytest.fail(str(error)))
    shelf.start()
    assert found(shelf, KEY) == (None, 0.0)
    shelf.stop()


def test_an_address_that_is_none_is_refused_without_repeating_it() -> None:
    with pytest.raises(InputError) as caught:
        RedisShelf("rosebud", timeout_s=1.0, crashed=lambda _: None)
    assert "rosebud" not in str(caught.value)
