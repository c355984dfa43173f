"""The numbers of config.json: those that a smaller model's config says otherwise are replaced, the rest stays."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxprune.errors import LoadError, OptionError
from fxprune.files.document import Document
from fxprune.plan.globs import nearest

_QUANTISED = "quantization_config"


def changed_fields(before: object, after: object) -> dict[str, Any]:
    """The fields in which a config differs from what it was, with their new values; empty without configs."""
    return _differing(_fields(before), _fields(after))


def _fields(config: object) -> Mapping[str, Any]:
    if config is None or isinstance(config, Mapping):
        return config or {}
    if callable(to_dict := getattr(config, "to_dict", None)):
        return dict(to_dict())
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    return dict(vars(config)) if hasattr(config, "__dict__") else {}


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if inner := _differing(old, value):
                found[key] = inner
        elif key not in before or old != value:
            found[key] = value
    return found


def read_config(path: Path) -> dict[str, Any]:
    """The config of a checkpoint; empty where there is none.

    Raises:
        LoadError: it is no JSON, or says that the weights are quantised: packed numbers and their scales are not cut.
    """
    if not path.is_file():
        return {}
    config: dict[str, Any] = {
        key: entry.value
        for key, entry in Document(str(path), LoadError).read(path).mapping().items()
    }
    if config.get(_QUANTISED):
        raise LoadError(
            "the weights of the checkpoint are quantised",
            where=f"{path}, {_QUANTISED}",
            why="numbers that are packed, or scaled in blocks, cannot be cut one by one",
            do="give the checkpoint before it was quantised, and quantise the result",
        )
    return config


def new_config(
    config: Mapping[str, Any], numbers: Mapping[str, Any], given: Mapping[str, Any]
) -> str:
    """The text of a config with new numbers.

    Args:
        config: what it was.
        numbers: new values that a smaller model says; fields that the file leaves to a default are added.
        given: new values that the caller says; the file must have the fields.

    Raises:
        OptionError: it lacks one, or a value cannot be written as JSON.
    """
    for key in given:
        if key not in config:
            raise OptionError(
                f"config.json has no field {key!r}", where="config=", do=_meant(key, config)
            )
    try:
        return (
            json.dumps(_merged(_merged(config, numbers), given), indent=2, allow_nan=False) + "\n"
        )
    except (TypeError, ValueError) as error:
        raise OptionError(
            "a value of the new config cannot be written as JSON", where="config=", why=str(error)
        ) from error


def _meant(key: str, config: Mapping[str, Any]) -> str:
    near = nearest(key, list(config))
    return near if near.startswith("did") else "name a field of the file"


def _merged(config: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(config)
    for key, value in new.items():
        old = found.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            found[key] = _merged(old, value)
        else:
            found[key] = value
    return found
