"""The loss: equal to Hugging Face's on separate examples, and the same for any split of a step."""

import copy
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from pools import ranked
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen2Config

from sftlab.data.feed import PlanLoader, collate
from sftlab.model.attention import register_attention
from sftlab.model.loss import SupervisedLoss, example_weights
from sftlab.model.noise import Noise
from sftlab.plan.compile import compile_plan
from sftlab.plan.policy import Proportional
from sftlab.plan.stage import Stage, StepSize

VOCABULARY = 97
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


class Table:
    """Examples in memory: a prompt that is not trained and an answer that is, twice over."""

    def __init__(self, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.all_ids = [rng.integers(3, VOCABULARY, rng.integers(4, 30)) for _ in range(n)]

    def ids(self, index: int) -> np.ndarray:
        return self.all_ids[index]

    def mask(self, index: int) -> np.ndarray:
        positions = np.arange(len(self.all_ids[index]))
        return (positions % 5 >= 2) & (positions > 0)


@pytest.fixture(scope="module")
def planned():
    tables = {"math": Table(13, 0), "general": Table(9, 1)}
    pools = []
    for name, table in tables.items():
        lengths = np.array([len(ids) for ids in table.all_ids])
        supervised = np.array([table.mask(i).sum() for i in range(len(lengths))])
        pools.append(ranked(name, [f"{name}{i}" for i in range(len(lengths))], lengths, supervised))
    stages = [Stage("all", {"math": 1.0, "general": 1.0}, epochs=1)]
    return compile_plan(pools, stages, Proportional(), StepSize(examples=11), 40), tables


def model(attention: str = "sdpa", config=LlamaConfig, **more):
    register_attention()
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(config(**SMALL, **more), attn_implementation=attention)
    built.config.use_cache = False
    return built.train()


def separate_nll(reference, plan, tables, step) -> list[torch.Tensor]:
    """Each example by itself through Hugging Face's own forward pass, without packing."""
    nlls = []
    for number in np.concatenate(plan.rows(step)):
        table, index = tables[plan.abilities[plan.ability_N[number]]], plan.index_N[number]
        ids, mask = torch.tensor(table.ids(index))[None], torch.tensor(table.mask(index))
        logits = reference(input_ids=ids, use_cache=False).logits[0, :-1].float()
        nlls.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")[mask[1:]])
    return nlls


@pytest.mark.parametrize("attention", ["per_document", "sdpa", "eager"])
@pytest.mark.parametrize("config", [LlamaConfig, Qwen2Config, Gemma2Config])
@pytest.mark.parametrize("chunk_tokens", [None, 7])
def test_packed_rows_give_the_loss_of_separate_examples(planned, attention, config, chunk_tokens):
    if config is Gemma2Config and attention != "eager":
        pytest.skip("this architecture caps its attention scores, which only its eager form does")
    plan, tables = planned
    more = {"head_dim": 8, "pad_token_id": 0} if config is Gemma2Config else {}
    reference = model(attention="eager", config=config, **more)
    net = SupervisedLoss(model(attention, config, **more), chunk_tokens)
    net.model.load_state_dict(reference.state_dict())
    batch = collate(0, plan.rows(0), plan, tables)
    weights = torch.ones(len(batch.lengths_D))
    loss, nll_K = net(batch, weights)
    wanted = torch.cat(separate_nll(reference, plan, tables, 0))
    torch.testing.assert_close(nll_K, wanted.detach(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(loss, wanted.sum(), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("normalise", ["token", "example", "ability"])
@pytest.mark.parametrize("split", [(1, 1), (3, 1), (1, 2), (4, 3)])
@pytest.mark.parametrize("weights", [None, {"math": 0.25, "general": 2.0}, {"math": 0.0}], ids=str)
def test_any_split_into_micro_batches_and_ranks_gives_the_gradient_of_the_definition(
    planned, normalise, split, weights
):
    plan, tables = planned
    stage = Stage("all", {"math": 1.0, "general": 1.0}, epochs=1, loss_weights=weights)
    weights_A = [stage.loss_weight(name) for name in plan.abilities]
    accumulate, world = split
    net = SupervisedLoss(model("per_document"))
    reference = copy.deepcopy(model("eager"))
    reference.load_state_dict(net.model.state_dict())
    supervised, examples = torch.tensor(plan.supervised_A(0, 1)), torch.tensor(plan.examples_A(0, 1))
    total = 0.0
    for rank in range(world):
        loader = PlanLoader(plan, tables, accumulate, rank, world)
        for batch, _ in zip(loader, range(accumulate), strict=False):
            given = None if weights is None else torch.tensor(weights_A)
            loss, _ = net(batch, example_weights(batch, normalise, supervised, examples, given))
            loss.backward()
            total += loss.item()
    nlls = separate_nll(reference, plan, tables, 0)
    owners = plan.ability_N[np.concatenate(plan.rows(0))].tolist()
    terms = {  # each with the ability whose weight it has
        "token": lambda: [(value, owner) for nll, owner in zip(nlls, owners, strict=True) for value in nll],
        "example": lambda: [(nll.mean(), owner) for nll, owner in zip(nlls, owners, strict=True)],
        "ability": lambda: list(zip(by_ability(plan, nlls), range(2), strict=True)),
    }[normalise]()
    wanted = sum(weights_A[owner] * term for term, owner in terms) / sum(weights_A[owner] for _, owner in terms)
    wanted.backward()
    assert total == pytest.approx(wanted.item(), rel=1e-6)
    for mine, theirs in zip(net.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def by_ability(plan, nlls) -> list[torch.Tensor]:
    owners = plan.ability_N[np.concatenate(plan.rows(0))]
    return [torch.cat([nll for nll, o in zip(nlls, owners, strict=True) if o == a]).mean() for a in range(2)]


def test_the_loaders_of_all_ranks_hold_each_example_of_a_step_once(planned):
    plan, tables = planned
    for world, accumulate in ((1, 1), (2, 3), (5, 4)):
        seen: dict[int, list[int]] = {}
        for rank in range(world):
            loader = PlanLoader(plan, tables, accumulate, rank, world)
            assert len(loader) == plan.num_steps * accumulate
            for batch in loader:
                seen.setdefault(batch.step, []).extend(n for n in batch.number_D if n >= 0)
        for step in range(plan.num_steps):
            assert sorted(seen[step]) == sorted(np.concatenate(plan.rows(step)).tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_after_the_step_of_its_state(planned, workers):
    plan, tables = planned

    def load():
        return PlanLoader(plan, tables, 2, num_workers=workers)

    whole = [batch.number_D for batch in load()]
    loader = load()
    iterator = iter(loader)
    for _ in range(2):
        next(iterator)
    state = loader.state_dict()
    assert state == {"step": 1}
    again = load()
    again.load_state_dict(state)
    assert [batch.number_D for batch in again] == whole[2:]
    assert [batch.number_D for batch in again] == whole  # the offset is used once


def test_a_dead_worker_is_told_where_its_batch_is_missed_and_nowhere_else(planned, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # seconds
    before = signal.getsignal(signal.SIGCHLD)
    plan, tables = planned
    batches = iter(PlanLoader(plan, tables, 8, num_workers=1))
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before
    [worker] = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(batches)


@pytest.mark.parametrize("chunk_tokens", [None, 7])
@pytest.mark.parametrize("config", [LlamaConfig, Gemma2Config])
def test_smoothed_targets_are_torchs_and_the_reported_loss_stays_the_plain_one(planned, chunk_tokens, config):
    plan, tables = planned
    more = {"head_dim": 8, "pad_token_id": 0} if config is Gemma2Config else {}
    reference = model("eager", config, **more)
    net = SupervisedLoss(copy.deepcopy(reference), chunk_tokens)
    batch = collate(0, plan.rows(0), plan, tables)
    weights = torch.rand(len(batch.lengths_D))
    _, plain_K = net(batch, weights)
    loss, nll_K = net(batch, weights, smoothing=0.2)
    assert torch.equal(nll_K, plain_K)
    loss.backward()
    wanted = torch.zeros(())
    for number, weight in zip(np.concatenate(plan.rows(0)), weights, strict=True):
        table, index = tables[plan.abilities[plan.ability_N[number]]], plan.index_N[number]
        ids, mask = torch.tensor(table.ids(index))[None], torch.tensor(table.mask(index))
        logits = reference(input_ids=ids, use_cache=False).logits[0, :-1].float()
        smooth = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none", label_smoothing=0.2)
        wanted = wanted + weight * smooth[mask[1:]].sum()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-5)
    for mine, theirs in zip(net.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["per_document", "sdpa"])
def test_noise_counts_an_examples_own_length_whatever_row_it_is_in(planned, attention):
    plan, tables = planned
    alpha, net = 5.0, SupervisedLoss(model(attention))
    numbers = [int(number) for number in np.concatenate(plan.rows(0))]

    def noise(some):
        return Noise(alpha, [1000 + number for number in some])

    seen = []
    net.model.get_input_embeddings().register_forward_hook(lambda _m, _i, output: seen.append(output.detach()))
    batch = collate(0, plan.rows(0), plan, tables)
    weights = torch.ones(len(numbers))
    _, packed_K = net(batch, weights, noise(batch.number_D))
    alone = []
    for number in batch.number_D:
        one = collate(0, [np.array([number])], plan, tables)
        alone.append(net(one, torch.ones(1), noise([number]))[1])
    torch.testing.assert_close(packed_K, torch.cat(alone), atol=2e-5, rtol=1e-5)
    plain_K = net(batch, weights)[1]
    assert not torch.allclose(packed_K, plain_K, atol=1e-3)
    again_K = net(batch, weights, noise(batch.number_D))[1]
    assert torch.equal(again_K, packed_K)
    assert not torch.equal(net(batch, weights, Noise(alpha, [1] * len(numbers)))[1], packed_K)


def test_the_noise_is_the_papers(planned):
    drawn_TC = Noise(5.0, [1, 2]).drawn([200, 50], 64, torch.device("cpu"))
    for part, length in zip(drawn_TC.split([200, 50]), (200, 50), strict=True):
        bound = 5 / (length * 64) ** 0.5
        assert part.abs().max() <= bound and part.abs().max() > 0.99 * bound
        assert abs(float(part.mean())) < bound / 20
        assert float(part.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
