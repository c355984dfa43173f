"""How a class of the user's is built: what is called with what, as JSON; and who allows that it is called."""

from __future__ import annotations

import copy
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import nn

from fxprune.capture.failure import own_line
from fxprune.errors import OptionError, PlanError
from fxprune.files.document import Entry
from fxprune.io.config import CONFIGS, config_reader, configs_of, is_config_class
from fxprune.io.trust import Trust, Trusted, attribute, import_path
from fxprune.io.values import constants
from fxprune.process.state import undisturbed
from fxprune.write_back.twin import twin_of

Make = Callable[..., nn.Module]
_DO = 'give build="package.module:callable" and args={...}, with which it builds the model at its original size'


@dataclass(frozen=True)
class Build:
    """A call that returns a model at its original size.

    Attributes:
        make: what is called.
        name: its import path, `package.module:callable`; "" where it has none.
        args: positional arguments.
        kwargs: keyword arguments.
    """

    make: Make
    name: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> nn.Module:
        """The model, on the meta device where that tells all but the weights, else on the CPU.

        It shares nothing with what built it, such as a table of sizes in a module: it may be changed.

        Raises:
            OptionError: it cannot be built, or not be copied.
        """

        def make() -> object:  # a class may change what it is given
            args, kwargs = copy.deepcopy((self.args, self.kwargs))
            return self.make(*args, **kwargs)

        name = self.name or "build"
        try:
            return twin_of(built(make, name))
        except PlanError as error:
            raise OptionError(f"what {name} builds cannot be copied", why=error.why) from error

    def spelled(self) -> str:
        """The call as one would write it, without the modules' names and cut off where it is long."""
        keywords = (f"{k}={v!r}" for k, v in self.kwargs.items())
        given = ", ".join([*map(repr, self.args), *keywords])
        name = self.name.rpartition(":")[2] or getattr(self.make, "__qualname__", "build")
        return f"{name}({textwrap.shorten(given, 80, placeholder=' ...')})"

    def to_json(self) -> Any:
        """The call as plain data.

        Raises:
            LoadError: an argument is nothing that can be written down.
        """
        where = f"args of {self.name or 'build'}"
        return {
            "callable": self.name,
            "args": CONFIGS.write(list(self.args), where),
            "kwargs": {k: CONFIGS.write(v, where) for k, v in self.kwargs.items()},
        }


def built(make: Callable[[], object], name: str) -> nn.Module:
    """What a call makes, without data where nothing but weights would be lost.

    Raises:
        OptionError: it fails, or returns no module.
    """
    with undisturbed():
        try:
            with torch.device("meta"):
                model = make()
            if isinstance(model, nn.Module) and not any(
                t.is_meta for t in constants(model).values()
            ):
                return model
        except (Exception, SystemExit):  # it may need real numbers: once more with them
            pass
        try:
            model = make()
        except (Exception, SystemExit) as error:  # code of the user's: anything may come
            raise OptionError(
                f"{name} cannot be built",
                where=own_line(error) or name,
                why=f"{type(error).__name__}: {error}"[:240],
                do=_DO,
            ) from error
    if not isinstance(model, nn.Module):
        raise OptionError(f"{name} returns a {type(model).__name__}, not an nn.Module", do=_DO)
    return model


def find_build(model: nn.Module, build: Make | str | None, args: Any) -> Build:
    """The call that builds a model's class: the given one, or else what the class itself says.

    Args:
        model: whose class it is.
        build: what to call, or its import path; None for the class, with the model's config or without arguments.
        args: positional arguments in a list, or keyword arguments in a dict.

    Raises:
        OptionError: there is no such call, or nothing says how the class is built.
    """
    if isinstance(build, Build):
        return build
    positional, keywords = split_arguments(args)
    if isinstance(build, str):
        return Build(_found(build), build, positional, keywords)
    if build is not None:
        if not callable(build) or isinstance(build, nn.Module):
            raise OptionError(f"build is a {type(build).__name__}, not a function or class", do=_DO)
        return Build(build, import_path(build), positional, keywords)
    kind = type(model)
    if args is None and is_config_class(type(getattr(model, "config", None))):
        positional = [model.config]
    elif args is None and (missing := _required(kind)):
        raise OptionError(
            f"nothing says how {kind.__name__} is built",
            where=f"{kind.__module__}.{kind.__qualname__}",
            why=f"its constructor needs {', '.join(missing)}",
            do=f"{_DO}; or save a graph, which needs no class: fp.save(fp.capture(model, args), directory)",
        )
    return Build(kind, import_path(kind), positional, keywords)


def split_arguments(args: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Positional and keyword arguments of what a user gave as `args`.

    Raises:
        OptionError: it is neither a list nor a dict of names.
    """
    if isinstance(args, Mapping) and all(isinstance(k, str) and k.isidentifier() for k in args):
        return [], args
    if isinstance(args, list | tuple):
        return list(args), {}
    if args is not None:
        raise OptionError(
            f"args is a {type(args).__name__}",
            where="args",
            do="give keyword arguments as a dict of names, or positional ones as a list",
        )
    return [], {}


def _required(kind: type) -> list[str]:
    """The arguments without which a class cannot be built; a module of torch's own never makes a user's network."""
    if kind.__module__.startswith("torch.nn."):
        return ["what it was given"]
    try:
        parameters = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in several
    ]


def _found(name: str) -> Make:
    module, _, path = name.partition(":")
    try:
        found: Make = attribute(import_module(module), path)
    except Exception as error:  # a module of the user's: anything may come
        raise OptionError(
            f"there is no {name}",
            where="build",
            why=f"{type(error).__name__}: {error}",
            do='write build="package.module:callable"',
        ) from error
    if not callable(found) or isinstance(found, nn.Module):
        raise OptionError(f"{name} is a {type(found).__name__}, not a function or class", do=_DO)
    return found


def read_build(entry: Entry, make: Make | None, trust: Trust) -> Build:
    """The call that `Build.to_json` wrote, allowed by whoever loads.

    Args:
        entry: of a file.
        make: what to call instead of what the file names.
        trust: what of the file may be imported and called: everything, or names of modules, `package.module`,
            and of callables, `package.module:callable`.
    """
    facts = entry.record("callable", "args", "kwargs")
    trusted = Trusted(trust, configs_of(make))
    call = make or trusted.find(facts["callable"], "the model")
    reader = config_reader(trusted)
    args = [reader.read(e) for e in facts["args"].items()]
    kwargs = {k: reader.read(e) for k, e in facts["kwargs"].mapping().items()}
    return Build(call, facts["callable"].text(), args, kwargs)
