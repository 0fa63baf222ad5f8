"""The process that builds one plan: `python -m protocol.engines.trt_child FOLDER`. It may crash or hang, alone.

The folder holds `order.json`, `graph.onnx` and the weights beside it; `plan` and `timing` are left there. Each line on
standard output is one JSON document: how far it has come, and at last what was built or why not. When standard input
ends, whoever ordered the plan is gone, and so is this process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from protocol.engines import trt_library
from protocol.engines.causes import no_room_or
from protocol.engines.trt_options import Cause, Edition, GpuError

LEAST_PAUSE_S = 0.5  # between two lines about how far it has come

ProfileShapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


class Order(msgspec.Struct, frozen=True):
    """What to build. `profiles` gives the least, best and most shape of every input."""

    edition: Edition
    profiles: tuple[ProfileShapes, ...]
    workspace_nbytes: int
    tf32: bool = False
    optimisation: int | None = None
    version_compatible: bool = False
    same_capability: bool = False
    captured: bool = False  # runs are to be captured as CUDA graphs


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the child says. The last one has `done` or `fact`; the others a `phase`."""

    phase: str = ""
    step: int = 0
    steps: int = 0
    done: bool = False
    version: str = ""
    warnings: tuple[str, ...] = ()
    fact: str = ""
    remedy: str = ""
    cause: Cause = "build-failed"


def say(line: Line) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def build(order: Order, folder: Path) -> Line:
    """Build the plan of `folder`. Raises GpuError."""
    trt = trt_library.load(order.edition)
    log = trt_library.log_of(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # the binding's way to say that the library gave it nothing
        raise GpuError(
            f"the builder does not start ({log.last()})",
            "see nvidia-smi (35: the driver is too old for the library; 46: another process has the GPU to itself, "
            "and plans are built in a process of their own: nvidia-smi -c DEFAULT)",
            cause=no_room_or(log.last(), "no-driver"),
        ) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    graph = folder / "graph.onnx"
    if not parser.parse(graph.read_bytes(), str(graph)):
        raise GpuError(f"the parser refuses the graph: {_errors(parser)}", "", cause="unsupported-graph")
    config = _config(trt, builder, network, order)
    timing = folder / "timing"
    cache = config.create_timing_cache(timing.read_bytes() if timing.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):  # of another version or device
        cache = config.create_timing_cache(b"")
        if cache is not None:
            config.set_timing_cache(cache, ignore_mismatch=False)
    config.progress_monitor = monitor = _monitor(trt)
    plan = builder.build_serialized_network(network, config)
    if plan is None and (flag := _flag_of_capture(trt, order)) is not None:  # it runs all the same, only uncaptured
        config.clear_flag(flag)
        plan = builder.build_serialized_network(network, config)
    del monitor  # it had to live until here
    if plan is None:
        cause = no_room_or(log.last(4), "build-failed")
        raise GpuError(f"no plan could be built: {log.last()}", "", cause=cause)
    (folder / "plan").write_bytes(memoryview(plan))
    measured = config.get_timing_cache()
    if measured is not None:
        timing.write_bytes(memoryview(measured.serialize()))
    return Line(done=True, version=str(trt.__version__), warnings=tuple(text for _, text in log.kept[-5:]))


def _config(trt: Any, builder: Any, network: Any, order: Order) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order.workspace_nbytes)
    if not order.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # it is on by default
    if order.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if order.same_capability:
        level = getattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY", None)  # since 10.8
        config.hardware_compatibility_level = level or trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if (flag := _flag_of_capture(trt, order)) is not None:
        config.set_flag(flag)
    if order.optimisation is not None:
        config.builder_optimization_level = order.optimisation
    names = {network.get_input(i).name for i in range(network.num_inputs)}
    for shapes in order.profiles:
        profile = builder.create_optimization_profile()
        for name in names & shapes.keys():
            least, best, most = shapes[name]
            profile.set_shape(name, least, best, most)
        if config.add_optimization_profile(profile) < 0:
            raise GpuError(f"a profile is refused: {shapes}", "give least <= best <= most", cause="build-failed")
    return config


def _flag_of_capture(trt: Any, order: Order) -> Any:
    """What TensorRT-RTX must be told for runs to be captured: to take no memory by itself. None elsewhere."""
    return getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None) if order.captured else None


def _errors(parser: Any) -> str:
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        words = " ".join(error.desc().split())
        found.append(f"{words} (node {error.node_name()!r}, {error.node_operator() or 'no operator'})")
    return "; ".join(found)[:900] or "it gives no reason"


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called from several threads of the library. Only the outermost phases are told, and not too often."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.told = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.steps[phase_name] = num_steps
                say(Line(phase_name, 0, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if phase_name in self.steps and now - self.told > LEAST_PAUSE_S:
                self.told = now
                say(Line(phase_name, step + 1, self.steps[phase_name]))
            return True

        def phase_finish(self, phase_name: str) -> None:
            steps = self.steps.pop(phase_name, None)
            if steps is not None:
                say(Line(phase_name, steps, steps))

    return Monitor()


def _die_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(3)


def main() -> None:
    folder = Path(sys.argv[1])
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        line = build(msgspec.json.decode((folder / "order.json").read_bytes(), type=Order), folder)
    except GpuError as error:
        line = Line(fact=error.fact, remedy=error.remedy, cause=error.cause)
    except MemoryError:
        line = Line(fact="the builder ran out of memory", remedy="build on a machine with more")
    except Exception as error:  # the top of the process; the bindings raise what they like
        line = Line(fact=f"{type(error).__name__}: {str(error)[:600]}")
    say(line)
    sys.stdout.flush()
    os._exit(0)  # the library's own clean-up has been seen to hang; there is nothing left to keep


if __name__ == "__main__":
    main()
