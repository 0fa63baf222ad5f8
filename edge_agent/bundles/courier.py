"""Fetches files from gateways over short connections of its own, so that the agent's socket knows nothing of updates.

    for each question:  connect -> ask, at most a window ahead -> hash and append what comes -> until the digest holds

Gateways are asked in turn, and each of them by all its ways. A connection that is silent is made anew; whoever brought
nothing at all on several connections in a row is given up. Used by one thread.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import zmq

from edge_agent.bundles.disk import CHUNK_NBYTES, Disk
from edge_agent.bundles.download import Download
from edge_agent.ways import Way
from protocol import messages as m
from protocol import sockets, wire
from protocol.errors import IsthmusError, NetworkError, WireError
from protocol.pace import Pace

PATIENCE_S = 8.0  # of silence, on one connection
MOST_SILENT = 4  # connections in a row on which nothing came
STALL_S = 300.0  # of whatever else than the file, however much: others are asked then, and commands are heard
POLL_MS = 200
UNPACED = 1e12


class GatewayWays(Protocol):
    """The ways to one gateway, see `edge_agent.ways`."""

    @property
    def current(self) -> Way: ...
    def turn(self) -> None: ...


class Stopped(Exception):  # noqa: N818 - nothing is wrong
    """Somebody wants the fetching to end."""


class Interrupted(Exception):  # noqa: N818 - nothing is wrong
    """Something else is to be done first: the same fetch goes on where it was left."""


class Courier:
    """`ways` are those to each gateway, the preferred one first. A function is called whenever offers are asked for,
    and after a fetch that nobody has answered.
    """

    def __init__(
        self,
        ways: Sequence[GatewayWays] | Callable[[], Sequence[GatewayWays]],
        *,
        bytes_per_s: float = UNPACED,
        patience_s: float = PATIENCE_S,
        stall_s: float = STALL_S,
        stop: threading.Event | None = None,
        keys_told: Callable[[tuple[m.ServerKey, ...], bytes], None] = lambda keys, by: None,
        named: Callable[[], bool] = lambda: True,
    ) -> None:
        """`named` tells whether any gateway is, now.

        `keys_told` hears by what a gateway says it is known, and the key (32 bytes) that it has just proven."""
        self._find = ways if callable(ways) else lambda: ways
        self._ways: tuple[GatewayWays, ...] = ()
        self._patience_s, self._stall_s = patience_s, stall_s
        self._stop = stop or threading.Event()
        self._keys_told = keys_told
        self._pace = Pace(rate=bytes_per_s, burst_nbytes=2 * wire.PART_NBYTES, now=time.monotonic())
        self.fetched_nbytes = 0
        self.named = named
        self.interrupted: Callable[[], bool] = lambda: False

    def offers(self, model: str = "") -> m.Offers:
        """What the first gateway that answers offers. Raises NetworkError if none does."""
        self._ways = tuple(self._find())
        trouble: IsthmusError = _nobody()
        empty: m.Offers | None = None
        for way in self._ways:
            try:
                found = self._offers(way, model)
            except (NetworkError, WireError) as error:
                trouble = error
                continue
            if found.offers or found.revocations:
                return found
            empty = found
        if empty is None:
            raise trouble
        return empty

    def fetch(self, sha: str, nbytes: int, part: Path, disk: Disk) -> None:
        """Fetch the file with this sha256 (hex) and size into `part`, going on where that ends.

        Afterwards `part` holds the file whole. Raises NetworkError if nobody sends it, WireError if what came is not
        that file, OSError if the disk does, Stopped, and Interrupted where `interrupted` says so.
        """
        trouble: IsthmusError = _nobody()
        self._ways = self._ways or tuple(self._find())
        for way in self._ways:
            try:
                self._fetch(way, sha, nbytes, part, disk)
            except (NetworkError, WireError) as error:
                trouble = error
                continue
            return
        self._ways = ()
        raise trouble

    # ---- one gateway ------------------------------------------------------------------------------------------------

    def _offers(self, way: GatewayWays, model: str) -> m.Offers:
        for _ in range(2):
            with _connected(way) as sock:
                self._say(sock, m.AskOffers(model))
                give_up_at = time.monotonic() + self._patience_s
                while time.monotonic() < give_up_at:
                    message, _ = self._hear(sock)
                    if isinstance(message, m.Offers):
                        if message.server and (curve := way.current.curve) is not None:
                            self._keys_told(message.server, curve.server)
                        return message
            way.turn()
        raise NetworkError(f"no gateway answers at {way.current.endpoint}", "start it, or check the address and keys")

    def _fetch(self, way: GatewayWays, sha: str, nbytes: int, part: Path, disk: Disk) -> None:
        digest, have = _so_far(part, nbytes)
        download = Download(bytes.fromhex(sha), nbytes, have)
        if not download.have:
            disk.append(part, b"")  # there, and empty
        silent = 0
        while not download.is_done:
            before = download.have
            with _connected(way) as sock:
                for data in self._stream(sock, download):
                    digest.update(data)
                    disk.append(part, data)
            download.lost()
            silent = 0 if download.have > before else silent + 1
            if silent:
                way.turn()
            if silent >= MOST_SILENT:
                raise NetworkError(
                    f"the gateway at {way.current.endpoint} has fallen silent after {download.have} of {nbytes} bytes",
                    "what came is kept: it goes on when a gateway answers",
                )
        if digest.hexdigest() != sha:
            disk.remove(part)
            raise WireError(f"what came is not the file {sha[:12]} that was asked for", "ask another gateway")

    def _stream(self, sock: sockets.Socket, download: Download) -> Iterator[bytes]:
        """What comes on one connection, in order, until the file is whole or the connection silent."""
        heard_at = grown_at = time.monotonic()
        may_ask_at = 0.0
        while not download.is_done:
            now = time.monotonic()
            while now >= may_ask_at and (question := download.ask(now=now)) is not None:
                self._say(sock, question)
                may_ask_at = now + self._pace.take(question.nbytes, now=now)
            message, parts = self._hear(sock)
            now = time.monotonic()
            if isinstance(message, m.FilePart):
                heard_at = now
                for data in download.came(message, parts):
                    self.fetched_nbytes += len(data)
                    grown_at = now
                    yield data
            elif isinstance(message, m.NoPart):
                heard_at = now
                download.refused(message, now=now)
            elif now - max(heard_at, may_ask_at, download.wake_at()) > self._patience_s:
                return
            if now - grown_at > self._stall_s:
                raise NetworkError(f"nothing of the file has come for {self._stall_s:g} s", "ask again later")

    def _say(self, sock: sockets.Socket, message: m.Message) -> None:
        give_up_at = time.monotonic() + self._patience_s
        while not sock.poll(POLL_MS, zmq.POLLOUT):
            self._check()
            if time.monotonic() > give_up_at:
                return  # it will stay silent
        sock.send_multipart(wire.pack(message), zmq.NOBLOCK)

    def _hear(self, sock: sockets.Socket) -> tuple[m.Message | None, list[wire.Buffer]]:
        """The next message, None if there was none for a moment. Raises WireError for one of another version."""
        self._check()
        if not sock.poll(POLL_MS):
            return None, []
        frames: list[wire.Buffer] = list(sock.recv_multipart())
        message = wire.unpack_header(frames[0])
        if isinstance(message, m.VersionMismatch):
            raise WireError("the gateway speaks another version of the wire format", "update one of the two")
        return message, frames[1:]

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped
        if self.interrupted():
            raise Interrupted


def _nobody() -> NetworkError:
    return NetworkError("no gateway is known", "name one under gateways.endpoints, or wait until its name resolves")


@contextmanager
def _connected(way: GatewayWays) -> Iterator[sockets.Socket]:
    context = sockets.make_context()
    endpoint, curve = way.current
    sock = sockets.dealer(context, sockets.resolve(endpoint), curve)
    try:
        yield sock
    finally:
        sock.close(0)
        context.term()


def _so_far(part: Path, nbytes: int) -> tuple[hashlib._Hash, int]:
    """What has come already, hashed; whatever is beyond the file's end is cut off."""
    digest = hashlib.sha256()
    have = 0
    try:
        with part.open("r+b") as file:
            if part.stat().st_size > nbytes:
                file.truncate(0)  # it cannot be the beginning of that file
            while chunk := file.read(CHUNK_NBYTES):
                digest.update(chunk)
                have += len(chunk)
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        pass
    return digest, have
