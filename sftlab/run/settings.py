"""A table of all settings: which of them change a result, and which only where and how fast it is computed.

    TRAINED     its value is part of a stage's key
    CONTENT     its effect is: token ids, masks, their order in steps, weights, learning rates of stages
    MEASURED    it changes what is measured of a stage, not the weights: a resumed run may change it, a reused one not
    NONE        it changes nothing, or results only by rounding
    REFUSED     the plan decides this; ``fit`` refuses any other value

A setting that is not listed, such as an argument of a user's class, counts as TRAINED. A user's callback may declare
``changes_training = False``; then it counts as MEASURED.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from sftlab.data.seed import global_seed
from sftlab.fingerprint import described
from sftlab.plan.rate import Cosine

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

TRAINED, CONTENT, MEASURED, NONE, REFUSED = "trained", "content", "measured", "none", "refused"
UNKNOWN = "unknown"  # of a user's callback that declares nothing
OWN_CALLBACKS = "callbacks of yours"  # name of the entry for such callbacks in ``trained``
_OPTIONS_OF_A_STAGE = "what is in which step"
_HOW = "how it is computed, up to rounding"
_CUT = "how far one call goes"
_SHOWN = "what is shown"

Table = dict[str, tuple[str, str]]  # by argument: its effect and why

MODULE: Table = {
    "path": (CONTENT, "the bytes or the commit of the weights"),
    "config": (TRAINED, "the architecture"),
    "tokenizer": (CONTENT, "token ids"),
    "learning_rate": (CONTENT, "of each stage that names none"),
    "warmup_ratio": (CONTENT, "of each stage that names none"),
    "warmup_steps": (CONTENT, "of each stage that names none"),
    "lr_schedule": (CONTENT, "of each stage that names none"),
    "optimizer": (CONTENT, "of each stage that names none"),
    "weight_decay": (TRAINED, "of the optimizer"),
    "betas": (TRAINED, "of the optimizer"),
    "frozen": (TRAINED, "which weights change"),
    "neftune_alpha": (TRAINED, "of the loss"),
    "label_smoothing": (TRAINED, "of the loss"),
    "normalise": (TRAINED, "of the loss"),
    "adapter": (TRAINED, "which weights; what a stage does with it, by stage"),
    "attention": (NONE, _HOW),
    "activation_checkpointing": (NONE, _HOW),
    "chunk_tokens": (NONE, _HOW),
    "compile": (NONE, _HOW),
    "trust_remote_code": (NONE, "leave to run code, whose commit the weights name"),
}
DATA: Table = {
    "abilities": (CONTENT, "token ids"),
    "policy": (CONTENT, _OPTIONS_OF_A_STAGE),
    "template": (CONTENT, "token ids and masks"),
    "max_length": (CONTENT, "rows"),
    "overlong": (CONTENT, "token ids"),
    "batch": (CONTENT, "steps"),
    "packing": (CONTENT, "rows"),
    "num_workers": (NONE, "where batches are prepared"),
    "ray_address": (NONE, "where examples are prepared"),
    "seed": (CONTENT, "subsets and order"),
}
ABILITY: Table = {
    "path": (CONTENT, "token ids"),
    "reader": (CONTENT, "token ids"),
    "fraction": (CONTENT, _OPTIONS_OF_A_STAGE),
    "max_examples": (CONTENT, _OPTIONS_OF_A_STAGE),
    "val_fraction": (CONTENT, "which examples are left to train, and which are measured"),
    "num_examples": (CONTENT, "token ids"),
    "exclude": (CONTENT, "token ids"),
    "lab": (CONTENT, "token ids"),
    "system": (CONTENT, "token ids, and what scoring asks"),
    "drop": (CONTENT, _OPTIONS_OF_A_STAGE),
    "on_bad_record": (NONE, "whether a bad record ends the run"),
    "max_bad_share": (NONE, "whether bad records end the run"),
    "streaming": (NONE, "whether a hub id is downloaded"),
}
SCHEDULE: Table = {
    "epochs": (CONTENT, _OPTIONS_OF_A_STAGE),
    "steps": (CONTENT, _OPTIONS_OF_A_STAGE),
    "supervised_tokens": (CONTENT, _OPTIONS_OF_A_STAGE),
    "fresh_optimizer": (CONTENT, "of each stage"),
    "per_stage": (CONTENT, "of each stage"),
    "val_every_n_steps": (MEASURED, "validation inside stages"),
    "stop_early": (TRAINED, "with a callback that stops early"),
    "curriculum": (CONTENT, "of each stage"),
    "loss_weights": (CONTENT, "of each stage"),
    "keep_best": (TRAINED, "with what it goes by"),
    "average_last_n_steps": (TRAINED, "what a stage ends with"),
    "order": (CONTENT, "of Sequential"),
    "specialised": (CONTENT, "of DMT and MixedSequential"),
    "general": (CONTENT, "of DMT and MixedSequential"),
    "k": (CONTENT, "of DMT"),
    "counted_in": (CONTENT, "of DMT"),
    "replay": (CONTENT, "of DMT"),
    "adaptive": (CONTENT, "of Adaptive"),
    "decide_every_n_steps": (CONTENT, "of Adaptive"),
    "abilities": (CONTENT, "of Adaptive"),
    "list_of_stages": (CONTENT, "of Stages"),
}
STAGE: Table = {
    "name": (CONTENT, "seeds the order and names the stage's folder"),
    "fractions": (CONTENT, _OPTIONS_OF_A_STAGE),
    "epochs": (CONTENT, _OPTIONS_OF_A_STAGE),
    "steps": (CONTENT, _OPTIONS_OF_A_STAGE),
    "supervised_tokens": (CONTENT, _OPTIONS_OF_A_STAGE),
    "policy": (CONTENT, _OPTIONS_OF_A_STAGE),
    "learning_rate": (CONTENT, "of the stage"),
    "warmup_ratio": (CONTENT, "of the stage"),
    "warmup_steps": (CONTENT, "of the stage"),
    "lr_schedule": (CONTENT, "of the stage"),
    "optimizer": (CONTENT, "of the stage"),
    "fresh_optimizer": (CONTENT, "of the stage"),
    "curriculum": (CONTENT, _OPTIONS_OF_A_STAGE),
    "loss_weights": (CONTENT, "of the loss"),
    "adaptive": (CONTENT, "what is decided"),
    "decide_every_n_steps": (CONTENT, "what is decided"),
    "counted_in": (CONTENT, _OPTIONS_OF_A_STAGE),
}
POLICY: Table = dict.fromkeys(
    ("weights", "temperature", "counted_in", "max_repeats", "resample"), (CONTENT, _OPTIONS_OF_A_STAGE)
)
TRAINER: Table = {
    "precision": (TRAINED, "the arithmetic"),
    "gradient_clip_val": (TRAINED, "the update"),
    "gradient_clip_algorithm": (TRAINED, "the update"),
    "deterministic": (TRAINED, "which kernels compute"),
    "plugins": (TRAINED, "those for precision; others say where"),
    "callbacks": (TRAINED, "by class, see CALLBACKS"),
    "limit_val_batches": (MEASURED, "how much is validated"),
    "strategy": (NONE, "where it is computed; with bf16-mixed fsdp2 is part of precision"),
    **dict.fromkeys(("accelerator", "devices", "num_nodes"), (NONE, "where it is computed")),
    **dict.fromkeys(("accumulate_grad_batches", "benchmark", "sync_batchnorm"), (NONE, _HOW)),
    **dict.fromkeys(("max_steps", "max_time", "fast_dev_run"), (NONE, _CUT)),
    **dict.fromkeys(("inference_mode", "detect_anomaly", "barebones"), (NONE, _HOW)),
    **dict.fromkeys(
        ("logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "profiler"), (NONE, _SHOWN)
    ),
    **dict.fromkeys(
        ("enable_checkpointing", "default_root_dir", "enable_autolog_hparams", "model_registry"), (NONE, "what is kept")
    ),
    **dict.fromkeys(
        ("num_sanity_val_steps", "limit_test_batches", "limit_predict_batches"), (NONE, "not part of training")
    ),
    **dict.fromkeys(
        ("max_epochs", "min_epochs", "min_steps", "limit_train_batches", "overfit_batches", "val_check_interval",
         "check_val_every_n_epoch", "use_distributed_sampler", "reload_dataloaders_every_n_epochs"),
        (REFUSED, "the plan"),
    ),
}  # fmt: skip
CALLBACKS: Table = {
    **dict.fromkeys(
        ("EarlyStopping", "StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging", "ModelPruning",
         "BackboneFinetuning", "BaseFinetuning", "LambdaCallback", "SpikeDetection"),
        (TRAINED, "weights, or when training ends"),
    ),
    **dict.fromkeys(
        ("ScoreAbilities", "Interference", "WeightChange", "Metrics", "LearningRateMonitor", "DeviceStatsMonitor",
         "ThroughputMonitor"),
        (MEASURED, "what is recorded"),
    ),
    **dict.fromkeys(
        ("ModelCheckpoint", "RunCheckpoint", "Checkpoint", "OnExceptionCheckpoint", "Timer", "Ledger", "ModelSummary",
         "RichModelSummary", "ProgressBar", "RichProgressBar", "TQDMProgressBar", "ScreenProgress",
         "BasePredictionWriter", "SaveConfigCallback", "SaveConfig"),
        (NONE, "what is kept and shown, or how far one call goes"),
    ),
    **dict.fromkeys(
        ("GradientAccumulationScheduler", "BatchSizeFinder", "LearningRateFinder"), (REFUSED, "the plan")
    ),
}  # fmt: skip

_LIGHTNING = ("lightning.", "pytorch_lightning.")
_OURS = ("sftlab.", *_LIGHTNING)  # the classes of the tables
_PRECISION = {
    **{"16": "16-mixed", "32": "32-true", "64": "64-true", "bf16": "bf16-mixed"},
    "None": "by the device",
}
_BY_WEIGHTS = ("bf16-mixed", "by the device")
_USUAL_PRECISION = (
    "Precision", "DoublePrecision", "HalfPrecision", "MixedPrecision", "FSDPPrecision", "DeepSpeedPrecision",
    "XLAPrecision", "ShardedPrecision",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The settings, besides data, plan and model, that change a result.

    Attributes:
        seed: The seed of ``seed_everything``, for random weights and dropout.
        trained: Settings that change the weights, by name.
        measured: Settings that change what is measured, by name.
    """

    seed: int = 0
    trained: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_trainer(cls, trainer: Trainer) -> Settings:
        """Return the settings of a Trainer."""
        import torch

        algorithm = trainer.gradient_clip_algorithm
        given = {
            "precision": trainer.precision,
            "plugins": trainer.precision_plugin,
            "strategy": trainer.strategy,
            "gradient_clip_val": trainer.gradient_clip_val,
            "gradient_clip_algorithm": getattr(algorithm, "value", algorithm),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "limit_val_batches": trainer.limit_val_batches,
            "callbacks": trainer.callbacks,  # type: ignore[attr-defined]
        }
        return cls.of_arguments(given, global_seed())

    @classmethod
    def of_arguments(cls, given: Mapping[str, Any], seed: int, callbacks: Iterable[Any] = ()) -> Settings:
        """Return the settings of a Trainer's arguments, as in a config.

        Args:
            given: The arguments by name; callbacks are objects.
            seed: The seed of ``seed_everything``.
            callbacks: Further callbacks, such as the schedule.
        """
        plugins = [plugin for plugin in _listed(given.get("plugins")) if hasattr(plugin, "precision")]
        precision = str(next((plugin.precision for plugin in plugins), given.get("precision")))
        clip = given.get("gradient_clip_val") or 0
        trained = {
            "precision": _PRECISION.get(precision, precision) + _of_sharded_weights(precision, given.get("strategy")),
            "plugins": [_made(plugin) for plugin in plugins if type(plugin).__name__ not in _USUAL_PRECISION],
            "gradient_clip_val": clip,
            "gradient_clip_algorithm": str(given.get("gradient_clip_algorithm") or "norm") if clip else "",
            "deterministic": bool(given.get("deterministic")),
        }
        limit = given.get("limit_val_batches")
        measured: dict[str, Any] = {"limit_val_batches": 1.0 if limit is None else limit}
        by_effect: dict[str, list[Any]] = {TRAINED: [], MEASURED: [], UNKNOWN: []}
        stop_early = keep_best = averaged = None
        for callback in [*_listed(given.get("callbacks")), *callbacks]:
            if _is_schedule(callback):
                measured["val_every_n_steps"] = callback.val_every_n_steps
                stop_early = getattr(callback, "stop_early", None)
                keep_best = getattr(callback, "keep_best", None)
                averaged = getattr(callback, "average_last_n_steps", None)
            elif (effect := effect_of(callback)) in by_effect:
                by_effect[effect].append(_made(callback))
        measured["callbacks"] = sorted(by_effect[MEASURED], key=str)
        # Callbacks that end or average training may depend on what is measured.
        trained["callbacks"] = [by_effect[TRAINED], measured, stop_early] if by_effect[TRAINED] else []
        if by_effect[UNKNOWN]:
            trained[OWN_CALLBACKS] = [by_effect[UNKNOWN], measured, stop_early]
        if keep_best is not None:
            trained["keep_best"] = [keep_best, measured["val_every_n_steps"], measured["limit_val_batches"]]
        if averaged is not None:
            trained["average_last_n_steps"] = averaged
        return cls(seed, described(trained), described(measured))


def _of_sharded_weights(precision: str, strategy: Any) -> str:
    """bf16-mixed under FSDP2 differs from autocast: everything in a layer is in bf16."""
    if isinstance(strategy, Mapping):
        strategy = strategy.get("class_path")
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    is_sharded = name == "fsdp2" or name.rpartition(".")[2] == "FSDP2Strategy"
    return " under FSDP2" if is_sharded and _PRECISION.get(precision, precision) in _BY_WEIGHTS else ""


def effect_of(callback: Any) -> str:
    """Return the effect of a callback: that of its class in the table, or what a user's class declares.

    A class that declares nothing may change training: such a run shares no stages with others, but may be resumed
    without the callback.
    """
    cls = type(callback)
    if cls.__module__.startswith(_OURS) and cls.__name__ in CALLBACKS:
        return CALLBACKS[cls.__name__][0]
    says = getattr(cls, "changes_training", None)
    return UNKNOWN if says is None else TRAINED if says else MEASURED


def _is_schedule(callback: Any) -> bool:
    classes = type(callback).__mro__
    return any(cls.__name__ == "StageSchedule" and cls.__module__.startswith("sftlab.") for cls in classes)


def module_settings(module: Any) -> dict[str, Any]:
    """Return the arguments of a model whose values change a result; for a user's class, all but those known not to."""
    cls = type(module)
    is_own = not cls.__module__.startswith(_OURS)
    wanted = (TRAINED, CONTENT) if is_own else (TRAINED,)
    names = [name for name in arguments(cls) if MODULE.get(name, (TRAINED, ""))[0] in wanted and name not in _BY_HASH]
    found = {name: described(value) for name in names if not is_without(name, value := getattr(module, name, None))}
    if "adapter" in found:  # without an adapter, keys stay as they were before adapters existed
        adapter = found.pop("adapter")
        found |= {"adapter": described(module.adapter.settings())} if adapter is not None else {}
    return {**found, "class": f"{cls.__module__}.{cls.__qualname__}"} if is_own else found


def is_without(name: str, value: Any) -> bool:
    """Return whether a newer argument has the value that trains as before, so that old keys stay valid."""
    return name in _LATER and described(value) == _LATER[name]


_LATER = {
    **{"lr_schedule": described(Cosine()), "optimizer": None, "warmup_steps": None},
    **{"frozen": [], "neftune_alpha": 0, "label_smoothing": 0},
}
_WHEN = ("background",)  # arguments of our callbacks that say when something is measured
_BY_HASH = ("path", "tokenizer")  # arguments of a model whose content is hashed


def arguments(cls: type) -> list[str]:
    """Return the arguments of a class, with ``**options`` followed to its base classes."""
    found: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        found |= dict.fromkeys(one.name for one in parameters if one.kind in named)
        if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
            break
    return list(found)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _made(value: Any, depth: int = 4) -> Any:
    """Return a value by its construction: for an object, its class and those arguments that it stores.

    If an object stores an argument under another name, all its attributes are used. Objects of torch and Lightning
    inside others, and those nested too deeply, are represented by their class only.
    """
    cls = type(value)
    if isinstance(value, Mapping):
        return {str(key): _made(item, depth) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_made(item, depth) for item in value]
    if not hasattr(value, "__dict__") or hasattr(value, "__qualname__") or isinstance(value, Enum):
        return described(value)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if depth == 0 or (depth < 4 and name.startswith(("torch.", *_LIGHTNING))):
        return name
    missing = object()
    held = {one: getattr(value, one, getattr(value, f"_{one}", missing)) for one in arguments(cls)}
    found = vars(value) if missing in held.values() else held
    if name.startswith("sftlab."):
        found = {key: item for key, item in found.items() if key not in _WHEN}
    return [name, {key: _made(item, depth - 1) for key, item in found.items()}]
