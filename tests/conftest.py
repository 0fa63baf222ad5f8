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

# What guards a change tries the same examples every time, so that it fails for the change and not for the day;
# `make explore` looks for new ones.
settings.register_profile("gate", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("ISTHMUS_EXAMPLES", "gate"))


# What only computes may share the machine with another test; the rest of these two rooms may not.
TIMED = ("integration", "e2e")
COMPUTES = ("test_access_routes.py", "test_agent_cancelling.py", "test_agent_conformance.py", "test_agent_reload.py",
            "test_agent_status_page.py", "test_benchmark_cuts.py",
            "test_gateway_http.py", "test_hostile_models.py",
            "test_oip_grpc.py", "test_oip_http.py", "test_partitioner_build.py", "test_partitioner_cli.py",
            "test_partitioner_cli_verbs.py", "test_partitioner_joining.py", "test_partitioner_models.py",
            "test_partitioner_plan.py", "test_partitioner_split.py", "test_preprocess.py", "test_recipes.py",
            "test_report_page.py", "test_status_page.py")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what must run alone: a new test of a timed room does, unless it is named above."""
    for item in items:
        if item.path.parent.name in TIMED and item.path.name not in COMPUTES:
            item.add_marker(pytest.mark.alone)


@pytest.fixture(scope="session")
def toy_samples() -> npt.NDArray[Any]:
    """float32 [32, 3, 16, 16]"""
    return models.image_samples()


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write(models.residual(), tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def toy_bundle(toy_model: Path, toy_samples: npt.NDArray[Any]) -> Path:
    """A small residual net with two cuts, `cut-1` early and `cut-2` late, each with a boundary of eight bits."""
    data = toy_model.parent / "data.npz"
    np.savez(data, x=toy_samples)
    order = Order(
        model=toy_model,
        target=toy_model.parent / "bundle",
        cuts=(("r1",), ("r3",)),
        calibration=data,
        search=Search(memory=False),
        recipe_budget_s=0.0,
        bound=0.2,
    )
    return build(order, Silent()).target


@pytest.fixture(scope="session")
def toy_reference(toy_model: Path, toy_samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The whole model's own answers, float32 [32, 10]."""
    with OrtEngine(toy_model.read_bytes(), label="reference") as engine:
        return np.concatenate([engine.infer({"x": x[None]})["logits"] for x in toy_samples])


@pytest.fixture(scope="session")
def wide_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide fully connected layers: a tail on which batching pays, since a batch reads the weights once."""
    folder = tmp_path_factory.mktemp("wide")
    net = models.Net()
    for layer, (inputs, outputs) in enumerate([(64, 2048), (2048, 2048), (2048, 2048), (2048, 10)]):
        net.add("MatMul", [f"h{layer}" if layer else "x", net.weight(f"w{layer}", inputs, outputs)], f"h{layer + 1}")
    model = net.model({"x": (onnx.TensorProto.FLOAT, ["N", 64])}, {"h4": ["N", 10]})
    path = models.write(model, folder)
    order = Order(
        model=path,
        target=folder / "bundle",
        cuts=(("h1",),),
        precision="fp32",
        search=Search(memory=False),
        recipe_budget_s=0.0,
        bound=0.5,
    )
    return build(order, Silent()).target


@pytest.fixture
def toy_gateway(toy_bundle: Path) -> Iterator[Gateway]:
    """A gateway in this process, serving the toy bundle on a free port."""
    with gateway_of(toy_bundle, settings={"drain.grace_s": 2.0}) as gateway:
        yield gateway
