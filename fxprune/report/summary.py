"""Cost tables: the cost of each module of a network, and of two networks side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from tabulate import tabulate
from torch import fx

from fxprune.cost import node_macs, tensor_bytes
from fxprune.cost.macs import example_sizes
from fxprune.errors import LoadError
from fxprune.files.document import Document, Entry
from fxprune.graph.program import Program, module_path, require_program
from fxprune.graph.sizes import Sizes

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """The cost of one module, or in a folded table that of the module and its submodules.

    Attributes:
        path: the dotted path of the module; "" is the network itself.
        kind: the class name.
        output: the sizes of its last output at the example's batch size; () if it has none.
        parameters: the number of parameter elements; a shared parameter counts at its first occurrence.
        macs: multiply-accumulates for the example inputs.
        bytes: the size of parameters and buffers in bytes.
    """

    path: str
    kind: str
    output: Shape
    parameters: int = 0
    macs: int = 0
    bytes: int = 0

    def __add__(self, other: Row) -> Row:
        return replace(
            self,
            parameters=self.parameters + other.parameters,
            macs=self.macs + other.macs,
            bytes=self.bytes + other.bytes,
        )


@dataclass(frozen=True)
class Summary:
    """The cost of a network by module; prints as a table.

    Attributes:
        name: the class of the network.
        inputs: the sizes of the example inputs for which MACs are counted.
        rows: the modules with a cost of their own, in the order of the graph.
    """

    name: str
    inputs: tuple[Shape, ...]
    rows: tuple[Row, ...]

    @property
    def total(self) -> Row:
        """The sum of all rows."""
        return sum(self.rows, Row("total", "", ()))

    def __str__(self) -> str:
        total = self.total
        scale, unit = _scale(total.macs)
        lines = [
            (_name(r), r.kind, _shape(r.output), f"{r.parameters:,}", _macs(r, scale), _kib(r))
            for r in (*_shown(self.rows), total)
        ]
        header = ["module", "class", "output", "parameters", f"MACs{unit}", "KiB"]
        return f"{self.title}\n{_table(lines, header)}"

    @property
    def title(self) -> str:
        """The network and the sizes of its example inputs."""
        return f"{self.name}, for inputs {', '.join(map(_shape, self.inputs))}"

    def to_json(self) -> dict[str, Any]:
        """Returns the summary as plain data, from which `from_json` restores it."""
        return {**plain(asdict(self)), "total": plain(asdict(self.total))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Summary:
        """The summary of `to_json()`.

        Raises:
            LoadError: the data is something else.
        """
        return read_summary(Entry(data, Document("summary", LoadError)))


@dataclass(frozen=True)
class Comparison:
    """Two summaries side by side; prints as a table.

    Attributes:
        before: the cost of the first network.
        after: the cost of the second network.
    """

    before: Summary
    after: Summary

    @property
    def ratios(self) -> dict[str, float]:
        """The shares of parameters, MACs and bytes that are left; 1 if there were none before."""
        a, b = self.before.total, self.after.total
        names = ("parameters", "macs", "bytes")
        pairs = ((n, getattr(a, n), getattr(b, n)) for n in names)
        return {name: new / old if old else 1.0 for name, old, new in pairs}

    def rows(self) -> Iterator[tuple[Row, Row]]:
        """Yields the modules of the first network, then those only in the second; a missing module costs nothing."""
        old = {r.path: r for r in self.before.rows}
        new = {r.path: r for r in self.after.rows}
        for path in {**old, **new}:
            a, b = old.get(path), new.get(path)
            empty = Row(path, (a or b or self.before.total).kind, ())
            yield a or empty, b or empty

    def __str__(self) -> str:
        totals = (self.before.total, self.after.total)
        scale, unit = _scale(totals[0].macs)
        rows = [(a, b) for a, b in self.rows() if _shown((a, b))]
        lines = [_compared(a, b, scale) for a, b in (*rows, totals)]
        header = ["module", "class", "output"]
        for name in ("parameters", f"MACs{unit}", "KiB"):
            header += [name, "after", "left"]
        return f"{self.before.title}\n{_table(lines, header)}"

    def to_json(self) -> dict[str, Any]:
        """Returns the comparison as plain data, from which `from_json` restores it."""
        sides = {"before": self.before.to_json(), "after": self.after.to_json()}
        return {**sides, "ratios": self.ratios}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """The comparison of `to_json()`.

        Raises:
            LoadError: the data is something else.
        """
        facts = Entry(data, Document("comparison", LoadError)).record("before", "after", "ratios")
        return cls(read_summary(facts["before"]), read_summary(facts["after"]))


def read_summary(entry: Entry) -> Summary:
    """The summary of a JSON object of `Summary.to_json`."""
    facts = entry.record("name", "inputs", "rows", "total")
    inputs = tuple(map(_read_shape, facts["inputs"].items()))
    return Summary(facts["name"].text(), inputs, tuple(map(_read_row, facts["rows"].items())))


def _read_shape(entry: Entry) -> Shape:
    return tuple(e.integer(0) for e in entry.items())


def _read_row(entry: Entry) -> Row:
    facts = entry.record("path", "kind", "output", "parameters", "macs", "bytes")
    counts = (facts[name].integer(0) for name in ("parameters", "macs", "bytes"))
    return Row(facts["path"].text(), facts["kind"].text(), _read_shape(facts["output"]), *counts)


def summary(program: Program, depth: int | None = None) -> Summary:
    """Returns the parameters, MACs and bytes of a program by module.

    Args:
        program: a captured network.
        depth: add the costs of modules deeper than this to the modules that contain them.
    """
    sizes = example_sizes(require_program(program))
    rows = _modules(program, sizes)
    for path, cost in _costs(program):
        rows[path] = rows.get(path, Row(path, "", ())) + cost
    values = (n.meta.get("val") for n in program.graph.find_nodes(op="placeholder"))
    inputs = tuple(tuple(sizes.shape(v)) for v in values if isinstance(v, torch.Tensor))
    return fold(Summary(program.name, inputs, tuple(_ordered(rows))), depth)


def compare(before: Program, after: Program, depth: int | None = None) -> Comparison:
    """Returns the parameters, MACs and bytes of two programs, module by module.

    Args:
        before: the first program.
        after: the second program.
        depth: see `summary`.
    """
    return Comparison(summary(before, depth), summary(after, depth))


def fold(whole: Summary, depth: int | None) -> Summary:
    """Adds modules deeper than `depth` to the modules that contain them; None changes nothing."""
    if depth is None:
        return whole
    rows: dict[str, Row] = {}
    for row in whole.rows:
        path = ".".join(row.path.split(".")[:depth]) if row.path else ""
        if path == row.path:
            rows[path] = row + rows[path] if path in rows else row
        else:
            rows[path] = rows.get(path, Row(path, "", ())) + row
    return replace(whole, rows=tuple(rows.values()))


def _ordered(rows: Mapping[str, Row]) -> list[Row]:
    """Returns the rows in the order of the graph; a module without nodes follows the module that contains it."""
    place = {path: i for i, path in enumerate(rows) if rows[path].kind or not path}

    def key(row: Row) -> int:
        path = row.path
        while path not in place:
            path = path.rpartition(".")[0]
        return place[path]

    return sorted(rows.values(), key=key)


def _modules(program: Program, sizes: Sizes) -> dict[str, Row]:
    """Returns every module that created a node, with its class and its last output."""
    rows = {"": Row("", program.name, ())}
    for node in program.nodes:
        for path, kind in (node.meta.get("nn_module_stack") or {}).values():
            name = kind if isinstance(kind, str) else kind.__name__
            last = rows.get(path, Row(path, "", ())).output
            rows[path] = Row(path, name.rpartition(".")[2], _output(node, sizes) or last)
    (output,) = program.graph.find_nodes(op="output")
    results = [n for n in output.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    shape = _output(results[0], sizes) if results else ()
    return {**rows, "": Row("", program.name, shape)}


def _output(node: fx.Node, sizes: Sizes) -> Shape:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, list | tuple) and value else value
    return tuple(sizes.shape(first)) if isinstance(first, torch.Tensor) else ()


def _costs(program: Program) -> Iterator[tuple[str, Row]]:
    """Yields the costs that nodes and tensors add to their modules."""
    for node, macs in node_macs(program).items():
        yield module_path(node), Row("", "", (), macs=macs)
    for name, parameter in program.module.named_parameters():
        count = parameter.numel()
        yield name.rpartition(".")[0], Row("", "", (), count, 0, tensor_bytes(parameter))
    for name, buffer in program.module.named_buffers():
        yield name.rpartition(".")[0], Row("", "", (), bytes=tensor_bytes(buffer))


def _shown(rows: Iterable[Row]) -> list[Row]:
    return [r for r in rows if r.parameters or r.macs or r.bytes]


def _name(row: Row) -> str:
    return row.path or "(itself)"


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _kib(row: Row) -> str:
    return f"{row.bytes / 1024:,.1f}"


def _scale(total: int) -> tuple[int, str]:
    """Returns a scale in which a table of MACs is easy to read, and its name."""
    for scale, unit in ((1, ""), (10**3, " (thousand)"), (10**6, " (million)")):
        if total < 10**5 * scale:
            return scale, unit
    return 10**9, " (billion)"


def _macs(row: Row, scale: int) -> str:
    return f"{row.macs:,}" if scale == 1 else f"{row.macs / scale:,.1f}"


def _compared(a: Row, b: Row, scale: int) -> list[str]:
    """Returns one line of a comparison; the output sizes before are shown where they changed."""
    shape = (
        _shape(a.output) if a.output == b.output else f"{_shape(a.output)} -> {_shape(b.output)}"
    )
    line = [_name(a), a.kind, shape]
    line += [f"{a.parameters:,}", f"{b.parameters:,}", _left(a.parameters, b.parameters)]
    line += [_macs(a, scale), _macs(b, scale), _left(a.macs, b.macs)]
    return [*line, _kib(a), _kib(b), _left(a.bytes, b.bytes)]


def _left(before: int, after: int) -> str:
    return f"{100 * after / before:.0f} %" if before else ""


def _table(lines: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Formats a table: text on the left, numbers on the right, a rule above the last line."""
    align = ["left"] * 3 + ["right"] * (len(header) - 3)
    text = tabulate(lines, header, tablefmt="simple", colalign=align, disable_numparse=True)
    *body, last = text.splitlines()
    return "\n".join([*body, body[1], last])


def plain(value: Any) -> Any:
    """Converts tuples to lists and infinite numbers to text, since JSON has neither."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
