"""Does tail(head(x)) equal the whole model at every cut? The sweep behind the claim "any ONNX model".

    python -m benchmarks cuts [--quick] [--set models=resnet50,bert] [--set alone=40] [--set several=100000]
                              [--set wide=20] [--set workers=1]

Law: heads and tails are built by the product's own splitter and run in sessions of their own, one thread. With ONNX
Runtime's optimisation off every bit of every output must equal the whole model's; with it on, fusions across the cut
are lost and the difference must stay within 1e-5 of max(1, max|y|). Tried are every tensor that separates alone
(`alone` of them at most), and seeded samples of those that take others with them (a mask, a skip; `several`) and of
cuts from random orders of the steps (`wide`).
Another input must give another answer: equality of what nothing changes would prove nothing.
Models: the nine light ones of the `onnx` package with seeded weights, the shared ones, the torch exports that
`python -m benchmarks.exports` made, and one with If, Loop and Scan. Outputs are compared before a last Softmax.
The cuts of a model are dealt out to one process per core: sessions are made far longer than they run.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from benchmarks import exports, light_models
from benchmarks.control_flow import control_flow
from benchmarks.results import Options, Result
from partitioner.graph.cuts import Sides, complete, separate
from partitioner.graph.model import LoadedModel, load, serialise
from partitioner.graph.split import split
from partitioner.graph.topology import Topology
from partitioner.judging import verify
from partitioner.judging.data import Samples
from partitioner.judging.observe import observed_topology
from protocol.engines.ort import OrtEngine
from protocol.errors import EngineError, ModelError
from protocol.tensors import Array, TensorSpec

SEED = 20_261_121
MOST_TENSORS = 8  # in one cut of the sweep
FREE_SIZE = 24  # of a free dimension that is no batch: tokens
WORDS = 1000
SHARED = ("resnet8l_cifar10", "mobilenet_v2_224", "yunet_face_640")
QUICK = 6  # cuts of each kind and model
MOST_WORKERS = 4
WORKER_NBYTES = 5 << 30  # of memory (VGG-19 with its sessions: 4.5 GB)
LEAST_MOVED = 1e-3  # of max(1, max|y|), by another input: a hundred times the difference that is allowed
# glibc: keep freed memory for the next session instead of having the kernel clear it anew (VGG-19: 3.6 -> 2.5 s a cut).
_KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
_INLINE = 1 << 20  # larger models keep their weights beside the graph: the sessions of a sweep then share them


@dataclass
class Sweep:
    """What one model's sweep found. Differences are relative to max(1, max|y|)."""

    name: str
    alone: int = 0  # cuts of one tensor
    several: int = 0
    exact: int = 0
    broken: float = 0.0  # greatest difference with optimisation off
    worst: float = 0.0  # ... and on
    worst_cut: tuple[str, ...] = ()
    largest: float = 0.0  # max|y|: neither vanished nor exploded
    moved: float = 0.0  # how far the answer is from that to another input
    inexact: list[tuple[str, ...]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def tried(self) -> int:
        return self.alone + self.several

    def join(self, other: Sweep) -> Sweep:
        """Both shares of one model's cuts together."""
        worse = max(self, other, key=lambda s: s.worst)
        return Sweep(
            self.name,
            self.alone + other.alone,
            self.several + other.several,
            self.exact + other.exact,
            max(self.broken, other.broken),
            worse.worst,
            worse.worst_cut,
            self.largest,
            self.moved,
            self.inexact + other.inexact,
            self.refused + other.refused,
        )


class Most(NamedTuple):
    """How many cuts of each kind are tried."""

    alone: int = 100_000
    several: int = 40
    wide: int = 20


class Share(NamedTuple):
    """One worker's part of the cuts of the model at `path`: every `of`-th, from `first` on."""

    name: str
    path: Path
    most: Most
    first: int = 0
    of: int = 1


def run(options: Options) -> list[Result]:
    """The suite `cuts`."""
    if len(exports.exported()) < len(exports.NAMES):
        print("`python -m benchmarks.exports` makes the torch exports; not all are here", file=sys.stderr)
    asked = [n for n in options.settings.get("models", "").split(",") if n]
    most = Most(**{n: int(options.settings.get(n, QUICK if options.quick else d)) for n, d in Most()._asdict().items()})
    workers = int(options.settings.get("workers", _workers()))
    os.environ.update(_KEEP_MEMORY)
    found: list[tuple[Sweep, float]] = []
    spawn = multiprocessing.get_context("spawn")  # a new process reads the environment, and shares no threads
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        for name, path in sources(Path(folder), asked):
            started = time.perf_counter()
            whole = Share(name, path(), most)
            shares = [whole._replace(first=i, of=workers) for i in range(workers)]
            together = functools.reduce(Sweep.join, pool.map(sweep_share, shares))
            found.append((together, time.perf_counter() - started))
            print(_line(*found[-1]), file=sys.stderr, flush=True)
    return [result for sweep, seconds in found for result in _results(sweep, seconds)] + [_total(found)]


def _workers() -> int:
    fit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // WORKER_NBYTES
    return max(1, min(os.cpu_count() or 1, MOST_WORKERS, fit))


def sweep_share(share: Share) -> Sweep:
    """What one process does."""
    model, feed = prepared(share.path)
    gc.freeze()  # the model stays; looking through it again and again takes a third of the time of splitting
    chosen = choose(model.topology, share.most)[share.first :: share.of]
    return sweep(share.name, model, feed, chosen)


def sources(folder: Path, asked: Sequence[str] = ()) -> Iterator[tuple[str, Callable[[], Path]]]:
    """The models of the sweep by name, each written to `folder` when it is asked for (those that exist here)."""
    shared = Path(os.environ.get("ISTHMUS_SHARED", Path(__file__).parents[2] / "shared")) / "models"
    made: dict[str, Callable[[], Path]] = {
        f"light_{n}": lambda n=n: _before_softmax(light_models.load_light(n), folder / f"{n}.onnx")  # type: ignore[misc]
        for n in light_models.NAMES
    }
    made |= {
        n: lambda n=n: _before_softmax(onnx.load(shared / f"{n}.onnx"), folder / f"{n}.onnx")  # type: ignore[misc]
        for n in SHARED
        if (shared / f"{n}.onnx").is_file()
    }
    made |= {n: lambda path=path: path for n, path in exports.exported().items()}  # type: ignore[misc]
    made["control_flow"] = lambda: _before_softmax(control_flow(), folder / "control_flow.onnx")
    unknown = [n for n in asked if n not in made]
    if unknown:
        raise SystemExit(f"no model {unknown[0]!r} here; these are: {', '.join(made)}")
    return ((name, path) for name, path in made.items() if not asked or name in asked)


def prepared(path: Path) -> tuple[LoadedModel, dict[str, Array]]:
    """The model with observed shapes, and one random feed for it."""
    model = load(path, most_inline_nbytes=_INLINE)
    feed = feed_for(model.inputs)
    whole = {n: a[None] for n, a in feed.items()}
    samples = Samples(whole, frozenset(whole), None, is_random=True, digest="")
    return replace(model, topology=observed_topology(model, samples)), feed


def feed_for(inputs: Sequence[TensorSpec], seed: int = SEED) -> dict[str, Array]:
    """Seeded inputs at batch 1: normal floats, words, and masks that end in zeros."""
    rng = np.random.default_rng(seed)
    return {spec.name: _draw(spec, rng) for spec in inputs}


def _draw(spec: TensorSpec, rng: np.random.Generator) -> Array:
    shape = [d if isinstance(d, int) else FREE_SIZE if i else 1 for i, d in enumerate(spec.shape)]
    dtype = spec.numpy_dtype
    if dtype.kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    if dtype.kind == "b" or "mask" in spec.name:
        mask = np.ones(shape, dtype)
        mask[..., -(shape[-1] // 3) :] = 0
        return mask
    return rng.integers(0, WORDS if spec.name.endswith("ids") and "type" not in spec.name else 2, shape).astype(dtype)


def choose(topology: Topology, most: Most, *, seed: int = SEED) -> list[Sides | ModelError]:
    """The cuts of the sweep, and refusals met on the way."""
    chance = random.Random(seed)
    made = [n for i in topology.live_steps for n in topology.steps[i].outputs]
    found = {name: _completed(topology, name) for name in made}
    cuts = {frozenset(f.cut): f for f in found.values() if isinstance(f, Sides) and len(f.cut) <= MOST_TENSORS}
    alone = [s for s in cuts.values() if len(s.cut) == 1]
    several = [s for s in cuts.values() if len(s.cut) > 1]
    chosen = {
        frozenset(s.cut): s for s in (*_sample(alone, most.alone, chance), *_sample(several, most.several, chance))
    }
    for _ in range(most.wide):
        wide = _wide(topology, chance)
        if wide is not None:
            chosen.setdefault(frozenset(wide.cut), wide)
    return [*chosen.values(), *(f for f in found.values() if not isinstance(f, Sides))]


def _sample(cuts: Sequence[Sides], most: int, chance: random.Random) -> Sequence[Sides]:
    return cuts if len(cuts) <= most else chance.sample(cuts, most)


def _completed(topology: Topology, name: str) -> Sides | ModelError:
    try:
        return complete(topology, [name])
    except ModelError as error:
        return error


def _wide(topology: Topology, chance: random.Random) -> Sides | None:
    """A cut between two steps of a random order; None where too many tensors cross there."""
    for _ in range(20):
        made = _random_prefix(topology, chance)
        crossing = {
            n
            for i in topology.live_steps
            if i not in made
            for n in topology.steps[i].inputs
            if n in topology.live and topology.producer.get(n, -1) in made | {-1}
        }
        if 1 < len(crossing) <= MOST_TENSORS and any(n in topology.producer for n in crossing):
            try:
                return separate(topology, sorted(crossing, key=topology.rank.__getitem__))
            except ModelError:
                continue
    return None


def _random_prefix(topology: Topology, chance: random.Random) -> set[int]:
    """The steps needed by a few random ones, so that branches are at different depths."""
    picked = chance.sample(topology.live_steps, min(len(topology.live_steps), chance.randint(1, 4)))
    made: set[int] = set()
    pending = list(picked)
    while pending:
        i = pending.pop()
        if i not in made:
            made.add(i)
            pending += [topology.producer[n] for n in topology.steps[i].inputs if n in topology.producer]
    return made


def sweep(name: str, model: LoadedModel, feed: Mapping[str, Array], chosen: Sequence[Sides | ModelError]) -> Sweep:
    """Run every chosen cut with optimisation off and on, and compare."""
    found = Sweep(name)
    expected = {optimise: _whole(model, feed, optimise) for optimise in (False, True)}
    found.largest = max(float(np.abs(v.astype(np.float64)).max(initial=0.0)) for v in expected[False].values())
    other = _whole(model, feed_for(model.inputs, SEED + 1), optimise=False)
    found.moved = _relative(verify.difference([expected[False]], [other]))
    for sides in chosen:
        if not isinstance(sides, Sides):
            found.refused[_kind(sides)] += 1
            continue
        try:
            off, on = _differences(model, sides, feed, expected)
        except (ModelError, EngineError) as error:
            found.refused[error.fact[:120]] += 1
            continue
        found.alone += len(sides.cut) == 1
        found.several += len(sides.cut) > 1
        found.exact += off == 0.0
        found.broken = max(found.broken, off)
        if off != 0.0:
            found.inexact.append(sides.cut)
        if on >= found.worst:
            found.worst, found.worst_cut = on, sides.cut
    return found


def _whole(model: LoadedModel, feed: Mapping[str, Array], optimise: bool) -> verify.Outputs:
    with OrtEngine(model.data, label=model.name, optimise=optimise) as engine:
        return engine.infer(feed)


def _differences(
    model: LoadedModel, sides: Sides, feed: Mapping[str, Array], expected: Mapping[bool, verify.Outputs]
) -> list[float]:
    """Optimisation off and on."""
    halves = split(model, sides)
    head, tail = serialise(halves.head), serialise(halves.tail)
    found = []
    for optimise in (False, True):
        with verify.SplitPair(head, tail, sides.cut, sides.head_outputs, optimise=optimise, threads=1) as pair:
            found.append(_relative(verify.difference([expected[optimise]], [pair.infer(feed)])))
    return found


def _relative(difference: verify.Difference) -> float:
    return difference.seen * verify.PARITY_BOUND / difference.allowed


def _kind(error: ModelError) -> str:
    """A refusal without the names in it, so that like ones are counted together."""
    parts = error.fact.split("'")
    return "'...'".join(parts[::2])


def _before_softmax(proto: onnx.ModelProto, path: Path) -> Path:
    """Write the model with a last Softmax left out of each output, also where only a reshaping follows it."""
    made_by = {n.output[0]: n for n in proto.graph.node}
    known = {v.name: v for v in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    for output in proto.graph.output:
        node = made_by.get(output.name)
        while node is not None and node.op_type in ("Reshape", "Flatten", "Squeeze"):
            node = made_by.get(node.input[0])
        if node is not None and node.op_type == "Softmax" and node.input[0] in known:
            output.CopyFrom(known[node.input[0]])
    path.write_bytes(proto.SerializeToString())
    return path


def _line(found: Sweep, seconds: float) -> str:
    off = f"{found.exact} of {found.tried} cuts exact (off by {found.broken:.1e} at most)"
    return f"{found.name}: {off}, optimised {found.worst:.1e}, {seconds:.1f} s"


def _results(found: Sweep, seconds: float) -> list[Result]:
    refused = "; ".join(f"{count}x {reason}" for reason, count in found.refused.most_common())
    exact = found.exact / found.tried if found.tried else 0.0
    tried = Result.of(f"{found.name}: cuts", "cuts", [found.tried])
    note = f"{found.alone} of one tensor, {found.several} of several; max|y| {found.largest:.3g}; {seconds:.0f} s"
    equal = Result.of(f"{found.name}: bit for bit, optimisation off", "of cuts", [exact])
    inexact = f"off by {found.broken:.1e}, not at {', '.join(found.inexact[0])}" if found.inexact else ""
    vacuous = "" if found.moved >= LEAST_MOVED else "another input changes nothing, so equality proves nothing"
    worst = Result.bounded(f"{found.name}: difference, optimisation on", "of max|y|", [found.worst], at_most=1e-5)
    return [
        replace(tried, note=note + (f"; not tried: {refused}" if refused else "")),
        replace(
            equal,
            target=">= 1 of cuts",
            ok=found.tried > 0 and not found.inexact and not vacuous,
            note=inexact or vacuous,
        ),
        replace(worst, note=f"worst at {', '.join(found.worst_cut)}"),
    ]


def _total(found: Sequence[tuple[Sweep, float]]) -> Result:
    exact, seconds = sum(sweep.exact for sweep, _ in found), sum(took for _, took in found)
    total = Result.of("all models: cuts", "cuts", [sum(sweep.tried for sweep, _ in found)])
    return replace(total, note=f"{exact} exact with optimisation off; {len(found)} models, {seconds:.0f} s")
