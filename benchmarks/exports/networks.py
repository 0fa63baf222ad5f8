"""The architectures, written compactly, and their export. Runs in an environment with torch: see `__main__`.

Law: real topologies at small inputs (64x64 pixels, 32 tokens), so that a sweep over hundreds of cuts takes minutes; all
weights are seeded random numbers. Some networks go through torch.export ("dynamo"), some through TorchScript, which
writes Shape and Gather chains; opsets 11 to 20 and free batches are among them.
"""
# ruff: noqa: TID251 - torch lives in an environment of its own; everybody else meets only the ONNX files

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

SEED = 20261121
SIDE, TOKENS, WORDS, CLASSES = 64, 32, 1000, 100


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18)."""

    widening = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(inputs, width, 3, stride), nn.ReLU(), conv_bn(width, width))
        self.short = conv_bn(inputs, width, 1, stride) if stride > 1 or inputs != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.short(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut (ResNet-50)."""

    widening = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        middle = conv_bn(width, width, 3, stride)
        self.body = nn.Sequential(conv_bn(inputs, width, 1), nn.ReLU(), middle, nn.ReLU(), conv_bn(width, outputs, 1))
        self.short = conv_bn(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.short(x))


def resnet(block: type[Basic] | type[Bottleneck], depths: Sequence[int]) -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, depth in enumerate(depths):
        for i in range(depth):
            layers.append(block(inputs, 64 << stage, 2 if stage and not i else 1))
            inputs = (64 << stage) * block.widening
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


def vgg16() -> nn.Module:
    """With the pooled 512 features as input of the classifier, not 7x7 of them: 100 MB less of random numbers."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    dense = [nn.Linear(512, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, CLASSES)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *dense)


class Inverted(nn.Module):
    """1x1 up, depthwise 3x3, 1x1 down (MobileNetV2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        hidden = inputs * factor
        up = [] if factor == 1 else [conv_bn(inputs, hidden, 1), nn.ReLU6()]
        middle = conv_bn(hidden, hidden, 3, stride, groups=hidden)
        self.body = nn.Sequential(*up, middle, nn.ReLU6(), conv_bn(hidden, outputs, 1))
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skips else self.body(x)


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [conv_bn(3, 32, 3, 2), nn.ReLU6()]
    inputs = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for factor, outputs, depth, stride in stages:
        for i in range(depth):
            layers.append(Inverted(inputs, outputs, 1 if i else stride, factor))
            inputs = outputs
    last = [conv_bn(inputs, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, CLASSES)]
    return nn.Sequential(*layers, *last)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        scores = query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5
        if bias is not None:
            scores = scores + bias
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    """Pre-norm for vision, post-norm for text."""

    def __init__(self, width: int, heads: int, *, before: bool) -> None:
        super().__init__()
        self.attention, self.before = Attention(width, heads), before
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.before:
            x = x + self.attention(self.norm1(x), bias)
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x, bias))
        return self.norm2(x + self.mlp(x))


class Vit(nn.Module):
    def __init__(self, width: int = 192, depth: int = 12, heads: int = 3, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = nn.Parameter(torch.randn(1, (SIDE // patch) ** 2 + 1, width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, heads, before=True) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class Bert(nn.Module):
    """Token ids, an attention mask that reaches every layer, and token types."""

    def __init__(self, width: int = 128, depth: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.words, self.places, self.types = (
            nn.Embedding(WORDS, width),
            nn.Embedding(512, width),
            nn.Embedding(2, width),
        )
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width, heads, before=False) for _ in range(depth))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x = self.norm(self.words(input_ids) + self.places(places) + self.types(token_type_ids))
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, bias)
        weights = attention_mask[:, :, None].to(x.dtype)
        return functional.normalize((x * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=-1)


class Detector(nn.Module):
    """Three scales, a feature pyramid, two heads each: six outputs, and skips across most of the network."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, width, 3, 2), nn.ReLU())
        self.stages = nn.ModuleList(Basic(width << max(i - 1, 0), width << i, 2) for i in range(3))
        self.sides = nn.ModuleList(nn.Conv2d(width << i, width, 1) for i in range(3))
        self.smooth = nn.ModuleList(nn.Sequential(conv_bn(width, width), nn.ReLU()) for _ in range(3))
        self.scores = nn.ModuleList(nn.Conv2d(width, 5, 3, padding=1) for _ in range(3))
        self.boxes = nn.ModuleList(nn.Conv2d(width, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        levels = [x := stage(x) for stage in self.stages]
        tops = [side(level) for side, level in zip(self.sides, levels, strict=True)]
        for i in (1, 0):
            tops[i] = tops[i] + functional.interpolate(tops[i + 1], size=tops[i].shape[-2:], mode="nearest")
        found = [smooth(top) for smooth, top in zip(self.smooth, tops, strict=True)]
        scores = [head(f).flatten(2).transpose(1, 2).sigmoid() for head, f in zip(self.scores, found, strict=True)]
        boxes = [head(f).flatten(2).transpose(1, 2).exp() for head, f in zip(self.boxes, found, strict=True)]
        return (*scores, *boxes)


class Export(NamedTuple):
    make: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    dynamo: bool
    free: dict[str, dict[int, str]]  # input -> axis -> name


IMAGE, LOGITS = ("image",), ("logits",)
TEXT = ("input_ids", "attention_mask", "token_type_ids")
BATCH = {"image": {0: "batch"}}
EXPORTS = {
    "resnet18": Export(lambda: resnet(Basic, (2, 2, 2, 2)), IMAGE, LOGITS, 11, False, BATCH),
    "resnet50": Export(lambda: resnet(Bottleneck, (3, 4, 6, 3)), IMAGE, LOGITS, 18, True, {}),
    "vgg16": Export(vgg16, IMAGE, LOGITS, 13, False, {}),
    "mobilenet_v2": Export(mobilenet_v2, IMAGE, LOGITS, 20, True, BATCH),
    "vit_tiny": Export(Vit, IMAGE, LOGITS, 17, False, BATCH),
    "bert": Export(Bert, TEXT, ("embedding",), 14, False, {name: {0: "batch", 1: "tokens"} for name in TEXT}),
    "detector": Export(
        Detector, IMAGE, tuple(f"{kind}{i}" for kind in ("scores", "boxes") for i in range(3)), 18, True, {}
    ),
}


def seed_weights(module: nn.Module) -> None:
    """Kernels by He's rule, running statistics near those of a standardised network, so that nothing vanishes."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_in")
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.0)
            nn.init.normal_(part.bias, 0.0, 0.1)
            nn.init.normal_(part.running_mean, 0.0, 0.1)
            nn.init.uniform_(part.running_var, 0.8, 1.5)


def example(names: Sequence[str]) -> tuple[Tensor, ...]:
    if names == IMAGE:
        return (torch.randn(2, 3, SIDE, SIDE),)
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    mask[1, TOKENS // 2 :] = 0
    return torch.randint(0, WORDS, (2, TOKENS)), mask, torch.zeros(2, TOKENS, dtype=torch.int64)


def export(name: str, folder: Path) -> None:
    torch.manual_seed(SEED)
    plan = EXPORTS[name]
    module = plan.make().eval()
    seed_weights(module)
    given = example(plan.inputs)
    if not plan.free:
        given = tuple(t[:1] for t in given)
    more: dict[str, Any] = {"dynamo": plan.dynamo}
    if plan.dynamo and plan.free:
        batch = torch.export.Dim("batch", min=1, max=64)
        more["dynamic_shapes"] = tuple({0: batch} for _ in plan.inputs)
        more["external_data"] = False
    elif plan.dynamo:
        more["external_data"] = False
    elif plan.free:
        more["dynamic_axes"] = plan.free
    path, draft = folder / f"{name}.onnx", folder / f"{name}.part"
    torch.onnx.export(
        module,
        given,
        str(draft),
        input_names=list(plan.inputs),
        output_names=list(plan.outputs),
        opset_version=plan.opset,
        **more,
    )
    draft.replace(path)  # what bears the name is whole
    exporter = "dynamo" if plan.dynamo else "TorchScript"
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opset {plan.opset}, {exporter}")


if __name__ == "__main__":
    for chosen in sys.argv[2:]:
        export(chosen, Path(sys.argv[1]))
