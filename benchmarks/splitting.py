"""Suite `splitting`: does a split ever beat "do not split", in how many situations, by how much, and who wins the rest?

Law: every model is measured once, on one machine and in one session: both ends, all codings of the input, and every cut
that the exact solver puts forward for any of the situations. The situations (how many times slower the device, which
uplink) are then composed by the latency formula (splitting_cells.py). Baselines are as strong as they can be had: the
faster of INT8 and fp32 edge-only, the smaller form of JPEG q90 whatever its accuracy. Ours must keep the bound.

The first block is what was built here. The second is for a device whose processor gains nothing from INT8: edge-only
and all heads in fp32 (what crosses is coded the same), measured in the same session.

    --set models=digits,resnet8   which                    --set rtt_ms=20     the round trip
    --set budget_s=80             for the cuts of a model  --set bound=0.01    accuracy that ours may lose
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, pairwise, product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from benchmarks.results import Options, Result
from benchmarks.splitting_cells import LOSSLESS, WORLD, Candidate, grid, smaller
from benchmarks.splitting_models import SUBJECTS, Subject
from benchmarks.splitting_report import Block, print_blocks, results
from partitioner.crossing.codings import Way, measure_coding, received
from partitioner.graph.topology import Topology
from partitioner.judging import verify
from partitioner.planning.assemble import assemble
from partitioner.planning.build import Order, workshop
from partitioner.planning.clock import Machines
from partitioner.planning.costs import EDGE_ONLY, FULL_CLOUD, Seconds, costs_of, id_of, time_graphs
from partitioner.planning.ends import Ends, make_ends
from partitioner.planning.explore import Cut, Explorer, Search
from partitioner.planning.sizes import DECORRELATED, SAVED_BY_TRANSFORM
from partitioner.planning.workshop import Segment, Workshop, certificate_of
from partitioner.solver.constraints import Constraints
from protocol import images
from protocol.bench import Silent
from protocol.engines.ort import OrtEngine
from protocol.errors import AccuracyRefusedError, EngineError, ModelError
from protocol.latency import PlacementCost
from protocol.plan import PlanConditions
from protocol.tensors import Array

BUDGET_S = 80.0  # for the cuts of one model, both blocks together
PROFILE_S = 4.0
RECIPE_S = 6.0
FP32_SHARE = 0.4  # of the budget
MAX_CUTS = 12
SESSIONS = 2
# A device in fp32 is slower by what INT8 gains: the slowest search is for its sake, and slow devices come first since
# the budget may end.
SEARCHED = (30.0, 10.0, 100.0, 3.0, 1.0)
DEPTHS, BEYOND = (0.5, 0.75, 0.3, 0.9, 0.1), 50.0  # shares of the work, and for a device how many times slower
BOUND = 0.01
JPEG_FORMS = ("jpeg90", "jpeg90-420")
BUILT, PLAIN = "INT8 device", "fp32 device"


class Device(NamedTuple):
    """How the device's side is made."""

    shop: Workshop
    ends: Ends


class Session(NamedTuple):
    """What one model's two blocks share. Seconds are this machine's."""

    subject: Subject
    cloud: tuple[Candidate, ...]  # without the gateway's own seconds
    rtt_s: float


def run(options: Options) -> list[Result]:
    """Print both blocks' tables; return a row for each model and slowness, and the counts. `repeats` is not used:
    medians are repeated until they are known (partitioner/measuring/measure.py)."""
    asked = options.settings.get("models", ",".join(s.name for s in SUBJECTS)).split(",")
    budget_s = 8.0 if options.quick else float(options.settings.get("budget_s", BUDGET_S))
    rtt_s = float(options.settings.get("rtt_ms", 20.0)) / 1e3
    bound = float(options.settings.get("bound", BOUND))
    blocks: list[Block] = []
    started = time.monotonic()
    for subject in (s for s in SUBJECTS if s.name in asked):
        if subject.absent:
            print(f"{subject.name}: skipped, {subject.absent}", flush=True)
            continue
        blocks += _measure(subject, budget_s, rtt_s, bound)
    print_blocks(blocks, rtt_s)
    print(f"{time.monotonic() - started:.0f} s in all")
    return results(blocks)


def _measure(subject: Subject, budget_s: float, rtt_s: float, bound: float) -> Iterator[Block]:
    started = time.monotonic()
    model, samples = subject.load()
    order = Order(subject.model, Path(), recipe_budget_s=RECIPE_S, bound=bound)
    shop = workshop(order, model, samples, Silent())
    ends = make_ends(shop)
    explorer = Explorer.open(shop, ends, Machines(budget_s=PROFILE_S), Silent())
    session = Session(subject, tuple(_cloud(shop, ends)), rtt_s)
    searched = _explore(explorer, budget_s * (1.0 - FP32_SHARE), rtt_s)
    plain = _without_int8(shop, ends)
    again = _rebuilt(plain.shop, _by_promise(explorer.segments), budget_s * FP32_SHARE)
    built = {BUILT: explorer.segments, PLAIN: again}
    seconds = _side_by_side(shop, ends, built)
    yield _block(session, BUILT, Device(shop, ends), built[BUILT], seconds, searched)
    repeated = f"{len(again)} of the {len(explorer.segments)} cuts above"
    yield _block(session, PLAIN, plain, built[PLAIN], seconds, repeated)
    print(f"{subject.name}: {time.monotonic() - started:.0f} s", flush=True)


def _side_by_side(
    shop: Workshop, ends: Ends, built: Mapping[str, Mapping[Cut, Segment]]
) -> dict[tuple[str, str], Seconds]:
    """Seconds of all graphs of both devices by title and cut, timed in turn; medians of SESSIONS such sessions, each
    with engines of its own. Edge-only in fp32 is the graph of full-cloud, on one thread like it."""
    graphs = {f"{title}: {cut.name}": s for title, segments in built.items() for cut, s in segments.items()}
    sessions = [time_graphs(shop, ends, graphs) for _ in range(SESSIONS)]
    medians = {
        name: Seconds(median(s[name].head_s for s in sessions), median(s[name].tail_s for s in sessions))
        for name in sessions[0]
    }
    full_s = medians[FULL_CLOUD].tail_s
    # INT8 that is shipped may be a little slower than fp32: the baseline is whichever is faster.
    found = {(BUILT, EDGE_ONLY): Seconds(min(full_s, medians[EDGE_ONLY].head_s), 0.0)}
    found[PLAIN, EDGE_ONLY] = Seconds(full_s, 0.0)
    for title, segments in built.items():
        found[title, FULL_CLOUD] = medians[FULL_CLOUD]
        found |= {(title, cut.name): medians[f"{title}: {cut.name}"] for cut in segments}
    return found


def _explore(explorer: Explorer, budget_s: float, rtt_s: float) -> str:
    """Build cuts that can be best: first one beyond each of some depths, since only a built cut shows which rungs hold
    there; then, knowing that, every cut that the solver puts forward for a device of any of the slownesses.

    All of them share what was measured. Says how far it came.
    """
    until, ended = time.monotonic() + budget_s, []
    pinned = [(step, BEYOND) for step in _steps_at(explorer.shop.model.topology, DEPTHS)]
    for pin, slowdown in [*pinned, *product([()], SEARCHED)]:
        scope = PlanConditions(rtt_s=rtt_s, edge_factor=slowdown, fastest_mbit=200.0, slowest_mbit=0.125)
        search = Search(Machines(), scope, Constraints(on_device=pin), max_cuts=1, memory=False)
        explorer.stable, turns = False, 1 if pin else MAX_CUTS
        while turns and not explorer.stable and _tried(explorer) < MAX_CUTS and time.monotonic() < until:
            explorer.run(search, Silent(), until=until)
            _doubt(explorer)
            turns -= 1
        ended.append(explorer.stable)
    searches = ended[len(pinned) :]
    return f"{len(explorer.problems)} failed; {sum(searches)} of {len(searches)} searches ended by themselves"


def _steps_at(topology: Topology, depths: Sequence[float]) -> list[tuple[str, ...]]:
    """The name of the step at which each share of the network's work is done."""
    placed = [i for i in topology.live_steps if i not in topology.recomputed]
    done = list(accumulate(topology.work[i] for i in placed))
    found = [bisect_left(done, depth * done[-1]) for depth in depths] if placed else []
    return [(topology.steps[placed[min(at, len(placed) - 1)]].name,) for at in found]


def _tried(explorer: Explorer) -> int:
    return len(explorer.segments) + len(explorer.problems)


def _doubt(explorer: Explorer) -> None:
    """Expect that a rung which lost too much at a cut loses too much before it as well.

    Early activations bear least (measured: 4 bits are bad in the first 30 % of CNNs), while the solver hopes for every
    rung at every tensor that was not tried: without this it would spend the budget on the first layers.
    """
    topology, sizes = explorer.shop.model.topology, explorer.sizes
    place = {name: i for i, name in enumerate((*topology.inputs, *topology.producer))}
    plain = [rung for rung in sizes if rung != DECORRELATED]
    for cut, segment in explorer.segments.items():
        if cut.decorrelated:
            continue
        lightest = max(plain.index(v.rung) for v in segment.variants)
        deepest = max(place[name] for name in cut.tensors)
        for name in (n for n in sizes[plain[0]] if place[n] < deepest):
            for milder, rung in pairwise(plain[lightest:]):
                sizes[rung][name] = sizes[milder][name]
            guess = sizes.get(DECORRELATED, {}).get(name)
            if guess is not None:
                least = SAVED_BY_TRANSFORM * min(sizes[rung][name].nbytes for rung in plain)
                sizes[DECORRELATED][name] = guess._replace(nbytes=max(guess.nbytes, least))


def _without_int8(shop: Workshop, ends: Ends) -> Device:
    """The same model in fp32; what crosses and how it is coded stay as they are."""
    shop = replace(shop, precision="fp32", book=None)
    exact = certificate_of(shop, list(shop.yardstick.expected), verify.EXACT)
    return Device(
        shop, replace(ends, edge=shop.model.data, edge_precision="fp32", edge_certificate=exact, edge_notes=())
    )


def _by_promise(segments: Mapping[Cut, Segment]) -> list[Cut]:
    """Those first that can send least."""
    return sorted(segments, key=lambda cut: min(v.coding.nbytes for v in segments[cut].variants))


def _rebuilt(shop: Workshop, cuts: Sequence[Cut], budget_s: float) -> dict[Cut, Segment]:
    """The same cuts for another device, while the budget lasts."""
    until, found = time.monotonic() + budget_s, {}
    for cut in cuts:
        if time.monotonic() < until:
            with suppress(AccuracyRefusedError, EngineError, ModelError):
                found[cut] = assemble(shop, cut.tensors, decorrelated=cut.decorrelated)
    return found


def _block(
    session: Session,
    title: str,
    device: Device,
    built: Mapping[Cut, Segment],
    timed: Mapping[tuple[str, str], Seconds],
    searched: str,
) -> Block:
    """All that was built for one device, as candidates of the cells."""
    segments = {cut.name: segment for cut, segment in built.items()}
    seconds = {name: s for (whose, name), s in timed.items() if whose == title}
    costs = costs_of(device.ends, segments, seconds, slowdown=1.0)
    edge = device.ends.edge_certificate
    candidates = [Candidate(EDGE_ONLY, "edge", "", costs[EDGE_ONLY][EDGE_ONLY], edge.achieved, keeps=True)]
    candidates += [c._replace(cost=_with_tail(c.cost, seconds[FULL_CLOUD].tail_s)) for c in session.cloud]
    for name, segment in segments.items():
        candidates += _splits(name, segment, costs[name], device.shop.yardstick)
    heads = Counter(segment.precision for segment in segments.values())
    searched = ", ".join(f"{n} {precision}" for precision, n in heads.items()) + f"; {searched}"
    told = tuple(_told(name, segment, costs[name]) for name, segment in segments.items())
    cells = grid(candidates, rtt_s=session.rtt_s)
    return Block(session.subject.name, title, tuple(candidates), cells, (*_notes(device, candidates, searched), *told))


def _splits(
    name: str, segment: Segment, costs: dict[str, PlacementCost], stick: verify.Yardstick
) -> Iterator[Candidate]:
    for variant in segment.variants:
        id_, achieved = id_of(name, variant.rung), variant.certificate.achieved
        coding = f"dec.{variant.rung or 'q8'}" if segment.decorrelated else variant.rung
        yield Candidate(id_, "split", coding, costs[id_], achieved, achieved >= stick.bound - 1e-9)


def _cloud(shop: Workshop, ends: Ends) -> Iterator[Candidate]:
    """Full-cloud in every coding: what the world sends, and what our own planner offers. Tail times come later."""
    feeds, name = list(shop.samples.feeds(shop.samples.held_out)), shop.model.inputs[0].name
    ours = {v.coding.ways[name].codec: v for v in ends.full_variants}

    def candidate(codec: str, label: str, achieved: float, keeps: bool) -> Candidate:
        coding = ours[codec].coding if codec in ours else measure_coding(feeds, {name: Way(codec)})
        cost = PlacementCost(
            encode_s=coding.encode_s, up_nbytes=coding.nbytes, decode_s=coding.decode_s, down_nbytes=ends.down_nbytes
        )
        return Candidate(f"{FULL_CLOUD}.{label}", "cloud", label, cost, achieved, keeps)

    for codec in LOSSLESS:
        yield candidate(codec, codec, shop.yardstick.reference, keeps=True)
    forms = [candidate(codec, WORLD, *shop.yardstick.judge(_answers(shop, feeds, name, codec))) for codec in JPEG_FORMS]
    yield smaller(forms, f"{FULL_CLOUD}.{WORLD}")
    for codec, variant in ours.items():
        if images.is_lossy(codec):  # JPEG q90 in full colour may be among them: it has a name of its own
            label = f"{codec}-444" if codec == WORLD else codec
            yield candidate(codec, label, variant.certificate.achieved, keeps=True)


def _answers(shop: Workshop, feeds: Sequence[dict[str, Array]], name: str, codec: str) -> list[verify.Outputs]:
    """Of the whole model, to what arrives."""
    with OrtEngine(shop.model.data, label="full", threads=verify.JUDGING_THREADS) as engine:
        return [engine.infer(received(feed, {name: Way(codec)})) for feed in feeds]


def _with_tail(cost: PlacementCost, tail_s: float) -> PlacementCost:
    """The cost with the time of the whole model at the gateway."""
    return msgspec.structs.replace(cost, tail_s=tail_s)


def _told(name: str, segment: Segment, costs: Mapping[str, PlacementCost]) -> str:
    """A cut in a line: how long either side takes here, and what crosses under each rung that keeps the bound."""
    sizes = ", ".join(
        f"{v.rung or 'q8'} {v.coding.nbytes:.0f} B ({v.certificate.achieved:.4f})" for v in segment.variants
    )
    cost = next(iter(costs.values()))
    return f"  {name}: {segment.precision} head {cost.edge_s * 1e3:.2f} ms, tail {cost.tail_s * 1e3:.2f} ms; {sizes}"


def _notes(device: Device, candidates: Sequence[Candidate], searched: str) -> tuple[str, ...]:
    stick, ends = device.shop.yardstick, device.ends
    by_name = {c.name: c for c in candidates}
    edge, world = by_name[EDGE_ONLY], by_name[f"{FULL_CLOUD}.{WORLD}"]
    lossless = min(by_name[f"{FULL_CLOUD}.{codec}"].cost.up_nbytes for codec in LOSSLESS)
    return (
        f"{stick.metric} {stick.reference:.4f} on {len(stick.expected)} held-out samples, bound {stick.bound:.4f}; "
        f"edge-only {ends.edge_precision} {edge.achieved:.4f} in {edge.cost.edge_s * 1e3:.2f} ms on this machine, "
        f"full {world.cost.tail_s * 1e3:.2f} ms; answer {ends.down_nbytes} B",
        f"JPEG q90 {world.cost.up_nbytes:.0f} B, {stick.metric} {world.achieved:.4f} "
        f"({'keeps' if world.keeps else 'misses'} the bound), encode {world.cost.encode_s * 1e3:.2f} ms, decode "
        f"{world.cost.decode_s * 1e3:.2f} ms; lossless at least {lossless:.0f} B",
        f"cuts by their heads: {searched}",
        *ends.edge_notes,
    )
