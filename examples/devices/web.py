"""A small web application: post a picture, get an answer as JSON.  python -m examples.devices.web --port 8000

    curl --data-binary @digit.png http://127.0.0.1:8000/

Only Python's own server and the local client: every thread of the server has a connection of its own to the daemon. It
listens on this machine alone.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from edge_agent.local_client import LocalClient, Refusal
from examples.devices.asking import ended, parser, picture_input
from protocol import images
from protocol.errors import InputError, NetworkError
from protocol.tensors import TensorSpec

MOST_NBYTES = 16 << 20
STATUS = {"DEADLINE": 504, "BAD_REQUEST": 400}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--port", type=int, default=8000, help="0 picks one")
    given = options.parse_args()
    with LocalClient(given.socket) as client:
        spec = picture_input(client)
        server = ThreadingHTTPServer(("127.0.0.1", given.port), answering(client, spec, given.deadline_ms / 1e3))
        print(f"ready http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


def answering(client: LocalClient, spec: TensorSpec, deadline_s: float) -> type[BaseHTTPRequestHandler]:
    """What answers one connection."""

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > MOST_NBYTES:
                self.tell(413, {"error": f"send a picture of at most {MOST_NBYTES} bytes"})
                return
            try:
                picture = images.load_picture(self.rfile.read(int(length)), spec)
                outcome = client.infer({spec.name: picture}, deadline_s=deadline_s)
            except InputError as error:
                self.tell(400, {"error": str(error)})
            except NetworkError as error:
                self.tell(502, {"error": str(error)})
            else:
                if isinstance(outcome, Refusal):
                    self.tell(STATUS.get(outcome.code, 503), {"error": outcome.reason, "code": outcome.code})
                else:
                    outputs = {name: array.tolist() for name, array in outcome.outputs.items()}
                    self.tell(200, {"outputs": outputs, "placement": outcome.placement, "bundle": outcome.bundle})

        def tell(self, status: int, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """The daemon counts."""

    return Answering


if __name__ == "__main__":
    ended(main)
