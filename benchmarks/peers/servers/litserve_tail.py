"""LitServe: a multipart upload in (it has no path for raw bytes), raw bytes out. `python litserve_tail.py PORT`

Annotations are real types here, not strings: LitServe compares decode_request's with Request to read the form.
"""

import sys

import litserve
import numpy as np
from fastapi import Request, Response
from tail import DELAY_MS, MAX_BATCH, Tail, tensor


class Serve(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.tail = Tail()

    def decode_request(self, request: Request) -> np.ndarray:
        return tensor(request["x"].file.read())

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.tail.run(x)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> Response:
        return Response(content=output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    api = Serve(max_batch_size=MAX_BATCH, batch_timeout=DELAY_MS / 1e3)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=20)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="warning"
    )
