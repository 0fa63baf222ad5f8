"""The thread that reads files for devices: bounded per peer, paced over all of them, off the sockets' thread.

    front thread --ask--> [questions] --pace--> read --answer--> front thread

A question is answered at once where that needs no disk: by `ask` itself. At most WINDOW questions of a peer wait, and
MOST_WAITING in all; whoever asks for more is told when to ask again. Nothing is kept of what a peer has been sent.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from cloud_gateway.offers.offered import OfferedBundle, OfferedFile, OfferedRevocations, signature_stamp
from protocol import messages as m
from protocol import wire
from protocol.errors import BundleError, IsthmusError
from protocol.pace import Pace

WINDOW = 8  # parts that one peer may have asked for and not yet been sent: 1 MiB
MOST_WAITING = 256
LOOK_S = 1.0  # offers are made anew at most this often
RETRY_S = 0.25
BURST_NBYTES = 4 * wire.PART_NBYTES


class Served(Protocol):
    """A version that requests find."""

    @property
    def name(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def folder(self) -> Path: ...


class Brought(NamedTuple):
    """An answer that is ready to be sent to `route`."""

    route: bytes
    message: m.Message
    payload: tuple[bytes, ...] = ()


class _Question(NamedTuple):
    route: bytes
    message: m.AskOffers | m.FetchPart


class Offering:
    """`start` starts the thread; `ask` may be called before, and is answered then. Thread-safe."""

    def __init__(
        self,
        served: Callable[[], Iterable[Served]],
        answer: Callable[[Brought], None],
        *,
        offer: tuple[str, ...],
        rate: float,
        revocations: Path | None = None,
        server_keys: Callable[[], tuple[m.ServerKey, ...]] = lambda: (),
        told: Callable[[str, str], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        """`offer` names models, `*` all of them; `rate` is in bytes a second for all devices together. With every
        offer `server_keys` are told.
        """
        self.stats: Counter[str] = Counter()
        self._served = served
        self._answer = answer
        self._offer = offer
        self._revocations = revocations
        self._revoked: OfferedRevocations | None = None
        self._server_keys = server_keys
        self._told = told
        self._crashed = crashed
        self.pace = Pace(rate=rate, burst_nbytes=BURST_NBYTES, now=time.monotonic())
        self._wake = threading.Condition()
        self._waiting: deque[_Question] = deque()
        self._of_peer: Counter[bytes] = Counter()
        self._stopped = False
        self._bundles: dict[str, OfferedBundle | None] = {}  # by digest; None for one that cannot be offered
        self._files: dict[bytes, OfferedFile] = {}
        self._names: dict[str, set[str]] = {}  # by bundle digest: what its model is called
        self._stamps: dict[str, object] = {}  # by bundle digest: of its signature, which may come later
        self._looked_at = -LOOK_S
        self._unknown: tuple[str, ...] = ()  # names that are to be offered, and are not served
        self._thread = threading.Thread(target=self._main, name="isthmus-offers", daemon=True)

    # ---- for the door -----------------------------------------------------------------------------------------------

    def ask(self, route: bytes, message: m.AskOffers | m.FetchPart) -> m.Message | None:
        """An answer at once, or None: it comes by `answer`."""
        if not self._offer:
            return self._nothing(message)
        with self._wake:
            if len(self._waiting) >= MOST_WAITING or self._of_peer[route] >= WINDOW:
                self.stats["busy"] += 1
                if isinstance(message, m.AskOffers):
                    return m.Offers((), "too much is asked for at once")
                reason = f"at most {WINDOW} parts may be asked for at once"
                return m.NoPart(message.file, message.offset, m.NoPartCode.BUSY, reason, int(RETRY_S * 1e6))
            self._of_peer[route] += 1
            self._waiting.append(_Question(route, message))
            self._wake.notify()
        return None

    def retune(self, *, offer: tuple[str, ...], rate: float) -> None:
        """Offer other models, or more slowly, from now on."""
        with self._wake:
            self._offer = offer
            self._looked_at = -LOOK_S
            self.pace.retune(rate, now=time.monotonic())

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What still waits is not answered: devices go on elsewhere. Safe to call twice, and without `start`."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _nothing(self, message: m.AskOffers | m.FetchPart) -> m.Message:
        reason = "this gateway offers no bundles: name models under updates.offer in its settings"
        if isinstance(message, m.AskOffers):
            return m.Offers((), reason, server=self._server_keys())
        return m.NoPart(message.file, message.offset, m.NoPartCode.UNKNOWN, reason)

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._look(time.monotonic())
            while (question := self._next()) is not None:
                brought = self._serve(question)
                nbytes = sum(map(len, brought.payload))
                if nbytes and not self._rest(self.pace.take(nbytes, now=time.monotonic())):
                    return
                self._answer(brought)
                with self._wake:
                    self._of_peer[question.route] -= 1
                    if not self._of_peer[question.route]:
                        del self._of_peer[question.route]
        except BaseException as error:  # the top of the thread
            self._crashed(error)

    def _next(self) -> _Question | None:
        with self._wake:
            while not self._waiting and not self._stopped:
                self._wake.wait()
            return None if self._stopped else self._waiting.popleft()

    def _rest(self, wait_s: float) -> bool:
        """Sleep for the pace's sake; whether to go on."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopped, timeout=wait_s)
            return not self._stopped

    def _serve(self, question: _Question) -> Brought:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:
            self._look(now)
        route, message = question
        if isinstance(message, m.AskOffers):
            self.stats["asked"] += 1
            return Brought(route, self._offers(message.model))
        return self._part(route, message)

    def _offers(self, model: str) -> m.Offers:
        bundles = [b for d, b in self._bundles.items() if b is not None and (not model or model in self._names[d])]
        revoked = self._revoked
        told = (*((revoked.digest, revoked.file.nbytes) if revoked is not None else (None, 0)), self._server_keys())
        if bundles:
            return m.Offers(tuple(b.offer for b in bundles[:64]), "", *told)
        which = f"no bundle of a model called {model[:100]!r}" if model else "no bundle just now"
        return m.Offers((), f"this gateway offers {which}", *told)

    def _part(self, route: bytes, fetch: m.FetchPart) -> Brought:
        def refused(code: m.NoPartCode, reason: str) -> Brought:
            self.stats[f"refused_{code}"] += 1
            return Brought(route, m.NoPart(fetch.file, fetch.offset, code, reason[:900]))

        file = self._files.get(fetch.file)
        if file is None:
            return refused(m.NoPartCode.UNKNOWN, "no bundle that this gateway offers holds that file")
        if fetch.offset > file.nbytes or (fetch.offset == file.nbytes and file.nbytes):
            return refused(m.NoPartCode.RANGE, f"that file ends at {file.nbytes}")
        try:
            data = file.read(fetch.offset, fetch.nbytes)
        except BundleError as error:
            self._told("offer_unreadable", str(error))
            return refused(m.NoPartCode.UNREADABLE, error.fact)
        self.stats["parts"] += 1
        self.stats["nbytes"] += len(data)
        part = m.FilePart(fetch.file, fetch.offset, len(data), file.nbytes, wire.checksum((data,)))
        return Brought(route, part, (data,) if data else ())

    # ---- what is offered --------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Offer what is served now, of what the settings name."""
        self._looked_at = now
        names: dict[str, set[str]] = {}
        bundles: dict[str, OfferedBundle | None] = {}
        for version in self._served():
            if version.format != "bundle":
                continue
            if self._stamps.get(version.digest) != (stamp := signature_stamp(version.folder)):
                self._bundles.pop(version.digest, None)  # signed since
            self._stamps[version.digest] = stamp
            known = self._bundles[version.digest] if version.digest in self._bundles else self._open(version)
            called = {version.name} | ({known.offer.model} if known is not None else set())
            if known is None or "*" in self._offer or called & set(self._offer):
                bundles[version.digest] = known
                names.setdefault(version.digest, set()).update(called)
        self._bundles, self._names = bundles, names
        self._say_unknown(set(self._offer) - {"*"} - set().union(*names.values()))
        self._files = {digest: file for b in bundles.values() if b is not None for digest, file in b.files.items()}
        if self._revocations is not None:
            try:
                self._revoked = OfferedRevocations.open(self._revocations)
            except IsthmusError as error:  # devices keep the list that they know
                self._told("revocations_unreadable", str(error))
        if self._revoked is not None:
            self._files[self._revoked.digest] = self._revoked.file

    def _say_unknown(self, names: set[str]) -> None:
        """A name that means nothing is a mistake in the settings, or of a model that does not load."""
        unknown, before = tuple(sorted(names)), self._unknown
        self._unknown = unknown
        if unknown and unknown != before:
            named = ", ".join(map(repr, unknown))
            self._told("offer_unknown", f"updates.offer names {named}: no such bundle is served, none is offered")

    def _open(self, version: Served) -> OfferedBundle | None:
        try:
            return OfferedBundle.open(version.folder)
        except (IsthmusError, OSError) as error:
            self._told("not_offered", f"{version.name}: {error}")
            return None
