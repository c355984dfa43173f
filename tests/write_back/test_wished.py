"""Tests of fxprune.write_back.wished and of what it uses: a model gets a wished config."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.analysis.cache import solved
from fxprune.plan import plan_removal
from fxprune.write_back.reach import components


class Config:
    def __init__(self, width: int = 12, heads: int = 3, hidden: int = 20, layers: int = 2) -> None:
        self.width, self.heads, self.hidden, self.layers = width, heads, hidden, layers
        self.colour, self.inner = 7, None


class Block(nn.Module):
    """Attention and a layer of hidden units, with sizes that a config gives."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ValueError(f"{config.heads} heads do not divide {config.width}")
        self.heads, self.head_dim = config.heads, config.width // config.heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(config.width, config.width) for _ in range(4)
        )
        self.up, self.down = (
            nn.Linear(config.width, config.hidden),
            nn.Linear(config.hidden, config.width),
        )

    def forward(self, x: torch.Tensor) -> Any:
        shape = (*x.shape[:2], self.heads, self.head_dim)
        q, k, v = (f(x).view(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = (q @ k.transpose(-1, -2) / self.head_dim**0.5).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(self.up(x).relu())


class Network(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.first, self.last = nn.Linear(5, config.width), nn.Linear(config.width, 3)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, x: torch.Tensor) -> Any:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


X = torch.randn(2, 4, 5)


def network(**sizes: int) -> Network:
    torch.manual_seed(0)
    return Network(Config(**sizes)).eval()


@pytest.mark.parametrize(
    ("to", "head"),
    [
        ({"hidden": 9}, 4),
        ({"width": 8, "heads": 2}, 4),
        ({"width": 9, "hidden": 10}, 3),
        ({"width": 6, "heads": 2}, 3),
    ],
)
def test_the_class_gets_the_config(to: dict[str, int], head: int) -> None:
    model = network()
    outcome = fp.prune(model, X, to=to)
    smaller: Any = outcome.written
    wished = {"width": 12, "heads": 3, "hidden": 20, "layers": 2, "colour": 7, "inner": None, **to}
    assert vars(smaller.config) == wished
    assert smaller.blocks[1].head_dim == head
    built = Network(smaller.config).eval()
    built.load_state_dict(smaller.state_dict())
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(built(x), outcome.program(x))
    torch.testing.assert_close(smaller(x), built(x), rtol=0, atol=0)
    assert model.config.width == 12


def test_the_least_important_units_go_in_every_layer() -> None:
    model = network()
    with torch.no_grad():
        for block, weak in zip(model.blocks, ([1, 4], [0, 19]), strict=True):
            block.get_parameter("up.weight")[weak] *= 1e-3
    plan = fp.prune(model, X, to={"hidden": 18}, importance="magnitude").plan
    lost = [set(range(20)) - set(plan.kept[f"blocks.{i}.up.weight"][0].tolist()) for i in range(2)]
    assert lost == [{1, 4}, {0, 19}]


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ({"hiden": 9}, "did you mean 'hidden'"),
        ({"hidden": 30}, "cannot grow from 20 to 30"),
        ({"hidden": 9.5}, "is no size"),
        ({"hidden": 0}, "is no size"),
        ({}, "names no fields"),
        ({"colour": 3}, "colour changes nothing"),
        ({"width": 10}, "3 heads do not divide 10"),
        ({"layers": 3}, "cannot grow"),
        ({"heads": 2}, "nothing would be removed"),
        ({"hidden": 20}, "nothing would be removed"),
    ],
)
def test_wishes_that_cannot_be_met(to: Any, words: str) -> None:
    model = network()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(fp.FxpruneError) as error:
        fp.prune(model, X, to=to)
    assert words in str(error.value)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_layers_before_the_last_go() -> None:
    model = network(layers=4)
    outcome = fp.prune(model, X, to={"layers": 2})
    smaller: Any = outcome.written
    assert smaller.config.layers == 2
    shorter = network(layers=2)
    x = torch.randn(3, 4, 5)
    shorter.load_state_dict(
        {
            n.replace("blocks.3", "blocks.1"): t
            for n, t in model.state_dict().items()
            if not n.startswith(("blocks.1", "blocks.2"))
        }
    )
    torch.testing.assert_close(smaller(x), shorter(x))
    torch.testing.assert_close(smaller(x), outcome.program(x))
    (remark,) = [r for r in outcome.remarks if r.code == "wished.layers"]
    assert remark.where == "blocks"
    assert "1, 2" in remark.what
    assert len(model.blocks) == model.config.layers == 4


def test_depth_and_width_together() -> None:
    outcome = fp.prune(network(), X, to={"layers": 1, "hidden": 9})
    smaller: Any = outcome.written
    assert (len(smaller.blocks), smaller.blocks[0].up.out_features) == (1, 9)
    torch.testing.assert_close(smaller(X), outcome.program(X))


def test_whole_units_are_named() -> None:
    class Doubled(nn.Module):
        """Repeats every channel, so that the second layer has an even width."""

        def __init__(self, config: Config) -> None:
            super().__init__()
            self.config = config
            self.one = nn.Linear(5, config.hidden // 2)
            self.two = nn.Linear(config.hidden, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return self.two(self.one(x).repeat_interleave(2, -1))

    model = Doubled(Config()).eval()
    assert fp.prune(model, X, to={"hidden": 16}).plan.kept["two.weight"][1].size == 16
    with pytest.raises(fp.FxpruneError, match="hidden=15 cannot be reached") as error:
        fp.prune(model, X, to={"hidden": 15})
    assert "14" in error.value.why
    assert "16" in error.value.why


def test_what_is_frozen_is_named() -> None:
    class Table(nn.Module):
        def __init__(self, config: Config) -> None:
            super().__init__()
            self.config = config
            self.table, self.last = nn.Embedding(config.hidden, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return self.last(self.table(x))

    model = Table(Config()).eval()
    with pytest.raises(fp.FxpruneError, match="hidden=15 cannot be reached") as error:
        fp.prune(model, torch.arange(6).view(2, 3), to={"hidden": 15})
    assert error.value.where == "table.weight, axis 0"


@pytest.mark.parametrize(
    "more", [{"keep": 0.5}, {"scope": "group"}, {"multiple_of": 4}, {"ignore": ("last",)}]
)
def test_to_says_all(more: dict[str, Any]) -> None:
    with pytest.raises(fp.FxpruneError, match="already says"):
        fp.prune(network(), X, to={"hidden": 9}, **more)


def test_a_config_is_needed() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3)).eval()
    with pytest.raises(fp.FxpruneError, match="no config"):
        fp.prune(model, X, to={"hidden": 4})
    with pytest.raises(fp.FxpruneError, match="no model"):
        fp.prune(fp.capture(model, X), to={"hidden": 4})


def test_a_captured_program_with_its_model() -> None:
    model = network()
    program = fp.capture(model, X)
    smaller: Any = fp.prune(program, to={"hidden": 9}, fits=model).written
    assert smaller.config.hidden == 9


def test_counts_are_those_of_a_brute_force_search() -> None:
    program = fp.capture(network(), X)
    axes = solved(program)
    every = fp.groups(program)
    groups = [g for g in every if g.name.startswith("blocks.0.") and len(g) < 12]
    assert sorted(len(g) for g in groups) == [3, 4, 4]
    rng = np.random.default_rng(0)
    sizes = list(product(*(range(len(g)) for g in groups)))
    shapes = {}
    for counts in sizes:
        units = [rng.choice(g.units, n, replace=False) for g, n in zip(groups, counts, strict=True)]
        kept = plan_removal(program, axes, np.concatenate(units)).kept
        shapes[counts] = {
            n: tuple(len(kept.get(n, {}).get(i, range(length))) for i, length in enumerate(t.shape))
            for n, t in program.tensors().items()
        }
    for counts in sizes:
        wanted = shapes[counts]
        (component,) = (c for c in components(axes, every, wanted) if groups[0] in c.groups)
        order = [g.name for g in component.groups]
        by_hand = {c for c in sizes if shapes[c] == wanted}
        found = {tuple(s[order.index(g.name)] for g in groups) for s in component.solutions()}
        assert found == by_hand


def test_outputs_get_narrower_where_the_config_says_so() -> None:
    class Headless(Network):
        def forward(self, x: torch.Tensor) -> Any:
            x = self.first(x)
            for block in self.blocks:
                x = block(x)
            return {"hidden": x, "pooled": x.mean(1), "out": self.last(x)}

    torch.manual_seed(0)
    model = Headless(Config()).eval()
    outcome = fp.prune(model, X, to={"width": 8, "heads": 2})
    smaller: Any = outcome.written
    found, wanted = smaller(X), outcome.program(X)
    assert found["hidden"].shape == (2, 4, 8)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name])
    assert fp.verify(outcome.original, outcome.plan, outcome.program).ok


LLAMA = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOKENS = torch.arange(16).reshape(2, 8)


def reloaded(model: Any, directory: Path) -> Any:
    model.save_pretrained(directory)
    return type(model).from_pretrained(directory).eval()


def test_a_llama_of_another_config(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).eval()
    to = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    outcome = fp.prune(model, TOKENS, {"use_cache": False}, to=to)
    smaller: Any = outcome.written
    assert {name: getattr(smaller.config, name) for name in to} == to
    read = reloaded(smaller, tmp_path)
    assert torch.equal(read(TOKENS).logits, smaller(TOKENS).logits)
    torch.testing.assert_close(read(TOKENS).logits, outcome.program(TOKENS, use_cache=False)[0])


def test_heads_of_a_bert_get_narrower(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
    )
    model = transformers.BertForTokenClassification(config).eval()
    smaller: Any = fp.prune(model, TOKENS, to={"hidden_size": 24}).written
    assert (smaller.config.hidden_size, smaller.config.num_attention_heads) == (24, 4)
    read = reloaded(smaller, tmp_path)
    assert torch.equal(read(TOKENS).logits, smaller(TOKENS).logits)


def test_a_field_by_the_name_that_the_config_takes_for_it() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    to = {"hidden_size": 24, "num_attention_heads": 3}
    smaller: Any = fp.prune(model, TOKENS, {"use_cache": False}, to=to).written
    assert (smaller.config.n_embd, smaller.config.n_head) == (24, 3)
    assert smaller.transformer.h[0].mlp.c_fc.nf == 96
