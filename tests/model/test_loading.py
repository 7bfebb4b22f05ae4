"""Loading under FSDP2: the same weights bit for bit, buffers and ties as always, whatever the dtype and the files."""

import pytest
import torch
from torch import distributed
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sftlab.data.feed import Batch
from sftlab.model import loading, parallel
from sftlab.model.adapter import LiveAdapter, LoRA
from sftlab.model.loss import SupervisedLoss

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}

IDS = torch.arange(20)
NUMBERS = {"step": 0, "lengths_D": [20], "row_lengths_R": [20], "number_D": [0], "supervised_D": torch.tensor([19])}
ZEROS = torch.zeros_like(IDS)
BATCH = Batch(ids_T=IDS, positions_T=IDS, keep_K=IDS[:-1], target_K=IDS[1:], example_K=ZEROS[1:], ability_D=ZEROS[:1],
              **NUMBERS)  # fmt: skip


@pytest.fixture
def mesh():
    """One process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    return distributed.device_mesh.init_device_mesh("cpu", (1,))


@pytest.mark.parametrize(("tied", "dtype", "shards"), [(True, torch.float32, 1), (False, torch.bfloat16, 3)])
def test_the_weights_are_those_of_the_whole_model(mesh, tmp_path, tied, dtype, shards):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)).to(dtype)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(tmp_path, max_shard_size=size // shards if shards > 1 else "1GB")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).train()
    model, files = loading.shell(str(tmp_path), "sdpa", torch.float32)
    assert (len(files) > 1) == (shards > 1) and all(p.is_meta for p in model.parameters())
    live = LiveAdapter(LoRA(r=2), model, parallel.decoder_layers(model), 1, "x")
    net = SupervisedLoss(model)
    parallel.shard(net, parallel.decoder_layers(model), mesh)
    loading.fill(net, files, torch.device("cpu"))
    live.start("")
    mine = {name: weight.full_tensor() for name, weight in model.state_dict().items() if "lora_" not in name}
    assert mine.keys() == whole.state_dict().keys()
    assert all(torch.equal(mine[name], weight) for name, weight in whole.state_dict().items())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    loss, theirs = (one(BATCH, torch.ones(1))[0] for one in (net, SupervisedLoss(whole)))
    torch.testing.assert_close(loss, theirs)
    loss.backward()
    assert all((p.grad is not None) == ("lora_" in name) for name, p in net.named_parameters())


def test_weights_under_other_names_are_loaded_whole(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)).transformer.save_pretrained(tmp_path)
    assert loading.shell(str(tmp_path), None, torch.float32) is None
    assert loading.shell("some/hub-id", None, torch.float32) is None
