"""A checkpoint without the layers that were deleted: the bytes and the names of the shorter class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fxprune as fp
from fxprune.depth.outcome import LayersOutcome
from fxprune.errors import OptionError, PlanError
from fxprune.testing.checkpoints import Checkpoint, Config, Language, read

BATCH = torch.randint(40, (2, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp("layers"), torch.float64)


@pytest.fixture(scope="module")
def shallow(case: Checkpoint) -> LayersOutcome:
    """The network on disk without its first block, which is the first that `last` would leave."""
    program = fp.open_shards(fp.capture(case.meta, BATCH), case.source)
    return fp.prune_layers(program, [BATCH], 1, ignore=["model.blocks.1"])


def test_layers_that_stay_are_renumbered_and_the_config_counts_them(
    case: Checkpoint, shallow: LayersOutcome, tmp_path: Path
) -> None:
    assert [d.path for d in shallow.deleted] == ["model.blocks.0"]
    result = fp.apply_to_shards(shallow.result, case.source, tmp_path / "new", model=case.meta)
    wanted = fp.prune_layers(case.model, [BATCH], 1, ignore=["model.blocks.1"]).model
    assert wanted is not None
    found, state = read(tmp_path / "new"), wanted.state_dict()
    assert found.keys() == state.keys() - {"head.weight"}
    for name, tensor in found.items():
        assert torch.equal(tensor, state[name]), name
    assert torch.equal(found["model.blocks.0.up.weight"], case.state["model.blocks.1.up.weight"])
    assert result.left_out == len(case.state) - len(found)
    assert result.bytes_after == sum(t.nbytes for t in found.values()) < result.bytes_before

    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config.pop("model_type") == "test"
    assert config.pop("layers") == 1
    built = Language(Config(**config, layers=1)).double().eval()
    built.load_state_dict({**found, "head.weight": found["model.embed.weight"]})
    torch.testing.assert_close(built(BATCH), wanted(BATCH), rtol=0, atol=0)


def test_the_index_names_what_is_there(
    case: Checkpoint, shallow: LayersOutcome, tmp_path: Path
) -> None:
    fp.apply_to_shards(shallow.result, case.source, tmp_path / "new", model=case.meta)
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    held = {
        name: path.name
        for path in (tmp_path / "new").glob("*.safetensors")
        for name in load_file(path)
    }
    assert index["weight_map"] == held
    state = read(tmp_path / "new")
    assert index["metadata"] == {
        "total_size": sum(t.nbytes for t in state.values()),
        "total_parameters": sum(t.numel() for t in state.values()),
    }


def test_a_shard_of_which_nothing_stays_is_not_written(
    case: Checkpoint, shallow: LayersOutcome, tmp_path: Path
) -> None:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in case.state.items():
        file = "first.safetensors" if ".blocks.0." in name else "rest.safetensors"
        parts.setdefault(file, {})[name] = tensor
    (tmp_path / "old").mkdir()
    for file, tensors in parts.items():
        save_file(tensors, tmp_path / "old" / file)
    new = tmp_path / "new"
    result = fp.apply_to_shards(shallow.result, tmp_path / "old", new, model=case.meta)
    assert [*result.shards] == ["rest.safetensors"] == [p.name for p in new.glob("*.safetensors")]
    again = fp.apply_to_shards(shallow.result, tmp_path / "old", new, model=case.meta)
    assert again.resumed == ("rest.safetensors",)


@pytest.mark.parametrize("longer", ["model.", "whole."])
def test_names_may_differ_by_a_prefix(
    case: Checkpoint, shallow: LayersOutcome, longer: str, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    state = {longer + name: tensor for name, tensor in case.state.items()}
    save_file(state, tmp_path / "old" / "model.safetensors")
    fp.apply_to_shards(shallow.result, tmp_path / "old", tmp_path / "new", model=case.meta)
    found = read(tmp_path / "new")
    assert f"{longer}model.blocks.0.up.weight" in found
    assert not any("blocks.1." in name for name in found)


def test_other_work_is_told_apart(case: Checkpoint, shallow: LayersOutcome, tmp_path: Path) -> None:
    fp.apply_to_shards(shallow.result, case.source, tmp_path / "new", model=case.meta)
    other = fp.prune_layers(case.program, [BATCH], 1, ignore=["model.blocks.0"])
    with pytest.raises(OptionError, match="other work"):
        fp.apply_to_shards(other.result, case.source, tmp_path / "new", model=case.meta)


def test_the_model_is_needed(case: Checkpoint, shallow: LayersOutcome, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="deleted layers need the model"):
        fp.apply_to_shards(shallow.result, case.source, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(OptionError, match=r"outcome\.result"):
        fp.apply_to_shards(shallow, case.source, tmp_path / "new", model=case.meta)  # type: ignore[arg-type]


def test_width_goes_after_depth(case: Checkpoint, shallow: LayersOutcome, tmp_path: Path) -> None:
    """The recipe of the page: the shorter checkpoint is written, opened in the shorter class, and made narrower."""
    fp.apply_to_shards(shallow.result, case.source, tmp_path / "short", model=case.meta)
    short = fp.write_back(case.meta, shallow.result)
    program = fp.open_shards(fp.capture(short, BATCH), tmp_path / "short")
    narrow = fp.prune(program, keep=0.7, data=[BATCH], ignore=["*embed"])
    assert all(c.ok for c in narrow.report.checks)
    fp.apply_to_shards(narrow.plan, tmp_path / "short", tmp_path / "small", program=narrow.original)
    small = fp.shrink(narrow.original, narrow.plan)
    state = read(tmp_path / "small")
    for name, tensor in small.tensors().items():
        if name in state:
            assert torch.equal(state[name], small.loaded(name, tensor))
    assert state.keys() <= small.tensors().keys()
