"""Bundles that several tests share, built once by the real partitioner from toy models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import settings

from cloud_gateway.gateway import Gateway
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search
from protocol.engines.ort import OrtEngine
from tests import models
from tests.gateways import gateway_of
from tests.once import made_once

# What guards a change tries the same examples every time, so that it fails for the change and not for the day;
# `make explore` looks for new ones.
settings.register_profile("gate", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("ISTHMUS_EXAMPLES", "gate"))


# Several workers share the tests, file by file. These measure a link's rate and delay and have the machine for
# themselves afterwards; every other test passes however busy the machine is.
ALONE = ("test_a_message_takes_the_round_trip_time_and_its_change_takes_effect",
         "test_the_rate_holds_and_a_new_one_takes_effect_in_mid_stream",
         "test_the_process_is_driven_by_lines")  # fmt: skip
# What takes longest begins first, so that nobody waits for it in the end; then what waits for others most of its time.
FIRST = ("test_readme.py", "test_demo.py", "test_faults.py", "test_daemons.py", "test_agent_process.py",
         "test_partitioner_build.py", "test_front_process.py")  # fmt: skip
ROOMS = ("e2e", "integration")


@pytest.hookimpl(optionalhook=True)  # the environment of tests/gpu/gate.sh has no such plugin
def pytest_xdist_auto_num_workers() -> int | None:
    """More workers than cores: daemons and links wait more than they compute."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return min(2 * (os.cpu_count() or 1), 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name in ALONE:
            item.add_marker(pytest.mark.alone)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    for order, names in ((item.path.name, FIRST), (item.path.parent.name, ROOMS)):
        if order in names:
            return names.index(order) - len(names) * (2 if names is FIRST else 1)
    return 0


@pytest.fixture(scope="session")
def toy_samples() -> npt.NDArray[Any]:
    """float32 [32, 3, 16, 16]"""
    return models.image_samples()


def _toy(place: Path) -> None:
    model = models.write(models.residual(), place)
    data = place / "data.npz"
    np.savez(data, x=models.image_samples())
    order = Order(
        model=model,
        target=place / "bundle",
        cuts=(("r1",), ("r3",)),
        calibration=data,
        search=Search(memory=False),
        recipe_budget_s=0.0,
        bound=0.2,
    )
    build(order, Silent())


def _wide(place: Path) -> None:
    net = models.Net()
    for layer, (inputs, outputs) in enumerate([(64, 2048), (2048, 2048), (2048, 2048), (2048, 10)]):
        net.add("MatMul", [f"h{layer}" if layer else "x", net.weight(f"w{layer}", inputs, outputs)], f"h{layer + 1}")
    model = net.model({"x": (onnx.TensorProto.FLOAT, ["N", 64])}, {"h4": ["N", 10]})
    order = Order(
        model=models.write(model, place),
        target=place / "bundle",
        cuts=(("h1",),),
        precision="fp32",
        search=Search(memory=False),
        recipe_budget_s=0.0,
        bound=0.5,
    )
    build(order, Silent())


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "toy", _toy)


@pytest.fixture(scope="session")
def toy_model(toy: Path) -> Path:
    return toy / "model.onnx"


@pytest.fixture(scope="session")
def toy_bundle(toy: Path) -> Path:
    """A small residual net with two cuts, `cut-1` early and `cut-2` late, each with a boundary of eight bits."""
    return toy / "bundle"


@pytest.fixture(scope="session")
def toy_reference(toy_model: Path, toy_samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The whole model's own answers, float32 [32, 10]."""
    with OrtEngine(toy_model.read_bytes(), label="reference") as engine:
        return np.concatenate([engine.infer({"x": x[None]})["logits"] for x in toy_samples])


@pytest.fixture(scope="session")
def wide_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide fully connected layers: a tail on which batching pays, since a batch reads the weights once."""
    return made_once(tmp_path_factory, "wide", _wide) / "bundle"


@pytest.fixture
def toy_gateway(toy_bundle: Path) -> Iterator[Gateway]:
    """A gateway in this process, serving the toy bundle on a free port."""
    with gateway_of(toy_bundle, settings={"drain.grace_s": 2.0}) as gateway:
        yield gateway
