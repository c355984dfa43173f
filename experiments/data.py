"""Data sets as tensors in memory: whole epochs without a loader's workers, the same order for the same seed."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import pad
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor

Tensor = torch.Tensor
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CACHE = Path.home() / ".cache" / "fxprune"
_TORCHVISION: dict[str, Callable[..., datasets.VisionDataset]] = {
    "mnist": datasets.MNIST,
    "fashion-mnist": datasets.FashionMNIST,
    "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100,
}
NAMES = ("cifar10-jpeg", *_TORCHVISION)


@dataclass(frozen=True, eq=False)
class Data:
    """Images as bytes and their classes.

    Attributes:
        name: see `NAMES`.
        images: of training, uint8 `[n, channels, height, width]`.
        labels: of training `[n]`.
        test_images: like images.
        test_labels: like labels.
        augment: crop out of a border of 4 and flip, at random.
    """

    name: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    augment: bool

    def limit(self, count: int | None) -> Data:
        """With `count` training images only, the same for every run."""
        if count is None or count >= len(self.images):
            return self
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0))
        chosen = order[:count].to(self.images.device)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def to(self, device: str) -> Data:
        """On a device, whole."""
        names = ("images", "labels", "test_images", "test_labels")
        return replace(self, **{n: getattr(self, n).to(device) for n in names})

    def batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training images once, shuffled, whole batches only."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.images), generator=generator).to(self.images.device)
        for at in range(0, len(order) - size + 1, size):
            chosen = order[at : at + size]
            images = self.images[chosen]
            if self.augment:
                images = augmented(images, generator)
            yield self.scaled(images), self.labels[chosen]

    def scaled(self, images: Tensor) -> Tensor:
        """Numbers about 0 with a spread about 1, float32."""
        return images.float().sub_(128).div_(64) if self.augment else images.float().div_(255)

    def example(self, size: int) -> Tensor:
        """A batch as the network takes it."""
        return self.scaled(self.images[:size])


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to 4 pixels over a border of the mean, and flipped or not."""
    n, _, height, width = images.shape
    moves = torch.randint(9, (2, n), generator=generator)
    flip = torch.rand(n, generator=generator) < 0.5
    rows = moves[0][:, None] + torch.arange(height)
    columns = moves[1][:, None] + torch.arange(width)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    where = [t.to(images.device) for t in (torch.arange(n), rows, columns)]
    wide = pad(images, (4, 4, 4, 4), value=128).permute(0, 2, 3, 1)
    found = wide[where[0][:, None, None], where[1][:, :, None], where[2][:, None, :]]
    return found.permute(0, 3, 1, 2).contiguous()


def load(name: str, folder: Path | None = None) -> Data:
    """A data set by name.

    Args:
        name: see `NAMES`.
        folder: where torchvision's own layout lies; the two sets that are at hand need none.

    Raises:
        SystemExit: it is not there.
    """
    root = folder or SHARED
    try:
        if name in _TORCHVISION:
            return _of(name, *(_TORCHVISION[name](root, train=t) for t in (True, False)))
        return _cifar10_jpeg(root)
    except (RuntimeError, FileNotFoundError) as error:
        raise SystemExit(
            f"{name} is not in {root}: {error}; give its folder with --data"
        ) from error


def _of(name: str, train: datasets.VisionDataset, test: datasets.VisionDataset) -> Data:
    parts: list[Tensor] = []
    for part in (train, test):
        images = torch.as_tensor(part.data)
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
        parts += [images.contiguous(), torch.as_tensor(part.targets)]
    return Data(name, parts[0], parts[1], parts[2], parts[3], augment="cifar" in name)


def _cifar10_jpeg(root: Path) -> Data:
    """CIFAR-10 as JPEGs in an archive, unpacked and decoded once."""
    kept = CACHE / "cifar10.pt"
    if not kept.exists():
        folder = CACHE / "cifar10"
        if not folder.exists():
            with tarfile.open(root / "cifar10-jpeg.tar.xz") as archive:
                archive.extractall(folder, filter="data")
        parts: list[Tensor] = []
        for part in ("train", "test"):
            (found,) = [p for p in folder.rglob(part) if p.is_dir()]
            pairs = list(datasets.ImageFolder(str(found)))
            parts += [
                torch.stack([pil_to_tensor(image) for image, _ in pairs]),
                torch.tensor([label for _, label in pairs]),
            ]
        torch.save(parts, kept)
    parts = torch.load(kept)
    return Data("cifar10-jpeg", parts[0], parts[1], parts[2], parts[3], augment=True)
