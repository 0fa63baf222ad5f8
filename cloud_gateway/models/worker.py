"""Running batches: take one from the desk, decode, run, split, encode, hand back. All heavy work is here.

An engine thread belongs to no lane. A door may run a small batch itself (`Desk.take_small`): then there is no hand-over
to another thread and back, which costs more than a light tail does. Payloads are copied once, from the receive
buffers into the rows of a batch that is kept for the next time (a fresh 3 MB array costs more in page faults than in
copying); what was compressed is decoded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cloud_gateway.desk import Desk
from cloud_gateway.models.asking import room_of, what_ran
from cloud_gateway.models.joining import bridged, check_rows
from cloud_gateway.models.lanes import Bridge, Lane
from cloud_gateway.models.rows import BatchRows, Source
from cloud_gateway.models.trial import TryAnotherError
from cloud_gateway.scheduling.scheduler import Dispatch
from cloud_gateway.seeing.figures import OWN, Scope
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.work import Computed, Crashed, Door, Item, NotComputed, Outcome
from protocol import codecs, wire
from protocol.delta import DeltaCodec, UnknownReferenceError
from protocol.errors import EngineError, InvariantViolation, WireError
from protocol.messages import RejectCode
from protocol.tensors import Array, TensorHeader
from protocol.wire import Buffer

Keep = Callable[[Sequence[Outcome]], None]
TOO_LATE = "it can no longer finish within its budget"


class Worker:
    """One engine thread; stops when the desk does."""

    def __init__(
        self,
        number: int,
        desk: Desk,
        ledger: Ledger,
        *,
        crashed: Callable[[BaseException], None],
        keep: Keep | None = None,
    ) -> None:
        self._number = number
        self._desk = desk
        self._crashed = crashed
        self._runner = Runner(desk, ledger, keep=keep)
        self._thread = threading.Thread(target=self._main, name=f"isthmus-engine-{number}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _main(self) -> None:
        try:
            while (dispatch := self._desk.take(self._number)) is not None:
                post(self._runner.run(self._number, dispatch))
        except BaseException as error:  # the top of the thread
            self._crashed(error)


class _Group(NamedTuple):
    """The requests of a batch that come through one bridge, or all of them where the lane has none."""

    bridge: Bridge | None
    tensors: Mapping[str, Array]
    items: list[Item]


class Runner:
    """Runs dispatches, one at a time, and keeps the arrays that they are gathered in. Not thread-safe."""

    def __init__(self, desk: Desk, ledger: Ledger, *, keep: Keep | None = None) -> None:
        self._desk = desk
        self._ledger = ledger
        self._keep_answers = keep  # told of everything that was computed: the result cache
        self._rows = BatchRows()
        self._has_moved = False  # the batch that runs was not run by what it began on

    def run(self, thread: int, dispatch: Dispatch[Item]) -> list[Outcome]:
        """What became of every request of the dispatch that the desk gave to `thread`; each is for its own door.

        The desk has been told: whoever reads an answer may at once use the credit that it frees.
        """
        outcomes: list[Outcome] = [NotComputed(item, RejectCode.DEADLINE, TOO_LATE) for item in dispatch.expired]
        if dispatch.batch:
            outcomes += self._serve(dispatch)
            self._desk.finished(thread, dispatch.batch)
        if self._keep_answers is not None:
            self._keep_answers(outcomes)
        return [outcome for outcome in outcomes if isinstance(outcome, Crashed) or not outcome.item.is_given_up]

    def _serve(self, dispatch: Dispatch[Item]) -> list[Outcome]:
        began = time.monotonic()
        outcomes: list[Outcome] = []
        lane = dispatch.batch[0].segment.lane
        items = self._whole(dispatch.batch, outcomes)
        curve, self._has_moved = lane.curve, False
        served = self._run(lane, items, outcomes, began, dispatch.predicted_s) if items else 0
        if served and lane.curve is curve and not self._has_moved:  # else another engine ran it: that has its own curve
            # All that the thread was busy with, so that admission and dispatch count on what a batch really takes.
            lane.curve.observe(served, time.monotonic() - began)
        return outcomes

    def _run(
        self, lane: Lane, items: list[Item], outcomes: list[Outcome], began: float, predicted_s: float = 0.0
    ) -> int:
        """Decode, compute and encode; returns the rows of the batch, 0 if it did not run as one."""
        groups = [self._decode(lane, bridge, mine, outcomes) for bridge, mine in _by_bridge(items)]
        groups = [group for group in groups if group.items]
        items = [item for group in groups for item in group.items]
        if not items:
            return 0
        rows = sum(item.rows for item in items)
        run = lane.padded(rows)
        start = time.monotonic()
        try:
            tensors = bridged(lane, [(g.bridge, g.tensors, sum(item.rows for item in g.items)) for g in groups])
            if run > rows:
                tensors = {name: _pad(array, lane.batch_axes[name], run) for name, array in tensors.items()}
            outputs = lane.engine.infer(tensors)
            if len(items) > 1 or run > rows:
                check_rows(lane.engine, outputs, lane.output_axes, run)
        except TryAnotherError as error:
            self._rows.forget()
            return self._run_again(lane, items, outcomes, error)
        except EngineError as error:
            self._rows.forget()
            if len(items) > 1:  # one request's values may fail them all: each bridge's, then each on its own
                for some in [group.items for group in groups] if len(groups) > 1 else [[item] for item in items]:
                    if some := self._in_time(lane, some, outcomes, f"its batch failed, and {TOO_LATE}"):
                        self._run(lane, some, outcomes, time.monotonic())
                return 0
            outcomes.append(NotComputed(items[0], RejectCode.INTERNAL, str(error)[:900]))
            return 0
        end = time.monotonic()
        outputs = self._rows.detached(outputs)
        engine = what_ran(lane.engine)
        for item, mine in zip(items, _split(lane, outputs, items, run), strict=True):
            encoded = [codecs.encode(name, array, "raw") for name, array in mine.items()]
            buffers = tuple(buffer for _, buffer in encoded)
            outcomes.append(
                Computed(
                    item,
                    tuple(header for header, _ in encoded),
                    buffers,
                    wire.checksum(buffers) if item.checksum is not None else 0,
                    queue_s=began - item.arrived,
                    decode_s=start - began,
                    compute_s=end - start,
                    batch_size=rows,
                    engine=engine,
                )
            )
        done = time.monotonic()  # the curve predicts all of it; what is left of that after coding is the engine's
        self._ledger.executed(
            _scope_of(items), rows=rows, requests=len(items), decode_s=start - began, compute_s=end - start,
            encode_s=done - end, predicted_s=max(predicted_s - (start - began) - (done - end), 0.0), engine=engine,
            now=done,
        )  # fmt: skip
        return rows

    def _run_again(self, lane: Lane, items: list[Item], outcomes: list[Outcome], error: TryAnotherError) -> int:
        """Run a batch that one engine failed on the next: those of its requests that can still be in time.

        Returns the rows of the batch, 0 if it did not run as one; then nobody knows who is to blame.
        """
        self._has_moved = True
        with error.engine.using(error.instead):
            rest = self._in_time(lane, items, outcomes, f"{error.failed} failed, and {TOO_LATE}")
            rows = self._run(lane, rest, outcomes, time.monotonic()) if rest else 0
            if rows:
                error.engine.convict(error)
            return rows

    def _in_time(self, lane: Lane, items: list[Item], outcomes: list[Outcome], reason: str) -> list[Item]:
        """Those of a batch that can still be in time if it is run now; the others are refused."""
        due = time.monotonic() + lane.expected_s(sum(item.rows for item in items))
        outcomes += [NotComputed(item, RejectCode.DEADLINE, reason) for item in items if item.deadline < due]
        return [item for item in items if item.deadline >= due]

    # ---- decoding ---------------------------------------------------------------------------------------------------

    def _whole(self, batch: Sequence[Item], outcomes: list[Outcome]) -> list[Item]:
        """Those whose payload is what was sent."""
        whole = []
        for item in batch:
            if item.checksum is None or wire.checksum(item.parts) == item.checksum:
                whole.append(item)
            else:
                outcomes.append(
                    NotComputed(item, RejectCode.BAD_REQUEST, "the payload's checksum does not match; send it again")
                )
        return whole

    def _decode(self, lane: Lane, bridge: Bridge | None, items: list[Item], outcomes: list[Outcome]) -> _Group:
        """What came for one bridge as tensors, and the requests that are in them."""
        key, axes = (lane.key, lane.batch_axes) if bridge is None else (bridge.key, bridge.batch_axes)
        room = room_of(lane.engine if bridge is None else bridge.engine)
        kept: list[Item] = []
        sources: list[list[Source]] = []
        for item in items:
            try:
                mine = self._sources(lane, item, alone=len(items) == 1)
            except UnknownReferenceError as error:
                outcomes.append(NotComputed(item, RejectCode.UNKNOWN_REFERENCE, str(error)))
                continue
            except WireError as error:
                outcomes.append(NotComputed(item, RejectCode.BAD_REQUEST, str(error)))
                continue
            kept.append(item)
            sources.append(mine)
        tensors: dict[str, Array] = {}
        for index, header in enumerate(kept[0].headers if kept else ()):
            axis = axes[header.name]
            if axis is None and len(kept) > 1:
                raise InvariantViolation(f"tensor {header.name!r} has no batch axis but was batched")
            parts = [mine[index] for mine in sources]
            if room is None:
                tensors[header.name] = self._rows.join(key, header, parts, axis)
            else:
                tensors[header.name] = self._rows.join((key, room.kind), header, parts, axis, room.make)
        return _Group(bridge, tensors, kept)

    def _sources(self, lane: Lane, item: Item, *, alone: bool) -> list[Source]:
        """One request's tensors: decoded, or as they were received where that is all that decoding would do."""
        sources: list[Source] = []
        at = 0
        for header, count in zip(item.headers, item.counts, strict=True):
            parts = item.parts[at : at + count]
            at += count
            # What holds no bytes does not say how many rows it has: its header does.
            if header.codec == "raw" and header.nbytes and not (alone and count == 1):
                nbytes = sum(memoryview(part).nbytes for part in parts)
                if nbytes != header.decoded_nbytes():
                    raise WireError(f"raw tensor of {nbytes} bytes", f"its shape needs {header.decoded_nbytes()}")
                sources.append(parts)
            else:
                sources.append(self._array(lane, item, header, parts[0] if count == 1 else b"".join(parts)))
        if item.reference is not None and item.reference.keep:
            frame = {
                header.name: source
                for header, source in zip(item.headers, sources, strict=True)
                if header.codec == DeltaCodec.name and isinstance(source, np.ndarray)
            }
            with lane.references_lock:
                lane.references.keep(item.reference.stream, item.reference.sequence, frame)
        return sources

    def _array(self, lane: Lane, item: Item, header: TensorHeader, data: Buffer) -> Array:
        reference = item.reference
        if reference is None:
            return codecs.decode(header, data)

        def recall(sequence: int) -> Array | None:
            with lane.references_lock:
                return lane.references.find(reference.stream, sequence, header.name)

        return codecs.decode(header, data, recall)


def post(outcomes: Sequence[Outcome]) -> None:
    """Hand each outcome to its door, with one wake-up a door."""
    doors: dict[int, tuple[Door, list[Outcome]]] = {}
    for outcome in outcomes:
        if not isinstance(outcome, Crashed):
            door = outcome.item.door
            doors.setdefault(id(door), (door, []))[1].append(outcome)
    for door, mine in doors.values():
        door.post_all(mine)


def _scope_of(items: Sequence[Item]) -> Scope:
    """Under whose name a batch is counted: the first's that is not the gateway's own question."""
    return next((item.segment.scope for item in items if item.segment.scope is not OWN), OWN)


def _by_bridge(items: list[Item]) -> Iterable[tuple[Bridge | None, list[Item]]]:
    groups: dict[Bridge | None, list[Item]] = {}
    for item in items:
        groups.setdefault(item.segment.bridge, []).append(item)
    return groups.items()


def _pad(array: Array, axis: int | None, rows: int) -> Array:
    """With zeros behind, up to `rows` rows: an engine with profiles runs no other size. Their outputs are dropped."""
    if axis is None:
        return array
    shape = list(array.shape)
    shape[axis] = rows - shape[axis]
    return np.concatenate((array, np.zeros(shape, array.dtype)), axis)


def _split(lane: Lane, outputs: dict[str, Array], items: Sequence[Item], rows: int) -> list[dict[str, Array]]:
    """Each request's part of the outputs of a run of `rows` rows."""
    if len(items) == 1 and items[0].rows == rows:
        return [outputs]
    parts: list[dict[str, Array]] = [{} for _ in items]
    for name, array in outputs.items():
        axis = lane.output_axes[name]
        width = array.shape[axis] // rows
        at = 0
        for item, mine in zip(items, parts, strict=True):
            end = at + item.rows * width
            mine[name] = array[at:end] if axis == 0 else array[(slice(None),) * axis + (slice(at, end),)]
            at = end
    return parts
