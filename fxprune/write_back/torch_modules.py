"""The attributes of torch's own modules that repeat sizes."""

from __future__ import annotations

from torch import nn

from fxprune.errors import PlanError
from fxprune.write_back.sizes import Attributes, Cut, register_sizes


@register_sizes(nn.modules.conv._ConvNd)
def _convolution(cut: Cut) -> Attributes:
    m = cut.module
    groups = cut.groups("weight", m.groups)
    a, b = m.weight.shape[0], m.weight.shape[1] * groups
    inner, outer = (a, b) if m.transposed else (b, a)
    return {"groups": groups, "in_channels": inner, "out_channels": outer}


@register_sizes(nn.Linear)
def _linear(cut: Cut) -> Attributes:
    m = cut.module
    return {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}


@register_sizes(nn.Bilinear)
def _bilinear(cut: Cut) -> Attributes:
    m = cut.module
    return dict(zip(("out_features", "in1_features", "in2_features"), m.weight.shape, strict=True))


@register_sizes(nn.Embedding, nn.EmbeddingBag)
def _embedding(cut: Cut) -> Attributes:
    m = cut.module
    return {"embedding_dim": m.weight.shape[1]}


@register_sizes(nn.modules.batchnorm._NormBase)
def _batch_norm(cut: Cut) -> Attributes:
    m = cut.module
    tensor = next((t for t in (m.weight, m.running_mean) if t is not None), None)
    return {} if tensor is None else {"num_features": len(tensor)}


@register_sizes(nn.LayerNorm, nn.RMSNorm)
def _layer_norm(cut: Cut) -> Attributes:
    m = cut.module
    shape = m.normalized_shape if m.weight is None else m.weight.shape
    spelled = [cut.spelled.get(("normalized_shape", i), n) for i, n in enumerate(shape)]
    return {"normalized_shape": tuple(spelled)}


@register_sizes(nn.GroupNorm)
def _group_norm(cut: Cut) -> Attributes:
    m = cut.module
    if m.weight is None:
        groups = cut.spelled.get(("num_groups", None), m.num_groups)
        return {"num_groups": groups}
    groups = cut.groups("weight", m.num_groups)
    return {"num_groups": groups, "num_channels": len(m.weight)}


@register_sizes(nn.PReLU)
def _prelu(cut: Cut) -> Attributes:
    m = cut.module
    return {"num_parameters": len(m.weight)}


@register_sizes(nn.ChannelShuffle)
def _channel_shuffle(cut: Cut) -> Attributes:
    m = cut.module
    return {"groups": cut.spelled.get(("groups", None), m.groups)}


@register_sizes(nn.RNNBase)
def _recurrent(cut: Cut) -> Attributes:
    m = cut.module
    gates = {"LSTM": 4, "GRU": 3}.get(m.mode, 1)
    hidden = m.weight_hh_l0.shape[0] // gates
    attributes = {"input_size": m.weight_ih_l0.shape[1], "hidden_size": hidden}
    if m.proj_size:
        attributes["proj_size"] = m.weight_hr_l0.shape[0]
    several = {t.shape[0] for n, t in m.named_parameters() if n.startswith("weight_hh")}
    if len(several) > 1:
        raise PlanError(
            "the layers of a recurrent module would lose different numbers of hidden units",
            where=cut.path,
            do="use the smaller program (fp.shrink)",
        )
    m._flat_weights = [getattr(m, name, None) for name in m._flat_weights_names]
    return attributes


@register_sizes(nn.RNNCellBase)
def _recurrent_cell(cut: Cut) -> Attributes:
    m = cut.module
    return {"input_size": m.weight_ih.shape[1], "hidden_size": m.weight_hh.shape[1]}


@register_sizes(nn.MultiheadAttention)
def _attention(cut: Cut) -> Attributes:
    m = cut.module
    inner, width = m.out_proj.weight.shape[1], m.out_proj.weight.shape[0]
    if inner != width:
        raise PlanError(
            f"nn.MultiheadAttention cannot have a width of {width} and heads of {inner} channels together",
            where=cut.path,
            why="its forward assumes that heads x head size = width",
            do="remove heads and width in proportion, as fits=model does, or use the smaller program (fp.shrink)",
        )
    if m.in_proj_weight is None:
        heads = cut.groups("q_proj_weight", m.num_heads)
        keys, values = m.k_proj_weight.shape[1], m.v_proj_weight.shape[1]
    else:
        heads = cut.groups("in_proj_weight", 3 * m.num_heads) // 3
        keys = values = width
    return {
        "embed_dim": width,
        "num_heads": heads,
        "head_dim": width // heads,
        "kdim": keys,
        "vdim": values,
    }
