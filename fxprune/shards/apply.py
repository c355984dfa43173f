"""From a checkpoint and what is removed to a smaller one: what is there is checked, then written, or gone on with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.errors import LoadError, OptionError
from fxprune.files.staging import PREFIX, alone, digest_of, parents_of
from fxprune.graph.program import Program
from fxprune.io.directory import told
from fxprune.plan import Plan
from fxprune.process.state import plain_modes
from fxprune.remark import Remark
from fxprune.shards.changes import Changes, find_changes, task_of
from fxprune.shards.checkpoint import CONFIG, JOURNAL, Checkpoint, read_checkpoint
from fxprune.shards.config import new_config, read_config
from fxprune.shards.index import new_index
from fxprune.shards.journal import Journal, read_journal, source_of
from fxprune.shards.result import AppliedShards
from fxprune.shards.wanted import wanted_of
from fxprune.shards.write import write_all
from fxprune.write_back.layers import Rewritten


@plain_modes()
def apply_to_shards(
    plan: Plan | Rewritten,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    program: Program | None = None,
    config: Mapping[str, Any] | None = None,
    copied: Sequence[str] = (),
    force: bool = False,
) -> AppliedShards:
    """Writes the weights that a plan or deleted layers leave of a checkpoint, without a whole tensor in memory.

    Shards keep their names, their metadata and the order of their tensors. A run that was stopped goes on where it
    was: `fxprune-shards.json` in the folder has the SHA-256 of each finished shard, and what was read. At the end all
    files are opened again, and their shapes and hashes compared. The source is only read.

    Args:
        plan: for the model whose weights the source has, of whatever device and type; or the result of `fp.run` or
            `fp.prune_layers` (`outcome.result`) that deleted layers of it, with `model`: tensors of layers that
            stay then have the names of the shorter class, and shards of which nothing stays are not written.
        source: a folder with `*.safetensors.index.json` and its shards, with `model.safetensors`, or with other
            `*.safetensors` files, as `save_pretrained` of transformers writes it. Names may differ from those of
            the plan by a prefix such as `model.`. Other files are copied, but for weights in other formats.
        target: a new or empty folder, or one of an earlier run.
        model: the model that the plan was made of, on the meta device or with any numbers. The result is then the
            weights of `fp.write_back(model, plan)`: norms take the factors of averages over removed positions,
            config.json gets the new numbers, and every tensor of the checkpoint is compared with the model's.
        program: the captured program, for a plan that was read from a file. Without `model`, the result is the
            weights of `fp.shrink(program, plan)`, whose graph has the factors itself.
        config: new values of fields of config.json, such as {"intermediate_size": 768}.
        copied: globs of tensors that are copied although the model does not have them.
        force: replace what an earlier run with another plan or source has written to the target.

    Raises:
        PlanError: the plan is for another model, the checkpoint lacks tensors, has others or other shapes, or the plan
            needs more than to select positions and nothing says how.
        LoadError: the checkpoint is damaged or quantised, or the target cannot be written. Finished shards stay.
        OptionError: the target has other files, or belongs to another plan or source.
    """
    if not isinstance(plan, Plan | Rewritten):
        raise OptionError(
            f"a plan is needed, not a {type(plan).__name__}",
            do="plan = fp.plan(program, ...), outcome.plan, or fp.Plan.load(file); of fp.prune_layers, outcome.result",
        )
    source, target = Path(source), Path(target)
    _check_apart(source, target)
    checkpoint = read_checkpoint(source)
    wanted = wanted_of(plan, model, program)
    changes = find_changes(checkpoint, wanted, tuple(copied))
    fingerprint = plan.fingerprint if isinstance(plan, Plan) else ""
    texts = _texts(checkpoint, changes, wanted.config or {}, config or {})
    journal = Journal(
        task_of(changes, fingerprint),
        fingerprint,
        source_of(checkpoint),
        (*checkpoint.others, *([checkpoint.index] if checkpoint.index else [])),
    )
    with told(target, "write to"), parents_of(target / JOURNAL), alone(target):
        resumed = _resumed(target, journal, force=force)
        with _undone(target, journal):
            write_all(checkpoint, changes, texts, target, journal)
    everything = [c for some in changes.values() for c in some]
    before = [t for shard in checkpoint.shards for t in shard.tensors]
    return AppliedShards(
        target,
        dict(sorted(journal.shards.items())),
        resumed,
        sum(bool(c.cut) for c in everything),
        len(before) - len(everything),
        sum(t.nbytes for t in before),
        sum(c.after.nbytes for c in everything),
        wanted.remarks
        + _remarks(checkpoint, says_sizes=model is not None or bool(config) or not wanted.kept),
    )


def _check_apart(source: Path, target: Path) -> None:
    with told(source, "read"), told(target, "write to"):
        inside = target.resolve()
        same = source.resolve() in (inside, *inside.parents)
    if same:
        raise OptionError(
            "the smaller checkpoint would be written into the one that is read",
            where=str(target),
            do="give another folder",
        )


def _texts(
    checkpoint: Checkpoint, changes: Changes, numbers: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, str]:
    """The files that are written anew, by name: the config, and the index last."""
    found = {}
    old = read_config(checkpoint.folder / CONFIG)
    if given and not old:
        raise OptionError("the checkpoint has no config.json", where="config=", do="leave it out")
    if old and (numbers or given):
        found[CONFIG] = new_config(old, numbers, given)
    if checkpoint.index:
        found[checkpoint.index] = new_index(checkpoint, changes)
    return found


def _resumed(target: Path, journal: Journal, *, force: bool) -> tuple[str, ...]:
    """Takes over the shards that an earlier run has finished, or clears the folder of another; says which.

    Raises:
        OptionError: the folder holds something else.
    """
    there = [p.name for p in target.iterdir() if not p.name.startswith(PREFIX)]
    try:
        earlier = read_journal(target)
        why = earlier.same_work(journal) if earlier else ""
    except LoadError as error:
        earlier, why = None, f"{error.what}: {error.why}"
    if earlier is None and there:
        raise OptionError(
            f"{target} has files already",
            where=str(target),
            why=why or f"there is no {JOURNAL} that says what fxprune wrote",
            do="give a new or an empty folder",
        )
    if earlier is None:
        return ()
    if why and not force:
        raise OptionError(
            f"{target} has the result of other work",
            where=str(target / JOURNAL),
            why=why,
            do="give another folder, or replace what is there: force=True, --force",
        )
    if why:
        _clear(target, earlier)
        return ()
    for name, digest in earlier.shards.items():
        path = target / name
        if name in journal.source and path.is_file() and digest_of(path) == digest:
            journal.shards[name] = digest
    return tuple(sorted(journal.shards))


def _clear(target: Path, earlier: Journal) -> None:
    """Removes what another run has written; its journal last, so that it can be cleared again."""
    for name in (*reversed(earlier.files), *earlier.source, JOURNAL):
        (target / name).unlink(missing_ok=True)


@contextmanager
def _undone(target: Path, journal: Journal) -> Iterator[None]:
    """Removes the journal after an error before which no shard was finished."""
    try:
        yield
    except BaseException:
        if not journal.shards:
            (target / JOURNAL).unlink(missing_ok=True)
        raise


def _remarks(checkpoint: Checkpoint, *, says_sizes: bool) -> tuple[Remark, ...]:
    found = [
        Remark(
            "analysis",
            "shards.not-copied",
            name,
            "it was not copied",
            "folders, and weights that the checkpoint does not consist of, are left out",
        )
        for name in checkpoint.left
    ]
    if CONFIG in checkpoint.others and not says_sizes:
        what = (
            "it was copied as it is: if it repeats sizes that have changed, they are the old ones"
        )
        do = (
            'pass the model (model=, --model) or numbers (config={"intermediate_size": 768}, --set)'
        )
        found.append(Remark("missed", "shards.config-kept", CONFIG, what, "", do))
    return tuple(found)
