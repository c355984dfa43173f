"""What has been written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxprune.remark import Remark


@dataclass(frozen=True)
class AppliedShards:
    """A checkpoint that a plan, or the deletion of layers, has made smaller.

    Attributes:
        folder: where it is.
        shards: the SHA-256 of each safetensors file, by name.
        resumed: the shards that an earlier run had finished.
        cut: how many tensors have lost positions.
        left_out: how many tensors were those of deleted layers.
        bytes_before: of all tensors, in the source.
        bytes_after: of all tensors, in the folder.
        remarks: on files that were not copied, and on a config that still says the old sizes.
    """

    folder: Path
    shards: Mapping[str, str]
    resumed: tuple[str, ...]
    cut: int
    left_out: int
    bytes_before: int
    bytes_after: int
    remarks: tuple[Remark, ...]

    def __str__(self) -> str:
        share = self.bytes_after / max(1, self.bytes_before)
        sizes = f"{self.bytes_before:,} -> {self.bytes_after:,} bytes ({share:.0%})"
        counts = f"{len(self.shards)} shards, {self.cut:,} tensors cut"
        if self.left_out:
            counts += f", {self.left_out:,} left out"
        lines = [f"{self.folder}: {counts}, {sizes}"]
        if self.resumed:
            lines.append(f"finished before: {', '.join(self.resumed)}")
        return "\n".join([*lines, *map(str, self.remarks)])

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return {
            "folder": str(self.folder),
            "shards": dict(self.shards),
            "resumed": list(self.resumed),
            "cut": self.cut,
            "left_out": self.left_out,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "remarks": [r.to_json() for r in self.remarks],
        }
