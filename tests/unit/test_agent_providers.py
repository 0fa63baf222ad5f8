"""The order in which execution providers are tried: what is asked for runs, or it is said why not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_agent.device.providers import PROVIDERS, Attempt, attempts, first_that_runs
from protocol.engines.base import Engine
from protocol.engines.catalogue import KINDS
from protocol.engines.fake import FakeEngine
from protocol.errors import EngineError, InputError
from tests.processes import ROOT

TRT, CUDA, CPU = PROVIDERS.values()
ALL = ("tensorrt", "cuda", "cpu")


class Installed:
    """Starts engines on what works here and keeps what was tried."""

    def __init__(self, *working: str) -> None:
        self.tried: list[tuple[str, ...]] = []
        self._working = working

    def __call__(self, attempt: Attempt) -> Engine:
        providers = attempt.providers
        self.tried.append(providers)
        if providers[0] not in self._working:
            raise EngineError(f"{providers[0]} does not load", "")
        return FakeEngine(lambda tensors: dict(tensors), label=providers[0])


def test_what_an_accelerator_leaves_goes_to_a_later_one_and_never_to_the_processor() -> None:
    assert attempts(ALL, [TRT, CUDA, CPU]) == (
        Attempt("tensorrt", (TRT, CUDA)),
        Attempt("cuda", (CUDA,)),
        Attempt("cpu", (CPU,)),
    )
    assert attempts(("cpu", "cuda"), [CUDA, CPU]) == (Attempt("cpu", (CPU,)), Attempt("cuda", (CUDA,)))


def test_what_the_build_does_not_bring_is_not_tried_and_named_with_its_reason() -> None:
    installed = Installed(CPU)
    started = first_that_runs(attempts(ALL, [CPU]), installed)
    assert started.name == "cpu"
    assert installed.tried == [(CPU,)]
    assert [name for name, _ in started.passed_over] == ["tensorrt", "cuda"]
    assert CUDA in started.passed_over[1][1]


def test_the_first_that_runs_is_taken_and_the_others_are_left_alone() -> None:
    installed = Installed(CUDA, CPU)
    started = first_that_runs(attempts(ALL, [TRT, CUDA, CPU]), installed)
    assert (started.name, installed.tried) == ("cuda", [(TRT, CUDA), (CUDA,)])
    assert started.passed_over == (("tensorrt", f"{TRT} does not load"),)


def test_without_the_processor_in_the_order_nothing_falls_back_to_it() -> None:
    installed = Installed(CPU)
    with pytest.raises(EngineError, match=r"tensorrt: .*does not load.*cuda: .*built without"):
        first_that_runs(attempts(("tensorrt", "cuda"), [TRT, CPU]), installed)
    assert installed.tried == [(TRT,)]


@pytest.mark.parametrize("order", [(), ("cpu", "cpu"), ("gpu",)])
def test_an_order_that_means_nothing_is_refused(order: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="execution provider"):
        attempts(order, [CPU])


def test_tensorrt_itself_is_an_engine_of_its_own_which_this_machine_lacks_or_has() -> None:
    native, cpu = attempts(("tensorrt-native", "cpu"), [CPU])
    assert (native.name, native.providers, native.lacking) == ("tensorrt-native", (), KINDS["tensorrt"].absent())
    assert cpu == Attempt("cpu", (CPU,))
    if native.lacking:
        started = first_that_runs((native, cpu), Installed(CPU))
        assert started.passed_over == (("tensorrt-native", native.lacking),)


def test_onnx_runtime_gives_nothing_to_an_engine_that_is_not_its_own() -> None:
    assert attempts(("tensorrt", "tensorrt-native", "cuda"), [TRT, CUDA, CPU])[0].providers == (TRT, CUDA)


def test_an_agent_that_asks_for_no_gpu_imports_nothing_for_one() -> None:
    code = "import edge_agent.agent, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    gpu = {"tensorrt", "tensorrt_rtx", "pycuda", "cuda", "protocol.engines.tensorrt", "protocol.engines.driver"}
    assert not gpu & set(done.stdout.split())
