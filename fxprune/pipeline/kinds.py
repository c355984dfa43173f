"""What a pass is: a frozen dataclass whose fields are its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, Generic, Literal, TypeVar

from fxprune.graph.program import Program
from fxprune.pipeline.context import Context
from fxprune.pipeline.removal import Branch, Unit

T = TypeVar("T")
Keeps = Literal["function", "silenced", "nothing"]


@dataclass(frozen=True)
class Pass(ABC):
    """Something that a pipeline runs.

    Attributes:
        name: how a pipeline's text calls it, `fold-batchnorm`.
        keeps: what stays the same. function: every output, exactly; silenced: the outputs of the program
            with the removed units silenced; nothing: it changes the function on purpose.
        shrinks: whether it removes the units that decisions left.
        preserves: names of analyses whose results still hold for the program that it returns.
    """

    name: ClassVar[str]
    keeps: ClassVar[Keeps] = "function"
    shrinks: ClassVar[bool] = False
    preserves: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Analysis(Pass, Generic[T]):
    """Works something out about a program; the context remembers it for as long as the program lives."""

    @abstractmethod
    def analyse(self, program: Program, ctx: Context) -> T:
        """What there is to know."""


@dataclass(frozen=True)
class Decision(Pass):
    """Says which units and branches go; a later `shrink` removes them."""

    @abstractmethod
    def decide(self, program: Program, ctx: Context) -> Iterable[Unit | Branch]:
        """Units of `fp.groups(program)`, and branches."""


@dataclass(frozen=True)
class PlainRewrite(Pass):
    """Makes another program of a program; `fp.Rewrite` is this, and a function too."""

    @abstractmethod
    def rewrite(self, program: Program, ctx: Context) -> Program:
        """The program rewritten; `program` itself where there is nothing to do. Never changes `program`."""


def option_fields(owner: type) -> list[Field[Any]]:
    """The fields of a pass that text can give; one that is left out of comparisons is no option."""
    return [f for f in fields(owner) if f.compare and f.init]


def options_of(one: Pass) -> dict[str, Any]:
    """The options of a pass that differ from their defaults, by name."""
    found = {}
    for f in option_fields(type(one)):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if (value := getattr(one, f.name)) != default:
            found[f.name] = value
    return found
