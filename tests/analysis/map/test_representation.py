"""Hidden states: those of each prompt alone, whatever the batch; which layer and which tokens are meant."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from sftlab.analysis.map.representation import HiddenStates, layer_number, pooled_spans, write_hidden_states
from sftlab.model.parallel import decoder_layers

CONFIGS = {
    "llama": LlamaConfig(vocab_size=60, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64),
    "qwen2": Qwen2Config(vocab_size=60, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64),
    "gpt2": GPT2Config(vocab_size=60, n_embd=24, n_layer=2, n_head=4, n_positions=64),
}  # fmt: skip


def model_of(name: str):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


def some_prompts(count: int = 13) -> list[list[int]]:
    """Prompts of 1 to 30 tokens of their own between a beginning and an end that all share."""
    rng = np.random.default_rng(1)
    own = [rng.integers(10, 60, size=int(rng.integers(1, 31))).tolist() for _ in range(count)]
    return [[1, 2, 3, *ids, 4, 5] for ids in [*own, [10], [59, 11]]]


@pytest.mark.parametrize("name", CONFIGS)
def test_states_are_those_of_each_prompt_alone(name, tmp_path):
    model, prompts = model_of(name), some_prompts()
    states = write_hidden_states(model, prompts, tmp_path / "hidden", batch_tokens=100)
    assert states.num_blocks == model.config.num_hidden_layers
    norm = model.base_model.norm if hasattr(model.base_model, "norm") else model.base_model.ln_f
    for row, ids in enumerate(prompts):
        with torch.no_grad():
            alone = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            ours = [torch.tensor(np.array(states.layer(i)[row])) for i in range(states.num_blocks + 1)]
            ours[-1] = norm(ours[-1])  # transformers hands out the last block's states after the norm
        for mine, theirs in zip(ours, alone, strict=True):
            torch.testing.assert_close(mine, theirs[0, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_states_do_not_depend_on_the_batch(pooling, tmp_path):
    model, prompts = model_of("llama"), some_prompts()
    alone = write_hidden_states(model, prompts, tmp_path / "alone", pooling, batch_tokens=1)
    together = write_hidden_states(model, prompts, tmp_path / "together", pooling, batch_tokens=10_000)
    for layer in range(alone.num_blocks + 1):
        np.testing.assert_allclose(alone.layer(layer), together.layer(layer), rtol=1e-4, atol=1e-6)
    assert np.ptp(alone.layer(1), axis=0).max() > 1e-3  # they differ from prompt to prompt at all


def test_a_model_in_bf16_is_pooled_in_fp32(tmp_path):
    prompts = some_prompts()
    exact = write_hidden_states(model_of("llama"), prompts, tmp_path / "exact", "mean")
    rough = write_hidden_states(model_of("llama").bfloat16(), prompts, tmp_path / "rough", "mean")
    assert rough.layer(3).dtype == np.float32
    np.testing.assert_allclose(rough.layer(3), exact.layer(3), atol=0.02 * np.abs(exact.layer(3)).max())


def test_mean_is_over_what_differs(tmp_path):
    model, prompts = model_of("llama"), some_prompts()
    states = write_hidden_states(model, prompts, tmp_path / "hidden", "mean")
    for row, ids in enumerate(prompts):
        with torch.no_grad():
            alone = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, 3:-2].mean(0)
        np.testing.assert_allclose(states.layer(2)[row], alone.numpy(), rtol=1e-4, atol=1e-5)


def test_spans():
    assert pooled_spans([[1, 2], [1, 2, 3]], "last") == [(1, 2), (2, 3)]
    assert pooled_spans([[7, 1, 9], [7, 2, 3, 9]], "mean") == [(1, 2), (1, 3)]
    assert pooled_spans([[7, 8], [7, 8, 8]], "mean") == [(1, 2), (2, 3)]  # never empty
    with pytest.raises(ValueError, match="--pooling: 'max' is not one of last, mean"):
        pooled_spans([[1]], "max")


def test_files_hold_one_layer_each_and_are_mapped(tmp_path):
    states = write_hidden_states(model_of("llama"), some_prompts(), tmp_path / "hidden")
    assert sorted(path.name for path in states.folder.iterdir()) == [f"layer_00{i}.npy" for i in range(4)]
    layer = HiddenStates(tmp_path / "hidden", 3).layer(3)
    assert isinstance(layer, np.memmap) and layer.shape == (15, 24) and layer.dtype == np.float32


def test_no_hook_stays_and_nothing_appears_when_it_fails(tmp_path):
    model = model_of("llama")
    write_hidden_states(model, [[1, 2, 3]], tmp_path / "fine")
    with pytest.raises(IndexError):
        write_hidden_states(model, [[1, 2, 3], [1, 2, 600]], tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_prompt_that_the_model_cannot_read_is_told(tmp_path):
    with pytest.raises(ValueError, match="70 tokens long as a prompt and the model reads 64"):
        write_hidden_states(model_of("llama"), [[1] * 70], tmp_path / "hidden")


@pytest.mark.parametrize(
    ("text", "num_blocks", "layer"),
    [("15", 40, 15), ("0", 4, 0), ("1", 4, 1), ("1.0", 4, 4), ("0.0", 4, 0), ("0.67", 4, 3), ("0.375", 40, 15),
     ("0.5", 3, 2), ("40", 40, 40)],
)  # fmt: skip
def test_layers_by_number_and_by_fraction(text, num_blocks, layer):
    assert layer_number(text, num_blocks) == layer


@pytest.mark.parametrize("text", ["5", "-1", "1.2", "-0.5", "half", "", "nan", "1e-1", "2.0"])
def test_bad_layers_are_told(text):
    with pytest.raises(ValueError, match=r"--layer: .* is not a layer; give 0 \(embeddings\) to 4"):
        layer_number(text, 4)


def test_the_experts_of_a_block_are_not_taken_for_the_blocks():
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(8))

    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(Block() for _ in range(3))
    assert decoder_layers(model) is model.layers
