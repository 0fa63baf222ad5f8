"""Tensor nouns: sizes, descriptions, and errors that name the tensor, the fact and the remedy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InputError, WireError
from protocol.tensors import DTYPES, TensorHeader, TensorSpec, check_inputs, describe, shape_fits

IMAGE = TensorSpec("image", "uint8", ("N", 1, 8, 8))
STATE = TensorSpec("state", "float32", (None, 4))


def test_only_fixed_size_elements_may_cross() -> None:
    integers = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
    assert set(DTYPES) == {"bool", "float16", "float32", "float64"} | integers
    assert all(dtype.name == name and not dtype.hasobject for name, dtype in DTYPES.items())


@given(dtype=st.sampled_from(sorted(DTYPES)), shape=st.lists(st.integers(0, 2**31), max_size=8))
def test_the_decoded_size_follows_from_shape_and_element_type_without_overflow(dtype: str, shape: list[int]) -> None:
    header = TensorHeader("x", dtype, tuple(shape), "raw", 0)
    assert header.decoded_nbytes() == math.prod(shape) * np.dtype(dtype).itemsize


def test_an_element_type_that_may_not_cross_is_refused_by_name() -> None:
    with pytest.raises(WireError, match=r"'words'.*string"):
        TensorHeader("words", "string", (1,), "raw", 1).decoded_nbytes()


def test_a_description_reads_like_a_sentence() -> None:
    assert describe(IMAGE) == "image: uint8 [N, 1, 8, 8]"
    assert describe(STATE) == "state: float32 [?, 4]"


@pytest.mark.parametrize(
    ("shape", "wanted", "fits"),
    [
        ((5, 4), (None, 4), True),
        ((5, 4), ("N", 4), True),
        ((), (), True),
        ((5, 3), ("N", 4), False),
        ((5, 4, 1), ("N", 4), False),
        ((4,), ("N", 4), False),
    ],
)
def test_a_shape_fits_when_its_fixed_dimensions_agree(
    shape: tuple[int, ...], wanted: tuple[int | str | None, ...], fits: bool
) -> None:
    assert shape_fits(shape, wanted) is fits


def good() -> dict[str, np.ndarray]:
    return {"image": np.zeros((3, 1, 8, 8), np.uint8), "state": np.zeros((3, 4), np.float32)}


def test_inputs_that_fit_pass() -> None:
    check_inputs((IMAGE, STATE), good())


def test_a_missing_input_is_named_with_what_the_model_takes() -> None:
    inputs = good()
    del inputs["state"]
    with pytest.raises(InputError, match=r"'state' is missing.*image: uint8 \[N, 1, 8, 8\], state: float32"):
        check_inputs((IMAGE, STATE), inputs)


def test_a_misspelt_input_is_named_beside_the_one_that_is_missing() -> None:
    with pytest.raises(InputError, match=r"'a' is missing, and 'b' is none of its inputs; the model takes a: "):
        check_inputs([TensorSpec("a", "float32", (None,))], {"b": np.zeros(2, "f4")})


def test_a_request_without_a_single_row_is_refused() -> None:
    with pytest.raises(InputError, match=r"'a' has no rows: its shape is \[0, 3\]; send at least one"):
        check_inputs([TensorSpec("a", "float32", (None, 3))], {"a": np.zeros((0, 3), "f4")})


def test_a_wrong_element_type_is_named_with_both_types() -> None:
    with pytest.raises(InputError, match=r"'image' has element type float64 .* uint8.*astype"):
        check_inputs((IMAGE, STATE), good() | {"image": np.zeros((3, 1, 8, 8))})


def test_a_wrong_shape_is_named_with_both_shapes() -> None:
    with pytest.raises(InputError, match=r"'image' has shape \[3, 8, 8, 1\] .*\[N, 1, 8, 8\]"):
        check_inputs((IMAGE, STATE), good() | {"image": np.zeros((3, 8, 8, 1), np.uint8)})


def test_an_input_that_the_model_does_not_have_is_named() -> None:
    with pytest.raises(InputError, match="'extra' is not an input"):
        check_inputs((IMAGE, STATE), good() | {"extra": np.zeros(1)})


@pytest.mark.parametrize("swapped", [">f4", ">u2", ">i8"])
def test_big_endian_arrays_never_pass_for_the_native_type(swapped: str) -> None:
    """Raw bytes travel little-endian: a swapped array that passed would arrive as other numbers."""
    spec = TensorSpec("x", np.dtype(swapped).name, (2,))
    with pytest.raises(InputError, match="element type"):
        check_inputs((spec,), {"x": np.array([1, 2], swapped)})
