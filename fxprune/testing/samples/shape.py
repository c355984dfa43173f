"""Calls of operators that move, join, cut or reinterpret axes."""

from __future__ import annotations

import torch

from fxprune.testing.sample import Sample, T, sample, t


def _views(name: str) -> list[Sample]:
    return [
        sample(name, t(2, 12), [2, 3, 4]),
        sample(name, t(2, 3, 4), [2, 12]),
        sample(name, t(2, 3, 4), [6, 4]),
        sample(name, t(2, 3, 4), [-1]),
        sample(name, t(2, 12), [2, -1, 4]),
        sample(name, t(2, 3, 4), [2, 1, 3, 4]),
        sample(name, t(2, 1, 3, 4), [2, 3, 4]),
        sample(name, t(3, 4), [4, 3]),
        sample(name, t(24), [2, 3, 4]),
        sample(name, t(1, 1), [1]),
    ]


VIEWS = [
    *_views("aten.view"),
    *(
        s
        for name in ("reshape", "_unsafe_view", "view_copy", "_reshape_copy")
        for s in _views(f"aten.{name}")[:2]
    ),
    sample("aten.view.dtype", t(3, 4), torch.int64),
    sample("aten.flatten.using_ints", t(2, 3, 4), 1),
    sample("aten.flatten.using_ints", t(2, 3, 4, 5), 1, 2),
    sample("aten.flatten.using_ints", t(2, 3, 4)),
    sample("aten.ravel", t(3, 4)),
    sample("aten.unflatten.int", t(2, 12), 1, [3, 4]),
    sample("aten.unflatten.int", t(12, 2), -2, [3, -1]),
    sample("aten.view_as", t(2, 12), t(2, 3, 4)),
    sample("aten.reshape_as", t(2, 12), t(2, 3, 4)),
    sample("aten.pixel_shuffle", t(2, 12, 3, 5), 2),
    sample("aten.pixel_shuffle", t(12, 3, 5), 2),
    sample("aten.pixel_unshuffle", t(2, 3, 4, 6), 2),
    sample("aten.channel_shuffle", t(2, 6, 3), 2),
    sample("aten.native_channel_shuffle", t(2, 6, 3, 4), 3),
    sample("aten.as_strided", t(3, 4), [4, 3], [1, 4]),
]
MOVES = [
    sample("aten.permute", t(2, 3, 4), [2, 0, 1]),
    sample("aten.permute", t(2, 3, 4), [0, -1, -2]),
    *(
        sample(f"aten.{name}", t(2, 3, 4), 0, -1)
        for name in ("transpose.int", "swapaxes", "swapdims")
    ),
    sample("aten.t", t(3, 4)),
    sample("aten.t", t(3)),
    sample("aten.numpy_T", t(2, 3, 4)),
    *(sample(f"aten.{name}", t(2, 3, 4)) for name in ("adjoint", "mT")),
    sample("aten.matrix_H", t(3, 4)),
    *(sample(f"aten.{name}.int", t(2, 3, 4), 0, -1) for name in ("movedim", "moveaxis")),
    *(
        sample(f"aten.{name}.intlist", t(2, 3, 4), [0, 2], [1, 0])
        for name in ("movedim", "moveaxis")
    ),
    sample("aten.unsqueeze", t(3, 4), 1),
    sample("aten.unsqueeze", t(3, 4), -1),
    sample("aten.squeeze", t(1, 3, 1, 4)),
    sample("aten.squeeze.dim", t(1, 3, 4), 0),
    sample("aten.squeeze.dim", t(1, 3, 4), 1),
    sample("aten.squeeze.dims", t(1, 3, 1, 4), [0, -2]),
    sample("aten.flip", t(3, 4, 5), [1, -1]),
    sample("aten.roll", t(3, 4, 5), [1], [1]),
    sample("aten.roll", t(3, 4), [1]),
    sample("aten.rot90", t(3, 4, 5)),
    sample("aten.rot90", t(3, 4, 5), 2, [0, 2]),
    sample("aten.rot90", t(2, 4, 4), 1, [1, 2]),
]
JOINS = [
    *(sample(f"aten.{name}", [t(2, 3), t(2, 4)], 1) for name in ("cat", "concat", "concatenate")),
    sample("aten.cat", [t(3, 2), t(4, 2)]),
    sample("aten.cat", [t(2, 3, 5), t(2, 4, 5)], -2),
    sample("aten.cat", [t(0), t(2, 4)], -1),
    sample("aten.stack", [t(3, 4), t(3, 4)]),
    sample("aten.stack", [t(3, 4), t(3, 4)], -1),
    sample("aten.expand", t(3, 1), [3, 4]),
    sample("aten.expand", t(3, 4), [2, -1, -1]),
    sample("aten.expand", t(1, 4), [2, 3, 4]),
    sample("aten.broadcast_to", t(3, 1), [2, 3, 4]),
    sample("aten.expand_as", t(3, 1), t(2, 3, 4)),
    sample("aten.broadcast_tensors", [t(3, 1), t(4)]),
    sample("aten.meshgrid", [t(3), t(4)]),
    sample("aten.meshgrid", [t(3), t(4), t()]),
    sample("aten.meshgrid.indexing", [t(3), t(4)], indexing="xy"),
    sample("aten.repeat", t(3, 4), [2, 3]),
    sample("aten.repeat", t(3, 1), [2, 1, 5]),
    sample("aten.repeat", t(3, 1), [2, 1, 5], times=True),
    sample("aten.expand", t(3, 1), [2, 3, 5], times=True),
    sample("aten.repeat_interleave.self_int", t(3, 4), 2, 1),
    sample("aten.repeat_interleave.self_int", t(3, 4), 2),
    sample("aten.repeat_interleave.self_int", t(3, 1), 4, -1),
    sample("aten.repeat_interleave.self_int", t(3, 4), 2, 0, output_size=6),
]
CUTS = [
    sample("aten.split_with_sizes", t(3, 7), [2, 5], 1),
    sample("aten.split_with_sizes", t(7, 3), [2, 4, 1], -2),
    sample("aten.split_with_sizes_copy", t(3, 7), [2, 5], 1),
    sample("aten.split.sizes", t(3, 7), [2, 5], -1),
    sample("aten.split.Tensor", t(3, 7), 2, 1),
    sample("aten.chunk", t(3, 7), 2, -1),
    sample("aten.tensor_split.sections", t(3, 7), 2, 1),
    sample("aten.tensor_split.indices", t(3, 7), [2, 4], 1),
    sample("aten.unbind.int", t(3, 4)),
    sample("aten.unbind.int", t(3, 4), -1),
    sample("aten.select.int", t(3, 4), 1, 2),
    sample("aten.select.int", t(3, 4), -2, -1),
    sample("aten.select_copy.int", t(3, 4), 1, 0),
    sample("aten.slice.Tensor", t(3, 7), 1, 2, 5),
    sample("aten.slice.Tensor", t(3, 7), -1, 0, 5),
    sample("aten.slice.Tensor", t(3, 7), 1, 3),
    sample("aten.slice.Tensor", t(3, 7), 1, 3, 2**63 - 1),
    sample("aten.slice.Tensor", t(3, 7), 1, -4),
    sample("aten.slice.Tensor", t(3, 7), 1, -4, -1),
    sample("aten.slice.Tensor", t(3, 7), 1, 0, -1),
    sample("aten.slice.Tensor", t(3, 7), 1, 0, 7),
    sample("aten.slice.Tensor", t(3, 7), 1, -9, 9),
    sample("aten.slice.Tensor", t(3, 7), 1, 0, 7, 2),
    sample("aten.slice.Tensor", t(3, 8), 1, 0, 7, 2),
    sample("aten.slice.Tensor", t(3, 8), 1, 0, 2**63 - 1, 2),
    sample("aten.slice.Tensor", t(3, 8), -1, 1, 8, 2),
    sample("aten.slice.Tensor", t(3, 9), -1, 2, None, 3),
    sample("aten.slice.Tensor", t(3, 8), 1, 2, None, 2),
    sample("aten.slice.Tensor", t(3, 8), 1, -7, None, 2),
    sample("aten.slice.Tensor", t(7, 3)),
    sample("aten.slice_copy.Tensor", t(3, 7), 1, 2, 5),
    sample("aten.narrow", t(3, 7), 1, 2, 3),
    sample("aten.narrow", t(3, 7), -1, -3, 3),
    sample("aten.slice_scatter", t(3, 7), t(3, 3), 1, 2, 5),
    sample("aten.slice_scatter", t(3, 7), t(3, 3), -1, 2, 5),
    sample("aten.slice_scatter", t(3, 7), t(3, 3), 1, -5, -2),
    sample("aten.slice_scatter", t(3, 7), t(3, 4), 1, 0, 7, 2),
    sample("aten.slice_scatter", t(3, 8), t(3, 4), 1, 0, 8, 2),
    sample("aten.slice_scatter", t(3, 8), t(3, 4), -1, 1, None, 2),
    sample("aten.slice_scatter", t(3, 7), t(3, 7), 1),
    sample("aten.diagonal", t(3, 4)),
    sample("aten.diagonal", t(3, 4, 5), 0, 0, -1),
    sample("aten.tril", t(2, 3, 4)),
    sample("aten.triu", t(2, 3, 4), 1),
]
PADS = [
    sample("aten.pad", t(3, 4), [1, 2]),
    sample("aten.pad", t(3, 4), [0, 0, 1, 0], "constant", 2.0),
    sample("aten.pad", t(3, 4), [-1, 0]),
    sample("aten.pad", t(2, 3, 4), [1, 1], "reflect"),
    sample("aten.constant_pad_nd", t(3, 4), [1, 0, 0, 2]),
    sample("aten.constant_pad_nd", t(3, 4), [1, 2], times=True),
    sample("aten.pad", t(2, 3, 4), [0, 0, 2, 1], times=True),
    *(
        sample(f"aten.{kind}_pad{k}d", T((2, 3, *range(4, 4 + k))), [1, 2] * k)
        for kind in ("reflection", "replication")
        for k in (1, 2, 3)
    ),
]

SAMPLES = [*VIEWS, *MOVES, *JOINS, *CUTS, *PADS]
