"""What becomes of each tensor of a checkpoint, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import prod

from fxprune.algebra.label import IntArray
from fxprune.errors import PlanError, some
from fxprune.plan.globs import matches
from fxprune.shards.checkpoint import Checkpoint
from fxprune.shards.names import find_names, renamed
from fxprune.shards.shard import StoredTensor
from fxprune.shards.wanted import Wanted
from fxprune.write_back.fold import Fold

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Change:
    """What becomes of one tensor.

    Attributes:
        before: the tensor in the file.
        name: its name after.
        cut: the positions that are kept, by axis; empty for a tensor that is copied.
        folds: factors that it takes after that.
    """

    before: StoredTensor
    name: str
    cut: Mapping[int, IntArray]
    folds: tuple[Fold, ...] = ()

    @property
    def after(self) -> StoredTensor:
        """The smaller tensor; where it starts is not known."""
        shape = tuple(
            len(self.cut[axis]) if axis in self.cut else n
            for axis, n in enumerate(self.before.shape)
        )
        size = self.before.itemsize
        nbytes = prod(shape) * size if self.cut and size is not None else self.before.nbytes
        return replace(self.before, name=self.name, shape=shape, start=0, nbytes=nbytes)


Changes = Mapping[str, Sequence[Change]]
"""By the name of a shard that keeps any, what becomes of those of its tensors that stay, in order."""


def find_changes(checkpoint: Checkpoint, wanted: Wanted, copied: Sequence[str]) -> Changes:
    """What becomes of each tensor that stays.

    Args:
        checkpoint: that is read.
        wanted: what the plan makes of a model.
        copied: globs of tensors that the model does not have, and that are copied.

    Raises:
        PlanError: the checkpoint lacks tensors, has others, or tensors of other shapes.
    """
    stored = [t for shard in checkpoint.shards for t in shard.tensors]
    source = str(checkpoint.folder)
    own = find_names([t.name for t in stored], wanted.needed, source)
    free = {t.name for t in stored if any(matches(t.name, glob) for glob in copied)}
    unknown = [t.name for t in stored if t.name not in free and not _is_known(own[t.name], wanted)]
    if unknown:
        raise PlanError(
            "the checkpoint has tensors that the model does not have",
            where=source,
            why=f"{len(unknown)} are unknown: {some(unknown)}",
            do="give the checkpoint of the model that the plan was made of; tensors that are to be copied as they are "
            'can be named: copied=("*.inv_freq",), --copied "*.inv_freq"',
        )
    staying = [t for t in stored if t.name in free or _stays(own[t.name], wanted)]
    changes = {t.name: _change(t, own[t.name], wanted, t.name in free) for t in staying}
    wrong = [_wrong(c, own[c.before.name], wanted) for c in changes.values()]
    if wrong := [text for text in wrong if text]:
        raise PlanError(
            "tensors of the checkpoint do not fit the plan",
            where=source,
            why=some(wrong),
            do="give the checkpoint of the model that the plan was made of, before anything was removed",
        )
    found = {
        shard.name: [changes[t.name] for t in shard.tensors if t.name in changes]
        for shard in checkpoint.shards
    }
    return {name: some for name, some in found.items() if some}


def task_of(changes: Changes, fingerprint: str) -> str:
    """A hash of all that is done to a checkpoint, for a plan with this fingerprint."""
    state = sha256(fingerprint.encode())
    for name in sorted(changes):
        for change in changes[name]:
            state.update(f"{name}:{change.before.name}:{change.before.shape}".encode())
            if change.name != change.before.name:
                state.update(f":{change.name}".encode())
            for axis, positions in sorted(change.cut.items()):
                state.update(f":{axis}:".encode() + positions.astype("<i8").tobytes())
            for fold in change.folds:
                state.update(f":{fold.factor!r}:{fold.offset!r}".encode())
                if fold.part is not None:
                    state.update(
                        f":{fold.part[0]}:".encode() + fold.part[1].astype("<i8").tobytes()
                    )
    return state.hexdigest()


def _is_known(name: str | None, wanted: Wanted) -> bool:
    return name is not None and (wanted.shapes is None or name in wanted.shapes)


def _stays(name: str | None, wanted: Wanted) -> bool:
    return wanted.names is None or name is None or name in wanted.names


def _change(tensor: StoredTensor, name: str | None, wanted: Wanted, free: bool) -> Change:
    if name is None or (free and not _is_known(name, wanted)):
        return Change(tensor, tensor.name, {})
    folds = tuple(fold for fold in wanted.folds if fold.name == name)
    after = tensor.name
    if wanted.names is not None:
        after = renamed(tensor.name, name, wanted.names[name])
    return Change(tensor, after, wanted.kept.get(name, {}), folds)


def _wrong(change: Change, name: str | None, wanted: Wanted) -> str:
    """What does not fit, in words; "" where all does."""
    tensor = change.before
    if name is None:
        return ""
    known = (wanted.shapes or {}).get(name, tensor.shape)
    if tensor.shape != known:
        return (
            f"{tensor.name} is {_shown(tensor.shape)} in the file and {_shown(known)} in the model"
        )
    for axis in change.cut:
        length = wanted.lengths[name][axis]
        if axis >= len(tensor.shape) or tensor.shape[axis] != length:
            return (
                f"{tensor.name} is {_shown(tensor.shape)}, and the plan has {length} on axis {axis}"
            )
    if (change.cut and tensor.itemsize is None) or (change.folds and tensor.dtype not in FLOATS):
        return f"{tensor.name} is stored as {tensor.dtype}, which cannot be cut or multiplied"
    after = wanted.after.get(name, change.after.shape)
    if after != change.after.shape:
        made = f"{tensor.name} would be {_shown(change.after.shape)}"
        return f"{made}, and the smaller model has {_shown(after)}"
    return ""


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"
