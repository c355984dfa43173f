"""Saves gates and observers as plain data next to the program, because torch.export would inline them."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import count
from typing import Any, cast

import torch
from torch import fx, nn

from fxprune.errors import LoadError
from fxprune.graph.editor import Editor
from fxprune.graph.leaf import Leaf, leaf_of
from fxprune.graph.program import Program

_OF_TORCH = frozenset(vars(nn.Module()))
Row = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def take_out(program: Program) -> tuple[Program, Row, Tensors]:
    """Splits a program into a program without leaf modules, these modules as plain data, and their tensors.

    Raises:
        LoadError: a leaf module has an attribute that is neither a tensor nor a plain value.
    """
    order = {node: i for i, node in enumerate(program.nodes)}
    leaves = {node for node in order if leaf_of(program.module, node) is not None and node.users}
    editor, calls = Editor(program), [_call(n, order, leaves) for n in order if n in leaves]
    modules: dict[str, Row] = {}
    tensors: Tensors = {}
    for node in filter(leaves.__contains__, order):
        path, copied = str(node.target), editor.node(node)
        leaf = cast(Leaf, leaf_of(program.module, node))
        modules[path] = _module(path, leaf)
        tensors.update({f"{path}.{k}": t.detach() for k, t in _tensors(leaf).items()})
        editor.replace(copied, cast(fx.Node, copied.args[0]))
    return editor.finish(), {"calls": calls, "modules": modules}, tensors


def put_back(program: Program, rows: Mapping[str, Any], tensors: Tensors) -> Program:
    """Returns the program with the leaf modules that `take_out` took out."""
    if not rows["calls"]:
        return program
    editor = Editor(program)
    known = {_name(node): node for node in editor.nodes}
    for path, row in rows["modules"].items():
        editor.add_leaf(path, _made(path, row, tensors))
    for call in rows["calls"]:
        source = known[call["source"]]
        node = editor.call_leaf(
            call["path"],
            (source, *_with_nodes(literal_eval(call["rest"]), known)),
            before=known[call["before"]],
            like=source,
        )
        node.name = call["name"]
        known[_name(node)] = node
        for reader, places in call["readers"]:
            _let_read(known[reader], places, node)
    return editor.finish()


def _call(node: fx.Node, order: Mapping[fx.Node, int], leaves: set[fx.Node]) -> Row:
    """Describes a call of a leaf module, with the places where other nodes read it."""
    readers = [user for user in node.users if user not in leaves]
    return {
        "name": node.name,
        "path": str(node.target),
        "source": _name(node.all_input_nodes[0]),
        "rest": _literal(node.name, fx.map_arg(tuple(node.args[1:]), _name)),
        "before": _name(min(_behind(node, leaves), key=order.__getitem__)),
        "readers": [(_name(user), _places(user, node)) for user in readers],
    }


def _with_nodes(rest: Any, known: Mapping[str, fx.Node]) -> Any:
    """Replaces the saved names of nodes among the further arguments of a call by the nodes."""
    return fx.node.map_aggregate(rest, lambda a: known[a] if isinstance(a, str) else a)


def _behind(node: fx.Node, leaves: set[fx.Node]) -> Iterator[fx.Node]:
    """Yields the nodes that read a leaf module's result, directly or through other leaf modules."""
    for user in node.users:
        if user in leaves:
            yield from _behind(user, leaves)
        else:
            yield user


def _name(node: fx.Node) -> str:
    """Returns the name by which a node can be found after it was saved and read back."""
    if node.op == "placeholder":
        return f"placeholder {node.graph.find_nodes(op='placeholder').index(node)}"
    if node.op == "get_attr":
        return f"get_attr {node.target}"
    return "output" if node.op == "output" else f"node {node.name}"


def _places(user: fx.Node, node: fx.Node) -> list[int]:
    """Returns the positions of a node among the nodes in a user's arguments, counted in order."""
    inputs: list[fx.Node] = []
    fx.map_arg((user.args, user.kwargs), inputs.append)
    return [i for i, found in enumerate(inputs) if found is node]


def _let_read(user: fx.Node, places: list[int], node: fx.Node) -> None:
    number = count()
    user.args, user.kwargs = fx.map_arg(
        (user.args, user.kwargs), lambda n: node if next(number) in places else n
    )


def _module(path: str, leaf: Leaf) -> Row:
    """Returns class, plain attributes and tensors of a leaf module."""
    kind = type(leaf)
    plain = {k: v for k, v in vars(leaf).items() if k not in _OF_TORCH}
    tensors = {name: isinstance(t, nn.Parameter) for name, t in _tensors(leaf).items()}
    return {
        "class": f"{kind.__module__}:{kind.__qualname__}",
        "attributes": {k: _literal(f"{path}.{k}", v) for k, v in plain.items()},
        "tensors": tensors,
        "not_persistent": sorted(leaf._non_persistent_buffers_set),
    }


def _tensors(leaf: Leaf) -> Tensors:
    found = {**leaf._parameters, **leaf._buffers}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _made(path: str, row: Row, tensors: Tensors) -> Leaf:
    module, _, name = row["class"].partition(":")
    kind = getattr(import_module(module), name)
    leaf: Leaf = kind.__new__(kind)
    nn.Module.__init__(leaf)
    for key, value in row["attributes"].items():
        object.__setattr__(leaf, key, literal_eval(value))
    for key, trained in row["tensors"].items():
        tensor = tensors[f"{path}.{key}"]
        if trained:
            leaf.register_parameter(key, nn.Parameter(tensor))
        else:
            leaf.register_buffer(key, tensor, persistent=key not in row["not_persistent"])
    return leaf


def _literal(where: str, value: Any) -> str:
    """Returns a plain value as Python text."""
    try:
        if literal_eval(repr(value)) == value:
            return repr(value)
    except (ValueError, SyntaxError):
        pass
    raise LoadError(
        f"{where} cannot be saved", why=f"{value!r} is not a plain value", do="store it in a tensor"
    )
