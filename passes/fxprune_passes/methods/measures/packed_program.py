"""Packs a program into tensors of bytes, so that it can be part of a state_dict."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

import fxprune as fp
from fxprune.graph.program import Program


def pack_program(program: Program) -> dict[str, torch.Tensor]:
    """The files of a saved program by name, each as a tensor `[bytes]` of uint8."""
    with tempfile.TemporaryDirectory() as folder:
        fp.save(program, Path(folder, "program"))
        files = {file.name: file.read_bytes() for file in Path(folder, "program").iterdir()}
    return {n: torch.frombuffer(bytearray(b), dtype=torch.uint8) for n, b in files.items()}


def unpack_program(files: Mapping[str, torch.Tensor]) -> Program:
    """The program that `pack_program` packed, with its weights on the CPU.

    Raises:
        LoadError: the bytes do not contain a program.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content.numpy().tobytes())
        return fp.load(folder)
