"""Carries out what `update` decides: asks, fetches, verifies, tries, switches; one thread, one thing at a time.

    event -> Update.handle -> record on the disk -> instructions, each of which ends in an event

A file may take hours to come: whatever is wanted or due meanwhile interrupts it, and it goes on where it was left.
So the record on the disk is never behind what was done by more than one instruction, and each may be done twice.
The daemon calls `begin` before it serves, which says what to start and falls back where that cannot be started.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from edge_agent.bundles import update as u
from edge_agent.bundles.courier import Interrupted, Stopped
from edge_agent.bundles.disk import trouble_of
from edge_agent.bundles.picking import Picking
from edge_agent.bundles.policy import MIB, Policy
from edge_agent.bundles.record import Record, Step, UpdateView
from edge_agent.bundles.shelf import Shelf
from edge_agent.bundles.source import BundleRefusedError, Fetches, fetch_bundle, verify_bundle
from edge_agent.bundles.trusting import Trusting, Trusts
from edge_agent.bundles.wishes import Wish, take_wish, wish_waits
from protocol import messages as m
from protocol import wire
from protocol.bundle import Bundle
from protocol.errors import BundleError, InputError, IsthmusError, ModelError, UntrustedError
from protocol.signing import Trust

AGAIN_S = 60.0  # after the disk has refused
LOOK_S = 1.0  # for wishes of the command line


class Updater:
    """`begin`, then `start`; `close` at the end. Everything else may be called by any thread."""

    def __init__(
        self,
        shelf: Shelf,
        *,
        switch: Callable[[Path | None], None],
        smoke: Callable[[Path], str],
        courier: Fetches | None = None,
        trusting: Trusts | None = None,
        policy: Policy | None = None,
        base: Bundle | None = None,
        told: Callable[[str, str], None] = lambda event, text: None,
        crashed: Callable[[BaseException], None] = lambda error: None,
        stop: threading.Event | None = None,
    ) -> None:
        """`switch` lets an agent on the bundle in a folder serve, and raises IsthmusError where none can; None stands
        for `base`, the bundle of the settings (or for nobody). `stop` is the courier's own.
        """
        self.policy = policy or Policy()
        self._shelf = shelf
        self._switch = switch
        self._smoke = smoke
        self._courier = courier
        self._trusting: Trusts = trusting or Trusting()
        self._base = base
        self._told = told
        self._crashed = crashed
        self._stop = stop or threading.Event()
        self._events: queue.SimpleQueue[u.Event | Callable[[], None]] = queue.SimpleQueue()
        self._lock = ExitStack()
        self._update = u.Update(Record(), self.policy.trial, base.digest if base else "")
        self._offers: dict[str, m.Offer] = {}
        self._picking = Picking()
        self._revocations: bytes | None = None
        self._checked_at: float | None = None
        self._heard_at = time.monotonic()  # a gateway told what it offers
        self._check_at = 0.0
        self._again_at = float("inf")  # when to go on where the disk has refused
        self._trouble = ""
        self._disk = ""  # why the record could not be written down
        self._serving = False
        self._fetching = False
        self._thread = threading.Thread(target=self._main, name="isthmus-updates", daemon=True)

    # ---- for the daemon ---------------------------------------------------------------------------------------------

    def begin(self, serve: Callable[[Path | None], None]) -> None:
        """Start serving what is to run: `serve` gets its folder (None: the bundle of the settings).

        Where that cannot be started, what was proven before it is tried next. Raises what `serve` raises when nothing
        is left, InputError if another process has the shelf, and BundleError for a damaged record.
        """
        self.hold()
        while True:
            digest = self._update.record.current
            trouble = self._shelf.trouble(digest) if digest else None
            try:
                if trouble is not None:
                    raise BundleError(f"bundle {digest[:12]} is damaged: {trouble}", "it is fetched again when offered")
                serve(self._shelf.folder(digest) if digest else None)
            except IsthmusError as error:
                settings = isinstance(error, InputError) and not isinstance(error, ModelError)
                if not digest or settings:  # where settings or keys are wrong no bundle is to blame
                    raise
                on_trial = self._update.record.step is Step.ON_TRIAL and trouble is None
                self._note(u.Unusable({digest: error.fact}, for_good=on_trial))
                continue
            break
        self._serving = True
        for instruction in self._note(u.Switched(self._update.record.current)):
            self._carry_out(instruction)

    def hold(self) -> None:
        """Take the shelf, while nobody serves: what is switched to from now on is what the next `begin` starts.

        Raises InputError if another process has it, BundleError for a damaged record.
        """
        if not self._lock.enter_context(self._shelf.lock()):
            raise InputError(f"another process changes the bundles in {self._shelf.root}", "wait for it, or stop it")
        self._update.record = self._shelf.load()
        self._refuse_revoked()

    def start(self) -> None:
        """Go on where the last process stopped, then look for what is new."""
        if self._courier is not None:
            self._courier.interrupted = self._interrupts
        self._thread.start()

    def close(self) -> None:
        """Safe to call twice. What is on its way goes on at the next start."""
        self._stop.set()
        self._events.put(u.Tick())
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        self._lock.close()

    def answered(self, ok: bool) -> None:
        """A request has ended; `ok` is False where the bundle failed. Cheap where nothing is on trial."""
        if self._update.record.step is Step.ON_TRIAL:
            self._events.put(u.Answered(ok))

    def health(self, ok: bool, reason: str = "") -> None:
        """The known question was asked."""
        if self._update.record.step is Step.ON_TRIAL:
            self._events.put(u.Health(ok, reason))

    def check_now(self) -> None:
        """Ask gateways for offers without waiting for the next time."""
        self._events.put(self.check)

    def roll_back(self, reason: str = "an operator went back") -> None:
        self._events.put(u.RollBack(reason))

    def install(self, digest: str) -> None:
        """Take a bundle that was put into `incoming` here, even if it was bad before."""
        self._events.put(u.Offered(digest, again=True, by_hand=True))

    def look(self) -> UpdateView:
        now = time.monotonic()
        fetched = self._courier.fetched_nbytes if self._courier is not None else 0
        return UpdateView(
            self._update.record, self._update.trial(now=now), fetched, self._checked_at, self._disk or self._trouble,
            tuple(self._shelf.held()), now - self._heard_at if self._asks() else None, self._picking.passed_over,
        )  # fmt: skip

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self.handle(u.Started())
            while not self._stop.is_set():
                try:
                    self._turn()
                except IsthmusError as error:  # keys that cannot be read just now, and the like
                    self._complain(str(error))
                except OSError as error:
                    self._complain(trouble_of(error))
        except Stopped:
            pass
        except BaseException as error:  # the top of the thread
            self._crashed(error)

    def _turn(self) -> None:
        try:
            event = self._events.get(timeout=LOOK_S if time.monotonic() < self._again_at else 0.0)
        except queue.Empty:
            event = u.Tick()
        if self._stop.is_set():
            return
        if callable(event):
            event()
        else:
            self.handle(event)
        if (wish := take_wish(self._shelf)) is not None:
            self._grant(wish)
        if self._is_due():
            self.check()
        elif time.monotonic() >= self._again_at:
            self.resume()

    def _asks(self) -> bool:
        return self._courier is not None and self._courier.named() and self.policy.automatic

    def _is_due(self) -> bool:
        return self._asks() and time.monotonic() >= self._check_at

    def _interrupts(self) -> bool:
        """Whether somebody waits for a fetch to make room."""
        return self._fetching and (not self._events.empty() or wish_waits(self._shelf) or self._is_due())

    def handle(self, event: u.Event) -> None:
        """One event and everything that follows from it. On the thread, or before it starts."""
        self._do(self._note(event))

    def resume(self) -> None:
        """Go on where the disk has refused."""
        self._again_at = float("inf")
        self._do(self._update.again())

    def _do(self, todo: list[u.Instruction]) -> None:
        while todo and not self._stop.is_set():
            following = self._carry_out(todo.pop(0))
            if following is not None:
                todo += self._note(following)

    def _note(self, event: u.Event) -> list[u.Instruction]:
        restore, before = self._update.restored(), self._update.record
        instructions = self._update.handle(event, now=time.monotonic())
        if self._update.record == before:
            return instructions
        try:
            self._shelf.save(self._update.record)
        except OSError as error:
            # Going on to what is not written down would leave the next start in the dark; only going back may be.
            if (trouble := f"an update cannot go on: {trouble_of(error)}") != self._disk:  # once
                self._told("update", trouble)
            self._disk = trouble
            if self._update.record.step not in (Step.REVERTING, Step.REVERTED):
                restore()
                self._again_at = time.monotonic() + AGAIN_S
                return []
        else:
            self._disk = ""
        return instructions

    def _carry_out(self, instruction: u.Instruction) -> u.Event | None:
        try:
            match instruction:
                case u.Fetch(bundle):
                    self._fetch(bundle)
                    return u.Fetched()
                case u.Verify(bundle):
                    verify_bundle(self._shelf, bundle, self._trust(), whole=self.policy.whole)
                    return u.Verified()
                case u.Try(bundle):
                    reason = self._smoke(self._shelf.folder(bundle))
                    return u.Failed(reason, for_good=True) if reason else u.Tried()
                case u.Switch(bundle):
                    return self._let_serve(bundle)
                case u.Confirm(bundle):
                    self._accept(bundle)
                case u.Prune():
                    self._shelf.prune(self._update.record.wanted)
                case u.Say(text):
                    self._told("update", text)
        except Interrupted:
            self._again_at = time.monotonic()  # after what is wanted
        except BundleRefusedError as error:
            return u.Failed(str(error), for_good=True)
        except UntrustedError as error:
            if (offer := self._offers.get(self._update.record.candidate)) is not None:
                self._picking.refused(offer, self._trusting.trust(received=True))
                self._shelf.disk.remove(self._shelf.incoming(offer.bundle.hex()))  # else a liar fills the disk
            return u.Failed(str(error), for_good=False)
        except IsthmusError as error:
            return u.Failed(str(error), for_good=False)
        except OSError as error:
            return u.Failed(trouble_of(error), for_good=False)
        return None

    # ---- the steps --------------------------------------------------------------------------------------------------

    def _fetch(self, digest: str) -> None:
        self._fetching = True
        try:
            fetch_bundle(
                self._shelf, digest, self._offers.get(digest), self._courier, self._trust(),
                model=self._model(), whole=self.policy.whole, most_nbytes=self.policy.most_nbytes,
                reserve_nbytes=self.policy.reserve_nbytes, wanted=self._update.record.wanted,
            )  # fmt: skip
        finally:
            self._fetching = False

    def _let_serve(self, digest: str) -> u.Event | None:
        try:
            if self._serving:
                self._switch(self._shelf.folder(digest) if digest else None)
        except IsthmusError as error:
            if self._update.record.step is Step.REVERTING:
                raise RuntimeError(f"what was proven cannot be started again: {error}") from error
            return u.Failed(str(error), for_good=True)
        return u.Switched(digest)

    def _accept(self, digest: str) -> None:
        trust = replace(self._trusting.trust(), floors={}, allow_unsigned=True)
        statement = trust.check(self._shelf.folder(digest))
        if statement is not None:
            self._trusting.accept(statement)

    def _trust(self) -> Trust:
        """Of the candidate. What somebody installed here need not be signed where no key is known, and what somebody
        wants, or went back to, may be older than what ran here.
        """
        record = self._update.record
        kept = record.asked or record.candidate == record.back_to
        return self._trusting.trust(received=not record.by_hand, kept=kept)

    def _model(self) -> str:
        if self.policy.model:
            return self.policy.model
        current = self._update.record.current
        if current:
            return self._shelf.opened(self._shelf.folder(current), current).manifest.model.name
        return self._base.manifest.model.name if self._base is not None else ""

    # ---- what is new ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Ask for offers and revocations, and take the newest bundle that is not known to be bad. On the thread."""
        self._checked_at = time.monotonic()
        self._check_at = self._checked_at + self.policy.check_every_s
        if self._courier is None:
            return
        trust = self._trusting.trust(received=True)
        try:
            found = self._courier.offers(self._model())
        except IsthmusError as error:
            self._complain(str(error))
            return
        self._heard_at = time.monotonic()
        if not trust.keys and not trust.allow_unsigned:
            self._complain("nothing is taken over the air: no key is known to check it with; `edge-agent keys trust`")
            return
        self._take_revocations(found)
        self._offers = {offer.bundle.hex(): offer for offer in found.offers}
        self._trouble = wire.printable(found.reason)
        record = self._update.record
        if (offer := self._picking.pick(found.offers, record, trust)) is not None:
            self.handle(u.Offered(offer.bundle.hex()))

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:  # once
            self._told("no_offers", trouble)
        self._trouble = trouble

    def _take_revocations(self, found: m.Offers) -> None:
        if found.revocations is None or found.revocations == self._revocations or self._courier is None:
            return
        if found.revocations_nbytes > MIB:
            self._complain(f"a list of revocations of {found.revocations_nbytes} bytes is not taken")
            return
        part = self._shelf.part(sha := found.revocations.hex())
        try:
            self._courier.fetch(sha, found.revocations_nbytes, part, self._shelf.disk)
            self._trusting.take_revocations(part.read_bytes())
        except IsthmusError as error:
            self._complain(str(error))
        else:
            self._revocations = found.revocations
            self._refuse_revoked()
        finally:
            self._shelf.disk.remove(part)

    def _refuse_revoked(self) -> None:
        revocations = self._trusting.trust(received=True).revocations
        revoked = revocations.bundles if revocations else {}
        if named := {d: f"it was revoked: {revoked[d]}" for d in self._update.record.wanted if d in revoked}:
            self.handle(u.Unusable(named, for_good=True))

    def _grant(self, wish: Wish) -> None:
        """What an operator asked for on the command line."""
        match wish.act:
            case "install":
                self.handle(u.Offered(wish.bundle, again=True, by_hand=True))
            case "fetch":
                self.check()
                self.handle(u.Offered(wish.bundle, again=True))
            case "roll back":
                self.handle(u.RollBack(wish.reason or "an operator went back"))
            case "check":
                self.check()
            case "prune":
                self._shelf.prune(self._update.record.wanted)
