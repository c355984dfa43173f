"""Configs as plain data: objects that their class makes again of plain values, of transformers or dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fxprune.errors import LoadError
from fxprune.files.document import Entry
from fxprune.io.plain import Reader, Writer
from fxprune.io.trust import Trusted, import_path


def is_config_class(kind: object) -> bool:
    """Whether a class can say its objects as plain values, and make them again."""
    if not isinstance(kind, type):
        return False
    methods = (getattr(kind, name, None) for name in ("to_dict", "from_dict"))
    return all(map(callable, methods)) or dataclasses.is_dataclass(kind)


class _Configs(type):
    def __instancecheck__(cls, x: object) -> bool:
        return is_config_class(type(x))


class Config(metaclass=_Configs):
    """The class of all configs."""


def _write(config: Any) -> Any:
    kind = type(config)
    if not (name := import_path(kind)):
        raise LoadError(
            f"a {kind.__name__} cannot be saved",
            where="args of build",
            why="its class has no import path",
            do="define the class at the top of a module, or give build= a function of plain values",
        )
    if hasattr(kind, "to_dict"):
        values = dict(config.to_dict())
    else:
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(kind) if f.init}
    return {"class": name, "values": CONFIGS.write(values, name)}


CONFIGS = Writer({"config": (Config, _write)})


def config_reader(trusted: Trusted) -> Reader:
    """Reads plain values, and configs whose class is allowed."""
    return Reader({"config": lambda row: _read(row, trusted)})


def _read(entry: Entry, trusted: Trusted) -> Any:
    facts = entry.record("class", "values")
    kind = trusted.find(facts["class"], "a config")
    values = config_reader(trusted).read(facts["values"])
    if not is_config_class(kind) or not isinstance(values, dict):
        facts["class"].fail("is no class of configs", "save it again")
    try:
        return kind.from_dict(values) if hasattr(kind, "from_dict") else kind(**values)
    except Exception as error:  # code of the user's: anything may come
        entry.fail(f"gives no config: {type(error).__name__}: {error}"[:240], "save it again")


def configs_of(make: Callable[..., Any] | None) -> list[type]:
    """Classes of configs that a callable names: in `config_class`, and as types of its arguments."""
    found = [getattr(make, "config_class", None)]
    function: Any = vars(make).get("__init__") if isinstance(make, type) else make
    with suppress(Exception):  # annotations that cannot be evaluated name nothing
        found += list(inspect.get_annotations(function, eval_str=True).values())
    return [k for k in found if is_config_class(k) and isinstance(k, type)]
