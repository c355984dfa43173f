"""The command that writes the report of a pruning as a page: report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fxprune.cli.options import Json, Trust, example

if TYPE_CHECKING:
    from fxprune.graph.program import Program
    from fxprune.report import Curves


def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="a directory written by prune --out or fp.save")
    ],
    curves: Annotated[
        list[Path],
        typer.Option(
            default_factory=list,
            show_default=False,
            metavar="FILE",
            help="draw what fxprune sensitivity --json or fxprune recover --json printed; can be repeated",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="the page to write; by default named after DIR"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace the file where it is there already")
    ] = False,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Write the report of a pruning as one HTML page, which loads nothing from elsewhere.

    It has sizes before and after by module, what is tied to what and why, what of which tensor goes, remarks and
    checks. A directory written with --class needs --trust for the ties: the class is built and captured.
    """
    from fxprune.cli.source import check_file, progress, show
    from fxprune.errors import OptionError
    from fxprune.files.document import Document
    from fxprune.io.report import load_report

    target = out if out is not None else Path(f"{directory.resolve().name}.html")
    check_file(target, ".html", force=force)
    with progress(f"reading {directory}"):
        found = load_report(directory).with_curves(*(c for file in curves for c in _curves(file)))
    program = _program(directory, trust=trust)
    with progress(f"writing {target}"):
        page = found.to_html(program)
        Document(str(target), OptionError).write(target, page)
    size = len(page.encode())
    show(f"wrote {target}, {size:,} bytes", {"file": str(target), "bytes": size}, as_json=as_json)


def _curves(file: Path) -> list[Curves]:
    """The curves in a document of `--json`.

    Raises:
        OptionError: it is none, or has no curves.
    """
    from fxprune.errors import OptionError
    from fxprune.files.document import Document
    from fxprune.report.curves import read_curves

    top = Document(str(file), OptionError).read(file).mapping()
    if "curves" not in top:
        raise OptionError(
            f"{file} has no curves",
            where="--curves",
            do="write what fxprune sensitivity --json or fxprune recover --json prints to a file",
        )
    return [read_curves(entry) for entry in top["curves"].items()]


def _program(directory: Path, *, trust: bool) -> Program | None:
    """The smaller network, where the directory has its graph or its class may be built."""
    from fxprune.cli.source import Source, open_program
    from fxprune.io.directory import MODEL, PROGRAM, kind_of

    kind = kind_of(directory)
    if kind == PROGRAM or (kind == MODEL and trust):
        return open_program(Source(str(directory), trust=trust))
    return None


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(epilog=example("report smaller --out smaller.html"))(report)
