"""Calls of recurrent layers, with arguments as torch.nn.LSTM, GRU and RNN pass them."""

from __future__ import annotations

from fxprune.testing.sample import Sample, T, sample, t


def _weights(
    gates: int,
    layers: int,
    both: bool,
    bias: bool,
    projection: int,
    inputs: int = 5,
    hidden: int = 4,
) -> list[T]:
    out: list[T] = []
    state = projection or hidden
    for layer in range(layers):
        for _ in range(1 + both):
            width = inputs if layer == 0 else state * (1 + both)
            out += [t(gates * hidden, width), t(gates * hidden, state)]
            out += [t(gates * hidden), t(gates * hidden)] if bias else []
            out += [t(projection, hidden)] if projection else []
    return out


def _call(
    name: str,
    gates: int,
    *,
    layers: int = 1,
    both: bool = False,
    bias: bool = True,
    projection: int = 0,
    unbatched: bool = False,
) -> Sample:
    batch = () if unbatched else (2,)
    states = [t(layers * (1 + both), *batch, n) for n in (projection or 4, 4)]
    hx = states if gates == 4 else states[0]
    weights = _weights(gates, layers, both, bias, projection)
    return sample(
        f"aten.{name}.input", t(3, *batch, 5), hx, weights, bias, layers, 0.0, False, both, False
    )


SAMPLES = [
    *(
        _call(name, gates)
        for name, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1))
    ),
    *(
        _call(name, gates, layers=2, both=True)
        for name, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1))
    ),
    *(
        _call(name, gates, layers=2, bias=False)
        for name, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1))
    ),
    _call("lstm", 4, layers=2, both=True, projection=3),
    _call("lstm", 4, bias=False, projection=3),
]
