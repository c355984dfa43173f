"""The command that deletes residual blocks: layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fxprune.cli.options import (
    Arguments,
    Batches,
    Data,
    Depth,
    Dynamic,
    Folder,
    Force,
    Inputs,
    Json,
    LossOf,
    Model,
    Seed,
    Trust,
    Weights,
    example,
)

if TYPE_CHECKING:
    from fxprune.calibration import Calibration
    from fxprune.depth import LayersOutcome
    from fxprune.graph.program import Program
    from fxprune.pipeline import Result
    from fxprune.structure.blocks import Block, Blocks


def layers(
    model: Model,
    inputs: Inputs,
    dynamic: Dynamic,
    delete: Annotated[
        list[str],
        typer.Option(
            default_factory=list,
            show_default=False,
            metavar="GLOB",
            help="delete the blocks with a matching path, such as 'layer4.*'; can be repeated",
        ),
    ],
    last: Annotated[
        int, typer.Option(min=0, metavar="N", help="delete the last N blocks that are in no other")
    ] = 0,
    count: Annotated[
        int | None,
        typer.Option(
            "--n", min=1, metavar="N", help="delete the N layers that matter least by --importance"
        ),
    ] = None,
    importance: Annotated[
        str,
        typer.Option(
            help="of --n: block-influence, loss or entropy, which read --data; magnitude, random or last"
        ),
    ] = "block-influence",
    data: Data = "",
    loss: LossOf = "",
    batches: Batches = None,
    out: Folder = None,
    force: Force = False,
    depth: Depth = 2,
    weights: Weights = "",
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="leave the weights in a checkpoint of safetensors files, and read them tensor by tensor",
        ),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="DIR", help="with --from, where the checkpoint without the layers goes"
        ),
    ] = None,
    args: Arguments = "",
    trust: Trust = False,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Delete residual blocks, or list those that there are.

    What a block adds to its input is taken away, with everything that only it needs; the input passes by. The result is
    compared with the network in which these branches are multiplied by 0. Without --delete, --last and --n, the blocks
    are listed. Deleting layers changes the function on purpose: train afterwards, such as by `fxprune recover`.
    """
    from fxprune import api
    from fxprune.cli.data import open_optional
    from fxprune.cli.source import (
        Source,
        check_out,
        open_on_meta,
        open_program,
        progress,
        show,
    )
    from fxprune.depth.passes import deleted, deletion
    from fxprune.io import save
    from fxprune.shards import apply_to_shards
    from fxprune.structure.blocks import find_blocks

    _check_wanted(delete, last, count)
    check_out(out, force=force)
    wants = bool(delete or last or count)
    _check_shards(source, target, wants, {"--out": out, "--weights": weights})
    asked = Source(model, inputs, dynamic, weights, args, trust=trust, seed=seed)
    network = None
    if source is not None:
        network, program = open_on_meta(asked, source)
    else:
        program = open_program(asked, matters=wants)
    blocks = find_blocks(program)
    if not wants:
        _check_nothing_written(out)
        show(blocks, [_row(b) for b in blocks], as_json=as_json)
        return
    shown: object
    if count:
        outcome = _least(program, count, importance, open_optional(data, loss, batches))
        result, shown, told = outcome.result, outcome, outcome.to_json()
    else:
        chosen = _chosen(blocks, delete, last, model)
        with progress(f"deleting {len(chosen)} blocks of {model}"):
            result = api.run(program, None, deletion(chosen), seed=seed)
        names = deleted(chosen, result)
        shown, told = _text(result, blocks, names, depth), {"deleted": names, **result.to_json()}
    if out is not None:
        with progress(f"writing {out}"):
            save(result.program, out)
    if source is not None and target is not None:
        with progress(f"writing {target}"):
            written = apply_to_shards(result, source, target, model=network, force=force)
        shown, told = f"{shown}\n\n{written}", {**told, "written": written.to_json()}
    show(shown, told, as_json=as_json)


def _least(
    program: Program, count: int, importance: str, data: Calibration | None
) -> LayersOutcome:
    """Deletes the layers that matter least."""
    from fxprune.cli.source import progress
    from fxprune.depth import prune_layers
    from fxprune.depth.scores import DepthImportance

    with progress(f"choosing {count} layers by {importance}, and deleting them"):
        return prune_layers(program, data, count, importance=cast(DepthImportance, importance))


def _check_shards(
    source: Path | None, target: Path | None, wants: bool, others: Mapping[str, object]
) -> None:
    """Refuses options that need the weights in memory, and a result that nothing keeps."""
    from fxprune.errors import OptionError

    if source is None:
        if target is not None:
            raise OptionError(
                "there is no checkpoint to write anew",
                where="--to",
                do="add --from DIR; a graph is written by --out DIR",
            )
        return
    given = [name for name, value in others.items() if value]
    if given:
        raise OptionError(
            f"{given[0]} needs the weights in memory",
            where="--from",
            do="write the checkpoint without the layers: --to DIR",
        )
    if wants and target is None:
        raise OptionError(
            "nothing would be kept of what is deleted", where="--from", do="add --to DIR"
        )


def _check_wanted(delete: Sequence[str], last: int, count: int | None) -> None:
    from fxprune.errors import OptionError

    given = [name for name, x in (("--delete", delete), ("--last", last), ("--n", count)) if x]
    if len(given) > 1:
        raise OptionError(
            f"{' and '.join(given)} both say which blocks go",
            where=given[-1],
            do="leave out all but one",
        )


def _check_nothing_written(out: object) -> None:
    from fxprune.errors import OptionError

    if out is not None:
        raise OptionError(
            "there is nothing to write",
            where="--out",
            why="no block is deleted",
            do="name blocks: --delete GLOB, or --last N; without --out the blocks are listed",
        )


def _chosen(blocks: Blocks, delete: Sequence[str], last: int, model: str) -> list[Block]:
    """The blocks that options name.

    Raises:
        OptionError: one names none.
    """
    from fnmatch import fnmatchcase

    from fxprune.errors import OptionError

    outer = [b for b in blocks if b.parent is None]
    if last > len(outer):
        raise OptionError(
            f"{model} has {len(outer)} residual blocks",
            where="--last",
            do=f"write a number up to {len(outer)}; without --last the blocks are listed",
        )
    chosen = set(outer[len(outer) - last :]) if last else set()
    for glob in delete:
        found = [b for b in blocks if fnmatchcase(b.path, glob)]
        if not found:
            paths = [b.path for b in blocks]
            raise OptionError(
                f"no residual block of {model} matches {glob[:80]!r}",
                where="--delete",
                why=f"they are {', '.join(paths[:8])}{', ...' if len(paths) > 8 else ''}"
                if paths
                else "it has none",
                do=f"list them with: fxprune layers {model}",
            )
        chosen.update(found)
    return [b for b in blocks if b in chosen and not _inside(b, chosen)]


def _inside(block: Block, others: set[Block]) -> bool:
    around = block.parent
    while around is not None and around not in others:
        around = around.parent
    return around is not None


def _row(block: Block) -> dict[str, Any]:
    return {
        "path": block.path,
        "kind": block.kind,
        "parameters": block.size,
        "macs": block.macs,
        "inside": block.parent.path if block.parent else None,
    }


def _text(result: Result, blocks: Blocks, names: Sequence[str], depth: int | None) -> str:
    """Formats what was deleted, the sizes before and after, the checks, and remarks on what was not done."""
    from fxprune.pipeline.remarks import grouped
    from fxprune.report import compare

    left = [r for r in result.remarks if r.kind == "missed"]
    parts = (
        str(compare(result.original, result.program, depth)),
        f"deleted {len(names)} of {len(blocks)} residual blocks: {', '.join(names)}",
        result.table(),
        grouped(left),
    )
    return "\n\n".join(filter(None, parts))


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(
        epilog=example(
            "layers torchvision:resnet18",
            "layers torchvision:resnet18 --weights DEFAULT --delete 'layer[34].1' --out shallow",
            "layers timm:vit_tiny_patch16_224 --last 2",
            "layers net.py:Net --weights net.pt --input 2x16 --n 2 --data data.py:loader --out shallow",
            "layers net.py:Net --from checkpoint --to shorter --input 2x16 --n 2 --data data.py:loader",
        )
    )(layers)
