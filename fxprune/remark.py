"""Remarks: records of what was done, what was not done, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from fxprune.files.document import Entry

Kind = Literal["applied", "missed", "analysis"]


@dataclass(frozen=True)
class Remark:
    """One fact about one place in a program.

    Attributes:
        kind: `"applied"` (something was done), `"missed"` (something could not be done) or
            `"analysis"` (something to know).
        code: a stable identifier; `docs/remarks.md` lists them all.
        where: the place: a node with its module and source line, a group or a module.
        what: the fact.
        why: the reason, if there is one to give.
        do: what the reader can do about it, if anything.
    """

    kind: Kind
    code: str
    where: str
    what: str
    why: str = ""
    do: str = ""

    def __str__(self) -> str:
        lines = [f"{self.kind:<8} {self.code}  {self.where}", f"  {self.what}"]
        lines += [f"  {k}: {v}" for k, v in (("why", self.why), ("do", self.do)) if v]
        return "\n".join(lines)

    def to_json(self) -> dict[str, str]:
        """Returns the fields as a JSON object."""
        return asdict(self)


def read_remark(entry: Entry) -> Remark:
    """The remark of a JSON object of `to_json`."""
    facts = entry.record("kind", "code", "where", "what", optional=("why", "do"))
    facts["kind"].text(get_args(Kind))
    return Remark(**{name: e.text() for name, e in facts.items()})  # type: ignore[arg-type]
