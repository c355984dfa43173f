"""Copies the objects that a model reaches."""

from __future__ import annotations

import copy
import functools
import gc
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from operator import is_, itemgetter
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import fx, nn

from fxprune.stand_in.objects import MISSING, attributes_of, get_slot, slots_of

T = TypeVar("T")

_ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range, slice, object, property}
    | {types.ModuleType, types.CodeType, types.EllipsisType, types.NotImplementedType}
    | {torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.finfo}
    | {torch._ops.OpOverload, torch._ops.OpOverloadPacket, fx.Graph}
)
_CONTAINERS: dict[Any, type] = {k: k for k in (object, dict, list, set)}
_BY_IDENTITY: Any = object.__hash__
_REDUCTIONS: set[Any] = {k.__reduce__ for k in (object, OrderedDict, set)}
_REDUCE_EX: Any = object.__reduce_ex__


class _Kind(NamedTuple):
    """How objects of a class are copied.

    Attributes:
        base: the built-in class that lays them out; None where only the class itself can copy them.
        made: the class of the copies.
        slots: where they keep attributes outside `__dict__`.
    """

    base: Any
    made: type
    slots: tuple[Any, ...]


class Copier:
    """One copy of an object graph: shared objects stay shared, cycles stay cycles.

    Objects are laid out first and filled later, from a list, so that neither depth nor cycles matter. No
    code of the user's runs for it, except `__deepcopy__` and `__reduce__` where a class has its own.

    Args:
        sharing: ids of tensors whose copies share their data. Others have copies of it; those of one memory
            share it again.

    Attributes:
        shared: what could not be copied; the copy holds the original.
        kinds: classes of the objects.
        functions: the functions among them.
        copies: of an object of this id.
    """

    def __init__(self, sharing: Container[int] = ()) -> None:
        self.shared: list[Any] = []
        self.kinds: set[type] = set()
        self.functions: list[types.FunctionType] = []
        self._sharing = sharing
        self.copies: dict[int, Any] = {}
        self._alive: list[Any] = []  # so that no id is given twice
        self._unfilled: list[Callable[[], None]] = []
        self._hashed: list[Callable[[], None]] = []  # to be filled when their keys are
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._plans: dict[type, _Kind] = {}

    def copy_all(self, x: T) -> T:
        """The copy of an object and of all that it reaches."""
        new: T = self._copy(x)
        self._fill()
        while self._hashed:
            self._hashed.pop(0)()
            self._fill()
        return new

    def _fill(self, left: int = 0) -> None:
        while len(self._unfilled) > left:
            self._unfilled.pop()()

    def _later(self, fill: Callable[..., None], *args: Any) -> None:
        self._unfilled.append(functools.partial(fill, *args))

    def _copy(self, x: Any) -> Any:
        kind = type(x)
        if kind in _ATOMS:
            return x
        if (found := self.copies.get(id(x), MISSING)) is not MISSING:
            return found
        if isinstance(x, type):
            return x
        make = _MAKERS.get(kind)
        return self._note(x, self._object(x) if make is None else make(self, x))

    def _note(self, x: Any, new: Any) -> Any:
        self.copies[id(x)] = new
        self._alive.append(x)
        return new

    def _share(self, x: Any) -> Any:
        self.shared.append(x)
        return self._note(x, x)

    # Built-in classes

    def _dict(self, x: dict[Any, Any]) -> Any:
        kind = type(x)
        return self._filled_dict(x, kind(), kind)

    def _filled_dict(self, x: Any, new: Any, base: Any) -> Any:
        if len(x):
            self._later(self._fill_dict, x, new, base)
        return new

    def _fill_dict(self, x: Any, new: Any, base: Any) -> None:
        entries = [
            (k if type(k) is str else self._copy(k), v if type(v) in _ATOMS else self._copy(v))
            for k, v in list(base.items(x))
        ]
        if base is dict:
            put = functools.partial(dict.update, new, entries)
        else:
            put = functools.partial(_put_ordered, new, entries)
        self._when_hashable(map(itemgetter(0), entries), put)

    def _list(self, x: list[Any]) -> Any:
        return self._filled_list(x, [])

    def _filled_list(self, x: Any, new: Any) -> Any:
        if len(x):
            self._later(lambda: list.extend(new, [self._copy(v) for v in list.__iter__(x)]))
        return new

    def _set(self, x: set[Any]) -> Any:
        return self._filled_set(x, set())

    def _filled_set(self, x: Any, new: Any) -> Any:
        def fill() -> None:
            entries = [self._copy(v) for v in list(set.__iter__(x))]
            self._when_hashable(entries, functools.partial(set.update, new, entries))

        if len(x):
            self._later(fill)
        return new

    def _when_hashable(self, keys: Iterable[Any], put: Callable[[], None]) -> None:
        """Puts entries at once, but later where the hash of a key may depend on what it holds."""
        if all(type(k) is str or type(k).__hash__ is _BY_IDENTITY for k in keys):
            put()
        else:
            self._hashed.append(put)

    def _tuple(self, x: tuple[Any, ...]) -> tuple[Any, ...]:
        items = [self._copy(v) for v in x]
        return x if all(map(is_, items, x)) else tuple(items)

    def _frozenset(self, x: frozenset[Any]) -> frozenset[Any]:
        items = self._filled(list(x))
        return x if all(map(is_, items, x)) else frozenset(items)

    def _proxy(self, x: types.MappingProxyType[Any, Any]) -> Any:
        (mapping,) = gc.get_referents(x)
        return types.MappingProxyType(self._copy(mapping))

    def _filled(self, x: Any) -> Any:
        """A copy whose contents are there at once."""
        left = len(self._unfilled)
        new = self._copy(x)
        self._fill(left)
        return new

    # Functions

    def _function(self, x: types.FunctionType) -> types.FunctionType:
        self.functions.append(x)
        if not _has_state(x, set()):
            return x
        cells = None if x.__closure__ is None else tuple(self._copy(c) for c in x.__closure__)
        new = types.FunctionType(x.__code__, x.__globals__, x.__name__, None, cells)
        self._note(x, new)

        def fill() -> None:
            new.__defaults__ = self._copy(x.__defaults__)
            new.__kwdefaults__ = self._copy(x.__kwdefaults__)
            new.__dict__.update((k, self._copy(v)) for k, v in vars(x).items())

        new.__qualname__, new.__module__, new.__doc__ = x.__qualname__, x.__module__, x.__doc__
        new.__annotations__ = x.__annotations__
        self._later(fill)
        return new

    def _cell(self, x: types.CellType) -> types.CellType:
        new = types.CellType()

        def fill() -> None:
            if gc.get_referents(x):
                new.cell_contents = self._copy(x.cell_contents)

        self._later(fill)
        return new

    def _method(self, x: types.MethodType) -> types.MethodType:
        function, owner = self._copy(x.__func__), self._copy(x.__self__)
        if function is x.__func__ and owner is x.__self__:
            return x
        return types.MethodType(function, owner)

    def _bound(self, x: Any) -> Any:
        """A method of a built-in class, such as `[].append`."""
        owner = self._copy(x.__self__)
        return x if owner is x.__self__ else getattr(owner, x.__name__)

    def _partial(self, x: functools.partial[Any]) -> functools.partial[Any]:
        new = functools.partial(_nothing)

        def fill() -> None:
            # Its keyword arguments are read when it is called, so they may be filled later.
            state = (x.func, x.args, x.keywords, vars(x))
            new.__setstate__(tuple(map(self._copy, state)))  # type: ignore[attr-defined]

        self._later(fill)
        return new

    # References that do not keep alive; this copier keeps the copies

    def _ref(self, x: weakref.ref[Any]) -> weakref.ref[Any]:
        target = x()
        new = self._copy(target)
        return x if new is target else weakref.ref(new)

    def _weak_mapping(self, x: Any) -> Any:
        new = type(x)()
        entries = list(x.items())
        self._later(lambda: new.update((self._copy(k), self._copy(v)) for k, v in entries))
        return new

    def _weak_set(self, x: weakref.WeakSet[Any]) -> weakref.WeakSet[Any]:
        new, entries = weakref.WeakSet[Any](), list(x)
        self._later(lambda: new.update(map(self._copy, entries)))
        return new

    # Tensors

    def _tensor(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_leaf:  # the graph it came from cannot be copied
            return x if id(x) in self._sharing else x.detach().clone().requires_grad_()
        new = x.detach() if id(x) in self._sharing else self._with_own_data(x)
        new = nn.Parameter(new, x.requires_grad) if type(x) is nn.Parameter else new
        new.requires_grad_(x.requires_grad)
        self._filled_dict(vars(x), vars(new), dict)
        return new

    def _with_own_data(self, x: torch.Tensor) -> torch.Tensor:
        if (
            x.layout is not torch.strided
            or x.is_quantized
            or x.is_meta
            or x.is_conj()
            or x.is_neg()
        ):
            return x.detach().clone()
        storage = x.untyped_storage()
        if storage._cdata not in self._storages:
            self._storages[storage._cdata] = storage.clone()  # type: ignore[no-untyped-call]
        new = torch.empty(0, dtype=x.dtype, device=x.device)
        own = self._storages[storage._cdata]
        return new.set_(own, x.storage_offset(), x.shape, x.stride())

    def _other_tensor(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor of a class of its own, of which only that class knows what it holds."""
        if id(x) in self._sharing and not nn.parameter.is_lazy(x):
            return x
        return cast(torch.Tensor, self._by_itself(x, copy.deepcopy))

    # Objects

    def _object(self, x: Any) -> Any:
        kind = type(x)
        self.kinds.add(kind)
        if isinstance(x, torch.Tensor):
            return self._other_tensor(x)
        if kind not in self._plans:
            self._plans[kind] = _plan(kind, isinstance(x, nn.Module))
        plan = self._plans[kind]
        if plan.base is None:
            return self._by_itself(x, self._reduced)
        try:
            new = plan.base.__new__(plan.made)
        except TypeError:  # a class written in C with a layout of its own
            return self._by_itself(x, self._reduced)
        attributes = attributes_of(x)
        slots = [(s, v) for s in plan.slots if (v := get_slot(s, x)) is not MISSING]
        if plan.base is object and not attributes and not slots:
            return x  # it has no state, and may be compared by `is`
        self._fill_entries(plan.base, x, new)
        if attributes:
            self._filled_dict(attributes, attributes_of(new), dict)
        for slot, value in slots:
            self._later(lambda slot=slot, value=value: slot.__set__(new, self._copy(value)))
        return new

    def _fill_entries(self, base: Any, x: Any, new: Any) -> None:
        if base is list:
            self._filled_list(x, new)
        elif base is set:
            self._filled_set(x, new)
        elif base is dict:
            self._filled_dict(x, new, OrderedDict if isinstance(x, OrderedDict) else dict)

    def _by_itself(self, x: Any, how: Callable[[Any], Any]) -> Any:
        """A copy that the object's own class makes; the object itself where that refuses."""
        self._note(x, x)  # for what it holds that holds it
        try:
            return how(x)
        except Exception:
            return self._share(x)

    def _reduced(self, x: Any) -> Any:
        if hasattr(type(x), "__del__"):
            raise TypeError("what it lets go when it ends, its copy would let go too")
        if hasattr(type(x), "__deepcopy__"):
            return x.__deepcopy__(self.copies)
        reduced = x.__reduce_ex__(4)
        if isinstance(reduced, str):
            return x
        self._alive.append(reduced)
        make, args, state, items, pairs = (*reduced, None, None, None)[:5]
        new = make(*self._filled(args))
        self._note(x, new)
        if state is not None:
            self._set_state(new, self._filled(state))
        self._later(self._fill_items, new, list(items or ()), list(pairs or ()))
        return new

    def _fill_items(self, new: Any, items: list[Any], pairs: list[Any]) -> None:
        for item in items:
            new.append(self._copy(item))
        for key, value in pairs:
            new[self._filled(key)] = self._copy(value)

    @staticmethod
    def _set_state(new: Any, state: Any) -> None:
        if hasattr(new, "__setstate__"):
            new.__setstate__(state)
            return
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        vars(new).update(attributes or {})
        for name, value in (slots or {}).items():
            setattr(new, name, value)


_MAKERS: dict[type, Callable[[Copier, Any], Any]] = {
    dict: Copier._dict,
    OrderedDict: Copier._dict,
    list: Copier._list,
    set: Copier._set,
    tuple: Copier._tuple,
    frozenset: Copier._frozenset,
    types.MappingProxyType: Copier._proxy,
    types.FunctionType: Copier._function,
    types.CellType: Copier._cell,
    types.MethodType: Copier._method,
    types.BuiltinFunctionType: Copier._bound,
    types.MethodWrapperType: Copier._bound,
    functools.partial: Copier._partial,
    weakref.ref: Copier._ref,
    weakref.WeakKeyDictionary: Copier._weak_mapping,
    weakref.WeakValueDictionary: Copier._weak_mapping,
    weakref.WeakSet: Copier._weak_set,
    torch.Tensor: Copier._tensor,
    nn.Parameter: Copier._tensor,
    np.ndarray: lambda _, x: x.copy(),
}


def _nothing(*_: Any) -> None:
    """Stands for the function of a partial until that is copied, and for a finalizer."""


def _put_ordered(new: OrderedDict[Any, Any], entries: Iterable[tuple[Any, Any]]) -> None:
    for key, value in entries:
        OrderedDict.__setitem__(new, key, value)


def _has_state(x: Any, seen: set[int]) -> bool:
    """Whether a function holds more than other functions and classes, so that calls can change it."""
    if id(x) in seen:
        return False
    seen.add(id(x))
    held = [*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values(), *vars(x).values()]
    held = [v for v in held if type(v) not in _ATOMS]
    held += [r for cell in x.__closure__ or () for r in gc.get_referents(cell)]
    return any(
        _has_state(v, seen)
        if isinstance(v, types.FunctionType)
        else not isinstance(v, type | types.ModuleType | types.BuiltinFunctionType)
        for v in held
    )


def _plan(kind: type, module: bool) -> _Kind:
    slots = slots_of(kind)
    if module and not issubclass(kind, torch.jit.ScriptModule):
        return _Kind(object, _without_finalizer(kind), slots)
    own = hasattr(kind, "__deepcopy__") or hasattr(kind, "__del__")
    own = own or kind.__reduce__ not in _REDUCTIONS or kind.__reduce_ex__ is not _REDUCE_EX
    made_by = (vars(b)["__new__"] for b in kind.__mro__ if "__new__" in vars(b))
    native = next(n for n in made_by if isinstance(n, types.BuiltinFunctionType))
    return _Kind(None if own else _CONTAINERS.get(native.__self__), kind, slots)


def _without_finalizer(kind: type) -> type:
    """The class of a module's copy: what a module lets go when it ends, its copy must not."""
    if not hasattr(kind, "__del__"):
        return kind
    names = {k: vars(kind)[k] for k in ("__module__", "__qualname__", "__doc__") if k in vars(kind)}
    return type(kind)(kind.__name__, (kind,), {**names, "__del__": _nothing})
