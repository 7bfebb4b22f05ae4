"""sftlab: which data, how much of each ability, in which order? Supervised fine-tuning studies on PyTorch Lightning.

    from lightning.pytorch import Trainer
    from sftlab import CodeData, DMT, GeneralData, MathData, MixtureData, SFTModule

    abilities = {"math": MathData("math.jsonl"), "code": CodeData("code.json"), "general": GeneralData("chats.json")}
    data = MixtureData(abilities)
    Trainer(callbacks=[DMT(k=1 / 256)]).fit(SFTModule("meta-llama/Llama-2-7b-hf"), datamodule=data)

Names are loaded when they are used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

from sftlab import moved

__version__ = "0.2.0"

_PLACES = {
    "data.ability": "AbilityData CodeData GeneralData MathData PlannedData",
    "data.mixture": "MixtureData",
    "data.conversation": "BadRecord Conversation Turn",
    "data.readers": "AlpacaReader GSM8KReader MathReader MessagesReader PairReader Reader RFTReader ShareGPTReader",
    "lab.options": "LabOptions",
    "plan.policy": "EqualCount MixturePolicy Proportional Temperature WeightedShares",
    "plan.pool": "Pool",
    "plan.adaptive": "AdaptivePolicy NextSegment Observations",
    "plan.adaptive_policies": "Exp3 OnlineDataMixing OnlineDoReMi",
    "plan.returning_policies": "DynaMiCS MSFT",
    "plan.rate": "WSD Constant Cosine LRSchedule Linear",
    "plan.stage": "Stage",
    "plan.plan": "Plan",
    "plan.compile": "compile_plan",
    "plan.ledger": "ledger",
    "model.module": "SFTModule",
    "model.adapter": "LoRA",
    "run.record": "Run StudyRuns",
    "launch": "fit",
    "callbacks.context": "RunContext",
    "callbacks.schedule": "DMT MixedSequential MultiTask Sequential Stages StageSchedule",
    "callbacks.adaptive": "Adaptive",
    "callbacks.metrics": "Metrics",
    "callbacks.ledger": "Ledger",
    "callbacks.checkpoints": "RunCheckpoint",
    "callbacks.progress": "ScreenProgress",
    "callbacks.scores": "ScoreAbilities",
    "callbacks.interference": "Interference",
    "callbacks.weight_change": "WeightChange",
    "study.executors": "Executor",
    "study.job": "Outcome",
    "report.evidence": "Evidence",
    "report.exhibit": "Exhibit Picture Table",
    "report.section": "Drawing Figure Section",
    "tasks.task": "Answer ModelTask Problem Sampling Score Task Verdict",
    "tasks.gsm8k": "GSM8K",
    "tasks.humaneval": "HumanEval MBPP",
    "tasks.evalplus": "HumanEvalPlus MBPPPlus",
    "tasks.mtbench": "MTBench",
    "tasks.likelihood": "Likelihood",
    "tasks.lab": "LabTask",
    "tasks.harness": "LMEval",
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names.split()}
__all__ = sorted([*_PLACE_OF, "__version__"])
moved.put_up()


def __getattr__(name: str) -> Any:
    """Load a public name."""
    if name == "study":  # the function; the package of that name is callable too: sftlab.study("sftlab:studies/rq3")
        return import_module("sftlab.study")
    if name not in _PLACE_OF:
        raise AttributeError(f"sftlab has no {name!r}; it has {', '.join(sorted(_PLACE_OF))}")
    return getattr(import_module(f"sftlab.{_PLACE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
