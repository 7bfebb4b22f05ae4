"""Generation speed: prompts decoded side by side, against one by one; the greedy answers have to be the same.

    .venv/bin/python tools/bench_generate.py --model models/smollm2-135m --gsm8k test.jsonl
    .venv/bin/python tools/bench_generate.py --model lightning_logs/dmt/stages/1-general

Both sides run in this process in turn, round by round, on the same problems (the embedded ones when no file is given)
in fp32. Prints the tokens per second of each, the ratio of each round and how many answers differ.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers.utils import logging

from sftlab.evaluate.local import LocalModel
from sftlab.tasks.gsm8k import GSM8K
from sftlab.tasks.lab import LabTask
from sftlab.tasks.task import Answer, Problem, Sampling


def timed(model: LocalModel, problems: list[Problem], sampling: Sampling) -> tuple[float, list[Answer]]:
    """Seconds, and the answers in the order of the problems."""
    began = time.perf_counter()
    answers = {answer.uid: answer for group in model.answer(problems, sampling) for answer in group}
    return time.perf_counter() - began, [answers[problem.uid] for problem in problems]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--gsm8k", help="questions to ask; the embedded problems when left out")
    parser.add_argument("--num_problems", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    if options.gsm8k:
        problems = GSM8K(options.gsm8k, options.num_problems).problems()
    else:
        of_each = -(-options.num_problems // 3)
        tasks = [LabTask(ability, of_each) for ability in ("math", "code", "general")]
        problems = [problem for task in tasks for problem in task.problems()][: options.num_problems]
    sampling = Sampling(options.max_new_tokens)
    one = LocalModel.from_folder(options.model, 1, "cpu")
    models = {1: one, options.batch_size: LocalModel(one.model, one.encoder, options.batch_size)}
    for model in models.values():
        timed(model, problems[:2], sampling)
    seconds: dict[int, list[float]] = {size: [] for size in models}
    answers: dict[int, list[Answer]] = {}
    for number in range(options.rounds):
        for size in list(models)[:: 1 if number % 2 == 0 else -1]:
            taken, answers[size] = timed(models[size], problems, sampling)
            seconds[size].append(taken)
    encode = models[1].encoder.tokenizer.encode
    tokens = {size: sum(len(encode(t)) for a in mine for t in a.texts) for size, mine in answers.items()}
    different = sum(one.texts != many.texts for one, many in zip(*answers.values(), strict=True))
    ratios = [one / many for one, many in zip(*seconds.values(), strict=True)]
    print(f"{len(problems)} problems, {tokens[1]:,} tokens of answers, {options.threads} threads, fp32")
    for size in models:
        print(f"batch {size:<4} {tokens[size] / statistics.median(seconds[size]):>10,.0f} tokens/s")
    print(f"ratio      {statistics.median(ratios):>10.2f}   ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"different  {different:>10} answers")


if __name__ == "__main__":
    main()
