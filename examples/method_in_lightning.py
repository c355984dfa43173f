"""A method beside Lightning's loop: residual blocks leave the network while a Trainer trains it.

Needs lightning. Made images, so that it runs in seconds: python examples/method_in_lightning.py
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fxprune as fp
from fxprune_passes.methods import BernoulliLayers
from stripes import make_batch, make_network


class Classifier(lightning.LightningModule):
    """Manual optimisation: a method takes the step, and Lightning does everything around it."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        network = make_network(blocks=3, inside=8)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        shrinker = fp.training.Shrinker(network, optimizer, args=make_batch()[0])
        self.method = BernoulliLayers(shrinker, keep=0.5, metric="macs", epochs=epochs)
        self.network = self.method.module

    def configure_optimizers(self) -> Any:
        return self.method.shrinker.optimizer

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        x, y = batch
        return self.method.step(lambda module: cross_entropy(module(x), y))

    def on_train_epoch_end(self) -> None:
        for change in self.method.end_epoch():
            print(change)
        self.network = self.method.module  # a smaller network is another module
        self.log_dict(self.method.numbers())


def main(epochs: int = 5, steps: int = 20) -> fp.Program:
    torch.manual_seed(0)
    model = Classifier(epochs)
    before = model.method.shrinker.program
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(*make_batch(32 * steps)), 32, shuffle=True))
    program = model.method.finish_training()
    print(fp.compare(before, program, depth=1))
    return program


if __name__ == "__main__":
    main()
