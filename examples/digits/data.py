"""Draws real handwritten digits onto sensor frames: the data of the demo model.

This room is for one thing: the same seed gives the same bytes, every time. Training, calibration, parity checks
and the README's demo all take their frames from here, and none of them needs a download. The digits are real (UCI
Optical Recognition of Handwritten Digits, as shipped by scikit-learn); the camera around them is not, and every number
that describes it is a field of `SensorModel`.

    python -m examples.digits.data -o DIR        writes DIR/held_out.npz and DIR/calibration.npz
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HELD_OUT_SEED = 20261121
"""Seeds the split: which images are held out, and their order."""
HELD_OUT_FRAMES_SEED = 20261122
"""Seeds the frames drawn from the held-out images."""
CALIBRATION_SEED = 20261123
"""Seeds the choice and the frames of the calibration set (training images only)."""
HELD_OUT_COUNT = 500
"""Images held out, stratified by class; the other 1,297 are for training and calibration."""
CALIBRATION_COUNT = 192
"""Frames in the calibration set, unless the caller says otherwise."""

DIGIT_SIDE = 8
"""Side of a source image in pixels."""
DIGIT_INK = 16.0
"""Full ink in a source image; its values are the integers 0..16."""
WEIGHT_STEPS = 256.0
"""Interpolation weights are multiples of 1/256, see `_interpolation`."""
CHUNK_FRAMES = 32
"""Frames drawn at a time, so that the float32 working set stays near 25 MB whatever is asked for."""

Images = NDArray[np.float32]
Frames = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class SensorModel:
    """The camera that is simulated; grey levels run from 0 (black) to 255, lengths are in frame pixels."""

    side: int = 224
    """Height and width of a frame."""
    digit_size: tuple[float, float] = (90.0, 168.0)
    """Smallest and largest side of the square that the 8x8 digit is scaled to; uniform."""
    aspect: tuple[float, float] = (0.85, 1.0)
    """Width of that square as a part of its height; uniform."""
    ink: tuple[float, float] = (90.0, 160.0)
    """Grey levels that full ink adds to the background; uniform."""
    background: tuple[float, float] = (24.0, 72.0)
    """Grey level of the background at the middle of the frame; uniform."""
    gradient: float = 24.0
    """Largest change of illumination from edge to edge, in grey levels, along each axis; uniform, either sign."""
    noise: float = 5.0
    """Standard deviation of the Gaussian sensor noise, in grey levels, independent per pixel."""

    def resized(self, side: int) -> SensorModel:
        """The same scene on a frame of another side: digits keep their part of it, light and noise stay as they are."""
        smallest, largest = (size * side / self.side for size in self.digit_size)
        return replace(self, side=side, digit_size=(smallest, largest))


SENSOR = SensorModel()


@dataclass(frozen=True)
class Split:
    """The source images, divided once: float32 [n,8,8] with values 0..16, and int64 [n] labels 0..9."""

    train_images: Images
    train_labels: Labels
    held_out_images: Images
    held_out_labels: Labels


def load_split(seed: int = HELD_OUT_SEED) -> Split:
    """Divide the 1,797 digits of scikit-learn into 1,297 for training and 500 held out, stratified by class.

    The default seed is the split that the published accuracy was measured on; do not train on another one and then
    quote accuracy on this one.
    """
    digits = load_digits()
    images, labels = digits.images.astype(np.float32), digits.target.astype(np.int64)
    train_x, held_x, train_y, held_y = train_test_split(
        images, labels, test_size=HELD_OUT_COUNT, random_state=seed, stratify=labels
    )
    return Split(train_x, train_y, held_x, held_y)


def draw(images: Images, seed: int, sensor: SensorModel = SENSOR) -> Frames:
    """Draw each source image onto a frame of its own, at a random size and place.

    `images` is [N,8,8] with values 0..16; the answer is uint8 [N,1,side,side]. One generator runs through all N, so
    frame i depends on the seed and on everything before it: the same call gives the same bytes.
    """
    rng = np.random.default_rng(seed)
    frames = np.empty((len(images), 1, sensor.side, sensor.side), dtype=np.uint8)
    for start in range(0, len(images), CHUNK_FRAMES):
        chunk = images[start : start + CHUNK_FRAMES]
        frames[start : start + CHUNK_FRAMES, 0] = _draw_chunk(chunk, rng, sensor)
    return frames


def held_out_frames() -> tuple[Frames, Labels]:
    """The frames on which accuracy is measured: uint8 [500,1,224,224] and int64 [500]."""
    split = load_split()
    return draw(split.held_out_images, HELD_OUT_FRAMES_SEED), split.held_out_labels


def calibration_frames(n: int = CALIBRATION_COUNT) -> tuple[Frames, Labels]:
    """Frames for INT8 calibration, from training images only: uint8 [n,1,224,224] and int64 [n], n <= 1,297."""
    split = load_split()
    available = len(split.train_images)
    if not 1 <= n <= available:
        raise ValueError(f"{n} calibration frames asked for, but there are 1..{available} training images; lower n")
    chosen = np.random.default_rng(CALIBRATION_SEED).permutation(available)[:n]
    return draw(split.train_images[chosen], CALIBRATION_SEED), split.train_labels[chosen]


def write(folder: Path) -> tuple[Path, Path]:
    """Write `held_out.npz` and `calibration.npz` (arrays `image` and `labels`) into `folder`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out, calibration = folder / "held_out.npz", folder / "calibration.npz"
    for path, (frames, labels) in ((held_out, held_out_frames()), (calibration, calibration_frames())):
        np.savez(path, image=frames, labels=labels)
    return held_out, calibration


def _draw_chunk(images: Images, rng: np.random.Generator, sensor: SensorModel) -> Frames:
    """One chunk of frames, uint8 [n,side,side]: background and gradient, ink, noise, in the order light meets them."""
    n = len(images)
    height = rng.uniform(*sensor.digit_size, size=n)
    width = height * rng.uniform(*sensor.aspect, size=n)
    top, left = rng.uniform(size=n) * (sensor.side - height), rng.uniform(size=n) * (sensor.side - width)
    rows, columns = _interpolation(top, height, sensor.side), _interpolation(left, width, sensor.side)
    ink = np.clip(rows @ images @ columns.transpose(0, 2, 1), 0.0, DIGIT_INK)

    scene = _background(n, rng, sensor) + ink * _column(rng.uniform(*sensor.ink, size=n) / DIGIT_INK)
    scene += rng.standard_normal(scene.shape, dtype=np.float32) * np.float32(sensor.noise)
    return np.clip(np.rint(scene), 0, 255).astype(np.uint8)


def _background(n: int, rng: np.random.Generator, sensor: SensorModel) -> Images:
    """Unevenly lit background in grey levels, float32 [n,side,side]."""
    ramp = np.linspace(-0.5, 0.5, sensor.side, dtype=np.float32)
    level = _column(rng.uniform(*sensor.background, size=n))
    down, across = (_column(rng.uniform(-sensor.gradient, sensor.gradient, size=n)) for _ in range(2))
    background: Images = level + down * ramp[:, None] + across * ramp[None, :]
    return background


def _interpolation(start: NDArray[np.float64], length: NDArray[np.float64], side: int) -> Images:
    """Matrices that stretch 8 source pixels over `length` frame pixels from `start`: float32 [n,side,8].

    The weights are rounded to multiples of 1/256. Source values are integers, so every product and sum of the two
    matrix products is then exact in float32, and the bytes do not depend on how a BLAS library orders its additions.
    """
    pixel = np.arange(side) + 0.5
    source = (pixel[None, :] - start[:, None]) * (DIGIT_SIDE / length[:, None]) - 0.5
    weights = _cubic(np.abs(source[:, :, None] - np.arange(DIGIT_SIDE)))
    return (np.rint(weights * WEIGHT_STEPS) / WEIGHT_STEPS).astype(np.float32)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -1/2 (IEEE Trans. ASSP 29(6), 1981); zero from distance 2 on."""
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((2.5 - 0.5 * distance) * distance - 4.0) * distance + 2.0
    return np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0))


def _column(values: NDArray[np.float64]) -> Images:
    """One number per frame, shaped [n,1,1] to broadcast over its pixels."""
    return values.astype(np.float32)[:, None, None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: write both data sets into the folder given with `-o`."""
    parser = argparse.ArgumentParser(description="Draw the held-out and the calibration frames of the digits demo.")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the .npz files")
    write(parser.parse_args(arguments).output)


if __name__ == "__main__":
    main()
