"""The networks of the zoo: how each is built with random weights, and example inputs.

Images are as small as a network takes them: labels and weights do not depend on their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn

Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Network:
    """One row of the zoo.

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


def networks(*, timm: bool = False) -> list[Network]:
    """Every network of the zoo, in order; with `timm`, one of each timm family too."""
    found = [*_torchvision(), *_transformers()]
    return [*found, *_timm()] if timm else found


# torchvision

_SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}
_FAMILY_SIZES = {"vit": 64, "swin": 112, "convnext": 64, "densenet": 64}
_VIDEO = {
    "mc3_18": (4, 64),
    "r3d_18": (4, 64),
    "r2plus1d_18": (4, 64),
    "s3d": (16, 224),
}


def _torchvision() -> Iterator[Network]:
    from torchvision import models

    kinds = ("segmentation", "video", "optical_flow", "detection")
    special = {name: kind for kind in kinds for name in models.list_models(getattr(models, kind))}
    quantized = set(models.list_models(models.quantization))
    names = [n for n in models.list_models() if n not in quantized]
    order = ("classification", *kinds)
    for kind in order:
        for name in names:
            if special.get(name, "classification") == kind:
                yield _of_torchvision(name, kind)


def _of_torchvision(name: str, kind: str) -> Network:
    lower = name.startswith(("convnext", "swin"))
    share = (0.97 if lower else 0.99) if kind == "classification" else 0.0
    build = {
        "classification": _classifier,
        "segmentation": _segmenter,
        "video": _video,
        "optical_flow": _flow,
        "detection": _detector,
    }[kind]
    return Network(
        f"torchvision:{name}", kind, lambda: build(name), share, partial=kind == "detection"
    )


def _classifier(name: str) -> Example:
    from torchvision import models

    size = _SIZES.get(name) or _FAMILY_SIZES.get(name.split("_")[0], 64)
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):  # the second head is used in training only
        options = {"init_weights": False, "aux_logits": False}
    model = models.get_model(name, weights=None, **options).eval()
    return model, (torch.randn(2, 3, size, size),), {}


def _segmenter(name: str) -> Example:
    from torchvision import models

    model = models.get_model(name, weights=None, weights_backbone=None).eval()
    return model, (torch.randn(2, 3, 64, 64),), {}


def _video(name: str) -> Example:
    from torchvision.models import get_model
    from torchvision.models.video import mvit

    frames, size = _VIDEO.get(name, (4, 64))
    whole = mvit._mvit

    def small(*args: Any, **options: Any) -> Any:
        """MViT for small videos: its builders do not let that be said."""
        options.update(spatial_size=(size, size), temporal_size=frames)
        return whole(*args, **options)

    with mock.patch.object(mvit, "_mvit", small):
        model = get_model(name, weights=None).eval()
    return model, (torch.randn(2, 3, frames, size, size),), {}


def _flow(name: str) -> Example:
    from torchvision import models

    model = models.get_model(name, weights=None).eval()
    images = tuple(torch.randn(2, 3, 128, 128) for _ in range(2))
    return model, images, {"num_flow_updates": 3}


def _detector(name: str) -> Example:
    from torchvision import models

    size = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}.get(name, 128)
    options: dict[str, Any] = {} if name.startswith("ssd") else {"min_size": size, "max_size": size}
    if "rcnn" in name:  # random weights propose boxes everywhere
        options["rpn_post_nms_top_n_test"] = 50
    model = models.get_model(name, weights=None, weights_backbone=None, **options).eval()
    _widen_detections(model)
    if name.startswith("ssdlite"):
        _spread_scores(model)
    return model, ([torch.rand(3, size, size), torch.rand(3, size, size)],), {}


def _widen_detections(model: nn.Module) -> None:
    """Lets random weights detect something: thresholds of zero, few boxes."""
    for module in model.modules():
        for name, value in (("score_thresh", 0.0), ("detections_per_img", 20)):
            if hasattr(module, name):
                setattr(module, name, value)


def _spread_scores(model: nn.Module) -> None:
    """Larger weights for the scores: with its own tiny ones all boxes tie, and rounding sorts them."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and name.startswith(("head", "backbone.extra")):
            nn.init.kaiming_normal_(module.weight)


# transformers, two layers each

_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 100}
_DECODER = {**_SMALL, "num_key_value_heads": 2, "intermediate_size": 96, "use_cache": False}
_EMBEDDINGS = ("embed", "wte", "wpe", "shared", "lm_head", "relative_attention_bias", "cls_token")


def _transformers() -> Iterator[Network]:
    builders: Mapping[str, Callable[[], Example]] = {
        "gpt2": _gpt2,
        "llama": lambda: _decoder("LlamaConfig", "LlamaForCausalLM"),
        "qwen2": lambda: _decoder("Qwen2Config", "Qwen2ForCausalLM"),
        "mistral": lambda: _decoder("MistralConfig", "MistralForCausalLM"),
        "bert": _bert,
        "t5": _t5,
        "vit": _vit,
        "whisper": _whisper,
        "mamba": _mamba,
        "mixtral": lambda: _decoder(
            "MixtralConfig", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2
        ),
    }
    for name, build in builders.items():
        apart = (*_EMBEDDINGS, *(("mlp.gate",) if name == "mixtral" else ()))
        yield Network(f"transformers:{name}", "transformers", build, apart=apart)


def _tokens(length: int = 16) -> torch.Tensor:
    return torch.randint(0, 100, (2, length))


def _of_config(config: str, model: str, **options: Any) -> nn.Module:
    import transformers

    made = getattr(transformers, config)(**options)
    found: nn.Module = getattr(transformers, model)(made).eval()
    return found


def _decoder(config: str, model: str, **options: Any) -> Example:
    return _of_config(config, model, **{**_DECODER, **options}), (), {"input_ids": _tokens()}


def _gpt2() -> Example:
    model = _of_config(
        "GPT2Config",
        "GPT2LMHeadModel",
        n_embd=64,
        n_layer=2,
        n_head=8,
        vocab_size=100,
        n_positions=32,
        use_cache=False,
    )
    return model, (), {"input_ids": _tokens()}


def _bert() -> Example:
    model = _of_config("BertConfig", "BertForMaskedLM", **_SMALL, intermediate_size=96)
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[:, 12:] = 0
    return model, (), {"input_ids": _tokens(), "attention_mask": mask}


def _t5() -> Example:
    model = _of_config(
        "T5Config",
        "T5ForConditionalGeneration",
        d_model=64,
        d_kv=8,
        d_ff=96,
        num_layers=2,
        num_heads=8,
        vocab_size=100,
        use_cache=False,
    )
    return model, (), {"input_ids": _tokens(), "decoder_input_ids": _tokens(8)}


def _vit() -> Example:
    options = {k: v for k, v in _SMALL.items() if k != "vocab_size"}
    model = _of_config(
        "ViTConfig",
        "ViTForImageClassification",
        **options,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
    )
    return model, (), {"pixel_values": torch.randn(2, 3, 32, 32)}


def _whisper() -> Example:
    model = _of_config(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        vocab_size=100,
        max_source_positions=50,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        use_cache=False,
    )
    inputs = {"input_features": torch.randn(2, 80, 100), "decoder_input_ids": _tokens(8)}
    return model, (), inputs


def _mamba() -> Example:
    model = _of_config(
        "MambaConfig",
        "MambaForCausalLM",
        hidden_size=64,
        num_hidden_layers=2,
        vocab_size=100,
        state_size=8,
        use_cache=False,
    )
    return model, (), {"input_ids": _tokens()}


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
        yield Network(f"timm:{name}", "timm", lambda name=name: _of_timm(name))  # type: ignore[misc]


def _of_timm(name: str) -> Example:
    import timm

    model = timm.create_model(name, pretrained=False).eval()
    channels, *size = model.default_cfg["input_size"]
    if not model.default_cfg.get("fixed_input_size"):
        size = [min(s, 128) for s in size]
    return model, (torch.randn(2, channels, *size),), {}
