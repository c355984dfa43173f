"""Deletes the layers of a trained network that matter least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, get_args

from torch import nn

from fxprune.calibration import Calibration
from fxprune.capture import capture
from fxprune.depth.amount import Amount, DepthMetric, amount_of, following, take
from fxprune.depth.layer import Layer, Unit, find_layers
from fxprune.depth.order import Order, removal_order
from fxprune.depth.outcome import Deleted, LayersOutcome
from fxprune.depth.passes import deleted, deletion
from fxprune.depth.scores import DepthImportance, check_importance
from fxprune.errors import OptionError, PlanError
from fxprune.graph.program import Program
from fxprune.latency import LatencyTable
from fxprune.pipeline import Result, run_pipeline
from fxprune.plan.globs import nearest
from fxprune.process.random_state import random_state_kept
from fxprune.process.state import plain_modes
from fxprune.remark import Remark
from fxprune.report.latency import Latency
from fxprune.structure.blocks import find_blocks
from fxprune.verify import Verify, check_capture, how_to_verify
from fxprune.write_back import written


@plain_modes()
@random_state_kept()
def prune_layers(
    network: nn.Module | Program,
    data: Calibration | Iterable[Any] | None = None,
    n: int | None = None,
    *,
    keep: float | None = None,
    metric: DepthMetric = "macs",
    importance: DepthImportance = "block-influence",
    unit: Unit = "layer",
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    ignore: Sequence[str] = (),
    verify: Verify = "local",
    progress: bool = True,
    seed: int = 0,
    latencies: LatencyTable | None = None,
) -> LayersOutcome:
    """Deletes the residual layers that matter least: what they add to their input is taken away, the input passes by.

    Args:
        network: a model or a program, trained; it stays as it is.
        data: batches, for scores that read them; with a loss for `loss`.
        n: how many layers go.
        keep: in place of `n`, the share that stays, above 0 and below 1: layers go until no more is left.
        metric: what that is a share of: macs, params, layers, or latency on this machine. Of a latency, layers go until
            the network that is left has been measured to be fast enough.
        importance: block-influence: 1 less the cosine of a layer's input and output (ShortGPT, arXiv 2403.03853).
            loss: the layer goes without which the loss is lowest, and again after each. entropy: of the signs of its
            pre-activations (arXiv 2308.06619). magnitude: the root mean square of its weights. random. last: the
            deepest goes first.
        unit: layer: all residual branches in one element of a list of modules, as attention and feed-forward of a
            transformer. branch: each one by itself.
        args: example inputs of a model. None, without `kwargs` too: those of the first batch.
        kwargs: example keyword inputs of a model.
        ignore: globs of the paths of layers, or of their blocks, that stay.
        verify: how to hold every pass, and what was captured, to what they came from; see `fp.run`.
        progress: whether to show a bar on stderr while losses are measured.
        seed: of random scores, and of the inputs of checks.
        latencies: for the metric latency, where measured times are kept. None: `fp.LatencyTable()`.

    Returns:
        The smaller program, and the model of the same class where that can be without these layers. The function has
        changed on purpose: train afterwards.

    Raises:
        OptionError: what goes is not said, or a score, a glob or data does not fit.
        BudgetError: there are not so many layers.
        CaptureError, ScoreError, PipelineError, VerifyError: as `prune` and `run`.
    """
    check_importance(importance, data)
    _check_amount(n, keep, metric, unit)
    calibration = None if data is None else Calibration.of(data)
    program = (
        network
        if isinstance(network, Program)
        else _captured(network, calibration, args, kwargs, verify, seed)
    )
    blocks = find_blocks(program)
    layers = _not_ignored(find_layers(program, blocks, unit), ignore)
    order, remarks = removal_order(
        program, layers, importance, calibration, seed, progress=progress
    )
    table = (latencies or LatencyTable()) if metric == "latency" else None
    amount = amount_of(program, layers, blocks, metric, table)
    chosen = take(order, amount, n, keep)
    result, latency = _deleted(
        program, order, chosen, amount, keep, table, verify=verify, seed=seed
    )
    gone = [b for layer, _ in chosen for b in layer.blocks]
    left = {b.path for b in gone} - set(deleted(gone, result))
    remarks += [_stayed(path) for path in sorted(left)]
    model, why = (None, []) if isinstance(network, Program) else _in_class(network, result)
    return LayersOutcome(
        program=result.program,
        model=model,
        deleted=tuple(
            Deleted(x.path, tuple(b.path for b in x.blocks), score, x.size, x.macs)
            for x, score in chosen
        ),
        importance=importance,
        result=result,
        remarks=(*remarks, *why, *(table.remarks if table else ())),
        latency=latency,
    )


def _check_amount(n: int | None, keep: float | None, metric: object, unit: object) -> None:
    if (n is None) == (keep is None):
        raise OptionError(
            "how many layers go is said twice"
            if n is not None
            else "how many layers go is not said",
            where="n, keep",
            do="give the number of layers, n=2, or the share that stays, keep=0.8",
        )
    if n is not None and (not isinstance(n, int) or n < 1):
        raise OptionError(f"n={n!r} is no number of layers", do="choose a whole number from 1")
    if keep is not None and (not isinstance(keep, int | float) or not 0 < keep < 1):
        raise OptionError(f"keep={keep!r} is not a share", do="choose a number with 0 < keep < 1")
    for name, given, known in (("metric", metric, DepthMetric), ("unit", unit, Unit)):
        if given not in get_args(known):
            raise OptionError(
                f"there is no {name} {given!r}", do=f"choose one of {', '.join(get_args(known))}"
            )


def _captured(
    model: nn.Module,
    data: Calibration | None,
    args: Any,
    kwargs: Mapping[str, Any] | None,
    verify: Verify,
    seed: int,
) -> Program:
    if args is None and kwargs is None and data is not None:
        args, kwargs = data.call_of(data.first)
    program = capture(model, args, kwargs)
    if not (how := how_to_verify(verify)):
        return program
    _, unchecked = check_capture(model, program, seed=seed, few=how == "local")
    return replace(program, remarks=(*program.remarks, *unchecked))


def _not_ignored(layers: list[Layer], ignore: Sequence[str]) -> list[Layer]:
    """The layers that no glob names.

    Raises:
        OptionError: a glob names none.
    """
    stay: set[str] = set()
    for glob in ignore:
        found = {x.path for x in layers if any(fnmatchcase(p, glob) for p in _paths(x))}
        if not found:
            raise OptionError(
                f"ignore pattern {glob!r} matches no layer",
                where="ignore=",
                do=nearest(glob, [p for x in layers for p in _paths(x)]),
            )
        stay |= found
    return [x for x in layers if x.path not in stay]


def _paths(layer: Layer) -> list[str]:
    return [layer.path, *(b.path for b in layer.blocks)]


def _deleted(
    program: Program,
    order: Order,
    chosen: list[tuple[Layer, float]],
    amount: Amount,
    keep: float | None,
    table: LatencyTable | None,
    *,
    verify: Verify,
    seed: int,
) -> tuple[Result, Latency | None]:
    """The network without the chosen layers. For a latency, more of them go until it is measured to be met.

    Args:
        program: the network.
        order: of the layers that are left.
        chosen: the layers that go; those that have to go too are added to it.
        amount: of the metric in the layers.
        keep: the share that stays.
        table: the measured times, where the metric is latency.
        verify: see `prune_layers`.
        seed: see `prune_layers`.

    Raises:
        BudgetError: it is not met without any of them.
    """
    while True:
        gone = [b for layer, _ in chosen for b in layer.blocks]
        result = run_pipeline(program, deletion(gone), verify=verify, seed=seed)
        if table is None or keep is None:
            return result, None
        found = table.compare(program, result.program)
        if found.ratio <= keep:
            table.save()
            return result, replace(found, wished=keep, predicted=amount.left(chosen))
        chosen.append(following(order, f"keep={keep} of latency", len(chosen), found.ratio))


def _stayed(path: str) -> Remark:
    return Remark(
        "missed",
        "layers.left",
        path,
        "the block could not be deleted, and has a gate at 0",
        "see the remarks of delete-gated in outcome.result.remarks",
    )


def _in_class(model: nn.Module, result: Result) -> tuple[nn.Module | None, list[Remark]]:
    """The model of the same class without the layers, and remarks; None where the class cannot be without them."""
    try:
        found = written(model, result)
    except PlanError as error:
        what = "the model's own class cannot be without the layers"
        do = "use the program: outcome.program"
        return None, [
            Remark("missed", "layers.not-written-back", type(model).__name__, what, str(error), do)
        ]
    return found.model, list(found.remarks)
