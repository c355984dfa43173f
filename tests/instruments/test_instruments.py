"""What looks on: times, prints, finds faults, keeps what failed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import LoadError, OptionError, PipelineError
from fxprune.graph.gate import Gate
from fxprune.graph.program import Program
from fxprune.instruments import read_environment
from fxprune.instruments.printing import changes, listing
from fxprune.io.leaves import write_leaves
from fxprune.pipeline import Context, Pipeline, Repeat, run_pipeline
from fxprune.testing.passes import DropOnes, Raises, Scale

X = (torch.randn(2, 4),)


def test_times_are_printed_after_the_run(ones: Program) -> None:
    stream = io.StringIO()
    times = fp.TimePasses(stream)
    fp.run(ones, None, [DropOnes(), Scale("layer.weight")], instruments=[times])
    assert [t.text for t in times.timings] == ["drop-ones", "scale{tensor=layer.weight}"]
    assert [t.new_kib for t in times.timings] == [0.0, 4 * 4 * 4 / 1024]
    assert stream.getvalue().splitlines()[2].startswith("drop-ones")
    assert json.loads(json.dumps(times.to_json()))[0]["seconds"] > 0


def test_times_are_printed_after_a_failure(ones: Program) -> None:
    stream = io.StringIO()
    with pytest.raises(PipelineError):
        fp.run(ones, None, [DropOnes(), Raises()], instruments=[fp.TimePasses(stream)])
    assert "drop-ones" in stream.getvalue()


def test_only_what_changed_is_printed_by_module_path(small: nn.Module) -> None:
    stream = io.StringIO()
    looking = [fp.PrintGraph(changed=True, stream=stream)]
    steps = ["drop-identity", "drop-identity", Scale("0.weight")]
    fp.run(small, X, steps, instruments=looking)
    assert stream.getvalue().splitlines() == [
        "=== changes made by drop-identity",
        "@ 2",
        "- dropout = aten.dropout(relu, 0.5, False) : float32 s31x8".replace("s31", symbol(small)),
        "@ 3",
        f"- linear_1 = aten.linear(dropout, _3_weight, _3_bias) : float32 {symbol(small)}x4",
        f"+ linear_1 = aten.linear(relu, _3_weight, _3_bias) : float32 {symbol(small)}x4",
        "=== no changes made by drop-identity",
        "=== changes made by scale",
        "~ 0.weight: values changed",
    ]


def symbol(model: nn.Module) -> str:
    """How the free batch is called."""
    value = fp.capture(model, X).input_values()[0]
    return str(value.shape[0])


def test_whole_graphs_are_printed_for_a_glob(small: nn.Module) -> None:
    stream = io.StringIO()
    looking = [fp.PrintGraph("drop-*", "scale", stream=stream)]
    fp.run(small, X, ["drop-identity", Scale("0.weight")], instruments=looking)
    titles = [x for x in stream.getvalue().splitlines() if x.startswith("===")]
    assert titles == ["=== graph before drop-identity", "=== graph after scale"]


def test_a_terminal_gets_colours(ones: Program) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.delenv("NO_COLOR", raising=False)
        stream = Terminal()
        looking = [fp.PrintGraph(changed=True, stream=stream)]
        fp.run(ones, None, [DropOnes()], instruments=looking, limit=1)
    assert "\x1b[31m- mul" in stream.getvalue()


def test_a_listing_has_one_line_for_each_node(ones: Program) -> None:
    lines = listing(ones)
    assert len(lines) == len(list(ones.nodes))
    assert lines[0] == "layer: layer_weight = get_attr layer.weight() : float32 4x4"
    assert list(changes(ones, ones)) == []


def right(program: Program) -> bool:
    """The function that forty multiplications by 1 have."""
    weight, bias = (program.tensors()[f"layer.{k}"] for k in ("weight", "bias"))
    return torch.allclose(program(*X), nn.functional.linear(*X, weight, bias))


@pytest.mark.parametrize("check", [None, right])
def test_the_one_wrong_rewrite_of_forty_is_found(ones: Program, check: object) -> None:
    found = fp.bisect(ones, [DropOnes(bad=23), Scale("layer.bias")], check)  # type: ignore[arg-type]
    assert (found.found, found.failed, found.step) == (True, "drop-ones{bad=23}", 1)
    assert (found.rewrite, found.of) == (23, 40)
    assert found.remark is not None
    assert found.remark.what == "multiplication 23"
    assert found.program is ones
    assert found.trials < 12
    assert "rewrite 23" in str(found)
    assert found.to_json()["remark"]["code"] == "drop-ones.dropped"


def test_numbers_go_on_over_passes(ones: Program) -> None:
    found = fp.bisect(ones, [Scale("layer.bias"), DropOnes(), DropOnes(), Scale("gone")])
    assert (found.failed, found.step) == ("scale{tensor=gone}", 4)
    assert found.rewrite == 42
    good = fp.run(ones, None, [Scale("layer.bias"), DropOnes()], limit=41)
    assert [s.rewrites for s in good.steps] == [1, 40]


def test_a_pass_in_a_loop_is_found(ones: Program) -> None:
    found = fp.bisect(ones, [Repeat(Pipeline([DropOnes(bad=40)]), max=3)])
    assert (found.step, found.rewrite) == (1, 40)


def test_a_pass_that_fails_without_any_rewrite_is_found(ones: Program) -> None:
    found = fp.bisect(ones, [DropOnes(), Raises()])
    assert (found.failed, found.step, found.rewrite) == ("raises", 2, None)
    assert "ZeroDivisionError" in str(found)


def test_nothing_to_find(ones: Program) -> None:
    assert not fp.bisect(ones, [DropOnes()]).found
    assert not fp.bisect(ones, [DropOnes()], right).found
    with pytest.raises(OptionError, match="rejects the program before the first pass"):
        fp.bisect(ones, [DropOnes()], lambda program: False)


def test_a_failure_leaves_what_replays_it(ones: Program, tmp_path: Path) -> None:
    target = tmp_path / "failed run"
    steps = [Scale("layer.bias"), Repeat(Pipeline([DropOnes(bad=4)]), max=2)]
    for _ in range(2):  # the second one takes the place of the first
        with pytest.raises(PipelineError) as caught:
            fp.run(ones, None, steps, instruments=[fp.Reproducer(target)], seed=3)
        assert caught.value.do.endswith(f"to replay the failure, run: fxprune replay '{target}'")
    assert sorted(p.name for p in target.iterdir()) == [
        "error.txt",
        "program",
        "reproducer.json",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["failed run"]
    assert "differs" in (target / "error.txt").read_text()
    with pytest.raises(PipelineError, match="pass drop-ones failed") as again:
        fp.replay(target)
    assert again.value.what == caught.value.what


def test_a_limit_is_replayed_too(ones: Program, tmp_path: Path) -> None:
    looking = [fp.Reproducer(tmp_path / "failed")]
    with pytest.raises(PipelineError):
        fp.run(ones, None, [DropOnes(bad=4)], instruments=looking, limit=4)
    facts = json.loads((tmp_path / "failed" / "reproducer.json").read_text())
    assert (facts["limit"], facts["failed"]) == (4, "drop-ones{bad=4}")
    facts["limit"] = 3
    (tmp_path / "failed" / "reproducer.json").write_text(json.dumps(facts))
    assert fp.replay(tmp_path / "failed").steps[0].rewrites == 3


def test_where_no_reproducer_can_be_written_the_error_stays(
    small: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("not a reproducer")
    with pytest.raises(PipelineError, match="ZeroDivisionError") as caught:
        fp.run(small, X, [Raises()], instruments=[fp.Reproducer(tmp_path)])
    assert "will not overwrite" in caught.value.do
    assert (tmp_path / "mine").exists()
    with pytest.raises(LoadError, match="does not contain a reproducer"):
        fp.replay(tmp_path)


def test_a_meta_program_leaves_no_reproducer(tmp_path: Path) -> None:
    program = fp.capture(nn.Linear(4, 4, device="meta"), torch.randn(2, 4, device="meta"))
    with pytest.raises(PipelineError, match="no reproducer could be written"):
        fp.run(program, None, [Raises()], instruments=[fp.Reproducer(tmp_path / "failed")])
    assert list(tmp_path.iterdir()) == []


def gated() -> Program:
    """Gates of two kinds, one behind the other, the second on a value that is read twice."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.one(x))
            return self.two(x) + x

    torch.manual_seed(0)
    program = fp.capture(Net().eval(), X)
    editor = Context().edit(program)
    (add,) = (n for n in editor.nodes if n.name == "add")
    gates = Gate(4, kind="soft"), Gate(kind="bernoulli", estimator="score")
    with torch.no_grad():
        gates[0].theta.copy_(torch.tensor([0.0, 0.5, 1.0, 2.0]))
    source = add.all_input_nodes[1]
    first = editor.call_leaf(editor.add_leaf("one.gate", gates[0]), (source, 1), before=add)
    second = editor.call_leaf(editor.add_leaf("gate", gates[1]), (first,), before=add)
    add.args = (add.args[0], second)
    return editor.finish()


def test_gates_are_kept_beside_the_program(tmp_path: Path) -> None:
    program = gated()
    with pytest.raises(PipelineError):
        run_pipeline(program, Raises(), instruments=[fp.Reproducer(tmp_path / "failed")])
    with pytest.raises(PipelineError) as caught:
        fp.replay(tmp_path / "failed")
    assert listing(caught.value.program) == listing(program)
    again = caught.value.program.module.get_submodule("gate")
    assert (again.kind, again.estimator, again.draws) == ("bernoulli", "score", True)
    assert torch.equal(caught.value.program(*X), program(*X))


def test_gates_taken_out_and_put_back(tmp_path: Path) -> None:
    program = gated()
    rows = json.loads(json.dumps(write_leaves(program.module)))
    assert rows.keys() == {str(n.target) for n in program.graph.find_nodes(op="call_module")}
    fp.save(program, tmp_path / "gated")
    back = fp.load(tmp_path / "gated")
    assert torch.equal(back(*X), program(*X))
    assert back.tensors().keys() == program.tensors().keys()


def test_variables_of_the_environment_need_no_change_of_code(
    ones: Program,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name, value in {
        "PRINT_BEFORE": "drop-*",
        "PRINT_AFTER": "drop-ones",
        "PRINT_CHANGED": "1",
        "TIME_PASSES": "1",
        "DISABLE": "scale, raises",
        "BISECT_LIMIT": "2",
        "REPRODUCER": str(tmp_path / "failed"),
        "VERIFY": "0",
    }.items():
        monkeypatch.setenv(f"FXPRUNE_{name}", value)
    result = fp.run(ones, None, [DropOnes(bad=1), Scale("layer.bias"), Raises()])
    assert result.steps[0].rewrites == 2
    assert result.steps[0].checks == ()
    assert [s.disabled for s in result.steps] == [False, True, True]
    printed = capsys.readouterr().err
    for title in ("graph before drop-ones", "graph after drop-ones", "changes made by drop-ones"):
        assert title in printed
    assert "seconds" in printed
    monkeypatch.setenv("FXPRUNE_VERIFY", "1")
    with pytest.raises(PipelineError, match="fxprune replay"):
        fp.run(ones, None, [DropOnes(bad=1)])


@pytest.mark.parametrize(("name", "value"), [("VERIFY", "yes"), ("BISECT_LIMIT", "-1")])
def test_a_value_that_cannot_be_used_is_an_error(name: str, value: str) -> None:
    with pytest.raises(OptionError, match=f"FXPRUNE_{name}={value} cannot be used"):
        read_environment({f"FXPRUNE_{name}": value})


def test_an_empty_environment_asks_for_nothing() -> None:
    asked = read_environment({"FXPRUNE_VERIFY": "", "FXPRUNE_PRINT_CHANGED": "0"})
    assert (asked.instruments, asked.disable, asked.limit, asked.verify) == ((), (), None, None)
    known = {"0": False, "1": True, "local": "local", "full": "full"}
    assert {v: read_environment({"FXPRUNE_VERIFY": v}).verify for v in known} == known
