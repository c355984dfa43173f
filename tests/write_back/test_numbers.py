"""Tests of fxprune.write_back.numbers and what it uses: numbers of a model that repeat sizes."""

import copy
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.verify import check_sizes
from fxprune.write_back import attempt, written


def cut(
    model: nn.Module, args: Any, removed: Mapping[str, tuple[int, Any]], **kwargs: Any
) -> tuple[fp.Plan, fp.Program]:
    program = fp.capture(model, args, kwargs or None)
    plan = fp.plan(program, removed)
    return plan, fp.shrink(program, plan)


class Block(nn.Module):
    """Attention that keeps two numbers: the forward reads one as a size, and one as no size."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window, self.sizes = heads, window, {"inner": [width, 2 * width]}
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor) -> Any:
        q, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.query, self.value))
        weights = torch.einsum("bihd,bjhd->bhij", q, q).softmax(-1) / self.window
        y = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)
        return self.out(y)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(12, 4, 4), Block(12, 4, 4)])

    def forward(self, x: torch.Tensor) -> Any:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_a_number_that_equals_a_size_by_chance_stays() -> None:
    model = Blocks().eval()
    removed = {"blocks.0.query.weight": (0, [3, 4, 5]), "blocks.1.query.weight": (0, range(6))}
    plan, small = cut(model, torch.randn(2, 5, 12), removed)
    result = written(model, plan)
    assert [b.heads for b in result.model.blocks] == [3, 2]
    assert [b.window for b in result.model.blocks] == [4, 4]
    x = torch.randn(3, 5, 12)
    torch.testing.assert_close(result.model(x), small(x))
    assert [b.heads for b in model.blocks] == [4, 4]


def runs_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts runs of models at new sizes from now on."""
    counted = [0]

    def count(*args: Any) -> None:
        counted[0] += 1
        check_sizes(*args)

    monkeypatch.setattr(attempt, "check_sizes", count)
    return counted


def test_numbers_that_nothing_reads_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Blocks().eval()
    model.notes = [4, 12] * 20  # type: ignore[assignment]
    removed = {"blocks.0.query.weight": (0, [3, 4, 5]), "blocks.1.query.weight": (0, range(6))}
    plan, _ = cut(model, torch.randn(2, 5, 12), removed)
    runs = runs_of(monkeypatch)
    result = written(model, plan)
    assert [b.heads for b in result.model.blocks] == [3, 2]
    assert runs[0] < 20


class Rolled(nn.Module):
    """Groups of channels, the number of which shows in no size, and two shifts that equal it by chance."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups, self.shifts, self.linear = groups, (groups, groups), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.linear(x).unflatten(-1, (self.groups, -1)).softmax(-1).flatten(-2)
        return y.roll(self.shifts[0], 1).roll(self.shifts[1], 2)


class OtherGroups(Rolled):
    """Its number is decided apart from that of the other class."""

    def __init__(self) -> None:
        super().__init__(8)
        self.parts = self.groups
        self.shifts = (1, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.linear(x).unflatten(-1, (self.parts, -1)).softmax(-1).flatten(-2)


def test_several_numbers_that_equal_a_size_by_chance_stay() -> None:
    model = nn.Sequential(Rolled(8), OtherGroups(), nn.Linear(16, 3)).eval()
    gone = range(8)
    removed = {"0.linear.weight": (0, gone), "1.linear.weight": (0, gone)}
    plan, small = cut(model, torch.randn(2, 11, 13, 16), removed)
    smaller = fp.write_back(model, plan)
    first, second, _ = (vars(m) for m in smaller)
    assert (first["groups"], first["shifts"], second["parts"]) == (4, (8, 8), 4)
    x = torch.randn(2, 11, 13, 16)
    torch.testing.assert_close(smaller(x), small(x))


class Partial(nn.Module):
    """Keeps its number of inputs, which only those read that add them to some of their outputs."""

    def __init__(self, outputs: int, adds: bool) -> None:
        super().__init__()
        self.taken, self.adds = 8, adds
        self.first = nn.Identity() if adds else nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.rand(8))
        self.second = nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> Any:
        x = x.relu()
        y = self.second(self.first(x) * self.scale)
        if not self.adds:
            return y
        return torch.cat([y[:, : self.taken] + x, y[:, self.taken :]], 1)


def test_numbers_of_which_only_some_are_read_do_not_go_back() -> None:
    model = nn.Sequential(nn.Linear(3, 8), Partial(8, False), Partial(12, True), nn.Linear(12, 2))
    removed = {
        "0.weight": (0, [1, 2]),
        "1.first.weight": (0, [3]),
        "1.second.weight": (0, [0, 4, 5]),
    }
    plan, small = cut(model.eval(), torch.randn(2, 3), removed)
    result = written(model, plan)
    assert result.model[2].taken == 5
    x = torch.randn(4, 3)
    torch.testing.assert_close(result.model(x), small(x))


class Guarded(Block):
    """Gives out its numbers in a way of its own."""

    def __getattribute__(self, name: str) -> Any:
        if name == "heads":
            return object.__getattribute__(self, "__dict__")[name]
        return super().__getattribute__(name)


def test_numbers_that_are_read_in_other_ways_are_found() -> None:
    class By(Blocks):
        def __init__(self, block: type[Block]) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([block(12, 4, 5)])

    class ByDict(Block):
        def forward(self, x: torch.Tensor) -> Any:
            heads = vars(self)["heads"]
            q, v = (f(x).unflatten(-1, (heads, -1)) for f in (self.query, self.value))
            weights = torch.einsum("bihd,bjhd->bhij", q, q).softmax(-1)
            return self.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))

    for block in (Guarded, ByDict):
        model = By(block).eval()
        plan, small = cut(model, torch.randn(2, 5, 12), {"blocks.0.query.weight": (0, [3, 4, 5])})
        smaller = fp.write_back(model, plan)
        assert vars(smaller.blocks[0])["heads"] == 3
        x = torch.randn(2, 5, 12)
        torch.testing.assert_close(smaller(x), small(x))


def test_what_nothing_reads_is_named_and_left() -> None:
    model = Blocks().eval()
    plan, _ = cut(model, torch.randn(2, 5, 12), {"blocks.0.query.weight": (0, [3, 4, 5])})
    result = written(model, plan)
    assert result.model.blocks[0].sizes == {"inner": [12, 24]}
    (remark,) = result.remarks
    assert remark.code == "write-back.number-undecided"
    assert remark.where == "blocks.0.sizes.inner[0]"
    assert "9" in remark.why


def test_numbers_of_one_class_that_nothing_reads_share_a_remark() -> None:
    model = Blocks().eval()
    for i, block in enumerate(model.blocks):
        block.sizes = {f"of {n}": [12] for n in range(7)}  # type: ignore[assignment]
        block.tag = 12 + i  # type: ignore[assignment]
    plan, _ = cut(model, torch.randn(2, 5, 12), {"blocks.0.query.weight": (0, [3, 4, 5])})
    (remark,) = written(model, plan).remarks
    assert remark.where == "blocks.0.sizes.of 0[0] and 7 others"
    assert remark.what.startswith("blocks.0.sizes.of 0[0] = 12, ")
    assert remark.what.endswith(", and 4 others were left as they are")


class Config:
    def __init__(self, width: int, hidden: int, layers: int = 2, inner: int | None = None) -> None:
        self.width, self.hidden, self.layers, self.inner = width, hidden, layers, inner
        self.seed = hidden  # equal by chance


class Built(nn.Module):
    """A class that is built from a config; a part of it takes its size from a default that follows another."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.up = nn.ModuleList(
            nn.Linear(config.width, config.hidden) for _ in range(config.layers)
        )
        self.down = nn.ModuleList(nn.Linear(config.hidden, config.width) for _ in self.up)
        inner = 3 * config.width if config.inner is None else config.inner
        self.last = nn.Sequential(nn.Linear(config.width, inner), nn.ReLU(), nn.Linear(inner, 5))
        self.note = (config.hidden, "hidden")

    def forward(self, x: torch.Tensor) -> Any:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        return self.last(x)


def rebuilt(model: Built) -> Built:
    new = Built(copy.deepcopy(model.config)).eval()
    new.load_state_dict(model.state_dict())
    return new


class Table(nn.Module):
    """A class that computes a buffer from its config; no state holds it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.one, self.two = nn.Linear(4, config.width), nn.Linear(config.width, 3)
        self.register_buffer("speeds", 0.5 ** torch.arange(config.width), persistent=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.two(self.one(x) * self.speeds)


def test_a_buffer_that_the_class_computes_is_named_as_the_reason() -> None:
    model = Table(Config(8, 5)).eval()
    x = torch.randn(2, 4)
    plan, small = cut(model, x, {"one.weight": (0, [0, 3])})
    with pytest.raises(fp.FxpruneError, match="with width=6, Table has another speeds"):
        written(model, plan, config_only=True)
    with pytest.raises(fp.FxpruneError, match="computes it from the config"):
        fp.prune(model, x, to={"width": 6})
    plan, small = cut(model, x, {"one.weight": (0, [6, 7])})
    torch.testing.assert_close(written(model, plan, config_only=True).model(x), small(x))


class Words(nn.Module):
    """Embeddings, scaled by a number in a buffer that the class computes, whose weights make the outputs too."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(11, config.width)
        self.up, self.down = (
            nn.Linear(config.width, config.hidden),
            nn.Linear(config.hidden, config.width),
        )
        self.gain = nn.Parameter(torch.rand(config.width))
        self.last = nn.Linear(config.width, 11, bias=False)
        self.last.weight = self.words.weight
        self.register_buffer("scale", torch.tensor(config.width**0.5), persistent=False)
        self.noted = config.width**0.5

    def forward(self, x: torch.Tensor) -> Any:
        y = self.words(x) * self.scale
        y = y + self.down(self.up(y).relu())
        return self.last(y.tanh() * (1 + self.gain))


def test_a_computed_number_goes_into_the_weights_that_it_multiplies() -> None:
    torch.manual_seed(0)
    model = Words(Config(8, 16)).eval()
    x = torch.randint(11, (2, 5))
    plan, small = cut(model, x, {"words.weight": (1, [0, 3])})
    smaller = written(model, plan, config_only=True).model
    assert (smaller.config.width, smaller.noted) == (6, 6**0.5)
    torch.testing.assert_close(smaller(x), small(x))
    again = Words(smaller.config)
    again.load_state_dict(smaller.state_dict())
    torch.testing.assert_close(again(x), small(x))
    assert float(model.get_buffer("scale")) == pytest.approx(8**0.5)


def test_the_config_of_a_class_is_solved_for() -> None:
    model = Built(Config(8, 16)).eval()
    removed = {f"up.{i}.weight": (0, range(4)) for i in range(2)}
    plan, small = cut(model, torch.randn(2, 8), {**removed, "last.0.weight": (0, range(10))})
    result = written(model, plan)
    config = result.model.config
    assert (config.width, config.hidden, config.inner, config.layers) == (8, 12, 14, 2)
    assert config.seed == 16
    assert result.model.note == (12, "hidden")
    assert not result.remarks
    x = torch.randn(3, 8)
    torch.testing.assert_close(rebuilt(result.model)(x), small(x))
    assert model.config.hidden == 16


def test_a_config_that_cannot_say_the_sizes_stays_with_a_warning() -> None:
    model = Built(Config(8, 16)).eval()
    plan, small = cut(model, torch.randn(2, 8), {"up.0.weight": (0, range(4))})
    with pytest.warns(UserWarning, match="config"):
        smaller = fp.write_back(model, plan)
    assert smaller.config.hidden == 16
    assert "write-back.config-stale" in {r.code for r in written(model, plan).remarks}
    x = torch.randn(3, 8)
    torch.testing.assert_close(smaller(x), small(x))


def test_in_place_the_numbers_are_put_back_where_it_fails() -> None:
    class Refusing(Built):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x) + self.up[0](x).view(-1, 16).sum(1, keepdim=True)

    model = Refusing(Config(8, 16)).eval()
    removed = {f"up.{i}.weight": (0, range(4)) for i in range(2)}
    plan, _ = cut(model, torch.randn(2, 8), removed)
    with pytest.raises(fp.FxpruneError, match="new sizes"):
        fp.write_back(model, plan, inplace=True)
    assert model.config.hidden == 16
    assert model.note == (16, "hidden")


class ReadOnly(dict[str, int]):
    """A config as those of diffusers."""

    def __setitem__(self, key: str, value: int) -> None:
        raise TypeError("read-only")


def test_a_read_only_config_is_left() -> None:
    class Configured(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
            self.config = ReadOnly(width=8)

    model = Configured().eval()
    x = torch.randn(2, 4)
    plan, small = cut(model, x, {"0.weight": (0, [1, 2])})
    smaller = fp.write_back(model, plan)
    assert smaller.config == {"width": 8}
    torch.testing.assert_close(smaller(x), small(x))


def tiny(kind: str, **more: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**more)
    suffix = {"GPT2": "LMHeadModel", "Bert": "ForSequenceClassification"}.get(kind, "ForCausalLM")
    return getattr(transformers, f"{kind}{suffix}")(config).eval()


LLAMA = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOKENS = torch.arange(16).reshape(2, 8)

READ = """
import sys, torch, transformers
kind, directory = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(directory).eval()
tokens = torch.arange(16).reshape(2, 8)
with torch.no_grad():
    torch.save(model(tokens).logits, directory + "/logits.pt")
"""


def read_in_a_new_process(model: Any, directory: Path) -> torch.Tensor:
    """The logits of what save_pretrained wrote, where nobody knows fxprune."""
    model.save_pretrained(directory)
    script = [sys.executable, "-W", "ignore", "-c", READ, type(model).__name__, str(directory)]
    subprocess.run(script, check=True, capture_output=True)
    return torch.load(directory / "logits.pt")


def test_transformers_read_what_was_saved(tmp_path: Path) -> None:
    model = tiny("Llama", **LLAMA)
    mlp = {f"model.layers.{i}.mlp.up_proj.weight": (0, range(24)) for i in range(2)}
    heads = {f"model.layers.{i}.self_attn.k_proj.weight": (0, range(8)) for i in range(2)}
    plan, small = cut(model, TOKENS, {**mlp, **heads}, use_cache=False)
    smaller = fp.write_back(model, plan)
    config = smaller.config
    assert (config.intermediate_size, config.num_attention_heads) == (40, 2)
    assert (config.num_key_value_heads, config.hidden_size, config.head_dim) == (1, 32, 8)
    logits = read_in_a_new_process(smaller, tmp_path)
    torch.testing.assert_close(logits, smaller(TOKENS).logits)
    torch.testing.assert_close(logits, small.module(TOKENS, use_cache=False)[0])
    assert smaller.generate(
        TOKENS[:1], min_new_tokens=3, max_new_tokens=3, do_sample=False
    ).shape == (1, 11)


def test_gpt2_widths_that_its_config_does_not_spell(tmp_path: Path) -> None:
    model = tiny(
        "GPT2", vocab_size=96, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    removed = {f"transformer.h.{i}.mlp.c_fc.weight": (1, range(40)) for i in range(2)}
    plan, _ = cut(model, TOKENS, removed, use_cache=False)
    smaller = fp.write_back(model, plan)
    assert (smaller.config.n_inner, smaller.transformer.h[0].mlp.c_fc.nf) == (88, 88)
    torch.testing.assert_close(read_in_a_new_process(smaller, tmp_path), smaller(TOKENS).logits)


def test_gpt2_layers_of_different_widths() -> None:
    model = tiny(
        "GPT2", vocab_size=96, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    program = fp.capture(model, TOKENS, {"use_cache": False})
    groups = {g.name: g for g in fp.groups(program)}
    head = next(
        g for n, g in groups.items() if n.startswith("transformer.h.1.attn") and len(g) == 4
    )
    plan = fp.plan(
        program, [*groups["transformer.h.0.mlp.c_fc.weight:1"].units[:40], head.units[0]]
    )
    small = fp.shrink(program, plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smaller = fp.write_back(model, plan)
    first, second = smaller.transformer.h
    assert (first.mlp.c_fc.nf, second.mlp.c_fc.nf) == (88, 128)
    assert (first.attn.split_size, second.attn.split_size) == (32, 24)
    assert (first.attn.num_heads, second.attn.num_heads) == (4, 3)
    torch.testing.assert_close(smaller(TOKENS).logits, small.module(TOKENS, use_cache=False)[0])


def test_timm_models_take_a_new_head() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("repvit_m0_9", num_classes=10).eval()
    x = torch.rand(2, 3, 64, 64)
    plan = fp.prune(model, (x,), keep=0.6, importance="magnitude").plan
    smaller = fp.write_back(model, plan)
    features = smaller.forward_features(x)
    assert (
        smaller.num_features == smaller.head_hidden_size == features.shape[1] < model.num_features
    )
    wanted = [smaller.get_submodule(f["module"]) for f in smaller.feature_info]
    found: dict[Any, int] = {}
    for module in wanted:
        module.register_forward_hook(lambda m, _, y: found.setdefault(m, y.shape[1]) and None)
    smaller(x)
    assert [f["num_chs"] for f in smaller.feature_info] == [found[m] for m in wanted]
    smaller.reset_classifier(7)
    assert smaller(x).shape == (2, 7)
