"""What a run needs before it starts: counted on shapes alone, as it is counted on real tensors; hardware by name."""

import dataclasses

import pytest
import torch
from fitting import write_records
from lightning.pytorch.strategies import DDPStrategy
from small import MODEL, small_mixture

from sftlab.callbacks.schedule import MultiTask
from sftlab.commands.plan import main as plan_command
from sftlab.data.feed import collate
from sftlab.model.adapter import LoRA
from sftlab.model.memory import Setup, _Live, estimate
from sftlab.model.module import SFTModule
from sftlab.model.needs import changes, needs_screen, other_trainings, planned_setup
from sftlab.model.optim import BETAS, build_optimizer
from sftlab.model.parallel import FSDP2Strategy
from sftlab.plan.hardware import GIB, Device, Hardware, read_hardware

CPU = Setup(precision="32-true", is_cpu=True)
GPU = Hardware(8, Device("GPU", 1.0, None, "nowhere"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFTLAB_CACHE", str(folder / "cache"))
        patch.setenv("PL_GLOBAL_SEED", "5")
        write_records(folder)
        config = {**MODEL, "attention_dropout": 0.0, "num_key_value_heads": 1}
        module, data = SFTModule(None, config=config, tokenizer="lab-base"), small_mixture(folder)
        yield module, data, MultiTask(steps=6).compile(data, module)


@pytest.fixture(scope="module")
def whole(small):
    return estimate(small[0], small[2], CPU)


def test_shapes_alone_give_what_real_tensors_give(small, whole):
    module, data, plan = small
    found = whole
    module.attention = "per_document"
    module.configure_model()
    net = module.net
    tables = {name: ability.examples for name, ability in data.abilities.items()}
    batches = [collate(step, plan.rows(step), plan, tables) for step in range(plan.num_steps)]
    batch = max(batches, key=lambda one: len(one.ids_T))
    assert len(batch.ids_T) == found.num_tokens
    weights = sum(p.numel() * 4 for p in net.parameters())
    live = _Live(net)
    with live:
        loss, _ = net(batch, torch.ones(len(batch.lengths_D)))
        forward, live.peak = live.peak + weights, live.live  # with the gradients of the step before
        loss.backward()
    assert (found.parameters, found.optimizer) == (weights, 2 * weights)
    assert found.activations + found.logits + found.gradients == pytest.approx(max(forward, live.peak), rel=0.02)


def test_memory_knobs_do_what_they_are_for(small, whole):
    module, _, plan = small
    sharded = estimate(module, plan, dataclasses.replace(CPU, world=2, is_sharded=True, accumulate=2))
    assert sharded.num_tokens < whole.num_tokens and sharded.activations < whole.activations
    assert sharded.parameters == whole.parameters // 2 and sharded.gathered > 0 == whole.gathered
    knobs = {"adapter": LoRA(r=2), "checkpointing": True, "chunk_tokens": 8}
    least = estimate(module, plan, dataclasses.replace(CPU, **knobs))
    assert least.num_trained < 0.1 * least.num_parameters and least.optimizer < 0.1 * whole.optimizer
    assert least.activations < whole.activations and least.logits < whole.logits / 2


def test_what_selective_checkpointing_keeps_lies_between_all_and_the_layers_inputs(small, whole):
    selective, full = (
        estimate(*small[::2], dataclasses.replace(CPU, checkpointing=how)) for how in ("selective", True)
    )
    assert full.activations < 0.8 * selective.activations and selective.activations < 0.9 * whole.activations


def test_groups_hold_more_each_offloading_holds_it_elsewhere_and_gradients_may_be_whole(small):
    sharded = dataclasses.replace(CPU, world=8, is_sharded=True, accumulate=2, is_cpu=False)
    changed = ({}, {"shard_size": 2}, {"cpu_offload": True}, {"reduce_once": True})
    plain, groups, offloaded, once = (estimate(*small[::2], dataclasses.replace(sharded, **one)) for one in changed)
    weights = 4 * plain.num_parameters
    assert (plain.parameters, plain.optimizer, plain.host) == (weights // 8, 2 * weights // 8, 0)
    assert (groups.parameters, groups.optimizer) == (weights // 2, 2 * weights // 2)
    assert (offloaded.parameters, offloaded.optimizer, offloaded.host, offloaded.state) == (
        0,
        0,
        weights // 2,
        2 * weights,
    )
    assert offloaded.gradients < plain.gradients and offloaded.gathered == plain.gathered
    assert once.total - plain.total == pytest.approx(weights * 7 / 8, rel=0.01)
    said = text_of(needs_screen(*small[::2], dataclasses.replace(sharded, cpu_offload=True, shard_size=4), GPU, 0.4))
    assert "sharded by FSDP2 in groups of 4" in said and "in its host's memory" in said


@pytest.mark.parametrize(
    ("optimizer", "bytes_each"),
    [(None, 8), ("SGD", 0), ({"class_path": "SGD", "init_args": {"momentum": 0.9}}, 4), ("AdamWScheduleFree", 8)],
)
def test_what_an_optimizer_keeps_is_weighed(small, optimizer, bytes_each):
    module = SFTModule(None, config=small[0].config, tokenizer="lab-base", optimizer=optimizer)
    found = estimate(module, small[2], CPU)
    assert found.optimizer == bytes_each * found.num_parameters
    net = small[0].net or (small[0].configure_model(), small[0].net)[1]
    made = build_optimizer(net, module.optimizer, 0.0, BETAS)
    getattr(made, "train", lambda: None)()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    made.step()
    held = [v for state in made.state.values() for v in state.values() if isinstance(v, torch.Tensor) and v.numel() > 1]
    assert sum(v.numel() * v.element_size() for v in held) == found.optimizer
    net.zero_grad()


def test_muon_keeps_one_moment_of_matrices_inside_and_two_of_the_rest(small):
    module = SFTModule(None, config=small[0].config, tokenizer="lab-base", optimizer="Muon")
    found = estimate(module, small[2], CPU)
    matrices = sum(p.numel() for name, p in small[0].net.named_parameters() if ".layers." in name and p.ndim == 2)
    assert found.optimizer == 8 * found.num_parameters - 4 * matrices


def test_frozen_weights_need_neither_gradients_nor_optimizer(small, whole):
    module = SFTModule(None, config=small[0].config, tokenizer="lab-base", frozen=["model.embed_tokens", "lm_head"])
    found = estimate(module, small[2], CPU)
    left = found.num_parameters - 2 * 1024 * 32
    assert found.num_trained == left and found.optimizer == 8 * left
    assert found.parameters == whole.parameters and found.activations < whole.activations


def test_a_stages_own_optimizer_counts(small):
    module = SFTModule(None, config=small[0].config, tokenizer="lab-base", optimizer="SGD")
    schedule = MultiTask(steps=6, per_stage={"all": {"optimizer": "AdamW"}})
    found = estimate(module, schedule.compile(small[1], module), CPU)
    assert found.optimizer == 8 * found.num_parameters


def test_bf16_under_fsdp2_halves_what_is_gathered_and_computed_and_keeps_fp32(small):
    module, _, plan = small
    sharded = dataclasses.replace(CPU, world=2, is_sharded=True)
    full, mixed = (estimate(module, plan, dataclasses.replace(sharded, precision=p)) for p in ("32-true", "bf16-mixed"))
    assert (mixed.parameters, mixed.optimizer) == (full.parameters, full.optimizer)
    assert mixed.gathered == full.gathered // 2 and mixed.activations < 0.7 * full.activations


def test_products_that_a_cpu_compiles_in_bf16_are_counted_by_their_shapes(small, whole):
    module, data, plan = small
    tables = {name: ability.examples for name, ability in data.abilities.items()}
    tokens = [len(collate(step, plan.rows(step), plan, tables).ids_T) for step in range(plan.num_steps)]
    lengths = len({-(-size // 64) for size in tokens})
    mixed = dataclasses.replace(CPU, precision="bf16-mixed")
    found, lora = (estimate(module, plan, dataclasses.replace(mixed, adapter=one)) for one in (None, LoRA(r=2)))
    linears, pairs = 5, 7  # width to width, keys and values, up, down, head; into A and out of B by those widths
    assert found.kernels == int((11 + 0.56 * 3 * linears * lengths) * 2**20)
    assert lora.kernels > int((11 + 0.56 * (2 * linears + pairs) * lengths) * 2**20)
    assert whole.kernels == 0 == estimate(module, plan, dataclasses.replace(mixed, is_cpu=False)).kernels
    sharded = estimate(module, plan, dataclasses.replace(mixed, is_sharded=True))
    assert sharded.kernels == int((11 + 0.56 * (3 * linears * lengths + 4 * linears)) * 2**20)  # tried in bf16, too
    hardware = Hardware(1, Device("CPU", 1.0, None, "nowhere"))
    assert "for products in bf16" in text_of(needs_screen(module, plan, mixed, hardware, 0.5))


def text_of(screen) -> str:
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(screen)
    return capture.get()


def test_what_to_change_is_tried_before_it_is_said(small, whole):
    module, _, plan = small
    setups = [setup for _, setup in changes(plan, CPU)]
    enough = estimate(module, plan, setups[0]).total
    assert enough < whole.total

    def said(total: float) -> str:
        hardware = Hardware(1, Device("CPU", total / GIB / 0.92, 100.0, "nowhere"))
        return text_of(needs_screen(module, plan, CPU, hardware, 0.5))

    fits = said(whole.total + 1000)
    assert "It fits" in fits and "hours at 50% of 100 TFLOP/s (nowhere)" in fits
    assert "It would with trainer.accumulate_grad_batches" in said(enough + 1000)
    *_, (_, least) = changes(plan, CPU)
    few = estimate(module, plan, dataclasses.replace(least, adapter=LoRA())).total
    assert few < estimate(module, plan, least).total and "would fit" in (words := said(few + 1000))
    assert "model.adapter: LoRA, trainer.accumulate_grad_batches" in words and "bf16-true" not in words
    assert "take more devices" in said(1000)


def test_who_trains_few_weights_already_is_told_of_their_type(small):
    module, _, plan = small
    setup = dataclasses.replace(CPU, adapter=LoRA(), precision="bf16-mixed")
    [(_, changed)] = other_trainings(plan, setup)
    hardware = Hardware(1, Device("CPU", (estimate(module, plan, changed).total + 1000) / GIB / 0.92, None, "nowhere"))
    words = text_of(needs_screen(module, plan, setup, hardware, 0.5))
    assert "trainer.precision: bf16-true" in words and "model.adapter" not in words


def test_hardware_is_read_by_name(small):
    assert read_hardware("8xA100-80GB").count == 8 and read_hardware("h200").device.memory_gib == 141
    assert read_hardware("this").count >= 1
    with pytest.raises(ValueError, match="did you mean A100-80GB"):
        read_hardware("8xA100-80G")
    with pytest.raises(ValueError, match="no device"):
        plan_command(["--hardware", "0xL4", "--config", "x.yaml"])
    eight = read_hardware("8xL4")
    strategies = {None: True, "fsdp2": True, "ddp": False, DDPStrategy(): False, FSDP2Strategy(): True}
    for strategy, is_sharded in strategies.items():
        assert planned_setup(small[0], {"strategy": strategy}, eight).is_sharded == is_sharded
    groups = planned_setup(small[0], {"strategy": FSDP2Strategy(shard_size=4)}, eight)
    assert (groups.world, groups.ranks) == (8, 4)
    with pytest.raises(ValueError, match="make no groups of 3"):
        planned_setup(small[0], {"strategy": FSDP2Strategy(shard_size=3)}, eight)


def test_what_glibc_adds_is_told_unless_it_is_set(small, monkeypatch):
    cpu = Hardware(1, Device("CPU", 8.0, None, "nowhere"))
    for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    assert "MALLOC_MMAP_THRESHOLD_=65536" in text_of(needs_screen(*small[::2], CPU, cpu, 0.4))
    assert "glibc" not in text_of(needs_screen(*small[::2], dataclasses.replace(CPU, is_cpu=False), GPU, 0.4))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    assert "glibc" not in text_of(needs_screen(*small[::2], CPU, cpu, 0.4))
