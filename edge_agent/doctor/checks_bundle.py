"""Is what is served whole, ours, and as fast and right here as the plan says?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np

from edge_agent.doctor.case import Case
from edge_agent.doctor.verdicts import UnmetError, Verdict, fail, ok, skip, together, warn
from edge_agent.version import built_at
from protocol.bundle import Bundle, PlacementEntry
from protocol.messages import PlacementKind
from protocol.tensors import Array, TensorSpec

SLOWER, MUCH_SLOWER = 1.5, 4.0  # times the plan's seconds,
NOTHING_S = 5e-4  # and at least so much more: below that it is the scheduler's
LEAST_COSINE = 0.9  # of the outputs with the whole model's: INT8 on noise is not INT8 on data
OLD_DAYS = 180.0
DAY_S = 86_400.0
_ROUNDS = 15
_SPEED_BUDGET_S = 1.5  # a head
_WARM = 2


def opens(case: Case) -> Verdict:
    settings = case.settings
    if case.bundle_path is None and settings.updates.enabled and settings.gateways.endpoints:
        remedy = "nothing, if a gateway offers one: `edge-agent bundles offers`; else `edge-agent bundles install DIR`"
        return warn("no bundle is named or installed: the device waits for its first from a gateway", remedy)
    bundle = case.bundle.really()
    info = bundle.manifest.model
    placements = ", ".join(entry.id for entry in bundle.manifest.placements)
    return ok(f"{info.name}, bundle {bundle.digest[:12]}, placements {placements}")


def hashes(case: Case) -> Verdict:
    """What a device needs must be there; what it does not, tails above all, stays away where it came over the air."""
    from edge_agent.bundles.shelf import needed

    bundle = case.bundle()
    files, wanted = bundle.manifest.files, needed(bundle, whole=False)
    present = [name for name in files if name in wanted or (bundle.root / name).exists()]
    for name in present:
        bundle.read(name)
    away = len(files) - len(present)
    others = f"; {away} that only gateways need are not here" if away else ""
    nbytes = sum(files[name].nbytes for name in present)
    return ok(f"{len(present)} files, {nbytes / 1e6:.1f} MB, each as the manifest says{others}")


def signature(case: Case) -> Verdict:
    """What the device's own trust says of it; the daemon asks the same before it serves it."""
    from edge_agent.updating import trust_of

    settings = case.settings
    store = trust_of(settings)
    statement = store.trust(kept=settings.bundle.path is None).check(case.bundle().root)
    if statement is not None:
        return ok(f"signed as number {statement.counter} of {statement.model}; {store.describe()}")
    return warn("it is not signed by anybody this device knows", f"`partitioner sign`; {store.describe()}")


def updates(case: Case) -> Verdict:
    """How the last update ended. What was put aside as bad is not taken again, however often it is offered."""
    from edge_agent.bundles.record import Step
    from edge_agent.bundles.shelf import Shelf

    record = Shelf(case.settings.state_dir / "bundles").load()
    bad = f"; not taken again: {', '.join(one.bundle[:12] for one in record.bad)}" if record.bad else ""
    if record.step is Step.REVERTED:
        remedy = "`edge-agent bundles list` shows the reason; offer a bundle that is mended"
        return warn(f"the last update was taken back: {record.said or 'no reason is known'}{bad}", remedy)
    if not record.current:
        return skip("no bundle was ever installed or came over the air")
    proven = "proven" if record.current == record.proven else f"not proven yet ({record.step})"
    return ok(f"{record.current[:12]} is current and {proven}{bad}")


def age(case: Case) -> Verdict:
    """How old what serves is. A bundle that nobody replaces may be all right: only where updates are on is it odd."""
    built = built_at(case.bundle())
    if built is None:
        return skip("the bundle does not say when it was built")
    days = (time.time() - built) / DAY_S
    if days < -1:
        return warn(f"the bundle was built {-days:.0f} days from now", "see machine.clock; or the build machine's")
    fact = f"the bundle was built {max(days, 0):.0f} days ago"
    if days > OLD_DAYS and case.settings.updates.enabled:
        return warn(fact, "offer a newer one, or set updates.enabled = false where this one is meant to stay")
    return ok(fact)


def heads(case: Case) -> Verdict:
    loaded = case.heads.really()
    by_reason: dict[str, list[str]] = {}
    for id_, reason in loaded.failed.items():
        by_reason.setdefault(reason, []).append(id_)
    found = [
        (warn if loaded.started else fail)(f"{', '.join(ids)}: {reason}", "other placements still serve")
        for reason, ids in by_reason.items()
    ]
    by_place: dict[tuple[str, str], list[str]] = {}
    for file, started in loaded.started.items():
        over = "".join(f", not on {name} ({why})" for name, why in started.passed_over)
        by_place.setdefault((started.name, over), []).append(file)
    for (name, over), files in by_place.items():
        seen = f"{' and '.join(files)} on {name}{over}"
        found.append(warn(seen, _mending(case.bundle(), over)) if over else ok(seen))
    return together(found)


def _mending(bundle: Bundle, why: str) -> str:
    if "TensorRT does not take" in why and bundle.manifest.conditions.head_engine != "tensorrt":
        return "build the bundle with `partitioner split --head-engine tensorrt`"
    return "mend that, or take it out of device.providers"


def fallback(case: Case) -> Verdict:
    bundle = case.bundle()
    entry = bundle.manifest.placement(PlacementKind.EDGE_ONLY)
    allowed = case.settings.bundle.placements
    if entry is None:
        return warn("the bundle has no edge-only placement: without a link every request is refused", "rebuild it")
    if allowed and entry.id not in allowed:
        return warn("edge-only is not among bundle.placements: without a link every request is refused", "add it")
    if entry.id in case.heads().failed:
        return fail(f"edge-only cannot run: {case.heads().failed[entry.id]}", "see bundle.heads")
    return ok(f"edge-only ({entry.precision}) answers when there is no link")


def known_answer(case: Case) -> Verdict:
    """What the build put into the bundle to compare with; else the device's own whole model, on one drawn input."""
    from edge_agent.bundles.first_run import ask_what_is_known
    from protocol.engines.ort import OrtEngine

    bundle = case.bundle()
    if bundle.manifest.known is not None:
        wrong = ask_what_is_known(bundle, case.heads())
        asked = len(bundle.manifest.known.most_deviation)
        if wrong:
            return fail(wrong, "suspect the memory or the driver if the bundle runs well elsewhere; else rebuild it")
        return ok(f"{asked} heads answer the build's own question as they did there")
    entry = _alone(bundle)
    if entry is None or entry.id in case.heads().failed:
        raise UnmetError("no placement runs on the device alone (bundle.fallback)")
    inputs = {spec.name: drawn(spec) for spec in bundle.manifest.model.inputs}
    made = case.heads().prepare(entry.id, inputs).outputs
    again = case.heads().prepare(entry.id, inputs).outputs
    with OrtEngine(bundle.graph("full.onnx"), label="full.onnx") as engine:
        wanted = engine.infer(inputs)
    for name, known in wanted.items():
        if name not in made or made[name].shape != known.shape:
            return fail(f"{entry.id} does not give {name!r} as the model does", "rebuild the bundle")
        if not np.all(np.isfinite(_flat(made[name]))):
            return fail(f"{entry.id} gives {name!r} with values that are no numbers", "rebuild the bundle")
        if not np.allclose(_flat(made[name]), _flat(again[name]), rtol=1e-3, atol=1e-4):
            return fail(f"{entry.id} gives another {name!r} for the same input", "suspect the memory or the driver")
    worst = min(_cosine(made[name], known) for name, known in wanted.items())
    fact = f"{entry.id} ({entry.precision}) agrees with the whole model to a cosine of {worst:.4f} on noise"
    if worst < LEAST_COSINE:
        return warn(fact, "check its accuracy on data with `partitioner verify`")
    return ok(fact)


def speed(case: Case) -> Verdict:
    """Every head's own time beside the one that the plan was made with."""
    bundle, loaded, found = case.bundle(), case.heads(), []
    for entry in _heads_once(bundle):
        if entry.id in loaded.failed or not entry.cost.edge_s:
            continue
        seconds = measured_s(case, entry)
        ratio = seconds / entry.cost.edge_s
        fact = f"{entry.id} {seconds * 1e3:.2f} ms, planned {entry.cost.edge_s * 1e3:.2f} ({ratio:.2f} x)"
        remedy = "the planner learns it as it serves; for a better plan measure here: `edge-agent profile KIT`"
        if ratio > MUCH_SLOWER:
            remedy = f"see machine.governor, machine.throttling and machine.load first; {remedy}"
        found.append(warn(fact, remedy) if is_slower(seconds, entry.cost.edge_s) else ok(fact))
    if not found:
        raise UnmetError("no head can be timed (bundle.heads)")
    return together(found)


def is_slower(seconds: float, planned_s: float) -> bool:
    """Whether a head takes so much longer than was planned that somebody should know."""
    return seconds > SLOWER * planned_s and seconds - planned_s > NOTHING_S


def measured_s(case: Case, entry: PlacementEntry) -> float:
    """Median seconds of one run of the entry's head, the declared slow-down included."""
    inputs = {spec.name: drawn(spec) for spec in case.bundle().manifest.model.inputs}
    for _ in range(_WARM):
        case.heads().prepare(entry.id, inputs)
    times: list[float] = []
    until = time.monotonic() + _SPEED_BUDGET_S
    while len(times) < 3 or (len(times) < _ROUNDS and time.monotonic() < until):
        times.append(case.heads().prepare(entry.id, inputs).edge_s)
    return statistics.median(times)


def drawn(spec: TensorSpec) -> Array:
    """One input that any model takes: noise for floats and pictures, zeros where numbers may be indices."""
    shape = [d if isinstance(d, int) else 1 for d in spec.shape]
    dtype = spec.numpy_dtype
    rng = np.random.default_rng(11)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 256, shape, np.uint8) if dtype == np.uint8 else np.zeros(shape, dtype)


def _heads_once(bundle: Bundle) -> Iterator[PlacementEntry]:
    """One placement for every head: those that differ in the codec share it."""
    return iter({e.head: e for e in reversed(bundle.manifest.placements) if e.head is not None}.values())


def _alone(bundle: Bundle) -> PlacementEntry | None:
    return bundle.manifest.placement(PlacementKind.EDGE_ONLY)


def _flat(array: Array) -> Array:
    return array.astype(np.float64).ravel()


def _cosine(made: Array, known: Array) -> float:
    a, b = _flat(made), _flat(known)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else float(np.array_equal(a, b))
