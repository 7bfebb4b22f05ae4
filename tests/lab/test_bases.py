"""The bases that ship: small, loadable by name, as good as their cards say, and made again by one command."""

import importlib.util
import re
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
import torch

from sftlab.lab.bases import FOLDER, LAB_BASES, base_folder
from sftlab.lab.tokenizer import lab_tokenizer
from sftlab.model.backbone import build_backbone, load_config, load_tokenizer
from sftlab.model.module import SFTModule
from sftlab.run.identity import weights_hash

ROOT = Path(__file__).parents[2]
SHIPPED = [name for name in LAB_BASES if (FOLDER / name.removeprefix("lab:")).is_dir()]


def maker():
    loader = SourceFileLoader("make_lab_bases", str(ROOT / "tools" / "make_lab_bases"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("make_lab_bases", loader))
    loader.exec_module(module)
    return module


def test_they_ship_in_a_few_megabytes():
    assert SHIPPED == ["lab:small", "lab:base", "lab:large"]
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 5e6


@pytest.mark.parametrize("name", SHIPPED)
def test_a_base_loads_by_its_name_and_reads_unseen_text_as_its_card_says(name):
    model = build_backbone(name, None, "sdpa").eval()
    assert load_tokenizer(name) is lab_tokenizer() and len(lab_tokenizer()) == load_config(name, None).vocab_size
    card = (base_folder(name) / "README.md").read_text(encoding="utf-8")
    parameters, told = re.search(r"([\d,]+) parameters", card)[1], float(re.search(r"\*\*: ([\d.]+) nats", card)[1])
    assert sum(p.numel() for p in model.parameters()) == int(parameters.replace(",", ""))
    made = maker()
    unseen_BT = next(made.blocks("held out", made.HELD_OUT))
    with torch.no_grad():
        loss = model(unseen_BT, labels=unseen_BT, use_cache=False).loss.item()
    assert loss == pytest.approx(told, abs=0.003), "16 bits lose nothing that counts"


def test_its_weights_determine_a_run():
    assert weights_hash(SFTModule("lab:base")) not in ("", weights_hash(SFTModule("lab-base")))
    with pytest.raises(
        ValueError, match="'lab:huge' is not a base of the lab; there are lab:small, lab:base, lab:large"
    ):
        load_config("lab:huge", None)


def test_the_same_seed_makes_the_same_base():
    made = maker()
    first, again, other = (made.pretrain("small", seed, 2 * made.ROWS * made.LENGTH)[0] for seed in (1, 1, 2))
    same, different = (torch.equal(first.model.norm.weight, m.model.norm.weight) for m in (again, other))
    assert same and not different


def test_a_base_that_is_not_there_is_told_how_to_make(monkeypatch, tmp_path):
    monkeypatch.setattr("sftlab.lab.bases.FOLDER", tmp_path)
    with pytest.raises(ValueError, match="make it with tools/make_lab_bases --sizes small"):
        load_config("lab:small", None)
