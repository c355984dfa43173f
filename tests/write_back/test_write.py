"""Tests of fxprune.write_back.write."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.analysis.axes import Axes
from fxprune.analysis.group import find_groups
from fxprune.analysis.solve import solve
from fxprune.capture import capture
from fxprune.errors import PlanError
from fxprune.graph.program import Program
from fxprune.plan import Plan, plan_removal, units_of
from fxprune.shrink import apply_plan
from fxprune.verify import compare_model
from fxprune.write_back import Cut, register_sizes, write_back


def prune(
    model: nn.Module, *args: Any, only: str = "", seed: int = 0
) -> tuple[Program, Plan, Program]:
    program = capture(model, args)
    axes = solve(program)
    plan = plan_removal(program, axes, draw(axes, only, seed))
    return program, plan, apply_plan(program, axes, plan)


def draw(axes: Axes, only: str, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(g.units, min(max(1, len(g) // 3), len(g) - 1), replace=False)
        for g in find_groups(axes)
        if only in g.name
    ]
    return np.concatenate([np.zeros(0, np.int64), *chosen])


def sizes(model: nn.Module) -> dict[str, Any]:
    return {n: tuple(t.shape) for n, t in model.state_dict().items()}


class Mixed(nn.Module):
    """Every kind of convolution and norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 32, 3, groups=16, padding=1)
        self.grouped = nn.Conv2d(32, 24, 1, groups=4)
        self.norm = nn.GroupNorm(4, 24)
        self.prelu = nn.PReLU(24)
        self.up = nn.ConvTranspose2d(24, 12, 2, groups=2, stride=2)
        self.plain = nn.GroupNorm(3, 12, affine=False)
        self.hidden = nn.Linear(12, 20)
        self.layer = nn.LayerNorm(20)
        self.bare = nn.LayerNorm(20, elementwise_affine=False)
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.grouped(self.depthwise(self.bn(self.stem(x)).relu()))
        x = self.plain(self.up(self.prelu(self.norm(x))))
        return self.head(self.bare(self.layer(self.hidden(x.mean((2, 3))))))


def test_attributes_follow_the_tensors() -> None:
    model = Mixed().eval()
    before = copy.deepcopy(model)
    _, plan, small = prune(model, torch.randn(2, 3, 8, 8))
    written = write_back(model, plan)
    assert compare_model(written, small).ok
    assert sizes(written) == {n: tuple(t.shape) for n, t in small.module.state_dict().items()}
    conv = written.depthwise
    assert (conv.in_channels, conv.groups) == (written.stem.out_channels,) * 2
    assert conv.out_channels == conv.weight.shape[0]
    assert written.bn.num_features == len(written.bn.weight) == conv.groups
    assert written.layer.normalized_shape == (written.hidden.out_features,)
    assert written.bare.normalized_shape == (written.hidden.out_features,)
    assert str(model) == str(before)
    assert sizes(model) == sizes(before)


def test_repr_is_that_of_a_module_built_small() -> None:
    model = nn.Sequential(nn.Conv2d(3, 9, 3), nn.Conv2d(9, 2, 1)).eval()
    _, plan, _ = prune(model, torch.randn(2, 3, 8, 8))
    assert str(write_back(model, plan)) == str(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1))
    )


def test_whole_groups_of_a_convolution() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 3, 1)
    ).eval()
    program = capture(model, torch.randn(2, 4, 5, 5))
    axes = solve(program)
    plan = plan_removal(program, axes, units_of(axes, {"1.weight": (0, [2, 3])}))
    written = write_back(model, plan)
    assert str(written[1]) == str(nn.Conv2d(6, 6, 1, groups=3))
    assert compare_model(written, apply_plan(program, axes, plan)).ok


def test_properties_of_tensors_are_kept() -> None:
    first = nn.Linear(4, 8)
    first.weight.requires_grad_(False)
    model = nn.Sequential(first, nn.Linear(8, 8, bias=False), nn.Linear(8, 3))
    model.to(torch.bfloat16)
    _, plan, _ = prune(model, torch.randn(2, 4, dtype=torch.bfloat16))
    written = write_back(model, plan)
    assert not written[0].weight.requires_grad
    assert written[1].weight.requires_grad
    assert {p.dtype for p in written.parameters()} == {torch.bfloat16}
    assert written[0].weight is not first.weight
    assert first.weight.shape == (8, 4)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.inner = nn.Linear(16, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.inner(self.embed(x)) + self.embed(x))


def test_tied_weights_stay_tied() -> None:
    model = Tied().eval()
    _, plan, small = prune(model, torch.randint(0, 20, (2, 5)))
    written = write_back(model, plan)
    assert written.head.weight is written.embed.weight
    assert written.embed.embedding_dim == written.head.in_features == written.inner.in_features < 16
    assert compare_model(written, small).ok


class Sentence(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(6, 8, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent(kind: str) -> None:
    model = Sentence(kind).eval()
    _, plan, small = prune(model, torch.randn(2, 4, 6))
    written = write_back(model, plan)
    assert written.rnn.hidden_size < 8
    assert compare_model(written, small).ok
    written.rnn.flatten_parameters()


def test_in_place() -> None:
    model = Mixed().eval()
    _, plan, small = prune(model, torch.randn(2, 3, 8, 8))
    assert write_back(model, plan, inplace=True) is model
    assert compare_model(model, small).ok


class Heads(nn.Module):
    """Spells its number of heads."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value = nn.Linear(12, 12), nn.Linear(12, 12)
        self.out = nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> Any:
        q, v = (f(x).view(len(x), -1, self.heads, 12 // 4) for f in (self.query, self.value))
        weights = torch.einsum("bihd,bjhd->bhij", q, q).softmax(-1)
        return self.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


class FourHeads(Heads):
    """Keeps its number of heads where no attribute is."""

    heads = property(lambda self: 4, lambda self, value: None)


def whole_heads(model: nn.Module) -> tuple[Plan, Program]:
    program = capture(model, torch.randn(2, 5, 12))
    axes = solve(program)
    plan = plan_removal(program, axes, units_of(axes, {"query.weight": (0, [3, 4, 5])}))
    return plan, apply_plan(program, axes, plan)


def test_a_size_spelled_by_a_class_is_refused_and_nothing_is_done() -> None:
    model = FourHeads(4).eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    plan, _ = whole_heads(model)
    with pytest.raises(PlanError, match="cannot run at the new sizes") as error:
        write_back(model, plan, inplace=True)
    assert "register_sizes" in str(error.value)
    assert "test_write.py" in error.value.where
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.query.out_features == 12


def test_a_class_can_be_taught() -> None:
    class Taught(Heads):
        pass

    @register_sizes(Taught)
    def _heads(cut: Cut) -> dict[str, Any]:
        return {"heads": cut.module.query.weight.shape[0] // 3}

    model = Taught(4).eval()
    plan, small = whole_heads(model)
    assert compare_model(write_back(model, plan), small).ok


def test_averages_over_removed_positions_are_refused() -> None:
    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 8)

        def forward(self, x: torch.Tensor) -> Any:
            return self.inner(x).mean(-1)

    model = Average().eval()
    _, plan, _ = prune(model, torch.randn(2, 4))
    with pytest.raises(PlanError, match="cannot express") as error:
        write_back(model, plan)
    assert "inner" in error.value.where or "mean" in error.value.where


class Encoder(nn.Module):
    """A Transformer of torch's own modules, whose width may go."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first)
        self.inner, self.out = nn.Linear(7, 16), nn.Linear(16, 3)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.out(self.encoder(self.inner(x)))


@pytest.mark.parametrize("what", ["heads", "channels"])
def test_multihead_attention_in_proportion(what: str) -> None:
    model = Encoder().eval()
    program = capture(model, torch.randn(2, 5, 7))
    axes = solve(program)
    ends = {"heads": "in_proj_weight:0", "channels": "in_proj_weight:0#2"}[what]
    groups = {g.name: g for g in find_groups(axes)}
    attention = [g.units[1:2] for n, g in groups.items() if n.endswith(ends)]
    plan = plan_removal(
        program, axes, np.concatenate([groups["inner.weight:0"].units[:4], *attention])
    )
    written = write_back(model, plan)
    assert compare_model(written, apply_plan(program, axes, plan)).ok is (what == "heads")
    x = torch.randn(3, 5, 7)
    torch.testing.assert_close(written(x), apply_plan(program, axes, plan)(x))
    attention_module: Any = written.encoder.layers[0].self_attn
    sizes_of = (
        attention_module.embed_dim,
        attention_module.num_heads,
        attention_module.head_dim,
        attention_module.kdim,
        attention_module.vdim,
    )
    assert sizes_of == {"heads": (12, 3, 4, 12, 12), "channels": (12, 4, 3, 12, 12)}[what]


def test_multihead_attention_of_another_width_than_its_heads_is_refused() -> None:
    model = Encoder().eval()
    _, plan, _ = prune(model, torch.randn(2, 4, 7), only="self_attn")
    with pytest.raises(PlanError, match="MultiheadAttention") as error:
        write_back(model, plan)
    assert "fits=model" in str(error.value)
    _, plan, small = prune(model, torch.randn(2, 4, 7), only="linear1")
    assert compare_model(write_back(model, plan), small).ok


def test_a_plan_for_another_model() -> None:
    _, plan, _ = prune(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), torch.randn(2, 4))
    with pytest.raises(PlanError, match="no parameter or buffer"):
        write_back(nn.Linear(4, 8), plan)
    small = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    with pytest.raises(PlanError, match="another model"):
        write_back(small, plan)


def test_resnet() -> None:
    models = pytest.importorskip("torchvision.models")
    model = models.resnet18(weights=None).eval()
    _, plan, small = prune(model, torch.randn(2, 3, 64, 64))
    written = write_back(model, plan)
    assert compare_model(written, small).ok
    assert type(written) is type(model)


def test_mobilenet() -> None:
    models = pytest.importorskip("torchvision.models")
    model = models.mobilenet_v3_small(weights=None).eval()
    _, plan, small = prune(model, torch.randn(2, 3, 64, 64))
    assert compare_model(write_back(model, plan), small).ok


def test_vit_without_its_attention() -> None:
    models = pytest.importorskip("torchvision.models")
    model = models.VisionTransformer(32, 16, 2, 4, 32, 48, num_classes=5).eval()
    _, plan, _ = prune(model, torch.randn(2, 3, 32, 32))
    with pytest.raises(PlanError):
        write_back(model, plan)
    _, plan, small = prune(model, torch.randn(2, 3, 32, 32), only="mlp")
    assert plan.kept
    assert compare_model(write_back(model, plan), small).ok


class Widened(nn.Module):
    """Adds its width; no size that it spells is in the way."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.inner(x)
        return self.out((y + y.shape[-1] / 20).tanh())


@pytest.mark.parametrize("inplace", [True, False])
def test_a_number_worked_out_from_a_size_is_noticed(inplace: bool) -> None:
    model = Widened().train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    _, plan, _ = prune(model, torch.randn(2, 5, 6))
    with pytest.raises(PlanError, match="something other") as error:
        write_back(model, plan, inplace=inplace)
    assert "fp.shrink" in str(error.value)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.training
    assert write_back(model, plan, verify=False).inner.out_features == 8


def test_weights_trained_since_are_compared_as_they_are() -> None:
    norm, last = nn.BatchNorm1d(9), nn.Linear(9, 2)
    model = nn.Sequential(nn.Linear(4, 9), norm, nn.Dropout(), last).train()
    _, plan, _ = prune(model, torch.randn(3, 4))
    nn.init.zeros_(last.weight)
    nn.init.ones_(last.bias)
    written = write_back(model, plan)
    assert written.training
    assert torch.equal(written.get_parameter("3.weight"), torch.zeros(2, 6))
    assert torch.equal(written.get_buffer("1.running_mean"), torch.zeros(6))
    assert torch.equal(last.weight, torch.zeros(2, 9))


def test_a_plan_read_from_a_file_wants_its_program(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 2))
    program, plan, small = prune(model, torch.randn(3, 4))
    plan.save(tmp_path / "plan.json")
    read = Plan.load(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="no program") as error:
        write_back(model, read)
    assert "program=fp.capture" in str(error.value)
    assert compare_model(write_back(model, read, program=program), small).ok
    assert sizes(write_back(model, read, verify=False)) == sizes(small.module)


def test_a_model_on_meta_has_no_numbers() -> None:
    model = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 2)).to("meta")
    _, plan, _ = prune(model, torch.randn(3, 4))
    assert write_back(model, plan)[0].weight.shape == (6, 4)


def test_a_number_in_a_buffer_on_meta() -> None:
    model = nn.Sequential(nn.Linear(4, 9), nn.PReLU(), nn.Linear(9, 2)).to("meta")
    model.register_buffer("scale", torch.ones((), device="meta"))
    _, plan, _ = prune(model, torch.randn(3, 4))
    assert write_back(model, plan)[0].weight.shape == (6, 4)


class Strided(nn.Module):
    """Fills a tensor with a number that it reads out of a buffer, which no tensor without data can."""

    stride: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.register_buffer("stride", torch.tensor([8.0, 16.0]))

    def forward(self, x: torch.Tensor) -> Any:
        y = self.head(self.inner(x).relu())
        return y * y.new_full((4, 1, 1), self.stride[0])


def test_a_forward_that_only_runs_on_real_tensors() -> None:
    model = Strided().eval()
    _, plan, small = prune(model, torch.rand(2, 3, 8, 8))
    assert compare_model(write_back(model, plan), small).ok


def test_a_size_that_is_spelled_is_found_on_real_tensors_too() -> None:
    class Spelled(Strided):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x) + self.inner(x).view(len(x), 16, 8, 8).sum()

    model = Spelled().eval()
    _, plan, _ = prune(model, torch.rand(2, 3, 8, 8))
    with pytest.raises(PlanError, match="invalid for input"):
        write_back(model, plan)


class TwoNames(nn.Module):
    """A module that is reached by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.norm = nn.Linear(5, 8), nn.Linear(8, 3), nn.BatchNorm1d(8)
        self.block = nn.Sequential(self.norm, nn.ReLU())

    def forward(self, x: torch.Tensor) -> Any:
        y = self.first(x)
        return self.last(self.block(self.norm(y)) + y)


def test_a_module_with_two_names_is_cut_once() -> None:
    model, x = TwoNames().eval(), torch.randn(4, 5)
    program = fp.capture(model, x)
    plan = fp.plan(program, {"first.weight": (0, [0, 6])})
    smaller = fp.write_back(model, plan)
    assert smaller.block[0] is smaller.norm
    torch.testing.assert_close(smaller(x), fp.shrink(program, plan)(x))
