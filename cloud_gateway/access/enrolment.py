"""How an invited device becomes known while the gateway serves: a thread, since it writes to the disk.

    front thread --take--> [MOST_WAITING] --> judge -> record -> roster -> invitation used --answer--> front thread

A guest may send nothing but Enroll, and few of these; for anything else `take` says no and its connection is ended.
Every token that is shown is on record with what became of it, as long as not too many come: a stranger must not fill
the disk. The roster is written before the invitation is used up: after a crash in between the name is taken, so the
token still lets in nobody else.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from cloud_gateway.access import invitations, roster
from cloud_gateway.access.audit import AuditLog
from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.invitations import Refused
from cloud_gateway.access.limits import Bucket
from cloud_gateway.access.roster import AgentEntry
from protocol import messages as m
from protocol import wire
from protocol.errors import IsthmusError, WireError
from protocol.keys import fingerprint

MOST_WAITING = 16
MOST_ASKED, ASKED_S = 5, 600.0  # by one guest in that time: its answer may be lost, but not that often
MOST_GUESTS = 256  # whose questions are counted
PER_MINUTE = 30  # tokens that are looked at


class _Question(NamedTuple):
    route: bytes
    key: bytes
    enroll: m.Enroll


class Enrolment:
    """`start` starts the thread. Without a folder of keys nobody is enrolled."""

    def __init__(
        self,
        folder: KeyFolder | None,
        audit: AuditLog | None,
        *,
        answer: Callable[[bytes, m.Enrolled], None],
        changed: Callable[[], None] = lambda: None,
        told: Callable[[str, str], None] = lambda event, text: None,
    ) -> None:
        """`answer` is called on our thread with the route and what to say; `changed` when the roster was."""
        self.stats: Counter[str] = Counter()
        self._folder = folder
        self._audit = audit
        self._answer = answer
        self._changed = changed
        self._told = told
        self._asked: OrderedDict[bytes, Bucket] = OrderedDict()
        self._bucket = Bucket.full(PER_MINUTE / 60, size=PER_MINUTE, now=time.monotonic())
        self._questions: queue.Queue[_Question | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._main, name="isthmus-enrolment", daemon=True)

    def start(self) -> None:
        if self._folder is not None:
            self._thread.start()

    def stop(self) -> None:
        """Finish the question at hand. Safe to call twice, and without `start`."""
        if self._thread.is_alive():
            try:
                self._questions.put(None, timeout=5)
            except queue.Full:
                return  # it hangs on a disk; it is a daemon thread
            self._thread.join(timeout=5)

    def take_frame(self, route: bytes, key: bytes, frame: wire.Buffer) -> bool:
        """What a guest has sent, as it came. False: its connection should end."""
        try:
            message = wire.unpack_header(frame)
        except WireError:
            return False
        return isinstance(message, m.Enroll) and self.take(route, key, message)

    def take(self, route: bytes, key: bytes, enroll: m.Enroll) -> bool:
        """A token that `key` (32 bytes, proven by its connection) shows. False: it is not looked at."""
        now = time.monotonic()
        mine = self._asked.pop(key, None) or Bucket.full(MOST_ASKED / ASKED_S, size=MOST_ASKED, now=now)
        self._asked[key] = mine
        while len(self._asked) > MOST_GUESTS:
            self._asked.popitem(last=False)
        if self._folder is None or mine.wait_s(1, now=now) > 0 or self._bucket.wait_s(1, now=now) > 0:
            self.stats["not_looked_at"] += 1
            return False
        mine.take(1, now=now)
        self._bucket.take(1, now=now)
        try:
            self._questions.put_nowait(_Question(route, key, enroll))
        except queue.Full:
            return False
        return True

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            while (question := self._questions.get()) is not None:
                self._answer(question.route, self._enrol(question))
        except BaseException as error:  # the top of the thread: nobody is enrolled until the gateway is restarted
            traceback.print_exception(error, file=sys.stderr)
            self._told("enrolment_crashed", str(error))

    def _enrol(self, question: _Question) -> m.Enrolled:
        who = fingerprint(question.key)
        try:
            answer = self._judged(question)
        except IsthmusError as error:  # the folder or the record cannot be written: nothing was done
            self._told("enrolment_failed", f"{who}: {error}")
            answer = _refusal("this gateway can enrol nobody just now; its log says why")
        self.stats["refused" if answer.refusal else "enrolled"] += 1
        if not answer.refusal:
            self._told("enrolled", f"{answer.name} is known now, with key {who}")
            self._changed()
        return answer

    def _judged(self, question: _Question) -> m.Enrolled:
        folder, audit, enroll, utc = self._folder, self._audit, question.enroll, int(time.time())
        if folder is None or audit is None:
            return _refusal("this gateway has no keys")
        who, shown = f"stranger:{fingerprint(question.key)}", f"invitation {enroll.invitation.hex()}"
        with folder.locked():
            known, holders = folder.invitations(), folder.roster()
            verdict = invitations.judge(
                known, holders, id_=enroll.invitation, secret=enroll.secret, key=question.key, utc=utc
            )
            if not isinstance(verdict, Refused) and not verdict.again:
                entry = AgentEntry(name=verdict.name, key=question.key.hex(), added=utc)
                try:
                    roster.add_agent(holders, entry)
                except IsthmusError as error:
                    verdict = Refused(error.fact)
            if isinstance(verdict, Refused):
                audit.append(who, "keys.enroll", shown, f"refused: {verdict.reason}")
                self._told("enrolment_refused", f"{who}: {verdict.reason}")
                return _refusal(verdict.reason)
            if not verdict.again:
                with audit.act(who, "keys.enroll", f"{verdict.name} {shown}"):
                    folder.change(lambda before: roster.add_agent(before, entry))
                    folder.change_invitations(
                        lambda before: invitations.use(before, enroll.invitation, key=question.key, utc=utc)
                    )
            return m.Enrolled(verdict.name, tuple(m.ServerKey(k.data, k.port) for k in folder.public_keys()[:2]))


def _refusal(reason: str) -> m.Enrolled:
    return m.Enrolled("", (), reason[:900])
