"""A pruned detector in the trainer of ultralytics, which keeps its sizes. Needs `pip install ultralytics`."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

import fxprune as fp

SIZE, SQUARE, IMAGES = 96, 30, 8


def write_data(folder: Path) -> Path:
    """Images of bright squares on noise, with their boxes; returns the file that describes them."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for i in range(IMAGES):
        image = rng.integers(0, 80, (SIZE, SIZE, 3), dtype=np.uint8)
        x, y = rng.integers(0, SIZE - SQUARE, 2)
        image[y : y + SQUARE, x : x + SQUARE] = 220
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        box = (x + SQUARE / 2, y + SQUARE / 2, SQUARE, SQUARE)
        line = " ".join(["0", *(str(v / SIZE) for v in box)])
        (folder / "labels" / f"{i}.txt").write_text(f"{line}\n")
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: {{0: square}}\n")
    return file


def main(epochs: str = "1") -> None:
    """Prunes to 70 % of the MACs, trains, and reads what the trainer has saved."""
    model = DetectionModel("yolov8n.yaml", nc=1, verbose=False).eval()
    smaller: Any = fp.prune(model, torch.randn(2, 3, SIZE, SIZE), keep=0.7, fits=model).written

    class Trainer(DetectionTrainer):  # type: ignore[misc]  # ultralytics has no types
        """Trains the model that it is given, and builds none from a file of settings."""

        def get_model(self, *_: Any, **__: Any) -> Any:
            return smaller

    with TemporaryDirectory() as folder:
        yolo = YOLO("yolov8n.yaml")
        yolo.model = smaller
        yolo.train(
            trainer=Trainer,
            data=write_data(Path(folder)),
            epochs=int(epochs),
            imgsz=SIZE,
            batch=4,
            workers=0,
            device="cpu",
            project=folder,
            plots=False,
        )
        again = YOLO(yolo.trainer.last).model
    wanted = {name: x.shape for name, x in smaller.named_parameters()}
    assert {name: x.shape for name, x in again.named_parameters()} == wanted
    print(f"{sum(x.numel() for x in again.parameters()):,} parameters after training")


if __name__ == "__main__":
    main(*sys.argv[1:])
