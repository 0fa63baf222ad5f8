"""What the examples share: where the daemon is, pictures as its model takes them, and one line for each answer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable

import numpy as np

from edge_agent.local_client import LocalClient, Outcome, Refusal
from protocol.errors import InputError, IsthmusError
from protocol.tensors import Array, TensorSpec

SOCKET = "/var/lib/isthmus/run/agent.sock"


def parser(about: str | None) -> argparse.ArgumentParser:
    """With what every example takes."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--socket", default=SOCKET, help="the daemon's Unix socket, or http://HOST:PORT")
    made.add_argument("--deadline-ms", type=float, default=500.0, help="budget of each request")
    made.add_argument("--limit", type=int, default=0, help="stop after so many; 0 goes on")
    return made


def ended(main: Callable[[], None]) -> None:
    """Run an example: what a person can mend is one sentence."""
    try:
        main()
    except IsthmusError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def picture_input(client: LocalClient) -> TensorSpec:
    """The one input of a model that takes pictures as they are. Raises InputError for another model."""
    inputs = client.inputs()
    spec = inputs[0]
    if len(inputs) != 1 or spec.numpy_dtype != np.uint8 or len(spec.shape) != 4 or spec.shape[1] not in (1, 3):
        taken = ", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in inputs)
        raise InputError(
            f"the model takes {taken}, no picture", "put its pre-processing into the model when you split it"
        )
    return spec


def fitted(frame: Array, spec: TensorSpec) -> Array:
    """A frame [height, width, 3] of uint8, RGB, as [1, channels, height, width]: the middle, nearest pixels.

    A dimension that the model leaves free keeps the frame's size.
    """
    height, width = (
        have if not isinstance(d, int) else d for d, have in zip(spec.shape[2:], frame.shape, strict=False)
    )
    side = min(frame.shape[0] / height, frame.shape[1] / width)
    top, left = (frame.shape[0] - side * height) / 2, (frame.shape[1] - side * width) / 2
    rows = (top + side * (np.arange(height) + 0.5)).astype(int)
    columns = (left + side * (np.arange(width) + 0.5)).astype(int)
    cut = frame[rows][:, columns]
    if spec.shape[1] == 1:  # the eye's weights, as ITU-R BT.601 has them
        cut = (cut @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)[..., None]
    return np.ascontiguousarray(cut.transpose(2, 0, 1)[None])


def told(name: str, outcome: Outcome) -> str:
    """One line: what it is, where that was found out, and how long it took."""
    if isinstance(outcome, Refusal):
        return f"{name}: refused, {outcome.code}: {outcome.reason}"
    first = next(iter(outcome.outputs.values()))
    best = int(first.reshape(len(first), -1)[0].argmax()) if first.ndim > 1 else first.tolist()
    return f"{name}: {best}, {outcome.placement}, {outcome.timings.total_s * 1e3:.1f} ms"


def watch(frames: Iterable[Array], client: LocalClient, *, deadline_s: float, limit: int) -> None:
    """Ask for every frame and print what comes back. A frame that is refused is a frame less, no reason to stop."""
    spec = picture_input(client)
    for number, frame in enumerate(frames, start=1):
        print(
            told(f"frame {number}", client.infer({spec.name: fitted(frame, spec)}, deadline_s=deadline_s)), flush=True
        )
        if number == limit:
            return
