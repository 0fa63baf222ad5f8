"""Who may come in by the ZeroMQ door: a thread that answers libzmq's questions, and a table that the door looks into.

libzmq asks once, when a connection is made. Whoever is revoked later keeps the connection: so the door asks `refusal`
for every message. The folder of keys is looked at every second; what was changed there holds from then on, and a folder
that cannot be read any more changes nothing for those who are in, while newcomers are told to try again.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable

from cloud_gateway.access import invitations, zap
from cloud_gateway.access.folder import KeyFolder, ServerKeys
from cloud_gateway.access.limits import Bucket
from cloud_gateway.access.roster import Table
from cloud_gateway.access.zap import PlainText
from protocol import messages as m
from protocol import sockets
from protocol.errors import InputError
from protocol.sockets import Endpoint

LOOK_IVL_S = 1.0
# A guest that says nothing keeps its connection: so few come in that they cannot use up what agents need.
GUESTS, GUESTS_S = 32, 600.0
ANONYMOUS = ""  # the user id of a connection in plain text


class Authority:
    """Constructing reads the folder and raises InputError if it cannot be read; `start` answers from then on.

    Without a folder there are no keys: plain text is taken, from this machine or (`insecure`) from everywhere.
    """

    def __init__(
        self,
        folder: KeyFolder | None,
        *,
        insecure: bool = False,
        told: Callable[[str, str], None] = lambda event, text: None,
        is_full: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_full`: nobody else may come in just now; asked whenever a connection is made."""
        self.stats: Counter[str] = Counter()
        self._folder = folder
        self._is_full = is_full
        self._told = told  # event and sentence, for the log
        self._plain_text = PlainText.NOWHERE
        if folder is None:
            self._plain_text = PlainText.ANYWHERE if insecure else PlainText.THIS_MACHINE
        self._server: ServerKeys | None = None
        self._beside: dict[int, bytes] = {}  # other ports, with the server secret that answers there
        self._table: Table | None = None
        self._readable = True
        self._stamp: tuple[object, ...] | None = None
        self._moved: Callable[[], None] = lambda: None
        self._look_soon = False
        self._guests = Bucket.full(GUESTS / GUESTS_S, size=GUESTS, now=time.monotonic())
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if folder is not None:
            self._stamp = folder.stamp()
            self._read(folder, time.time())

    # ---- for the door -----------------------------------------------------------------------------------------------

    @property
    def table(self) -> Table | None:
        """Who is known, as last read; None without a folder."""
        return self._table

    def refusal(self, user_id: str) -> str | None:
        """Why a message that bears `user_id` must not be served, if so. Called for every message."""
        if self._table is None or user_id in self._table.user_ids:
            return None
        return "your key was revoked or has expired"

    def key_of(self, user_id: str) -> bytes | None:
        """The key that this connection has proven, a guest's too; None if nobody who is known bears `user_id`."""
        agents = self._table.agents if self._table is not None else {}
        return zap.guest_key(user_id) or next((k for k, a in agents.items() if a.user_id == user_id), None)

    def look_soon(self) -> None:
        """The folder was just changed: do not wait for the next look. From any thread."""
        self._look_soon = True

    def server_keys(self) -> tuple[m.ServerKey, ...]:
        """By what this gateway is known: its key and, while that is being replaced, the next. From any thread."""
        if (server := self._server) is None:
            return ()
        told = [m.ServerKey(server.current.public.data)]
        return (*told, m.ServerKey(server.next.public.data, server.next_port)) if server.next is not None else (*told,)

    @staticmethod
    def tenant(user_id: str) -> str:
        """The name of whoever bears `user_id`; empty for plain text."""
        return user_id.partition("/")[0]

    def secrets(self, at: Endpoint) -> dict[Endpoint, bytes]:
        """Where the door must listen, and with which server secret, if it was asked to listen `at`."""
        if self._server is None:
            return {}
        wanted = {at: self._server.current.secret}
        for port, secret in self._beside.items():
            wanted.setdefault(at._replace(port=port), secret)
        return wanted

    # ---- the thread -------------------------------------------------------------------------------------------------

    def start(self, context: sockets.Context, moved: Callable[[], None] = lambda: None) -> None:
        """Answer for every socket of `context`. `moved` is called (on our thread) whenever `secrets` have changed.

        Raises NetworkError if somebody else answers already. Call it before the first bind.
        """
        sock = sockets.gatekeeper(context)
        self._moved = moved
        self._thread = threading.Thread(target=self._main, args=(sock,), name="isthmus-authority", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer nobody any more. Safe to call twice, and without `start`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _main(self, sock: sockets.Socket) -> None:
        try:
            looked_at = time.monotonic()
            while not self._stop.is_set():
                if sock.poll(250):
                    self._answer(sock)
                if self._look_soon or time.monotonic() - looked_at >= LOOK_IVL_S:
                    self._look_soon = False
                    looked_at = time.monotonic()
                    self.look(utc=time.time())
        except BaseException as error:  # the top of the thread: nobody new comes in until the gateway is restarted
            traceback.print_exception(error, file=sys.stderr)
            self._told("authority_crashed", str(error))
        finally:
            sock.close(0)

    def _answer(self, sock: sockets.Socket) -> None:
        request = zap.parse(frames := sock.recv_multipart())
        if request is None:
            reply = zap.Reply(500, "a request that is not ZAP 1.0")
        else:
            table = self._table if self._readable else None
            crowded = self._guests.wait_s(1, now=time.monotonic()) > 0
            reply = zap.decide(
                request, table, domain=sockets.ZAP_DOMAIN, plain_text=self._plain_text, utc=time.time(), crowded=crowded
            )
            if reply.user_id.startswith("?"):
                self._guests.take(1, now=time.monotonic())
            if reply.status == 200 and self._is_full():
                reply = zap.Reply(300, "as many agents are connected as may be")
        self.stats[f"zap_{reply.status}"] += 1
        if reply.status != 200:
            self._told("connection_refused", f"{request.address if request else 'somebody'}: {reply.text}")
        sock.send_multipart(reply.frames(frames[1] if len(frames) > 1 else b""))

    # ---- the folder -------------------------------------------------------------------------------------------------

    def look(self, *, utc: float) -> None:
        """Read the folder again if it was changed, or if somebody's time is up since."""
        folder, table = self._folder, self._table
        if folder is None or table is None:
            return
        stamp = folder.stamp()
        if stamp == self._stamp and utc < table.stands_until and self._readable:
            return
        try:
            before = self._server
            self._read(folder, utc)
        except InputError as error:
            if self._readable or stamp != self._stamp:
                self._told("keys_unreadable", str(error))
            self._readable, self._stamp = False, stamp
            return
        if stamp != self._stamp:
            self._told("keys_read", f"{folder.path} was changed")
        self._readable, self._stamp = True, stamp
        if self._server != before:
            self._moved()

    def _read(self, folder: KeyFolder, utc: float) -> None:
        server, roster = folder.server_keys(), folder.roster()
        guests_until = invitations.guests_until(folder.invitations(), utc=utc)
        if server.next is not None and server.next_port is not None:
            self._beside = {server.next_port: server.next.secret}
        elif server.current.secret not in self._beside.values():
            self._beside = {}  # else a rotation has ended: whoever is connected there already may stay
        self._server, self._table = server, Table.of(roster, utc=utc, guests_until=guests_until)
