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


# The options of LLaMA-Factory's SFT examples, full and LoRA (llama3 and qwen3, plain, sharded and on Ray).
LLAMA_FACTORY = """
    model_name_or_path trust_remote_code attn enable_liger_kernel rope_scaling torch_compile torch_compile_backend
    stage do_train finetuning_type deepspeed include_mfu lora_rank lora_target
    dataset dataset_dir template cutoff_len max_samples mask_history overwrite_cache preprocessing_num_workers
    dataloader_num_workers dataloader_prefetch_factor dataloader_persistent_workers dataloader_pin_memory
    output_dir logging_steps save_steps plot_loss overwrite_output_dir save_only_model report_to
    ray_num_workers ray_init_kwargs
    per_device_train_batch_size gradient_accumulation_steps learning_rate num_train_epochs lr_scheduler_type
    warmup_ratio weight_decay max_grad_norm bf16 pure_bf16 gradient_checkpointing ddp_timeout resume_from_checkpoint
    eval_dataset val_size per_device_eval_batch_size eval_strategy eval_steps
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


def test_every_option_of_llama_factorys_examples_is_told():
    text = (ROOT / "docs" / "coming-from.md").read_text()
    part = text.split("## LLaMA-Factory")[1].split("\n## ")[0]
    told = {
        name
        for line in part.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)", line.split("|")[1])
    }
    assert not sorted(set(LLAMA_FACTORY) - told)
