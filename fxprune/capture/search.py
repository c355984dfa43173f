"""Finds which axes of a network's inputs are free: a second run with other lengths, and more where it fails.

All axes get another length at once. What goes wrong then says what to do: two lengths that must be equal become one
size, a comparison becomes a condition that the next lengths satisfy, and an axis whose change alone makes the
network fail is fixed, with the reason.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fxprune.capture.formula import Condition, DifferentError, Formula, Space, value_at
from fxprune.capture.network import Network, Sizes
from fxprune.capture.record import Call, Record, Ref, UnsupportedError
from fxprune.capture.second import EnoughError, Merged, SecondRun

# Primes: no remainder by a smaller number is the same at both lengths. So far apart that what remains of two lengths
# after many strides still differs.
_FURTHER = (101, 211, 331, 457, 577, 701, 829, 953, 1087, 1213)
_NEAR = 100
_ALIAS = torch.ops.aten.alias.default
_MOST_TURNS = 2
_MOST_RUNS = 60
_POINTS = 9
_VALID = 4  # points at which the conditions hold, without the example's
_FARTHEST = 2048

Axis = tuple[int, int]  # the number of an input, and of its axis


@dataclass
class FreeSize:
    """A length that some axes of the inputs have in common.

    Attributes:
        name: what conditions call it, such as `x.shape[1]`.
        axes: the axes.
        example: its value in the example.
        least: the smallest value that it may have.
        most: the largest; None where there is no limit.
        required: whether it is an error if it cannot be free.
    """

    name: str
    axes: list[Axis]
    example: int
    least: int = 1
    most: int | None = None
    required: bool = False


@dataclass
class Found:
    """What two runs of a network have in common.

    Attributes:
        sizes: the free sizes.
        conditions: under which the calls are those of the example.
        fixed: why the other axes are not free.
        space: the formulas.
        calls: what the calls have in common.
        second: the second run.
    """

    sizes: list[FreeSize]
    conditions: list[Condition]
    fixed: dict[Axis, str]
    space: Space
    calls: list[Merged]
    second: Record
    formulas: dict[Axis, Formula] = field(default_factory=dict)


class _Search:
    def __init__(
        self, network: Network, first: Record, sizes: Sequence[FreeSize], names: Sequence[str]
    ) -> None:
        self.network, self.first, self.sizes = network, first, list(sizes)
        self.names = names
        self.conditions: dict[str, Condition] = {}
        self.fixed: dict[Axis, str] = {}
        self.autograd = False
        self.turn = 0  # how often other lengths were wanted
        self.formulas: dict[str, Formula] = {}
        self.runs = 0
        self.offset = len(network.state)
        self.alias = {s.name: s.name for s in sizes}

    def find(self) -> Found:
        while self.sizes:
            points = self.points()
            found = None if points is None else self.attempt(points)
            if found is not None:
                return found
        raise UnsupportedError("no axis of the inputs is free")

    def attempt(self, points: Sequence[Mapping[str, int]]) -> Found | None:
        """Runs the network at the second point; None where that says what to try next."""
        space = Space(points, patient=self.turn < _MOST_TURNS)
        follow: list[SecondRun] = []
        try:
            second = self.run(space, points[1], self.sizes, follow)
            self.compare_ends(second)
        except UnsupportedError:
            raise
        except Exception as error:
            if space.violated:
                self.require_all(space)
            elif isinstance(error, DifferentError):
                self.differs(error, follow[0] if follow else None)
            else:
                self.fails(error, follow[0] if follow else None)
            return None
        finally:
            space.close()
        if space.violated:
            self.require_all(space)
            return None
        return self.accepted(self.found(space, follow[0], second), points)

    def accepted(self, found: Found, points: Sequence[Mapping[str, int]]) -> Found | None:
        """What was found, if hardly anything speaks against it; else None, and sizes are fixed."""
        if narrow := [s for s in self.sizes if not s.required and self.is_narrow(s, found)]:
            for size in narrow:
                self.fix(size, self.why_narrow(size, found))
            return None
        if found.space.lost and not self.holds_elsewhere(found, points[2 : _VALID + 1]):
            return None
        self.admit_excluded(found, points[1])
        return found

    # Lengths to try

    def points(self) -> list[Mapping[str, int]] | None:
        """Lengths for all sizes that satisfy the conditions, several times; None once a size had to be fixed."""
        example = self.named({s.name: s.example for s in self.sizes})
        second = self.solve(self.turn)
        if isinstance(second, FreeSize):
            self.fix(second, self.why_not(second))
            return None
        points: list[Mapping[str, int]] = [example, second]
        for k in range(1, _VALID):
            more = self.solve(self.turn + k)
            points.append(second if isinstance(more, FreeSize) else more)
        # Those of no meaning to the network tell formulas apart.
        points += (self.far(k) for k in range(_POINTS - len(points)))
        return points

    def far(self, k: int) -> Mapping[str, int]:
        return self.named(
            {
                s.name: s.example + _FURTHER[(3 * i + k) % len(_FURTHER)] * (k + 1)
                for i, s in enumerate(self.sizes)
            }
        )

    def named(self, values: Mapping[str, int]) -> dict[str, int]:
        """The values under the names of sizes that became one, too."""
        fixed = {name: self.examples[name] for name in self.alias if self.root(name) not in values}
        return {**{n: values[self.root(n)] for n in self.alias if n not in fixed}, **fixed}

    @property
    def examples(self) -> dict[str, int]:
        shapes = [getattr(x, "shape", ()) for x in self.network.inputs]
        return {
            f"{self.names[i]}.shape[{j}]": n for i, s in enumerate(shapes) for j, n in enumerate(s)
        }

    def root(self, name: str) -> str:
        while self.alias[name] != name:
            name = self.alias[name]
        return name

    def solve(self, turn: int) -> dict[str, int] | FreeSize:
        """A length for each size, or the size for which there is none."""
        chosen: dict[str, int] = {}
        values = self.named({s.name: s.example for s in self.sizes})
        known = set(values) - {n for s in self.sizes for n in self.alias if self.root(n) == s.name}
        for i, size in enumerate(self.sizes):
            names = {n for n in self.alias if self.root(n) == size.name}
            known |= names
            conditions = [
                c for c in self.conditions.values() if c.symbols & names and c.symbols <= known
            ]
            taken = {chosen[s.name] for s in self.sizes[:i] if s.example == size.example}
            second = turn == self.turn
            tied = bool(conditions)
            for n in self.candidates(size, i + turn, taken, tied=tied, second=second):
                values.update(dict.fromkeys(names, n))
                if all(c.holds_at(values) for c in conditions):
                    break
            else:
                return size
            chosen[size.name] = n
        return self.named(chosen)

    @staticmethod
    def candidates(
        size: FreeSize, turn: int, taken: set[int], *, tied: bool, second: bool
    ) -> Iterator[int]:
        one = size.example
        steps = len(_FURTHER)
        # What has to be divisible is so in multiples; further lengths show which other ones satisfy the conditions.
        found = [one * k for k in (2, 3, 4)] if tied and second else []
        found += [one + _FURTHER[(turn + k) % steps] for k in range(steps)]
        found += range(one + _NEAR * (turn % steps + 1), one, -1)
        found += range(one + _NEAR, one + _FARTHEST)
        found += [one * k for k in range(2, 9)]
        found += range(one - 1, 0, -1)
        found = [n for n in found if n not in taken] + (sorted(taken) if tied else [])
        most = size.most or max(found)
        return (n for n in found if n != one and size.least <= n <= most)

    def why_not(self, size: FreeSize) -> str:
        names = {n for n in self.alias if self.root(n) == size.name}
        last = [c for c in self.conditions.values() if c.symbols & names]
        if not last:
            return "its bounds allow no other length"
        return f"the network requires {last[-1]}" + _at(last[-1])

    # Runs

    def run(
        self,
        space: Space,
        point: Mapping[str, int],
        sizes: Sequence[FreeSize],
        follow: list[SecondRun],
        last: int | None = None,
    ) -> Record:
        """Runs the network at a point; other sizes are those of the example."""
        self.runs += 1
        if self.runs > _MOST_RUNS:
            raise UnsupportedError("too many runs would be needed")
        free: dict[int, dict[int, Formula]] = {}
        lengths: dict[int, dict[int, int]] = {}
        for size in sizes:
            formula = space.symbol(size.name, self.expression(size))
            self.formulas[size.name] = formula
            for i, axis in size.axes:
                free.setdefault(self.offset + i, {})[axis] = formula
                lengths.setdefault(i, {})[axis] = point[size.name]

        def following(sources: Sequence[Any]) -> SecondRun:
            follow.append(SecondRun(space, self.first, free, sources, last))
            return follow[0]

        return self.network.run(lengths, autograd=self.autograd, follow=following)

    def expression(self, size: FreeSize) -> Any:
        i, axis = size.axes[0]
        return self.network.free.symbol(self.names[i], axis, size.example)

    def compare_ends(self, second: Record) -> None:
        first = self.first
        if not first.has_constants_of(second):
            raise DifferentError("the constants differ at other sizes")
        if len(first.calls) != len(second.calls):
            raise DifferentError("the network calls fewer operators at other sizes")
        if (first.outputs, first.out_spec) != (second.outputs, second.out_spec):
            raise DifferentError("the outputs differ at other sizes")

    def fails_with(self, sizes: Sequence[FreeSize], last: int | None) -> str:
        """Why the network fails, up to a call, where the given sizes alone change, to one length; "" if it does not."""
        point = self.solve(self.turn)
        if isinstance(point, FreeSize):
            return "no other length satisfies what the network requires"
        examples = {s.name: s.example for s in self.sizes}
        example = self.named(examples)
        for n in (point[s.name] for s in sizes):
            alone = self.named({**examples, **dict.fromkeys((s.name for s in sizes), n)})
            if all(c.holds_at(alone) for c in self.conditions.values()):
                break
        space = Space([example, alone, *[alone] * (_POINTS - 2)])
        try:
            second = self.run(
                space,
                alone,
                [FreeSize(sizes[0].name, [a for s in sizes for a in s.axes], sizes[0].example)],
                [],
                last,
            )
            if last is None:
                self.compare_ends(second)
        except EnoughError:
            pass
        except UnsupportedError:
            raise
        except Exception as error:
            return _violation(space) or _reason(error)
        finally:
            space.close()
        return _violation(space)

    # What to do about a run that differs

    def require_all(self, space: Space) -> None:
        for condition in space.violated.values():
            self.require(condition)

    def differs(self, error: DifferentError, follow: SecondRun | None) -> None:
        if error.by_chance and self.turn < _MOST_TURNS:
            self.turn += 1
        elif error.of_kernels and not self.autograd:
            self.autograd = True  # kernels of attention lay out otherwise with gradients
        else:
            self.blame(error, follow, error.symbols)

    def fails(self, error: Exception, follow: SecondRun | None) -> None:
        missed = follow.missed if follow is not None else ()
        kept = [c for c in missed if str(c) not in self.conditions and self.is_needed(c, follow)]
        blamed = follow.blamed if follow is not None else frozenset()
        if kept and not self.tie_blamed(kept, follow, blamed):
            for condition in kept:
                self.require(condition)
        elif not kept:
            self.blame(error, follow, blamed)

    def tie_blamed(
        self, kept: Sequence[Condition], follow: SecondRun | None, symbols: frozenset[str]
    ) -> bool:
        """Whether two sizes became one where an equality with a number would have fixed one of them."""
        numbers = [c for c in kept if not isinstance(c.two, Formula)]
        names = {self.root(n) for c in numbers for n in c.symbols}
        others = {self.root(n) for n in symbols}
        sizes = [s for s in self.sizes if s.name in names]
        return self.tied(sizes, [s for s in self.sizes if s.name in others], follow)

    def tied(
        self, sizes: Sequence[FreeSize], others: Sequence[FreeSize], follow: SecondRun | None
    ) -> bool:
        """Makes one size of two that were as long in the example, if the network does not fail with that."""
        last = len(follow.merged) if follow is not None else None
        for one in sizes:
            inputs = {i for i, _ in one.axes}
            same = [s for s in others if s is not one and s.example == one.example]
            same.sort(
                key=lambda s: (
                    not inputs.isdisjoint(i for i, _ in s.axes),
                    s.axes[0][1] != one.axes[0][1],
                )
            )
            for two in same:
                if not self.fails_with([one, two], last):
                    self.tie(one.name, two.name)
                    return True
        return False

    def is_needed(self, condition: Condition, follow: SecondRun | None) -> bool:
        """Whether an equality, which would explain a failure, is what the network needs.

        Between lengths of one size it is; else one of the sizes must fail alone.
        """
        if len(condition.symbols) == 1 and isinstance(condition.two, Formula):
            return True
        last = len(follow.merged) if follow is not None else None
        names = {self.root(n) for n in condition.symbols}
        return any(self.fails_with([s], last) for s in self.sizes if s.name in names)

    def require(self, condition: Condition) -> None:
        """Adds a condition; two sizes that must be equal become one."""
        one, two = condition.one, condition.two
        plain = all(isinstance(x, Formula) and x.name for x in (one, two))
        if plain and self.root(one.name) == self.root(two.name):
            return
        if plain and condition.relation is operator.eq and one.name != two.name:
            self.tie(self.root(one.name), self.root(two.name))
        elif str(condition) in self.conditions:
            raise UnsupportedError(f"a condition is not satisfied though it should be: {condition}")
        else:
            self.conditions[str(condition)] = condition

    def tie(self, one: str, two: str) -> None:
        a, b = (next(s for s in self.sizes if s.name == name) for name in (one, two))
        if self.sizes.index(b) < self.sizes.index(a):
            a, b = b, a
        self.alias[b.name] = a.name
        a.axes += b.axes
        a.least, a.required = max(a.least, b.least), a.required or b.required
        a.most = min((n for n in (a.most, b.most) if n is not None), default=None)
        self.sizes.remove(b)

    def blame(self, error: Exception, follow: SecondRun | None, symbols: frozenset[str]) -> None:
        """Fixes the sizes that are to blame."""
        names = {self.root(n) for n in symbols}
        suspects = [s for s in self.sizes if s.name in names] or list(self.sizes)
        if len(suspects) > 1:
            last = len(follow.merged) if follow is not None else None
            alone = [(s, self.fails_with([s], last)) for s in suspects]
            guilty = [(s, why) for s, why in alone if why]
            if self.tied([s for s, _ in guilty], [s for s, _ in guilty], follow):
                return
            for size, why in guilty or [(suspects[-1], _reason(error))]:
                self.fix(size, why)
        else:
            self.fix(suspects[0], _reason(error))

    def fix(self, size: FreeSize, why: str) -> None:
        """Gives up a size."""
        self.sizes.remove(size)
        self.fixed.update(dict.fromkeys(size.axes, why))

    # What was found

    def found(self, space: Space, follow: SecondRun, second: Record) -> Found:
        conditions = {str(c): c for c in space.conditions.values()}
        live = {n for n in self.alias if self.root(n) in {s.name for s in self.sizes}}
        kept = [c for c in self.conditions.values() if c.symbols and c.symbols <= live]
        bounds = [
            Condition(relation, self.formulas[s.name], n)
            for s in self.sizes
            for relation, n in ((operator.ge, s.least), (operator.le, s.most))
            if n is not None and (relation, n) != (operator.ge, 1)
        ]
        every = {str(c): c for c in (*kept, *bounds)} | conditions
        formulas = {axis: self.formulas[s.name] for s in self.sizes for axis in s.axes}
        return Found(
            self.sizes, [*every.values()], self.fixed, space, follow.merged, second, formulas
        )

    def is_narrow(self, size: FreeSize, found: Found) -> bool:
        """Whether hardly another length holds, such as 225 in place of 224, which is cut off to as many windows."""
        names = {n for n in self.alias if self.root(n) == size.name}
        conditions = [c for c in found.conditions if c.symbols & names]
        if not conditions:
            return False
        one, values = size.example, self.named({s.name: s.example for s in self.sizes})
        further = [*range(2 * one, 5 * one, one), *range(one - one // 4 - 1, 0, -1)]
        further += range(one + one // 4 + 1, 4 * one)
        for n in further:
            values.update(dict.fromkeys(names, n))
            if all(c.holds_at(values) for c in conditions):
                return False
        return True

    def why_narrow(self, size: FreeSize, found: Found) -> str:
        names = {n for n in self.alias if self.root(n) == size.name}
        condition = [c for c in found.conditions if c.symbols & names][-1]
        return f"the network requires {condition}" + _at(condition)

    def holds_elsewhere(self, found: Found, points: Sequence[Mapping[str, int]]) -> bool:
        """Whether further runs have the same calls; plain numbers were made of sizes, whose use is not seen."""
        tried = 0
        for point in points:
            if tried == 2 or not all(c.holds_at(point) for c in found.conditions):
                continue
            tried += 1
            if why := self.differs_at(found, point):
                lost = [s for s in self.sizes if s.name in found.space.lost]
                for size in lost or list(self.sizes):
                    self.fix(size, why)
                return False
        return True

    def admit_excluded(self, found: Found, point: Mapping[str, int]) -> None:
        """Drops conditions that exclude a single length, most often 1, at which the network calls the same."""
        excluded = {c: n for c in found.conditions if (n := _excluded(c)) is not None}
        by_name = {self.root(c.one.name): n for c, n in excluded.items()}
        trials = [by_name] if len(by_name) < 2 else [by_name, *({k: n} for k, n in by_name.items())]
        for values in trials:
            at = self.named({**{s.name: point[s.name] for s in self.sizes}, **values})
            covered = {c for c, n in excluded.items() if at[c.one.name] == n}
            others = [c for c in found.conditions if c not in covered]
            if covered and all(c.holds_at(at) for c in others) and not self.differs_at(found, at):
                found.conditions = others
                excluded = {c: n for c, n in excluded.items() if c not in covered}

    def differs_at(self, found: Found, point: Mapping[str, int]) -> str:
        lengths: dict[int, dict[int, int]] = {}
        for size in self.sizes:
            for i, axis in size.axes:
                lengths.setdefault(i, {})[axis] = point[size.name]
        self.runs += 1
        try:
            record = self.network.run(lengths, autograd=self.autograd)
        except UnsupportedError:
            raise
        except Exception as error:
            return _reason(error)
        return _Compare(self.first, found, record, point).difference()


class _Compare:
    """Compares a run at one point with what was found.

    An `expand` to the shape that a tensor has, or a slice of whole axes, which torch or a network may leave out at a
    length of 1, is no difference.
    """

    def __init__(
        self, first: Record, found: Found, record: Record, point: Mapping[str, int]
    ) -> None:
        self.first, self.found, self.record, self.point = first, found, record, point
        self.refs: dict[Ref, Ref] = {}

    def difference(self) -> str:
        """What is different, in words; "" where nothing is."""
        calls = iter(self.record.calls)
        number, call = 0, next(calls, None)
        for i, merged in enumerate(self.found.calls):
            if call is not None and merged.op is call.op and self.same_arguments(merged, call):
                for k in range(len(call.made)):
                    item = k if call.container else None
                    self.refs[Ref(i, item)] = Ref(number, item)
                number, call = number + 1, next(calls, None)
            elif (same := self.unchanged(merged)) is not None:
                self.refs[Ref(i)] = same
                if call is not None and (call.op, call.args[:1]) == (_ALIAS, (same,)):
                    self.refs[Ref(i)] = Ref(number)
                    number, call = number + 1, next(calls, None)
            elif call is None:
                return "the network calls fewer operators"
            elif merged.op is not call.op:
                return f"the network calls {call.op} in place of {merged.op}"
            else:
                return f"{call.op} is given a number that follows otherwise from the sizes than in the first two runs"
        outputs = [r if r is None else self.refs.get(r, r) for r in self.first.outputs]
        if call is not None or (outputs, self.first.out_spec) != (
            self.record.outputs,
            self.record.out_spec,
        ):
            return "the outputs differ"
        return "" if self.first.has_constants_of(self.record) else "the constants differ"

    def same_arguments(self, merged: Merged, call: Call) -> bool:
        return self.same((merged.args, merged.kwargs), (call.args, call.kwargs))

    def same(self, merged: Any, given: Any) -> bool:
        if isinstance(merged, Ref):
            return bool(self.refs.get(merged, merged) == given)
        if isinstance(merged, dict):
            return all(self.same(v, given[k]) for k, v in merged.items())
        if isinstance(merged, list | tuple):
            return (
                isinstance(given, list | tuple)
                and len(merged) == len(given)
                and all(self.same(a, b) for a, b in zip(merged, given, strict=True))
            )
        return bool(value_at(merged, self.point) == given)

    def unchanged(self, merged: Merged) -> Ref | None:
        """What an operator returns as it is at these sizes; None where it may change something."""
        if merged.op not in (torch.ops.aten.expand.default, torch.ops.aten.slice.Tensor):
            return None
        source = merged.args[0]
        known = self.refs.get(source, source)
        if known.call < 0:
            return None
        had = self.record.calls[known.call].made[known.output or 0][0]
        made = tuple(value_at(n, self.point) for n in merged.made[0][0])
        return known if had == made else None


def _excluded(condition: Condition) -> int | None:
    """The only length that a condition excludes; None for any other condition."""
    relation, one, two = condition[:3]
    if not (isinstance(one, Formula) and one.name and isinstance(two, int)):
        return None
    if relation is operator.ne and two > 0:
        return two
    return 1 if (relation, two) in ((operator.gt, 1), (operator.ge, 2)) else None


def _at(condition: Condition) -> str:
    return f", at {condition.line}" if condition.line else ""


def _violation(space: Space) -> str:
    for condition in space.violated.values():
        return f"the network requires {condition}" + _at(condition)
    return ""


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (
        f"{type(error).__name__}: {text[0][:200] if text else ''}"
        if not isinstance(error, DifferentError)
        else error.reason
    )


def find_free(
    network: Network, first: Record, sizes: Sequence[FreeSize], names: Sequence[str]
) -> Found:
    """Runs a network until its free axes are known.

    Args:
        network: the network.
        first: its run on the example.
        sizes: what may be free.
        names: the names of its inputs.

    Raises:
        UnsupportedError: no axis is free, or this approach does not cover the network.
    """
    return _Search(network, first, sizes, names).find()


__all__ = ["Axis", "Found", "FreeSize", "Sizes", "find_free"]
