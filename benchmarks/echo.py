"""The least that a round trip can cost: a ROUTER that takes a message and answers with 64 bytes. `python -m
benchmarks.echo` prints `ready ENDPOINT`; one thread, no engine, nothing looked at, nothing copied."""

from __future__ import annotations

import zmq

ANSWER = bytes(64)


def main() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    print(f"ready tcp://127.0.0.1:{port}", flush=True)
    while True:
        frames = router.recv_multipart(copy=False)
        router.send_multipart([frames[0], frames[1], ANSWER], copy=False)


if __name__ == "__main__":
    main()
