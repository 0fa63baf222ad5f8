"""Two small convolutions at the boundary that halve what crosses: an orthogonal-like transform in the head, its inverse
in the tail. Closed form, from calibration data; nothing is trained.

    head  ... -> t/plain -> Conv 1x1 -> Conv b x b, stride b, per channel -> Gather -> t  ~~ codes ~~>
    tail  t -> Gather -> ConvTranspose b x b, stride b, per channel -> Conv 1x1 -> t/plain -> ...

1. Across channels: the Karhunen-Loeve transform of the calibration activations *as the tail hears them*. The tail's
   metric G (how strongly its outputs answer to errors in each pair of channels, by finite differences) replaces plain
   distance: with L = G^(1/2) and U the eigenvectors of L S L (S the covariance), the head sends z = U^T L (a - mean),
   the tail returns L^-1 U z + mean. Equal steps on z then cost the tail equally, and components whose variance lies
   below the step vanish: reverse water-filling by itself.
2. Across space: a DCT of b x b positions, each frequency scaled by how strongly the tail answers to it (fine texture
   matters 10-40 times less than the block's mean: measured on MobileNetV2).
3. The planes are ordered by variance, so that what is nearly empty lies together.

Linear tensors (projections, residual sums) need 2.5-3 times fewer bits at equal agreement; sparse ReLU outputs of small
networks need *more*, for noise on exact zeros hurts: `suits` tells them apart. Method: Goyal 2001 (transform coding),
Segall 1976 (reverse water-filling).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import onnx_ir as ir

from partitioner.crossing.boundary import initializer
from partitioner.graph.split import clone, with_inputs
from protocol.errors import ModelError
from protocol.tensors import Array

Respond = Callable[[Array], Array]  # float32 [N, C, H, W] -> [N, K]: the tail's outputs, one row a sample


class Runs(Protocol):
    """What an engine offers."""

    def infer(self, inputs: Mapping[str, Array], /) -> Mapping[str, Array]: ...


MAX_BLOCK = 4  # blocks of 7 and 8 saved no more and stretch the range (measured)
MAX_CHANNELS = 320
# Where more of the calibration values are exactly zero, the tensor is sparse and stays as it is.
MAX_ZERO_SHARE = 0.1
_METRIC_FLOOR = 0.05  # of the mean eigenvalue: finite differences see little of what the tail hardly hears
_LEAST_POWER = 0.01  # of the strongest frequency
_METRIC_RUNS = 2000  # of the tail, at most, spread over up to 20 samples
_PUSH, _PUSH_FREQUENCY = 0.2, 0.1  # size of the finite differences, as shares of the tensor's standard deviation


class Transform(NamedTuple):
    """What `end_head` and `begin_tail` put into the graphs. C channels, b the block, planes = C * b * b.

    `mix` and `unmix` [C, C], `mean` [C], `analysis` and `synthesis` [b*b, b, b], `order` [planes]: where plane i comes
    from. `low` and `high` are the range to give to `boundary.emit_codes` in place of the tensor's own.
    """

    mix: Array
    unmix: Array
    mean: Array
    analysis: Array
    synthesis: Array
    order: Array
    low: float
    high: float

    @property
    def block(self) -> int:
        return int(self.analysis.shape[-1])

    def forward(self, values: Array) -> Array:
        """float32 [N, C, H, W] -> [N, planes, H/b, W/b], as the head computes it."""
        mixed = np.einsum("dc,nchw->ndhw", self.mix, values - self.mean[:, None, None], optimize=True)
        spread = np.einsum("fyx,nchywx->ncfhw", self.analysis, _blocks(mixed, self.block), optimize=True)
        count, channels, frequencies, height, width = spread.shape
        planes: Array = spread.reshape(count, channels * frequencies, height, width)[:, self.order]
        return planes


def block_for(shape: tuple[int, ...]) -> int:
    """The largest block up to 4 that tiles [N, C, H, W]; 1 where none does."""
    return max(b for b in range(1, MAX_BLOCK + 1) if shape[2] % b == 0 and shape[3] % b == 0)


def suits(values: Array) -> bool:
    """Whether calibration values [S, C, H, W] of a tensor are worth a transform."""
    if values.ndim != 4 or values.dtype != np.float32 or not 2 <= values.shape[1] <= MAX_CHANNELS:
        return False
    return values.size > 0 and float(np.mean(values == 0.0)) <= MAX_ZERO_SHARE and float(values.std()) > 0.0


def design(values: Array, respond: Respond, *, block: int | None = None, seed: int = 0) -> Transform:
    """The transform of one tensor from its calibration values, float32 [S, C, H, W].

    `respond` runs the tail on such tensors (`listen`); it is given about 2,000 of them, up to 32 at once.
    """
    b = block or block_for(values.shape)
    channels = values.shape[1]
    metric, hearing = _metric(values, respond, b, seed)
    root, inverse_root = _roots(metric / np.trace(metric) * channels + _METRIC_FLOOR * np.eye(channels))
    mean = values.mean(axis=(0, 2, 3), dtype=np.float64)
    cosines = _cosines(b)
    waves = np.einsum("fyx,nchywx->fcnhw", cosines, _blocks(values - mean[:, None, None], b), optimize=True)
    heard = [root @ (wave @ wave.T / wave.shape[1]) @ root * h for wave, h in zip(_flat(waves), hearing, strict=True)]
    # One basis for all frequencies, to which each gives its shape and not its power (or the block's mean would decide
    # alone), unless it has next to none.
    power = [float(np.trace(h)) for h in heard]
    _, basis = np.linalg.eigh(sum(h / max(p, _LEAST_POWER * max(power)) for h, p in zip(heard, power, strict=True)))
    variances = np.stack([np.diag(basis.T @ h @ basis) for h in heard], axis=1).reshape(-1)
    gain = np.sqrt(hearing)[:, None, None]
    draft = Transform(
        mix=(basis.T @ root).astype(np.float32),
        unmix=(inverse_root @ basis).astype(np.float32),
        mean=mean.astype(np.float32),
        analysis=(cosines * gain).astype(np.float32),
        synthesis=(cosines / gain).astype(np.float32),
        order=np.argsort(-variances, kind="stable"),
        low=0.0,
        high=0.0,
    )
    reach = _reach([np.abs(draft.forward(values[i : i + 8])) for i in range(0, len(values), 8)])
    return draft._replace(low=-reach, high=reach)


def listen(tail: Runs, name: str, *, batched: bool) -> Respond:
    """How a tail with the one input `name` answers: its float outputs as rows, probabilities as their logarithms.

    With `batched` it is given many samples at once, else one at a time.
    """

    def respond(values: Array) -> Array:
        parts = [values] if batched else [values[i : i + 1] for i in range(len(values))]
        return np.concatenate([_rows(tail.infer({name: part}), len(part)) for part in parts])

    return respond


def _rows(outputs: Mapping[str, Array], count: int) -> Array:
    """[count, K]. A softmax hides what it saturates, so its logarithm is taken, up to the constant it has lost."""
    rows = [output.reshape(count, -1).astype(np.float64) for output in outputs.values() if output.dtype.kind == "f"]
    if not rows:
        raise ModelError("the tail has no float output", "its tensors stay as they are")
    for i, row in enumerate(rows):
        if row.min() >= 0.0 and np.allclose(row.sum(axis=1), 1.0, atol=1e-3):
            logs = np.log(row + 1e-7)
            rows[i] = logs - logs.mean(axis=1, keepdims=True)
    return np.concatenate(rows, axis=1)


def _reach(planes: Sequence[Array]) -> float:
    """The range of the codes: beyond it lie 0.01 % of the values, which would halve the resolution of all others."""
    return float(np.quantile(np.concatenate([p.reshape(-1) for p in planes]), 0.9999)) or 1.0


def end_head(head: ir.Model, transforms: Mapping[str, Transform]) -> ir.Model:
    """A copy of the head whose outputs in `transforms` are the transformed planes, under the same names."""
    copy = clone(head)
    for name, transform in transforms.items():
        value = next((v for v in copy.graph.outputs if v.name == name), None)
        if value is None:
            raise ModelError(f"the head has no output {name!r}", "transform a tensor that crosses")
        value.name = f"{name}/plain"
        planes = _forward(copy, name, value, transform)
        planes.name = name
        planes.dtype, planes.shape = ir.DataType.FLOAT, _planes_shape(value, transform)
        copy.graph.outputs[:] = [planes if v is value else v for v in copy.graph.outputs]
    return copy


def begin_tail(tail: ir.Model, transforms: Mapping[str, Transform]) -> ir.Model:
    """A copy of the tail whose inputs in `transforms` are the transformed planes, under the same names."""

    def enter(copy: ir.Model, name: str, entry: ir.Value) -> tuple[ir.Value, ir.Value]:
        fresh = ir.val(name, ir.DataType.FLOAT, _planes_shape(entry, transforms[name]))
        return fresh, _backward(copy, name, fresh, transforms[name])

    return with_inputs(tail, transforms.keys(), enter)


# ---- what the tail hears --------------------------------------------------------------------------------------------


def _metric(values: Array, respond: Respond, b: int, seed: int) -> tuple[Array, Array]:
    """[C, C] answer of the tail to errors in pairs of channels; [b*b] to errors of each frequency, mean 1.

    Errors have random signs over positions, so that answers of different positions cancel in the mean.
    """
    count, channels, height, width = values.shape
    rng = np.random.default_rng(seed)
    samples = min(count, int(np.clip(_METRIC_RUNS // (channels + b * b), 2, 20)))
    size = float(np.std(values - values.mean(axis=(0, 2, 3), keepdims=True))) or 1.0
    cosines = _cosines(b).astype(np.float32)
    metric, hearing = np.zeros((channels, channels)), np.zeros(b * b)
    for index in np.linspace(0, count - 1, samples).astype(int):
        at = values[index : index + 1]
        still = respond(at)
        signs = _signs(rng, (height, width))
        pushes = (np.eye(channels, dtype=np.float32)[i][:, None, None] * signs for i in range(channels))
        answers = _answers(respond, at, still, pushes, _PUSH * size)
        metric += answers @ answers.T
        signs = _signs(rng, (channels, height // b, 1, width // b, 1))
        waves = ((signs * wave[None, None, :, None, :]).reshape(at.shape[1:]) for wave in cosines)
        hearing += np.sum(_answers(respond, at, still, waves, _PUSH_FREQUENCY * size) ** 2, axis=1)
    if not (np.isfinite(metric).all() and np.trace(metric) > 0.0 and hearing.min() > 0.0):
        return np.eye(channels), np.ones(b * b)  # a tail that answers nothing is heard by plain distance
    return metric, hearing / hearing.mean()


def _answers(respond: Respond, at: Array, still: Array, pushes: Iterable[Array], size: float) -> Array:
    """[pushes, K]: how far each push moves the tail's outputs, per unit."""
    listed = [at[0] + np.float32(size) * push for push in pushes]
    moved = [respond(np.stack(listed[i : i + 32])) for i in range(0, len(listed), 32)]
    answers: Array = (np.concatenate(moved) - still).astype(np.float64) / size
    return answers


def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    signs: Array = rng.choice(np.array([-1.0, 1.0], np.float32), shape)
    return signs


def _roots(matrix: Array) -> tuple[Array, Array]:
    """Symmetric square root and its inverse."""
    values, vectors = np.linalg.eigh(matrix)
    root: Array = (vectors * np.sqrt(values)) @ vectors.T
    inverse: Array = (vectors / np.sqrt(values)) @ vectors.T
    return root, inverse


def _cosines(b: int) -> Array:
    """[b*b, b, b]: the orthonormal two-dimensional DCT-II."""
    k, n = np.arange(b)[:, None], np.arange(b)[None, :]
    one = np.sqrt(2 / b) * np.cos(np.pi * (2 * n + 1) * k / (2 * b))
    one[0] /= np.sqrt(2)
    both: Array = np.einsum("ky,lx->klyx", one, one).reshape(b * b, b, b)
    return both


def _blocks(values: Array, b: int) -> Array:
    """[N, C, H, W] -> [N, C, H/b, b, W/b, b]."""
    count, channels, height, width = values.shape
    return values.reshape(count, channels, height // b, b, width // b, b)


def _flat(waves: Array) -> Array:
    """[F, C, ...] -> [F, C, rest]."""
    return waves.reshape(*waves.shape[:2], -1)


# ---- graphs ---------------------------------------------------------------------------------------------------------


def _forward(model: ir.Model, name: str, value: ir.Value, transform: Transform) -> ir.Value:
    b, channels = transform.block, len(transform.mean)
    mix = transform.mix[:, :, None, None]
    bias = -transform.mix @ transform.mean
    value = _node(model, "Conv", [value, *_weights(model, f"{name}/mix", mix, bias)], {})
    analysis = np.tile(transform.analysis[:, None], (channels, 1, 1, 1))
    attributes: Mapping[str, int | Sequence[int]] = {"group": channels, "strides": [b, b]}
    value = _node(model, "Conv", [value, *_weights(model, f"{name}/analysis", analysis)], attributes)
    return _node(model, "Gather", [value, *_weights(model, f"{name}/order", transform.order)], {"axis": 1})


def _backward(model: ir.Model, name: str, value: ir.Value, transform: Transform) -> ir.Value:
    b, channels = transform.block, len(transform.mean)
    inverse = np.argsort(transform.order)
    value = _node(model, "Gather", [value, *_weights(model, f"{name}/order", inverse)], {"axis": 1})
    synthesis = np.tile(transform.synthesis[:, None], (channels, 1, 1, 1))
    attributes: Mapping[str, int | Sequence[int]] = {"group": channels, "strides": [b, b]}
    value = _node(model, "ConvTranspose", [value, *_weights(model, f"{name}/synthesis", synthesis)], attributes)
    unmix = transform.unmix[:, :, None, None]
    return _node(model, "Conv", [value, *_weights(model, f"{name}/unmix", unmix, transform.mean)], {})


def _node(model: ir.Model, op: str, inputs: list[ir.Value], attributes: Mapping[str, int | Sequence[int]]) -> ir.Value:
    name = f"{inputs[1].name}/{op.lower()}"
    output = ir.val(name, ir.DataType.FLOAT)
    model.graph.append(ir.node(op, inputs, dict(attributes), outputs=[output], name=name))
    return output


def _weights(model: ir.Model, name: str, *arrays: Array) -> list[ir.Value]:
    named = zip(("", "/bias"), arrays, strict=False)
    return [initializer(model, name + suffix, np.ascontiguousarray(array)) for suffix, array in named]


def _planes_shape(value: ir.Value, transform: Transform) -> ir.Shape:
    b = transform.block
    dims = (
        [None, None, None, None] if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    )
    height, width = (d // b if isinstance(d, int) else None for d in dims[2:])
    return ir.Shape([dims[0], len(transform.order), height, width])
