"""The networks of the experiments, as in the papers or as near as their texts allow."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
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


def resnet_cifar(depth: int, classes: int = 10) -> nn.Sequential:
    """ResNet-20, 32, 44, 56, ... for images of 32x32 (He et al., arXiv 1512.03385, section 4.2)."""
    blocks: list[nn.Module] = []
    before = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for i in range((depth - 2) // 6):
            blocks.append(BasicBlock(before, width, stride if i == 0 else 1))
            before = width
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(*blocks),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)),
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


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP 784-50-30-10": lambda: mlp(784, 50, 30, 10),
    "MLP of 6 layers": lambda: mlp(784, 128, 128, 128, 128, 128, 10),
    "LeNet-5": lenet5,
    "residual MLP": residual_mlp,
    "simple CNN": simple_cnn,
    "ResNet-20": lambda: resnet_cifar(20),
    "ResNet-56": lambda: resnet_cifar(56),
    "ResNet-18": resnet18_cifar,
    "VGG-16": vgg16_cifar,
}
