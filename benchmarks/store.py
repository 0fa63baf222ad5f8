"""Durable requests: what a put costs beside bare SQLite with the same durability, and what a thousand kills lose.

The bare loop writes the same bytes into one table, WAL with synchronous=FULL, on the same disk, turn by turn with ours:
absolute times are the disk's, the ratio is ours. `--set kills=N` for another number of kills, `--set folder=DIR` for
another disk.
"""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.results import Options, Result
from benchmarks.store_kills import kill_again_and_again
from benchmarks.store_worker import X_NBYTES, Adder, wish
from edge_agent.store.client import StoreClient
from edge_agent.store.forwarder import Forwarder
from edge_agent.store.journal import FILE, Journal
from edge_agent.store.pacing import Pace
from edge_agent.store.tickets import Caps

GROUP = 64
MOST_READY_S = 3.0
MOST_RATIO = 1.5
FOREVER_S = 60.0
CAPS = Caps(most_tickets=1_000_000, most_nbytes=1 << 30)


def run(options: Options) -> list[Result]:
    """Puts alone and in groups, the way there and back, the disk given back, and the kills."""
    kills = int(options.settings.get("kills", 10 if options.quick else 1000))
    repeats = 3 if options.quick else max(options.repeats, 10)
    with tempfile.TemporaryDirectory(dir=options.settings.get("folder"), prefix="store-") as name:
        folder = Path(name)
        return [*_puts(folder, repeats), *_there_and_back(folder, repeats), _given_back(folder), *_kills(folder, kills)]


def _puts(folder: Path, repeats: int) -> list[Result]:
    singles: dict[str, list[float]] = {"bare": [], "ours": []}
    groups: dict[str, list[float]] = {"bare": [], "ours": []}
    numbers = itertools.count()
    with Journal(folder / "puts", CAPS) as journal, _bare(folder / "bare.sqlite3") as bare:
        for _ in range(repeats):
            singles["bare"].append(_per_item(lambda: bare(1), GROUP, 1))
            singles["ours"].append(_per_item(lambda: journal.put(wish(next(numbers))), GROUP, 1))
            groups["bare"].append(_per_item(lambda: bare(GROUP), 8, GROUP))
            groups["ours"].append(_per_item(lambda: _put_together(journal, numbers), 8, GROUP))
        callers = [_callers(journal, numbers) for _ in range(repeats)]
    ratio = [ours / bare for ours, bare in zip(singles["ours"], singles["bare"], strict=True)]
    together = [ours / bare for ours, bare in zip(groups["ours"], groups["bare"], strict=True)]
    note = f"{X_NBYTES:,} bytes each"
    return [
        Result.of("puts of one caller", "1/s", [1 / s for s in singles["ours"]], note=note),
        Result.of("bare inserts, one by one", "1/s", [1 / s for s in singles["bare"]], note=note),
        Result.bounded("time of a put over a bare insert", "x", ratio, at_most=MOST_RATIO),
        Result.of(f"puts in groups of {GROUP}", "1/s", [1 / s for s in groups["ours"]], note="futures of one caller"),
        Result.of(f"bare inserts, {GROUP} a commit", "1/s", [1 / s for s in groups["bare"]]),
        Result.of("time in a group over a bare one", "x", together),
        Result.of("puts of 16 callers that wait", "1/s", callers, note="one thread each"),
    ]


def _per_item(work: Callable[[], object], times: int, items: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / (times * items)


def _put_together(journal: Journal, numbers: Iterator[int]) -> None:
    for future in [journal.offer(wish(next(numbers))) for _ in range(GROUP)]:
        future.result()


def _callers(journal: Journal, numbers: Iterator[int], callers: int = 16, each: int = 20) -> float:
    def work() -> None:
        for _ in range(each):
            journal.put(wish(next(numbers)))

    threads = [threading.Thread(target=work) for _ in range(callers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return callers * each / (time.perf_counter() - began)


@contextmanager
def _bare(path: Path) -> Iterator[Callable[[int], None]]:
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    connection.execute("CREATE TABLE requests (seq INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB)")
    data = bytes(X_NBYTES)

    def insert(count: int) -> None:
        connection.execute("BEGIN IMMEDIATE")
        for _ in range(count):
            connection.execute("INSERT INTO requests (data) VALUES (?)", (data,))
        connection.execute("COMMIT")

    yield insert
    connection.close()


def _there_and_back(folder: Path, repeats: int) -> list[Result]:
    """From `put` to the answer in hand, with an agent that takes 2 ms: four commits, one after the other."""
    took = []
    with Journal(folder / "way", CAPS) as journal:
        client, adder = StoreClient(journal), Adder()
        pace = Pace(quiet_s=0.0, look_s=0.001)
        with Forwarder(journal, lambda: adder, accepts=lambda model, inputs: None, pace=pace):
            for x in range(5 * repeats):
                began = time.perf_counter()
                client.wait(client.put(wish(x)), timeout_s=FOREVER_S)
                took.append((time.perf_counter() - began) * 1e3)
    return [Result.of("put to answer in hand", "ms", took, note="put, attempt, answer and take, each on the disk")]


def _given_back(folder: Path) -> Result:
    """The largest file that the store had, and what is left of it when it is empty."""
    path = folder / "emptied" / FILE
    with Journal(path.parent, CAPS) as journal:
        tickets = [future.result() for future in [journal.offer(wish(x)) for x in range(5000)]]
        futures = [journal.dropping(ticket) for ticket in tickets]
        for future in futures:
            future.result()
        until = time.monotonic() + 10
        while path.stat().st_size > (1 << 20) and time.monotonic() < until:
            time.sleep(0.01)
        left = sum(p.stat().st_size for p in path.parent.iterdir() if p.name == FILE) / 1e6
    return Result.bounded("file when 10 MB are gone", "MB", [left], at_most=1.0)


def _kills(folder: Path, kills: int) -> list[Result]:
    account = kill_again_and_again(folder / "killed", kills, seed=1)
    ready = sorted(account.ready_s)
    p99 = ready[min(len(ready) - 1, int(0.99 * len(ready)))]
    note = f"{kills} kills, {len(account.acknowledged):,} acknowledged, {len(account.taken):,} answers taken"
    return [
        Result.bounded("acknowledged and lost", "requests", [len(account.lost)], at_most=0, note=note),
        Result.bounded("given out twice", "requests", [len(account.twice)], at_most=0),
        Result.bounded(
            "wrong, expired or refused", "requests", [len(account.wrong) + account.ended_otherwise], at_most=0
        ),
        Result.of("takes cut off by a kill", "requests", [len(account.cut_off)], note="at most once: look, then drop"),
        Result.of("sent again, under the same id", "requests", [account.sent_again], note="gateways tell them"),
        Result.bounded("ready again, p99", "s", [p99], at_most=MOST_READY_S, note="a new process, store opened"),
    ]
