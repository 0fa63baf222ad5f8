"""SIMULATION of `cuda.bindings.runtime`; see `simulated_gpu`. Every function returns its code first; none raises."""
# ruff: noqa: N801, N803, N815, N816 - all names are CUDA's own

from __future__ import annotations

import enum
import functools
import threading
from collections.abc import Callable
from typing import Any

from simulated_gpu import GPU, Event, Failure


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorDeviceUninitialized = 201
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorNotSupported = 801
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


_CODES = {
    "OUT_OF_MEMORY": cudaError_t.cudaErrorMemoryAllocation, "ILLEGAL_ADDRESS": cudaError_t.cudaErrorIllegalAddress,
    "LAUNCH_FAILED": cudaError_t.cudaErrorLaunchFailure, "INVALID_CONTEXT": cudaError_t.cudaErrorDeviceUninitialized,
    "OLD_DRIVER": cudaError_t.cudaErrorInsufficientDriver,
    "NOT_SUPPORTED": cudaError_t.cudaErrorNotSupported,
    "CAPTURE": cudaError_t.cudaErrorStreamCaptureUnsupported,
    "CAPTURE_INVALIDATED": cudaError_t.cudaErrorStreamCaptureInvalidated,
}  # fmt: skip


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


cudaStreamNonBlocking, cudaEventBlockingSync, cudaEventDisableTiming, cudaHostRegisterDefault = 1, 1, 2, 0


def _returning(name: str, *, needs_context: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any) -> tuple[Any, ...]:
            try:
                GPU.call(name, needs_context=needs_context)
                value = function(*arguments)
            except Failure as failure:
                GPU.last_errors.add(threading.get_ident())
                return (_CODES.get(failure.code, cudaError_t.cudaErrorInvalidValue), None)
            return (cudaError_t.cudaSuccess,) if value is None else (cudaError_t.cudaSuccess, value)

        return call

    return wrap


@_returning("push", needs_context=False)
def cudaSetDevice(device: int) -> None:
    assert device == 0
    if not GPU.stacks.get(threading.get_ident()):
        GPU.push()


@_returning("free")
def cudaFree(devPtr: int) -> None:
    if devPtr:
        GPU.free(devPtr)


@_returning("stream")
def cudaStreamCreateWithFlags(flags: int) -> int:
    assert flags == cudaStreamNonBlocking
    return GPU.new_stream()


@_returning("event")
def cudaEventCreateWithFlags(flags: int) -> Event:
    GPU.events += 1
    return Event()


@_returning("destroy_event")
def cudaEventDestroy(event: Event) -> None:
    GPU.events -= 1


@_returning("destroy_stream")
def cudaStreamDestroy(stream: int) -> None:
    del GPU.streams[stream]


@_returning("allocate")
def cudaMalloc(size: int) -> int:
    return GPU.allocate(size)


@_returning("pin")
def cudaHostRegister(ptr: int, size: int, flags: int) -> None:
    assert ptr % 4096 == size % 4096 == 0, "memory is pinned by whole pages"
    if GPU.pins_nothing:
        raise Failure("pin", "NOT_SUPPORTED")
    GPU.pinned[ptr] = size


@_returning("unpin")
def cudaHostUnregister(ptr: int) -> None:
    del GPU.pinned[ptr]


@_returning("copy")
def cudaMemcpyAsync(dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: int) -> None:
    inwards = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
    GPU.calls["copy_in" if inwards else "copy_out"] += 1
    GPU.copy(dst, src, count, host=src if inwards else dst, inwards=inwards, handle=stream)


@_returning("record")
def cudaEventRecord(event: Event, stream: int) -> None:
    GPU.record(event, stream)


@_returning("wait")
def cudaEventSynchronize(event: Event) -> None:
    GPU.wait(event)


@_returning("synchronize")
def cudaDeviceSynchronize() -> None:
    GPU.synchronize()


def cudaGetLastError() -> tuple[Any, ...]:
    GPU.last_errors.discard(threading.get_ident())
    return (cudaError_t.cudaSuccess,)


@_returning("info")
def cudaMemGetInfo() -> Any:
    return GPU.memory_nbytes, GPU.memory_nbytes


@_returning("capture")
def cudaStreamBeginCapture(stream: int, mode: cudaStreamCaptureMode) -> None:
    assert mode == cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    GPU.begin_capture(stream)


@_returning("end_capture")
def cudaStreamEndCapture(stream: int) -> Any:
    return GPU.end_capture(stream)


@_returning("instantiate")
def cudaGraphInstantiate(graph: Any, flags: int) -> Any:
    return list(graph)


@_returning("launch_graph")
def cudaGraphLaunch(graphExec: Any, stream: int) -> None:
    for operation in graphExec:
        GPU.enqueue(stream, operation)


@_returning("destroy_graph")
def cudaGraphDestroy(graph: Any) -> None:
    pass


@_returning("destroy_executable")
def cudaGraphExecDestroy(graphExec: Any) -> None:
    pass
