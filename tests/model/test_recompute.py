"""Activation checkpointing changes no gradient by a bit, and selective needs less memory than none, more than full."""

import pytest
import torch
from small import MODEL
from torch.utils.checkpoint import CheckpointPolicy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sftlab.data.feed import Batch
from sftlab.model.adapter import LiveAdapter, LoRA
from sftlab.model.attention import register_attention
from sftlab.model.loss import SupervisedLoss
from sftlab.model.memory import _Live
from sftlab.model.module import SFTModule
from sftlab.model.parallel import decoder_layers
from sftlab.model.recompute import CHOICES, policy, recompute

SIZES = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 96}
IDS = torch.randint(0, 96, (60,), generator=torch.Generator().manual_seed(0))
PLACES = torch.cat([torch.arange(35), torch.arange(25)])
KEEP = torch.tensor([*range(34), *range(35, 59)])
BATCH = Batch(step=0, ids_T=IDS, positions_T=PLACES, lengths_D=[35, 25], row_lengths_R=[60], keep_K=KEEP,
              target_K=IDS[KEEP + 1], example_K=(KEEP > 34).long(), ability_D=torch.zeros(2, dtype=torch.long),
              supervised_D=torch.tensor([34, 24]), number_D=[0, 1])  # fmt: skip


def llama(attention, **options):
    register_attention()
    config = LlamaConfig(**SIZES, **options, tie_word_embeddings=False, attn_implementation=attention)
    return LlamaForCausalLM(config)


def gpt2(attention):
    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, attn_implementation=attention)
    assert config.resid_pdrop and config.attn_pdrop
    return GPT2LMHeadModel(config)


def adapted(attention):
    model = llama(attention)
    LiveAdapter(LoRA(r=2, dropout=0.2), model, decoder_layers(model), 1, "x")
    return model


@pytest.mark.parametrize(
    "made",
    [
        lambda: llama("per_document"),
        lambda: llama("per_document", attention_bias=True, mlp_bias=True),
        lambda: llama("sdpa", attention_dropout=0.1),
        lambda: llama("eager", attention_dropout=0.1),
        lambda: gpt2("sdpa"),
        lambda: gpt2("eager"),
        lambda: adapted("sdpa"),
    ],
    ids=["documents", "biases", "sdpa", "eager", "gpt2-sdpa", "gpt2-eager", "lora"],
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "autocast"])
def test_gradients_are_the_same_bit_for_bit_and_memory_lies_between(made, precision):
    found, peaks = [], []
    for how in CHOICES:
        torch.manual_seed(1)
        model = made().train()
        model.config.use_cache = False
        recompute(model, how)
        net = SupervisedLoss(model)
        torch.manual_seed(2)
        live = _Live(net)
        with live, torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
            loss, _ = net(BATCH, torch.ones(2))
            kept = live.live
            loss.backward()
        peaks.append(kept)
        found.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None} | {"loss": loss})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(other[name], value) for name, value in found[0].items())
    none, selective, full = peaks
    assert full < 0.75 * selective and selective < 0.9 * none


def test_an_attention_that_drops_out_is_computed_again():
    flash = torch.ops.aten._scaled_dot_product_flash_attention.default
    assert policy(None, flash, 0, 0, 0, 0.1) is CheckpointPolicy.PREFER_RECOMPUTE
    assert policy(None, flash, 0, 0, 0, dropout_p=0.1) is CheckpointPolicy.PREFER_RECOMPUTE
    assert policy(None, flash, 0, 0, 0, 0.0, True) is policy(None, flash, 0, 0, 0) is CheckpointPolicy.MUST_SAVE


def test_another_word_is_refused():
    assert SFTModule(None, config=MODEL, tokenizer="lab-base", activation_checkpointing="selective")
    with pytest.raises(ValueError, match="'full' is not false, selective or true"):
        SFTModule(None, config=MODEL, tokenizer="lab-base", activation_checkpointing="full")
