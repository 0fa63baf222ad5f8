"""Profiles: what a model costs on one machine, as portable JSON that the device writes and the workbench reads. Pure.

A profile holds *anchors*, segments that were measured whole (the model itself is one, with an empty cut), and for every
step of the model the seconds that its kernel took, which serve only to interpolate between anchors: a sum of layers is
not a segment's time (-24 ... +13 %, measured).

Kernels of ONNX Runtime's optimised graph are named after a node or after the tensor that they write, with a suffix;
what was fused into a kernel has no time of its own there. `kernel` names the step that stands for the whole fused
group, `seconds` shares the group's time among its steps, and `alone_s` is the step's time in a run without any fusion.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec

from protocol.documents import decode_document
from protocol.errors import InputError

SCHEMA_VERSION = 1
WHOLE = "whole"
# Kernels of these operators carry a fused group; what is fused into them costs almost nothing more.
_CARRIERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "QLinearConv", "MatMulInteger"})
_MOST_FUSED = 8  # steps: longer chains are never fused into one kernel

HexDigest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
# Seconds, joules: finite by JSON's own grammar, and nothing that is measured takes a month.
Amount = Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
Positive = Annotated[float, msgspec.Meta(gt=0.0, le=1e6)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Role = Literal["edge", "cloud"]
Side = Literal["head", "tail", "whole"]


class Machine(msgspec.Struct, frozen=True):
    """Where a profile holds. `instruction_sets` are those that decide which kernels run."""

    processor: str
    architecture: str
    cores: int
    system: str
    python: str
    onnxruntime: str
    instruction_sets: tuple[str, ...]


class Timing(msgspec.Struct, frozen=True):
    """Seconds of one run: the median with the 95 % interval of that median, and the 95th percentile of single runs."""

    median_s: Positive
    low_s: Amount
    high_s: Amount
    p95_s: Amount
    repeats: Count

    @property
    def spread(self) -> float:
        """Relative distance of the 95th percentile from the median."""
        return max(self.p95_s / self.median_s - 1.0, 0.0) if self.median_s else 0.0


class Anchor(msgspec.Struct, frozen=True):
    """One measured segment. `batches` are pairs of batch size and seconds of one run; none unless shown to batch.

    `peak_memory_nbytes` is the peak of a fresh process that loads and runs the segment, above one that only imports the
    engine; None where it was not measured.
    """

    cut: tuple[str, ...]
    side: Side
    precision: str
    time: Timing
    peak_memory_nbytes: Annotated[int, msgspec.Meta(ge=0)] | None = None
    batches: tuple[tuple[Count, Positive], ...] = ()


class StepCost(msgspec.Struct, frozen=True):
    """Seconds of one step: its share of the fused kernel `kernel`, and alone in a run without fusion."""

    seconds: Amount
    alone_s: Amount
    kernel: str


class Energy(msgspec.Struct, frozen=True):
    """What a sensor read while the whole model ran again and again: the sensor's whole domain, idle power included."""

    sensor: str
    joules: Amount  # a run
    watts: Amount


class Profile(msgspec.Struct, frozen=True):
    schema_version: int
    role: Role
    model: str
    model_digest: HexDigest  # of the normal form, the bundle's full.onnx
    machine: Machine
    threads: Count
    created_utc: str
    steps: dict[str, StepCost]
    anchors: tuple[Anchor, ...]
    energy: Energy | None = None  # None where no sensor could be read, which is not 0
    notes: tuple[str, ...] = ()

    def whole(self, precision: str = "fp32") -> Anchor | None:
        """The whole model's own measurement in this precision."""
        return next((a for a in self.anchors if a.side == WHOLE and a.precision == precision), None)

    def refined(self, measured: Iterable[Anchor]) -> Profile:
        """This profile with more anchors; one that was measured anew replaces the old one."""
        anchors = {(a.cut, a.side, a.precision): a for a in (*self.anchors, *measured)}
        return msgspec.structs.replace(self, anchors=tuple(anchors.values()))

    @property
    def precisions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(a.precision for a in self.anchors))


def encode(profile: Profile) -> bytes:
    return msgspec.json.format(msgspec.json.encode(profile, order="deterministic"), indent=1) + b"\n"


def decode(data: bytes, *, name: str) -> Profile:
    """Parse a profile; `name` is what errors call it. Raises InputError when it is none, or of another schema."""
    remedy = "write a profile with `partitioner profile` or `edge-agent profile`"
    profile = decode_document(data, Profile, version=SCHEMA_VERSION, name=name, error=InputError, remedy=remedy)
    if profile.whole() is None:
        raise InputError(f"{name} lacks the whole model's own time in fp32", remedy)
    for anchor in profile.anchors:
        if not anchor.time.low_s <= anchor.time.median_s <= anchor.time.high_s:
            where = ", ".join(anchor.cut) or WHOLE
            raise InputError(f"{name} has a median outside its interval ({anchor.side} at {where})", remedy)
    return profile


def check(profile: Profile, *, name: str, role: Role, model_digest: str, threads: int) -> None:
    """Refuse a profile of another model or role, or one that was measured with another number of threads.

    That a device's profile comes from another machine is its nature: where the plan is used, see `elsewhere`. Raises
    InputError.
    """
    again = f"run `partitioner profile MODEL --role {role}` again"
    if profile.role != role:
        raise InputError(f"{name} was made with --role {profile.role}, asked for was {role}", again)
    if profile.model_digest != model_digest:
        raise InputError(
            f"{name} is the profile of another model ({profile.model}, {profile.model_digest[:12]}...; "
            f"this one is {model_digest[:12]}...)",
            again,
        )
    if profile.threads != threads:
        flag = "--threads" if role == "edge" else "--tail-threads"
        raise InputError(
            f"{name} was measured with {_counted(profile.threads, 'thread')}, {flag} is {threads}",
            f"say {flag} {profile.threads}, or {again}",
        )


def elsewhere(planned_for: Machine, here: Machine) -> str:
    """How this machine differs from the one that a plan was made for, in a sentence; "" if it is its like."""
    if here.processor != planned_for.processor or here.cores != planned_for.cores:
        there, this = (f"{m.processor} with {_counted(m.cores, 'core')}" for m in (planned_for, here))
        return f"the bundle was planned for {there}, this is {this}"
    if here.instruction_sets != planned_for.instruction_sets:
        only = sorted(set(here.instruction_sets) ^ set(planned_for.instruction_sets))
        return f"the bundle was planned for the like of this processor but with other instructions ({', '.join(only)})"
    if here.onnxruntime != planned_for.onnxruntime:
        return f"the bundle was planned for onnxruntime {planned_for.onnxruntime}, this is {here.onnxruntime}"
    return ""


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


# ---- from kernels to steps -------------------------------------------------------------------------------------------


class Kernel(NamedTuple):
    """One kernel of a profiled run, in order of execution, with its seconds."""

    name: str
    seconds: float


class PlainStep(msgspec.Struct, frozen=True):
    """A live step as far as the mapping needs it, so that a device without the model's graph can do it."""

    name: str
    op: str
    inputs: tuple[str, ...]  # live ones only
    outputs: tuple[str, ...]


def step_costs(
    steps: Sequence[PlainStep], optimised: Sequence[Kernel], plain: Sequence[Kernel], work: Mapping[str, float]
) -> dict[str, StepCost]:
    """Share the kernels of an optimised run among the steps; `plain` is a run without fusion, one kernel a step.

    Where no kernel can be attributed at all, the estimated `work` of each step (in any unit) stands in for seconds.
    """
    alone = {k.name: k.seconds for k in plain}
    carried = _attribute(steps, optimised)
    if not carried:
        total = sum(work.values()) or 1.0
        return {s.name: StepCost(work.get(s.name, 0.0) / total, alone.get(s.name, 0.0), s.name) for s in steps}
    kernels = _groups(steps, carried)
    members = defaultdict[str, list[PlainStep]](list)
    for step in steps:
        members[kernels[step.name]].append(step)
    found = {}
    for kernel, group in members.items():
        shares = _shares(group, alone)
        for step in group:
            share = carried.get(kernel, 0.0) * shares.get(step.name, 0.0)
            found[step.name] = StepCost(share, alone.get(step.name, 0.0), kernel)
    return found


def is_carrier(op: str) -> bool:
    """Whether a fused group's time is this operator's; the others in the group come almost for nothing."""
    return op in _CARRIERS


def plain_name(kernel: str) -> str:
    """A kernel's name without what ONNX Runtime appends when it rewrites a node."""
    return re.sub(r"(_nchwc)?(_token_\d+)*$", "", kernel).removeprefix("fused ")


def _attribute(steps: Sequence[PlainStep], kernels: Iterable[Kernel]) -> dict[str, float]:
    """Seconds by the step that a kernel is named after, directly or through its tensor.

    What has no such name (a change of memory layout) goes to the kernel behind it.
    """
    owner = {output: step.name for step in steps for output in step.outputs} | {step.name: step.name for step in steps}
    found: dict[str, float] = {}
    pending, last = 0.0, ""
    for kernel in kernels:
        name = owner.get(kernel.name) or owner.get(plain_name(kernel.name))
        if name is None:
            pending += kernel.seconds
            continue
        found[name] = found.get(name, 0.0) + kernel.seconds + pending
        pending, last = 0.0, name
    if last:
        found[last] += pending
    return found


def _groups(steps: Sequence[PlainStep], carried: Mapping[str, float]) -> dict[str, str]:
    """For every step the one whose kernel it is part of: itself, what it was fused onto, or what it was fused into."""
    producer = {output: step.name for step in steps for output in step.outputs}
    readers = defaultdict[str, list[PlainStep]](list)
    for step in steps:
        for name in step.inputs:
            readers[name].append(step)
    group = {name: name for name in carried}

    def below(step: PlainStep, depth: int) -> str | None:
        """The nearest kernel behind a step, through steps that have none and carry none."""
        for reader in (r for output in step.outputs for r in readers[output]):
            if reader.name in group:
                return group[reader.name]
            found = below(reader, depth + 1) if depth < _MOST_FUSED and not is_carrier(reader.op) else None
            if found is not None:
                return found
        return None

    def above(step: PlainStep) -> str | None:
        makers = (producer[name] for name in step.inputs if name in producer)
        return next((group[maker] for maker in makers if maker in group), None)

    for step in steps:
        if step.name not in group:
            first, second = (below(step, 0), above(step)) if is_carrier(step.op) else (above(step), below(step, 0))
            group[step.name] = first or second or step.name
    return group


def _shares(group: Sequence[PlainStep], alone: Mapping[str, float]) -> dict[str, float]:
    """Shares of a kernel's time: among its carriers if it has any, in proportion to their times alone."""
    sharing = [s for s in group if is_carrier(s.op)] or list(group)
    total = sum(alone.get(s.name, 0.0) for s in sharing)
    return {s.name: alone.get(s.name, 0.0) / total if total else 1.0 / len(sharing) for s in sharing}
