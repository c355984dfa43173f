from __future__ import annotations

from typing import Any

import pytest
import torch

import fxprune as fp
from fxprune.errors import CaptureError

transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 60, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config).eval()


def codes(program: fp.Program) -> set[str]:
    return {r.code for r in program.remarks}


def cuts_values(program: fp.Program) -> bool:
    return any(
        m.param.endswith("c_attn.weight") and m.axis == 1
        for g in fp.groups(program)
        for m in g.members
    )


def test_a_returned_cache_is_captured_and_said_to_freeze_values(gpt2: Any) -> None:
    program = fp.capture(gpt2, kwargs={"input_ids": IDS})
    out = program(input_ids=IDS)
    assert isinstance(out, transformers.modeling_outputs.CausalLMOutputWithCrossAttentions)
    torch.testing.assert_close(out.logits, gpt2(IDS).logits)
    assert "capture.cache-output" in codes(program)
    assert not cuts_values(program)


def test_a_cache_handed_to_modules_that_read_training_needs_no_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their inputs are noted for the other mode; a cache copied then would compute what is no part of it."""
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    monkeypatch.setattr(torch.export, "export", None)
    program = fp.capture(model, IDS)
    assert codes(program) == {"capture.cache-output"}
    ids = torch.cat((IDS, IDS, IDS))[:5]
    torch.testing.assert_close(program(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_without_a_cache_keys_and_values_may_go(gpt2: Any) -> None:
    program = fp.capture(gpt2, kwargs={"input_ids": IDS, "use_cache": False})
    assert "capture.cache-output" not in codes(program)
    assert cuts_values(program)
    assert fp.prune(program, keep=0.6).report.checks[0].ok


def test_a_cache_of_unknown_class_says_how_to_leave_it_out() -> None:
    model = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1)
    )
    with pytest.raises(CaptureError, match="use_cache=False"):
        fp.capture(model.eval(), kwargs={"input_ids": IDS})
