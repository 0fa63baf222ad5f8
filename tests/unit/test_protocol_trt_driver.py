"""The driver is asked in C: here a scripted library answers, with the codes that real ones give."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from protocol.engines import catalogue
from protocol.engines.driver import LIBRARY, Device, Driver, ask

UUID = bytes(range(16))


class ScriptedLibrary:
    """A driver for CUDA `version` with GPUs of the given names; the functions in `failing` return their code."""

    def __init__(self, *names: str, version: int = 13_000, **failing: int) -> None:
        self._names = names
        self._version = version
        self._failing = failing

    def __getattr__(self, function: str) -> Any:
        answer = getattr(type(self), f"_{function}")
        code = self._failing.get(function, 0)
        return lambda *arguments: code or answer(self, *arguments)

    def _cuInit(self, flags: int) -> int:
        assert flags == 0
        return 0

    def _cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self._version
        return 0

    def _cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self._names)
        return 0

    def _cuDeviceGet(self, handle: Any, index: int) -> int:
        handle._obj.value = index
        return 0

    def _cuDeviceGetName(self, name: Any, length: int, handle: ctypes.c_int) -> int:
        name.value = self._names[handle.value].encode()[: length - 1]
        return 0

    def _cuDeviceGetUuid(self, uuid: Any, handle: ctypes.c_int) -> int:
        uuid._obj[:] = UUID
        return 0

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, handle: ctypes.c_int) -> int:
        name = self._names[handle.value]
        value._obj.value = {75: 9, 76: 0, 18: "Integrated" in name, 20: 2 * ("Closed" in name)}[attribute]
        return 0

    def _cuDeviceTotalMem_v2(self, nbytes: Any, handle: ctypes.c_int) -> int:
        nbytes._obj.value = 80 << 30
        return 0

    def _cuGetErrorName(self, code: int, name: Any) -> int:
        name._obj.value = b"CUDA_ERROR_SCRIPTED"
        return 0


def asked(*names: str, version: int = 13_000, **failing: int) -> Driver | str:
    return ask(load=lambda _: ScriptedLibrary(*names, version=version, **failing))


def test_a_driver_that_answers_is_told_with_its_gpus() -> None:
    found = asked("Big GPU", "Small GPU")
    assert isinstance(found, Driver)
    assert found.devices[1] == Device(1, "Small GPU", UUID.hex(), (9, 0), 80 << 30)
    assert str(found) == "driver for CUDA 13.0 with Big GPU, Small GPU"


def test_a_gpu_that_is_closed_to_everybody_is_none_and_the_others_keep_their_numbers() -> None:
    found = asked("Closed GPU", "Big GPU")
    assert isinstance(found, Driver)
    assert [(device.index, device.name) for device in found.devices] == [(1, "Big GPU")]
    assert "PROHIBITED" in str(asked("Closed GPU"))


def test_a_gpu_that_lives_in_the_processors_memory_is_told_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked("Big GPU", "Integrated GPU")
    assert isinstance(found, Driver)
    assert [device.is_integrated for device in found.devices] == [False, True]
    monkeypatch.setattr("protocol.engines.driver.probe", lambda: found)
    assert [catalogue.gpu_memory(index) for index in range(3)] == [(80 << 30, False), (80 << 30, True), None]


def test_a_machine_without_a_driver_is_told_to_install_one() -> None:
    def load(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    found = ask(load=load)
    assert isinstance(found, str)
    assert LIBRARY in found
    assert "install one" in found


def test_an_older_driver_says_what_it_is_for_and_what_is_needed() -> None:
    assert asked("GPU", version=11_080) == (
        "the NVIDIA driver is for CUDA 11.8, and 12.0 is needed; install a newer one"
    )


def test_a_driver_without_a_gpu_says_so_whichever_way_it_tells() -> None:
    assert "no GPU" in str(asked())
    assert "no GPU" in str(asked("GPU", cuInit=100))


def test_a_library_of_another_version_than_the_kernel_module_wants_a_restart() -> None:
    assert "restart" in str(asked("GPU", cuInit=803))


def test_a_driver_that_fails_is_quoted_with_the_function_and_its_code() -> None:
    assert "CUDA_ERROR_SCRIPTED (999)" in str(asked("GPU", cuInit=999))
    found = str(asked("GPU", cuDeviceTotalMem_v2=201))
    assert "cuDeviceTotalMem_v2" in found
    assert "(201)" in found


def test_a_library_that_lacks_a_function_is_no_driver() -> None:
    found = ask(load=lambda _: object())
    assert isinstance(found, str)
    assert "cuInit" in found
