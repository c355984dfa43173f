"""What verification costs beyond what is verified, in forward passes of the network in float32."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import pytest
import torch

import fxprune as fp
from benchmarks.conftest import Compare
from benchmarks.networks import Example
from benchmarks.stages import CLOCK, Laps
from fxprune.pipeline import run_pipeline
from fxprune.verify import Verify

ROWS, ROUNDS = 8, 1
PIPELINE = (
    "insert-gates | drop-identity | fold-batchnorm | fuse-linear | merge-duplicates | fold-constants | "
    "dead-units | absorb-gates | delete-gated | dead-code"
)
AT_MOST = {"pipeline": 3.0, "prune": 2.0}


def image_network(name: str) -> Example:
    import timm

    return timm.create_model(name).eval(), (torch.randn(ROWS, 3, 224, 224),), {}


def llama_layer() -> Example:
    """One layer of Llama at the sizes of 8B, with random weights of 5 GB."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
    config = LlamaConfig(
        **sizes, num_key_value_heads=8, num_hidden_layers=1, vocab_size=128256, use_cache=False
    )
    ids = torch.randint(config.vocab_size, (ROWS, 16))
    return LlamaForCausalLM(config).eval(), (ids,), {}


NETWORKS: dict[str, Callable[[], Example]] = {
    "resnet50": partial(image_network, "resnet50"),
    "vit_base_patch16_224": partial(image_network, "vit_base_patch16_224"),
    "deit_tiny_patch16_224": partial(image_network, "deit_tiny_patch16_224"),
    "llama 8B, one layer": llama_layer,
}


@pytest.mark.benchmark(group="Proof")
@pytest.mark.parametrize("what", AT_MOST)
@pytest.mark.parametrize("network", NETWORKS)
def test_proof(network: str, what: str, compare: Compare) -> None:
    model, args, _ = NETWORKS[network]()
    program = fp.capture(model, args)
    found: dict[str, list[float]] = defaultdict(list)

    def work(how: Verify) -> object:
        if what == "pipeline":
            return run_pipeline(program, PIPELINE, verify=how)
        return fp.prune(model, args, verify=how)

    @torch.no_grad()
    def forward() -> Any:
        return model(*args)

    def measure(_: object) -> None:
        laps = Laps()
        for how in ("unverified", "local"):
            laps(how, work, how == "local")
            found[how].append(laps[how] / CLOCK.unit)

    row = compare(forward, measure, ROUNDS, AT_MOST[what])
    row["unverified"] = median(found["unverified"][1:])
    row["ratio"] = median(found["local"][1:]) - row["unverified"]
    if "llama" not in network:  # the whole in float64 takes 25 GB
        laps = Laps()
        laps("full", work, "full")
        row["full"] = 1e3 * laps["full"] / row["reference ms"] - row["unverified"]
