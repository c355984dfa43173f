"""Awkward networks: each is pruned at random and agrees with its silenced original."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune as fp
from fxprune.graph.operands import get_argument
from fxprune.testing.networks import check_network, check_removal, random_units


class Net(nn.Module):
    """Submodules by keyword, and what to do with them."""

    def __init__(self, run: Any, **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            elif isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                self.add_module(name, part)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        return self.run(self, *args, **kwargs)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def conv(a: int, b: int, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1, **kwargs)


def image(channels: int = 3, size: int = 6) -> Tensor:
    return torch.randn(2, channels, size, size)


def tokens(width: int = 12, length: int = 5) -> Tensor:
    return torch.randn(2, length, width)


def test_cat_of_a_tensor_with_itself() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(torch.cat([y, y], 1))

    program = check_network(
        Net(run, a=conv(3, 8), b=conv(16, 4)), (image(),), prunable={"a.weight": 0, "b.weight": 1}
    )
    assert len(fp.groups(program)[0]) == 8


def test_a_mask_of_one_channel() -> None:
    def run(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        return m.b(m.a(x) * mask)

    model = Net(run, a=conv(3, 8), b=conv(8, 4))
    check_network(model, (image(), torch.rand(2, 1, 6, 6)), prunable={"a.weight": 0, "b.weight": 1})


def test_a_mask_computed_by_the_network() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(y * torch.sigmoid(m.gate(y)))

    model = Net(run, a=conv(3, 8), gate=conv(8, 1), b=conv(8, 4))
    check_network(
        model, (image(),), prunable={"a.weight": 0, "gate.weight": 1}, kept={"gate.weight": 0}
    )


class FusedAttention(nn.Module):
    """timm's attention, with norms of q and k."""

    def __init__(self, width: int = 12, heads: int = 3, norm: Any = nn.LayerNorm) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = norm(self.size), norm(self.size)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


def test_fused_qkv_with_norms_of_q_and_k() -> None:
    model = FusedAttention()
    check_network(
        model, (tokens(),), prunable={"qkv.weight": 0, "proj.weight": 1, "q_norm.weight": 0}
    )


def test_default_scale_of_attention_when_head_dimensions_go() -> None:
    model = FusedAttention(norm=lambda _: nn.Identity())
    program = fp.capture(model, (tokens(),))
    plan = fp.plan(program, {"qkv.weight": (0, [0, 4, 8, 12, 16, 20, 24, 28, 32])})
    assert any(getattr(e, "argument", "") == "scale" for e in plan.edits)
    check_removal(program, plan.removed)


def shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def test_four_channel_shuffles_in_a_row() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        for part in m.parts:
            x = shuffle(part(x), 2)
        return m.last(x)

    parts = nn.ModuleList(conv(8, 8, groups=2) for _ in range(4))
    check_network(Net(run, first=conv(3, 8), parts=parts, last=conv(8, 4)), (image(),))


def test_a_shuffle_lets_channels_go() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.b(shuffle(m.a(x), 2))

    check_network(
        Net(run, a=conv(3, 8), b=conv(8, 4)), (image(),), prunable={"a.weight": 0, "b.weight": 1}
    )


def grouped_network() -> Net:
    return Net(
        lambda m, x: m.b(m.g(m.a(x))), a=conv(3, 12), g=conv(12, 24, groups=3), b=conv(24, 4)
    )


def test_grouped_convolution_loses_groups_and_channels() -> None:
    check_network(
        grouped_network(), (image(),), prunable={"a.weight": 0, "g.weight": (0, 1), "b.weight": 1}
    )


@pytest.mark.parametrize(
    ("gone", "groups", "shape"), [([0, 1, 2, 3], 2, (16, 4, 3, 3)), ([1, 5, 9], 3, (24, 3, 3, 3))]
)
def test_grouped_convolution_loses_what_is_asked(
    gone: list[int], groups: int, shape: tuple[int, ...]
) -> None:
    program = fp.capture(grouped_network(), (image(),))
    small = check_removal(program, fp.plan(program, {"a.weight": (0, gone)}).removed)
    assert tuple(small.tensors()["g.weight"].shape) == shape
    assert [get_argument(n, "groups") for n in small.nodes if "conv2d" in str(n.target)] == [
        1,
        groups,
        1,
    ]


def test_depthwise_convolution_with_multiplier_2() -> None:
    model = Net(lambda m, x: m.b(m.d(m.a(x))), a=conv(3, 8), d=conv(8, 16, groups=8), b=conv(16, 4))
    check_network(
        model,
        (image(),),
        prunable={"a.weight": 0, "d.weight": 0, "b.weight": 1},
        kept={"d.weight": 1},
    )


def test_transposed_convolution_with_groups() -> None:
    up = nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2)
    model = Net(lambda m, x: m.b(m.up(m.a(x))), a=conv(3, 8), up=up, b=conv(12, 4))
    check_network(model, (image(),), prunable={"a.weight": 0, "up.weight": (0, 1), "b.weight": 1})


def test_flatten_into_a_linear() -> None:
    model = nn.Sequential(
        conv(3, 8), nn.Flatten(), nn.Linear(8 * 36, 10), nn.ReLU(), nn.Linear(10, 3)
    )
    program = check_network(model, (image(),), prunable={"0.weight": 0, "2.weight": (0, 1)})
    assert len(fp.groups(program)[0]) == 8


@pytest.mark.parametrize("shape", [(-1, 8 * 36), (2, -1)])
def test_views_of_a_spelled_size(shape: tuple[int, ...]) -> None:
    model = Net(lambda m, x: m.b(m.a(x).view(shape)), a=conv(3, 8), b=nn.Linear(8 * 36, 10))
    check_network(model, (image(),), prunable={"a.weight": 0, "b.weight": 1})


def test_squeeze_and_excite() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        s = F.relu(m.down(F.adaptive_avg_pool2d(y, 1)))
        return m.b(y * torch.sigmoid(m.up(s)))

    model = Net(run, a=conv(3, 8), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1), b=conv(8, 4))
    check_network(
        model, (image(),), prunable={"a.weight": 0, "down.weight": (0, 1), "up.weight": (0, 1)}
    )


def test_two_outputs() -> None:
    def run(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        z = m.b(y)
        return {"deep": m.c(z), "mid": z}

    model = Net(run, a=conv(3, 8), b=conv(8, 6), c=conv(6, 4))
    check_network(model, (image(),), prunable={"a.weight": 0}, kept={"b.weight": 0, "c.weight": 0})


def test_a_shared_convolution() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.b(m.s(F.relu(m.s(m.a(x)))))

    model = Net(run, a=conv(3, 8), s=conv(8, 8), b=conv(8, 4))
    check_network(model, (image(),), prunable={"s.weight": (0, 1)})


def test_tied_embeddings() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return F.linear(m.body(m.embed(x)), m.embed.weight)

    model = Net(
        run,
        embed=nn.Embedding(11, 12),
        body=nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12)),
    )
    check_network(
        model, (torch.randint(11, (2, 5)),), prunable={"embed.weight": 1}, kept={"embed.weight": 0}
    )


def test_a_table_of_relative_positions() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = (m.qkv(x).view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)).unbind(0)
        bias = m.table[m.index.view(-1)].view(5, 5, 3).permute(2, 0, 1)
        y = torch.softmax(q @ k.transpose(-2, -1) + bias, -1) @ v
        return m.out(y.transpose(1, 2).reshape(2, 5, 12))

    parts = {"table": nn.Parameter(torch.randn(9, 3)), "index": torch.randint(9, (5, 5))}
    model = Net(run, qkv=nn.Linear(12, 36), out=nn.Linear(12, 12), **parts)
    check_network(
        model,
        (tokens(),),
        prunable={"table": 1, "qkv.weight": 0},
        kept={"table": 0, "index": (0, 1)},
    )


def test_pixel_shuffle() -> None:
    model = Net(lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2)), a=conv(3, 12), b=conv(3, 4))
    check_network(model, (image(),), prunable={"a.weight": 0, "b.weight": 1})


def test_group_norm_whole_groups_are_exact_and_parts_renormalise() -> None:
    model = nn.Sequential(conv(3, 12), nn.GroupNorm(3, 12), nn.ReLU(), conv(12, 4))
    program = check_network(
        model, (image(),), prunable={"0.weight": 0, "1.weight": 0, "3.weight": 1}
    )
    exact = {len(g): g.exact for g in fp.groups(program) if g.name.startswith("0.weight")}
    assert exact == {3: True, 4: False}


def test_mean_over_channels() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return y.mean(1, keepdim=True) + y.mean((1, 2, 3), keepdim=True) + m.b(y)

    check_network(Net(run, a=conv(3, 8), b=conv(8, 4)), (image(),), prunable={"a.weight": 0})


class Recurrent(nn.Module):
    def __init__(self, kind: Any, **kwargs: Any) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.rnn = kind(6, 8, num_layers=2, bidirectional=True, batch_first=True, **kwargs)
        self.last = nn.Linear(2 * (kwargs.get("proj_size") or 8), 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.rnn(self.first(x))[0])
        return out


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_two_recurrent_layers_in_both_directions(kind: Any) -> None:
    prunable = {
        "first.weight": 0,
        "rnn.weight_ih_l0": 1,
        "rnn.weight_hh_l1_reverse": 1,
        "last.weight": 1,
    }
    program = check_network(Recurrent(kind), (torch.randn(2, 5, 4),), prunable=prunable)
    assert sorted(map(len, fp.groups(program)))[:2] == [6, 8]


def test_lstm_with_projection() -> None:
    model = Recurrent(nn.LSTM, proj_size=4)
    prunable = {"rnn.weight_hr_l0": 0, "last.weight": 1}
    check_network(model, (torch.randn(2, 5, 4),), prunable=prunable, kept={"rnn.weight_hr_l0": 1})


def test_a_dead_branch_and_unused_and_scalar_parameters() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        m.dead(y)
        return m.b(y * m.scale)

    parts = {"unused": nn.Parameter(torch.randn(5)), "scale": nn.Parameter(torch.tensor(2.0))}
    model = Net(run, a=conv(3, 8), dead=conv(8, 5), b=conv(8, 4), **parts)
    program = check_network(model, (image(),), prunable={"a.weight": 0})
    assert {"unused", "dead.weight", "scale"} <= set(program.tensors())


class Attention(nn.Module):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 12), nn.Linear(12, 4)
        self.mha = nn.MultiheadAttention(12, 3, batch_first=True, **kwargs)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.first(x)
        out: Tensor = self.last(self.mha(y, y, y, attn_mask=mask, need_weights=False)[0])
        return out


def test_multihead_attention_with_a_mask() -> None:
    mask = torch.triu(torch.full((5, 5), float("-inf")), 1)
    prunable: dict[str, Any] = {
        "mha.in_proj_weight": (0, 1),
        "mha.out_proj.weight": (0, 1),
        "first.weight": 0,
    }
    check_network(Attention(), (tokens(), mask), prunable=prunable)


def test_multihead_attention_in_train_mode() -> None:
    mask = torch.zeros(5, 5)
    check_network(
        Attention(dropout=0.1).train(), (tokens(), mask), prunable={"mha.out_proj.weight": (0, 1)}
    )


@pytest.mark.parametrize("contiguous", [True, False])
def test_heads_joined_by_a_view_of_the_layout_that_a_kernel_chose(contiguous: bool) -> None:
    """Another dtype, head size or mode brings another kernel; `.contiguous()` that copied nothing is in no graph."""

    def run(m: Any, x: Tensor) -> Tensor:
        b, n, d = x.shape
        heads = (y.view(b, n, 3, d // 3).transpose(1, 2) for y in m.qkv(m.first(x)).split(d, 2))
        q, k, v = heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        joined = y.contiguous() if contiguous else y
        out: Tensor = m.last(joined.view(b, n, d))
        return out

    model = Net(run, first=nn.Linear(12, 12), qkv=nn.Linear(12, 36), last=nn.Linear(12, 4))
    prunable: dict[str, Any] = {"qkv.weight": (0, 1), "last.weight": 1, "first.weight": 0}
    check_network(model, (tokens(),), prunable=prunable)


def test_dropout_and_batch_norm_in_train_mode() -> None:
    model = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), conv(8, 4)
    ).train()
    check_network(model, (image(),), prunable={"0.weight": 0, "1.running_var": 0, "4.weight": 1})


def test_bfloat16() -> None:
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4)).bfloat16().eval()
    program = fp.capture(model, (image().bfloat16(),))
    small = check_removal(program, random_units(program, 0.4))
    assert {t.dtype for t in small.tensors().values() if t.is_floating_point()} == {torch.bfloat16}
    assert small.module(image().bfloat16()).dtype == torch.bfloat16


def test_batch_merged_with_heads() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            part(x).view(b, n, 3, 4).transpose(1, 2).reshape(b * 3, n, 4)
            for part in (m.q, m.k, m.v)
        )
        y = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) / 2, -1), v)
        return m.out(y.view(b, 3, n, 4).transpose(1, 2).reshape(b, n, 12))

    model = Net(run, **{name: nn.Linear(12, 12) for name in ("q", "k", "v", "out")})
    check_network(model, (tokens(),), prunable={"q.weight": 0, "v.weight": 0, "out.weight": 1})


def test_einsum_attention() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (3, 4)) for part in (m.q, m.k, m.v))
        weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k), -1)
        return m.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))

    model = Net(run, **{name: nn.Linear(12, 12) for name in ("q", "k", "v", "out")})
    check_network(model, (tokens(),), prunable={"q.weight": 0, "v.weight": 0, "out.weight": 1})


def rotate_half(x: Tensor) -> Tensor:
    a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


def grouped_queries(m: Any, x: Tensor) -> Tensor:
    """Four query heads on two key-value heads, with rotary positions."""
    b, n, _ = x.shape
    q = m.q(x).view(b, n, 4, 6).transpose(1, 2)
    k, v = (part(x).view(b, n, 2, 6).transpose(1, 2) for part in (m.k, m.v))
    q, k = (y * m.cos + rotate_half(y) * m.sin for y in (q, k))
    k, v = (y[:, :, None].expand(b, 2, 2, n, 6).reshape(b, 4, n, 6) for y in (k, v))
    y = F.scaled_dot_product_attention(q, k, v)
    return m.out(y.transpose(1, 2).reshape(b, n, 24))


def test_grouped_queries_with_rotary_positions() -> None:
    angles = torch.randn(5, 3).repeat(1, 2)
    linears = {
        "q": nn.Linear(12, 24),
        "k": nn.Linear(12, 12),
        "v": nn.Linear(12, 12),
        "out": nn.Linear(24, 12),
    }
    model = Net(grouped_queries, **linears, cos=angles.cos(), sin=angles.sin())
    program = check_network(
        model, (tokens(),), prunable={"q.weight": 0, "k.weight": 0, "v.weight": 0, "cos": 1}
    )
    cos = fp.plan(program, {"cos": (1, [0, 3])})
    assert {n: len(c[0]) for n, c in cos.kept.items() if n in ("q.weight", "k.weight")} == {
        "q.weight": 16,
        "k.weight": 8,
    }


class PythonNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


@pytest.mark.parametrize("norm", [PythonNorm, nn.RMSNorm, nn.LayerNorm])
def test_norms_over_features(norm: Any) -> None:
    model = nn.Sequential(nn.Linear(12, 10), norm(10), nn.Linear(10, 4))
    check_network(model, (tokens(),), prunable={"0.weight": 0, "1.weight": 0, "2.weight": 1})


def test_parts_that_become_unequal() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x).chunk(2, 1)
        return m.b(a) + m.c(b.relu())

    model = Net(run, a=conv(3, 12), b=conv(6, 4), c=conv(6, 4))
    program = check_network(
        model, (image(),), prunable={"a.weight": 0, "b.weight": 1, "c.weight": 1}
    )
    check_removal(program, fp.plan(program, {"a.weight": (0, [0, 1, 2, 7])}).removed)


def test_slices_counted_from_the_end() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(y[:, :-3]) + m.c(y[:, -4:])

    model = Net(run, a=conv(3, 12), b=conv(9, 4), c=conv(4, 4))
    program = check_network(
        model, (image(),), prunable={"a.weight": 0, "b.weight": 1, "c.weight": 1}
    )
    for position in range(12):
        check_removal(program, fp.plan(program, {"a.weight": (0, [position])}).removed)


def test_squeeze_leaves_an_axis_that_becomes_1() -> None:
    model = Net(
        lambda m, x: m.b(m.a(x).mean((2, 3), keepdim=True).squeeze()),
        a=conv(3, 4),
        b=nn.Linear(4, 2),
    )
    program = check_network(model, (image(),), prunable={"a.weight": 0})
    check_removal(program, fp.plan(program, {"a.weight": (0, [0, 1, 3])}).removed)


def test_padded_channels() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.b(F.pad(m.a(x), (0, 0, 0, 0, 2, 4)))

    check_network(Net(run, a=conv(3, 6), b=conv(12, 4)), (image(),), prunable={"a.weight": 0})


def test_two_prunings_in_a_row_are_one_by_the_union() -> None:
    program = fp.capture(
        nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), conv(8, 6), conv(6, 4)).eval(), (image(),)
    )
    one = check_removal(program, fp.plan(program, {"0.weight": (0, [1, 5])}).removed)
    two = check_removal(one, fp.plan(one, {"0.weight": (0, [1]), "2.weight": (0, [0])}).removed)
    both = fp.plan(program, {"0.weight": (0, [1, 2, 5]), "2.weight": (0, [0])})
    union = fp.shrink(program, both)
    for name, tensor in union.tensors().items():
        assert torch.equal(tensor, two.tensors()[name])
    assert torch.equal(union.module(program.args[0]), two.module(program.args[0]))
