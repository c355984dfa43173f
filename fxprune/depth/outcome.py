"""What a pruning of layers gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tabulate import tabulate
from torch import nn

from fxprune.graph.program import Program
from fxprune.pipeline import Result
from fxprune.remark import Remark
from fxprune.report import Comparison
from fxprune.report.latency import Latency


@dataclass(frozen=True)
class Deleted:
    """A layer that was deleted.

    Attributes:
        path: of the layer.
        blocks: the paths of its residual blocks.
        score: why it went: see `prune_layers`.
        size: the number of elements of the parameters that went with it.
        macs: the multiply-accumulates that went with it.
    """

    path: str
    blocks: tuple[str, ...]
    score: float
    size: int
    macs: int


@dataclass(frozen=True, eq=False)
class LayersOutcome:
    """What `prune_layers` returns; prints as tables.

    Attributes:
        program: the network without the layers.
        model: of the user's own class, without them; None of a program, or where a remark says why.
        deleted: the layers, in the order in which they were chosen.
        importance: by which score.
        result: what the passes that deleted them did, and how it was verified.
        remarks: on layers that stay, and on the class.
        latency: of both networks, where a share of it was wished.
    """

    program: Program
    model: nn.Module | None
    deleted: tuple[Deleted, ...]
    importance: str
    result: Result = field(repr=False)
    remarks: tuple[Remark, ...]
    latency: Latency | None = None

    @property
    def report(self) -> Comparison:
        """Parameters, MACs and bytes before and after, module by module."""
        return self.result.comparison

    def __str__(self) -> str:
        rows = [(d.path, f"{d.score:.4g}", f"{d.size:,}", f"{d.macs:,}") for d in self.deleted]
        header = ["deleted layer", self.importance, "parameters", "MACs"]
        align = ("left", "right", "right", "right")
        parts = [
            tabulate(rows, header, "simple", colalign=align, disable_numparse=True),
            str(self.result),
            str(self.latency or ""),
            "\n".join(str(r) for r in self.remarks),
        ]
        return "\n\n".join(filter(None, parts))

    def to_json(self) -> dict[str, Any]:
        """Returns the layers with their scores, what the passes did, sizes and remarks as plain data."""
        return {
            "importance": self.importance,
            "deleted": [asdict(d) for d in self.deleted],
            **self.result.to_json(),
            **({"latency": self.latency.to_json()} if self.latency else {}),
            "remarks": [r.to_json() for r in (*self.remarks, *self.result.remarks)],
        }
