"""A detector of ultralytics: narrower, in its own class, saved and loaded again. Needs `pip install ultralytics`."""

from __future__ import annotations

import sys
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

import fxprune as fp


def main(weights: str = "yolov8n.yaml") -> None:
    """Prunes to 70 % of the MACs, and reads the smaller model from disk; `yolov8n.pt` for real weights."""
    yolo = YOLO(weights)
    model = yolo.model.eval()
    outcome = fp.prune(model, torch.randn(2, 3, 128, 128), keep=0.7, fits=model)
    print(outcome.report.text(depth=0))

    smaller: Any = outcome.written
    yolo.model = smaller
    with TemporaryDirectory() as folder:
        fp.save(smaller, folder, build=DetectionModel, args=[yolo.model.yaml])
        again = fp.load_model(folder, build=DetectionModel)
    image = torch.rand(1, 3, 96, 160)
    torch.testing.assert_close(again(image)[0], smaller(image)[0])
    print(yolo.predict(image, verbose=False)[0].boxes)


if __name__ == "__main__":
    main(*sys.argv[1:])
