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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_llama_loses_layers_on_disk_and_is_read_again(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 128}
    heads = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, **heads, use_cache=False)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "old", max_shard_size="100KB")
    with torch.device("meta"):
        meta = transformers.LlamaForCausalLM(config).eval()
    inputs = {"input_ids": torch.randint(128, (2, 8))}
    frequencies = {
        f"model.rotary_emb.{name}": tensor
        for name, tensor in model.model.rotary_emb.named_buffers()
    }
    program = fp.capture(meta, kwargs=inputs)
    frequencies = {n: t for n, t in frequencies.items() if n in program.tensors()}
    program = fp.open_shards(program, tmp_path / "old", tensors=frequencies)
    data = fp.Calibration([inputs["input_ids"]], forward=lambda m, x: m(input_ids=x))
    shallow = fp.prune_layers(program, data, 2)
    fp.apply_to_shards(shallow.result, tmp_path / "old", tmp_path / "new", model=meta)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    assert again.config.num_hidden_layers == 2
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_parameters"] == again.num_parameters()
    stay = [i for i in range(4) if f"model.layers.{i}" not in {d.path for d in shallow.deleted}]
    model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in stay)
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    torch.testing.assert_close(
        again(**inputs, use_cache=False).logits, model(**inputs, use_cache=False).logits
    )
    asked = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    torch.testing.assert_close(
        again.generate(**inputs, **asked, use_cache=True),
        again.generate(**inputs, **asked, use_cache=False),
    )
