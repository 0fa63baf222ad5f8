"""Benchmarks of Isthmus: one runner, one JSON schema, one link to run them over.

Law: a suite is a name here and a function elsewhere. It is imported only when it is run, so that a missing optional
package breaks the suite that needs it and no other.
"""

from __future__ import annotations

from typing import NamedTuple


class Suite(NamedTuple):
    """Where a suite lives: `function` in `module` takes `results.Options` and returns a list of `results.Result`."""

    module: str
    function: str
    summary: str


SUITES: dict[str, Suite] = {
    "prediction": Suite(
        "benchmarks.prediction", "run", "error of predicted head and tail times at cuts not measured (~15 min)"
    ),
    "deciding": Suite(
        "benchmarks.deciding", "run", "the controller, simulated: regret, reaction, flapping; time of a choice (~30 s)"
    ),
    "deciding-live": Suite(
        "benchmarks.deciding_live", "run", "real agents over emulated links beside an oracle and the simulator (~4 min)"
    ),
    "added": Suite(
        "benchmarks.added",
        "run",
        "what the agent adds over calling head and socket directly, and its local API (~1 min)",
    ),
    "chunks": Suite(
        "benchmarks.chunks", "run", "what waits behind a large payload on a slow link, in chunks or not (~6 min)"
    ),
    "solver": Suite("benchmarks.solver", "run", "time of the exact plan table, 500 to 100,000 units (~2 min)"),
    "policies": Suite("benchmarks.policies", "run", "the scheduler beside other servers' rules, simulated (~1 min)"),
    "merging": Suite(
        "benchmarks.merging", "run", "cuts of one model as lanes of their own or merged, simulated (~3 min)"
    ),
    "merging-live": Suite(
        "benchmarks.merging_live", "run", "cuts of one model in one lane or in their own, with real engines (~5 min)"
    ),
    "link": Suite("benchmarks.link_accuracy", "run", "how truly the link emulator keeps rate and round trip (~50 s)"),
    "gateway": Suite(
        "benchmarks.gateway_cost", "run", "server cost per request against bare ZeroMQ + ONNX Runtime (~2 min)"
    ),
    "peers": Suite(
        "benchmarks.peers.suite", "run", "cost and latency of other serving systems, side by side (~6 min a tail)"
    ),
    "goodput": Suite(
        "benchmarks.goodput", "run", "answered in time at 30-200 % of capacity, slack left to the refused (~5 min)"
    ),
    "roundtrip": Suite(
        "benchmarks.roundtrip", "run", "one request's way against a raw echo, 1 KB to 1.6 MB, and with models (~2 min)"
    ),
    "front": Suite("benchmarks.front_process", "run", "what a front that is a process of its own costs (~1 min)"),
    "footprint": Suite(
        "benchmarks.footprint", "run", "the agent's memory over a bare engine, its disk, its imports (~1 min)"
    ),
    "idle": Suite("benchmarks.idle", "run", "what serving costs while nobody asks: start, memory, processor (~1 min)"),
    "input_codecs": Suite(
        "benchmarks.input_codecs",
        "run",
        "what full-cloud would send: bytes, times and accuracy of input codecs (~1 min)",
    ),
    "codecs": Suite("benchmarks.codecs", "run", "bits, speed and accuracy of every rung at several cuts (~8 min)"),
    "streams": Suite("benchmarks.streams", "run", "frames of a panning camera: bits alone and as differences (~2 min)"),
    "int8": Suite("benchmarks.int8", "run", "INT8 recipes: speed, accuracy, the search, layer by layer (~10 min)"),
    "halves": Suite("benchmarks.halves", "run", "tails in float16: size and accuracy beside float32 (~4 min)"),
    "splitting": Suite(
        "benchmarks.splitting",
        "run",
        "does splitting win: 80 situations, latency and gateway seconds, against INT8 edge-only and JPEG (~8 min)",
    ),
    "cuts": Suite(
        "benchmarks.cuts",
        "run",
        "head and tail equal the whole model at every cut: light, shared, exported (9 min of CPU)",
    ),
    "large_model": Suite(
        "benchmarks.large_model",
        "run",
        "2.2 GB of weights through load, split, bundle and back: peak memory (~2 min)",
    ),
    "store": Suite(
        "benchmarks.store", "run", "durable requests: puts beside bare SQLite, and 1,000 kills (~15 min; --set kills=N)"
    ),
    "faults": Suite(
        "benchmarks.faults.suite",
        "run",
        "kills, silence, strangers and loss while requests are asked: what became of each (~5 min; --set kills=N)",
    ),
    "knocks": Suite("benchmarks.knocks", "run", "what a device that is turned away costs the gateway (~20 s)"),
    "gpu": Suite("benchmarks.gpu", "run", "every engine that is here, through the gateway and bare (~2 min an engine)"),
    "order": Suite("benchmarks.ordering", "run", "what an order of engines costs while nothing fails (~10 s)"),
    "scrape": Suite("benchmarks.scrape", "run", "what metrics cost: one scrape, one request's account (~30 s)"),
}
