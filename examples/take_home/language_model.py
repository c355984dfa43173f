"""A language model of transformers: fewer layers and narrower, then save_pretrained and generate."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune as fp


def main() -> None:
    """Takes a Llama from 4 layers of 64 channels to 3 of 48, in its own class."""
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    model = LlamaForCausalLM(config).eval()  # LlamaForCausalLM.from_pretrained(...) for real use
    prompt = torch.randint(0, 128, (1, 12))
    outcome = fp.prune(
        model,
        kwargs={"input_ids": prompt, "use_cache": False},
        to={
            "num_hidden_layers": 3,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    )
    print(outcome.report.text(depth=1))

    smaller = outcome.written
    assert isinstance(smaller, LlamaForCausalLM)
    with TemporaryDirectory() as folder:
        smaller.save_pretrained(folder)
        again = LlamaForCausalLM.from_pretrained(folder)  # needs no fxprune
    cached, plain = (
        again.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=cache)
        for cache in (True, False)
    )
    assert torch.equal(cached, plain)
    print(again.config, cached, sep="\n")


if __name__ == "__main__":
    main()
