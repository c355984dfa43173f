"""Tests of fxprune.write_back.layers with models of transformers, timm and torchvision."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import fxprune as fp
from fxprune.write_back import Removed, written

TOKENS = torch.arange(16).reshape(2, 8) * 5 % 96
LLAMA = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": None,
}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 4, "n_head": 4, "eos_token_id": None}
OPT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "word_embed_proj_dim": 32,
    "eos_token_id": None,
}
MIXED = {
    "head_dim": 8,
    "use_sliding_window": True,
    "sliding_window": 4,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}


def tiny(kind: str, suffix: str, **options: Any) -> Any:
    """A small model of transformers whose layers all tell."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**options)
    model = getattr(transformers, f"{kind}{suffix}")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(8)
    return model


def without(model: nn.Module, x: Any, *where: str, **kwargs: Any) -> fp.Result:
    closed = " | ".join(f"set-gates{{where={w} value=0}}" for w in where)
    text = f"insert-gates{{scope=block}} | {closed} | delete-gated | fold-batchnorm | dead-code"
    return fp.run(model.eval(), x, text, kwargs or None)


def decoded(model: Any, **options: Any) -> list[int]:
    out = model.generate(TOKENS[:1], max_new_tokens=4, do_sample=False, **options)
    return list(out[0].tolist())


@pytest.mark.parametrize(
    ("kind", "options", "layers"),
    [
        ("Llama", LLAMA, "model.layers"),
        ("Qwen3", {**LLAMA, **MIXED}, "model.layers"),
        ("OPT", OPT, "model.decoder.layers"),
        ("GPT2", GPT2, "transformer.h"),
    ],
)
def test_whole_layers_of_a_decoder(
    kind: str, options: dict[str, Any], layers: str, tmp_path: Path
) -> None:
    model = tiny(kind, "LMHeadModel" if kind == "GPT2" else "ForCausalLM", **options)
    result = without(model, TOKENS, f"{layers}.0.*", use_cache=False)
    found = written(model, result)
    smaller, count = found.model, model.config.num_hidden_layers
    assert not found.remarks
    assert smaller.config.num_hidden_layers == count - 1 == len(smaller.get_submodule(layers))
    torch.testing.assert_close(smaller(TOKENS).logits, result.program(TOKENS, use_cache=False)[0])
    smaller.save_pretrained(tmp_path)
    read = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(read(TOKENS).logits, smaller(TOKENS).logits)
    tokens = decoded(smaller, use_cache=False)
    assert decoded(smaller) == decoded(read) == tokens
    assert model.config.num_hidden_layers == count == len(model.get_submodule(layers))


def test_types_of_layers_follow() -> None:
    model = tiny("Qwen3", "ForCausalLM", **{**LLAMA, **MIXED})
    result = without(model, TOKENS, "model.layers.0.*", use_cache=False)
    config = fp.write_back(model, result).config
    assert config.layer_types == ["sliding_attention", "full_attention"]


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_the_attention_of_the_first_layer(kind: str) -> None:
    suffix, options = ("ForCausalLM", LLAMA) if kind == "Llama" else ("LMHeadModel", GPT2)
    model = tiny(kind, suffix, **options)
    where = "model.layers.0.*attn*" if kind == "Llama" else "transformer.h.0.*attn*"
    result = without(model, TOKENS, where, use_cache=False)
    found = written(model, result)
    assert [r.code for r in found.remarks] == ["write-back.config-stale"]
    smaller = found.model
    assert sum(isinstance(m, Removed) for m in smaller.modules()) == 1
    torch.testing.assert_close(smaller(TOKENS).logits, result.program(TOKENS, use_cache=False)[0])
    tokens = decoded(smaller, use_cache=False)
    assert decoded(smaller) == tokens
    with torch.no_grad():
        past = smaller(TOKENS[:, :4]).past_key_values
        last = smaller(TOKENS[:, 4:], past_key_values=past).logits[:, -1]
    torch.testing.assert_close(last, smaller(TOKENS).logits[:, -1], rtol=1e-3, atol=1e-4)


def test_a_cache_with_places_of_several_kinds_is_named() -> None:
    model = tiny("Qwen3", "ForCausalLM", **{**LLAMA, **MIXED})
    result = without(model, TOKENS, "model.layers.0.*attn*", use_cache=False)
    found = written(model, result)
    assert [r.code for r in found.remarks] == ["write-back.config-stale", "write-back.cache"]
    smaller = found.model
    torch.testing.assert_close(
        smaller(TOKENS, use_cache=False).logits, result.program(TOKENS, use_cache=False)[0]
    )


def test_norms_behind_the_sums_stay() -> None:
    sizes = {**LLAMA, "num_hidden_layers": 2, "max_position_embeddings": 32}
    model = tiny("Bert", "ForSequenceClassification", **sizes)
    result = without(model, TOKENS, "bert.encoder.layer.1.*")
    assert len(result.zeros) == 2
    found = written(model, result)
    assert [r.code for r in found.remarks] == ["write-back.config-stale"]
    layers = found.model.bert.encoder.layer
    assert len(layers) == 2
    assert isinstance(layers[1].attention.output.LayerNorm, nn.LayerNorm)
    torch.testing.assert_close(found.model(TOKENS).logits, result.program(TOKENS)[0])


def test_vit_of_transformers() -> None:
    model = tiny("ViT", "ForImageClassification", **{**LLAMA, "image_size": 16, "patch_size": 4})
    x = torch.randn(2, 3, 16, 16)
    result = without(model, x, "vit.*.1.*")
    assert len(result.zeros) == 2
    smaller = fp.write_back(model, result)
    assert smaller.config.num_hidden_layers == 2
    torch.testing.assert_close(smaller(x).logits, result.program(x)[0])


X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_timm_names_what_is_left() -> None:
    timm = pytest.importorskip("timm")
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=5
    )
    result = without(model, X, "blocks.1.*")
    smaller = fp.write_back(model, result)
    assert [f["module"] for f in smaller.feature_info] == ["blocks.0", "blocks.1", "blocks.2"]
    torch.testing.assert_close(smaller(X), result.program(X))
    assert len(smaller.forward_intermediates(X)[1]) == 3
    assert len(model.feature_info) == 4


def test_torchvision_reads_the_weights_with_fewer_layers() -> None:
    def make(layers: int) -> nn.Module:
        return torchvision.models.VisionTransformer(32, 8, layers, 2, 32, 64, num_classes=5).eval()

    model = make(3)
    result = without(model, X, "encoder.layers.encoder_layer_1*")
    smaller, fresh = fp.write_back(model, result), make(2)
    fresh.load_state_dict(smaller.state_dict())
    torch.testing.assert_close(fresh(X), result.program(X))


def test_a_projection_on_the_shortcut_stays() -> None:
    model: Any = torchvision.models.resnet18(num_classes=5)
    result = without(model, X, "layer4.0*", "layer4.1*", "layer3.1*")
    smaller = fp.write_back(model, result)
    assert [len(s) for s in (smaller.layer3, smaller.layer4)] == [1, 1]
    assert isinstance(smaller.layer4[0].bn2, Removed)
    assert isinstance(smaller.layer4[0].downsample[0], nn.Conv2d)
    torch.testing.assert_close(smaller(X), result.program(X), rtol=1e-4, atol=1e-5)
    assert smaller(torch.randn(1, 3, 64, 48)).shape == (1, 5)
