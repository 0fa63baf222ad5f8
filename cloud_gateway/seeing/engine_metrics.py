"""What metrics say of engines in order of preference: where each one stands, what failed, what it took to load them.

Labels are the engines' names and causes from our own lists, and lanes: all bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from cloud_gateway.seeing.standing import EngineAccount, Standing
from protocol.seeing.exposition import Family, Series, Value, labels


def _states(standing: Standing) -> Iterator[Series]:
    for lane in standing.lanes:
        for engine in lane.engines:
            state = "serving" if engine.serves else engine.state
            yield Series("", labels(lane=lane.key, label=lane.label, engine=engine.kind, state=state), 1)


def _in_half(standing: Standing) -> Iterator[Series]:
    for lane in standing.lanes:
        for engine in lane.engines:
            if engine.precision:
                serves = int(engine.serves)
                yield Series("", labels(lane=lane.key, label=lane.label, engine=engine.kind), serves)


def _account(
    names: tuple[str, ...], read: Callable[[EngineAccount], Mapping[tuple[str, ...], Value]]
) -> Callable[[Standing], Iterator[Series]]:
    """One series for each key, whose parts are what `names` says."""
    return lambda standing: (
        Series("", labels(**dict(zip(names, key, strict=True))), value)
        for key, value in sorted(read(standing.engines).items())
    )


def _one(read: Callable[[EngineAccount], Value]) -> Callable[[Standing], Iterator[Series]]:
    return lambda standing: iter((Series("", "", read(standing.engines)),))


ENGINES: tuple[Family[Standing], ...] = (
    Family(
        "isthmus_lane_engine_state",
        "gauge",
        "Where each engine of a lane's order stands: 1. One serves; ready ones stand by.",
        ("lane", "label", "engine", "state"),
        _states,
    ),
    Family(
        "isthmus_lane_engine_half",
        "gauge",
        "Engines that run the float16 form of a lane's tail: 1 while that serves, 0 while it does not.",
        ("lane", "label", "engine"),
        _in_half,
    ),
    Family(
        "isthmus_engine_failures_total",
        "counter",
        "Times that an engine could not be loaded, or failed a batch that another one ran.",
        ("engine", "cause"),
        _account(("engine", "cause"), lambda account: account.failures),
    ),
    Family(
        "isthmus_engine_loads_total",
        "counter",
        "Engines made ready, or tried to.",
        ("engine", "outcome"),
        _account(("engine", "outcome"), lambda account: account.loads),
    ),
    Family(
        "isthmus_engine_load_seconds_total",
        "counter",
        "Seconds that this took: building, loading, comparing and measuring.",
        ("engine",),
        _account(("engine",), lambda account: account.load_s),
    ),
    Family(
        "isthmus_engine_moves_total",
        "counter",
        "Times that a lane moved from one engine to another.",
        ("from", "to"),
        _account(("from", "to"), lambda account: account.moves),
    ),
    Family(
        "isthmus_engine_reruns_total",
        "counter",
        "Batches that this engine ran because a better one had failed them.",
        ("engine",),
        _account(("engine",), lambda account: account.reruns),
    ),
    Family(
        "isthmus_gpu_reserved_bytes",
        "gauge",
        "Memory of the GPU that lanes have reserved.",
        (),
        _one(lambda account: account.gpu_reserved_nbytes),
    ),
    Family(
        "isthmus_gpu_reservable_bytes",
        "gauge",
        "Memory of the GPU that all lanes may reserve.",
        (),
        _one(lambda account: account.gpu_limit_nbytes),
    ),
)
