"""Data and losses of command-line arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fxprune.calibration import Calibration
from fxprune.capture.failure import own_line
from fxprune.capture.named import find_model
from fxprune.cli.source import look_here
from fxprune.errors import OptionError


def open_data(data: str, loss: str, limit: int | None, *, option: str = "--data") -> Calibration:
    """The batches that `data` names, with the loss that `loss` names.

    Args:
        data: `package.module:callable` or `file.py:callable`: a function that returns a loader or an `fp.Calibration`,
            or one of these itself.
        loss: the same for a function of outputs and batch; "" for the loss of labels.
        limit: no more than so many batches are read.
        option: that names the data, for errors.

    Raises:
        OptionError: there is no such thing, it fails, or it has no batches.
    """
    look_here()
    made = _called(_found(data, option), data, option)
    given = _found(loss, "--loss") if loss else None
    if not isinstance(made, Calibration):
        return Calibration(made, loss=given, limit=limit)
    if given is not None and made.loss is not None:
        raise OptionError(
            f"{data} has a loss of its own", where="--loss", do="leave out --loss, or its loss"
        )
    limits = [n for n in (limit, made.limit) if n is not None]
    return Calibration(
        made.batches, made.forward, given or made.loss, min(limits) if limits else None
    )


def open_optional(data: str, loss: str, batches: int | None) -> Calibration | None:
    """The same where data may be left out; None without.

    Raises:
        OptionError: as `open_data`; or there is a loss, or a number of batches, and no data.
    """
    if data:
        return open_data(data, loss, batches)
    for option, given in (("--loss", loss), ("--batches", batches)):
        if given:
            raise OptionError("there are no batches", where=option, do="add --data")
    return None


def _found(spec: str, option: str) -> Callable[..., Any]:
    try:
        return find_model(spec).make
    except OptionError as error:
        raise OptionError(
            error.what,
            where=option,
            why=error.why,
            do=error.do
            if "did you mean" in error.do
            else "write package.module:callable or file.py:callable",
        ) from error


def _called(make: Callable[..., Any], spec: str, option: str) -> Any:
    try:
        return make()
    except (Exception, SystemExit) as error:  # code of the user's: anything may come
        raise OptionError(
            f"{spec} fails",
            where=own_line(error) or option,
            why=f"{type(error).__name__}: {error}"[:400],
            do="name a function without arguments that returns a loader, or a loader itself",
        ) from error
