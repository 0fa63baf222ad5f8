"""A client in one file that speaks docs/wire.md with nothing of this project: pyzmq, msgpack and numpy alone.

    python examples/foreign_client.py --gateway tcp://127.0.0.1:7447 --bundle BUNDLE --input DATA.npz --count 5

It lets the gateway run the whole model (the full-cloud placement) on one sample after the other and prints a line for
each answer. DATA.npz holds one array per model input, its first axis counting samples.

Exit codes: 0 answered, 2 wrong command line, 3 the input does not fit, 4 no usable bundle, 6 no answer in time,
8 the gateway speaks another version or breaks the format, 9 the gateway refused.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import zmq

VERSION = 1
PART_NBYTES = 128 * 1024
EXACT = ("raw", "zstd")
MISMATCH, HELLO, WELCOME, NEED_HELLO, INFER, RESULT, REJECT = range(7)

Array = npt.NDArray[Any]


class Trouble(Exception):  # noqa: N818 - it is one sentence and an exit code
    def __init__(self, exit_code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class Gateway:
    """One connection: greet, ask, and match answers by request id."""

    def __init__(self, endpoint: str, model_digest: bytes, timeout_s: float) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self.boot = os.urandom(8)
        self.model_digest = model_digest
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in ((zmq.LINGER, 0), (zmq.IMMEDIATE, 1), (zmq.SNDTIMEO, int(timeout_s * 1000))):
            self.socket.setsockopt(option, value)
        self.socket.connect(endpoint)

    def send(self, kind: int, fields: list[Any], parts: list[bytes] | None = None) -> None:
        try:
            self.socket.send_multipart([bytes((VERSION, kind)) + msgpack.packb(fields), *(parts or [])])
        except zmq.Again:
            raise Trouble(6, f"no gateway at {self.endpoint} within {self.timeout_s:g} s") from None

    def receive(self, until: float) -> tuple[int, list[Any], list[bytes]]:
        if not self.socket.poll(max(0, math.ceil((until - time.monotonic()) * 1000))):
            raise Trouble(6, f"{self.endpoint} did not answer within {self.timeout_s:g} s")
        header, *parts = self.socket.recv_multipart()
        if header[:2] == bytes((0, MISMATCH)):
            oldest, newest = msgpack.unpackb(header[2:])[:2]
            raise Trouble(8, f"the gateway speaks versions {oldest} to {newest} but this client speaks {VERSION}")
        if len(header) < 3 or header[0] != VERSION:
            raise Trouble(8, f"{self.endpoint} sent something that is no message of version {VERSION}")
        try:
            return header[1], msgpack.unpackb(header[2:]), parts
        except (ValueError, msgpack.UnpackException) as error:
            raise Trouble(8, f"{self.endpoint} sent a header that does not decode ({error!r})") from None

    def greet(self, segment: bytes) -> None:
        self.send(HELLO, [self.boot, "foreign-client", "foreign-client 1", self.model_digest])
        until = time.monotonic() + self.timeout_s
        while True:
            kind, fields, _ = self.receive(until)
            if kind == WELCOME:
                if segment not in fields[4]:
                    raise Trouble(9, "the gateway does not hold this bundle's full model; serve this very bundle")
                return

    def infer(self, sequence: int, segment: bytes, inputs: dict[str, Array]) -> tuple[list[Any], dict[str, Array]]:
        """Returns the fields of the Result and its tensors. One request at a time, so credit is never an issue."""
        payload = [np.ascontiguousarray(a).tobytes() for a in inputs.values()]
        parts = [data[at : at + PART_NBYTES] for data in payload for at in range(0, len(data), PART_NBYTES)]
        tensors = [[n, a.dtype.name, list(a.shape), "raw", a.nbytes] for n, a in inputs.items()]
        request = [self.boot, sequence]
        until = time.monotonic() + self.timeout_s
        attempt = 0
        while True:
            attempt += 1  # the same id: the gateway never runs it twice
            budget_us = int(max(until - time.monotonic(), 0.0) * 0.9e6)  # a tenth is kept for the way there and back
            self.send(INFER, [request, segment, attempt, budget_us, 4, tensors, zlib.crc32(b"".join(payload))], parts)
            kind, fields, answer = self.receive(until)
            while kind not in (RESULT, REJECT, NEED_HELLO) or (kind != NEED_HELLO and fields[0] != request):
                kind, fields, answer = self.receive(until)
            if kind == NEED_HELLO:  # it was restarted: greet, then ask again
                self.greet(segment)
                continue
            if kind == REJECT:
                later = f"; come back in {fields[5] / 1e6:.2f} s" if fields[5] else ""
                raise Trouble(9, f"the gateway refused ({fields[2]}): {fields[3]}{later}")
            return fields, unpack_tensors(fields[2], fields[3], answer)


def unpack_tensors(tensors: list[list[Any]], checksum: int, parts: list[bytes]) -> dict[str, Array]:
    data = b"".join(parts)
    if zlib.crc32(data) != checksum or len(data) != sum(nbytes for *_, nbytes in tensors):
        raise Trouble(8, "the result was damaged on its way: its size or checksum does not match")
    arrays: dict[str, Array] = {}
    at = 0
    for name, dtype, shape, codec, nbytes in tensors:
        if codec != "raw":
            raise Trouble(8, f"output {name!r} is coded as {codec!r}, which this client cannot read")
        arrays[name] = np.frombuffer(data[at : at + nbytes], dtype=np.dtype(dtype)).reshape(shape)
        at += nbytes
    return arrays


def full_cloud(bundle: Path) -> tuple[dict[str, Any], bytes]:
    """The full-cloud placement and the model's digest, from plain JSON."""
    try:
        manifest = json.loads((bundle / "manifest.json").read_bytes())
        entries = [p for p in manifest["placements"] if p["kind"] == "full-cloud"]
        if not entries:
            raise Trouble(4, f"{bundle} has no full-cloud placement")
        # Entries for PNG or JPEG name the same work under another codec; this client sends raw.
        placement = min(entries, key=lambda p: any(t.get("codec", "raw") not in EXACT for t in p["boundary"]))
        return placement, bytes.fromhex(manifest["model"]["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Trouble(4, f"{bundle} is no bundle with a readable manifest.json ({error!r})") from None


def read_samples(path: Path, boundary: list[dict[str, Any]]) -> list[dict[str, Array]]:
    """One dict of inputs per sample, in the boundary's order; a fixed first dimension takes that many rows at once."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {t["spec"]["name"]: archive[t["spec"]["name"]] for t in boundary}
    except (OSError, ValueError, KeyError) as error:
        raise Trouble(3, f"{path} does not hold the model's inputs ({error})") from None
    steps: dict[str, int] = {}
    for spec in (t["spec"] for t in boundary):
        array = arrays[spec["name"]]
        fits = [s == w or not isinstance(w, int) for s, w in zip(array.shape[1:], spec["shape"][1:], strict=False)]
        if array.dtype != np.dtype(spec["dtype"]) or array.ndim != len(spec["shape"]) or not all(fits):
            given = f"{array.dtype} {list(array.shape)}"
            raise Trouble(3, f"{spec['name']!r} is {given} but the model takes {spec['dtype']} {spec['shape']}")
        steps[spec["name"]] = (spec["shape"] and isinstance(spec["shape"][0], int) and spec["shape"][0]) or 1
    count = min(len(a) // steps[n] if a.ndim else 1 for n, a in arrays.items())
    return [{n: a[i * steps[n] : (i + 1) * steps[n]] if a.ndim else a for n, a in arrays.items()} for i in range(count)]


def ask(args: argparse.Namespace) -> None:
    placement, model_digest = full_cloud(args.bundle)
    segment = bytes.fromhex(placement["segment"])
    samples = read_samples(args.input, placement["boundary"])
    if not samples:
        raise Trouble(3, f"{args.input} holds no samples")
    gateway = Gateway(args.gateway, model_digest, args.timeout)
    with gateway.socket:
        gateway.greet(segment)
        for number in range(args.count):
            fields, outputs = gateway.infer(number + 1, segment, samples[number % len(samples)])
            compute_us, batch_size = fields[4][3:5]
            name, values = next(iter(outputs.items()))
            print(
                f"{number}: {name} argmax {values.argmax()}, {compute_us / 1e3:.2f} ms compute, batch of {batch_size}"
            )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gateway", default="tcp://127.0.0.1:7447", help="tcp://HOST:PORT")
    parser.add_argument("--bundle", type=Path, required=True, help="directory that holds manifest.json")
    parser.add_argument("--input", type=Path, required=True, help=".npz with one array per model input")
    parser.add_argument("--count", type=int, default=1, help="how many samples to ask for")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for each answer")
    try:
        ask(parser.parse_args(arguments))
    except Trouble as trouble:
        print(f"error: {trouble}", file=sys.stderr)
        return trouble.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
