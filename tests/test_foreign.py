"""Keys of other tools, in a config of ours: each is told what it is called here, or why it is not there."""

import pytest

from sftlab.cli import config_problems
from sftlab.foreign import called_here

GOOD = {"data": {}, "schedule": "MultiTask"}


@pytest.mark.parametrize(
    ("key", "here"),
    [
        ("gradient_accumulation_steps", "trainer.accumulate_grad_batches"),
        ("per_device_train_batch_size", "data.batch"),
        ("micro_batch_size", "data.batch"),
        ("num_train_epochs", "schedule.epochs"),
        ("num_epochs", "schedule.epochs"),
        ("model_name_or_path", "model.path"),
        ("base_model", "model.path"),
        ("max_grad_norm", "trainer.gradient_clip_val"),
        ("lora_alpha", "model.adapter.alpha"),
        ("cutoff_len", "data.max_length"),
        ("sequence_len", "data.max_length"),
        ("save_steps", "trainer.callbacks"),
        ("bf16", "trainer.precision"),
        ("val_set_size", "data.abilities.<name>.val_fraction"),
        ("resume_from_checkpoint", "ckpt_path"),
    ],
)
@pytest.mark.parametrize("section", ["", "trainer", "model"])
def test_a_key_of_another_tool_is_told_what_it_is_here(key, here, section):
    config = {**GOOD, **({section: {key: 1}} if section else {key: 1})}
    (problem,) = config_problems(config)
    where = f"{section}.{key}" if section else key
    assert problem.startswith(f"{where}: no such key") and f"{key} of other tools is {here} here" in problem


def test_what_is_not_here_says_why_and_a_slip_of_ours_still_names_the_nearest():
    (problem,) = config_problems({**GOOD, "trainer": {"group_by_length": True}})
    assert "there is no group_by_length here: packing needs no order by length" in problem
    (problem,) = config_problems({**GOOD, "trainer": {"acumulate_grad_batches": 2}})
    assert problem.endswith("did you mean accumulate_grad_batches?")
    assert called_here("acumulate_grad_batches") is None


def test_an_option_that_means_several_things_tells_each_of_its_values():
    told = called_here("finetuning_type")
    assert called_here("finetuning_type", "full") == "finetuning_type: full of other tools is the default"
    assert "full: the default" in told and "freeze: model.frozen here" in told and "lora: model.adapter here" in told
    assert (
        called_here("adapter") == "adapter of other tools is, for lora: model.adapter here ({class_path: LoRA}); "
        "qlora: model.adapter.quantise here (nf4)"
    )
    assert "finetuning_type of other tools is, for full" in config_problems({**GOOD, "finetuning_type": "lora"})[0]
