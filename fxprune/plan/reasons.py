"""Why units were left: as lines of an error where none goes, as remarks where others do."""

from __future__ import annotations

from fxprune.analysis.axes import Axes
from fxprune.analysis.explain import explain_frozen
from fxprune.plan.choose import Candidates, Target
from fxprune.remark import Remark

_MOST = 20  # operators or axes in one message; an explanation follows couplings through the whole network


def reasons(axes: Axes, candidates: Candidates, target: Target) -> list[str]:
    """One line for each group that no unit is removed of, then those of `frozen_reasons`."""
    lines = [f"{name}: {refusal.why}" for name, refusal in candidates.refused.items()]
    lines += [
        f"{g.name}: {len(g)} units in steps of {step}, keep={target.keep} asks for less than a step"
        for g, step in zip(candidates.groups, candidates.steps, strict=True)
    ]
    return lines + frozen_reasons(axes)


def frozen_reasons(axes: Axes) -> list[str]:
    """One line for each operator without a rule, and one for each reason why first axes of weights are frozen."""
    unknown = [f"{r.where}: {r.why}" for r in axes.remarks if r.code == "solve.unknown-op"]
    frozen = [
        name
        for name, labels in axes.params.items()
        if len(labels) > 1 and not any(c.any() for c in labels[0].columns)
    ]
    alike: dict[str, list[str]] = {}
    for name in frozen[:_MOST]:
        why = explain_frozen(axes, name, 0).splitlines()[-1].strip()
        alike.setdefault(why, []).append(f"{name}:0")
    known = {why: names for why, names in alike.items() if not why.endswith(tuple(unknown))}
    return [
        *unknown[:_MOST],
        *_rest(unknown, "operators without a rule"),
        *(f"{', '.join(names)}: {why}" for why, names in known.items()),
        *_rest(frozen, "weights"),
    ]


def _rest(found: list[str], what: str) -> list[str]:
    return [f"{len(found) - _MOST} more {what}"] if len(found) > _MOST else []


def refusals(candidates: Candidates) -> list[Remark]:
    """One remark for each group that may not lose any."""
    return [
        Remark("missed", "choose.left", name, "no unit was removed", refusal.why)
        for name, refusal in candidates.refused.items()
    ]
