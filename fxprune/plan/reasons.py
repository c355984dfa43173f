"""Why units were left: as lines of an error where none goes, as remarks where others do."""

from __future__ import annotations

from fxprune.analysis.axes import Axes
from fxprune.analysis.explain import explain_axis
from fxprune.plan.choose import Candidates, Target
from fxprune.remark import Remark


def reasons(axes: Axes, candidates: Candidates, target: Target) -> list[str]:
    """One line for each group and each frozen axis that no unit is removed of."""
    lines = [f"{name}: {why}" for name, why in candidates.refused.items()]
    lines += [
        f"{g.name}: {len(g)} units in steps of {step}, keep={target.keep} asks for less than a step"
        for g, step in zip(candidates.groups, candidates.steps, strict=True)
    ]
    for name, labels in axes.params.items():
        for i, label in enumerate(labels[:1] if len(labels) > 1 else ()):
            if not any(c.any() for c in label.columns):
                lines.append(
                    f"{name}:{i}: {explain_axis(axes, name, i).frozen.splitlines()[-1].strip()}"
                )
    return lines


def refusals(candidates: Candidates) -> list[Remark]:
    """One remark for each group that may not lose any."""
    return [
        Remark("missed", "choose.left", name, "no unit was removed", why)
        for name, why in candidates.refused.items()
    ]
