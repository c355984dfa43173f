"""The smaller checkpoint has the bytes of the smaller model; what does not fit is refused before it is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import fxprune as fp
from fxprune.errors import LoadError, OptionError, PlanError
from fxprune.shards.pieces import pieces_of
from fxprune.testing.checkpoints import SHARDS, Checkpoint, Config, read, save
from fxprune.write_back import written

Own = Callable[..., Path]


def assert_same(folder: Path, state: dict[str, Any], left_out: tuple[str, ...] = ()) -> None:
    found = read(folder)
    assert found.keys() == state.keys() - {*left_out}
    for name, tensor in found.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name]), name


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_selected_positions_are_those_of_the_smaller_model(
    case: Checkpoint, tmp_path: Path
) -> None:
    before = contents(case.source)
    result = fp.apply_to_shards(case.inner, case.source, tmp_path / "new")
    assert_same(
        tmp_path / "new", fp.write_back(case.model, case.inner).state_dict(), ("head.weight",)
    )
    assert_same(
        tmp_path / "new", fp.shrink(case.program, case.inner).module.state_dict(), ("head.weight",)
    )
    assert contents(case.source) == before
    assert result.cut == 8
    assert result.bytes_after == sum(t.nbytes for t in read(tmp_path / "new").values())


def test_shards_keep_names_places_and_metadata_and_the_index_counts_anew(
    case: Checkpoint, tmp_path: Path
) -> None:
    fp.apply_to_shards(case.inner, case.source, tmp_path / "new")
    old, new = (
        json.loads((folder / "model.safetensors.index.json").read_text())
        for folder in (case.source, tmp_path / "new")
    )
    state = read(tmp_path / "new")
    assert new["weight_map"] == old["weight_map"]
    assert new["metadata"] == {
        "total_size": sum(t.nbytes for t in state.values()),
        "total_parameters": sum(t.numel() for t in state.values()),
    }
    for name in SHARDS:
        with (
            safe_open(tmp_path / "new" / name, "pt") as new_file,
            safe_open(case.source / name, "pt") as old_file,
        ):
            assert new_file.metadata() == {"format": "pt", "from": "a test"}
            assert list(new_file.offset_keys()) == list(old_file.offset_keys())
    assert (tmp_path / "new" / "tokenizer.json").read_text() == '{"words": []}'


def test_averages_are_folded_into_the_norms_and_the_config_follows(
    exact: Checkpoint, tmp_path: Path
) -> None:
    fp.apply_to_shards(exact.hidden, exact.source, tmp_path / "new", model=exact.model)
    small = fp.write_back(exact.model, exact.hidden)
    assert_same(tmp_path / "new", small.state_dict(), ("head.weight",))
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config.pop("model_type") == "test"
    assert config == vars(small.config)
    assert config["hidden"] == 20
    again = type(exact.model)(Config(**config))
    again.load_state_dict({**read(tmp_path / "new"), "head.weight": small.head.weight})
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(again(ids), small(ids))


def test_a_model_on_meta_is_enough(case: Checkpoint, tmp_path: Path) -> None:
    case.hidden.save(tmp_path / "plan.json")
    plan = fp.Plan.load(tmp_path / "plan.json")
    fp.apply_to_shards(plan, case.source, tmp_path / "new", model=case.meta, program=case.program)
    kept = [i for i in range(24) if i not in (0, 7, 8, 23)]
    found = read(tmp_path / "new")
    norm = case.state["model.norm.weight"][kept]
    assert torch.equal(found["model.norm.weight"], norm * (24 / 20) ** 0.5)
    assert torch.equal(found["model.embed.weight"], case.state["model.embed.weight"][:, kept])
    assert json.loads((tmp_path / "new" / "config.json").read_text())["epsilon"] == pytest.approx(
        1.2e-5
    )


def test_queries_take_the_scale_of_attention(exact: Checkpoint, tmp_path: Path) -> None:
    result = fp.apply_to_shards(exact.narrow, exact.source, tmp_path / "class", model=exact.model)
    assert [r.code for r in result.remarks] == ["write-back.config-stale"]
    own = written(exact.model, exact.narrow).model
    assert_same(tmp_path / "class", own.state_dict(), ("head.weight",))
    name = "model.blocks.0.attention.qkv.0.weight"
    kept = [i for i in range(24) if i % 8 != 3]
    torch.testing.assert_close(
        read(tmp_path / "class")[name], exact.state[name][kept] * (7 / 8) ** 0.5
    )
    fp.apply_to_shards(exact.narrow, exact.source, tmp_path / "graph", program=exact.program)
    small = fp.shrink(exact.program, exact.narrow)
    assert_same(tmp_path / "graph", small.module.state_dict(), ("head.weight",))


def test_the_weights_of_a_program_have_no_factors(exact: Checkpoint, tmp_path: Path) -> None:
    fp.apply_to_shards(exact.hidden, exact.source, tmp_path / "new", program=exact.program)
    small = fp.shrink(exact.program, exact.hidden)
    assert_same(tmp_path / "new", small.module.state_dict(), ("head.weight",))


@pytest.mark.parametrize("names", [["model.safetensors"], ["a.safetensors", "b.safetensors"]])
def test_single_files_and_plain_folders(
    case: Checkpoint, own: Own, tmp_path: Path, names: list[str]
) -> None:
    source = own(names=names)
    for path in source.glob("*.index.json"):
        path.unlink()
    fp.apply_to_shards(case.inner, source, tmp_path / "new")
    assert_same(
        tmp_path / "new", fp.write_back(case.model, case.inner).state_dict(), ("head.weight",)
    )
    assert sorted(contents(tmp_path / "new")) == sorted([*names, "fxprune-shards.json"])


@pytest.mark.parametrize("prefix", ["module.", "strip"])
def test_names_may_differ_by_a_prefix(
    case: Checkpoint, own: Own, tmp_path: Path, prefix: str
) -> None:
    """A checkpoint of the base model lacks `model.`; the head is tied and not saved."""

    def renamed(name: str) -> str:
        return name.removeprefix("model.") if prefix == "strip" else prefix + name

    source = own({renamed(k): t for k, t in case.state.items()})
    fp.apply_to_shards(case.inner, source, tmp_path / "new", model=case.meta, program=case.program)
    wanted = fp.write_back(case.model, case.inner).state_dict()
    assert_same(tmp_path / "new", {renamed(k): t for k, t in wanted.items() if k != "head.weight"})


def test_both_names_of_a_shared_tensor_are_cut(case: Checkpoint, own: Own, tmp_path: Path) -> None:
    source = own({**case.state, "head.weight": case.state["model.embed.weight"].clone()})
    fp.apply_to_shards(case.hidden, source, tmp_path / "new", program=case.program)
    assert_same(tmp_path / "new", dict(fp.shrink(case.program, case.hidden).module.state_dict()))


def test_what_the_model_lacks_is_refused_or_copied_by_name(
    case: Checkpoint, own: Own, tmp_path: Path
) -> None:
    source = own({**case.state, "rotary.inv_freq": torch.arange(4.0)})
    with pytest.raises(PlanError, match=r"does not have\n.*\n.*1 are unknown: rotary\.inv_freq"):
        fp.apply_to_shards(case.inner, source, tmp_path / "new")
    fp.apply_to_shards(case.inner, source, tmp_path / "new", copied=["rotary.*"])
    assert torch.equal(read(tmp_path / "new")["rotary.inv_freq"], torch.arange(4.0))


def test_missing_tensors_and_other_shapes_are_named(
    case: Checkpoint, own: Own, tmp_path: Path
) -> None:
    name = "model.blocks.0.up.weight"
    lacking = {k: t for k, t in case.state.items() if k != name}
    with pytest.raises(PlanError, match=rf"lacks tensors.*\n.*\n.*1 are missing: {name}"):
        fp.apply_to_shards(case.inner, own(lacking), tmp_path / "new")
    other = {**case.state, name: torch.zeros(47, 24)}
    with pytest.raises(PlanError, match=rf"{name} is 47x24 in the file and 48x24 in the model"):
        fp.apply_to_shards(case.inner, own(other), tmp_path / "new")
    case.inner.save(tmp_path / "plan.json")
    with pytest.raises(PlanError, match=rf"{name} is 47x24, and the plan has 48 on axis 0"):
        fp.apply_to_shards(fp.Plan.load(tmp_path / "plan.json"), own(other), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_two_copies_under_prefixes_are_refused(case: Checkpoint, own: Own, tmp_path: Path) -> None:
    twice = {f"{p}.{k}": t.clone() for p in ("student", "teacher") for k, t in case.state.items()}
    with pytest.raises(PlanError, match=r"more than once\n.*\n.*student\..*teacher\."):
        fp.apply_to_shards(case.inner, own(twice), tmp_path / "new")


def test_factors_without_a_model_are_refused(case: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"more than to select positions\n(.*\n)*.*model="):
        fp.apply_to_shards(case.hidden, case.source, tmp_path / "new")
    with pytest.raises(PlanError, match=r"scale"):
        fp.apply_to_shards(case.narrow, case.source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_narrower_heads_need_a_model_with_numbers(case: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"factors that the queries of attention take"):
        fp.apply_to_shards(
            case.narrow, case.source, tmp_path / "new", model=case.meta, program=case.program
        )
    assert not (tmp_path / "new").exists()


def test_a_plan_for_another_program_is_refused(case: Checkpoint, tmp_path: Path) -> None:
    other = fp.capture(torch.nn.Linear(3, 4), torch.randn(2, 3))
    with pytest.raises(PlanError, match="made for another program"):
        fp.apply_to_shards(case.inner, case.source, tmp_path / "new", program=other)


def test_numbers_of_the_config_can_be_given(case: Checkpoint, tmp_path: Path) -> None:
    result = fp.apply_to_shards(case.inner, case.source, tmp_path / "one", config={"inner": 44})
    assert json.loads((tmp_path / "one" / "config.json").read_text())["inner"] == 44
    assert not result.remarks
    with pytest.raises(OptionError, match=r"no field 'innner'\n.*\n.*did you mean 'inner'"):
        fp.apply_to_shards(case.inner, case.source, tmp_path / "two", config={"innner": 44})
    result = fp.apply_to_shards(case.inner, case.source, tmp_path / "two")
    assert [r.code for r in result.remarks] == ["shards.config-kept"]


def test_weights_of_other_formats_and_folders_are_left(
    case: Checkpoint, own: Own, tmp_path: Path
) -> None:
    source = own()
    (source / "pytorch_model.bin").write_bytes(b"old")
    (source / "consolidated.safetensors").write_bytes(b"old")
    (source / "original").mkdir()
    result = fp.apply_to_shards(case.inner, source, tmp_path / "new")
    left = ["consolidated.safetensors", "original", "pytorch_model.bin"]
    assert [r.where for r in result.remarks if r.code == "shards.not-copied"] == left
    assert not {p.name for p in (tmp_path / "new").iterdir()} & {*left}


def test_quantised_weights_are_refused(case: Checkpoint, own: Own, tmp_path: Path) -> None:
    source = own()
    (source / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    with pytest.raises(LoadError, match="quantised"):
        fp.apply_to_shards(case.inner, source, tmp_path / "new")


@pytest.mark.parametrize("where", [".", "inside"])
def test_the_source_is_no_target(case: Checkpoint, own: Own, where: str) -> None:
    source = own()
    before = contents(source)
    with pytest.raises(OptionError, match="written into the one that is read"):
        fp.apply_to_shards(case.inner, source, source / where)
    assert contents(source) == before


@pytest.mark.parametrize("limit", [1, 40, 100, 10_000])
def test_pieces_are_all_that_stays(limit: int) -> None:
    """Oracle: indexing by torch."""
    torch.manual_seed(0)
    tensor = torch.randint(100, (3, 5, 4), dtype=torch.int16)
    flat = tensor.flatten()
    kept = {0: [0, 2], 1: [1, 2, 4], 2: [0, 3]}
    for axes in ((), (0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)):
        cut = {a: torch.tensor(kept[a]).numpy() for a in axes}
        found = []
        for piece in pieces_of((3, 5, 4), cut, 2, limit=limit):
            part = flat[piece.offset // 2 :][: torch.Size(piece.shape).numel()].view(piece.shape)
            assert part.nbytes <= max(limit, 2)
            for axis, positions in piece.cut.items():
                part = part.index_select(axis, torch.from_numpy(positions))
            found.append(part.flatten())
        wanted = tensor
        for axis in axes:
            wanted = wanted.index_select(axis, torch.tensor(kept[axis]))
        assert torch.equal(torch.cat(found), wanted.flatten())


def test_pieces_of_a_large_tensor_take_no_memory() -> None:
    rows = 1 << 40  # of which the positions would be 8 TB
    pieces = pieces_of((rows,), {}, 1, limit=100)
    assert [next(pieces).offset for _ in range(3)] == [0, 100, 200]


def test_tensors_larger_than_a_piece(
    exact: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Factors of parts of a tensor, too, when the tensor is read in pieces."""
    monkeypatch.setattr("fxprune.shards.pieces.PIECE", 100)
    monkeypatch.setattr(pieces_of, "__kwdefaults__", {"limit": 100, "rows": False})
    fp.apply_to_shards(exact.hidden, exact.source, tmp_path / "new", model=exact.model)
    small = fp.write_back(exact.model, exact.hidden)
    assert_same(tmp_path / "new", small.state_dict(), ("head.weight",))


def test_numbers_of_all_types(case: Checkpoint, tmp_path: Path) -> None:
    kinds = [torch.float64, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]
    more = {str(k): torch.ones(3, 2).to(k) for k in kinds}
    more |= {"empty": torch.zeros(0, 3), "one": torch.tensor(3.0)}
    save({**case.state, **more}, tmp_path / "own", ["model.safetensors"])
    names = tuple(more)
    fp.apply_to_shards(case.inner, tmp_path / "own", tmp_path / "new", copied=names)
    found = read(tmp_path / "new")
    for name, tensor in more.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].tolist() == tensor.tolist()
