"""One thread per engine: take a batch, decode, run, split, encode, post. All heavy work is here, without the GIL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cloud_gateway.models.lanes import Item, Lane, stack
from protocol import codecs, wire
from protocol import messages as m
from protocol.delta import DeltaCodec, UnknownReferenceError
from protocol.errors import EngineError, InvariantViolation, WireError
from protocol.tensors import Array, TensorHeader
from protocol.wire import Buffer

IDLE_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Computed:
    """A finished request: encoded outputs, and where the time went (seconds)."""

    item: Item
    headers: tuple[TensorHeader, ...]
    buffers: tuple[Buffer, ...]
    checksum: int
    queue_s: float
    decode_s: float
    compute_s: float
    batch_size: int
    engine: str


@dataclass(frozen=True, slots=True)
class NotComputed:
    item: Item
    code: m.RejectCode
    reason: str


@dataclass(frozen=True, slots=True)
class Crashed:
    error: BaseException


Post = Computed | NotComputed | Crashed


class Worker:
    """Serves one lane until it is told to stop."""

    def __init__(self, lane: Lane, post: Callable[[Iterable[Post]], None]) -> None:
        self._lane = lane
        self._post = post
        self._thread = threading.Thread(target=self._main, name=f"isthmus-engine-{lane.key[:8]}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._lane.condition:
            self._lane.stopping = True
            self._lane.condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _main(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                self._serve(batch)
        except BaseException as error:  # the top of the thread
            self._post([Crashed(error)])

    def _next_batch(self) -> list[Item] | None:
        lane = self._lane
        with lane.condition:
            while True:
                now = time.monotonic()
                lane.running_until = 0.0
                taken = lane.batcher.take(now=now)
                if taken.expired:
                    reason = "it can no longer finish within its budget"
                    self._post([NotComputed(item, m.RejectCode.DEADLINE, reason) for item in taken.expired])
                if taken.batch:
                    lane.running_until = now + lane.curve.predict(sum(i.rows for i in taken.batch))
                    return taken.batch
                if lane.stopping:
                    return None
                lane.condition.wait(IDLE_WAIT_S)

    def _serve(self, batch: list[Item]) -> None:
        taken = time.monotonic()
        decoded = self._decode(batch)
        if not decoded:
            return
        items = [item for item, _ in decoded]
        rows = sum(item.rows for item in items)
        start = time.monotonic()
        try:
            tensors = self._assemble([arrays for _, arrays in decoded])
            outputs = self._lane.engine.infer(tensors)
            self._check_rows(outputs, items)
        except EngineError as error:
            if len(items) > 1:  # one request's values may fail them all: each on its own then
                for item in items:
                    self._serve([item])
                return
            self._post([NotComputed(items[0], m.RejectCode.INTERNAL, str(error)[:900])])
            return
        end = time.monotonic()
        with self._lane.condition:
            self._lane.curve.observe(rows, end - start)
        done: list[Post] = []
        for item, mine in zip(items, self._split(outputs, items), strict=True):
            encoded = [codecs.encode(name, array, "raw") for name, array in mine.items()]
            buffers = tuple(buffer for _, buffer in encoded)
            done.append(
                Computed(
                    item,
                    tuple(header for header, _ in encoded),
                    buffers,
                    wire.checksum(buffers),
                    queue_s=taken - item.arrived,
                    decode_s=start - taken,
                    compute_s=end - start,
                    batch_size=rows,
                    engine=self._lane.engine.description,
                )
            )
        self._post(done)

    def _decode(self, batch: list[Item]) -> list[tuple[Item, dict[str, Array]]]:
        decoded = []
        for item in batch:
            headers = item.infer.tensors
            try:
                if wire.checksum(item.parts) != item.infer.checksum:
                    raise WireError("the payload's checksum does not match", "send it again")
                buffers = wire.join_parts(headers, item.parts)
                arrays = {h.name: self._decode_one(item, h, b) for h, b in zip(headers, buffers, strict=True)}
            except UnknownReferenceError as error:
                self._post([NotComputed(item, m.RejectCode.UNKNOWN_REFERENCE, str(error))])
                continue
            except WireError as error:
                self._post([NotComputed(item, m.RejectCode.BAD_REQUEST, str(error))])
                continue
            if item.infer.keep:
                frame = {h.name: arrays[h.name] for h in headers if h.codec == DeltaCodec.name}
                self._lane.references.keep(_stream(item), item.infer.request.sequence, frame)
            decoded.append((item, arrays))
        return decoded

    def _decode_one(self, item: Item, header: TensorHeader, data: Buffer) -> Array:
        def recall(sequence: int) -> Array | None:
            return self._lane.references.find(_stream(item), sequence, header.name)

        return codecs.decode(header, data, recall)

    def _assemble(self, requests: Sequence[dict[str, Array]]) -> dict[str, Array]:
        if len(requests) == 1:
            return requests[0]
        joined = {}
        for name in requests[0]:
            axis = self._lane.batch_axes[name]
            if axis is None:
                raise InvariantViolation(f"tensor {name!r} has no batch axis but was batched")
            joined[name] = stack((r[name] for r in requests), axis)
        return joined

    def _check_rows(self, outputs: dict[str, Array], items: list[Item]) -> None:
        """A tail that returns fewer rows than it was given would hand one caller another's answer."""
        rows = sum(item.rows for item in items)
        for name, array in outputs.items() if len(items) > 1 else ():
            axis = self._lane.output_axes[name]
            if array.ndim <= axis or array.shape[axis] % rows:
                raise EngineError(
                    f"output {name!r} has shape {list(array.shape)} for {rows} rows", "serve it at batch 1"
                )

    def _split(self, outputs: dict[str, Array], items: list[Item]) -> list[dict[str, Array]]:
        if len(items) == 1:
            return [outputs]
        *ends, rows = np.cumsum([item.rows for item in items])
        parts = {}
        for name, array in outputs.items():
            axis = self._lane.output_axes[name]
            parts[name] = np.split(array, np.array(ends) * (array.shape[axis] // rows), axis)
        return [{name: arrays[i] for name, arrays in parts.items()} for i in range(len(items))]


def _stream(item: Item) -> tuple[bytes, bytes]:
    """Whose frames may refer to each other: one device's under one segment. Nobody can use another's boot id."""
    return item.infer.request.boot, item.infer.segment
