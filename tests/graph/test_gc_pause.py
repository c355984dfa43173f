"""Work without the collector of cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from torch import nn

import fxprune as fp
from fxprune.errors import CaptureError
from fxprune.graph.gc_pause import without_collection


@pytest.fixture(autouse=True)
def _enabled() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.enable()
    yield
    (gc.enable if enabled else gc.disable)()


@without_collection()
def _state() -> bool:
    return gc.isenabled()


def test_collection_is_left_out_and_goes_on_afterwards() -> None:
    with without_collection():
        assert not _state()
        assert not gc.isenabled()  # the inner one did not switch it on
    assert gc.isenabled()


def test_one_who_has_no_collection_keeps_none() -> None:
    gc.disable()
    assert not _state()
    assert not gc.isenabled()


def test_a_failed_capture_leaves_collection_on() -> None:
    with pytest.raises(CaptureError):
        fp.capture(nn.Linear(2, 2))
    assert gc.isenabled()
