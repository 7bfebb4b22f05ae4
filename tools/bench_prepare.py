"""Preparation speed and memory: records to a packed plan, against the bare tokenizer on the same text.

    .venv/bin/python tools/bench_prepare.py --conversations 4000
    .venv/bin/python tools/bench_prepare.py --sharegpt talks.json --tokenizer models/smollm2-135m
    .venv/bin/python tools/bench_prepare.py --trl           # TRL's SFTTrainer too (pip install trl)
    .venv/bin/python tools/bench_prepare.py --curve 1 4 16 64 100 # speed and peak memory by millions of tokens
    .venv/bin/python tools/bench_prepare.py --jinja         # by the tokenizer's own chat template: threads, processes

Uses ShareGPT-like conversations of several long turns in made-up words, or those of a file repeatedly with a number
before each, and a given tokenizer or a byte-level BPE tokenizer trained on them. Measures in turn, each in a process
of its own with the same threads: ``encode_batch_fast`` of the tokenizers library over the rendered texts, and records
-> readers -> template -> ids and masks -> Arrow cache -> packed plan. TRL gets a process for each thread and packs
too; it truncates what is longer than a row, which sftlab splits. Prints tokens per second, the ratio, the same per
second of processor time (which other programs disturb less), the seconds of a second start from the cache, and peak
memory for the data and for four times the data.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TOKENS_OF_A_TALK = 1400  # of those made up here, about
JINJA = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SYLLABLES = ["ka", "to", "ri", "me", "su", "lo", "ven", "dar", "pi", "gra", "stel", "un", "ex", "com", "ing", "tion"]


def made_up(num_conversations: int, short: bool = False) -> list[dict]:
    """Conversations of about 1,200 tokens each, or of 60."""
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(30_000)]

    def text(most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(10, 15 if short else most))) + ".\n"

    def talk(number: int) -> dict:
        pairs = [(("human", text(80)), ("gpt", text(400))) for _ in range(1 if short else rng.randint(1, 8))]
        return {"id": f"t{number}_0", "conversations": [{"from": f, "value": v} for pair in pairs for f, v in pair]}

    return [talk(number) for number in range(num_conversations)]


def varied(file: str, num_conversations: int) -> list[dict]:
    """The conversations of a ShareGPT file, repeated under new ids with a number before the first turn."""
    from sftlab.data.records import read_records

    records = list(read_records(file))

    def talk(number: int) -> dict:
        first, *rest = records[number % len(records)]["conversations"]
        return {"id": f"t{number}_0", "conversations": [{**first, "value": f"{number} {first['value']}"}, *rest]}

    return [talk(number) for number in range(num_conversations)]


def write_many(path: Path, talks: list[dict], num_tokens: float) -> None:
    """About so many tokens of the conversations as JSON lines, each under an id and after a number of its own."""
    with path.open("w") as file:
        for number in range(int(num_tokens / TOKENS_OF_A_TALK)):
            first, *rest = talks[number % len(talks)]["conversations"]
            turns = [{**first, "value": f"{number} {first['value']}"}, *rest]
            file.write(json.dumps({"id": f"t{number}_0", "conversations": turns}) + "\n")


def write_inputs(folder: Path, talks: list[dict], jinja: bool, tokenizer: str | None = None) -> None:
    """The conversations, once and four times, and a tokenizer: a given one, or one trained on a part of them."""
    (folder / "talks.json").write_text(json.dumps(talks))
    (folder / "talks4.json").write_text(json.dumps(talks * 4))
    fast = given(tokenizer) if tokenizer else trained(talks)
    fast.chat_template = JINJA if jinja else None
    fast.save_pretrained(folder / "tokenizer")


def given(folder: str) -> Any:
    """The tokenizer of a model's folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def trained(talks: list[dict]) -> Any:
    """A byte-level BPE tokenizer of 32,000 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<pad>", "<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((turn["value"] for t in talks[:600] for turn in t["conversations"]), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def times() -> tuple[float, float]:
    """The clock, and this process's processor time over all its threads, both in seconds."""
    return time.perf_counter(), time.process_time()


def peak_mib(process: int | str = "self") -> int:
    """The most memory that a process held; ``ru_maxrss`` would count that of the process that started it too."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return max((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:")), default=0)


def watched_workers() -> list[int]:
    """Gets the most memory that each worker held, at its end."""
    from sftlab.data.workers import Fitting

    peaks, leave = [0], Fitting.__exit__

    def left(self: Fitting, *error: object) -> None:
        mine = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        peaks.extend(map(peak_mib, mine))
        leave(self, *error)

    Fitting.__exit__ = left
    return peaks


def since(start: tuple[float, float]) -> dict[str, float]:
    """Seconds that went by, and seconds of processor time."""
    seconds, cpu_seconds = (now - then for now, then in zip(times(), start, strict=True))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


def run_bare(folder: Path, records: str) -> dict[str, float]:
    """``encode_batch_fast`` over the texts, rendered beforehand."""
    from transformers import AutoTokenizer

    from sftlab.data.readers import ShareGPTReader
    from sftlab.data.template import get_template

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    template, reader = get_template("vicuna_v1.1", tokenizer), ShareGPTReader()
    talks = [reader.read(record)[0] for record in json.loads((folder / records).read_text())]
    texts = ["".join(piece.text for piece in template.render(talk.turns)) for talk in talks]
    start = times()
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts)
    return {"tokens": sum(len(one) for one in encoded), **since(start)}


def run_threads(folder: Path, records: str) -> dict[str, float]:
    """``run_prepare``, which never looks whether processes would pay."""
    from sftlab.data import workers

    workers.WINDOW_S = math.inf
    return run_prepare(folder, records)


def run_processes(folder: Path, records: str) -> dict[str, float]:
    """``run_prepare`` by processes from its second chunk on, one for each of the threads."""
    from sftlab.data import workers

    workers.WINDOW_S, workers.num_workers = 0.0, lambda *_: int(os.environ["RAYON_NUM_THREADS"])
    return run_prepare(folder, records)


def run_prepare(folder: Path, records: str) -> dict[str, float]:
    """Records to a packed plan, through the package."""
    from transformers import AutoTokenizer

    from sftlab.callbacks.schedule import MultiTask
    from sftlab.cli import freeze_imports
    from sftlab.data.ability import GeneralData
    from sftlab.data.mixture import MixtureData
    from sftlab.plan.compile import compile_plan

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    template = "tokenizer" if tokenizer.chat_template else "vicuna_v1.1"
    data = MixtureData({"general": GeneralData(str(folder / records))}, template=template, batch={"rows": 64}, seed=0)
    freeze_imports()  # as fit and plan do
    peaks = watched_workers()
    start = times()
    data.load(tokenizer)
    stages = MultiTask(epochs=1).final_stages(["general"])
    plan = compile_plan(data.pools(), stages, data.policy, data.batch, data.max_length, data.seed)
    theirs = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {"worker_cpu_seconds": theirs.ru_utime + theirs.ru_stime, "worker_mib": max(peaks)}
    return {**since(start), "tokens": int(plan.lengths_N.sum()), "fill": plan.fill(), **found}


def run_trl(folder: Path, records: str) -> dict[str, float]:
    """Records to packed rows with masks, through TRL's SFTTrainer; its model is a tiny one."""
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from sftlab.data.template import get_template

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.chat_template = get_template("vicuna_v1.1", tokenizer).chat_template()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    config = SFTConfig(
        str(folder / "trl"), packing=True, max_length=2048, assistant_only_loss=True, use_cpu=True, bf16=False,
        dataset_num_proc=int(os.environ["RAYON_NUM_THREADS"]), report_to="none",
    )  # fmt: skip
    roles = {"human": "user", "gpt": "assistant"}
    start = times()
    talks = [
        {"messages": [{"role": roles[turn["from"]], "content": turn["value"]} for turn in record["conversations"]]}
        for record in json.loads((folder / records).read_text())
    ]
    trainer = SFTTrainer(model, config, train_dataset=datasets.Dataset.from_list(talks), processing_class=tokenizer)
    spent = since(start)
    return {**spent, "tokens": sum(map(len, trainer.train_dataset["input_ids"]))}


def main() -> None:
    """Run the contestants in turn and print figures and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=4000)
    parser.add_argument("--sharegpt", metavar="FILE", help="take the conversations of a file in ShareGPT's form")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="of a model; without it one is trained")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl", action="store_true", help="measure TRL too (pip install trl)")
    parser.add_argument("--jinja", action="store_true", help="threads, processes, and what is chosen between them")
    parser.add_argument("--short", action="store_true", help="conversations of one exchange of a few words")
    parser.add_argument(
        "--curve", nargs="+", type=float, metavar="MILLIONS", help="only speed and peak memory, by millions of tokens"
    )
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        runs = (run_bare, run_prepare, run_threads, run_processes, run_trl)
        (run,) = [run for run in runs if run.__name__ == f"run_{options.only[0]}"]
        found = run(Path(options.folder), options.only[1])
        found["peak_mib"] = peak_mib()
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        count = options.conversations
        talks = varied(options.sharegpt, count) if options.sharegpt else made_up(count, options.short)
        write_inputs(Path(folder), talks, options.jinja, options.tokenizer)
        environment = {**os.environ, "RAYON_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "true"}

        def measure(name: str, records: str, cache: str) -> dict[str, float]:
            command = [sys.executable, __file__, "--only", name, records, "--folder", folder]
            done = subprocess.run(
                command, env={**environment, "SFTLAB_CACHE": f"{folder}/{cache}"}, capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            return json.loads(done.stdout.splitlines()[-1])

        for millions in options.curve or ():
            write_many(Path(folder, "many.jsonl"), talks, millions * 1e6)
            found = measure("prepare", "many.jsonl", "many")
            cpu = found["cpu_seconds"] + found["worker_cpu_seconds"]
            print(
                f"{found['tokens']:>13,} tokens{found['tokens'] / found['seconds']:>10,.0f} tokens/s, by processor time"
                f"{found['tokens'] / cpu:>9,.0f}; peak{found['peak_mib']:7,} MiB, of a worker {found['worker_mib']:,}",
                flush=True,
            )
        for number in range(options.rounds if options.jinja and not options.curve else 0):
            for name in ("threads", "processes", "prepare"):
                found = measure(name, "talks.json", f"{name}{number}")
                seconds, here, theirs = (found[key] for key in ("seconds", "cpu_seconds", "worker_cpu_seconds"))
                print(
                    f"{name:<10}{found['tokens'] / seconds:>10,.0f} tokens/s{seconds:7.1f} s; processor time"
                    f"{here:6.1f} s here,{theirs:6.1f} s in workers; peak{found['peak_mib']:6,} MiB here,"
                    f"{found['worker_mib']:5,} MiB the largest worker",
                    flush=True,
                )
        if options.curve or options.jinja:
            return
        pairs = [
            (measure("bare", "talks.json", ""), measure("prepare", "talks.json", f"c{i}"))
            for i in range(options.rounds)
        ]
        trl = [measure("trl", "talks.json", f"trl{i}") for i in range(options.rounds if options.trl else 0)]
        again, four = measure("prepare", "talks.json", "c0"), measure("prepare", "talks4.json", "c4")
    print(f"{options.conversations:,} conversations, {pairs[0][1]['tokens']:,} tokens, {options.threads} threads")
    for unit, second in (("seconds", "s"), ("cpu_seconds", "s of processor time")):
        speeds = [[run["tokens"] / run[unit] for run in pair] for pair in pairs]
        bare, mine = (statistics.median(column) for column in zip(*speeds, strict=True))
        ratios = [m / b for b, m in speeds]
        print(f"encode_batch_fast      {bare:>12,.0f} tokens/{second}")
        print(f"records to packed plan {mine:>12,.0f} tokens/{second}")
        print(f"ratio                  {statistics.median(ratios):>12.3f}   ({min(ratios):.3f} to {max(ratios):.3f})")
    if trl:
        speeds = [run["tokens"] / run["seconds"] for run in trl]
        ratios = [mine["tokens"] / mine["seconds"] / speed for (_, mine), speed in zip(pairs, speeds, strict=True)]
        print(f"TRL                    {statistics.median(speeds):>12,.0f} tokens/s")
        print(f"ratio to TRL           {statistics.median(ratios):>12.3f}   ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"second start           {again['seconds']:>12.2f} s")
    print(f"packing fill           {pairs[0][1]['fill']:>12.1%}")
    print(
        f"peak memory            {pairs[0][1]['peak_mib']:>12,} MiB; {four['peak_mib']:,} MiB for four times the data"
    )


if __name__ == "__main__":
    main()
