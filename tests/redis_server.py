"""As much of Redis as the result cache uses, on loopback, that can be told to misbehave."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from cloud_gateway.cache_redis import RedisShelf


class TinyRedis:
    """A server of RESP on loopback that knows GET, PTTL and SET with PX. `broken` makes it close on every command."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.left_ms = 1000
        self.broken = False
        self.noise = b""  # said instead of an answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Closing alone wakes nobody: the thread would wait on, and accept for whoever is given the descriptor next."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError, ValueError):
            while first := lines.readline():
                words = [lines.read(int(lines.readline()[1:]) + 2)[:-2] for _ in range(int(first[1:]))]
                if self.broken:
                    return
                connection.sendall(self.noise or self._reply(words))

    def _reply(self, words: list[bytes]) -> bytes:
        match words[0].upper():
            case b"GET":
                value = self.values.get(words[1])
                return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)
            case b"PTTL":
                return b":%d\r\n" % (self.left_ms if words[1] in self.values else -2)
            case b"SET":
                self.values[words[1]] = words[2]
                self.left_ms = int(words[words.index(b"PX") + 1])
        return b"+OK\r\n"


@contextlib.contextmanager
def shelf_at(server: TinyRedis) -> Iterator[RedisShelf]:
    """A shelf of answers that runs; its thread must not have ended by a bug."""
    crashed: list[BaseException] = []
    shelf = RedisShelf(f"redis://127.0.0.1:{server.port}/0", timeout_s=2.0, crashed=crashed.append)
    shelf.start()
    yield shelf
    shelf.stop()
    shelf.stop()  # no error
    assert not crashed
