"""The process that builds plans is started for the right GPU, and finds our packages."""

from __future__ import annotations

import pytest

from protocol.children import ROOT
from protocol.engines.trt_build import environment


@pytest.mark.parametrize(
    ("seen", "device", "shown"),
    [
        (None, 0, None),  # as it is: what is seen first is what is meant
        ("GPU-a,GPU-b", 0, "GPU-a,GPU-b"),
        (None, 1, "1"),
        ("GPU-a, GPU-b", 1, "GPU-b"),
        ("3,2", 1, "2"),
    ],
)
def test_a_builder_sees_first_the_gpu_that_its_plan_is_for(seen: str | None, device: int, shown: str | None) -> None:
    mine = {} if seen is None else {"CUDA_VISIBLE_DEVICES": seen}
    assert environment(mine, device).get("CUDA_VISIBLE_DEVICES") == shown


def test_a_builder_finds_our_packages_before_all_others() -> None:
    assert environment({"PYTHONPATH": "/elsewhere"}, 0)["PYTHONPATH"] == f"{ROOT}:/elsewhere"
