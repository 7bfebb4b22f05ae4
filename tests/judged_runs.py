"""One of several processes that train two stages under FSDP2 and have a slow judge grade behind training.

usage: judged_runs.py FOLDER WORLD first|again; first: FOLDER/plain to its end, without a judge behind, then
FOLDER/killed, whose judge never answers and whose first process is killed in the second stage. again goes on with it.
"""

import os
import signal
import sys
import threading
from pathlib import Path

import torch
from lightning.pytorch import Callback
from small import small_fit, small_mixture

from sftlab.callbacks.schedule import Sequential
from sftlab.callbacks.scores import ScoreAbilities
from sftlab.model.parallel import FSDP2Strategy
from sftlab.run.folder import complete_checkpoints
from sftlab.tasks.task import Problem, Sampling, Task, Verdict


class Judged(Task):
    """Grades by the answers' lengths, once it is let go."""

    name, sampling = "judged", Sampling(max_new_tokens=2)

    def __init__(self, is_free):
        self.is_free = is_free

    def problems(self):
        return [Problem(str(number), (f"What is {number}?",)) for number in range(5)]

    def grade(self, problems, answers):
        if not self.is_free:
            threading.Event().wait()
        return [Verdict(a.uid, a.sample, "length", None, float(len(a.texts[0]) % 2), "") for a in answers]


class Killed(Callback):
    """Kills the first process at the beginning of a step."""

    changes_training = False

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 4 and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, world: int, phase: str) -> None:
    def fit(name, is_free, background, *callbacks, ckpt_path=None):
        scores = ScoreAbilities({"math": Judged(is_free)}, background=background)
        small_fit(folder / name, Sequential(order=["code", "math"], steps=3), small_mixture(folder), scores, *callbacks,
                  strategy=FSDP2Strategy(), devices=world, precision="32-true", ckpt_path=ckpt_path)  # fmt: skip

    if phase == "first":
        fit("plain", True, False)
        fit("killed", False, True, Killed())
    else:
        fit("killed", True, True, ckpt_path=complete_checkpoints(folder / "killed")[-1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
