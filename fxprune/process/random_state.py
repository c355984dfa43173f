"""The global random generators: of torch, its CUDA devices, numpy and Python."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fxprune.process.lock import alone


def random_state() -> dict[str, Any]:
    """The state of every global generator, as plain data and tensors.

    CUDA's are included once CUDA is in use: asking for them earlier would start it.
    """
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (what users' code may draw from)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if _cuda_in_use() else [],
        "python": random.getstate(),
        "numpy": [str(kind), np.asarray(keys).tolist(), position, has_gauss, gauss],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what `random_state` returned; the CUDA states only if the number of devices is the same."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, np.uint32), position, has_gauss, cached))  # noqa: NPY002


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restores every global generator afterwards. Serves as a decorator too."""
    with alone():
        state = random_state()
    try:
        yield
    finally:
        with alone():
            set_random_state(state)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds every global generator, and restores them afterwards; one thread at a time."""
    with alone(), random_state_kept():
        torch.default_generator.manual_seed(seed)
        if _cuda_in_use():  # else torch would seed it when it starts, which may be after this
            torch.cuda.manual_seed_all(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (what users' code may draw from)
        yield


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
