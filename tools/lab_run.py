"""Trains and scores one run of the lab in this process, like ``fit`` with ScoreAbilities but without files.

A run of ``fit`` spends seconds on imports, export and logs; a table of hundreds of runs pays for them only once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftlab.lab.options import LabOptions

# The runs are those of configs/dmt.yaml and its siblings; tests/lab/test_phenomena.py holds the two together.
SIZES = {"math": 2560, "code": 2048, "general": 1536}
VAL_FRACTION, MAX_LENGTH, EXAMPLES = 0.02, 256, 16
_MAX_NEW_TOKENS = 125


class Trained(NamedTuple):
    """The cost and the result of training.

    Attributes:
        seconds: Processor time of training, in seconds.
        num_steps: Optimizer steps.
        val_loss: Held-out loss of each ability at the end.
    """

    seconds: float
    num_steps: int
    val_loss: dict[str, float]


def mixture(fractions: Mapping[str, float], seed: int, options: LabOptions | None = None, policy: Any = None) -> Any:
    """The lab's data in the settings of the shipped configs.

    Args:
        fractions: Of each ability.
        seed: Of subsets and order.
        options: The lab's own; its data and problems are those of the shipped configs by default.
        policy: Mixture policy; proportional by default.
    """
    from sftlab import CodeData, GeneralData, MathData, MixtureData

    kinds = {"math": MathData, "code": CodeData, "general": GeneralData}
    given = {} if options is None else {"lab": options}
    return MixtureData(
        {
            name: kinds[name](num_examples=SIZES[name], fraction=fraction, val_fraction=VAL_FRACTION, **given)
            for name, fraction in fractions.items()
        },
        template="vicuna_short", max_length=MAX_LENGTH, batch={"examples": EXAMPLES}, seed=seed,
        **({} if policy is None else {"policy": policy}),
    )  # fmt: skip


def train(schedule: Any, data: Any, start: str, rate: float, seed: int, folder: Path) -> Trained:
    """Train from the model ``start`` and write the result to ``folder``."""
    from lightning.pytorch import Trainer, seed_everything

    from sftlab import SFTModule

    seed_everything(seed, verbose=False)
    module = SFTModule(start, tokenizer="lab:base", learning_rate=rate)
    trainer = Trainer(
        callbacks=[schedule], default_root_dir=folder.parent, logger=False, accelerator="cpu", devices=1,
        precision="bf16-mixed", enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    began = time.process_time()
    trainer.fit(module, datamodule=data)
    seconds = time.process_time() - began
    assert data.plan is not None
    module.backbone.save_pretrained(folder)
    return Trained(seconds, data.plan.num_steps, dict(module.val_losses))


def ask(
    folder: Path, abilities: Sequence[str], num_problems: int, options: LabOptions | None = None
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores in percent by ``ability metric``, and of each ability which problems were right, as 0 and 1."""
    from sftlab.data.encoder import Encoder
    from sftlab.data.template import get_template
    from sftlab.evaluate.local import LocalModel
    from sftlab.lab.tokenizer import lab_tokenizer
    from sftlab.model.backbone import build_backbone
    from sftlab.tasks.lab import LabTask

    tokenizer = lab_tokenizer()
    model = build_backbone(str(folder), None, "sdpa")
    backend = LocalModel(model, Encoder(tokenizer, get_template("vicuna_short", tokenizer)), _MAX_NEW_TOKENS)
    scores: dict[str, float] = {}
    right: dict[str, str] = {}
    for name in abilities:
        task = LabTask(name, num_problems, options=options or LabOptions())
        problems = task.problems()
        answers = [answer for group in backend.answer(problems, task.sampling) for answer in group]
        answers.sort(key=lambda answer: answer.uid)
        verdicts = task.grade(problems, answers)
        right[name] = "".join(str(int(v.value or 0)) for v in verdicts if v.extractor.startswith("exact"))
        scores |= {f"{name} {score.metric}": round(100 * score.value, 2) for score in task.scores(verdicts)}
    return scores, right
