"""Tests of fxprune.write_back.fits: plans that the class of a model can express."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.analysis.cache import solved
from fxprune.verify import agreement
from fxprune.write_back import fits
from fxprune.write_back.fits import Fit


def learned(model: nn.Module, x: torch.Tensor) -> Fit:
    program = fp.capture(model, x)
    fit = Fit(model, program, solved(program), fp.groups(program))
    fit.learn()
    return fit


class Parts(nn.Module):
    """Splits by a size of its own, in a way that no operator shows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.inner = nn.Linear(6, 16), nn.Linear(8, 8)
        self.two, self.last = nn.Linear(24, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.one(x).relu()
        a, b = y[:, : y.shape[1] // 2], y[:, y.shape[1] // 2 :]
        return self.last(self.two(torch.cat([a, b, b + self.inner(b)], -1)))


class Spelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.three(self.two(self.one(x).view(-1, 12).relu()))


def test_a_class_that_can_express_all_has_no_limits() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.Linear(9, 3)).eval()
    limits = learned(model, torch.randn(4, 6)).limits
    assert not limits.whole
    assert not limits.ties


def test_halves_are_tied() -> None:
    torch.manual_seed(0)
    model = Parts().eval()
    x = torch.randn(4, 6)
    (tie,) = learned(model, x).limits.ties
    assert set(tie) == {"one.weight:0", "one.weight:0#2"}
    outcome = fp.prune(model, x, keep=0.5, fits=model)
    assert outcome.written is not None
    torch.testing.assert_close(outcome.written(x), outcome.program(x))
    assert "fits-class.tied" in {r.code for r in outcome.remarks}


def test_what_goes_through_a_spelled_size_stays_and_is_named() -> None:
    model = Spelled().eval()
    x = torch.randn(4, 6)
    outcome = fp.prune(model, x, keep=0.8, fits=model)
    assert "one.weight" not in outcome.plan.kept
    (left,) = [r for r in outcome.remarks if r.code == "choose.left"]
    assert left.where == "one.weight:0"
    assert "cannot run at the new sizes" in left.why
    torch.testing.assert_close(fp.write_back(model, outcome.plan)(x), outcome.program(x))


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """Counts the calls of a function of a module."""
    calls, function = [0], getattr(module, name)

    def count(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, count)
    return calls


class Many(nn.Module):
    """One of its sixteen parts spells its sizes."""

    def __init__(self) -> None:
        super().__init__()
        free = [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(15)]
        spelled = Spelled()
        spelled.three = nn.Linear(8, 6)
        self.parts = nn.ModuleList([*free[:11], spelled, *free[11:]])

    def forward(self, x: torch.Tensor) -> Any:
        for part in self.parts:
            x = x + part(x)
        return x.sum(-1)


def test_the_module_that_fails_is_found_with_few_write_backs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Many().eval()
    written_back = counted(monkeypatch, fits, "written")
    limits = learned(model, torch.randn(4, 6)).limits
    assert set(limits.whole) == {"parts.11.one.weight:0"}
    assert written_back[0] < 8


def test_what_runs_without_data_fails_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Many().eval()
    with_data = counted(monkeypatch, agreement, "_with_data")
    learned(model, torch.randn(4, 6))
    assert with_data[0] == 1  # until it is known that the model runs without


class Even(nn.Module):
    """Runs at widths that eight divides."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 64), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.one(x).relu()
        if y.shape[1] % 8:
            raise ValueError(f"a width of {y.shape[1]}")
        return self.two(y)


def test_a_multiple_is_learned_from_a_plan_that_does_not_fit() -> None:
    torch.manual_seed(0)
    model = Even().eval()
    fit = learned(model, torch.randn(4, 6))
    (group,) = fit.groups
    asked = []

    def decide(limits: Any) -> Any:
        asked.append(limits)
        step = limits.steps.get(group.name, 1)
        left = -(-(64 - 13) // step) * step
        return fp.plan(fit.program, group.units[: 64 - left]), []

    fitted = fit.decide(decide)
    assert [limits.steps.get(group.name, 1) for limits in asked] == [1, 4, 8]
    assert fitted.model.get_parameter("one.weight").shape == (56, 6)


def test_width_and_heads_of_torch_modules_go_together() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(5, 8), encoder, nn.Linear(8, 3)).eval()
    x = torch.randn(2, 4, 5)
    outcome = fp.prune(model, x, keep=0.4, fits=model)
    smaller: Any = outcome.written
    attention = smaller[1].layers[0].self_attn
    assert (attention.embed_dim, attention.num_heads, attention.head_dim) == (4, 1, 4)
    torch.testing.assert_close(smaller(x), outcome.program(x))


class Numbers:
    """A config."""

    def __init__(self, heads: int = 4, inner: int = 4) -> None:
        self.heads, self.inner = heads, inner


class Scaled(nn.Module):
    """Heads that share one scale in all layers, so that the first layer has more groups than the others."""

    def __init__(self, config: Numbers) -> None:
        super().__init__()
        self.config, self.heads = config, config.heads
        width = config.heads * config.inner
        self.scale = nn.Parameter(torch.rand(config.heads, 1))
        for name in "abcd":
            pairs = [nn.ModuleList([nn.Linear(6, width), nn.Linear(width, 6)]) for _ in range(2)]
            setattr(self, name, nn.ModuleList(pairs))

    def forward(self, x: torch.Tensor) -> Any:
        for up, down in (*self.a, *self.b, *self.c, *self.d):  # type: ignore[misc]
            y = up(x).tanh().unflatten(1, (self.heads, -1)) * self.scale
            x = x + down(y.flatten(1))
        return x


def test_one_number_of_a_config_for_modules_of_several_names() -> None:
    torch.manual_seed(0)
    model = Scaled(Numbers()).eval()
    limits = learned(model, torch.randn(2, 6)).limits
    assert not limits.whole
    assert {len(tie) for tie in limits.ties} == {8}  # the scale ties the heads itself
    smaller: Any = fp.prune(model, torch.randn(2, 6), keep=0.4, metric="params", fits=model).written
    assert smaller.config.heads * smaller.config.inner < 16
    Scaled(smaller.config).load_state_dict(smaller.state_dict())


def test_another_model_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 3)).eval()
    other = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 3)).eval()
    with pytest.raises(fp.FxpruneError, match="not the model"):
        fp.prune(model, torch.randn(4, 6), fits=other)


def test_nothing_expressible_ends_with_an_error() -> None:
    class Fixed(Spelled):
        def forward(self, x: torch.Tensor) -> Any:
            return self.three(self.two(self.one(x).view(-1, 12)).view(-1, 8))

    model = Fixed().eval()
    with pytest.raises(fp.FxpruneError, match="nothing would be removed"):
        fp.prune(model, torch.randn(4, 6), fits=model)


def test_width_and_heads_of_a_gpt2_go_together(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = torch.arange(16).reshape(2, 8)
    inputs = {"use_cache": False}
    outcome = fp.prune(model, tokens, inputs, keep=0.6, metric="params", fits=model)
    smaller: Any = outcome.written
    assert (smaller.config.n_embd, smaller.config.n_head) == (24, 3)
    smaller.save_pretrained(tmp_path)
    read = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert torch.equal(read(tokens).logits, smaller(tokens).logits)
    assert smaller.generate(tokens[:1], max_new_tokens=3, do_sample=False).shape == (1, 11)


class SplitInto(nn.Module):
    """Splits into parts whose sizes are entries of a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [8, 8, 1]
        self.one, self.two, self.out = nn.Linear(8, 17), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        query, context, gate = self.one(x).split(self.parts, -1)
        return self.out(query * self.two(context.relu() * gate))


def test_parts_of_a_split_are_cut_with_the_width_that_is_the_same_number() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), SplitInto(), SplitInto(), nn.Linear(8, 3)).eval()
    x = torch.randn(4, 6)
    limits = learned(model, x).limits
    assert not limits.whole
    assert ("1.one.weight:0", "1.one.weight:0#2") in limits.ties
    outcome = fp.prune(model, x, keep=0.5, fits=model)
    assert outcome.written is not None
    assert {"1.one.weight", "2.one.weight"} <= outcome.plan.kept.keys()
    split = [m for m in outcome.written.modules() if isinstance(m, SplitInto)]
    assert len(split) == 2
    assert all(m.parts[0] == m.parts[1] == m.two.in_features < 8 for m in split)
    torch.testing.assert_close(outcome.written(x), outcome.program(x))


def test_plans_that_failed_leave_no_models_behind() -> None:
    model = Spelled().eval()
    fit = learned(model, torch.randn(4, 6))
    gc.collect()
    assert fit.limits.whole
    assert [x for x in gc.get_objects() if type(x) is Spelled] == [model]
