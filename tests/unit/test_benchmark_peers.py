"""The suites that measure servers: clients that read any pieces, open loops that hide nothing, honest rows."""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import SUITES, goodput, tails
from benchmarks.__main__ import load as suite
from benchmarks.goodput import Stretch, results_of
from benchmarks.open_loop import Outcome, Reply, offer, poisson
from benchmarks.peers.catalogue import SYSTEMS
from benchmarks.peers.closed_loop import Load
from benchmarks.peers.http_client import BODIES, Answer, AnswerError, Reader
from benchmarks.peers.processes import Cores, ServerProcess, free_ports, pinned, python
from benchmarks.peers.questions import Questions, session_of
from benchmarks.peers.suite import at_least, listed, rows
from benchmarks.results import Result

TENSOR = np.arange(8, dtype=np.float32).reshape(1, 8)


# ---- HTTP ----------------------------------------------------------------------------------------------------------


def answer(body: bytes, *, status: int = 200, more: str = "") -> bytes:
    return f"HTTP/1.1 {status} Said\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_answers_are_the_same_in_whatever_pieces_they_come(bodies: list[bytes], sizes: list[int]) -> None:
    reader, got, pieces = Reader(), [], deque(sizes)
    for body in bodies:  # one request at a time on a connection: the next is sent once this one is answered
        stream = answer(body)
        while stream:
            size = pieces[0]
            pieces.rotate()
            if (found := reader.feed(stream[:size])) is not None:
                got.append(found)
            stream = stream[size:]
    assert got == [Answer(200, body) for body in bodies]


def test_the_json_in_front_of_a_binary_tensor_is_left_out() -> None:
    found = Reader().feed(answer(b'{"outputs":[]}' + TENSOR.tobytes(), more="Inference-Header-Content-Length: 14\r\n"))
    assert found == Answer(200, TENSOR.tobytes())


def test_a_refusal_is_an_answer_with_its_status() -> None:
    assert Reader().feed(answer(b"too busy", status=429)) == Answer(429, b"too busy")


def test_an_answer_that_does_not_say_its_length_is_refused() -> None:
    with pytest.raises(AnswerError, match="without a length"):
        Reader().feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")


@pytest.mark.parametrize("form", sorted(BODIES))
def test_every_form_of_a_request_carries_the_tensors_bytes_once(form: str) -> None:
    headers, body = BODIES[form](TENSOR)
    assert body.count(TENSOR.tobytes()) == 1
    if form == "v2":
        assert body[int(headers["Inference-Header-Content-Length"]) :] == TENSOR.tobytes()


# ---- the open loop ---------------------------------------------------------------------------------------------------


class Server:
    """A double in its own time: answers after `takes_s`, one by one; refuses who would wait longer than told."""

    def __init__(self, takes_s: float, *, knows_deadlines: bool, slots: int = 10**9, answers: bool = True) -> None:
        self.now = 0.0
        self._takes_s = takes_s
        self._knows_deadlines = knows_deadlines
        self._slots = slots
        self._answers = answers
        self._free_at = 0.0
        self._coming: list[tuple[float, Reply]] = []

    def clock(self) -> float:
        return self.now

    def ask(self, number: int, budget_us: int) -> bool:
        if len(self._coming) >= self._slots:
            return False
        done_at = max(self._free_at, self.now) + self._takes_s
        if self._knows_deadlines and done_at > self.now + budget_us / 1e6:
            self._coming.append((self.now, Reply(number, "DEADLINE", budget_us / 1e6)))
        else:
            self._free_at = done_at
            self._coming.append((done_at, Reply(number)))
        return True

    def replies(self, timeout_s: float) -> list[Reply]:
        self.now += min(max(timeout_s, 1e-5), 1e-3)
        found = [reply for at, reply in self._coming if at <= self.now and self._answers]
        self._coming = [(at, reply) for at, reply in self._coming if at > self.now or not self._answers]
        return found


def play(server: Server, rate_per_s: float, window_s: float = 2.0) -> Outcome:
    due = poisson(rate_per_s, window_s, seed="a")
    return offer(server, due, budget_s=0.05, margin_s=0.002, clock=server.clock)


def total(outcome: Outcome) -> int:
    ended = outcome.in_time + outcome.late + outcome.dropped + outcome.unanswered
    return ended + outcome.refused.total()


def test_arrivals_have_the_rate_that_was_asked_for_and_come_again_for_the_same_seed() -> None:
    due = poisson(500.0, 10.0, seed="x")
    assert len(due) == pytest.approx(5000, rel=0.05)
    assert due == sorted(due) == poisson(500.0, 10.0, seed="x") != poisson(500.0, 10.0, seed="y")


def test_a_server_that_knows_deadlines_answers_nobody_late_and_leaves_time_to_the_refused() -> None:
    outcome = play(Server(0.005, knows_deadlines=True), 400.0)
    assert outcome.late == outcome.unanswered == 0
    assert outcome.in_time == pytest.approx(400, rel=0.1)  # of 200/s in two seconds
    assert outcome.refused.keys() == {"DEADLINE"}
    assert min(outcome.slack) > 0.8
    assert total(outcome) == outcome.offered


def test_a_server_that_knows_none_answers_almost_everybody_late() -> None:
    outcome = play(Server(0.005, knows_deadlines=False), 400.0)
    assert outcome.late + outcome.unanswered > 0.8 * outcome.offered
    assert total(outcome) == outcome.offered


def test_lateness_counts_from_when_a_request_was_due_not_from_when_a_connection_was_free() -> None:
    outcome = play(Server(0.03, knows_deadlines=False, slots=1), 100.0)
    assert outcome.dropped > 0.5 * outcome.offered
    assert outcome.late > 0
    assert max(outcome.lags_s) > 0.02
    assert total(outcome) == outcome.offered


def test_who_is_never_answered_is_counted() -> None:
    outcome = play(Server(0.001, knows_deadlines=False, answers=False), 100.0, 0.2)
    assert outcome.unanswered == outcome.offered > 0


# ---- rows ------------------------------------------------------------------------------------------------------------


def stretch(in_time: int, *, late: int = 0, slack: float = 0.9) -> Stretch:
    outcome = Outcome(240, in_time=in_time, late=late, slack=[slack], seen_slack=[slack])
    outcome.refused["DEADLINE"] = 240 - in_time - late
    return Stretch(outcome, capacity_per_s=100.0, window_s=2.0)


def misses(results: list[Result]) -> set[str]:
    return {result.name.split(": ")[1] for result in results if result.ok is False}


def test_targets_hold_for_us_and_for_nobody_else() -> None:
    good, bad = {1.2: [stretch(170)]}, {1.2: [stretch(100, late=3, slack=0.3)]}
    assert not misses(results_of("t", good, ours=True))
    assert misses(results_of("t", bad, ours=True)) == {
        "in time, of capacity",
        "answered late",
        "slack of the refused, as told",
        "slack of the refused, by its own clock",
    }
    assert all(result.ok is None for result in results_of("t", bad, ours=False))


def test_ratios_are_formed_within_a_round() -> None:
    def loads(*cpu_ms: float) -> dict[int, Load]:
        return {number: Load(100.0, cpu, 1.0, 2.0, 0, 0.1) for number, cpu in enumerate(cpu_ms)}

    rounds = {("bare", 32): loads(1.0, 2.0, 4.0), ("isthmus", 32): loads(1.2, 2.4, 4.8)}
    del rounds["bare", 32][0]
    found = {row.name: row for row in rows("tail_light", rounds, [100.0] * 3, {}, {})}
    ratio = found["tail_light, c=32, isthmus: server CPU over bare"]
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((1.2, 1.2, 1.2))
    assert ratio.ok


def test_what_did_not_run_is_listed_with_its_reason_and_ours_giving_up_is_a_miss() -> None:
    absent = {"torchserve": "no Java runtime", "isthmus": "gave up at 8 clients: timed out"}
    found = {row.name: row for row in rows("tail_fc", {}, [], {}, absent)}
    assert found["tail_fc, torchserve: not run"].note == "no Java runtime"
    assert found["tail_fc, torchserve: not run"].ok is None
    assert found["tail_fc, isthmus: not run"].ok is False


def test_a_lower_bound_is_kept_by_the_median() -> None:
    assert at_least(Result.of("a", "x", [0.5, 0.8, 0.9]), 0.8).ok
    assert at_least(Result.of("a", "x", [0.5, 0.79, 0.9]), 0.8).ok is False


def test_a_misspelt_peer_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(SystemExit, match=r"mosek is unknown; known are bare, isthmus"):
        listed({"peers": "mosec,mosek"}, "peers", (), known=SYSTEMS)


@pytest.mark.parametrize("name", ["peers", "goodput", "roundtrip", "idle"])
def test_every_suite_of_the_gateway_can_be_imported(name: str) -> None:
    assert SUITES[name].summary
    assert callable(suite(name))
    assert goodput.CAPACITY_TARGETS == {1.2: 0.80, 2.0: 0.70}


# ---- models and processes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tails.NAMES)
def test_a_tail_answers_a_batch_as_it_answers_one_by_one(name: str, tmp_path: Path) -> None:
    model = tails.build(name, tmp_path)
    questions = Questions.of(model)
    (answers,) = session_of(model).run(None, {"x": np.concatenate(questions.tensors)})
    assert all(questions.is_right(which, row.tobytes()) for which, row in enumerate(answers))
    assert {tensor.nbytes for tensor in questions.tensors} == {200_704}
    assert not questions.is_right(3, questions.answers[4].tobytes())
    assert not questions.is_right(3, questions.answers[3].tobytes()[:-4])
    assert tails.CUTS[name] in (tmp_path / f"{name}.onnx").read_bytes().decode("latin-1")


def test_processor_time_and_memory_count_a_servers_children_and_stopping_ends_them_all(tmp_path: Path) -> None:
    child = "x = bytearray(30_000_000); n = sum(range(3_000_000)); print('ready', flush=True); input()"
    parent = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE).wait()"
    )
    server = ServerProcess(
        python("-c", parent), core=Cores.of_this_machine().server, log=tmp_path / "log", says_ready=True
    )
    with server:
        assert server.ready_line() == ""
        assert len(server.pids()) == 2
        assert server.cpu_s() > 0.01
        assert server.rss_nbytes() > 30_000_000
    assert server.pids() == []


def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    server = ServerProcess(
        python("-c", "raise SystemExit('no luck')"), core=None, log=tmp_path / "log", says_ready=True
    )
    with server, pytest.raises(RuntimeError, match="no luck"):
        server.ready_line()


def test_a_paused_server_uses_no_processor_time(tmp_path: Path) -> None:
    code = "print('ready', flush=True)\nwhile True: pass"
    with ServerProcess(python("-c", code), core=None, log=tmp_path / "log", says_ready=True) as server:
        server.ready_line()
        server.pause()
        before = server.cpu_s()
        deadline = time.monotonic() + 0.05
        while time.monotonic() < deadline:
            pass
        assert server.cpu_s() - before < 0.02
        server.resume()


def test_a_core_is_given_back() -> None:
    before = os.sched_getaffinity(0)
    with pinned(min(before)):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_free_ports_are_all_different() -> None:
    assert len(set(free_ports(5))) == 5
