"""Does tail(head(x)) equal the whole model at every cut? The sweep behind the claim "any ONNX model".

    python -m benchmarks cuts [--quick] [--set models=resnet50,bert] [--set most=40] [--set multi=20]

Law: heads and tails are built by the product's own splitter and run in sessions of their own, one thread. With ONNX
Runtime's optimisation off every bit of every output must equal the whole model's; with it on, fusions across the cut
are lost and the difference must stay within 1e-5 of max(1, max|y|). Tried are every tensor that separates alone, or
with whatever else must then cross (a mask, a skip), and a seeded sample of wide cuts from random orders of the steps.
Models: the nine light ones of the `onnx` package with seeded weights, the shared ones, the torch exports that
`python -m benchmarks.exports` made, and one with If, Loop and Scan. Outputs are compared before a last Softmax.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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
_INLINE = 1 << 20  # larger models keep their weights beside the graph: the sessions of a sweep then share them


@dataclass
class Sweep:
    """What one model's sweep found. `worst` is the greatest difference relative to max(1, max|y|), optimisation on."""

    name: str
    alone: int = 0  # cuts of one tensor
    several: int = 0
    exact: int = 0
    worst: float = 0.0
    worst_cut: tuple[str, ...] = ()
    largest: float = 0.0  # max|y|: neither vanished nor exploded
    inexact: list[tuple[str, ...]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def tried(self) -> int:
        return self.alone + self.several


def run(options: Options) -> list[Result]:
    """The suite `cuts`."""
    if len(exports.exported()) < len(exports.NAMES):
        print("`python -m benchmarks.exports` makes the torch exports; not all are here", file=sys.stderr)
    asked = [n for n in options.settings.get("models", "").split(",") if n]
    most = int(options.settings.get("most", QUICK if options.quick else 100_000))
    multi = int(options.settings.get("multi", QUICK if options.quick else 40))
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in sources(Path(folder), asked):
            model, feed = prepared(path())
            chosen = choose(model.topology, most=most, multi=multi)
            found = sweep(name, model, feed, chosen)
            print(f"{name}: {found.exact} of {found.tried} cuts exact, {found.worst:.1e}", file=sys.stderr, flush=True)
            results += _results(found)
    return results


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


def choose(topology: Topology, *, most: int, multi: int, seed: int = SEED) -> list[Sides | ModelError]:
    """The cuts of the sweep, and refusals met on the way: at most `most` around single tensors, `multi` wide ones."""
    chance = random.Random(seed)
    names = [n for i in topology.live_steps for n in topology.steps[i].outputs]
    if len(names) > most:
        names = sorted(chance.sample(names, most), key=topology.rank.__getitem__)
    chosen: dict[frozenset[str] | str, Sides | ModelError] = {}
    for name in names:
        found = _completed(topology, name)
        key = frozenset(found.cut) if isinstance(found, Sides) else name
        if not isinstance(found, Sides) or len(found.cut) <= MOST_TENSORS:
            chosen.setdefault(key, found)
    for _ in range(multi):
        wide = _wide(topology, chance)
        if wide is not None:
            chosen.setdefault(frozenset(wide.cut), wide)
    return list(chosen.values())


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
    for sides in chosen:
        if not isinstance(sides, Sides):
            found.refused[_kind(sides)] += 1
            continue
        try:
            differences = {o: _difference(model, sides, feed, expected[o], optimise=o) for o in (False, True)}
        except (ModelError, EngineError) as error:
            found.refused[error.fact[:120]] += 1
            continue
        found.alone += len(sides.cut) == 1
        found.several += len(sides.cut) > 1
        found.exact += differences[False] == 0.0
        if differences[False] != 0.0:
            found.inexact.append(sides.cut)
        if differences[True] >= found.worst:
            found.worst, found.worst_cut = differences[True], sides.cut
    return found


def _whole(model: LoadedModel, feed: Mapping[str, Array], optimise: bool) -> verify.Outputs:
    with OrtEngine(model.data, label=model.name, optimise=optimise) as engine:
        return engine.infer(feed)


def _difference(
    model: LoadedModel, sides: Sides, feed: Mapping[str, Array], expected: verify.Outputs, *, optimise: bool
) -> float:
    halves = split(model, sides)
    head, tail = serialise(halves.head), serialise(halves.tail)
    with verify.SplitPair(head, tail, sides.cut, sides.head_outputs, optimise=optimise, threads=1) as pair:
        result = verify.difference([expected], [pair.infer(feed)])
    return result.seen * verify.PARITY_BOUND / result.allowed


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


def _results(found: Sweep) -> list[Result]:
    refused = "; ".join(f"{count}x {reason}" for reason, count in found.refused.most_common())
    exact = found.exact / found.tried if found.tried else 0.0
    tried = Result.of(f"{found.name}: cuts", "cuts", [found.tried])
    note = f"{found.alone} of one tensor, {found.several} of several; max|y| {found.largest:.3g}"
    equal = Result.of(f"{found.name}: bit for bit, optimisation off", "of cuts", [exact])
    inexact = "" if not found.inexact else f"not at {', '.join(found.inexact[0])}"
    worst = Result.bounded(f"{found.name}: difference, optimisation on", "of max|y|", [found.worst], at_most=1e-5)
    return [
        replace(tried, note=note + (f"; not tried: {refused}" if refused else "")),
        replace(equal, target=">= 1 of cuts", ok=found.tried > 0 and not found.inexact, note=inexact),
        replace(worst, note=f"worst at {', '.join(found.worst_cut)}"),
    ]
