"""mosec: raw bytes in, raw bytes out, its own dynamic batching. `python mosec_tail.py --port P --address 127.0.0.1`"""

from __future__ import annotations

import numpy as np
from mosec import Server, Worker
from tail import DELAY_MS, MAX_BATCH, Tail, tensor


class Serve(Worker):
    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self.tail = Tail()

    def deserialize(self, data: bytes) -> np.ndarray:
        return tensor(data)

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.tail.run(np.stack(data)))

    def serialize(self, data: np.ndarray) -> bytes:
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Serve, num=1, max_batch_size=MAX_BATCH, max_wait_time=int(DELAY_MS))
    server.run()
