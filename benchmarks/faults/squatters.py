"""Who may stand where the gateway should be: a web server, or somebody who says anything at all."""

from __future__ import annotations

import contextlib
import http.server
import random
import socket
import socketserver
import threading
from collections.abc import Iterator

GARBAGE_NBYTES = 4096


class _Web(http.server.BaseHTTPRequestHandler):
    def handle_one_request(self) -> None:
        """Answer whatever comes in as a web server does that does not understand it."""
        with contextlib.suppress(OSError):
            self.connection.settimeout(1.0)
            self.connection.recv(4096)
            self.wfile.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.close_connection = True


class _Noise(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        connection: socket.socket = self.request
        with contextlib.suppress(OSError):
            connection.sendall(random.randbytes(GARBAGE_NBYTES))
            connection.settimeout(1.0)
            connection.recv(4096)


@contextlib.contextmanager
def web_server(port: int) -> Iterator[None]:
    """A web server on this port of loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), _Web) as server, _served(server):
        yield


@contextlib.contextmanager
def noise(port: int) -> Iterator[None]:
    """Random bytes for whoever connects to this port of loopback."""

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server(("127.0.0.1", port), _Noise) as server, _served(server):
        yield


@contextlib.contextmanager
def _served(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
