"""Networks of other libraries, and more of transformers: what plans are written back to, besides those of the zoo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
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
_TWO_STAGES = {"depths": (2, 2), "num_heads": (4, 8)}
# Those of timm that are built with fewer blocks, and narrower, than their name says, or see images of another size: the
# size of their images, and the arguments.
_FEWER: dict[str, tuple[int, dict[str, Any]]] = {
    "swinv2_tiny_window8_256": (64, {"embed_dim": 32, **_TWO_STAGES, "img_size": 64}),
    "cait_xxs24_224": (64, {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 64}),
    "xcit_nano_12_p16_224": (64, {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 64}),
    "beit_base_patch16_224": (64, {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 64}),
    "eva02_tiny_patch14_224": (56, {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 56}),
    "davit_tiny": (64, {"embed_dims": (24, 48), **_TWO_STAGES}),
    "pvt_v2_b0": (64, {"depths": (1, 1, 1, 1)}),
    "twins_svt_small": (64, {"depths": (1, 1, 2, 1), "embed_dims": (16, 32, 48, 64)}),
    "edgenext_xx_small": (64, {"depths": (1, 1, 2, 1)}),
    "levit_128s": (64, {"depth": (1, 1, 1), "img_size": 64}),
    "coat_tiny": (64, {"serial_depths": (1, 1, 1, 1), "parallel_depth": 1, "img_size": 64}),
    "crossvit_tiny_240": (240, {"depth": ([1, 1, 0],) * 2}),
    "efficientformer_l1": (224, {"depths": (1, 1, 1, 2)}),
    "efficientformerv2_s0": (224, {"depths": (1, 1, 1, 2)}),
    "efficientvit_m0": (64, {"depth": (1, 1, 1), "img_size": 64}),
    "convit_tiny": (64, {"depth": 3, "local_up_to_layer": 2, "img_size": 64}),
    "hiera_tiny_224": (64, {"stages": (1, 1, 1, 1), "img_size": 64}),
    "inception_next_tiny": (64, {"depths": (1, 1, 1, 1)}),
    "mambaout_femto": (64, {"depths": (1, 1, 1, 1)}),
    "maxvit_tiny_rw_224": (64, {"depths": (1, 1, 1, 1), "img_size": 64}),
    "coatnet_0_rw_224": (64, {"depths": (1, 1, 1, 1), "img_size": 64}),
    "rdnet_tiny": (64, {"num_blocks_list": (1,) * 7}),
    "sequencer2d_s": (64, {"layers": (1, 1, 1, 1)}),
    "swiftformer_xs": (64, {"layers": (1, 1, 1, 1)}),
    "swinv2_cr_tiny_224": (64, {"depths": (1, 1, 1, 1), "img_size": 64}),
    "tiny_vit_5m_224": (64, {"depths": (1, 1, 1, 1)}),
    "tnt_s_legacy_patch16_224": (64, {"depth": 2, "img_size": 64}),
    "tresnet_m": (64, {"layers": (1, 1, 2, 1)}),
    "twins_pcpvt_small": (64, {"depths": (1, 1, 1, 1)}),
    "visformer_tiny": (64, {"depth": (1, 1, 1), "img_size": 64}),
    "vit_relpos_small_patch16_224": (64, {"depth": 2, "img_size": 64}),
    "vitamin_small_224": (64, {"depth": 2, "img_size": 64}),
    **{
        name: (64, {"img_size": 64})
        for name in ("gmlp_s16_224", "mvitv2_tiny", "nest_tiny", "volo_d1_224")
    },
    **{
        name: (64, {})
        for name in (
            *("caformer_s18", "dm_nfnet_f0", "dpn68", "focalnet_tiny_srf", "hrnet_w18_small"),
            *(
                "nasnetalarge",
                "nextvit_small",
                "pnasnet5large",
                "tf_efficientnetv2_b0",
            ),
            "xception41",
        )
    },
    **{name: (96, {}) for name in ("inception_resnet_v2", "inception_v4")},
    "eca_halonext26ts": (256, {}),  # windows that smaller maps do not fill
}
_SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}


def networks_of_classes() -> list[Network]:
    """Those of the zoo that are captured whole, and those of this module; timm's come only when they are asked for."""
    own = [_smaller(n) for n in networks() if n.kind in _KINDS]
    return [*own, *_more_transformers(), *_detectors(), *_segmenters(), *_diffusers()]


def built(name: str) -> nn.Module:
    """The network of a name, as it is before anything is removed."""
    return next(n for n in networks_of_classes() if n.name == name).build()[0]


def _smaller(network: Network) -> Network:
    """A network of timm with fewer blocks where its name is in the table; any other as it is."""
    name = network.name.removeprefix("timm:")
    return replace(network, build=partial(_fewer, name)) if name in _FEWER else network


def _fewer(name: str) -> Example:
    import timm

    size, options = _FEWER[name]
    model = timm.create_model(name, pretrained=False, **options).eval()
    return model, (torch.randn(2, 3, size, size),), {}


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
