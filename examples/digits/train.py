"""Trains the digits demo model and writes `digits.onnx`; needs torch, so it runs in an environment of its own.

    python3 -m venv /tmp/digits-env
    /tmp/digits-env/bin/pip install torch==2.13.0 numpy scikit-learn onnx onnxruntime
    /tmp/digits-env/bin/python -m examples.digits.train

(from the repository root; the CPU build of torch is enough, `--index-url https://download.pytorch.org/whl/cpu` fetches
only that one). Nothing else in the repository imports torch.

The shape of the network is one table, `STEM` to `LATE`: the torch module and the ONNX graph are both built from it, so
they cannot drift apart. The graph is written node by node and not by torch's exporter, because tensor names are what a
reader meets in every report about cuts: they say `stem3/relu`, not `/stem/stem.6/Relu_output_0`.

Every epoch draws the training images anew (place, size, light, noise). The schedule is fixed and the last weights are
the ones kept: the held-out frames are looked at once, after training.
"""
# ruff: noqa: TID251 - the one file that may import torch; everybody else meets only the ONNX file that it writes

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from examples.digits import data

MODEL_PATH = Path(__file__).parent / "digits.onnx"
CLASSES = 10
OPSET, IR_VERSION = 17, 8
"""Opset 17 and the IR version that belongs to it: old enough for every runtime that a device may still carry."""
PARITY_TOLERANCE = 1e-4
"""Largest difference of a logit between torch and the written graph; folding BatchNorm alone moves them by 1e-6."""
LICENCE = "weights: Apache-2.0; training data: CC BY 4.0, UCI Optical Recognition of Handwritten Digits"

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """How the weights are found."""

    seed: int = 20261124
    """Seeds the initial weights, the order of the images and every frame drawn."""
    stages: tuple[tuple[int, int], ...] = ((112, 25), (224, 5))
    """Frame side and epochs (passes over the training images, each with new frames), in turn.

    A small frame costs a quarter and teaches nearly the same. The last stage has the published side: it fits the
    weights to strokes twice as wide, and leaves less than 0.1 % of the small frames in BatchNorm's running statistics.
    """
    batch: int = 64
    """Frames per step."""
    peak_rate: float = 4e-3
    """Largest learning rate of the one-cycle schedule (AdamW)."""
    warm_up: float = 0.25
    """Part of the steps in which that rate is reached; the rest come down from it."""
    weight_decay: float = 0.05
    """Decoupled weight decay of AdamW."""
    smoothing: float = 0.05
    """Label smoothing."""
    tilt: float = 12.0
    """Largest rotation of a training digit in degrees, either way: 13 writers are few."""
    shear: float = 0.15
    """Largest horizontal shear of a training digit, either way."""
    threads: int = 2
    """Threads of torch."""


@dataclass(frozen=True)
class Conv:
    """One square convolution with half padding; BatchNorm follows it in training and is folded away on export."""

    inputs: int
    outputs: int
    side: int = 3
    stride: int = 1


@dataclass(frozen=True)
class Residual:
    """relu(x + second(relu(first(x)))), each a 3x3 convolution."""

    channels: int
    inner: int

    def convs(self) -> tuple[Conv, Conv]:
        """The two convolutions, in order."""
        return Conv(self.channels, self.inner), Conv(self.inner, self.channels)


Layer = Conv | Residual
NORMALISE = {"mean": 60.0, "std": 35.0}
"""Grey levels, rounded from the training frames; baked into the graph so that a client sends raw uint8 pixels."""
STEM: dict[str, Layer] = {"stem1": Conv(1, 16, side=5, stride=2), "stem2": Conv(16, 24, stride=2)}
NECK: dict[str, Layer] = {"stem3": Conv(24, 24, stride=2)}
EARLY: dict[str, Layer] = {f"block{i}": Residual(24, 192) for i in (1, 2, 3)}
LATE: dict[str, Layer] = {"down": Conv(24, 104)} | {f"block{i}": Residual(104, 104) for i in (4, 5)}
LAYERS = STEM | NECK | EARLY | LATE
WIDTH = 104


def convolutions() -> Iterator[tuple[str, Conv]]:
    """Every convolution by name, in the order it runs: `stem1/conv`, ..., `block5/conv2`."""
    for name, layer in LAYERS.items():
        if isinstance(layer, Conv):
            yield f"{name}/conv", layer
        else:
            first, second = layer.convs()
            yield from ((f"{name}/conv1", first), (f"{name}/conv2", second))


class ConvNorm(nn.Module):
    """A convolution without bias and the BatchNorm after it."""

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            conv.inputs, conv.outputs, conv.side, conv.stride, padding=conv.side // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(conv.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N,inputs,H,W] -> float32 [N,outputs,H/stride,W/stride]."""
        y: Tensor = self.norm(self.convolution(x))
        return y

    def folded(self) -> tuple[Array, Array]:
        """Weight and bias of the one convolution that computes the same in eval mode (float64, then rounded)."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = self.convolution.weight.double() * scale[:, None, None, None]
        return _array(weight), _array(norm.bias.double() - norm.running_mean.double() * scale)


class Network(nn.Module):
    """The table as a torch module."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = {name: ConvNorm(conv) for name, conv in convolutions()}
        self.registered = nn.ModuleDict(self.convs)  # torch finds parameters only in its own containers
        self.logits = nn.Linear(WIDTH, CLASSES)
        for name, module in self.convs.items():
            if name.endswith("/conv2"):  # a block starts as the identity, which makes the high peak rate safe
                nn.init.zeros_(module.norm.weight)

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [N,1,side,side] -> logits float32 [N,10]; any side will do, for the pool averages what there is."""
        x = (image.float() - NORMALISE["mean"]) * (1.0 / NORMALISE["std"])
        x = x.contiguous(memory_format=torch.channels_last)
        for name, layer in LAYERS.items():
            if isinstance(layer, Conv):
                x = functional.relu(self.convs[f"{name}/conv"](x))
            else:
                inner = functional.relu(self.convs[f"{name}/conv1"](x))
                x = functional.relu(x + self.convs[f"{name}/conv2"](inner))
        logits: Tensor = self.logits(x.mean(dim=(2, 3)))
        return logits


def train(split: data.Split, recipe: Recipe) -> Network:
    """Train from scratch on `split`'s training images; prints one line per epoch, returns the network in eval mode."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)
    network = Network()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sides = [side for side, epochs in recipe.stages for _ in range(epochs)]
    steps = -(-len(split.train_images) // recipe.batch)
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.peak_rate, total_steps=len(sides) * steps, pct_start=recipe.warm_up
    )
    network.train()
    started = time.perf_counter()
    for epoch, side in enumerate(sides):
        total = 0.0
        for frames, labels in _epoch(split, recipe, epoch, side):
            loss = functional.cross_entropy(network(frames), labels, label_smoothing=recipe.smoothing)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += loss.item() * len(labels)
        mean, elapsed_s = total / len(split.train_labels), time.perf_counter() - started
        print(f"epoch {epoch + 1:2d}/{len(sides)}  side {side}  loss {mean:.4f}  {elapsed_s:5.0f} s", flush=True)
    network.eval()
    return network


def _epoch(split: data.Split, recipe: Recipe, epoch: int, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of freshly drawn frames, in a new order; everything follows from the seed and the epoch's number."""
    seed = recipe.seed + 1 + epoch
    order = np.random.default_rng(seed).permutation(len(split.train_images))
    frames = data.draw(_warp(split.train_images[order], recipe, seed), seed, data.SENSOR.resized(side))
    labels = split.train_labels[order]
    for start in range(0, len(order), recipe.batch):
        chosen = slice(start, start + recipe.batch)
        yield torch.from_numpy(frames[chosen]), torch.from_numpy(labels[chosen])


def _warp(images: Array, recipe: Recipe, seed: int) -> Array:
    """Rotate and shear float32 [n,8,8] a little; rounded back to the integers 0..16 that `draw` is exact on."""
    generator = torch.Generator().manual_seed(seed)
    tilt, shear = 2.0 * torch.rand(2, len(images), generator=generator) - 1.0
    tilt, shear = torch.deg2rad(tilt * recipe.tilt), shear * recipe.shear
    zero = torch.zeros_like(tilt)
    across = torch.stack((tilt.cos(), shear - tilt.sin(), zero), dim=1)
    down = torch.stack((tilt.sin(), tilt.cos(), zero), dim=1)
    grid = functional.affine_grid(torch.stack((across, down), dim=1), [len(images), 1, 8, 8], align_corners=False)
    source = torch.from_numpy(images)[:, None]
    warped = functional.grid_sample(source, grid, mode="bicubic", align_corners=False)
    result: Array = warped[:, 0].round().clamp(0.0, data.DIGIT_INK).numpy()
    return result


def folded(network: Network) -> dict[str, Array]:
    """Weights and biases by ONNX name, every BatchNorm folded into the convolution before it."""
    weights: dict[str, Array] = {}
    for name, module in network.convs.items():
        weights[f"{name}/weight"], weights[f"{name}/bias"] = module.folded()
    return weights | {"logits/weight": _array(network.logits.weight), "logits/bias": _array(network.logits.bias)}


def _array(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().float().numpy())


def build_onnx(weights: dict[str, Array]) -> onnx.ModelProto:
    """The table as an ONNX graph with `weights` inside: checked, every tensor's shape inferred, batch axis `N`."""
    constants = {"normalise/mean": NORMALISE["mean"], "normalise/scale": 1.0 / NORMALISE["std"]}
    initialisers = {name: np.float32(value) for name, value in constants.items()} | weights
    frame: list[str | int | None] = ["N", 1, data.SENSOR.side, data.SENSOR.side]
    graph = helper.make_graph(
        _nodes(),
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, frame)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initialisers.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="isthmus-examples"
    )
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def _nodes() -> list[onnx.NodeProto]:
    """All nodes in order; each is named after the one tensor that it makes."""
    nodes = [
        helper.make_node("Cast", ["image"], ["normalise/cast"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["normalise/cast", "normalise/mean"], ["normalise/sub"]),
        helper.make_node("Mul", ["normalise/sub", "normalise/scale"], ["normalise/mul"]),
    ]
    x = "normalise/mul"
    for name, layer in LAYERS.items():
        nodes += _conv_nodes(name, layer, x) if isinstance(layer, Conv) else _residual_nodes(name, layer, x)
        x = f"{name}/relu"
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pool/mean"]),
        helper.make_node("Flatten", ["pool/mean"], ["pool/flat"], axis=1),
        helper.make_node("Gemm", ["pool/flat", "logits/weight", "logits/bias"], ["logits"], transB=1),
    ]
    for node in nodes:
        node.name = node.output[0]
    return nodes


def _conv_node(name: str, conv: Conv, x: str) -> onnx.NodeProto:
    return helper.make_node(
        "Conv",
        [x, f"{name}/weight", f"{name}/bias"],
        [name],
        kernel_shape=[conv.side] * 2,
        strides=[conv.stride] * 2,
        pads=[conv.side // 2] * 4,
    )


def _conv_nodes(name: str, conv: Conv, x: str) -> list[onnx.NodeProto]:
    return [_conv_node(f"{name}/conv", conv, x), helper.make_node("Relu", [f"{name}/conv"], [f"{name}/relu"])]


def _residual_nodes(name: str, block: Residual, x: str) -> list[onnx.NodeProto]:
    first, second = block.convs()
    return [
        _conv_node(f"{name}/conv1", first, x),
        helper.make_node("Relu", [f"{name}/conv1"], [f"{name}/relu1"]),
        _conv_node(f"{name}/conv2", second, f"{name}/relu1"),
        helper.make_node("Add", [x, f"{name}/conv2"], [f"{name}/add"]),
        helper.make_node("Relu", [f"{name}/add"], [f"{name}/relu"]),
    ]


def run_onnx(model: onnx.ModelProto, frames: data.Frames) -> Array:
    """Logits float32 [N,10] of the written graph, by ONNX Runtime if it is installed, else by onnx's own evaluator."""
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        (logits,) = ReferenceEvaluator(model).run(None, {"image": frames})
        return np.asarray(logits, dtype=np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": frames})
    return np.asarray(logits, dtype=np.float32)


def verify(model: onnx.ModelProto, network: Network, frames: data.Frames) -> Array:
    """Return the graph's logits on `frames`, or raise ValueError if torch's differ by more than the tolerance."""
    with torch.inference_mode():
        expected = network(torch.from_numpy(frames)).numpy()
    logits = run_onnx(model, frames)
    worst = float(np.abs(logits - expected).max())
    if not worst <= PARITY_TOLERANCE:
        raise ValueError(f"the ONNX graph differs from torch by {worst:.2e}, allowed {PARITY_TOLERANCE}; see folded()")
    print(f"parity with torch: largest difference {worst:.1e} over {len(frames)} frames")
    return logits


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train, verify, measure once on the held-out frames, write the model."""
    parser = argparse.ArgumentParser(description="Train the digits demo model and write it as ONNX.")
    parser.add_argument("-o", "--output", type=Path, default=MODEL_PATH, metavar="FILE", help="where to write it")
    output: Path = parser.parse_args(arguments).output

    recipe = Recipe()
    network = train(data.load_split(), recipe)
    model = build_onnx(folded(network))
    frames, labels = data.held_out_frames()
    hits = verify(model, network, frames).argmax(axis=1) == labels
    helper.set_model_props(model, _card(recipe, hits))
    output.write_bytes(model.SerializeToString())
    print(f"top-1 {hits.mean():.4f}; per class {[round(float(hits[labels == c].mean()), 3) for c in range(CLASSES)]}")
    print(f"wrote {output} ({output.stat().st_size:,} bytes)")


def _card(recipe: Recipe, hits: NDArray[np.bool_]) -> dict[str, str]:
    """What the file says about itself (ONNX metadata_props)."""
    return {
        "classes": " ".join(str(digit) for digit in range(CLASSES)),
        "accuracy": f"{hits.mean():.4f} top-1, float32, {len(hits)} held-out frames",
        "seed": f"training {recipe.seed}, held-out split {data.HELD_OUT_SEED}, frames {data.HELD_OUT_FRAMES_SEED}",
        "licence": LICENCE,
    }


if __name__ == "__main__":
    main()
