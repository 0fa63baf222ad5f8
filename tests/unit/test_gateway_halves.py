"""Tails in float16: which engines are given that form, how far it may lie from float32, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from msgspec import structs

from cloud_gateway.config import EnginesSettings, load_settings
from cloud_gateway.desk import Desk
from cloud_gateway.models.catalogue import Catalogue, Defaults
from cloud_gateway.models.making import ROOM_NBYTES, WEIGHTS, Making
from cloud_gateway.models.overrides import overridden
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.served import HalfForm, ServedVersion, Tail, tail_of
from cloud_gateway.models.settings import ModelSettings, Wanted
from cloud_gateway.models.trial import TryAnotherError
from cloud_gateway.models.workshop import Workshop
from cloud_gateway.scheduling.admission import Limits
from protocol.bundle import BoundaryTensor, Bundle, HalfTail, ParityCertificate
from protocol.engines.base import Engine
from protocol.engines.catalogue import CPU, KINDS, EngineOptions, Kind
from protocol.engines.trt_options import GpuError
from protocol.errors import BundleError
from protocol.messages import PlacementKind
from protocol.tensors import TensorSpec
from tests.scripted_engines import Scripted, X

FLOAT, HALF = b"the tail in float32, which is long", b"the tail in float16"
GPU: Literal["onnxruntime-cuda"] = "onnxruntime-cuda"
OTHER = "tensorrt"
BOUNDARY = BoundaryTensor(TensorSpec("x", "float32", ("N", 1)), "raw", 0)


def tail(half: str = "h") -> Tail:
    return Tail(
        key="a" * 64,
        label="cut-1/tail",
        placement="cut-1",
        kind=PlacementKind.CUT,
        precision="fp32",
        segment=b"s" * 32,
        boundary=(BOUNDARY,),
        batchable=True,
        output_axes={"y": 0},
        graph=lambda: FLOAT,
        half=HalfForm(half * 64, lambda: HALF) if half else None,
    )


@dataclass
class Shop:
    """What engines are asked to run, by kind; each computes 2x, or what `factors` says."""

    factors: Mapping[str, float] = field(default_factory=dict)
    absent: str = ""
    given: dict[str, bytes] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)
    made: dict[str, Scripted] = field(default_factory=dict)
    workshop: Workshop = field(default_factory=Workshop)

    def __post_init__(self) -> None:
        self.workshop.enter = lambda engine: None  # type: ignore[method-assign]

    def kinds(self) -> dict[str, Kind]:
        def kind(name: str, *, on_gpu: bool, takes_half: bool) -> Kind:
            def make(graph: bytes, options: EngineOptions) -> Scripted:
                self.given[name], self.memory[name] = graph, options.gpu_memory_nbytes
                self.made[name] = Scripted(name, factor=self.factors.get(name, 2.0))
                return self.made[name]

            return Kind(name, lambda: self.absent if on_gpu else "", make, on_gpu=on_gpu, takes_half=takes_half)

        return {
            OTHER: kind(OTHER, on_gpu=True, takes_half=False),
            GPU: kind(GPU, on_gpu=True, takes_half=True),
            CPU: kind(CPU, on_gpu=False, takes_half=False),
        }

    def engine(self, wanted: Wanted | None = None, *, of: Tail | None = None, **settings: Any) -> PreferredEngine:
        asked = EnginesSettings(order=(GPU, "onnxruntime-cpu"), **settings)
        made = Making(asked, self.workshop, kinds=self.kinds())(of or tail(), wanted or Wanted())
        assert isinstance(made, PreferredEngine)
        return made


def test_engines_of_a_gpu_gain_by_float16_and_the_processor_does_not() -> None:
    assert {name for name, kind in KINDS.items() if kind.takes_half} == KINDS.keys() - {CPU}


def test_an_engine_that_gains_by_it_runs_the_tail_in_float16_and_the_processor_in_float32() -> None:
    shop = Shop()
    with shop.engine() as engine:
        assert shop.given == {GPU: HALF, CPU: FLOAT}
        assert engine.infer(X)["y"].tolist() == [[2.0]]
        assert (engine.description, engine.ran) == ("scripted onnxruntime-cuda, float16",) * 2
        assert [(look.kind, look.precision) for look in engine.look()] == [(GPU, "float16"), (CPU, "")]


def test_one_that_does_not_gain_by_it_runs_float32_on_the_gpu_as_well() -> None:
    shop = Shop()
    with shop.engine(Wanted(order=(OTHER, GPU, CPU))):
        assert shop.given == {OTHER: FLOAT, GPU: HALF, CPU: FLOAT}


def test_its_answers_after_a_failure_are_those_of_float32_and_say_so() -> None:
    shop = Shop()
    with shop.engine() as engine:
        shop.made[GPU].fails.append(GpuError("it fell over", cause="device-lost"))
        with pytest.raises(TryAnotherError) as caught:
            engine.infer(X)
        with engine.using(caught.value.instead):
            engine.infer(X)
        assert engine.ran == "scripted onnxruntime-cpu"


@pytest.mark.parametrize(
    ("wanted", "settings", "runs"),
    [
        (Wanted(), {"half": "never"}, FLOAT),
        (Wanted(half="never"), {}, FLOAT),
        (Wanted(half="auto"), {"half": "never"}, HALF),
    ],
    ids=["the gateway says never", "the model says never", "the model says auto"],
)
def test_whoever_wants_float32_everywhere_can_have_it(wanted: Wanted, settings: dict[str, Any], runs: bytes) -> None:
    shop = Shop()
    with shop.engine(wanted, **settings) as engine:
        assert shop.given[GPU] == runs
        assert engine.description.endswith("float16") is (runs is HALF)


def test_a_bundle_without_such_a_tail_is_served_in_float32() -> None:
    shop = Shop()
    with shop.engine(of=tail(half="")):
        assert shop.given == {GPU: FLOAT, CPU: FLOAT}


def test_memory_is_reserved_for_the_form_that_runs() -> None:
    shop = Shop()
    with shop.engine():
        assert shop.memory == {GPU: WEIGHTS * len(HALF) + ROOM_NBYTES, CPU: None}
    with shop.engine(Wanted(gpu_memory_nbytes=7)):
        assert shop.memory[GPU] == 7


def test_what_this_machine_lacks_is_not_read() -> None:
    def never() -> bytes:
        raise AssertionError("nobody runs it")

    shop = Shop(absent="no driver")
    with shop.engine(of=replace(tail(), half=HalfForm("h" * 64, never))) as engine:
        assert engine.kind == CPU


@pytest.mark.parametrize(
    ("factor", "half", "serves"),
    [(2.1, "h", GPU), (2.1, "", CPU), (3.0, "h", CPU)],
    ids=["5 % off in float16", "5 % off in float32", "50 % off in float16"],
)
def test_float16_may_lie_further_from_the_processors_answer_but_not_anywhere(
    factor: float, half: str, serves: str
) -> None:
    with Shop({GPU: factor}).engine(of=tail(half)) as engine:
        assert engine.kind == serves


def test_how_far_is_a_setting() -> None:
    with Shop({GPU: 2.1}).engine(half_tolerance=0.02) as engine:
        assert engine.kind == CPU


def test_the_settings_of_one_model_win() -> None:
    settings = load_settings(env={}, overrides={"models.override.toy.half": "never"}).settings
    assert overridden(ModelSettings(), settings, "toy").half == "never"
    assert overridden(ModelSettings(), settings, "other").half is None
    assert settings.engines.half == "auto"


# ---- lanes ----------------------------------------------------------------------------------------------------------


class Engines:
    """Counts what is made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, tail: Tail, wanted: Wanted) -> Engine:
        self.made += 1
        return Scripted(tail.label)


def version(number: int, half: str) -> ServedVersion:
    return ServedVersion(
        name="m",
        version=number,
        folder=Path(),
        format="bundle",
        digest=f"{number}" * 64,
        model_digest=bytes([number]) * 32,
        tails=(tail(half),),
        settings=ModelSettings(),
    )


@pytest.mark.parametrize(
    ("halves", "lanes"), [(("h", "h"), 1), (("h", "i"), 2), (("h", ""), 2)], ids=["alike", "other", "one without"]
)
def test_versions_share_a_lane_only_if_both_forms_of_their_tails_are_the_same(
    halves: tuple[str, str], lanes: int
) -> None:
    engines = Engines()
    catalogue = Catalogue(
        Desk(Limits(), threads=1), Defaults(warm_up_s=0.01), orphaned=lambda items: None, engine=engines
    )
    for number, half in enumerate(halves, 1):
        catalogue.load(version(number, half))
    assert (len(catalogue.lanes), engines.made) == (lanes, lanes)
    catalogue.close()


# ---- bundles --------------------------------------------------------------------------------------------------------


def test_a_tail_in_float16_that_the_manifest_does_not_list_is_refused(toy_bundle: Path) -> None:
    bundle = Bundle.open(toy_bundle)
    entry = next(bundle.remote_segments())
    assert tail_of(bundle, entry).half is None
    proof = ParityCertificate(0.0, 1e-5, "agreement", 1.0, 1.0, 0.99, 8)
    with pytest.raises(BundleError, match=r"float16 'tail.fp16.onnx' of placement .* is not listed"):
        tail_of(bundle, structs.replace(entry, half=HalfTail("tail.fp16.onnx", proof)))
    listed = tail_of(bundle, structs.replace(entry, half=HalfTail("known.npz", proof)))
    assert listed.half is not None
    assert listed.half.key == bundle.manifest.files["known.npz"].sha256
    assert listed.half.graph() == bundle.read("known.npz")
