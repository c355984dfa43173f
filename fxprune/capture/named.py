"""Builds models from their names, for the command line."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal

from torch import nn

from fxprune.capture.failure import own_line
from fxprune.errors import OptionError

Kind = Literal["torchvision", "timm", "class", "function", "object"]
_FORMS = "torchvision:NAME, timm:NAME, package.module:callable, net.py:Net or the path of a saved directory"


@dataclass(frozen=True)
class Named:
    """How a model that a text names is built.

    Attributes:
        spec: the text.
        kind: what it names: a model of a library, a class, a function, or a module that is there already.
        make: what is called.
        path: where Python imports that from, `package.module:callable`.
        args: positional arguments.
        kwargs: keyword arguments.
        pretrained: keyword arguments for the weights that the library has for it.
    """

    spec: str
    kind: Kind
    make: Callable[..., object]
    path: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    pretrained: Mapping[str, Any] = field(default_factory=dict)

    def build(self, *, pretrained: bool = False) -> nn.Module:
        """The model, in eval mode.

        Args:
            pretrained: with the weights that the library has for it.

        Raises:
            OptionError: it cannot be built.
        """
        extra = dict(self.pretrained) if pretrained else {}
        try:
            model = self.make(*self.args, **{**self.kwargs, **extra})
        except (Exception, SystemExit) as error:  # code of the user's: anything may come
            raise OptionError(
                f"{self.spec} fails",
                where=own_line(error) or "MODEL",
                why=f"{type(error).__name__}: {error}"[:400],
                do="give the arguments that it takes: --args '{\"width\": 8}'; or name a function that makes it",
            ) from error
        if not isinstance(model, nn.Module):
            raise OptionError(
                f"{self.spec} returns a {type(model).__name__}, not an nn.Module",
                where="MODEL",
                do="name a function or class that returns the model",
            )
        return model.eval()


def load_model(spec: str) -> nn.Module:
    """Builds the model that `spec` names, in eval mode and with random weights; see `find_model`."""
    return find_model(spec).build()


def find_model(spec: str, arguments: Mapping[str, Any] | Sequence[Any] | None = None) -> Named:
    """Finds what `spec` names, without building it.

    Args:
        spec: `torchvision:NAME`, `timm:NAME`, `package.module:callable` or `path/to/net.py:callable`.
        arguments: of the callable: keywords, or positional ones.

    Raises:
        OptionError: there is no such model; the message suggests similar names.
    """
    source, colon, name = spec.rpartition(":")
    if not colon:
        raise _not_a_spec(spec)
    args: Sequence[Any] = () if isinstance(arguments, Mapping) else (arguments or ())
    kwargs = arguments if isinstance(arguments, Mapping) else {}
    if source in ("torchvision", "timm"):
        if args:
            raise OptionError(
                f"a model of {source} takes keyword arguments",
                where="--args",
                do="write an object: --args '{\"num_classes\": 10}'",
            )
        return (_from_torchvision if source == "torchvision" else _from_timm)(name, kwargs)
    if source.endswith(".py"):
        module = _from_file(source, spec)
        return _from_module(spec, module, name, module.__name__, args, kwargs)
    return _from_module(spec, _imported(source, spec), name, source, args, kwargs)


def _from_torchvision(name: str, kwargs: Mapping[str, Any]) -> Named:
    models = _imported("torchvision.models", f"torchvision:{name}")
    known = models.list_models()
    if name not in known:
        raise unknown(f"torchvision has no model {name!r}", name, known)
    options: dict[str, object] = {"name": name, "weights": None}
    if any(name in models.list_models(m) for m in (models.detection, models.segmentation)):
        options["weights_backbone"] = None
    elif name in {"googlenet", "inception_v3"}:
        options["init_weights"] = True
    return Named(
        *(f"torchvision:{name}", "torchvision", models.get_model, "torchvision.models:get_model"),
        kwargs={**options, **kwargs},
        pretrained={"weights": "DEFAULT"},
    )


def _from_timm(name: str, kwargs: Mapping[str, Any]) -> Named:
    timm = _imported("timm", f"timm:{name}")
    if not timm.is_model(name):
        raise unknown(f"timm has no model {name!r}", name, timm.list_models())
    return Named(
        *(f"timm:{name}", "timm", timm.create_model, "timm:create_model"),
        kwargs={"model_name": name, "pretrained": False, **kwargs},
        pretrained={"pretrained": True},
    )


def _from_module(
    spec: str, module: Any, name: str, path: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Named:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise unknown(f"{path} has no {name!r}", name, dir(module))
        found = getattr(found, part)
    if callable(found) and not isinstance(found, nn.Module):
        kind: Kind = "class" if isinstance(found, type) else "function"
        return Named(spec, kind, found, f"{path}:{name}", args, kwargs)
    if args or kwargs:
        raise OptionError(
            f"{spec} is a {type(found).__name__}, which takes no arguments",
            where="--args",
            do="leave out --args, or name the class",
        )
    return Named(spec, "object", lambda: found, "")


def _from_file(path: str, spec: str) -> Any:
    """Imports a file of Python, as `python path` would find its neighbours."""
    file = Path(path).resolve()
    if not file.is_file():
        raise OptionError(
            f"there is no file {path[-80:]}", where="MODEL", do="name a file of Python: net.py:Net"
        )
    before = sys.modules.get(file.stem)
    if before is not None and getattr(before, "__file__", None) == str(file):
        return before
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    name = file.stem if before is None else f"fxprune_file_{file.stem}"
    found = spec_from_file_location(name, file)
    assert found is not None, "it is a file of Python"
    assert found.loader is not None, "it is a file of Python"
    module = module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a module of the user's: anything may come
        del sys.modules[name]
        raise _not_imported(path, spec, error) from error
    return module


def _imported(name: str, spec: str) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a module of the user's: anything may come
        raise _not_imported(name, spec, error) from error


def _not_imported(name: str, spec: str, error: BaseException) -> OptionError:
    text = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
    return OptionError(
        f"cannot import {name}",
        where=own_line(error) or spec,
        why=text,
        do="install it, or run where Python finds it (PYTHONPATH); a file is named with its ending, net.py:Net",
    )


def unknown(what: str, name: str, known: Iterable[str], where: str = "MODEL") -> OptionError:
    """The error for a name that nothing has; it suggests similar ones."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return OptionError(what, where=where, do=f"did you mean {', '.join(near)}?" if near else "")


def _not_a_spec(spec: str) -> OptionError:
    if Path(spec).is_dir():
        return OptionError(
            f"{spec} is a saved program, not a model", where="MODEL", do="load it with fxprune.load"
        )
    return OptionError(f"{spec!r} does not name a model", where="MODEL", do=f"write {_FORMS}")
