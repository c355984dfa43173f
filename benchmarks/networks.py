"""The networks of the zoo: how each is built with random weights, and example inputs.

Images are as small as a network takes them: labels and weights do not depend on their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn

Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Inputs = dict[str, Callable[[], torch.Tensor]]


@dataclass(frozen=True)
class Network:
    """One row of the zoo; it can be pickled.

    Attributes:
        name: unique, `library:model`.
        kind: heading it is listed under.
        build: makes the model in eval mode, example positional and keyword inputs.
        share: smallest share of its parameters that must be prunable.
        partial: capture the largest submodules that export, not the whole.
        apart: names of modules whose parameters do not count in the second share.
    """

    name: str
    kind: str
    build: Callable[[], Example]
    share: float = 0.0
    partial: bool = False
    apart: tuple[str, ...] = ()


def networks() -> list[Network]:
    """Every network of the zoo, in order; those of kind timm come only when they are asked for."""
    return [*_torchvision(), *_transformers(), *_timm()]


def classifiers() -> list[Network]:
    """Those whose time is measured: torchvision's classifiers, and the transformers."""
    return [n for n in networks() if n.kind in ("classification", "transformers")]


# torchvision

_SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56, "swin": 112}
_FRAMES = {"mc3_18": 4, "r3d_18": 4, "r2plus1d_18": 4, "s3d": 16}


def _torchvision() -> Iterator[Network]:
    from torchvision import models

    named = {k: models.list_models(getattr(models, k)) for k in _BUILD if k != "classification"}
    apart = {n for k in named for n in named[k]} | {*models.list_models(models.quantization)}
    named["classification"] = [n for n in models.list_models() if n not in apart]
    for kind, build in _BUILD.items():
        for name in named[kind]:
            share = 0.97 if name.startswith(("convnext", "swin")) else 0.99
            yield Network(
                f"torchvision:{name}",
                kind,
                partial(build, name),
                share if kind == "classification" else 0.0,
                partial=kind == "detection",
            )


def _model(name: str, **options: Any) -> nn.Module:
    from torchvision import models

    found: nn.Module = models.get_model(name, weights=None, **options).eval()
    return found


def _classifier(name: str) -> Example:
    size = _SIZES.get(name) or _SIZES.get(name.split("_")[0], 64)
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):  # the second head is used in training only
        options = {"init_weights": False, "aux_logits": False}
    return _model(name, **options), (torch.randn(2, 3, size, size),), {}


def _segmenter(name: str) -> Example:
    return _model(name, weights_backbone=None), (torch.randn(2, 3, 64, 64),), {}


def _video(name: str) -> Example:
    from torchvision.models.video import mvit

    frames, size = _FRAMES.get(name, 4), 224 if name == "s3d" else 64
    whole = mvit._mvit

    def small(*args: Any, **options: Any) -> Any:
        """MViT for small videos: its builders do not let that be said."""
        options.update(spatial_size=(size, size), temporal_size=frames)
        return whole(*args, **options)

    with mock.patch.object(mvit, "_mvit", small):
        return _model(name), (torch.randn(2, 3, frames, size, size),), {}


def _flow(name: str) -> Example:
    images = tuple(torch.randn(2, 3, 128, 128) for _ in range(2))
    return _model(name), images, {"num_flow_updates": 3}


def _detector(name: str) -> Example:
    size = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}.get(name, 128)
    options: dict[str, Any] = {} if name.startswith("ssd") else {"min_size": size, "max_size": size}
    if "rcnn" in name:  # random weights propose boxes everywhere
        options["rpn_post_nms_top_n_test"] = 50
    model = _model(name, weights_backbone=None, **options)
    for path, module in model.named_modules():
        # Thresholds of zero and few boxes, so that random weights detect something.
        for attribute, value in (("score_thresh", 0.0), ("detections_per_img", 20)):
            if hasattr(module, attribute):
                setattr(module, attribute, value)
        # With SSDlite's own tiny weights the scores of all boxes tie, and rounding sorts them.
        ties = name.startswith("ssdlite") and path.startswith(("head", "backbone.extra"))
        if ties and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model, ([torch.rand(3, size, size), torch.rand(3, size, size)],), {}


_BUILD: dict[str, Callable[[str], Example]] = {
    "classification": _classifier,
    "segmentation": _segmenter,
    "video": _video,
    "optical_flow": _flow,
    "detection": _detector,
}

# transformers, two layers each


def _tokens(length: int = 16) -> torch.Tensor:
    return torch.randint(0, 100, (2, length))


def _mask() -> torch.Tensor:
    return (torch.arange(16) < 12).long().expand(2, 16)


_EMBEDDINGS = ("embed", "wte", "wpe", "shared", "lm_head", "relative_attention_bias", "cls_token")
_LAYERS = {"hidden_size": 64, "num_hidden_layers": 2}
_ENCODER = {**_LAYERS, "num_attention_heads": 8, "intermediate_size": 96}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "vocab_size": 100, "use_cache": False}
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 32}
_T5 = {
    "d_model": 64,
    "d_kv": 8,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 8,
    "decoder_start_token_id": 0,
}
_WHISPER = {
    f"{part}_{n}": v
    for part in ("encoder", "decoder")
    for n, v in (("layers", 2), ("attention_heads", 8), ("ffn_dim", 96))
}
_IMAGES = {"image_size": 32, "patch_size": 8}
_WORDS = {"vocab_size": 100, "use_cache": False}
_LENGTHS = {"max_source_positions": 50, "max_target_positions": 32}
_MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_IDS: Inputs = {"input_ids": _tokens}
_TARGETS: Inputs = {"decoder_input_ids": partial(_tokens, 8)}
# Name -> what its configuration's class starts with, its model's class, the configuration, the inputs.
_TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], Inputs]] = {
    "gpt2": ("GPT2", "LMHeadModel", _GPT2 | _WORDS, _IDS),
    "llama": ("Llama", "ForCausalLM", _DECODER, _IDS),
    "qwen2": ("Qwen2", "ForCausalLM", _DECODER, _IDS),
    "mistral": ("Mistral", "ForCausalLM", _DECODER, _IDS),
    "bert": (
        "Bert",
        "ForMaskedLM",
        _ENCODER | {"vocab_size": 100},
        _IDS | {"attention_mask": _mask},
    ),
    "t5": ("T5", "ForConditionalGeneration", _T5 | _WORDS, _IDS | _TARGETS),
    "vit": (
        "ViT",
        "ForImageClassification",
        _ENCODER | _IMAGES,
        {"pixel_values": partial(torch.randn, 2, 3, 32, 32)},
    ),
    "whisper": (
        "Whisper",
        "ForConditionalGeneration",
        {"d_model": 64} | _WHISPER | _WORDS | _LENGTHS | _MARKS,
        {"input_features": partial(torch.randn, 2, 80, 100)} | _TARGETS,
    ),
    "mamba": ("Mamba", "ForCausalLM", _LAYERS | _WORDS | {"state_size": 8}, _IDS),
    "mixtral": ("Mixtral", "ForCausalLM", _DECODER | _EXPERTS, _IDS),
}


def _transformers() -> Iterator[Network]:
    for name in _TRANSFORMERS:
        apart = (*_EMBEDDINGS, *(("mlp.gate",) if name == "mixtral" else ()))
        build = partial(_transformer, name)
        yield Network(f"transformers:{name}", "transformers", build, apart=apart)


def _transformer(name: str) -> Example:
    prefix, suffix, options, inputs = _TRANSFORMERS[name]
    model = from_config(prefix, suffix, options)
    return model, (), {k: make() for k, make in inputs.items()}


def from_config(prefix: str, suffix: str, options: dict[str, Any]) -> nn.Module:
    """A model of transformers: what its configuration's class starts with, its own ends with, and the fields."""
    import transformers

    config = getattr(transformers, f"{prefix}Config")(**options)
    found: nn.Module = getattr(transformers, prefix + suffix)(config).eval()
    return found


# timm, one model of each family

_FAMILIES = """
beit_base_patch16_224 botnet26t_256 eca_halonext26ts gernet_s repvgg_a0 cait_xxs24_224
coat_tiny convit_tiny convmixer_768_32 convnextv2_atto crossvit_tiny_240 cspresnet50
darknet53 davit_tiny deit3_small_patch16_224 densenet121 dla34 dpn68 edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvit_b0 efficientvit_m0
eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_100
hgnet_tiny hiera_tiny_224 hrnet_w18_small inception_next_tiny inception_resnet_v2
inception_v4 levit_128s mambaout_femto maxvit_tiny_rw_224 coatnet_0_rw_224
poolformer_s12 caformer_s18 mixer_s32_224 gmlp_s16_224 resmlp_12_224 mobilenetv3_small_050
mobilenetv4_conv_small mobilevit_xxs mobilevitv2_050 mvitv2_tiny nasnetalarge nest_tiny
nextvit_small dm_nfnet_f0 nf_regnet_b0 pit_ti_224 pnasnet5large pvt_v2_b0 rdnet_tiny
regnety_002 repghostnet_050 repvit_m0_9 res2net50_26w_4s resnest14d resnet18 resnetv2_50
rexnet_100 selecsls42b seresnet33ts sequencer2d_s skresnet18 starnet_s1 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 tf_efficientnetv2_b0
tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_pcpvt_small twins_svt_small
vgg11_bn visformer_tiny vit_tiny_patch16_224 vit_relpos_small_patch16_224 vitamin_small_224
volo_d1_224 ese_vovnet19b_dw xception41 xcit_nano_12_p16_224
"""


def _timm() -> Iterator[Network]:
    for name in _FAMILIES.split():
        yield Network(f"timm:{name}", "timm", partial(_of_timm, name))


def _of_timm(name: str) -> Example:
    import timm

    model = timm.create_model(name, pretrained=False).eval()
    channels, *size = model.default_cfg["input_size"]
    if not model.default_cfg.get("fixed_input_size"):
        size = [min(s, 128) for s in size]
    return model, (torch.randn(2, channels, *size),), {}
