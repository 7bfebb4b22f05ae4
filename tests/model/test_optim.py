"""Choices of an optimizer: what they mean, and what is said of those that mean nothing."""

import pytest
import torch
from tiny import tiny

from sftlab.callbacks.schedule import DMT
from sftlab.model.module import SFTModule
from sftlab.model.optim import build_optimizer, chosen_optimizer


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("SDG", r"model\.optimizer: SDG is not an optimizer; torch\.optim has .*SGD"),
        ("torch.nn.Linear", "is not an optimizer"),
        ("no.such.Thing", "is not an optimizer"),
        ({"init_args": {}}, "give class_path and init_args"),
        ({"class_path": "SGD", "args": {}}, "args"),
        ({"class_path": "SGD", "init_args": {"lr": 1}}, r"init_args\.lr: give model\.learning_rate"),
        ({"class_path": "SGD", "init_args": {"params": []}}, r"init_args\.params: it gets the model's"),
        ({"class_path": "AdamW", "init_args": {"weight_decay": "1e-2"}}, "weight_decay: '1e-2' is not a number"),
        ({"class_path": "SGD", "init_args": {"momentums": 0.9}}, "takes no momentums; it takes .*momentum"),
        ({"class_path": "SGD", "init_args": [1]}, "give keys and values"),
    ],
)
def test_what_is_no_optimizer_is_told_before_anything_is_loaded(given, said):
    with pytest.raises(ValueError, match=said):
        SFTModule(optimizer=given)


def test_a_missing_package_is_told_in_one_message_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr("sftlab.model.optim._SHORT", {"AdamW8bit": "bitsandbytes_.optim.AdamW8bit"})
    monkeypatch.setattr("sftlab.model.optim._EXTRAS", {"bitsandbytes_": "bitsandbytes"})
    with pytest.raises(ValueError, match=r"AdamW8bit needs bitsandbytes_: pip install 'sftlab\[bitsandbytes\]'"):
        chosen_optimizer("model.optimizer", "AdamW8bit")


def test_betas_of_the_default_are_not_passed_over_in_silence():
    with pytest.raises(ValueError, match=r"model\.betas"):
        SFTModule(optimizer="SGD", betas=(0.9, 0.95))


def test_a_name_and_its_paths_are_the_same_choice():
    choices = [
        chosen_optimizer("x", given) for given in ("SGD", "torch.optim.SGD", {"class_path": "torch.optim.sgd.SGD"})
    ]
    assert choices[0] == choices[1] == choices[2]


def test_an_optimizer_without_weight_decay_says_so():
    class Plain(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr)

    import sys

    sys.modules[__name__].Plain = Plain
    Plain.__qualname__ = "Plain"
    choice = chosen_optimizer("x", f"{__name__}.Plain")
    net = torch.nn.Linear(2, 2)
    assert build_optimizer(net, choice, 0.0, (0.9, 0.999)).param_groups[0]["lr"] == 1.0
    with pytest.raises(ValueError, match="knows no weight decay"):
        build_optimizer(net, choice, 0.1, (0.9, 0.999))


def test_arguments_that_the_class_refuses_are_told():
    net = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="SGD cannot be used so: Invalid momentum"):
        build_optimizer(
            net, chosen_optimizer("x", {"class_path": "SGD", "init_args": {"momentum": -1.0}}), 0, (0.9, 0.9)
        )
    for name in ("LBFGS", "torch.optim.SparseAdam"):
        with pytest.raises(ValueError, match=f"x: {name} is refused: it "):
            chosen_optimizer("x", name)


def test_muon_updates_hidden_matrices_and_adamw_the_rest_as_torch_does():
    model, twin = tiny("llama"), tiny("llama")
    made = build_optimizer(model, chosen_optimizer("x", "Muon"), 0.1, (0.9, 0.999))
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = {names[id(p)] for group in made.param_groups if group["is_hidden"] for p in group["params"]}
    assert hidden == {name for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
    theirs = dict(twin.named_parameters())
    rest = [p for name, p in theirs.items() if name not in hidden]
    references = [
        torch.optim.Muon([theirs[name] for name in hidden], lr=1.0, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([{"params": [p for p in rest if p.ndim == 2], "weight_decay": 0.1},
                           {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0}], lr=1.0),
    ]  # fmt: skip
    for optimizer in [made, *references]:
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
    torch.manual_seed(0)
    for _ in range(3):
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p)
            theirs[name].grad = p.grad.clone()
        for optimizer in [made, *references]:
            optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, theirs[name], msg=name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr_schedule": "Cosin"}, r"per_stage\.general\.lr_schedule.*Cosine"),
        ({"lr_schedule": {"class_path": "WSD", "init_args": {"decay": 0.1}}}, "decay_ratio"),
        ({"lr_schedule": {"class_path": "WSD", "init_args": {"decay_ratio": 3}}}, "decay_ratio"),
        ({"policy": "EqualCounts"}, "EqualCount"),
        ("SGD", "give keys and values"),
    ],
)
def test_what_a_stage_may_not_say_is_told_when_the_schedule_is_made(changes, said):
    with pytest.raises(ValueError, match=said):
        DMT(per_stage={"general": changes})


def test_an_extra_that_does_not_know_sharded_weights_is_refused(monkeypatch):
    monkeypatch.setattr("sftlab.model.optim.DTensor", torch.nn.Parameter)
    choice = {"class_path": "bitsandbytes.optim.adamw.AdamW8bit", "init_args": {}}
    with pytest.raises(ValueError, match="do not know sharded weights; use strategy: ddp"):
        build_optimizer(torch.nn.Linear(2, 2), choice, 0.0, (0.9, 0.999))
