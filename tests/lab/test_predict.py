"""What a perfect learner would do, against counting what the data says."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftlab.lab.abilities import lab_conversations
from sftlab.lab.grading import style_of
from sftlab.lab.options import LabOptions
from sftlab.lab.predict import predicted_styles
from sftlab.lab.registers import CLOSINGS, OPENINGS, QUESTIONS

FULL = {"math": 4096, "code": 2048, "general": 2048}


def test_without_overlap_or_ambiguity_there_is_no_conflict():
    for options in (LabOptions(overlap=0), LabOptions(ambiguity=0)):
        shares = predicted_styles(options, [FULL])
        assert shares["math"] == shares["code"] == pytest.approx(1)
    apart = predicted_styles(LabOptions(ambiguity=0), [FULL])
    assert list(apart.values()) == pytest.approx([1] * 4)


@given(st.sampled_from(["overlap", "ambiguity"]), st.floats(0, 1), st.floats(0, 1))
def test_specialised_styles_lose_as_overlap_grows(dial, a, b):
    low, high = sorted((a, b))
    few, many = (predicted_styles(LabOptions(**{"ambiguity": 0.7, "overlap": x}), [FULL]) for x in (low, high))
    assert few["math"] >= many["math"] - 1e-9 and few["code"] >= many["code"] - 1e-9


def test_more_replay_trades_talk_for_specialised():
    def after(k: float) -> dict[str, float]:
        return predicted_styles(LabOptions(), [{"math": 4096 * k, "code": 2048 * k, "general": 2048}])

    sweep = [after(k) for k in (1 / 256, 1 / 16, 1 / 4, 1)]
    for name, sign in (("math", 1), ("code", 1), ("math-like talk", -1), ("code-like talk", -1)):
        values = [sign * shares[name] for shares in sweep]
        assert values == sorted(values)
    assert sweep[0]["math"] < sweep[-1]["math"] - 0.1 and sweep[0]["math-like talk"] > sweep[-1]["math-like talk"] + 0.2


def test_what_a_stage_never_shows_is_believed_of_an_earlier_one():
    first = {"math": 4096, "code": 2048}
    assert predicted_styles(LabOptions(), [first])["math"] == pytest.approx(1)
    after = predicted_styles(LabOptions(), [first, {"general": 2048}])
    assert after["math"] == pytest.approx(1 - LabOptions().ambiguity * 0.25), (
        "marked prompts keep their style, bare ones lose it"
    )


def test_the_prediction_is_what_counting_the_data_gives():
    """The style that was more frequent for each wording of a large sample, asked again for another sample."""
    # At these dials no wording is nearly as frequent in one style as in the other, so that counting decides each.
    dials = {"overlap": 0.6, "ambiguity": 0.7}
    options, other = LabOptions(**dials), LabOptions(**dials, seed=9)
    sizes = {"math": 8000, "general": 4000}

    def wording(prompt: str) -> tuple[str, ...] | None:
        opening = next((o for o in OPENINGS if o and prompt.startswith(o)), "")
        question = next(
            (q for q in QUESTIONS["math"] if q.split("{")[0] in prompt and q.split("}")[-1] in prompt), None
        )
        closing = next((c for c in CLOSINGS["math"] if prompt.endswith(c)), None)
        return (opening, question, closing) if question and closing else None

    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for ability, number in sizes.items():
        for c in lab_conversations(ability, number, options=options):
            if (ability == "math" or "How many" in c.turns[0].text or "So how" in c.turns[0].text) and (
                key := wording(c.turns[0].text)
            ):
                counts[key][style_of(c.turns[1].text)] += 1
    asked = [wording(c.turns[0].text) for c in lab_conversations("math", 2000, split="test", options=other)]
    worked = sum(counts[key].most_common(1)[0][0] == "worked" for key in asked if counts[key]) / len(asked)
    assert worked == pytest.approx(predicted_styles(options, [sizes])["math"], abs=0.03)
