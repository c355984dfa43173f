"""The experiments on random images: runs with a checkpoint in the middle, their controls, their table."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune as fp
from fxprune.structure.blocks import find_blocks
from fxprune.training import Shrinker
from fxprune_passes.methods import BernoulliLayers
from fxprune_passes.methods.method import Method

CHECKOUT = Path(__file__).resolve().parents[1] / "experiments"
pytestmark = pytest.mark.skipif(
    not CHECKOUT.exists(), reason="the experiments are in the checkout only"
)
NETWORK = "residual MLP"


def layers(shrinker: Shrinker, context: Any) -> Method:
    """Method 1 on half of the blocks, at a price that they do not pay for long."""
    options = {"rate": 0.5, "where": "[2-5]*", "seed": context.seed, "insert": not context.resumed}
    return BernoulliLayers(shrinker, context.samples, -20.0, **options)


def make_task(**options: Any) -> Any:
    task = import_module("experiments.task")
    given = {"network": NETWORK, "data": "mnist", "batch": 16, "seeds": (0,), **options}
    arms = given.pop("arms", (task.Arm("dense"), task.Arm("layers", layers)))
    return task.Task("table", quick=task.Length(4), full=task.Length(4), arms=arms, **given)


def make_run(folder: Path, arm: Any, *, peer: Any = None, **options: Any) -> Any:
    training, task = import_module("experiments.training"), make_task()
    return training.Run(
        task, arm, 0, task.quick, folder / "running", folder / "finished", peer, **options
    )


def train(folder: Path, arm: Any, *, peer: Any = None) -> dict[str, Any]:
    return make_run(folder, arm, peer=peer).train(make_data(), "cpu")


def begin(run: Any) -> tuple[fp.Program, torch.nn.Module]:
    """The dense network of a run, and the same as a model of torch."""
    start = import_module("experiments.start")
    program = start.start(run.task, run.arm, run.seed, make_data().example(64), "cpu")
    return program, start.model(run.task, run.arm, run.seed)


def by_parameters(wanted: fp.Program, other: fp.Program, rounds: int) -> Any:
    """Compares latencies as if time went by parameters."""
    sizes = [sum(t.numel() for t in p.tensors().values()) for p in (wanted, other)]
    return type("Latency", (), {"ratio": sizes[1] / sizes[0]})


def make_data() -> Any:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (80, 1, 28, 28), generator=generator, dtype=torch.uint8)
    part = import_module("experiments.data").Part(
        images, torch.randint(10, (80,), generator=generator)
    )
    return import_module("experiments.data").Data("mnist", part[:64], part[64:], part[:50])


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run of method 1 that deleted some blocks, not all."""
    folder = tmp_path_factory.mktemp("peer")
    row = train(folder, make_task().arms[1])
    assert 0 < row["blocks_left"] < 8
    return import_module("experiments.store").Peer(row, folder / "finished")


def same(row: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the clock."""
    return {k: v for k, v in row.items() if k != "seconds"}


def test_a_run_stops_at_its_deadline_and_goes_on_with_the_next_call(
    tmp_path: Path, peer: Any
) -> None:
    training, arm = import_module("experiments.training"), make_task().arms[1]
    for epoch in (1, 2, 3):
        with pytest.raises(training.OutOfTimeError):
            make_run(tmp_path, arm, deadline=0.0).train(make_data(), "cpu")
        assert json.loads((tmp_path / "running" / "at.json").read_text())["epoch"] == epoch
    row = make_run(tmp_path, arm, deadline=0.0).train(make_data(), "cpu")
    assert same(row) == same(peer.row)
    assert [f.name for f in tmp_path.iterdir()] == ["finished"]


def test_a_run_that_was_cut_off_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, arm = import_module("experiments.training"), make_task().arms[1]

    def cut_off(loop: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training._Loop, "_save", cut_off)
        with pytest.raises(KeyboardInterrupt):
            make_run(tmp_path, arm, deadline=0.0).train(make_data(), "cpu")
    assert (tmp_path / "running" / "history.jsonl").exists()
    assert same(train(tmp_path, arm)) == same(peer.row)


def test_a_row_says_what_became_of_the_gates(peer: Any) -> None:
    row = peer.row
    final, structure = (fp.load(peer.folder / name) for name in ("final", "structure"))
    assert len(find_blocks(final)) == len(find_blocks(structure)) == row["blocks_left"]
    assert not final.training
    assert structure.training
    assert "gate" not in str(list(structure.module.state_dict()))
    counts = [8.0, *row["blocks"]]
    assert row["last_removal"] == max(i for i in range(1, 5) if counts[i] < counts[i - 1])
    assert len(row["curve"]) == row["epochs"] == 4


@pytest.mark.parametrize(
    ("kind", "equal"), [("random", "macs"), ("magnitude", "params"), ("magnitude after", "macs")]
)
def test_units_go_down_to_the_size_of_the_peer(
    tmp_path: Path, peer: Any, kind: Any, equal: Any
) -> None:
    (arm,) = import_module("experiments.task").controls("layers", (kind, equal))
    row = train(tmp_path, arm, peer=peer)
    key = {"params": "parameters", "macs": "macs"}[equal]
    assert row[key] == pytest.approx(peer.row[key], rel=0.03)
    after = kind == "magnitude after"
    assert row["epochs"] == (5 if after else 4)
    assert row["last_removal"] == (4 if after else peer.row["last_removal"])
    assert row["blocks_left"] == 8


def test_random_blocks_go_in_the_epochs_of_the_peer(tmp_path: Path, peer: Any) -> None:
    (arm,) = import_module("experiments.task").controls("layers", "blocks")
    row = train(tmp_path, arm, peer=peer)
    assert row["blocks"] == peer.row["blocks"]
    assert row["macs"] == peer.row["macs"]


def test_random_blocks_go_until_the_network_is_no_slower_than_the_peer(
    tmp_path: Path, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    controls = import_module("experiments.controls")

    monkeypatch.setattr(controls, "compare_latency", by_parameters)
    (arm,) = import_module("experiments.task").controls("layers", ("blocks", "latency"))
    assert arm.name == "random blocks at its latency, as layers"
    row = train(tmp_path, arm, peer=peer)
    assert row["blocks_left"] == peer.row["blocks_left"]
    assert row["last_removal"] == peer.row["last_removal"]
    assert row["macs"] == peer.row["macs"]


def test_a_structure_is_trained_from_new_weights(tmp_path: Path, peer: Any) -> None:
    controls = import_module("experiments.controls")
    (arm,) = import_module("experiments.task").controls("layers", "scratch")
    run = make_run(tmp_path, arm, peer=peer)
    start, model = begin(run)
    fresh = controls.prepare(arm.control, peer, start, model, 0)
    found = fp.load(peer.folder / "structure")
    dense, trained = start.tensors(), found.tensors()
    for name, tensor in fresh.tensors().items():
        assert tensor.shape == trained[name].shape
        if name.endswith("1.weight"):  # linear layers: U(-1 / sqrt(n), 1 / sqrt(n))
            assert not torch.equal(tensor, trained[name])
            assert not torch.equal(tensor, dense[name])
            assert tensor.abs().max() <= tensor.shape[1] ** -0.5
    row = train(tmp_path, arm, peer=peer)
    assert (row["macs"], row["last_removal"]) == (peer.row["macs"], 0)


def test_uniform_width_narrows_every_layer(
    tmp_path: Path, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    controls = import_module("experiments.controls")

    monkeypatch.setattr(controls, "compare_latency", by_parameters)
    (arm,) = import_module("experiments.task").controls("layers", ("uniform", "latency"))
    run = make_run(tmp_path, arm, peer=peer)
    start, model = begin(run)
    narrow = controls.prepare(arm.control, peer, start, model, 0)
    widths = [t.shape[0] for n, t in narrow.tensors().items() if n.endswith("weight")]
    assert len(widths) == len([n for n in start.tensors() if n.endswith("weight")])
    assert max(widths[:-1]) < 64
    left = sum(t.numel() for t in narrow.tensors().values())
    assert left == pytest.approx(peer.row["parameters"], rel=0.05)


def test_the_search_for_a_latency_halves_towards_it(monkeypatch: pytest.MonkeyPatch) -> None:
    controls = import_module("experiments.controls")

    class Timed:
        def __init__(self, keep: float) -> None:
            self.program = self
            self.keep = keep

    def compare(wanted: Timed, small: Timed, rounds: int) -> Any:
        return type("Latency", (), {"ratio": (0.2 + 0.8 * small.keep) / wanted.keep})

    monkeypatch.setattr(controls, "compare_latency", compare)
    monkeypatch.setattr(controls, "for_use", lambda program, **_: program)

    def prune(keep: float) -> Timed:
        if keep < 0.1:
            raise fp.errors.BudgetError("too small")
        return Timed(keep)

    assert controls.keep_of_latency(prune, Timed(0.6)) == pytest.approx(0.5, abs=0.01)
    assert controls.keep_of_latency(prune, Timed(0.25)) == pytest.approx(0.1, abs=0.02)


def test_one_cycle_is_that_of_torch() -> None:
    schedule = import_module("experiments.schedule")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=101, cycle_momentum=False
    )
    for step in range(100):
        # torch turns at step 0.3 * 101 - 1
        share = step / 29.3 * 0.3 if step < 29.3 else 0.3 + 0.7 * (step - 29.3) / (100 - 29.3)
        assert schedule.one_cycle(share) == pytest.approx(cycle.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        cycle.step()


def test_easier_restarts_the_rate_and_says_what_became_of_each_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, training = import_module("experiments.task"), import_module("experiments.training")
    rates: list[float] = []
    rate_of = training._Loop._rate

    def noted(loop: Any, step: int) -> float:
        rates.append(rate_of(loop, step))
        return rates[-1]

    monkeypatch.setattr(training._Loop, "_rate", noted)
    arm = task.Arm("EASIER", import_module("experiments.arms").easier(2), rounds=2)
    row = train(tmp_path, arm)
    rounds = rates[: len(rates) // 2], rates[len(rates) // 2 : -1]
    assert len(rounds[0]) == 8  # steps in half of 4 epochs
    assert rounds[0] == pytest.approx(rounds[1], abs=1e-9)
    assert rounds[0][0] > rounds[0][-1] > 0
    assert [linear for linear, _, _ in row["rounds"]] == [0, 1]
    cells = import_module("experiments.columns").Cells([{**row, "arm": "EASIER", "seed": 0}], {})
    assert cells.rounds("EASIER")[1] == (1, 100 * row["rounds"][1][2])
    assert cells.rounds("dense") == {}


def test_held_out_samples_are_the_same_for_every_run_and_never_trained_on() -> None:
    data = import_module("experiments.data")
    part = data.Part(torch.arange(100)[:, None], torch.arange(100))
    first, again = (data.held_out("x", part, part[:7]) for _ in range(2))
    assert torch.equal(first.held.labels, again.held.labels)
    assert len(first.held) == 10
    assert sorted([*first.held.labels.tolist(), *first.train.labels.tolist()]) == list(range(100))


def test_an_image_is_moved_and_flipped_whole() -> None:
    data = import_module("experiments.data")
    image = torch.arange(1, 257, dtype=torch.int16).view(1, 1, 16, 16).repeat(64, 1, 1, 1)
    moved = data.augmented(image, torch.Generator().manual_seed(0))
    wide = torch.nn.functional.pad(image[:1], (2, 2, 2, 2), value=128)[0, 0]
    places = [wide[i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
    known = {tuple(p.flatten().tolist()) for q in places for p in (q, q.flip(1))}
    found = {tuple(p.flatten().tolist()) for p in moved}
    assert found <= known
    assert len(found) > 20


@pytest.mark.parametrize("network", ["narrow VGG-16", "ViT of 12 blocks"])
def test_networks_for_small_images_are_captured(network: str) -> None:
    model = import_module("experiments.networks").NETWORKS[network]().eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(fp.capture(model, x)(x), model(x), atol=1e-5)


def test_the_language_model_sees_no_future() -> None:
    model = import_module("experiments.networks").NETWORKS["GPT of 6 blocks"]().eval()
    x = torch.randint(256, (2, 128))
    program = fp.capture(model, x)
    changed = x.clone()
    changed[:, 64:] = 0
    torch.testing.assert_close(program(x)[:, :64], program(changed)[:, :64])
    assert len(find_blocks(program)) == 12


def test_names_of_tables_and_arms_are_unique_and_controls_have_their_arms() -> None:
    tasks = import_module("experiments.tables").TASKS
    assert len({t.name for t in tasks}) == len(tasks)
    for task in tasks:
        names = [arm.name for arm in task.arms]
        assert len(set(names)) == len(names)
        assert names[0] == "dense"
        assert {arm.control.like for arm in task.arms if arm.control} <= set(names)
        spoken = {v for t in task.targets for k, v in vars(t).items() if k in ("arm", "other")}
        assert spoken <= set(names)


def make_rows() -> list[dict[str, Any]]:
    shape = {"macs": 50, "parameters": 60, "dense": {"macs": 100, "parameters": 100}}
    rows = []
    for arm, seed, test, seconds in (
        ("dense", 0, 0.70, 10.0),
        ("dense", 1, 0.74, 10.0),
        ("layers", 0, 0.69, 7.0),
        ("layers", 1, 0.72, 8.0),
    ):
        row = {"name": f"table/{arm}/{seed}", "task": "table", "arm": arm, "seed": seed, **shape}
        row |= {"ok": True, "full": False, "regime": None, "made": f"{arm} {seed}", "layers": 3}
        row |= {"test": test, "held": test, "train": test, "seconds": seconds, "blocks_left": 4}
        row |= {"undecided": 0, "last_removal": 2, "epochs": 4, "torch": "2", "device": "cpu"}
        rows.append({**row, "commit": "abc"})
    return rows


def test_targets_are_decided_by_rows() -> None:
    targets = import_module("experiments.targets")
    rows = make_rows()
    ratios = {"dense": 1.0, "layers": 0.48}
    latencies = {r["name"]: {"ratios": {"eager 64": ratios[r["arm"]]}} for r in rows}
    cells = import_module("experiments.columns").Cells(rows, latencies)
    untimed = import_module("experiments.columns").Cells(rows, {})
    other = {**rows[0], "arm": "shallow", "macs": 30, "dense": {"macs": 30, "parameters": 30}}
    own = import_module("experiments.columns").Cells([*rows, other], {})
    assert own.of("shallow", "MACs") == {0: 0.3}  # of the dense network, not of its own
    above = targets.Above("layers", "dense", -2.0).judge(cells)
    assert above.reached
    assert "-1.50 ± 0.71 points" in above.figures
    assert targets.Above("layers", "dense").judge(cells).reached is False
    assert targets.Above("layers", "other").judge(cells).reached is None
    assert targets.Above("layers", "dense", -2.0, equal_latency=True).judge(cells).reached
    assert targets.Above("layers", "dense", -2.0, equal_latency=True).judge(untimed).reached is None
    assert targets.Above("dense", "layers", 0.0, equal_latency=True).judge(cells).reached is False
    assert targets.AtMost("layers", "seconds", 0.8).judge(cells).reached
    assert targets.AtMost("layers", "last removal", 0.4).judge(cells).reached is False
    assert targets.AtMost("layers", "latency", 0.5).judge(untimed).reached is None
    assert targets.Near("layers", "latency", 0.49).judge(cells).reached
    assert targets.Near("layers", "latency", 0.5).judge(cells).reached is False


def test_a_page_has_picture_verdicts_and_table_and_keeps_the_text_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    page, targets = import_module("experiments.page"), import_module("experiments.targets")
    store = import_module("experiments.store").Store(tmp_path)
    task = make_task(targets=(targets.Above("layers", "dense", -2.0),), claim="It is claimed.")
    monkeypatch.setattr(page, "TASKS", (task,))
    monkeypatch.setattr(page, "FILE", tmp_path / "results.md")
    page.FILE.write_text("Words before.\n")
    for row in make_rows():
        store.add("rows.jsonl", {**row, "regime": task.regime(task.quick)})
    old = {**make_rows()[0], "test": 0.1, "regime": {"epochs": 1}}
    store.add("rows.jsonl", old)  # of another regime: it does not count
    page.write(store)
    page.FILE.write_text(page.FILE.read_text() + "\nWords behind.\n")
    page.write(store)
    text = page.FILE.read_text()
    assert "It is claimed." in text
    assert "| layers: within 2 of dense | yes" in text
    assert "70.50 ± 2.12" in text
    assert "latency" not in text.split("| seeds")[1]  # nothing was timed
    assert "![accuracy against latency: table](results-table.png)" in text
    assert (tmp_path / "results-table.png").exists()
    assert text.startswith("Words before.")
    assert text.endswith("Words behind.\n")


def test_latencies_of_finished_networks_count_until_they_are_trained_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = import_module("experiments.timing")
    monkeypatch.setattr(timing, "ROUNDS", 1)
    task = make_task()
    store = import_module("experiments.store").Store(tmp_path)
    for arm in task.arms:
        name = f"table/{arm.name}/0"
        run = import_module("experiments.training").Run(
            task, arm, 0, task.quick, store.running(name), store.finished(name)
        )
        row = run.train(make_data(), "cpu")
        row |= {"ok": True, "name": name, "task": "table", "arm": arm.name, "seed": 0}
        row |= {"full": False, "regime": task.regime(task.quick), "made": "now"}
        store.add("rows.jsonl", row)
    timing.measure(store, [task], compiled=False, device="cpu")
    rows = store.rows([task])
    found = store.latencies(rows)
    assert set(found) == {"table/dense/0", "table/layers/0"}
    assert all(set(f["ratios"]) == {"eager 1", "eager 64"} for f in found.values())
    store.add("rows.jsonl", {**rows["table/dense/0"], "made": "later"})
    assert set(store.latencies(store.rows([task]))) == {"table/layers/0"}
