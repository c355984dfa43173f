"""Prunes a ResNet-18, deletes layers, folds its batch norms, then compiles, exports and reloads it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torchvision
from torch.export import Dim

import fxprune as fp


def chain(model: torch.nn.Module, example: torch.Tensor, closed: str, folder: Path) -> Path:
    """Makes a model smaller and writes it as a `.pt2` file.

    Args:
        model: in eval mode.
        example: an input.
        closed: glob of the paths of the residual branches to delete.
        folder: where to write.
    """
    pruned = fp.prune(model, example, keep=0.6, multiple_of=8).program
    result = fp.run(
        pruned,
        None,
        f"insert-gates | set-gates{{where={closed}}} | delete-gated | fold-batchnorm | dead-code",
    )
    print(result)
    small = result.program.module  # an ordinary GraphModule

    path = folder / "small.pt2"
    exported = torch.export.export(small, (example,), dynamic_shapes=({0: Dim("batch")},))
    torch.export.save(exported, path)
    reloaded = torch.export.load(path).module()
    batch = torch.cat([example, example, example])
    torch.testing.assert_close(reloaded(batch), small(batch))

    again = fp.prune(torch.export.load(path), example, keep=0.9)  # what was exported can be pruned
    print(again.report.text(depth=1))
    return path


def main() -> None:
    """About a minute on two cores, most of it spent by the compiler."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    example = torch.randn(2, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        path = chain(model, example, "layer[23].1", Path(folder))
        small = torch.export.load(path).module()
        compiled = torch.compile(small)
        with torch.no_grad():
            torch.testing.assert_close(compiled(example), small(example), rtol=1e-4, atol=1e-4)
    print("compiled: the same")


if __name__ == "__main__":
    main()
