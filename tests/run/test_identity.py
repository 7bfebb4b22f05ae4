"""Keys of stages: every setting that changes a result is in them, no other, and never code, names or times of files."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import FORKING
from hub_server import hub_server, point_at
from lightning.pytorch import Callback, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from small import MODEL

import sftlab.cli  # noqa: F401 - all callbacks of ours
from sftlab.callbacks.adaptive import Adaptive
from sftlab.callbacks.schedule import DMT, MixedSequential, MultiTask, Sequential, Stages, StageSchedule
from sftlab.data.ability import AbilityData, CodeData, GeneralData, MathData
from sftlab.data.mixture import MixtureData
from sftlab.data.readers import PairReader
from sftlab.lab.options import LabOptions
from sftlab.model.adapter import LoRA
from sftlab.model.module import SFTModule
from sftlab.plan.adaptive import DecidedShares
from sftlab.plan.adaptive_policies import OnlineDataMixing
from sftlab.plan.policy import EqualCount, MixturePolicy, Proportional, Temperature, WeightedShares
from sftlab.plan.rate import Cosine, Linear
from sftlab.plan.stage import Stage
from sftlab.run import settings
from sftlab.run.identity import StageKey, differ_in_own_callbacks, differences, run_identity, stage_keys, weights_hash
from sftlab.run.settings import CONTENT, MEASURED, NONE, REFUSED, TRAINED, Settings

ROOT = Path(__file__).parents[2]
SPLIT = {"num_examples": 40, "val_fraction": 0.2}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    before = {name: os.environ.get(name) for name in ("SFTLAB_CACHE", "PL_GLOBAL_SEED")}
    os.environ["SFTLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.pop("PL_GLOBAL_SEED", None)
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        os.environ.update({name: value} if value is not None else {})


def write_pairs(folder: Path) -> str:
    path = folder / "pairs.jsonl"
    rows = ({"question": f"coins {i}", "answer": f"pens {i}", "also": f"cups {i}"} for i in range(60))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def compiled(math=None, data=None, module=None, schedule=None):
    """Data, module and plan of a small run; ``math`` and so on are arguments that differ."""
    abilities = {"math": math or MathData(**SPLIT), "general": GeneralData(**SPLIT), "code": CodeData(num_examples=30)}
    given = {"abilities": abilities, "template": "vicuna_short", "max_length": 256, "batch": {"examples": 8}, "seed": 5}
    mixture = MixtureData(**{**given, **(data or {})})
    model = SFTModule(**{"path": None, "config": MODEL, "tokenizer": "lab-base", **(module or {})})
    plan = (schedule or DMT(k=0.5, epochs=1)).compile(mixture, model)
    return mixture, model, plan


def last_key(trainer=None, seed=1, callbacks=(), schedule=None, **changes) -> StageKey:
    schedule = schedule or DMT(k=0.5, epochs=1)
    mixture, model, plan = compiled(schedule=schedule, **changes)
    return stage_keys(mixture, model, plan, Settings.of_arguments(trainer or {}, seed, [schedule, *callbacks]))[-1]


def assert_effect(effect: str, one: StageKey, other: StageKey) -> None:
    """Whether two keys differ as a setting of this effect makes them."""
    assert (one.trained != other.trained) == (effect in (TRAINED, CONTENT))
    assert (one.full != other.full) == (effect in (TRAINED, CONTENT, MEASURED))


MODULE_CHANGES = {
    "config": {**MODEL, "hidden_size": 64},
    "learning_rate": 3e-5,
    "warmup_ratio": 0.5,
    "warmup_steps": 1,
    "lr_schedule": Linear(),
    "optimizer": "SGD",
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "frozen": ["model.embed_tokens"],
    "neftune_alpha": 5.0,
    "label_smoothing": 0.1,
    "normalise": "example",
    "adapter": LoRA(),
    "attention": "eager",
    "activation_checkpointing": True,
    "chunk_tokens": 8,
    "compile": True,
    "trust_remote_code": True,
}
DATA_CHANGES = {
    "abilities": {
        "math": MathData(num_examples=20),
        "general": GeneralData(**SPLIT),
        "code": CodeData(num_examples=30),
    },
    "policy": EqualCount(),
    "template": "alpaca",
    "max_length": 192,
    "overlong": "drop",
    "batch": {"rows": 2},
    "packing": False,
    "num_workers": 2,
    "ray_address": "127.0.0.1:1",
    "seed": 6,
}
SCHEDULE_CHANGES = {
    "epochs": (MultiTask, {"epochs": 2}),
    "steps": (MultiTask, {"steps": 3}),
    "supervised_tokens": (MultiTask, {"supervised_tokens": 50}),
    "fresh_optimizer": (MultiTask, {"fresh_optimizer": False}),
    "per_stage": (MultiTask, {"per_stage": {"all": {"learning_rate": 0.5}}}),
    "val_every_n_steps": (MultiTask, {"val_every_n_steps": 2}),
    "stop_early": (MultiTask, {"stop_early": "run"}),
    "order": (Sequential, {"order": ["general", "math", "code"]}),
    "specialised": (DMT, {"specialised": ["math"]}),
    "general": (DMT, {"general": ["math"]}),
    "k": (DMT, {"k": 0.25}),
    "curriculum": (MultiTask, {"curriculum": "short_first"}),
    "loss_weights": (MultiTask, {"loss_weights": {"math": 2.0}}),
    "counted_in": (DMT, {"counted_in": "tokens"}),
    "replay": (DMT, {"replay": ["code"], "k": 0.5}),
    "keep_best": (MultiTask, {"keep_best": "math"}),
    "average_last_n_steps": (MultiTask, {"average_last_n_steps": 2}),
    "adaptive": (Adaptive, {"adaptive": OnlineDataMixing(alpha=0.25)}),
    "decide_every_n_steps": (Adaptive, {"decide_every_n_steps": 3}),
    "abilities": (Adaptive, {"abilities": ["math", "code"]}),
    "list_of_stages": (Stages, {"list_of_stages": [Stage("all", {"math": 0.5}, epochs=1)]}),
}
STAGE_CHANGES = {
    "name": "other",
    "fractions": {"math": 0.25, "code": 1.0},
    "epochs": 2,
    "steps": 3,
    "supervised_tokens": 60,
    "policy": EqualCount(),
    "learning_rate": 0.5,
    "warmup_ratio": 0.5,
    "warmup_steps": 1,
    "lr_schedule": Cosine(floor=0.1),
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}},
    "fresh_optimizer": False,
    "curriculum": "short_first",
    "loss_weights": {"math": 2.0},
    "counted_in": "tokens",
    "adaptive": OnlineDataMixing(),
    "decide_every_n_steps": 4,
}
POLICY_CHANGES = {
    "weights": WeightedShares({"math": 1, "code": 3, "general": 1}),
    "counted_in": WeightedShares({"math": 1, "code": 1, "general": 1}, "tokens"),
    "max_repeats": WeightedShares({"math": 1, "code": 1, "general": 1}, max_repeats=2.0),
    "resample": WeightedShares({"math": 1, "code": 9, "general": 1}, resample=True),
    "temperature": Temperature(4.0),
}
TRAINER_CHANGES = {
    "precision": "bf16-mixed",
    "gradient_clip_val": 0.5,
    "gradient_clip_algorithm": "value",
    "deterministic": True,
    "plugins": [SimpleNamespace(precision="nf4")],
    "callbacks": [EarlyStopping("val/loss/math")],
    "limit_val_batches": 3,
}


@pytest.mark.parametrize("name", [name for name in settings.MODULE if name not in ("path", "tokenizer")])
def test_arguments_of_the_model(name):
    effect = settings.MODULE[name][0]
    assert_effect(effect, last_key(), last_key(module={name: MODULE_CHANGES[name]}))


@pytest.mark.parametrize("name", settings.DATA)
def test_arguments_of_the_mixture(name):
    before = {"max_length": 70} if name == "overlong" else {}
    after = {**before, name: DATA_CHANGES[name]}
    assert_effect(settings.DATA[name][0], last_key(data=before), last_key(data=after))


@pytest.mark.parametrize("name", settings.ABILITY)
def test_arguments_of_an_ability(name, tmp_path, monkeypatch):
    path = write_pairs(tmp_path)
    lab = name in ("num_examples", "exclude", "lab")
    before = dict(SPLIT) if lab else {"path": path, "reader": PairReader("question", "answer"), "val_fraction": 0.2}
    uid = MathData(path, PairReader("question", "answer")).conversations().__next__()[0]
    (tmp_path / "drop.jsonl").write_text(json.dumps({"uid": uid, "reason": "x"}) + "\n")
    (tmp_path / "other.jsonl").write_text("".join((tmp_path / "pairs.jsonl").read_text().splitlines(True)[:50]))
    changes = {
        "path": str(tmp_path / "other.jsonl"),
        "reader": PairReader("question", "also"),
        "fraction": 0.5,
        "max_examples": 9,
        "val_fraction": 0.4,
        "num_examples": 41,
        "exclude": ["1 step"] if name != "exclude" else [_a_kind()],
        "lab": LabOptions(ambiguity=0.5),
        "drop": str(tmp_path / "drop.jsonl"),
        "system": "Count well.",
        "on_bad_record": "fail",
        "max_bad_share": 0.5,
        "streaming": True,
    }
    with hub_server() as server:
        if name == "streaming":
            point_at(server, monkeypatch, tmp_path / "hf")
            monkeypatch.setenv("SFTLAB_CACHE", str(tmp_path / "cache"))
            server.push("me/pairs", {"pairs.jsonl": Path(path).read_bytes()})
            before["path"] = "hub:me/pairs"
        one, other = MathData(**before), MathData(**{**before, name: changes[name]})
        assert_effect(settings.ABILITY[name][0], last_key(math=one), last_key(math=other))


def _a_kind() -> str:
    try:
        list(MathData(num_examples=5, exclude=["?"]).conversations())
    except ValueError as error:
        return str(error).split("is not one of ")[1].split(",")[0].strip()
    raise AssertionError("an unknown kind is refused")


@pytest.mark.parametrize("name", settings.SCHEDULE)
def test_arguments_of_schedules(name):
    cls, change = SCHEDULE_CHANGES[name]
    before = {"list_of_stages": [Stage("all", {"math": 1.0}, epochs=1)]} if cls is Stages else {}
    before = {"specialised": ["code"], "general": ["general"]} if name == "general" else before
    if cls is Adaptive:
        before = {"adaptive": OnlineDataMixing(), "decide_every_n_steps": 2, "steps": 6}
    before = {"k": 0.5} if name == "replay" else before
    before = {"specialised": ["general"], "general": ["math"], "k": 0.4} if name == "counted_in" else before
    stop = [EarlyStopping("val/loss/math")] if name == "stop_early" else []
    one, other = cls(**before), cls(**{**before, **change})
    one, other = (last_key(schedule=schedule, callbacks=stop) for schedule in (one, other))
    assert_effect(settings.SCHEDULE[name][0], one, other)


@pytest.mark.parametrize("name", settings.STAGE)
def test_arguments_of_a_stage(name):
    given = {"name": "all", "fractions": {"general": 0.4, "math": 0.7, "code": 1.0}, "epochs": 1}
    after = {**given, name: STAGE_CHANGES[name]}
    if name in ("steps", "supervised_tokens"):
        del after["epochs"]
    if name in ("adaptive", "decide_every_n_steps"):
        given = {**given, "epochs": None, "steps": 6, "adaptive": OnlineDataMixing(0.5), "decide_every_n_steps": 2}
        after = {**given, name: STAGE_CHANGES[name]}
    one, other = (last_key(schedule=Stages([Stage(**stage)])) for stage in (given, after))
    assert_effect(settings.STAGE[name][0], one, other)


@pytest.mark.parametrize("name", settings.POLICY)
def test_arguments_of_policies(name):
    even = WeightedShares({"math": 1, "code": 9 if name == "resample" else 1, "general": 1})
    before = Temperature(2.0) if name == "temperature" else even
    policies = (before, POLICY_CHANGES[name])
    one, other = (last_key(data={"policy": policy}, schedule=MultiTask(epochs=2)) for policy in policies)
    assert_effect(settings.POLICY[name][0], one, other)


@pytest.mark.parametrize("name", settings.TRAINER)
def test_arguments_of_the_trainer(name):
    before = {"gradient_clip_val": 1.0, "precision": "32-true"}
    after = {**before, name: TRAINER_CHANGES.get(name, 7)}
    assert_effect(settings.TRAINER[name][0], last_key(trainer=before), last_key(trainer=after))


def _subclasses(cls):
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def test_every_argument_of_ours_and_of_lightnings_trainer_has_a_place():
    ours = [cls for cls in _subclasses(StageSchedule) if cls.__module__.startswith("sftlab.")]
    policies = [cls for cls in _subclasses(MixturePolicy) if cls.__module__.startswith("sftlab.")]
    policies.remove(DecidedShares)  # made while training, never configured
    assert {MultiTask, Sequential, DMT, MixedSequential, Stages} <= set(ours) and Proportional in policies
    placed = [(settings.MODULE, SFTModule), (settings.DATA, MixtureData), (settings.ABILITY, AbilityData)]
    placed += [(settings.STAGE, Stage), (settings.TRAINER, Trainer), (settings.SCHEDULE, StageSchedule)]
    placed += [(settings.SCHEDULE, cls) for cls in ours] + [(settings.POLICY, cls) for cls in policies]
    lost = [f"{cls.__name__}.{name}" for table, cls in placed for name in settings.arguments(cls) if name not in table]
    assert not lost, f"give {lost} a place in sftlab.run.settings, and a change here"
    known = {getattr(lightning_callbacks, name) for name in lightning_callbacks.__all__} - {Callback}
    known |= {cls for cls in _subclasses(Callback) if cls.__module__.startswith("sftlab.callbacks.")}
    lost = sorted(cls.__name__ for cls in known - set(ours) - {StageSchedule} if cls.__name__ not in settings.CALLBACKS)
    assert not lost, f"give the callbacks {lost} a place in sftlab.run.settings"
    effects = {TRAINED, CONTENT, MEASURED, NONE, REFUSED}
    tables = (settings.MODULE, settings.TRAINER, settings.CALLBACKS, settings.SCHEDULE)
    assert all(effect in effects and why for table in tables for effect, why in table.values())


class Noisy(Callback):
    def __init__(self, scale=1.0):
        self.scale = scale


class Watching(Noisy):
    changes_training = False


@pytest.mark.parametrize(
    ("one", "other", "effect"),
    [
        (Noisy(1.0), Noisy(2.0), TRAINED),
        (Watching(1.0), Watching(2.0), MEASURED),
        (EarlyStopping("a"), EarlyStopping("a", patience=9), TRAINED),
        (EMAWeightAveraging(decay=0.9), EMAWeightAveraging(decay=0.5), TRAINED),
        (ModelCheckpoint("a"), ModelCheckpoint("b", every_n_train_steps=3), NONE),
        (Noisy(1.0), Noisy(1.0), NONE),
    ],
)
def test_callbacks_count_by_what_they_change(one, other, effect):
    assert_effect(effect, last_key(callbacks=[one]), last_key(callbacks=[other]))


@pytest.mark.parametrize(
    ("changes", "is_other"),
    [
        ({}, False),
        ({"math": MathData(**{**SPLIT, "num_examples": 41})}, True),
        ({"data": {"seed": 6}}, True),
        ({"data": {"batch": {"examples": 9}}}, True),
        ({"data": {"packing": False}}, True),
        ({"data": {"num_workers": 2}}, False),
        ({"module": {"learning_rate": 0.5}}, True),
        ({"module": {"attention": "eager"}}, False),
    ],
)
def test_the_key_of_an_adaptive_stage_is_known_before_and_holds_what_determines_its_decisions(changes, is_other):
    def key(**more):
        schedule = Adaptive(OnlineDataMixing(), 2, steps=9)
        mixture, model, plan = compiled(schedule=schedule, **more)
        first = stage_keys(mixture, model, plan, Settings.of_arguments({}, 1, [schedule]))
        assert plan.is_open and len(first) == len(plan.stages) == 1
        while plan.is_open:  # what is decided changes nothing any more
            schedule._adaptation.observe_step([1.0, 2.0, 3.0])
            schedule._adaptation.extend(lambda content: content)
        assert stage_keys(mixture, model, plan, Settings.of_arguments({}, 1, [schedule])) == first
        return first

    assert (key(**changes) != key()) == is_other


def test_only_the_ratios_of_loss_weights_count():
    def key(**weights):
        return last_key(schedule=MultiTask(epochs=1, loss_weights=weights or None))

    assert key() == key(math=3, code=3, general=3) == key(math=1)
    assert key(math=2) == key(math=3, code=1.5, general=1.5) != key(math=4)


def test_an_adapter_that_the_stage_before_merges_makes_another_stage():
    keys = [last_key(module={"adapter": LoRA(stages={stage: "merged"})}) for stage in ("specialised", "general")]
    carried = last_key(module={"adapter": LoRA()})
    assert keys[0].trained != carried.trained
    assert keys[1].trained == carried.trained, "merged when a stage begins that does not come"


def test_the_seed_of_random_weights_counts():
    assert_effect(TRAINED, last_key(seed=1), last_key(seed=2))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"precision": "bf16-mixed", "gradient_clip_val": 1},
        {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
        {"deterministic": True, "limit_val_batches": 2},
        {"callbacks": [EarlyStopping("val/loss/math"), ModelCheckpoint()]},
    ],
)
def test_a_trainer_and_a_config_of_the_same_arguments_have_the_same_settings(given, tmp_path):
    silent = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    given = {"precision": "32-true", **given}
    try:
        trainer = Trainer(accelerator="cpu", devices=1, **silent, **given)
        assert Settings.of_trainer(trainer) == Settings.of_arguments(given, 0)
    finally:
        torch.use_deterministic_algorithms(False)


def test_runs_that_share_a_beginning_share_its_keys():
    keys = {}
    for k in (0.0, 0.25):
        schedule = DMT(k=k, epochs=1)
        keys[k] = stage_keys(*compiled(schedule=schedule), Settings.of_arguments({}, 1, [schedule]))
    assert keys[0.0][0] == keys[0.25][0] and keys[0.0][1].trained != keys[0.25][1].trained
    mixed = MixedSequential(epochs=1)
    assert stage_keys(*compiled(schedule=mixed), Settings.of_arguments({}, 1, [mixed])) == keys[0.0]


def test_names_times_and_order_of_files_do_not_count(tmp_path):
    path = Path(write_pairs(tmp_path))
    reader = PairReader("question", "answer")
    one = last_key(math=MathData(str(path), reader, val_fraction=0.2))
    lines = path.read_text().splitlines(keepends=True)
    other = tmp_path / "elsewhere" / "shuffled.jsonl"
    other.parent.mkdir()
    other.write_text("".join(reversed(lines)))
    os.utime(other, (1, 1))
    assert last_key(math=MathData(str(other), reader, val_fraction=0.2)) == one


def test_weights_count_by_their_bytes(tmp_path):
    for name, content in (("one", b"weights"), ("same", b"weights"), ("other", b"WEIGHTS")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        config = {"hidden_size": 8, "transformers_version": name, "_name_or_path": name}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    one, same, other = (weights_hash(SFTModule(str(tmp_path / name))) for name in ("one", "same", "other"))
    assert one == same != other
    (tmp_path / "same" / "config.json").write_text('{"hidden_size": 16}')
    assert weights_hash(SFTModule(str(tmp_path / "same"))) != one


def test_what_changed_is_said_with_both_values_and_only_where_something_trained_did():
    def identity(**module):
        mixture, model, plan = compiled(module=module)
        return run_identity(mixture, model, plan, Settings.of_arguments({"precision": "32-true"}, 1))

    was = identity()
    assert differences(was, identity(attention="eager", chunk_tokens=4)) == []
    assert differences(was, identity(learning_rate=0.5)) == ["model.learning_rate (2e-05, now 0.5)"]
    for name, value in (("lr_schedule", Linear()), ("optimizer", "SGD"), ("warmup_steps", 1)):
        [said] = differences(was, identity(**{name: value}))
        assert said.startswith(f"model.{name}")
    assert differences({**was, "data of math": "other"}, was) == []
    hashed = {**was, "whole": "other", "data of math": "0123456789abcdef"}
    assert differences(hashed, was) == ["data of math"], "hashes say nothing to people"
    own = {**was, "whole": "other", "trainer.callbacks of yours": "[1]"}
    assert differ_in_own_callbacks(own, was) and differ_in_own_callbacks(was, own)
    assert not differ_in_own_callbacks({**own, "trainer.callbacks": "[1]"}, was) and not differ_in_own_callbacks(
        was, was
    )
    assert differences({"whole": "other", **{k: v for k, v in was.items() if k != "whole"}}, was) == [
        "how sftlab trains"
    ]


KEYS = """
import sys
sys.path.insert(0, sys.argv[1])
import test_identity as t
import sftlab
assert sftlab.__file__.startswith(sys.argv[2]), sftlab.__file__
mixture, model, plan = t.compiled()
keys = t.stage_keys(mixture, model, plan, t.Settings.of_arguments({}, 1))
print([*map(tuple, keys), *(ability.examples.folder.name for ability in mixture.abilities.values())])
"""


@pytest.mark.slow
def test_a_comment_in_every_file_of_the_package_changes_no_key_and_no_entry_of_the_cache(tmp_path):
    shutil.copytree(ROOT / "sftlab", tmp_path / "sftlab", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (tmp_path / "sftlab").rglob("*.py"):
        path.write_text(path.read_text() + "\n# an edit\n")
    printed = []
    for root in (ROOT, tmp_path):
        path = os.pathsep.join([str(root), str(ROOT / "tests")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = FORKING.call(["-c", KEYS, str(Path(__file__).parent), str(root)], root, environment)
        assert done.returncode == 0, done.stderr[-2000:]
        printed.append(done.stdout)
    assert printed[0] == printed[1]
