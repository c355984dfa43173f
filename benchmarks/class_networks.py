"""Networks of other libraries, and more of transformers: what plans are written back to, besides those of the zoo."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.networks import Example, Network, from_config, networks

_KINDS = ("classification", "segmentation", "transformers", "timm")
_YOLO = ("yolov8n", "yolo11n")
_SMP = (("Unet", "resnet18"), ("DeepLabV3Plus", "resnet18"), ("Segformer", "resnet18"))
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 96,
    "vocab_size": 100,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_IMAGES = {"image_size": 32, "patch_size": 8}
# Name -> what its configuration's class starts with, its model's class, the configuration.
_TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", "ForCausalLM", {**_GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2", "ForCausalLM", {**_GROUPED, "head_dim": 8}),
    "phi3": ("Phi3", "ForCausalLM", {**_GROUPED, "pad_token_id": 0}),
    "gpt_neox": ("GPTNeoX", "ForCausalLM", _SIZES),
    "opt": (
        "OPT",
        "ForCausalLM",
        {**_SIZES, "ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 64},
    ),
    "roberta": ("Roberta", "ForMaskedLM", _SIZES),
    "distilbert": (
        "DistilBert",
        "ForMaskedLM",
        {"dim": 64, "n_layers": 2, "n_heads": 8, "hidden_dim": 96, "vocab_size": 100},
    ),
    "deit": ("DeiT", "ForImageClassification", {**_SIZES, **_IMAGES}),
    "clip_vision": ("CLIPVision", "Model", {**_SIZES, **_IMAGES}),
}
_SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}


def networks_of_classes() -> list[Network]:
    """Those of the zoo that are captured whole, and those of this module; timm's come only when they are asked for."""
    own = [n for n in networks() if n.kind in _KINDS]
    return [*own, *_more_transformers(), *_detectors(), *_segmenters(), *_diffusers()]


def built(name: str) -> nn.Module:
    """The network of a name, as it is before anything is removed."""
    return next(n for n in networks_of_classes() if n.name == name).build()[0]


def _more_transformers() -> Iterator[Network]:
    for name in _TRANSFORMERS:
        yield Network(f"transformers:{name}", "transformers", partial(_transformer, name))


def _transformer(name: str) -> Example:
    prefix, suffix, options = _TRANSFORMERS[name]
    model: Any = from_config(prefix, suffix, options)
    if "image_size" in options:
        return model, (), {"pixel_values": torch.randn(2, 3, 32, 32)}
    given: dict[str, Any] = {"input_ids": torch.randint(3, 100, (2, 16))}
    if model.can_generate():
        given["use_cache"] = False
    return model, (), given


def _detectors() -> Iterator[Network]:
    for name in _YOLO:
        yield Network(f"ultralytics:{name}", "ultralytics", partial(_yolo, name))


def _yolo(name: str) -> Example:
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(f"{name}.yaml", verbose=False).eval(), (torch.randn(2, 3, 128, 128),), {}


def _segmenters() -> Iterator[Network]:
    for kind, encoder in _SMP:
        name = f"segmentation_models_pytorch:{kind}"
        yield Network(name, "segmentation_models_pytorch", partial(_smp, kind, encoder))


def _smp(kind: str, encoder: str) -> Example:
    import segmentation_models_pytorch

    build = getattr(segmentation_models_pytorch, kind)
    return build(encoder, encoder_weights=None).eval(), (torch.randn(2, 3, 64, 64),), {}


def _diffusers() -> Iterator[Network]:
    for name in ("UNet2DModel", "UNet2DConditionModel", "AutoencoderKL"):
        yield Network(f"diffusers:{name}", "diffusers", partial(_diffuser, name))


def _diffuser(name: str) -> Example:
    import diffusers

    down, up = "DownBlock2D", "UpBlock2D"
    every: dict[str, dict[str, Any]] = {
        "UNet2DModel": {
            "sample_size": 16,
            "down_block_types": (down, f"Attn{down}"),
            "up_block_types": (f"Attn{up}", up),
        },
        "UNet2DConditionModel": {
            "sample_size": 16,
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
            "down_block_types": (f"CrossAttn{down}", down),
            "up_block_types": (up, f"CrossAttn{up}"),
        },
        "AutoencoderKL": {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
    }
    steps, text = torch.tensor([1, 2]), torch.randn(2, 5, 32)
    inputs: tuple[torch.Tensor, ...] = {
        "UNet2DModel": (torch.randn(2, 3, 16, 16), steps),
        "UNet2DConditionModel": (torch.randn(2, 4, 16, 16), steps, text),
        "AutoencoderKL": (torch.randn(2, 3, 32, 32),),
    }[name]
    return getattr(diffusers, name)(**_SMALL, **every[name]).eval(), inputs, {"return_dict": False}
