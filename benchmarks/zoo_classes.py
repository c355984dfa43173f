"""The zoo in its own classes: each network pruned so that its class can express it, written back, and used.

    python -m benchmarks.zoo_classes [--only REGEX] [--timm] [--fresh] [--render]

Rows are kept in `benchmarks/zoo_classes.jsonl`; `docs/take-home.md` is renewed at the end.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import fxprune as fp
from benchmarks.class_networks import built, networks_of_classes
from benchmarks.networks import Network
from benchmarks.page import ROOT
from benchmarks.rows import Row, Rows, tables
from fxprune.verify import relative_error
from fxprune.write_back.rebuild import Builder

KEEP, CLOSE, STEPS, TOKENS = 0.7, 1e-4, 3, 4
_MORE = {"transformers:whisper": 0.85}  # of which more than KEEP has to stay
_LONGEST = 200  # letters of a reason
COLUMNS = (
    *("network", "MACs kept", "used", "groups", "tied", "left whole", "numbers undecided"),
    *("free axes", "seconds", "verified"),
)


def measure(network: Network, row: Row) -> None:
    """Prunes a network within what its class can express, and uses the smaller model as its library would."""
    model, args, kwargs = network.build()
    began = process_time()
    program = fp.capture(model, args, kwargs)
    outcome = fp.prune(program, keep=_MORE.get(network.name, KEEP), fits=model)
    remarks = outcome.report.remarks
    codes = [r.code for r in remarks]
    row |= {
        "seconds": process_time() - began,
        "MACs kept": outcome.report.after.total.macs / outcome.report.before.total.macs,
        "free axes": ", ".join(
            f"{name} {' '.join(map(str, axes))}" for name, axes in program.free_axes.items()
        ),
        "groups": len(outcome.report.groups),
        "tied": codes.count("fits-class.tied"),
        "left whole": codes.count("choose.left"),
        "numbers undecided": codes.count("write-back.number-undecided"),
        "left": _by_reason((r.where, r.why) for r in remarks if r.code == "choose.left"),
    }
    assert outcome.written is not None, "it was asked to fit"
    row["used"] = ", ".join(_used(network.name, outcome.written, args, kwargs))


def _used(name: str, model: Any, args: Any, kwargs: Any) -> Iterator[str]:
    """What was done with a smaller model of a network, in words.

    Raises:
        AssertionError: something came out differently.
    """
    with torch.no_grad():
        expected = _tensors(copy.deepcopy(model)(*args, **kwargs))
    again = _saved_and_loaded(name, model)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        found = _tensors(again(*args, **kwargs))
    pairs = zip(found, expected, strict=True)
    assert all(relative_error(a, b) < CLOSE for a, b in pairs), "it is another one when loaded"
    yield "saved and loaded"
    if callable(getattr(model, "can_generate", None)) and model.can_generate():
        first = kwargs.get("input_ids", kwargs.get("input_features"))
        one, two = (
            model.generate(first, max_new_tokens=TOKENS, do_sample=False, use_cache=cached)
            for cached in (True, False)
        )
        assert torch.equal(one, two), "its cache changes what it generates"
        yield "generates"
    if hasattr(model, "reset_classifier"):
        headed = copy.deepcopy(model)
        headed.forward_features(*args)
        headed.reset_classifier(7)
        assert headed(*args).shape[-1] == 7, "it does not take a new head"
        yield "features and a new head"
    _train(copy.deepcopy(model).train(), args, kwargs)
    yield "trained"


def _saved_and_loaded(name: str, model: Any) -> nn.Module:
    """A model as its library saves and loads it, where a config says its sizes; else as fxprune does."""
    with TemporaryDirectory() as folder:
        if Builder.of(model) is not None:
            model.save_pretrained(folder)
            again: nn.Module = type(model).from_pretrained(folder).eval()
            return again
        fp.save(model, folder, build=built, args={"name": name})
        return fp.load_model(folder, build=built)


def _train(model: nn.Module, args: Any, kwargs: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for _ in range(STEPS):
        optimizer.zero_grad()
        outputs = islice(_tensors(model(*args, **kwargs)), 2)
        loss = sum((x.float().square().mean() for x in outputs), torch.zeros(()))
        loss.backward()  # type: ignore[no-untyped-call]
        assert torch.isfinite(loss), "it does not train"
        optimizer.step()


def _tensors(outputs: Any) -> list[torch.Tensor]:
    return [
        x for x in tree_leaves(outputs) if isinstance(x, torch.Tensor) and x.is_floating_point()
    ]


def render(rows: list[Row], _: int) -> str:
    """The block of the page."""
    good = sum(r["verified"] for r in rows)
    networks = networks_of_classes()
    wanted = len(networks)
    families = [n.name for n in networks if n.kind == "timm"]
    timm = {r["name"]: r["verified"] for r in rows if r["kind"] == "timm"}
    missing = ", ".join(n.removeprefix("timm:") for n in families if n not in timm)
    lines = [
        f"{good} of {wanted} networks are written back and used; {wanted - len(rows)} were not run.",
        f"Of the {len(families)} families of timm, {len(timm)} were run; {sum(timm.values())} come back.",
        *([f"Not run: {missing}."] if missing else []),
    ]
    return "\n".join((*lines, "", tables(COLUMNS, rows), *_left_whole(rows)))


def _left_whole(rows: list[Row]) -> Iterator[str]:
    """Why groups were left whole, where that was kept: a line for each network and reason."""
    found = [
        f"- `{row['name']}`, {count} groups, such as `{name}`: {why}"
        for row in rows
        for name, count, why in row.get("left", ())
    ]
    if found:
        yield from ("### Left whole\n", *found, "")


def _by_reason(left: Iterable[tuple[str, str]]) -> list[tuple[str, int, str]]:
    """The first group, how many there are, and the reason without the sizes in it, for each reason."""
    found: dict[str, tuple[str, int]] = {}
    for name, why in left:
        reason = re.sub(r"\[[-\d, ]+\]|\d+", "...", why)[:_LONGEST]
        first, count = found.get(reason, (name, 0))
        found[reason] = first, count + 1
    return [(name, count, why) for why, (name, count) in found.items()]


if __name__ == "__main__":
    Rows(
        Path(__file__).with_name("zoo_classes.jsonl"),
        measure,
        ROOT / "docs" / "take-home.md",
        "The networks",
        render,
        networks_of_classes,
    ).run()
