"""Compiled layers train the same losses, with few graphs for rows of all lengths, and leave checkpoints as they are."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from fitting import ROOT, environment, write_records
from forked import FORKING
from small import MODEL, small_fit, small_mixture
from tiny import VOCABULARY, tiny
from torch._dynamo.utils import counters

from sftlab.callbacks.checkpoints import RunCheckpoint
from sftlab.callbacks.schedule import MultiTask, Sequential
from sftlab.data.feed import Batch
from sftlab.model import compiled
from sftlab.model.adapter import LoRA
from sftlab.model.attention import register_attention
from sftlab.model.compiled import ROW_MULTIPLE, compile_layers
from sftlab.model.isolation import trouble
from sftlab.model.loss import SupervisedLoss
from sftlab.model.module import SFTModule
from sftlab.model.parallel import FSDP2Strategy, decoder_layers
from sftlab.processes import free_port
from sftlab.run.folder import complete_checkpoints

register_attention()
ONE_LAYER = {**MODEL, "num_hidden_layers": 1}
CPU = torch.device("cpu")
ROWS = [[[35, 25]], [[10, 50, 40]], [[30, 20], [100]], [[128]], [[7]], [[30, 20], [100], [9, 9]], [[70, 58]], [[127]]]


@pytest.fixture
def quick(monkeypatch):
    """Graphs are traced, and their operations run one by one: seconds less, and all but the kernels is tried."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(compiled, "_BACKEND", {"backend": "eager"})
    yield
    torch._dynamo.reset()


def batch_of(rows):
    lengths = [length for row in rows for length in row]
    ids = torch.randint(3, VOCABULARY, (sum(lengths),), generator=torch.Generator().manual_seed(sum(lengths)))
    places = torch.cat([torch.arange(length) for length in lengths])
    keep = (places > 0).nonzero()[:, 0] - 1
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Batch(step=0, ids_T=ids, positions_T=places, lengths_D=lengths, row_lengths_R=list(map(sum, rows)),
                 keep_K=keep, target_K=ids[keep + 1], example_K=owner[keep], number_D=list(range(len(lengths))),
                 ability_D=torch.zeros(len(lengths)).long(), supervised_D=torch.tensor(lengths) - 1)  # fmt: skip


def losses_and_gradients(net, rows):
    net.zero_grad()
    batch = batch_of(rows)
    loss, nll_K = net(batch, torch.full((len(batch.lengths_D),), 1 / len(batch.keep_K)))
    loss.backward()
    return [nll_K, *(p.grad.clone() for p in net.parameters())]


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_padding_changes_no_loss_and_no_gradient(name, rows):
    torch.manual_seed(0)
    net, seen = SupervisedLoss(tiny(name).train()), []
    net.model.set_attn_implementation("sdpa")
    net.eval()
    decoder_layers(net.model)[0].register_forward_pre_hook(lambda layer, into: seen.append(into[0].shape))
    plain = losses_and_gradients(net, rows)
    net.row_multiple = ROW_MULTIPLE
    torch.testing.assert_close(losses_and_gradients(net, rows), plain, atol=1e-5, rtol=1e-5)
    longest = max(map(sum, rows))
    assert seen[0][:2] == (len(rows), longest) and seen[1][:2] == (len(rows), -(-longest // 64) * 64)


@pytest.mark.slow
def test_rows_of_all_lengths_share_few_graphs_and_packed_is_as_alone(quick):
    net, plain = (SupervisedLoss(tiny("llama").eval()) for _ in range(2))
    plain.load_state_dict(net.state_dict())
    names = list(net.state_dict())
    for one in (net, plain):
        one.model.set_attn_implementation("sdpa")
        one.model.config.use_cache = False
    compile_layers(net, decoder_layers(net.model), CPU)
    assert list(net.state_dict()) == names
    assert not trouble(net, "sdpa", 128, True, CPU)
    for rows in ROWS[:4]:
        losses_and_gradients(net, rows)
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 8
    for rows in ROWS:
        torch.testing.assert_close(
            losses_and_gradients(net, rows), losses_and_gradients(plain, rows), atol=1e-5, rtol=1e-5
        )
    assert counters["stats"]["unique_graphs"] == graphs and not counters["graph_break"]


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_a_plain_one(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "_BACKEND", {"backend": "aot_eager"})
    write_records(tmp_path)
    options = {"adapter": LoRA(r=2, dropout=0.2), "activation_checkpointing": "selective", "chunk_tokens": 64}
    runs = {}
    for compile in (False, True):
        module, lines = small_fit(
            tmp_path / str(compile), MultiTask(steps=3, val_every_n_steps=2), small_mixture(tmp_path),
            model_options={"config": ONE_LAYER, "compile": compile, **options}, accumulate_grad_batches=2,
        )  # fmt: skip
        losses = [line["train/loss"] for line in lines if "train/loss" in line]
        runs[compile] = losses + [line[name] for line in lines for name in line if name.startswith("val/loss")]
    assert len(runs[True]) > 3 and runs[True] == pytest.approx(runs[False], rel=1e-5)
    assert counters["stats"]["unique_graphs"] > 0 and not any("_orig_mod" in name for name in module.state_dict())


@pytest.mark.slow
def test_kernels_too_and_a_run_goes_on_compiled_or_not(tmp_path):
    if not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("no C++ compiler")
    torch._dynamo.reset()
    write_records(tmp_path)

    def run(name, compile, steps=-1, ckpt_path=None):
        _, lines = small_fit(
            tmp_path / name, Sequential(steps=2), small_mixture(tmp_path), RunCheckpoint(1), max_steps=steps,
            model_options={"config": ONE_LAYER, "activation_checkpointing": True, "compile": compile},
            enable_checkpointing=True, ckpt_path=ckpt_path,
        )  # fmt: skip
        return [line["train/loss"] for line in lines if "train/loss" in line]

    plain = run("plain", False)
    run("turns", True, 2)
    run("turns", False, 4, complete_checkpoints(tmp_path / "turns")[-1])
    turns = run("turns", True, -1, complete_checkpoints(tmp_path / "turns")[-1])
    assert turns == pytest.approx(plain, rel=1e-5) and len(plain) == 6


@pytest.mark.slow
def test_two_processes_train_the_same_compiled_and_go_on(tmp_path):
    write_records(tmp_path)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("127.0.0.1")), "PL_GLOBAL_SEED": "1"}
    script, both = str(ROOT / "tests" / "compiled_runs.py"), {**environment(tmp_path), **place}
    ranks = [FORKING.start([script, str(tmp_path)], tmp_path, {**both, "LOCAL_RANK": str(rank)}) for rank in range(2)]
    said = [rank.communicate() for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), said[0][1][-3000:]

    def losses(name):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [line[key] for line in lines for key in sorted(line) if "/loss" in key]

    graphs = json.loads((tmp_path / "graphs.json").read_text())
    for name in ("ddp", "fsdp2"):
        assert losses(name) == pytest.approx(losses("plain"), rel=1e-6) and len(losses(name)) > 9
        assert 0 < graphs[name][0] <= 8 and not graphs[name][1]
    assert graphs["plain"] == [0, 0]


def test_what_does_not_go_with_it_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"model\.compile: does not go with model\.attention: per_document"):
        SFTModule(None, config=MODEL, tokenizer="lab-base", attention="per_document", compile=True)
    module = SFTModule(None, config=MODEL, tokenizer="lab-base", compile=True)
    module._trainer = SimpleNamespace(precision="32-true", strategy=FSDP2Strategy(tensor_parallel_size=2))
    module._device_mesh = object()
    with pytest.raises(ValueError, match=r"model\.compile: not tried with tensor_parallel_size"):
        module.configure_model()
    from torch._inductor import cpp_builder, exc

    def missing():
        raise exc.InvalidCxxCompiler("g++")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ValueError, match=r"model\.compile: compiling needs a C\+\+ compiler .* leave compile out"):
        compile_layers(SupervisedLoss(tiny("llama")), [], CPU)
