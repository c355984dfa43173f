"""Data sets as tensors in memory: whole epochs without a loader's workers, the same order for the same seed."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import pad
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor, resize

from experiments.text import torch_docs

Tensor = torch.Tensor
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CACHE = Path.home() / ".cache" / "fxprune"
# Samples that are held out of training; whatever is chosen is chosen on them.
HELD = 5_000
_TORCHVISION: dict[str, Callable[..., datasets.VisionDataset]] = {
    "mnist": datasets.MNIST,
    "fashion-mnist": datasets.FashionMNIST,
    "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100,
}
NAMES = ("cifar10-jpeg", "cifar10-jpeg-16", "torch-docs", *_TORCHVISION)


@dataclass(frozen=True, eq=False)
class Part:
    """Samples and what is to be said of them.

    Attributes:
        inputs: images `[n, channels, height, width]`, or bytes of text `[n, length]`; uint8.
        labels: classes `[n]`, or the bytes that follow `[n, length]`; int64.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, where: Tensor | slice) -> Part:
        return Part(self.inputs[where], self.labels[where])

    def to(self, device: str) -> Part:
        """On a device."""
        return Part(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in three parts.

    Attributes:
        name: see `NAMES`.
        train: what weights are learned from.
        held: what everything else is chosen on; no network is trained on it.
        test: read once, behind all choices.
        augment: move over a border by an eighth of the width and flip, at random.
    """

    name: str
    train: Part
    held: Part
    test: Part
    augment: bool = False

    def limit(self, count: int | None) -> Data:
        """With `count` training samples only, the same for every run."""
        if count is None or count >= len(self.train):
            return self
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        return replace(self, train=self.train[order[:count].to(self.train.inputs.device)])

    def to(self, device: str) -> Data:
        """On a device, whole."""
        train, held, test = (p.to(device) for p in (self.train, self.held, self.test))
        return Data(self.name, train, held, test, self.augment)

    def batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training samples once, shuffled, whole batches only; chance is drawn on their device."""
        device = self.train.inputs.device
        generator = torch.Generator(device).manual_seed(seed)
        order = torch.randperm(len(self.train), generator=generator, device=device)
        for at in range(0, len(order) - size + 1, size):
            part = self.train[order[at : at + size]]
            inputs = augmented(part.inputs, generator) if self.augment else part.inputs
            yield self.scaled(inputs), part.labels

    def scaled(self, inputs: Tensor) -> Tensor:
        """As the network takes them: images as numbers of a spread about 1, float32; bytes as int64."""
        if inputs.dim() == 2:
            return inputs.long()
        return inputs.float().sub_(128).div_(64) if self.augment else inputs.float().div_(255)

    def example(self, size: int) -> Tensor:
        """A batch as the network takes it."""
        return self.scaled(self.train.inputs[:size])


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to an eighth of its width over a border of the mean, and flipped or not."""
    n, _, height, width = images.shape
    border, device = width // 8, images.device
    moves = torch.randint(2 * border + 1, (2, n), generator=generator, device=device)
    flip = torch.rand(n, generator=generator, device=device) < 0.5
    rows = moves[0][:, None] + torch.arange(height, device=device)
    columns = moves[1][:, None] + torch.arange(width, device=device)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    wide = pad(images, (border,) * 4, value=128).permute(0, 2, 3, 1)
    which = torch.arange(n, device=device)[:, None, None]
    found = wide[which, rows[:, :, None], columns[:, None, :]]
    return found.permute(0, 3, 1, 2).contiguous()


def load(name: str, folder: Path | None = None) -> Data:
    """A data set by name.

    Args:
        name: see `NAMES`.
        folder: where torchvision's own layout lies; the sets that are at hand need none.

    Raises:
        SystemExit: it is not there.
    """
    root = folder or SHARED
    try:
        if name == "torch-docs":
            return _text(torch_docs(), length=128)
        if name in _TORCHVISION:
            parts = [_of(_TORCHVISION[name](root, train=train)) for train in (True, False)]
        else:
            parts = _cifar10_jpeg(root, 16 if name.endswith("16") else 32)
        return held_out(name, *parts, augment="cifar" in name)
    except (RuntimeError, FileNotFoundError) as error:
        raise SystemExit(
            f"{name} is not in {root}: {error}; give its folder with --data"
        ) from error


def held_out(name: str, train: Part, test: Part, *, augment: bool = False) -> Data:
    """Takes `HELD` of the training samples out, a tenth at most; the same ones for every seed."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
    count = min(HELD, len(train) // 10)
    return Data(name, train[order[count:]], train[order[:count]], test, augment)


def _of(part: datasets.VisionDataset) -> Part:
    images = torch.as_tensor(part.data)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return Part(images.contiguous(), torch.as_tensor(part.targets))


def _cifar10_jpeg(root: Path, size: int) -> list[Part]:
    """CIFAR-10 as JPEGs in an archive, unpacked, decoded and made smaller once."""
    kept = CACHE / "cifar10.pt"
    if not kept.exists():
        folder = CACHE / "cifar10"
        if not folder.exists():
            with tarfile.open(root / "cifar10-jpeg.tar.xz") as archive:
                archive.extractall(folder, filter="data")
        _keep(kept, [_folder(folder, part) for part in ("train", "test")])
    if size == 32:
        return _kept(kept)
    small = CACHE / f"cifar10-{size}.pt"
    if not small.exists():
        large = _kept(kept)
        _keep(
            small, [Part(resize(p.inputs, [size, size], antialias=True), p.labels) for p in large]
        )
    return _kept(small)


def _folder(folder: Path, name: str) -> Part:
    (found,) = [p for p in folder.rglob(name) if p.is_dir()]
    images, labels = zip(*datasets.ImageFolder(str(found)), strict=True)
    return Part(torch.stack([pil_to_tensor(image) for image in images]), torch.tensor(labels))


def _keep(file: Path, parts: list[Part]) -> None:
    """Written whole or not at all: several processes may come first at once."""
    part = file.with_suffix(f".{os.getpid()}")
    torch.save([t for p in parts for t in (p.inputs, p.labels)], part)
    part.replace(file)


def _kept(file: Path) -> list[Part]:
    train, train_labels, test, test_labels = torch.load(file)
    return [Part(train, train_labels), Part(test, test_labels)]


def _text(text: bytes, length: int) -> Data:
    """Pieces of a text, each with the bytes that follow; the last tenth is the test, a twentieth before it is held."""
    count = (len(text) - 1) // length
    numbers = torch.frombuffer(bytearray(text[: count * length + 1]), dtype=torch.uint8)
    whole = Part(numbers[:-1].view(count, length), numbers[1:].long().view(count, length))
    test, held = count * 9 // 10, count * 17 // 20
    return Data("torch-docs", whole[:held], whole[held:test], whole[test:])
