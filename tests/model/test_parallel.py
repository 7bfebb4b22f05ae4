"""FSDP2's precision: bf16 where it computes and gathers, fp32 where it keeps and reduces; an exact resume."""

import json
from types import SimpleNamespace

import pytest
import torch
from fitting import ROOT, environment, write_records
from forked import FORKING
from lightning.pytorch import Callback
from safetensors.torch import load_file
from small import MODEL, small_fit, small_mixture, trained
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM, Qwen3Config

from sftlab.callbacks.schedule import MultiTask
from sftlab.model.checkpoint import gathered
from sftlab.model.parallel import FSDP2Strategy, check_groups, divide, gathers_in_bf16, register_strategies
from sftlab.model.tensor_parallel import check_divisible, divide_layers
from sftlab.processes import free_port
from sftlab.run.folder import complete_checkpoints
from sftlab.run.settings import Settings

SHARDED = {"strategy": "fsdp2", "precision": "bf16-mixed"}


class Seen(Callback):
    """Which types a step has: of products, of what the optimizer steps with, of what is kept."""

    changes_training = False

    def __init__(self):
        self.products, self.kept = set(), set()

    def on_train_start(self, trainer, pl_module):
        for layer in pl_module.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_hook(lambda linear, _, out: self.products.add((linear.weight.dtype, out.dtype)))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        weights = [p for p in pl_module.parameters() if p.grad is not None]
        self.kept |= {(p.dtype, p.grad.dtype) for p in weights}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFTLAB_CACHE", str(folder / "cache"))
        patch.setenv("PL_GLOBAL_SEED", "1")  # as small_fit seeds
        write_records(folder)
        register_strategies()
        yield folder


@pytest.fixture(scope="module")
def sharded(folder):
    seen = Seen()
    _, lines = small_fit(folder / "sharded", MultiTask(steps=6), small_mixture(folder), seen, **SHARDED)
    return seen, trained(lines)


def test_weights_are_gathered_in_bf16_and_kept_and_reduced_in_fp32(sharded):
    assert sharded[0].products == {(torch.bfloat16, torch.bfloat16)}
    assert sharded[0].kept == {(torch.float32, torch.float32)}


def test_losses_are_those_of_autocast_and_of_fp32_within_rounding(folder, monkeypatch):
    monkeypatch.setitem(MODEL, "attention_dropout", 0.0)  # it would draw other numbers in another type
    seen = []
    for name, how in (("fp32", {"precision": "32-true"}), ("auto", {"precision": "bf16-mixed"}), ("fsdp2", SHARDED)):
        _, lines = small_fit(folder / name, MultiTask(steps=5), small_mixture(folder), **how)
        seen.append([line["train/loss"] for line in trained(lines)])
    full, autocast, sharded = (torch.tensor(losses) for losses in seen)
    torch.testing.assert_close(autocast, full, rtol=1e-3, atol=0)
    torch.testing.assert_close(sharded, full, rtol=1e-3, atol=0)
    assert not torch.equal(sharded, autocast) and len(full) == 5


def test_a_resume_is_exact(folder, sharded):
    cut = folder / "cut"
    small_fit(cut, MultiTask(steps=6), small_mixture(folder), max_steps=3, **SHARDED)
    (checkpoint,) = complete_checkpoints(cut)
    _, lines = small_fit(cut, MultiTask(steps=6), small_mixture(folder), ckpt_path=checkpoint, **SHARDED)
    assert trained(lines) == sharded[1]


def test_going_on_by_autocast_is_refused_and_the_keys_differ(folder):
    (checkpoint,) = complete_checkpoints(folder / "sharded")
    with pytest.raises(ValueError, match=r"trainer.precision \(.bf16-mixed under FSDP2., now .bf16-mixed.\)"):
        small_fit(
            folder / "other", MultiTask(steps=6), small_mixture(folder), ckpt_path=checkpoint, precision="bf16-mixed"
        )
    strategy = {"class_path": "sftlab.model.parallel.FSDP2Strategy"}
    by_name, by_class, alone = (
        Settings.of_arguments({"precision": "bf16-mixed", "strategy": one}, 1).trained["precision"]
        for one in ("fsdp2", strategy, "ddp")
    )
    assert by_name == by_class != alone
    full = [Settings.of_arguments({"precision": "32-true", "strategy": one}, 1) for one in ("fsdp2", "ddp")]
    assert full[0] == full[1]


def test_an_architecture_that_keeps_weights_in_fp32_goes_by_autocast():
    from lightning.pytorch.plugins.precision import MixedPrecision

    strategy, net = FSDP2Strategy(), torch.nn.Linear(2, 2)
    strategy.precision_plugin = MixedPrecision("bf16-mixed", "cpu")
    assert gathers_in_bf16(strategy.precision_plugin, net)
    with strategy.precision_plugin.forward_context():
        assert not torch.is_autocast_enabled("cpu")
    net._keep_in_fp32_modules_strict = ["gate"]
    assert not gathers_in_bf16(strategy.precision_plugin, net)
    with strategy.precision_plugin.forward_context():
        assert torch.is_autocast_enabled("cpu")


@pytest.fixture(scope="module")
def many(folder):
    """Four processes: every way of dividing weights among them."""
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("127.0.0.1")), "PL_GLOBAL_SEED": "1"}
    place, script = folder / "many", str(ROOT / "tests" / "sharded_runs.py")
    place.mkdir()
    write_records(place)
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**{**MODEL, "attention_dropout": 0.0})).save_pretrained(place / "base")
    ranks = [
        FORKING.start([script, str(place), "4"], place, {**environment(place), **together, "LOCAL_RANK": str(rank)})
        for rank in range(4)
    ]
    said = [rank.communicate() for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), said[0][1][-3000:]
    return place


def losses_and_weights(place):
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    told = [{k: v for k, v in line.items() if "/loss" in k} for line in lines]
    return [line for line in told if line], load_file(place / "stages/0-all/model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["groups", "once", "resumed", "tensor"])
def test_every_way_of_dividing_weights_trains_the_same(many, way):
    (mine, weights), (losses, wanted) = (losses_and_weights(many / name) for name in (way, "plain"))
    assert sum("train/loss/math" in line for line in losses) == 4 and any("val/loss/math" in line for line in losses)
    assert all(one == pytest.approx(other, rel=1e-6) for one, other in zip(mine, losses, strict=True))
    # AdamW moves a weight whose gradient is next to nothing by its rounding: at most a hundredth of a step here.
    bound = 1e-4 if way in ("tensor", "resumed") else 1e-5
    for name, weight in wanted.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=bound)
    of_shards = gathered(complete_checkpoints(many / way)[-1])["state_dict"]
    assert all(torch.equal(of_shards[f"net.model.{name}"], weight) for name, weight in weights.items())


@pytest.mark.slow
def test_gradients_are_reduced_no_more_often_than_need_be(many):
    calls = json.loads((many / "calls.json").read_text())
    parts, steps = 3, 4  # two layers and what is around them
    assert calls["once"] == {"divided": parts * steps}
    assert calls["tensor"]["divided"] == 2 * parts * steps
    assert calls["plain"] == {"divided": 2 * parts * steps}
    assert calls["groups"] == {"divided": 2 * parts * steps, "exchanged": parts * steps}


def test_processes_that_make_no_groups_are_refused():
    with pytest.raises(ValueError, match=r"shard_size: 6 processes make no groups of 4; possible: 1, 2, 3, 6"):
        check_groups(4, 6)
    with pytest.raises(ValueError, match="shard_size"):
        FSDP2Strategy(shard_size=0)


@pytest.mark.parametrize(
    ("config", "size", "said"),
    [
        (LlamaConfig(**MODEL), 2, ""),
        (LlamaConfig(**MODEL), 4, "num_attention_heads, 2, is no multiple of it"),
        (LlamaConfig(num_attention_heads=4, num_key_value_heads=2), 4, "num_key_value_heads, 2, is no multiple"),
        (Qwen3Config(), 2, "a plan with .* for qwen3"),
        (GPT2Config(), 2, "no plan for it for gpt2"),
    ],
)
def test_architectures_that_cannot_be_divided_are_refused(config, size, said):
    if not said:
        assert set(check_divisible(config, size).values()) == {"colwise", "rowwise"}
        return
    with pytest.raises(ValueError, match=rf"tensor_parallel_size: {size}: .*{said}"):
        check_divisible(config, size)


@pytest.mark.parametrize(
    ("kind", "options", "weight"),
    [("phi", {"qk_layernorm": True}, "q_layernorm"), ("cohere", {"use_qk_norm": True}, "q_norm")],
)
def test_a_norm_of_heads_between_divided_matrices_is_refused(kind, options, weight):
    # It sees the heads of one process alone, so each would train it by a gradient of its own.
    config = AutoConfig.for_model(kind, **{**MODEL, "vocab_size": 64, "pad_token_id": 0, **options})
    model, group = AutoModelForCausalLM.from_config(config), SimpleNamespace(size=lambda: 2)
    with pytest.raises(ValueError, match=rf"tensor_parallel_size: 2: .* leaves layers\.0\.self_attn\.{weight}\."):
        divide_layers(model, group)


def test_what_does_not_go_with_tensor_parallelism_is_refused():
    with pytest.raises(ValueError, match="give one"):
        FSDP2Strategy(shard_size=2, tensor_parallel_size=2)
    with pytest.raises(ValueError, match="tensor_parallel_size"):
        FSDP2Strategy(tensor_parallel_size=0)
    with pytest.raises(ValueError, match="tensor_parallel_size: 6 processes make no groups of 4; possible: 1, 2, 3, 6"):
        check_groups(4, 6, "tensor_parallel_size")
    with pytest.raises(ValueError, match="adapter does not go with it"):
        divide(torch.nn.Linear(1, 1), FSDP2Strategy(tensor_parallel_size=2), object())
