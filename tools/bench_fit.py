"""Training speed and memory: fit against a bare PyTorch loop on the same rows, and against TRL's SFTTrainer.

    .venv/bin/python tools/bench_fit.py                         # fit and the bare loop
    .venv/bin/python tools/bench_fit.py --trl --precision bf16  # TRL too, with padding and with packing

Every contestant trains in a process of its own, in turn (A B C A B C ...), on one thread: a LLaMA of 10M parameters,
short chats, about 1,000 tokens a step, AdamW, clipping at 1.0. A figure is real tokens (no padding) per second of
training, from the first step's start to the last one's end; the table gives medians and ratios to the bare loop.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [
    *("river", "stone", "cloud", "house", "green", "music", "table", "light", "paper", "bread", "winter", "garden"),
    *("silver", "mountain", "forest", "window", "coffee", "letter", "planet", "bridge", "answer", "question"),
    *("number", "always", "never", "because", "people", "would", "about", "there", "which", "other", "after"),
]
MODEL = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 11,
    "num_attention_heads": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROW_TOKENS, ROWS_PER_STEP, CHATS_PER_STEP = 512, 2, 16


def write_inputs(folder: Path, num_chats: int) -> None:
    """Chats of two turns, about 50 tokens each, and a tokenizer trained on them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(0)
    chats = []
    for _ in range(num_chats):
        ask, say = (" ".join(rng.choices(WORDS, k=rng.randint(5, 35))) for _ in range(2))
        chats.append({"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]})
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8192, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator((m["content"] for chat in chats for m in chat["messages"]), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512
    )
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} ASSISTANT:"
        "{% else %}{% generation %} {{ m.content }}</s>{% endgeneration %}{% endif %}{% endfor %}"
    )
    fast.save_pretrained(folder / "tokenizer")


def planned(folder: Path):
    """Data, schedule and module, as a user of the library builds them."""
    from sftlab.callbacks.schedule import MultiTask
    from sftlab.data.ability import AbilityData
    from sftlab.data.mixture import MixtureData
    from sftlab.model.module import SFTModule

    data = MixtureData(
        {"chat": AbilityData(str(folder / "chats.jsonl"))},
        template="vicuna_short",
        max_length=ROW_TOKENS,
        batch={"rows": ROWS_PER_STEP},
        seed=0,
    )
    module = SFTModule(config=MODEL, tokenizer=str(folder / "tokenizer"), learning_rate=1e-3, path=None)
    return data, MultiTask(epochs=1), module


def run_fit(folder: Path, precision: str) -> tuple[int, float]:
    """The package, through Lightning's Trainer."""
    from lightning.pytorch import Trainer

    from sftlab.callbacks.metrics import JsonlLogger, Metrics

    data, schedule, module = planned(folder)
    timer = _timer()
    with tempfile.TemporaryDirectory() as run:
        trainer = Trainer(
            callbacks=[timer, schedule, Metrics()], logger=JsonlLogger(run), precision=precision, gradient_clip_val=1.0,
            enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False, default_root_dir=run,
            accelerator="cpu", use_distributed_sampler=False, max_epochs=-1, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
    plan = data.plan
    assert plan is not None
    return int(plan.lengths_N[plan.example_E].sum()), timer.seconds


def _timer():
    from lightning.pytorch import Callback

    class Timer(Callback):
        seconds = start = 0.0

        def on_train_batch_start(self, *_: object) -> None:
            self.start = self.start or time.perf_counter()

        def on_train_batch_end(self, *_: object) -> None:
            self.seconds = time.perf_counter() - self.start

    return Timer()


def run_bare(folder: Path, precision: str) -> tuple[int, float]:
    """A loop written by hand over the same rows, with the same attention and loss."""
    import torch
    import torch.nn.functional as F

    from sftlab.data.feed import PlanLoader
    from sftlab.model.backbone import build_backbone
    from sftlab.model.optim import learning_rate_at
    from sftlab.plan.rate import Cosine

    data, schedule, module = planned(folder)
    plan = schedule.compile(data, module)
    model = build_backbone(None, MODEL, "per_document")
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), weight_decay=0.0, fused=True)
    loader = PlanLoader(plan, {"chat": data.abilities["chat"].examples})
    start = time.perf_counter()
    for step, batch in enumerate(loader):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            hidden = model.model(
                input_ids=batch.ids_T[None], position_ids=batch.positions_T[None], use_cache=False,
                document_lengths=batch.lengths_D,
            ).last_hidden_state[0]  # fmt: skip
            loss = F.cross_entropy(model.lm_head(hidden[batch.keep_K]).float(), batch.target_K)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(plan, step, 1e-3, (0.03, None), Cosine())
        optimizer.step()
        optimizer.zero_grad()
    return int(plan.lengths_N[plan.example_E].sum()), time.perf_counter() - start


def run_trl(folder: Path, precision: str, packing: bool) -> tuple[int, float]:
    """TRL's SFTTrainer, loss on the assistant's tokens, gradient checkpointing off."""
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Timer(TrainerCallback):
        start = 0.0

        def on_step_begin(self, *_: object, **__: object) -> None:
            self.start = self.start or time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            self.seconds = time.perf_counter() - self.start

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    records = [json.loads(line) for line in (folder / "chats.jsonl").open()]
    tokens = sum(len(tokenizer.apply_chat_template(r["messages"], return_dict=False)) for r in records)
    timer = Timer()
    with tempfile.TemporaryDirectory() as run:
        config = SFTConfig(
            run, num_train_epochs=1, per_device_train_batch_size=ROWS_PER_STEP if packing else CHATS_PER_STEP,
            packing=packing, max_length=ROW_TOKENS, assistant_only_loss=True, gradient_checkpointing=False,
            bf16=precision == "bf16-mixed", learning_rate=1e-3, warmup_steps=0.03, lr_scheduler_type="cosine",
            use_cpu=True, report_to="none", save_strategy="no", logging_steps=10, disable_tqdm=True,
        )  # fmt: skip
        trainer = SFTTrainer(
            LlamaForCausalLM(LlamaConfig(**MODEL)), config, train_dataset=datasets.Dataset.from_list(records),
            processing_class=tokenizer, callbacks=[timer],
        )  # fmt: skip
        trainer.train()
    return tokens, timer.seconds


CONTESTANTS = {
    "bare loop": run_bare,
    "fit": run_fit,
    "TRL, padding": lambda folder, precision: run_trl(folder, precision, packing=False),
    "TRL, packing": lambda folder, precision: run_trl(folder, precision, packing=True),
}


def main() -> None:
    """Run every contestant in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", action="store_true", help="measure TRL too (pip install trl)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--chats", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    precision = {"fp32": "32-true", "bf16": "bf16-mixed"}[options.precision]
    if options.only:
        tokens, seconds = CONTESTANTS[options.only](Path(options.folder), precision)
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"tokens": tokens, "seconds": seconds, "peak_mib": peak_mib}))
        return
    names = [name for name in CONTESTANTS if options.trl or not name.startswith("TRL")]
    found: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), options.chats)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SFTLAB_CACHE": f"{folder}/cache"}
        for _ in range(options.rounds):
            for name in names:
                command = [sys.executable, __file__, "--only", name, "--folder", folder]
                command += ["--precision", options.precision]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{options.chats} chats, {options.precision}, 1 thread, {options.rounds} rounds")
    base = [run["tokens"] / run["seconds"] for run in found["bare loop"]]
    print(f"{'':<14}{'tokens':>9}{'tokens/s':>10}{'ratio':>8}{'min..max':>14}{'peak MiB':>10}")
    for name, runs in found.items():
        speeds = [run["tokens"] / run["seconds"] for run in runs]
        ratios = [speed / b for speed, b in zip(speeds, base, strict=True)]
        print(
            f"{name:<14}{runs[0]['tokens']:>9,}{statistics.median(speeds):>10,.0f}{statistics.median(ratios):>8.3f}"
            f"{min(ratios):>8.3f}..{max(ratios):.3f}{max(run['peak_mib'] for run in runs):>9,}"
        )


if __name__ == "__main__":
    main()
