"""Residual blocks of networks whose blocks are known by construction, and of well-known ones."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, fx, nn

import fxprune as fp
from fxprune.graph.evaluate import is_mutable
from fxprune.graph.program import Program, build_module
from fxprune.structure.blocks import Block, Blocks, find_blocks

IMAGE = (torch.randn(2, 8, 8, 8),)
TOKENS = (torch.randn(2, 5, 8),)
IDS = torch.randint(0, 50, (2, 7))


class Net(nn.Module):
    """A function of an input and of modules a, b, c, ..."""

    def __init__(self, run: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in zip("abcdef", parts, strict=False):
            self.add_module(name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def conv(stride: int = 1, out: int = 8, size: int = 3) -> nn.Module:
    return nn.Conv2d(8, out, size, stride, size // 2)


def branch(stride: int = 1, out: int = 8) -> nn.Module:
    return nn.Sequential(conv(stride), nn.ReLU(), nn.Conv2d(8, out, 1))


def mlp(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))


class Scaled(nn.Module):
    """A branch times a parameter, as layer scale or ReZero."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.inner = mlp()
        self.scale = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.inner(x)


class Excite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gate = branch(), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return x + h * torch.sigmoid(self.gate(h.mean((2, 3), keepdim=True)))


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(memory), self.v(memory)
        return x + F.scaled_dot_product_attention(q, k, v)


class Twice(nn.Module):
    """An inner residual around the bottom, an outer one around all."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner, self.up = branch(), branch(), branch()

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(x)
        return x + self.up(h + self.inner(h))


def option_a(net: Any, x: Tensor) -> Tensor:
    """The parameter-free shortcut of He et al.: every second pixel, zeros for the new channels."""
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + net.a(x)


def coupling(net: Any, x: Tensor) -> Tensor:
    """Of two halves one is added to a function of the other: no shortcut around anything."""
    left, right = x[:, :4], x[:, 4:]
    return torch.cat((left, right + net.a(left)), 1)


def frozen_norm(net: Any, x: Tensor) -> Tensor:
    """A projection whose norm is spelled as scale and shift."""
    return net.b(x) * net.c.weight[:, None, None] + net.c.bias[:, None, None] + net.a(x)


def written(net: Any, x: Tensor) -> Tensor:
    """A mask that is written in place, in the layout of a value inside the branch."""
    h = net.a(x)
    mask = h.new_zeros(h.shape)
    mask[:, :4] = 1
    mask[:, :, :2] = 2
    return x + net.b(h * mask)


def sized(net: Any, x: Tensor) -> Tensor:
    """A size of a value inside the branch shapes another tensor."""
    h = net.a(x)
    y = x + net.b(h)
    return y.reshape(h.shape[0], -1)


def dense_net(net: Any, x: Tensor) -> Tensor:
    y = torch.cat((x, net.a(x)), 1)
    return torch.cat((y, net.b(x)), 1)


def read_outside(net: Any, x: Tensor) -> Any:
    h = net.a(x)
    return x + net.b(h), h


def dead_reader(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    h.sum().exp()
    return x + net.b(h)


def skips(net: Any, x: Tensor) -> Tensor:
    """A U-Net whose skips are added."""
    one = net.a(x)
    two = net.b(F.max_pool2d(one, 2))
    three = net.c(F.max_pool2d(two, 2))
    two = two + F.interpolate(three, scale_factor=2.0)
    return one + F.interpolate(net.d(two), scale_factor=2.0)


def cats(net: Any, x: Tensor) -> Tensor:
    """A U-Net whose skips are appended; only its deepest level is residual."""
    one = net.a(x)
    two = net.b(F.max_pool2d(one, 2))
    two = two + net.c(two)
    return torch.cat((one, F.interpolate(two, scale_factor=2.0)), 1)


def up_block(net: Any, x: Tensor) -> Tensor:
    up = F.interpolate(x, scale_factor=2.0)
    return net.b(up) + net.a(up)


NETS: dict[str, tuple[nn.Module, tuple[Tensor, ...], list[str]]] = {
    "identity": (Net(lambda n, x: x + n.a(x), branch()), IMAGE, ["a"]),
    "swapped": (Net(lambda n, x: n.a(x) + x, branch()), IMAGE, ["a"]),
    "in-place": (Net(lambda n, x: n.a(x).add_(x), branch()), IMAGE, ["a"]),
    "alpha": (Net(lambda n, x: torch.add(x, n.a(x), alpha=2), branch()), IMAGE, ["a"]),
    "scaled shortcut": (Net(lambda n, x: torch.add(n.a(x), x, alpha=2), branch()), IMAGE, []),
    "highway": (Net(lambda n, x: 0.5 * x + n.a(x), branch()), IMAGE, []),
    "no parameters": (Net(lambda n, x: n.a(x + x.relu()), conv()), IMAGE, []),
    "itself": (Net(lambda n, x: n.a(x) * 2 + n.b(x + x), conv(), conv(out=1)), IMAGE, []),
    "plain": (Net(lambda n, x: n.b(n.a(x)), branch(), branch()), IMAGE, []),
    "broadcast": (Net(lambda n, x: x + n.a(x).mean(0), branch()), IMAGE, []),
    "projection": (Net(lambda n, x: n.b(x) + n.a(x), branch(2, 12), conv(2, 12)), IMAGE, ["a"]),
    "projection, norm": (
        Net(
            lambda n, x: n.a(x) + n.b(x),
            branch(2, 12),
            nn.Sequential(nn.AvgPool2d(2), conv(1, 12, 1), nn.BatchNorm2d(12)),
        ),
        IMAGE,
        ["a"],
    ),
    "frozen norm": (Net(frozen_norm, branch(), conv(), nn.BatchNorm2d(8)), IMAGE, ["a"]),
    "option A": (Net(option_a, branch(2, 16)), IMAGE, ["a"]),
    "nonlinear shortcut": (
        Net(lambda n, x: n.a(x) + n.b(x).relu(), branch(2, 12), conv(2, 12)),
        IMAGE,
        [],
    ),
    "two projections": (
        Net(lambda n, x: n.a(x) + n.c(n.b(x)), branch(), conv(), conv()),
        IMAGE,
        [],
    ),
    "coupling": (Net(coupling, nn.Conv2d(4, 4, 3, padding=1)), IMAGE, []),
    "cast": (Net(lambda n, x: x.half().float() + n.a(x), branch()), IMAGE, ["a"]),
    "dropout": (Net(lambda n, x: n.b(x) + n.b(n.a(x)), mlp(), nn.Dropout(0.1)), TOKENS, ["a"]),
    "ReZero": (Scaled(), TOKENS, ["inner"]),
    "layer scale": (Scaled(8), TOKENS, ["inner"]),
    "post-norm": (
        Net(
            lambda n, x: n.d((y := n.c(x + n.a(x))) + n.b(y)),
            *(mlp(), mlp(), nn.LayerNorm(8), nn.LayerNorm(8)),
        ),
        TOKENS,
        ["a", "b"],
    ),
    "pre-activation": (
        Net(
            lambda n, x: (y := x + n.a(x)) + n.b(y),
            *(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), conv()) for _ in range(2)),
        ),
        IMAGE,
        ["a", "b"],
    ),
    "parallel, summed first": (Net(lambda n, x: n.a(x) + n.b(x) + x, mlp(), mlp()), TOKENS, ["a"]),
    "parallel, one by one": (Net(lambda n, x: x + n.a(x) + n.b(x), mlp(), mlp()), TOKENS, ["a"]),
    "squeeze-excite": (Excite(), IMAGE, ["inner"]),
    "shared module": (
        Net(lambda n, x: (y := x + n.a(x)) + n.a(y), branch()),
        IMAGE,
        ["a#1", "a#2"],
    ),
    "cross-attention": (CrossAttention(), (*TOKENS, torch.randn(2, 7, 8)), ["q"]),
    "nested": (Twice(), IMAGE, ["Twice", "inner"]),
    "U-Net of sums": (
        Net(skips, *(branch() for _ in range(4))),
        IMAGE,
        ["Net", "c"],
    ),
    "U-Net of cats": (Net(cats, *(branch() for _ in range(3))), IMAGE, ["c"]),
    "up block": (Net(up_block, branch(), conv(size=1)), IMAGE, ["a"]),
    "written mask": (Net(written, conv(), conv()), IMAGE, ["a"]),
    "size read outside": (Net(sized, conv(), conv()), IMAGE, ["a"]),
    "dense": (Net(dense_net, branch(), branch()), IMAGE, []),
    "read outside": (Net(read_outside, conv(), conv()), IMAGE, []),
    "dead reader": (Net(dead_reader, conv(), conv()), IMAGE, ["a"]),
}
# The name of a block whose weights are shared out evenly among the children of one module.
OF_SEVERAL = {"parallel, summed first", "nested", "U-Net of sums"}


def blocks_of(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Program, Blocks]:
    program = fp.capture(model.eval(), args, kwargs)
    return program, find_blocks(program)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [False, True])
def test_known_by_construction(name: str, training: bool) -> None:
    model, inputs, paths = NETS[name]
    program = fp.capture(model.train(training), inputs)
    blocks = find_blocks(program)
    if name in OF_SEVERAL:
        assert len(blocks) == len(paths)
    else:
        assert [b.path for b in blocks] == paths
    check_semantics(program, blocks)


def check_semantics(program: Program, blocks: Blocks) -> None:
    """With its branch replaced by zeros all of a block is dead, and nothing that others read."""
    for block in blocks:
        graph = fx.Graph()
        twin: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(program.graph, twin))
        branch, add = twin[block.branch], twin[block.add]
        with graph.inserting_before(add):
            zeros = graph.call_function(torch.ops.aten.zeros_like.default, (twin[block.shortcut],))
        branch.replace_all_uses_with(zeros)
        left = erase_dead(graph, {twin[n] for n in block.nodes})
        assert not {twin[n] for n in block.nodes} & left, block.path
        assert {twin[block.entry], add} <= left


def erase_dead(graph: fx.Graph, block: set[fx.Node]) -> set[fx.Node]:
    """What an output or a write outside the block needs; sizes read in the block come from elsewhere."""
    live: set[fx.Node] = set()
    owner = {n: _base(n) for n in graph.nodes if is_mutable(n)}
    for node in reversed(graph.nodes):
        lasting = node in owner and (owner[node].op == "get_attr" or owner[node] in live)
        if node.op == "output" or node in live or lasting:
            live.add(node)
            if node.target is not torch.ops.aten.sym_size.int:
                live.update(node.all_input_nodes)
    return live


def _base(node: fx.Node) -> fx.Node:
    """The tensor that a write goes to, through views."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        if node.target in (torch.ops.aten.new_zeros.default, torch.ops.aten.clone.default):
            break
        node = node.args[0]
    return node


def test_fields_of_a_projection() -> None:
    model, inputs, _ = NETS["projection, norm"]
    _, (block,) = blocks_of(model, *inputs)
    assert block.entry.op == "placeholder"
    assert [n.target._opname for n in block.projection] == ["avg_pool2d", "conv2d", "batch_norm"]  # type: ignore[union-attr]
    assert (block.branch, block.shortcut) == tuple(block.add.args)
    assert block.parameters == ("a.0.bias", "a.0.weight", "a.2.bias", "a.2.weight")
    assert block.size == 8 * 8 * 9 + 8 + 12 * 8 + 12
    assert block.macs == 2 * 16 * (8 * 8 * 9 + 12 * 8)
    assert block.kind == "Sequential"
    assert block.parent is None


def test_nested_blocks_know_where_they_lie() -> None:
    _, (outer, inner) = blocks_of(Twice(), *IMAGE)
    assert inner.parent is outer
    assert (outer.depth, inner.depth) == (0, 1)
    assert inner.nodes < outer.nodes
    assert set(inner.parameters) < set(outer.parameters)


def test_the_side_of_a_cross_attention_goes_with_it() -> None:
    _, (block,) = blocks_of(*(CrossAttention(), *TOKENS, torch.randn(2, 7, 8)))
    assert {n.split(".")[0] for n in block.parameters} == {"q", "k", "v"}


def test_shared_parameters_go_with_neither() -> None:
    model, inputs, _ = NETS["shared module"]
    _, blocks = blocks_of(model, *inputs)
    assert [b.parameters for b in blocks] == [(), ()]
    assert [b.size for b in blocks] == [0, 0]
    assert blocks.size_inside == 0


def test_branches_one_by_one_are_found_when_asked_for() -> None:
    model, inputs, _ = NETS["parallel, one by one"]
    program = fp.capture(model.eval(), inputs)
    first, second = find_blocks(program, parallel=True)
    assert (first.path, second.path) == ("a", "b")
    assert first.entry is second.entry
    assert second.projection == (first.add,)
    check_semantics(program, find_blocks(program, parallel=True))


def test_of_two_linear_branches_the_larger_is_the_branch() -> None:
    for run in (lambda n, x: n.a(x) + n.b(x), lambda n, x: n.b(x) + n.a(x)):
        _, (block,) = blocks_of(Net(run, conv(), conv(size=1)), *IMAGE)
        assert block.path == "a"


def test_prints_a_tree_with_totals() -> None:
    program, blocks = blocks_of(nn.Sequential(Twice(), Scaled(8)), *IMAGE)
    text = str(blocks)
    lines = text.splitlines()
    assert lines[0] == "Sequential: 3 residual blocks"
    assert next(x for x in lines if "inner" in x).startswith("  0.inner")
    total = sum(p.numel() for p in program.module.parameters())
    assert f"{total:,}" in lines[-1]
    outer, inner, scaled = blocks
    assert blocks.size_inside == outer.size + scaled.size
    assert blocks.macs_inside == outer.macs + scaled.macs > 0
    assert blocks[0] is outer
    assert blocks[1:] == (inner, scaled)


def test_no_blocks_prints_too() -> None:
    model, inputs, _ = NETS["plain"]
    _, blocks = blocks_of(model, *inputs)
    assert "0 residual blocks" in str(blocks)
    assert len(blocks) == 0


COUNT = {"plain": 0, "add": 1, "swap": 1, "project": 1, "gate": 0, "leak": 0, "nested": 1}


class RandomNet(nn.Module):
    """Layers of which some are residual, some hold a residual inside, some only look like it."""

    def __init__(self, rng: random.Random, depth: int) -> None:
        super().__init__()
        self.kinds = [rng.choice(list(COUNT)) for _ in range(depth)]
        inner = [RandomNet(rng, 2) if k == "nested" else conv() for k in self.kinds]
        self.count = sum(COUNT[k] for k in self.kinds)
        self.count += sum(m.count for m in inner if isinstance(m, RandomNet))
        self.first = nn.ModuleList(branch() for _ in self.kinds)
        self.second = nn.ModuleList(inner)

    def forward(self, x: Tensor) -> Tensor:
        for kind, a, b in zip(self.kinds, self.first, self.second, strict=True):
            x = getattr(self, kind)(a, b, x)
        return x

    def plain(self, a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
        return b(a(x)).relu()

    def add(self, a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
        return (x + b(a(x))).relu()

    def swap(self, a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
        return b(a(x).tanh() * 0.5) + x

    def project(self, a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
        return (b(x) + a(x).relu()).relu()

    def gate(self, a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
        return 0.5 * x + b(a(x))

    def leak(self, a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
        h = a(x).relu()
        return (x + b(h)).relu() * h

    def nested(self, a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
        return (x + b(a(x).relu()).tanh()).relu()


@pytest.mark.parametrize("seed", range(6))
def test_random_networks(seed: int) -> None:
    model = RandomNet(random.Random(seed), 5)
    program, blocks = blocks_of(model, *IMAGE)
    assert len(blocks) == model.count, model.kinds
    assert len({b.path for b in blocks}) == len(blocks)
    check_semantics(program, blocks)


def chain(length: int) -> Program:
    """A deep residual network, built without a capture."""
    graph, tree = fx.Graph(), nn.Module()
    value = torch.empty(2, 4, device="meta")
    x = graph.placeholder("x")
    x.meta["val"] = value

    def call(op: Any, *args: fx.Node) -> fx.Node:
        node = graph.call_function(op, args)
        node.meta["val"] = value
        return node

    for i in range(length):
        tree.register_parameter(f"w{i}", nn.Parameter(torch.zeros(4, 4)))
        weight = graph.get_attr(f"w{i}")
        weight.meta["val"] = torch.empty(4, 4, device="meta")
        h = call(torch.ops.aten.linear.default, call(torch.ops.aten.relu.default, x), weight)
        x = call(torch.ops.aten.add.Tensor, x, h)
    graph.output((x,))
    module = build_module(tree, graph, training=False)
    return Program(module, (torch.zeros(2, 4),), {}, free_batch=False, name="Chain")


def test_deep_chains_need_no_recursion() -> None:
    assert len(find_blocks(chain(1200))) == 1200
    assert sys.getrecursionlimit() < 4 * 1200


def test_resnet18() -> None:
    program, blocks = blocks_of(tv.resnet18(), torch.randn(2, 3, 64, 64))
    assert [b.path for b in blocks] == [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert [len(b.projection) for b in blocks] == [0, 0, 2, 0, 2, 0, 2, 0]
    check_semantics(program, blocks)


def test_vision_transformer() -> None:
    program, blocks = blocks_of(
        tv.VisionTransformer(32, 16, 2, 2, 32, 64), torch.randn(2, 3, 32, 32)
    )
    layers = [f"encoder.layers.encoder_layer_{i}" for i in range(2)]
    assert [b.path for b in blocks] == [
        f"{x}.{part}" for x in layers for part in ("self_attention", "mlp")
    ]
    check_semantics(program, blocks)


def test_shifted_windows() -> None:
    """The mask of a shifted window is written in place, in the layout of the windows."""
    model = tv.SwinTransformer([4, 4], 16, [2], [2], [4, 4], num_classes=5)
    program, blocks = blocks_of(model, torch.randn(2, 3, 32, 32))
    assert [b.path for b in blocks] == [
        f"features.1.{i}.{part}" for i in (0, 1) for part in ("attn", "mlp")
    ]
    check_semantics(program, blocks)


def _vision(name: str, size: int = 64, **options: Any) -> Callable[[], Blocks]:
    image = torch.randn(2, 3, size, size)
    return lambda: blocks_of(tv.get_model(name, weights=None, **options), image)[1]


def _timm(name: str, size: int = 64, **options: Any) -> Callable[[], Blocks]:
    def make() -> Blocks:
        timm = pytest.importorskip("timm")
        model = timm.create_model(name, pretrained=False, **options)
        return blocks_of(model, torch.randn(2, 3, size, size))[1]

    return make


def _language(name: str, **options: Any) -> Callable[[], Blocks]:
    """A random transformer of two layers; options are those of its config."""

    def make() -> Blocks:
        transformers = pytest.importorskip("transformers")
        kind = getattr(transformers, name)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"vocab_size": 50, "intermediate_size": 64}
        model = kind(kind.config_class(**(sizes | options)))
        more: dict[str, Any] = {} if name in ENCODERS else {"use_cache": False}
        if model.config.is_encoder_decoder:
            more["decoder_input_ids"] = IDS
        return blocks_of(model, **({"input_ids": IDS} | more))[1]

    return make


ENCODERS = {"BertModel", "AlbertModel", "DistilBertModel"}
_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
_BART = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64} | _HEADS
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
COUNTS: dict[str, tuple[Callable[[], Blocks], int]] = {
    "resnet50": (_vision("resnet50"), 16),
    "resnet101": (_vision("resnet101"), 33),
    "mobilenet_v2": (_vision("mobilenet_v2"), 10),
    "mobilenet_v3_large": (_vision("mobilenet_v3_large"), 10),
    "efficientnet_b0": (_vision("efficientnet_b0"), 9),
    "regnet_y_400mf": (_vision("regnet_y_400mf"), 16),
    "vit_b_16": (_vision("vit_b_16", 224), 24),
    "swin_t": (_vision("swin_t"), 24),
    "swin_v2_t": (_vision("swin_v2_t"), 24),
    "maxvit_t": (_vision("maxvit_t", 224), 55),
    "convnext_tiny": (_vision("convnext_tiny"), 18),
    "deeplabv3_resnet50": (_vision("deeplabv3_resnet50", weights_backbone=None), 16),
    "densenet121": (_vision("densenet121"), 0),
    "shufflenet_v2": (_vision("shufflenet_v2_x1_0"), 0),
    "mnasnet1_0": (_vision("mnasnet1_0"), 10),
    "resnetv2_50": (_timm("resnetv2_50"), 16),
    "resnet50d": (_timm("resnet50d"), 16),
    "res2net50": (_timm("res2net50_26w_4s"), 16),
    "mixer": (_timm("mixer_s32_224", 224), 16),
    "poolformer": (_timm("poolformer_s12"), 24),
    "inception_resnet_v2": (_timm("inception_resnet_v2", 128), 40),
    "llama": (_language("LlamaForCausalLM", num_key_value_heads=2), 4),
    "gpt2": (_language("GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4), 4),
    "bert": (_language("BertModel"), 4),
    "mixtral": (_language("MixtralForCausalLM", num_key_value_heads=2, num_local_experts=4), 4),
    "gpt_neox": (_language("GPTNeoXForCausalLM"), 2),
    "mamba": (_language("MambaForCausalLM", state_size=4), 2),
    "t5": (
        _language("T5ForConditionalGeneration", d_model=32, d_kv=8, d_ff=64, num_layers=2),
        10,
    ),
    "albert": (_language("AlbertModel", embedding_size=16), 4),
    "opt": (_language("OPTForCausalLM", ffn_dim=64, word_embed_proj_dim=32), 4),
    "bart": (_language("BartModel", encoder_layers=2, decoder_layers=2, **_BART), 10),
    "qwen2_moe": (_language("Qwen2MoeForCausalLM", num_key_value_heads=2, **_EXPERTS), 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.filterwarnings("ignore")
def test_well_known_networks(name: str) -> None:
    make, count = COUNTS[name]
    blocks = make()
    assert len(blocks) == count, str(blocks)
    assert len({b.path for b in blocks}) == count


def test_a_block_is_compared_by_identity() -> None:
    _, (block,) = blocks_of(Scaled(8), *TOKENS)
    assert isinstance(block, Block)
    assert copy.copy(block) != block
