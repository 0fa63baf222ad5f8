"""Profiles as JSON, kernels attributed to steps, medians with their intervals: the numbers behind every prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol import sensors
from protocol.errors import InputError
from protocol.profile import (
    Anchor,
    Kernel,
    Machine,
    PlainStep,
    Profile,
    StepCost,
    Timing,
    check,
    decode,
    elsewhere,
    encode,
    plain_name,
    step_costs,
)
from protocol.timing import Ratios, median_interval, visit

HERE = Machine("cpu", "x86_64", 2, "Linux", "3.11", "1.31", ("avx2",))
DIGEST = "a" * 64


def timing(seconds: float) -> Timing:
    return Timing(seconds, 0.98 * seconds, 1.02 * seconds, 1.2 * seconds, 15)


def profile(**changes: object) -> Profile:
    whole = Anchor((), "whole", "fp32", timing(0.01))
    made = Profile(1, "edge", "net", DIGEST, HERE, 1, "2026-11-21", {"a": StepCost(0.01, 0.01, "a")}, (whole,))
    return msgspec.structs.replace(made, **changes)


# ---- as a file -------------------------------------------------------------------------------------------------------


def test_a_profile_survives_its_file() -> None:
    head = Anchor(("t",), "head", "int8", timing(0.004), 1 << 20, ((1, 0.004), (8, 0.02)))
    made = profile(anchors=(*profile().anchors, head))
    assert decode(encode(made), name="p.json") == made


@pytest.mark.parametrize("data", [b"", b"{}", b"[1, 2]", b"\xff\xfe", b'{"schema_version": 1, "role": "moon"}'])
def test_what_is_no_profile_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(InputError, match=r"p\.json does not parse"):
        decode(data, name="p.json")


@pytest.mark.parametrize(
    ("was", "is_"),
    [
        (b'"median_s": 0.01', b'"median_s": 0.0'),
        (b'"median_s": 0.01', b'"median_s": 1e300'),
        (b'"median_s": 0.01', b'"median_s": 0.02'),  # outside of its own interval
        (b'"repeats": 15', b'"repeats": 0'),
        (b'"batches": []', b'"batches": [[1, 0.0]]'),
        (b'"peak_memory_nbytes": null', b'"peak_memory_nbytes": -1'),
        (b'"threads": 1', b'"threads": 0'),
    ],
)
def test_numbers_that_nobody_can_have_measured_are_refused(was: bytes, is_: bytes) -> None:
    data = encode(profile())
    assert data.count(was) == 1
    with pytest.raises(InputError, match=r"p\.json (does not parse|has a median outside its interval)"):
        decode(data.replace(was, is_), name="p.json")


def test_a_later_schema_is_named_as_such() -> None:
    with pytest.raises(InputError, match="schema version 7 but this version reads 1"):
        decode(encode(profile(schema_version=7)), name="p.json")


def test_a_profile_without_the_whole_model_is_of_no_use() -> None:
    with pytest.raises(InputError, match="lacks the whole model"):
        decode(encode(profile(anchors=())), name="p.json")


def test_a_profile_of_another_model_or_role_or_with_other_threads_is_refused() -> None:
    check(profile(), name="p.json", role="edge", model_digest=DIGEST, threads=1)
    with pytest.raises(InputError, match="another model"):
        check(profile(), name="p.json", role="edge", model_digest="b" * 64, threads=1)
    with pytest.raises(InputError, match="made with --role edge, asked for was cloud"):
        check(profile(), name="p.json", role="cloud", model_digest=DIGEST, threads=1)
    with pytest.raises(InputError, match="with 1 thread, --threads is 2; say --threads 1"):
        check(profile(), name="p.json", role="edge", model_digest=DIGEST, threads=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"processor": "another"}, "planned for another with"),
        ({"cores": 77}, "with 77 cores, this is"),
        ({"instruction_sets": ("i8mm",)}, "i8mm"),
        ({"onnxruntime": "1.32"}, "onnxruntime 1.32"),
        ({"system": "Linux 7", "python": "3.14"}, ""),
    ],
)
def test_a_plan_that_is_used_elsewhere_than_it_was_made_for_is_told_by_what_differs(
    change: dict[str, Any], words: str
) -> None:
    said = elsewhere(msgspec.structs.replace(HERE, **change), HERE)
    assert words in said
    assert bool(said) == bool(words)


def test_a_refined_profile_replaces_what_was_measured_anew() -> None:
    first, second = (Anchor(("t",), "head", "fp32", timing(s)) for s in (0.004, 0.005))
    refined = profile().refined([first]).refined([second])
    assert [a.time.median_s for a in refined.anchors] == [0.01, 0.005]


# ---- from kernels to steps -------------------------------------------------------------------------------------------

#   x -> conv -> bn -> relu -> add -> out        one fused kernel writes r, another the sum
#                        \______/
STEPS = (
    PlainStep("conv", "Conv", ("x",), ("c",)),
    PlainStep("bn", "BatchNormalization", ("c",), ("b",)),
    PlainStep("relu", "Relu", ("b",), ("r",)),
    PlainStep("add", "Add", ("r", "r"), ("out",)),
)
PLAIN = [Kernel("conv", 6.0), Kernel("bn", 2.0), Kernel("relu", 1.0), Kernel("add", 1.0)]


@pytest.mark.parametrize(
    ("kernel", "name"),
    [("r_nchwc", "r"), ("r_nchwc_token_12", "r"), ("conv_token_3", "conv"), ("fused conv", "conv"), ("plain", "plain")],
)
def test_a_kernel_is_traced_back_to_what_it_was_made_from(kernel: str, name: str) -> None:
    assert plain_name(kernel) == name


def test_a_fused_kernel_belongs_to_the_convolution_that_carries_it() -> None:
    costs = step_costs(STEPS, [Kernel("r_nchwc", 5.0), Kernel("add", 1.0)], PLAIN, {})
    assert [costs[s.name].seconds for s in STEPS] == [5.0, 0.0, 0.0, 1.0]
    assert {costs[n].kernel for n in ("conv", "bn", "relu")} == {"relu"}
    assert costs["bn"].alone_s == 2.0


def test_a_change_of_layout_counts_for_the_kernel_behind_it() -> None:
    kernels = [
        Kernel("r_nchwc", 5.0),
        Kernel("ReorderOutput_token_4", 0.5),
        Kernel("add", 1.0),
        Kernel("Reorder", 0.25),
    ]
    costs = step_costs(STEPS, kernels, PLAIN, {})
    assert costs["add"].seconds == 1.75


def test_where_no_kernel_can_be_attributed_the_estimated_work_stands_in() -> None:
    costs = step_costs(STEPS, [Kernel("fused_everything", 8.0)], [], {"conv": 3.0, "add": 1.0})
    assert costs["conv"].seconds == 0.75
    assert costs["relu"].seconds == 0.0


def test_no_time_is_lost_between_kernels_and_steps() -> None:
    kernels = [Kernel("r_nchwc", 5.0), Kernel("unknown", 0.5), Kernel("out", 1.0)]
    assert sum(c.seconds for c in step_costs(STEPS, kernels, PLAIN, {}).values()) == pytest.approx(6.5)


# ---- medians ---------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_median_needs_no_shape_and_forgives_outliers() -> None:
    median, low, high = median_interval([1.0] * 14 + [100.0])
    assert (median, low, high) == (1.0, 1.0, 1.0)
    assert median_interval([3.0]) == (3.0, 3.0, 3.0)
    assert median_interval([1.0, 2.0, 3.0]) == (2.0, 1.0, 3.0)


def test_a_machine_that_slows_down_for_a_while_does_not_change_a_ratio() -> None:
    ratios = Ratios(ratios=[0.5] * 20)
    assert ratios.is_narrow
    assert ratios.timing(0.02).median_s == 0.01


def test_too_few_repeats_are_never_narrow() -> None:
    assert not Ratios(ratios=[0.5] * 5).is_narrow


def test_a_visit_pairs_every_run_with_the_yardstick() -> None:
    order: list[str] = []
    ratios, paces = Ratios(), list[float]()
    visit(lambda: order.append("run"), lambda: order.append("yardstick"), ratios, paces, threads=2, rounds=3)
    assert order == ["run", "run", *["yardstick", "run"] * 3]
    assert len(ratios.ratios) == len(paces) == 3


# ---- sensors ---------------------------------------------------------------------------------------------------------


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")
    return path


def test_a_clock_that_the_host_has_stopped_does_not_make_a_run_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.timing.clock_for", lambda threads: lambda: 7.0)
    seen, paces = Ratios(), list[float]()
    visit(lambda: sum(range(1000)), lambda: sum(range(1000)), seen, paces, threads=1)
    assert min(*paces, *seen.seconds) > 0.0
    assert 0.0 < seen.timing(1.0).median_s < 100.0


def test_without_a_sensor_energy_is_none_and_not_zero(tmp_path: Path) -> None:
    assert sensors.energy_meter(tmp_path) is None
    write(tmp_path / "class/powercap/intel-rapl:0/max_energy_range_uj", 1000)  # no counter that can be read
    assert sensors.energy_meter(tmp_path) is None


def test_rapl_counts_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    zone = tmp_path / "class/powercap/intel-rapl:0"
    write(zone / "max_energy_range_uj", 10_000_000)
    counter = write(zone / "energy_uj", 9_000_000)
    write(tmp_path / "class/powercap/intel-rapl:0:0/energy_uj", 5)  # a part of the package: not counted twice
    meter = sensors.energy_meter(tmp_path)
    assert meter is not None
    write(counter, 2_000_000)
    meter.read()
    assert meter.sensor == "rapl"
    assert meter.joules == pytest.approx(3.0)


def test_a_jetson_is_read_at_its_input_rail(tmp_path: Path) -> None:
    chip = tmp_path / "class/hwmon/hwmon3"
    write(chip / "name", "ina3221")
    write(chip / "in1_label", "VDD_CPU")
    write(chip / "in2_label", "VDD_IN")
    for channel, (millivolts, milliamperes) in {"1": (1, 1), "2": (5000, 2000)}.items():
        write(chip / f"in{channel}_input", millivolts)
        write(chip / f"curr{channel}_input", milliamperes)
    meter = sensors.energy_meter(tmp_path)
    assert meter is not None
    meter.read()
    assert meter.joules == pytest.approx(10.0 * meter.seconds)


def test_a_machine_names_its_decisive_instruction_sets(tmp_path: Path) -> None:
    cpuinfo = write(
        tmp_path / "cpuinfo", "model name\t: Some CPU\nflags\t\t: fpu avx2 sse avx512_vnni\n\nmodel name: two"
    )
    seen = sensors.machine(cpuinfo)
    assert seen.processor == "Some CPU"
    assert seen.instruction_sets == ("avx2", "avx512_vnni")
    assert sensors.machine(tmp_path / "absent").cores >= 1
