"""Key-value caches of transformers in a model's outputs.

Causal language models return a cache unless told otherwise. torch.export must know its class, and
outputs are frozen: the keys and values of every attention layer stay at full size.
"""

from __future__ import annotations

import re
import sys

from torch.utils import _pytree as pytree

from fxprune.remark import Remark


def register_caches() -> None:
    """Registers the cache classes of transformers with torch.export, if transformers is loaded."""
    utils = sys.modules.get("transformers.cache_utils")
    if utils is None:
        return
    from transformers.integrations.executorch import register_dynamic_cache_export_support

    register_dynamic_cache_export_support()
    both = getattr(utils, "EncoderDecoderCache", None)
    if both is not None and both not in pytree.SUPPORTED_NODES:
        pytree.register_pytree_node(
            both,
            lambda cache: ([cache.self_attention_cache, cache.cross_attention_cache], None),
            lambda caches, _: both(*caches),
            serialized_type_name="transformers.cache_utils.EncoderDecoderCache",
        )


def cache_remarks(name: str, out_spec: pytree.TreeSpec) -> list[Remark]:
    """Returns the remark that a returned cache keeps keys and values at full size."""
    if not _has_cache(out_spec):
        return []
    return [
        Remark(
            "analysis",
            "capture.cache-output",
            name,
            "the model returns its key-value cache, so no channel of keys or values can be removed",
            "the outputs of a network keep their sizes",
            "pass use_cache=False among the example inputs, unless the cache must keep its layout",
        )
    ]


def _has_cache(spec: pytree.TreeSpec) -> bool:
    # The children of a spec have another name in each version of torch; how it prints has not.
    return re.search(r"TreeSpec\(\w*Cache\w*,", str(spec)) is not None
