"""A Llama of 1.1 billion parameters loses layers and width by calibration, from shards on disk, in a bounded memory."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOG = logging.getLogger(__name__)
RUN = """
import json, resource, sys, time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune as fp

SIZES = dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32)
CONFIG = LlamaConfig(**SIZES, num_key_value_heads=4, vocab_size=32000, tie_word_embeddings=False)
folder = Path(sys.argv[1])


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


with torch.device("meta"):
    model = LlamaForCausalLM(CONFIG).to(torch.bfloat16).eval()
shards = {}
for name, tensor in model.state_dict().items():
    layer = name.split(".")[2] if name.startswith("model.layers.") else "rest"
    shards.setdefault(f"model-{layer}.safetensors", []).append((name, tensor.shape))
folder.mkdir()
for file, tensors in shards.items():
    made = {n: (torch.randn(s) * 0.02 + (len(s) == 1)).bfloat16() for n, s in tensors}
    save_file(made, folder / file, metadata={"format": "pt"})
    del made
places = {n: file for file, tensors in shards.items() for n, _ in tensors}
index = {"metadata": {}, "weight_map": places}
(folder / "model.safetensors.index.json").write_text(json.dumps(index))
size = sum(p.stat().st_size for p in folder.iterdir())
made_in, began = peak(), time.process_time()

ids = [torch.randint(32000, (2, 32), generator=torch.Generator().manual_seed(i)) for i in range(2)]
data = fp.Calibration(ids, forward=lambda m, x: m(input_ids=x, use_cache=False))
program = fp.capture(model, kwargs={"input_ids": ids[0], "use_cache": False})
rotary = type(model.model.rotary_emb)(CONFIG)
frequencies = {f"model.rotary_emb.{n}": t for n, t in rotary.named_buffers()}
frequencies = {n: t for n, t in frequencies.items() if n in program.tensors()}
program = fp.open_shards(program, folder, tensors=frequencies)
shallow = fp.prune_layers(program, data, 2)
assert all(c.ok for c in shallow.result.checks)
after_layers = time.process_time()
outcome = fp.prune(shallow.program, keep=0.8, data=data)
assert all(c.ok for c in outcome.report.checks)
left = outcome.report.comparison.ratios
seconds = after_layers - began, time.process_time() - after_layers
print(json.dumps([size, made_in, peak(), *seconds, left["macs"]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_llama_is_pruned_from_shards_in_four_gigabytes(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "llama")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    LOG.info(
        "bytes, peak while made, peak, CPU s for layers, for width, MACs left: %s", done.stdout
    )
    size, _, peak, *_, macs = map(float, done.stdout.strip().strip("[]").split(","))
    assert size > 2.1e9
    assert peak < 4e9
    assert macs == pytest.approx(0.8, abs=0.01)
