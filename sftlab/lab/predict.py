"""Computes, without training, in which style a perfect learner would answer.

It knows how often each wording was answered in which style, and answers in the likelier one, like greedy decoding of a
model that has learned the training distribution. Other behaviour of a trained model is its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sftlab.lab.options import LabOptions
from sftlab.lab.registers import SPECIALISED, TALK, probabilities


def predicted_styles(
    options: LabOptions, stages: Sequence[Mapping[str, float]], abilities: Sequence[str] = ("math", "code")
) -> dict[str, float]:
    """Predict the share of the test prompts that a perfect learner answers in their own ability's style.

    Args:
        options: The dials.
        stages: For each stage, how many examples of each ability it trains (math, code, general). A later stage wins
            wherever it says something; about a wording that it never shows, an earlier one is believed.
        abilities: The specialised abilities to predict.

    Returns:
        For each specialised ability the share of its prompts answered worked out (``math``, ``code``), and the share
        of the math-like and code-like talk answered as talk (``math-like talk``, ``code-like talk``).
    """
    shares = {}
    for ability in abilities:
        specialised = dict(probabilities(SPECIALISED, options.ambiguity))
        talk = dict(probabilities(TALK, options.ambiguity))
        own = talked = 0.0
        for wording, p in specialised.items():
            worked = _worked(stages, ability, options, p, talk[wording])
            own += p * worked
            talked += talk[wording] * (1 - worked)
        shares[ability], shares[f"{ability}-like talk"] = own, talked
    return shares


def _worked(
    stages: Sequence[Mapping[str, float]], ability: str, options: LabOptions, specialised: float, talk: float
) -> float:
    """Return 1 if the worked style is likelier for a wording of these probabilities, 0.5 if undecided."""
    for stage in reversed(stages):
        weight = stage.get(ability, 0.0) * specialised
        other = stage.get("general", 0.0) * options.overlap / 2 * talk
        if weight != other:
            return float(weight > other)
    return 0.5
