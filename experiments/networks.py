"""The networks of the experiments, as in the papers or as near as their texts allow."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torchvision import models

Tensor = torch.Tensor


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLUs in between: `mlp(784, 50, 30, 10)`."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet5() -> nn.Sequential:
    """LeNet-5 with ReLUs and max pooling, for images of 28x28."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)  # type: ignore[no-any-return]


def residual_mlp(blocks: int = 8, width: int = 64) -> nn.Sequential:
    """Residual blocks of two linear layers between an embedding and a head."""

    def branch() -> nn.Module:
        return nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )

    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, width)),
        *(Residual(branch()) for _ in range(blocks)),
        nn.Linear(width, 10),
    )


def simple_cnn(classes: int = 10) -> nn.Sequential:
    """Two convolution blocks and three linear layers from 2048, for images of 32x32."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        nn.MaxPool2d(2),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(2048, 512), nn.ReLU(), nn.Linear(512, 128), nn.ReLU()),
        nn.Linear(128, classes),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where shapes differ."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(self.shortcut(x) + y)


def resnet_cifar(
    depth: int, widths: tuple[int, ...] = (16, 32, 64), classes: int = 10
) -> nn.Sequential:
    """ResNet-20, 32, 44, 56, ... for small images (He et al., arXiv 1512.03385, section 4.2).

    With four widths and depth 18 it is ResNet-18 with a stem of one 3x3 convolution.
    """
    blocks: list[nn.Module] = []
    before = first = widths[0]
    for width in widths:
        for i in range((depth - 2) // (2 * len(widths))):
            blocks.append(BasicBlock(before, width, 2 if i == 0 and width != first else 1))
            before = width
    return nn.Sequential(
        *(nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()),
        nn.Sequential(*blocks),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)),
    )


def resnet18_cifar(classes: int = 10) -> nn.Module:
    """ResNet-18 with a stem for images of 32x32."""
    model: nn.Module = models.resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def vgg16_cifar(classes: int = 10) -> nn.Module:
    """VGG-16 with batch norms for images of 32x32, one linear layer behind the convolutions."""
    model: nn.Module = models.vgg16_bn(num_classes=classes)
    model.avgpool = nn.Identity()
    model.classifier = nn.Sequential(nn.Linear(512, classes))
    return model


class Attention(nn.Module):
    """Self-attention of several heads, with or without a mask of the future."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.qkv(x).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        y = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(n, length, width))  # type: ignore[no-any-return]


def transformer(blocks: int, width: int, heads: int, *, causal: bool) -> nn.Sequential:
    """Blocks of attention and of two linear layers with a GELU, norms first; a norm behind them."""

    def block() -> nn.Module:
        mlp = nn.Sequential(
            nn.LayerNorm(width),
            *(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
        )
        attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads, causal=causal))
        return nn.Sequential(Residual(attention), Residual(mlp))

    return nn.Sequential(*(block() for _ in range(blocks)), nn.LayerNorm(width))


class Gpt(nn.Module):
    """A language model over bytes: `[n, length]` to scores `[n, length, 256]`."""

    def __init__(
        self, blocks: int = 6, width: int = 128, heads: int = 4, length: int = 128
    ) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(length, width)
        self.blocks = transformer(blocks, width, heads, causal=True)
        self.head = nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        where = torch.arange(x.shape[1], device=x.device)
        return self.head(self.blocks(self.bytes(x) + self.places(where)))  # type: ignore[no-any-return]


class Vit(nn.Module):
    """A vision transformer for images of 16x16 in patches of 4x4, with the mean over patches at its end."""

    def __init__(self, blocks: int = 12, width: int = 64, heads: int = 4, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, (16 // patch) ** 2, width))
        self.blocks = transformer(blocks, width, heads, causal=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.blocks(y).mean(1))  # type: ignore[no-any-return]


def vgg16_small(classes: int = 10) -> nn.Sequential:
    """The 13 convolutions of VGG-16 with a quarter of the widths and batch norms, for images of 16x16."""
    layers: list[nn.Module] = []
    before = 3
    for width, count in ((16, 2), (32, 2), (64, 3), (128, 3), (128, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        if width < 128:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))


NARROW = (8, 16, 32)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP 784-50-30-10": lambda: mlp(784, 50, 30, 10),
    "MLP of 6 layers": lambda: mlp(784, 128, 128, 128, 128, 128, 10),
    "LeNet-5": lenet5,
    "residual MLP": residual_mlp,
    "simple CNN": simple_cnn,
    "narrow ResNet-8": lambda: resnet_cifar(8, NARROW),
    "narrow ResNet-14": lambda: resnet_cifar(14, NARROW),
    "narrow ResNet-18": lambda: resnet_cifar(18, (*NARROW, 64)),
    "narrow ResNet-20": lambda: resnet_cifar(20, NARROW),
    "narrow ResNet-56": lambda: resnet_cifar(56, NARROW),
    "ResNet-8": lambda: resnet_cifar(8),
    "ResNet-14": lambda: resnet_cifar(14),
    "ResNet-20": lambda: resnet_cifar(20),
    "ResNet-56": lambda: resnet_cifar(56),
    "narrow VGG-16": vgg16_small,
    "ViT of 12 blocks": Vit,
    "GPT of 6 blocks": Gpt,
    "ResNet-18": resnet18_cifar,
    "VGG-16": vgg16_cifar,
}
