"""A model of the user's class on disk: what comes back computes the same, and the file alone builds nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import LoadError, OptionError
from fxprune.graph.program import named_tensors
from fxprune.write_back import Removed

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64)


class Net(nn.Module):
    """Convolutions, batch norm, a residual sum, and numbers that repeat sizes."""

    def __init__(self, width: int = 8, *, classes: int = 3) -> None:
        super().__init__()
        self.width, self.sizes = width, [width, classes]
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.inner, self.outer = nn.Conv2d(width, 12, 1), nn.Conv2d(12, width, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.head(x.mean((2, 3)).view(-1, self.width))


class Attention(nn.Module):
    """Heads whose number no tensor shows."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.ModuleList([nn.Linear(6, heads * 2) for _ in range(3)])
        self.out = nn.Linear(heads * 2, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in self.qkv)
        y = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.out(y.transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    """An LSTM, a second name of a weight, a constant, a tied weight and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.cell = nn.LSTM(8, 10, batch_first=True)
        self.out = nn.Linear(10, 8)
        self.back = nn.Linear(8, 11, bias=False)
        self.back.weight = self.table.weight
        self.last = nn.Linear(11, 3)
        self.names = {"last": [self.last.bias]}
        self.scale = torch.tensor([0.5, 2.0]).double().prod()
        self.register_buffer("wave", torch.ones(8, dtype=torch.float64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.out(self.cell(self.table(x))[0])
        y = self.back(y * self.scale * self.wave)
        return self.last(y) + self.names["last"][0]


@dataclass
class Sizes:
    """A config."""

    width: int = 8
    shape: tuple[int, int] = (3, 3)


class Configured(nn.Module):
    """Is built from a config."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.config = config
        self.a, self.b = (
            nn.Linear(4, config.width),
            nn.Linear(config.width, math.prod(config.shape)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


class Case(NamedTuple):
    model: Callable[[], nn.Module]
    example: torch.Tensor
    removed: dict[str, tuple[int, list[int]]]
    save: dict[str, Any]


TOKENS = torch.randint(0, 11, (2, 5))
VECTORS = torch.randn(2, 5, 6, dtype=torch.float64)
POINTS = torch.randn(2, 4, dtype=torch.float64)
CASES = {
    "without arguments": Case(
        Net, IMAGES, {"stem.weight": (0, [1, 2]), "inner.weight": (0, [0, 5, 7])}, {}
    ),
    "keywords": Case(
        lambda: Net(6, classes=4),
        IMAGES,
        {"stem.weight": (0, [0]), "inner.weight": (0, [3])},
        {"build": Net, "args": {"width": 6, "classes": 4}},
    ),
    "positional": Case(
        lambda: Attention(5),
        VECTORS,
        {"out.weight": (1, [2, 3])},
        {"build": Attention, "args": [5]},
    ),
    "tied, frozen, recurrent": Case(
        Recurrent, TOKENS, {"cell.weight_hh_l0": (1, [1, 4]), "table.weight": (1, [0])}, {}
    ),
    "a config": Case(lambda: Configured(Sizes(10)), POINTS, {"a.weight": (0, [0, 9, 4])}, {}),
}


def smaller(case: Case) -> tuple[nn.Module, fp.Plan]:
    torch.manual_seed(0)
    model = case.model().double().eval()
    for p in model.parameters():
        p.data.normal_()
    next(model.parameters()).requires_grad_(False)
    plan = fp.plan(fp.capture(model, case.example), case.removed)
    return fp.write_back(model, plan), plan


@pytest.fixture(params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Case, nn.Module, Path]:
    case = CASES[request.param]
    model, plan = smaller(case)
    fp.save(model, tmp_path / "m", plan=plan, **case.save)
    return case, model, tmp_path / "m"


def check_same(found: nn.Module, wanted: nn.Module, example: torch.Tensor) -> None:
    assert type(found) is type(wanted)
    assert torch.equal(found(example), wanted(example))
    ours, theirs = named_tensors(found), named_tensors(wanted)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor)
        assert ours[name].requires_grad == tensor.requires_grad
    assert len({id(t) for t in ours.values()}) == len({id(t) for t in theirs.values()})
    assert found.state_dict().keys() == wanted.state_dict().keys()
    assert found.training == wanted.training


def test_what_comes_back_computes_the_same(saved: tuple[Case, nn.Module, Path]) -> None:
    case, model, folder = saved
    assert {p.name for p in folder.iterdir()} == {
        *("manifest.json", "model.json", "plan.json", "weights.safetensors")
    }
    check_same(fp.load_model(folder, trust=__name__), model, case.example)
    check_same(fp.load_model(folder, trust=True), model, case.example)
    check_same(fp.load_model(folder, build=type(model)), model, case.example)


def test_it_comes_back_in_a_new_model_which_stays(saved: tuple[Case, nn.Module, Path]) -> None:
    case, model, folder = saved
    fresh = case.model().double()
    if isinstance(fresh, Configured):  # the config says the new sizes
        fresh = Configured(Sizes(7)).double()
    before = {n: t.clone() for n, t in fresh.state_dict().items()}
    check_same(fp.load_model(folder, fresh), model, case.example)
    assert all(torch.equal(t, before[n]) for n, t in fresh.state_dict().items())


def test_it_trains_and_is_pruned_and_saved_again(tmp_path: Path) -> None:
    case = CASES["keywords"]
    model, _ = smaller(case)
    fp.save(model, tmp_path / "m", **case.save)
    back = fp.load_model(tmp_path / "m", trust=__name__).train()
    back(case.example).sum().backward()
    assert back.get_parameter("head.weight").grad is not None
    program = fp.capture(back.eval(), case.example)
    again = fp.write_back(back, fp.plan(program, {"inner.weight": (0, [2])}))
    fp.save(again, tmp_path / "m", **case.save)
    check_same(fp.load_model(tmp_path / "m", trust=__name__), again, case.example)


def test_an_outcome_of_fits_is_saved_as_its_class_with_its_inputs(tmp_path: Path) -> None:
    model = Net().double().eval()
    outcome = fp.prune(model, IMAGES, keep=0.7, fits=model)
    fp.save(outcome, tmp_path / "m")
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names >= {"report.json", "plan.json", "inputs.safetensors", "model.json"}
    assert outcome.written is not None
    check_same(fp.load_model(tmp_path / "m", trust=__name__), outcome.written, IMAGES)
    with pytest.raises(LoadError, match="a model of its own class") as error:
        fp.load(tmp_path / "m")
    assert "fp.load_model" in error.value.do
    fp.save(outcome.program, tmp_path / "m")
    assert not (tmp_path / "m" / "model.json").exists()
    with pytest.raises(LoadError, match="a whole program"):
        fp.load_model(tmp_path / "m", trust=True)


class Blocks(nn.Module):
    """Blocks of other widths, in a sequence and under a name."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(4, n), nn.Linear(n, 4)) for n in (3, 5, 7))
        )
        self.extra = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x + self.extra(x)


def test_modules_that_are_gone_stay_gone(tmp_path: Path) -> None:
    model = Blocks().double().train()
    del model.blocks[1]
    model.extra = nn.Identity()  # type: ignore[assignment]
    model.blocks[0].eval()
    fp.save(model, tmp_path / "m")
    back = fp.load_model(tmp_path / "m", trust=__name__)
    check_same(back, model, POINTS)
    assert not back.get_submodule("blocks.0").training
    facts = json.loads((tmp_path / "m" / "model.json").read_text())
    assert facts["changes"][0] == {"module": "blocks", "children": ["0", "2"]}


class Cached(nn.Module):
    """Keeps a tensor of its last forward, and how long it was."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self._length = nn.Linear(4, 4), 0
        self._cache: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._length < len(x):
            self._length, self._cache = len(x), x.new_ones(len(x), 1)
        assert self._cache is not None
        return self.a(x) * self._cache[: len(x)]


def test_what_a_forward_left_is_not_saved(tmp_path: Path) -> None:
    model = Cached().double().eval()
    model(POINTS)
    fp.save(model, tmp_path / "m")
    assert torch.equal(fp.load_model(tmp_path / "m", Cached())(POINTS), model(POINTS))


def test_a_text_that_differs_is_a_warning(tmp_path: Path) -> None:
    model = Net()
    model.name = "one"  # type: ignore[assignment]

    def build() -> Net:
        net = Net()
        net.name = "two"  # type: ignore[assignment]
        return net

    with pytest.warns(UserWarning, match="name is 'one' in the model and 'two'"):
        fp.save(model, tmp_path / "m", build=build)


class Needs(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Linear(4, width)


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "a constructor with arguments": (lambda: Needs(4), {}, "nothing says how Needs is built"),
    "arguments of other names": (lambda: Needs(4), {"args": {"size": 4}}, "cannot be built"),
    "another class": (Net, {"build": Attention}, "build makes another model"),
    "a sequence of torch": (lambda: nn.Sequential(nn.ReLU()), {}, "nothing says how Sequential is"),
    "other modules": (Blocks, {"build": lambda: Blocks().blocks}, "build makes another model"),
    "no module": (Net, {"build": dict}, "returns a dict"),
    "a model as build": (Net, {"build": Net()}, "build is a Net"),
    "a text that names nothing": (Net, {"build": "json:nothing"}, "there is no json:nothing"),
    "a text that is no path": (Net, {"build": "Net"}, "there is no Net"),
    "a module that raises": (Net, {"build": "no.such:Net"}, "there is no no.such:Net"),
    "arguments that are a text": (Net, {"args": "8"}, "args is a str"),
    "arguments that are no names": (Net, {"args": {"a b": 1}}, "args is a dict"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_again_is_not_saved(case: str, tmp_path: Path) -> None:
    make, options, says = REFUSED[case]
    with pytest.raises(OptionError) as error:
        fp.save(make(), tmp_path / "m", **options)
    assert says in str(error.value)
    assert error.value.do
    assert not (tmp_path / "m").exists()


class Kept(nn.Module):
    """A random constant, and tensors that a forward keeps from one call to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.noise = nn.Linear(4, 4), torch.rand(4, dtype=torch.float64)
        self.shape: Any = None
        self.kept = {"grid": torch.empty(0)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape != self.shape:
            self.shape, self.kept["grid"] = x.shape, torch.arange(len(x), dtype=x.dtype)[:, None]
        return self.lin(x) + self.noise + self.kept["grid"]


def test_constants_that_the_class_makes_otherwise_are_saved(tmp_path: Path) -> None:
    model, x = Kept().double(), torch.randn(3, 4, dtype=torch.float64)
    expected = model(x)
    fp.save(model, tmp_path / "m")
    again: Any = fp.load_model(tmp_path / "m", Kept())
    assert torch.equal(again.kept["grid"], model.kept["grid"])
    assert torch.equal(again(x), expected)
    assert torch.equal(again(x[:2]), model(x[:2]))


def test_what_only_a_new_model_keeps_is_taken_out(tmp_path: Path) -> None:
    class Ran(Net):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.calls = torch.ones(2), 1

    model = Ran()
    del model.last, model.calls
    fp.save(model, tmp_path / "m")
    again = fp.load_model(tmp_path / "m", Ran())
    assert vars(again).keys() == vars(model).keys()


def test_the_call_that_makes_another_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"what was called is Net\(\)"):
        fp.save(Attention(), tmp_path / "m", build=Net)


def test_arguments_that_are_no_plain_values_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="a value cannot be saved"):
        fp.save(Net(), tmp_path / "m", build=lambda f: Net(), args={"f": len})
    assert not (tmp_path / "m").exists()


def test_a_plan_of_another_model_is_not_saved(tmp_path: Path) -> None:
    _, plan = smaller(CASES["without arguments"])
    with pytest.raises(OptionError, match="the plan is of another model"):
        fp.save(Net(), tmp_path / "m", plan=plan)
    assert not (tmp_path / "m").exists()


def test_a_graph_takes_no_build(tmp_path: Path) -> None:
    program = fp.capture(Net().double().eval(), IMAGES)
    with pytest.raises(OptionError, match="a graph is not built"):
        fp.save(program, tmp_path / "m", build=Net)


def test_a_class_without_an_import_path_is_passed_when_loaded(tmp_path: Path) -> None:
    class Local(Needs):
        pass

    model = Local(3)
    fp.save(model, tmp_path / "m", args=[3])
    with pytest.raises(LoadError, match="nothing allows to build") as error:
        fp.load_model(tmp_path / "m", trust=True)
    assert "model=..." in error.value.do
    check_state(fp.load_model(tmp_path / "m", build=Local), model)
    check_state(fp.load_model(tmp_path / "m", Local(3)), model)


def check_state(found: nn.Module, wanted: nn.Module) -> None:
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


class Mixing(nn.Module):
    """A branch of attention and one of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm, self.mix = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = self.norm(x)
        x = x + self.mix(y, y, y, need_weights=False)[0]
        return self.last(x + self.mlp(x))


def test_what_stands_in_the_place_of_a_deleted_module_comes_back(tmp_path: Path) -> None:
    model, x = Mixing().double().eval(), torch.randn(2, 5, 6, dtype=torch.float64)
    gates = "insert-gates{scope=block} | set-gates{where=mix* value=0} | delete-gated"
    smaller = fp.write_back(model, fp.run(model, x, gates))
    assert isinstance(smaller.mix, Removed)
    fp.save(smaller, tmp_path / "m")
    check_same(fp.load_model(tmp_path / "m", trust=__name__), smaller, x)
    short = {"like": 0, "lengths": [[0]], "dtype": None}
    edits: tuple[dict[str, Any], ...] = ({"zeros": 3}, {"same": []}, {"zeros": short})
    for edit in edits:
        file = tmp_path / "m" / "model.json"
        text = file.read_text()
        data = json.loads(text)
        (row,) = (r for r in data["changes"] if isinstance(r.get("class"), dict))
        row["class"]["form"] = edit
        file.write_text(json.dumps(data))
        with pytest.raises(LoadError):
            fp.load_model(tmp_path / "m", trust=__name__)
        file.write_text(text)


TABLE = {"small": {"widths": [8, 3]}}


class Tabled(Net):
    """Reads its sizes from a table of its file, and keeps the row."""

    def __init__(self) -> None:
        super().__init__()
        self.row = TABLE["small"]
        self.width = 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.head(x.mean((2, 3)).view(-1, self.row["widths"][0]))


def test_a_table_that_models_are_built_from_stays_as_it_is(tmp_path: Path) -> None:
    model = Tabled().double().eval()
    outcome = fp.prune(model, IMAGES, keep=0.6, fits=model)
    small = outcome.written
    assert isinstance(small, Tabled)
    assert small.row["widths"][0] == small.stem.out_channels < 8
    fp.save(small, tmp_path / "m")
    for _ in range(2):  # the class is built anew each time
        again = fp.load_model(tmp_path / "m", build=Tabled)
        assert TABLE == {"small": {"widths": [8, 3]}}
        assert torch.equal(again(IMAGES), small(IMAGES))
