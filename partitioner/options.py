"""What `plan` and `split` ask for alike: the flags, and the order that they add up to."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from partitioner.planning.build import Order
    from partitioner.planning.explore import Search
    from partitioner.solver.constraints import Constraints
    from protocol.profile import Profile
    from protocol.profile import Role as ProfileRole


class Precision(StrEnum):
    AUTO = "auto"
    INT8 = "int8"
    FP32 = "fp32"


class HeadEngine(StrEnum):
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


class Role(StrEnum):
    EDGE = "edge"
    CLOUD = "cloud"


_machine = functools.partial(typer.Option, rich_help_panel="Machines and link")
_sample = functools.partial(typer.Option, rich_help_panel="Samples and precision")
_search = functools.partial(typer.Option, rich_help_panel="How to search")
_limit = functools.partial(typer.Option, rich_help_panel="What every placement must keep")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory.", show_default=False)]
BudgetS = Annotated[
    float, _search(min=0.0, help="Seconds to explore; loading, calibration and final timing come on top.")
]
AskedMbit = Annotated[float, typer.Option(help="Uplink in Mbit/s; the downlink counts as equal.")]
AskedRttMs = Annotated[
    float | None, typer.Option(help="Round trip in milliseconds (default: the bundle's).", show_default=False)
]
AskedSlowdown = Annotated[
    float | None,
    typer.Option(help="How many times slower the device is (default: the bundle's).", show_default=False),
]
EdgeSlowdown = Annotated[
    float, _machine(min=0.001, help="How many times slower the device is than this machine (declared).")
]
EdgeProfile = Annotated[
    Path | None, _machine("--edge", metavar="PROFILE", help="The device's profile, instead of --edge-slowdown.")
]
CloudProfile = Annotated[
    Path | None, _machine("--cloud", metavar="PROFILE", help="The gateway's profile, if it is another machine.")
]
RttMs = Annotated[float, _machine(min=0.0, help="Round trip of the link in milliseconds.")]
FromMbit = Annotated[float, _machine(min=0.001, help="Slowest link to plan for, Mbit/s.")]
ToMbit = Annotated[float, _machine(min=0.001, help="Fastest link to plan for, Mbit/s.")]
UpOverDown = Annotated[float, _machine(min=0.0, help="Uplink over downlink: 0.1 is ten times faster down.")]
CloudLoad = Annotated[float, _machine(min=0.0, max=0.99, help="Share of its time the gateway is busy with others.")]
Quantile = Annotated[float, _machine(min=0.01, max=0.99, help="Of the latency to plan for; 0.5 is the median.")]
PrecisionAsked = Annotated[Precision, _sample(help="auto: INT8 where it holds, else fp32; int8: INT8 or refuse.")]
HeadEngineAsked = Annotated[
    HeadEngine, _machine(help="What runs heads on the device; for tensorrt they are made in symmetric int8.")
]
RecipeBudgetS = Annotated[float, _sample(min=0.0, help="Seconds to search the fastest INT8 recipe that holds.")]
AccuracyBound = Annotated[
    float, _sample(min=0.0, max=1.0, help="Loss of accuracy, agreement or cosine that is acceptable.")
]
Threads = Annotated[int, _machine(min=1, help="Threads of the head, as on the device.")]
TailThreads = Annotated[int, _machine(min=1, help="Threads of the tail, as at the gateway.")]
Calibration = Annotated[
    Path | None, _sample(metavar="DATA", help=".npz (an array per input, first axis = samples) or image folder.")
]
Labels = Annotated[
    str | None, _sample(metavar="KEY", help="Array of DATA.npz that holds the labels (default: labels or y).")
]
LabelOffset = Annotated[int, _sample(help="Added to every label, for models with a class in front.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input", metavar="NAME,KEY=VALUE...", help="An image input and its pre-processing (docs/inputs.md)."
    ),
]
Memory = Annotated[bool, _search(help="Measure the peak memory of either side, in fresh processes.")]
KeepBest = Annotated[bool, _search("--keep-best", help="Keep the best cut even if it never wins.")]
LosslessInput = Annotated[
    bool, _sample("--lossless-input", help="What the application hands in may not be sent with loss (no JPEG).")
]
Stream = Annotated[
    bool,
    _sample("--stream", help="The samples are consecutive frames, as requests will be: offer differences."),
]
OnDevice = Annotated[
    list[str] | None, _limit(metavar="NODE", help="This node must stay on the device; repeat it for more.")
]
MaxEdgeMb = Annotated[float | None, _limit(min=0.0, help="Memory of the head on the device, at most, in MB.")]
MaxCloudMb = Annotated[float | None, _limit(min=0.0, help="Memory of the tail at the gateway, at most, in MB.")]
MaxJoules = Annotated[float | None, _limit(min=0.0, help="Energy of the device per request, at most.")]
MaxCloudMs = Annotated[float | None, _limit(min=0.0, help="Gateway time per request, at most.")]
MinAccuracy = Annotated[float | None, _limit(min=0.0, max=1.0, help="The metric that must be reached.")]
MinPerS = Annotated[float | None, _limit(min=0.0, help="Requests per second, pipelined, at --at-mbit.")]
MaxLatencyMs = Annotated[float | None, _limit(min=0.0, help="Latency, at --quantile and --at-mbit.")]
AtMbit = Annotated[float | None, _limit(min=0.001, help="The uplink for --min-per-s and --max-latency-ms.")]
DeviceWatts = Annotated[
    float, _machine(min=0.0, help="What the device draws while it computes (0: what its profile's sensor read).")
]
RadioJPerMb = Annotated[float, _machine(min=0.0, help="What a megabyte on the radio costs the device (declared).")]


@dataclass(frozen=True, kw_only=True)
class PlanFlags:
    """The flags that `plan` and `split` share, as they were given."""

    budget_s: BudgetS = 60.0
    edge_slowdown: EdgeSlowdown = 8.0
    edge: EdgeProfile = None
    cloud: CloudProfile = None
    rtt_ms: RttMs = 10.0
    from_mbit: FromMbit = 0.1
    to_mbit: ToMbit = 1000.0
    up_over_down: UpOverDown = 1.0
    cloud_load: CloudLoad = 0.0
    quantile: Quantile = 0.5
    precision: PrecisionAsked = Precision.AUTO
    head_engine: HeadEngineAsked = HeadEngine.ONNXRUNTIME
    recipe_budget_s: RecipeBudgetS = 30.0
    bound: AccuracyBound = 0.01
    threads: Threads = 1
    tail_threads: TailThreads = 1
    calibration: Calibration = None
    labels: Labels = None
    label_offset: LabelOffset = 0
    inputs: Inputs = None
    stream: Stream = False
    lossless_input: LosslessInput = False
    on_device: OnDevice = None
    max_edge_mb: MaxEdgeMb = None
    max_cloud_mb: MaxCloudMb = None
    max_joules: MaxJoules = None
    max_cloud_ms: MaxCloudMs = None
    min_accuracy: MinAccuracy = None
    min_per_s: MinPerS = None
    max_latency_ms: MaxLatencyMs = None
    at_mbit: AtMbit = None
    device_watts: DeviceWatts = 0.0
    radio_j_per_mb: RadioJPerMb = 0.0
    keep_best: KeepBest = False
    memory: Memory = True

    def check(self) -> None:
        """Raises typer.BadParameter for flags that make no sense together."""
        if not (math.isfinite(self.edge_slowdown) and math.isfinite(self.rtt_ms)):
            raise typer.BadParameter("--edge-slowdown and --rtt-ms must be finite numbers")
        if not self.from_mbit < self.to_mbit < math.inf:
            raise typer.BadParameter("--from-mbit must be below --to-mbit")
        if self.labels is not None and self.calibration is None:
            raise typer.BadParameter("--labels needs --calibration DATA.npz")
        if self.stream and self.calibration is None:
            raise typer.BadParameter("--stream needs --calibration DATA, whose samples are consecutive frames")
        if (self.max_edge_mb is not None or self.max_cloud_mb is not None) and not self.memory:
            raise typer.BadParameter("--max-edge-mb and --max-cloud-mb need --memory")
        if (self.min_per_s is not None or self.max_latency_ms is not None) and self.at_mbit is None:
            raise typer.BadParameter("--min-per-s and --max-latency-ms need --at-mbit")

    def order(self, model: Path, target: Path) -> Order:
        """What these flags ask of the partitioner. Raises InputError for a profile that cannot be read."""
        from partitioner.planning.build import Order

        return Order(
            model=model,
            target=target,
            search=self.search(),
            precision=self.precision.value,
            head_engine=self.head_engine.value,
            recipe_budget_s=self.recipe_budget_s,
            bound=self.bound,
            threads=self.threads,
            tail_threads=self.tail_threads,
            calibration=self.calibration,
            labels=self.labels,
            label_offset=self.label_offset,
            stream=self.stream,
            lossless_input=self.lossless_input,
            inputs=tuple(self.inputs or ()),
        )

    def search(self) -> Search:
        from partitioner.measuring.profile import read
        from partitioner.planning.clock import Machines
        from partitioner.planning.explore import Power, Search
        from protocol.plan import PlanConditions

        scope = PlanConditions(
            self.rtt_ms / 1e3,
            up_over_down=self.up_over_down,
            cloud_load=self.cloud_load,
            quantile=self.quantile,
            slowest_mbit=self.from_mbit,
            fastest_mbit=self.to_mbit,
        )
        profiles: dict[ProfileRole, Profile] = {}
        if self.edge is not None:
            profiles["edge"] = read(self.edge)
        if self.cloud is not None:
            profiles["cloud"] = read(self.cloud)
        metered = profiles["edge"].energy if "edge" in profiles else None
        power = Power(self.device_watts or (metered.watts if metered else 0.0), self.radio_j_per_mb / 1e6)
        if self.max_joules is not None and not power.is_known:
            needed = "--device-watts, --radio-j-per-mb or an --edge profile with energy"
            raise typer.BadParameter(f"--max-joules needs {needed}")
        return Search(
            Machines(profiles, self.edge_slowdown, budget_s=min(15.0, self.budget_s / 8)),
            scope,
            self.constraints(),
            power,
            self.budget_s,
            keep_best=self.keep_best,
            memory=self.memory,
        )

    def constraints(self) -> Constraints:
        from partitioner.solver.constraints import Constraints

        return Constraints(
            edge_memory_nbytes=_times(self.max_edge_mb, 1e6),
            cloud_memory_nbytes=_times(self.max_cloud_mb, 1e6),
            energy_j=self.max_joules,
            cloud_s=_times(self.max_cloud_ms, 1e-3),
            min_accuracy=self.min_accuracy,
            min_per_s=self.min_per_s,
            max_latency_s=_times(self.max_latency_ms, 1e-3),
            at_mbit=self.at_mbit,
            quantile=self.quantile,
            on_device=tuple(self.on_device or ()),
        )


def with_plan_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with every flag of `PlanFlags` on its command line, handed to it as `flags`."""
    hints = get_type_hints(command, include_extras=True) | get_type_hints(PlanFlags, include_extras=True)
    shared = {p.name: p.replace(annotation=hints[p.name]) for p in inspect.signature(PlanFlags).parameters.values()}
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "flags"]

    @functools.wraps(command)
    def with_flags(**given: Any) -> None:
        flags = PlanFlags(**{name: given.pop(name) for name in shared})
        flags.check()
        command(flags=flags, **given)

    listed = [p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY) for p in own]
    with_flags.__signature__ = inspect.Signature([*listed, *shared.values()])  # type: ignore[attr-defined]
    with_flags.__annotations__ = {p.name: p.annotation for p in (*listed, *shared.values())}
    return with_flags


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
