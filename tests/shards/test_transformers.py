"""A Llama saved by transformers, cut on disk and read by transformers, computes what the smaller program does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fxprune as fp

transformers = pytest.importorskip("transformers")


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_a_llama_is_cut_on_disk_and_read_again(tmp_path: Path, tied: bool) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 128}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        **sizes, **heads, head_dim=16, tie_word_embeddings=tied, use_cache=False
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "old", max_shard_size="100KB")
    with torch.device("meta"):
        meta = transformers.LlamaForCausalLM(config).eval()
    inputs = {"input_ids": torch.randint(128, (2, 8))}
    rows = {"model.layers.0.mlp.up_proj.weight": (0, range(32))}
    rows |= {"model.layers.1.mlp.up_proj.weight": (0, range(20, 52))}
    rows |= {"model.norm.weight": (0, range(3, 27))}
    program = fp.capture(meta, kwargs=inputs)
    fp.plan(program, rows).save(tmp_path / "plan.json")
    plan = fp.Plan.load(tmp_path / "plan.json")
    fp.apply_to_shards(plan, tmp_path / "old", tmp_path / "new", model=meta, program=program)
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    assert (again.config.hidden_size, again.config.intermediate_size) == (40, 64)
    assert index["metadata"]["total_parameters"] == again.num_parameters()
    dense = fp.capture(model, kwargs=inputs)
    small = fp.shrink(dense, fp.plan(dense, rows))(**inputs).logits
    found = again(**inputs, use_cache=False).logits
    torch.testing.assert_close(found, small, rtol=1e-4, atol=1e-5)
