"""A method beside the loop of transformers' Trainer: residual blocks leave the network while it trains.

Needs transformers and accelerate. Made images, so that it runs in seconds: python examples/method_in_trainer.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.functional import cross_entropy

import fxprune as fp
from fxprune_passes.methods import BernoulliLayers
from fxprune_passes.methods.method import Method
from stripes import make_batch, make_network


class Classifier(nn.Module):
    """What the Trainer trains: it returns the loss beside the logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.network(x)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class ShrinkingTrainer(transformers.Trainer):  # type: ignore[misc]
    """Lets a method act before and behind the backward pass of each step; the Trainer takes the step itself."""

    def __init__(self, method: Method, *args: Any, **kwargs: Any) -> None:
        self.method = method
        super().__init__(*args, callbacks=[Epochs(method)], **kwargs)

    def training_step(self, model: nn.Module, inputs: Any, *rest: Any, **more: Any) -> torch.Tensor:
        self.method.begin()
        loss: torch.Tensor = super().training_step(model, inputs, *rest, **more)
        x, y = inputs["x"], inputs["labels"]
        self.method.learn(loss.detach(), lambda module: cross_entropy(module(x), y))
        return loss


class Epochs(transformers.TrainerCallback):  # type: ignore[misc]
    """Tells a method that a step or an epoch has ended, and puts the smaller network in place."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.method.finish()

    def on_epoch_end(self, *_: Any, model: Classifier, **__: Any) -> None:
        for change in self.method.end_epoch():
            print(change)
        model.network = self.method.module


def main(epochs: int = 5, steps: int = 20) -> fp.Program:
    torch.manual_seed(0)
    network = make_network(blocks=3, inside=8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    shrinker = fp.training.Shrinker(network, optimizer, args=make_batch()[0])
    before = shrinker.program
    method = BernoulliLayers(shrinker, keep=0.5, metric="macs", epochs=epochs)
    images, classes = make_batch(32 * steps)
    data = [{"x": x, "labels": int(y)} for x, y in zip(images, classes, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        options = transformers.TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = ShrinkingTrainer(
            method,
            Classifier(method.module),
            options,
            train_dataset=data,
            optimizers=(optimizer, None),
        )
        trainer.train()
    program = method.finish_training()
    print(fp.compare(before, program, depth=1))
    return program


if __name__ == "__main__":
    main()
