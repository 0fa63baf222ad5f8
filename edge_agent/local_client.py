"""Typed clients of the daemon that runs on this device: deadlines are mandatory, arrays go in and come out.

    with LocalClient("/var/lib/isthmus/run/agent.sock") as client:
        answer = unwrap(client.infer({"image": frame}, deadline_s=0.5))

    async with AsyncLocalClient("http://127.0.0.1:7490") as client:
        outcome = await client.infer({"image": frame}, deadline_s=0.5)

They load neither an engine nor ZeroMQ. `infer` returns an `Answer` or a `Refusal`, as the embedded clients of
`edge_agent.client` do; `unwrap` turns the latter into an exception. Who stops waiting, by an interrupt or by the
cancellation of a task, hangs up, and the daemon withdraws the request. If the daemon is killed, what it had not
answered is gone: NetworkError says so, and asking again is safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from edge_agent import local_messages as messages
from edge_agent.outcomes import Answer, Outcome, Refusal, RefusedError, unwrap
from protocol.control.flights import RefusalCode
from protocol.errors import InputError, NetworkError
from protocol.tensors import Tensors, TensorSpec
from protocol.unix_sockets import connect_unix

__all__ = ["Answer", "AsyncLocalClient", "LocalClient", "Outcome", "Refusal", "RefusedError", "unwrap"]

ASK_S = 10.0  # for everything but an inference
_GRACE_S = 1.0  # beyond the deadline: an answer may just be on its way
_DAY_S = 86_400.0
_OCTETS = "application/octet-stream"


class LocalClient:
    """Blocking calls; may be used by several threads at once, each with a connection of its own."""

    def __init__(self, where: str | Path, *, model: str | None = None) -> None:
        """`where` is the path of a Unix socket or http://HOST:PORT. Connects nowhere. Raises InputError."""
        self._where = str(where)
        self._path, self._address = _place(self._where)
        self._model = model
        self._own = threading.local()
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()

    def infer(self, inputs: Tensors, *, deadline_s: float, priority: int | None = None) -> Outcome:
        """One request, answered or refused within `deadline_s` seconds; priority 0 (first) .. 9.

        Raises InputError for tensors that the model does not take, NetworkError if no daemon answers.
        """
        return self._infer(inputs, deadline_s, priority, _Call())

    def _infer(self, inputs: Tensors, deadline_s: float, priority: int | None, call: _Call) -> Outcome:
        if not 0 < deadline_s <= _DAY_S:
            raise InputError(f"deadline of {deadline_s} s", "give the seconds that you can wait, for example 0.5")
        request = messages.encode(inputs, deadline_s=deadline_s, priority=priority)
        headers = {
            "Content-Type": _OCTETS,
            "Content-Length": str(request.nbytes),
            "Inference-Header-Content-Length": str(request.json_nbytes),
        }
        path = f"/v2/models/{urllib.parse.quote(self.model, safe='')}/infer"
        try:
            status, found, body = self._call("POST", path, request.parts, headers, deadline_s + _GRACE_S, call)
        except TimeoutError:
            return Refusal("", RefusalCode.DEADLINE, f"{self._where} has not answered in time", 0.0)
        if status != 200:
            return messages.refusal(status, body)
        length = found.get("inference-header-content-length", "")
        return messages.decode(memoryview(body), int(length) if length.isdigit() else len(body))

    @property
    def model(self) -> str:
        """The name of what the daemon serves. Raises NetworkError."""
        if self._model is None:
            self._model = messages.only_model(self._ask("POST", "/v2/repository/index"))
        return self._model

    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""
        return messages.described(self._ask("GET", f"/v2/models/{urllib.parse.quote(self.model, safe='')}")).specs()

    def document(self, path: str) -> dict[str, Any]:
        """A JSON document of the daemon, such as `/v2/isthmus/status`. Raises NetworkError, InputError."""
        try:
            found = msgspec.json.decode(self._ask("GET", path), type=dict[str, Any])
        except InputError as error:  # an edge-agent has all that is asked for here: this may be a gateway
            raise messages.stranger(error.fact) from error
        except msgspec.MsgspecError as error:
            raise messages.stranger(str(error)) from error
        return found

    def is_ready(self) -> bool:
        """Whether the daemon answers, and is well."""
        try:
            status, _, _ = self._call("GET", "/v2/health/ready", [], {}, ASK_S)
        except (NetworkError, TimeoutError):
            return False
        return status == 200

    def close(self) -> None:
        """Close every thread's connection. Safe to call twice."""
        with self._lock:
            left, self._open = self._open, set()
        for connection in left:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str) -> bytes:
        try:
            status, _, body = self._call(method, path, [b"{}"] if method == "POST" else [], {}, ASK_S)
        except TimeoutError as error:
            raise NetworkError(f"{self._where} has not answered within {ASK_S:g} s", "see its log") from error
        if status != 200:
            refused = messages.refusal(status, body)  # raises for what the caller has to mend
            raise NetworkError(f"{self._where} refuses: {refused.reason}", "try again later")
        return body

    def _call(
        self,
        method: str,
        path: str,
        parts: list[bytes | memoryview],
        headers: dict[str, str],
        timeout_s: float,
        call: _Call | None = None,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Raises TimeoutError, or NetworkError if nobody answers. An idle connection may be closed: once more then."""
        connection, is_used = self._connection()
        call = call or _Call()
        headers = {"Content-Length": str(sum(map(len, parts))), **headers}
        while True:
            try:
                connection.timeout = timeout_s
                if connection.sock is None:
                    connection.connect()
                connection.sock.settimeout(timeout_s)
                call.begin(connection.sock)
                connection.request(method, path, iter(parts), headers)
                answer = connection.getresponse()
                body = answer.read()
                call.end()
                return answer.status, answer.headers, body
            except TimeoutError:
                connection.close()  # its answer may still come: nobody else shall read it
                raise
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if is_used and not call.is_broken_off:
                    is_used = False
                    continue
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                if isinstance(error, PermissionError):
                    remedy = "ask as its user, join that user's group, or give --socket http://127.0.0.1:7490"
                    raise NetworkError(f"{self._where} may not be opened ({reason})", remedy) from error
                raise NetworkError(
                    f"no edge-agent answers at {self._where} ({reason})", "start one with `edge-agent run`"
                ) from error
            except BaseException:  # interrupted: nobody reads the answer
                connection.close()
                raise

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection(*self._address) if self._path is None else _OverUnix(self._path)
            self._own.connection = connection
        with self._lock:
            self._open.add(connection)
        return connection, connection.sock is not None


class AsyncLocalClient:
    """The same for asyncio: up to `concurrency` requests at once, each on a thread, so that no loop ever waits."""

    def __init__(self, where: str | Path, *, model: str | None = None, concurrency: int = 8) -> None:
        self._client = LocalClient(where, model=model)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="isthmus-client")

    async def infer(self, inputs: Tensors, *, deadline_s: float, priority: int | None = None) -> Outcome:
        """One request, answered or refused within `deadline_s` seconds. Raises InputError, NetworkError."""
        call = _Call()
        work = partial(self._client._infer, inputs, deadline_s, priority, call)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except asyncio.CancelledError:
            call.break_off()
            raise

    async def document(self, path: str) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._client.document, path)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._client.close()


class _Call:
    """One request on its connection, which another thread may break off."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.is_broken_off = False

    def begin(self, sock: socket.socket) -> None:
        """Raises ConnectionAbortedError if nobody wants it any more."""
        with self._lock:
            if self.is_broken_off:
                raise ConnectionAbortedError("the request was withdrawn")
            self._socket = sock

    def end(self) -> None:
        """From now on the connection is another call's."""
        with self._lock:
            self._socket = None

    def break_off(self) -> None:
        """Hang up, whatever the call is waiting for. Without effect on one that has ended."""
        with self._lock:
            self.is_broken_off = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)


class _OverUnix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = connect_unix(self._path, self.timeout or ASK_S)


def _place(where: str) -> tuple[Path | None, tuple[str, int]]:
    """A socket's path, or host and port. Raises InputError."""
    if "://" not in where:
        return Path(where.removeprefix("unix:")), ("", 0)
    try:
        parts = urllib.parse.urlsplit(where)
        if parts.scheme == "http" and parts.hostname and parts.path in ("", "/") and not parts.query:
            return None, (parts.hostname, parts.port or 80)
    except ValueError:  # a port that is no number
        pass
    raise InputError(f"{where!r} is not where an edge-agent listens", "give a socket's path or http://HOST:PORT")
