"""Packed = alone on the model in hand: every architecture ends in exact training or in one message."""

import pytest
import torch
import transformers
from packaging.version import Version
from tiny import ARCHITECTURES, VOCABULARY, tiny

from sftlab.model.attention import register_attention
from sftlab.model.isolation import trouble, use_isolating_attention
from sftlab.model.loss import SupervisedLoss

register_attention()
CPU = torch.device("cpu")
TRIED = ["per_document", "sdpa", "eager"]
LEAKING = ["bamba", "bloom", "falcon_h1", "granitemoehybrid", "jamba", "lfm2", "mamba", "mamba2", "mpt",
           "qwen3_5_text", "qwen3_next", "recurrent_gemma", "rwkv"]  # fmt: skip
if Version(transformers.__version__) < Version("5.24"):
    LEAKING += ["falcon", "falcon alibi"]
APART = sorted(set(ARCHITECTURES) - {*LEAKING, "bert"})


def sure_of_itself(name, **more):
    model = tiny(name, **more)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.dim() > 1 else 1)  # as a trained model is
    return model


def reference_nll(model, doc):
    """The architecture's own forward pass over one example, as it stands when nothing was set."""
    with torch.no_grad():
        logits = model(doc[None]).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, doc[1:], reduction="none")


def trained_nll(net, docs, packing):
    from sftlab.model import isolation

    with torch.no_grad():
        return isolation._nll(net, docs, packing, CPU).split([len(doc) - 1 for doc in docs])


@pytest.mark.parametrize("name", APART)
def test_what_is_packed_gives_the_losses_that_the_architecture_itself_gives_one_by_one(name):
    net = SupervisedLoss(tiny(name))
    use_isolating_attention(net, TRIED, 40, True, CPU)
    assert net.training
    model, generator = tiny(name).eval(), torch.Generator().manual_seed(7)
    docs = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in (9, 30, 2, 17)]
    for nll, doc in zip(trained_nll(net.eval(), docs, True), docs, strict=True):
        torch.testing.assert_close(nll, reference_nll(model, doc), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LEAKING)
def test_what_leaks_is_refused_and_trains_exactly_one_example_a_row(name):
    net = SupervisedLoss(tiny(name))
    with pytest.raises(ValueError, match=r"does not keep packed examples apart.*data\.packing: false"):
        use_isolating_attention(net, TRIED, 40, True, CPU)
    use_isolating_attention(net, TRIED, 40, False, CPU)
    model, generator = tiny(name).eval(), torch.Generator().manual_seed(7)
    docs = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in (9, 30, 17)]
    for nll, doc in zip(trained_nll(net.eval(), docs, False), docs, strict=True):
        torch.testing.assert_close(nll, reference_nll(model, doc), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_positions_that_the_longest_of_a_batch_scales_are_told_with_the_length_that_is_safe(packing):
    dynamic = {"rope_type": "dynamic", "factor": 4.0}
    net = SupervisedLoss(sure_of_itself("llama", max_position_embeddings=64, rope_scaling=dynamic))
    with pytest.raises(ValueError, match=r"scales its positions.*data\.max_length: 64 or less"):
        use_isolating_attention(net, TRIED, 200, packing, CPU)
    use_isolating_attention(net, TRIED, 64, packing, CPU)


@pytest.mark.parametrize("name", ["llama4_text", "qwen2_moe", "phimoe"])
def test_windows_and_chunks_that_show_in_long_examples_alone_are_seen(name):
    net, model = SupervisedLoss(sure_of_itself(name)), sure_of_itself(name).eval()
    assert use_isolating_attention(net, TRIED, 128, True, CPU) == "sdpa"
    doc = torch.randint(3, VOCABULARY, (120,), generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(trained_nll(net.eval(), [doc], True)[0], reference_nll(model, doc), atol=2e-5, rtol=1e-5)
    assert use_isolating_attention(SupervisedLoss(sure_of_itself(name)), TRIED, 64, True, CPU) == "per_document"


def test_an_architecture_that_looks_ahead_is_refused_either_way():
    net = SupervisedLoss(tiny("bert"))
    for packing in (True, False):
        with pytest.raises(ValueError, match="bert does not"):
            use_isolating_attention(net, TRIED, 40, packing, CPU)


def test_an_attention_that_was_asked_for_is_the_only_one_tried():
    net = SupervisedLoss(tiny("opt"))
    with pytest.raises(ValueError, match=r"opt does not keep .* \(tried with attention sdpa\)"):
        use_isolating_attention(net, ["sdpa"], 40, True, CPU)
    assert use_isolating_attention(net, ["per_document"], 40, True, CPU) == "per_document"
    assert "no attention per_document" in trouble(SupervisedLoss(tiny("gpt_neo")), "per_document", 40, True, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_length", [2, 3, 40])
def test_examples_of_two_tokens_and_half_precision_are_no_trouble(dtype, max_length):
    net = SupervisedLoss(tiny("qwen3").to(dtype))
    for packing in (True, False):
        assert use_isolating_attention(net, TRIED, max_length, packing, CPU) == "per_document"
    leaking = SupervisedLoss(tiny("qwen3_5_text").to(dtype))
    assert "another example" in trouble(leaking, "sdpa", max_length, True, CPU)


def test_logits_that_are_changed_after_the_head_are_noticed_whatever_the_config_calls_it():
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    forward = model.forward
    model.forward = lambda *a, **k: scaled(forward(*a, **k))

    def scaled(output):
        output.logits = output.logits / 2
        return output

    net = SupervisedLoss(model)
    assert net.has_plain_head
    use_isolating_attention(net, TRIED, 40, True, CPU)
    assert not net.has_plain_head
    plain = SupervisedLoss(tiny("llama"))
    use_isolating_attention(plain, TRIED, 40, True, CPU)
    assert plain.has_plain_head


def test_a_model_that_cannot_run_is_told_from_one_that_leaks():
    with pytest.raises(ValueError, match=r"mamba cannot be trained here, a forward pass fails .*RuntimeError"):
        use_isolating_attention(SupervisedLoss(tiny("mamba").to(torch.bfloat16)), ["eager"], 40, True, CPU)


def test_dropout_and_the_random_state_are_left_as_they_were():
    net = SupervisedLoss(tiny("llama", attention_dropout=0.5))
    state = torch.get_rng_state()
    use_isolating_attention(net, TRIED, 40, True, CPU)
    assert net.training and torch.equal(torch.get_rng_state(), state)


def test_a_process_that_is_lost_in_the_midst_says_nothing_of_the_model(monkeypatch):
    def lost(*_, **__):
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")

    net = SupervisedLoss(tiny("llama"))
    monkeypatch.setattr(net.model, "forward", lost)
    with pytest.raises(RuntimeError, match="reset by peer"):
        use_isolating_attention(net, ["sdpa", "eager"], 40, True, CPU)
