"""How the series of a metric are read from a scene; `metrics` is the table that says which metric is read how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import accumulate

from edge_agent.seeing.figures import Counters, Figures
from edge_agent.seeing.scene import Scene
from edge_agent.seeing.standing import BoardStanding, GatewayStanding, PlacementStanding, StoreStanding
from protocol.seeing.exposition import Series, Value, buckets, joined, labels
from protocol.seeing.nvml import Gpu
from protocol.seeing.sums import SLACK_BOUNDS_S
from protocol.seeing.windows import Quantiles

STAGES = ("edge", "encode", "network", "queue", "decode", "compute", "waited")
# Triton tells four reasons apart; our own codes are finer and stand in isthmus_agent_refused_requests_total.
TRITON_REASONS = {"DEADLINE": "REJECTED", "NO_PLACEMENT": "REJECTED", "BUSY": "REJECTED", "CLOSED": "CANCELED",
                  "CANCELLED": "CANCELED"}  # fmt: skip


def each(read: Callable[[Figures, str], Iterable[Series]]) -> Callable[[Scene], Iterator[Series]]:
    """The series of every scope."""

    def series(scene: Scene) -> Iterator[Series]:
        for figures, scope in scene.snapshot.labelled:
            yield from read(figures, scope)

    return series


def one(read: Callable[[Figures], Value]) -> Callable[[Scene], Iterator[Series]]:
    return lambda scene: (Series("", scope, read(figures)) for figures, scope in scene.snapshot.labelled)


def total(read: Callable[[Counters], Value]) -> Callable[[Scene], Iterator[Series]]:
    return lambda scene: (Series("", scope, read(figures.counters)) for figures, scope in scene.snapshot.labelled)


def model(read: Callable[[Counters], float]) -> Callable[[Scene], Iterator[Series]]:
    return lambda scene: (
        Series("", labels(model=model, version=version), value)
        for (model, version), value in scene.of_models(read).items()
    )


def micros(read: Callable[[Counters], float]) -> Callable[[Scene], Iterator[Series]]:
    return model(lambda c: round(read(c) * 1e6))


def agent(read: Callable[[Scene], Value]) -> Callable[[Scene], Iterable[Series]]:
    return lambda scene: (Series("", "", read(scene)),)


def failures(scene: Scene) -> Iterator[Series]:
    for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER"):
        sums = scene.of_models(partial(_refused_for, reason))
        for (model, version), number in sums.items():
            yield Series("", labels(model=model, version=version, reason=reason), number)


def _refused_for(reason: str, counters: Counters) -> int:
    return sum(n for code, n in counters.refused.items() if TRITON_REASONS.get(code, "OTHER") == reason)


def refusals(figures: Figures, scope: str) -> Iterator[Series]:
    model = labels(model=figures.scope.model, version=figures.scope.version)
    return (Series("", joined(model, labels(code=code)), n) for code, n in figures.counters.refused.items())


def slack(figures: Figures, scope: str) -> Iterable[Series]:
    c = figures.counters
    if not c.slack_budgeted:
        return ()
    model = labels(model=figures.scope.model, version=figures.scope.version)
    return buckets(SLACK_BOUNDS_S, accumulate(c.slack[:-1]), c.slack_budgeted, c.slack_s, model)


def causes(figures: Figures, scope: str) -> Iterator[Series]:
    return (Series("", joined(scope, labels(cause=cause)), n) for cause, n in figures.counters.causes.items())


def stage_sums(figures: Figures, scope: str) -> Iterator[Series]:
    for stage in STAGES:
        spent_s: float = getattr(figures.counters, f"{stage}_s")
        yield Series("", joined(scope, labels(stage=stage)), spent_s)


def _spans(figures: Figures, scope: str) -> Iterator[tuple[str, Quantiles]]:
    for stage in ("total", "edge", "network", "gateway"):
        found: Quantiles | None = getattr(figures, stage)
        if found is not None:
            yield joined(scope, labels(stage=stage)), found


def quantiles(figures: Figures, scope: str) -> Iterator[Series]:
    for stage, found in _spans(figures, scope):
        for share, value in (("0.5", found.p50_s), ("0.9", found.p90_s), ("0.99", found.p99_s)):
            yield Series("", joined(stage, labels(quantile=share)), value)


def covered(figures: Figures, scope: str) -> Iterator[Series]:
    return (Series("", stage, found.window_s) for stage, found in _spans(figures, scope))


def engine(figures: Figures, scope: str) -> Iterator[Series]:
    if figures.engine:
        yield Series("", joined(scope, labels(engine=figures.engine)), 1)


def gateways(read: Callable[[GatewayStanding], Value]) -> Callable[[Scene], Iterator[Series]]:
    return lambda scene: (Series("", labels(gateway=g.name), read(g)) for g in scene.standing.gateways)


def placements(read: Callable[[PlacementStanding], Value]) -> Callable[[Scene], Iterator[Series]]:
    return lambda scene: (Series("", labels(placement=p.id), read(p)) for p in scene.standing.placements)


def current(scene: Scene) -> Iterator[Series]:
    now = scene.standing.placement
    return (Series("", labels(placement=p.id), int(p.id == now)) for p in scene.standing.placements)


def store(read: Callable[[StoreStanding], Value]) -> Callable[[Scene], Iterable[Series]]:
    return lambda scene: () if scene.standing.store is None else (Series("", "", read(scene.standing.store)),)


def board(read: Callable[[BoardStanding], Value]) -> Callable[[Scene], Iterable[Series]]:
    return lambda scene: () if scene.standing.board is None else (Series("", "", read(scene.standing.board)),)


def gpus(read: Callable[[Gpu], Value]) -> Callable[[Scene], Iterator[Series]]:
    return lambda scene: (Series("", labels(gpu_uuid=gpu.uuid), read(gpu)) for gpu in scene.machine.gpus)


def heat(scene: Scene) -> Iterator[Series]:
    board = scene.standing.board
    if board is not None and board.heat is not None:
        yield Series("", labels(zone=board.heat), board.celsius)


def events(scene: Scene) -> Iterator[Series]:
    counts = dict(scene.snapshot.events)
    for what, n in scene.standing.events.items():
        counts[what] = counts.get(what, 0) + n
    return (Series("", labels(event=what), n) for what, n in counts.items())


def bundle(scene: Scene) -> Iterator[Series]:
    bundle = scene.standing.bundle
    if bundle.digest:
        yield Series("", labels(model=bundle.model, version=bundle.version, digest=bundle.digest[:12]), 1)


def build(scene: Scene) -> Iterator[Series]:
    board = scene.standing.board
    mode = (board.power_mode if board is not None else None) or ""
    model = (board.model if board is not None else None) or ""
    yield Series("", labels(software=scene.software, board=model, power_mode=mode), 1)
