"""What boards say about themselves, read from trees that were written down; and from trees that lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.device.board import Family, look
from edge_agent.device.heat import Throttling
from edge_agent.device.power import PowerMode, RailPower
from protocol.sensors import energy_meter
from tests import boards


def test_an_orin_tells_its_load_mode_temperatures_and_what_slows_it_down(tmp_path: Path) -> None:
    view = look(boards.plant(tmp_path, boards.ORIN))
    assert (view.family, view.model) == (Family.JETSON, "NVIDIA Jetson AGX Orin Developer Kit")
    assert view.gpu_load == pytest.approx(0.437)
    assert view.power_mode == PowerMode(2, "MODE_30W", ("MAXN", "MODE_15W"))
    assert [(zone.name, zone.celsius) for zone in view.zones] == [("cpu-thermal", 48.312), ("tj-thermal", 51.0)]
    assert view.hottest is not None
    assert view.hottest.headroom_c == pytest.approx(99 - 48.312)
    assert view.throttling.now
    assert view.throttling.reasons == ("cpu-throttle-alert is active (step 1)",)  # a fan at work slows nothing down
    assert view.throttling.since_start == ("over-current oc3: 7 times",)
    assert view.throttling.events == 7
    assert [(fan.name, fan.rpm, fan.duty) for fan in view.fans] == [("pwm_tach", 2143, None), ("pwmfan", None, 0.4)]
    (clock,) = view.clocks
    assert (clock.governor, clock.hz, clock.capped) == ("schedutil", 1190400e3, True)
    assert view.rails == (RailPower("VDD_GPU_SOC", pytest.approx(3.980288)), RailPower("VIN_SYS_5V0", 5.0))
    assert [(wear.device, wear.used) for wear in view.wear] == [("mmcblk0", 0.2)]
    assert view.memory is not None
    assert view.memory.swap_free_nbytes == 15_664_000 * 1024


def test_a_xavier_under_its_old_names_tells_what_it_can(tmp_path: Path) -> None:
    root = boards.plant(tmp_path, boards.XAVIER)
    view = look(root)
    assert view.family is Family.JETSON
    assert view.gpu_load == 0.0  # idle, which is not unknown
    assert view.power_mode == PowerMode(0, None)
    assert [zone.name for zone in view.zones] == ["CPU-therm"]  # the other shows a mark for "none"
    assert view.watts == pytest.approx(6.84)
    assert view.throttling == Throttling(now=None)
    meter = energy_meter(root / "sys")
    assert meter is not None
    assert meter.sensor == "ina"  # the profile's energy comes from the same rail


def test_a_raspberry_pi_tells_of_its_weak_supply(tmp_path: Path) -> None:
    view = look(boards.plant(tmp_path, boards.PI))
    assert view.family is Family.RASPBERRY_PI
    assert view.throttling.now
    assert [reason.partition(":")[0] for reason in view.throttling.reasons] == [
        "under-voltage", "the processor is throttled",
    ]  # fmt: skip
    assert len(view.throttling.since_start) == 2
    assert not view.clocks[0].capped
    assert (view.gpu_load, view.power_mode, view.watts) == (None, None, None)


def test_a_pc_tells_its_name_its_fans_and_how_often_it_was_too_hot(tmp_path: Path) -> None:
    view = look(boards.plant(tmp_path, boards.X86))
    assert (view.family, view.model) == (Family.OTHER, "NUC11TNHi5")
    assert view.processor is not None
    assert view.processor.startswith("11th Gen")
    assert view.throttling == Throttling(now=False, events=7)
    assert view.zones[0].headroom_c is None  # a trip point below absolute zero is none
    assert [(fan.name, fan.rpm) for fan in view.fans] == [("nct6775", 0), ("nct6775 2", 1170)]


def test_an_empty_machine_is_unknown_in_every_way(tmp_path: Path) -> None:
    view = look(tmp_path)
    assert view.family is Family.OTHER
    assert {view.model, view.processor, view.gpu_load, view.power_mode, view.memory} == {None}
    assert {*view.clocks, *view.zones, *view.fans, *view.rails, *view.wear} == set()
    assert view.throttling == Throttling(now=None)
    assert view.hottest is None


def test_files_that_are_huge_binary_pipes_folders_or_loops_neither_hang_nor_raise(tmp_path: Path) -> None:
    view = look(boards.hostile(tmp_path))
    assert view.gpu_load is None
    assert all(-273 < zone.celsius < 200 for zone in view.zones)


def test_what_a_terminal_could_obey_never_leaves_the_tree(tmp_path: Path) -> None:
    view = look(boards.plant(tmp_path, {"proc/device-tree/model": "Board\x1b[2J\x07 \u202eX\n"}))
    assert view.model == "Board [2J X"


def test_a_sensor_that_appears_later_is_seen_at_the_next_look(tmp_path: Path) -> None:
    assert look(tmp_path).gpu_load is None
    boards.plant(tmp_path, {"sys/devices/gpu.0/load": "1000\n"})
    assert look(tmp_path).gpu_load == 1.0
    (tmp_path / "sys/devices/gpu.0/load").write_text("1001\n")  # no share
    assert look(tmp_path).gpu_load is None


def test_this_machine_can_be_looked_at() -> None:
    assert look().memory is not None
