"""Tensors that several processes hold in parts."""

from fxprune.distributed.tensors import ShardError, is_sharded, part_like, whole

__all__ = ["ShardError", "is_sharded", "part_like", "whole"]
