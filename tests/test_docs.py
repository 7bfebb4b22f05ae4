"""What the documents show is run: every block of every page, in the order of the page, in a folder of its own.

A comment before a block says more of it: ``file: NAME``, the block is that file; ``not run: WHY``. Blocks of Python
share their names; blocks of bash are run line by line, with ``sftlab`` the command under test; YAML must be YAML.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from fitting import ROOT, environment
from forked import FORKING

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
_BLOCK = re.compile(r"(?:<!-- (file|not run): (.+?) -->\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block: its language, its text, the file that it is, and why it is not run."""

    language: str
    text: str
    file: str
    reason: str


def blocks_of(page: Path) -> list[Block]:
    found = _BLOCK.findall(page.read_text())
    return [Block(language, text, value if kind == "file" else "", value if kind == "not run" else "")
            for kind, value, language, text in found]  # fmt: skip


RUN = [page for page in PAGES if any(b.language in ("python", "bash") and not b.reason for b in blocks_of(page))]


def call(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT), str(folder)])
    inherited = {**environment(folder), "PYTHONPATH": paths}
    return FORKING.call(words, folder, inherited)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs(page, tmp_path):
    python: list[str] = []
    for block in blocks_of(page):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
        elif block.reason:
            continue
        elif block.language == "python":
            python.append(block.text)
            # All blocks so far again, so that each stands on those before it and none on this process.
            done = call(["-c", "\n".join(python)], tmp_path)
            assert done.returncode == 0, f"{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        elif block.language == "bash":
            for line in block.text.splitlines():
                command, *words = shlex.split(line, comments=True)
                known = {"sftlab": ["-m", "sftlab"], "python": []}
                done = call([*known[command], *words], tmp_path)
                assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_yaml_is_yaml_and_links_lead_somewhere(page):
    for block in blocks_of(page):
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{target} is not there"


def test_every_page_is_in_the_site():
    text = (ROOT / "mkdocs.yml").read_text()
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if page.name != "README.md"]
    assert not [page for page in pages if f" {page}\n" not in text]


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(path, tmp_path):
    done = call([str(path)], tmp_path)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-3000:]


def test_the_page_of_the_trainers_options_is_what_the_code_says():
    from sftlab.callbacks.monitors import REFUSED
    from sftlab.callbacks.trainer_options import OPTIONS, STRATEGIES

    text = (ROOT / "docs" / "trainer.md").read_text()
    told = {name: option.words for name, option in OPTIONS.items()} | STRATEGIES | REFUSED
    cells = {name: words.replace("|", "\\|").replace("<", "&lt;") for name, words in told.items()}
    assert not [name for name, words in cells.items() if f"`{name}`" not in text or words not in text]


# The options of LLaMA-Factory's SFT examples: full, LoRA and QLoRA, plain, sharded, on Ray and KTransformers.
LLAMA_FACTORY = """
    model_name_or_path trust_remote_code attn enable_liger_kernel rope_scaling torch_compile torch_compile_backend
    stage do_train finetuning_type deepspeed include_mfu lora_rank lora_target
    dataset dataset_dir template cutoff_len max_samples mask_history overwrite_cache preprocessing_num_workers
    dataloader_num_workers dataloader_prefetch_factor dataloader_persistent_workers dataloader_pin_memory
    output_dir logging_steps save_steps plot_loss overwrite_output_dir save_only_model report_to
    ray_num_workers ray_init_kwargs ray_run_name ray_storage_path placement_strategy resources_per_worker
    quantization_bit quantization_method double_quantization
    image_max_pixels video_max_pixels freeze_vision_tower freeze_multi_modal_projector freeze_language_model
    pad_to_multiple_of use_v1_kernels use_kt kt_optimize_rule cpu_infer chunk_size fp16
    per_device_train_batch_size gradient_accumulation_steps learning_rate num_train_epochs lr_scheduler_type
    warmup_ratio weight_decay max_grad_norm bf16 pure_bf16 gradient_checkpointing ddp_timeout resume_from_checkpoint
    eval_dataset val_size per_device_eval_batch_size eval_strategy eval_steps
""".split()
# All of TRL's SFTConfig, 1.x, beyond TrainingArguments; then what people set most of these.
TRL = """
    model_init_kwargs chat_template_path dataset_text_field dataset_kwargs dataset_num_proc eos_token pad_token
    max_length truncation_mode shuffle_dataset packing packing_strategy padding_free pad_to_multiple_of eval_packing
    completion_only_loss assistant_only_loss loss_type activation_offloading learning_rate
    output_dir per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps num_train_epochs
    max_steps lr_scheduler_type lr_scheduler_kwargs warmup_ratio warmup_steps weight_decay adam_beta1 adam_beta2
    adam_epsilon max_grad_norm optim optim_args bf16 fp16 tf32 gradient_checkpointing gradient_checkpointing_kwargs
    logging_steps logging_strategy logging_first_step report_to run_name save_strategy save_steps save_total_limit
    save_only_model load_best_model_at_end metric_for_best_model greater_is_better eval_strategy eval_steps seed
    data_seed dataloader_num_workers group_by_length neftune_noise_alpha label_smoothing_factor use_liger_kernel
    torch_compile deepspeed fsdp fsdp_config ddp_timeout resume_from_checkpoint push_to_hub hub_model_id
    auto_find_batch_size average_tokens_across_devices disable_tqdm
    train_dataset eval_dataset peft_config processing_class formatting_func data_collator compute_metrics callbacks
""".split()
# The options of axolotl's examples for Llama 3 (full, LoRA, QLoRA, FSDP, kernels).
AXOLOTL = """
    base_model model_type tokenizer_type tokenizer_config trust_remote_code load_in_8bit load_in_4bit strict plugins
    liger_rope liger_rms_norm liger_glu_activation liger_fused_linear_cross_entropy chat_template datasets
    dataset_prepared_path val_set_size output_dir adapter lora_model_dir lora_r lora_alpha lora_dropout
    lora_target_modules lora_target_linear lora_modules_to_save lora_fan_in_fan_out
    lora_mlp_kernel lora_qkv_kernel lora_o_kernel sequence_len sample_packing eval_sample_packing pad_to_sequence_len
    wandb_project wandb_entity wandb_watch wandb_name wandb_log_model gradient_accumulation_steps micro_batch_size
    num_epochs optimizer lr_scheduler learning_rate train_on_inputs group_by_length bf16 fp16 tf32
    gradient_checkpointing gradient_checkpointing_kwargs early_stopping_patience resume_from_checkpoint local_rank
    logging_steps xformers_attention flash_attention s2_attention warmup_steps warmup_ratio evals_per_epoch
    eval_table_size eval_max_new_tokens saves_per_epoch save_first_step debug deepspeed weight_decay fsdp fsdp_config
    special_tokens loss_watchdog_threshold loss_watchdog_patience hub_model_id
""".split()
_OURS = re.compile(r"`((?:data|model|schedule|trainer)(?:\.\w+)+|run|ckpt_path|seed_everything|\w+ --[\w-]+)`")


def is_ours(name: str) -> bool:
    """Whether a dotted key or an option of a command is there, and is not refused."""
    from importlib import import_module

    from sftlab.callbacks.schedule import StageSchedule
    from sftlab.callbacks.trainer_options import OPTIONS
    from sftlab.data.ability import MathData
    from sftlab.data.mixture import MixtureData
    from sftlab.model.adapter import LoRA
    from sftlab.model.module import SFTModule
    from sftlab.run.settings import arguments

    command, dashes, option = name.partition(" --")
    if dashes:
        return f"--{option}" in import_module(f"sftlab.commands.{command}").PARSER._option_string_actions
    root, _, rest = name.partition(".")
    if root == "trainer":
        return rest in OPTIONS and not OPTIONS[rest].is_refused
    if rest.startswith("abilities."):
        return rest.count(".") == 2 and rest.split(".")[2] in arguments(MathData)
    if rest.startswith("adapter."):
        return rest.removeprefix("adapter.") in arguments(LoRA)
    known = {"data": MixtureData, "model": SFTModule, "schedule": StageSchedule}
    return name in ("run", "ckpt_path", "seed_everything") or rest in arguments(known[root])


def test_every_option_of_ours_that_the_page_for_newcomers_names_is_there():
    text = (ROOT / "docs" / "coming-from.md").read_text()
    named = {
        name for line in text.splitlines() if line.startswith("| `") for name in _OURS.findall(line.split("|", 2)[2])
    }
    assert len(named) > 30 and "model.lr_schedule" in named and "export --push" in named
    assert not [name for name in sorted(named) if not is_ours(name)]
    assert not is_ours("model.lr_scheduler") and not is_ours("trainer.max_epochs") and not is_ours("export --pull")


@pytest.mark.parametrize(("page", "options"), [("LLaMA-Factory", LLAMA_FACTORY), ("TRL", TRL), ("axolotl", AXOLOTL)])
def test_every_option_of_theirs_is_told_and_what_is_not_here_says_why(page, options):
    text = (ROOT / "docs" / "coming-from.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.split(f"## {page}")[1].split("\n## ")[0].splitlines()]
    rows = [row for row in rows if row and row[0].startswith(" `")]
    told = [name for row in rows for name in re.findall(r"`(\w+)", row[0])]
    assert not sorted(set(options) - set(told))
    assert all(len(row) == 3 for row in rows)
    assert not [row[0] for row in rows if row[1].strip() == "-" and len(row[2].split()) < 2], "not here, and no reason"
