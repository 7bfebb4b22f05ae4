"""Queries: the first user turns of an ability's examples that rank first, every text once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sftlab.data.conversation import Turn

if TYPE_CHECKING:
    from sftlab.data.ability import AbilityData, PlannedData
    from sftlab.data.encoder import Encoder

MIN_QUERIES = 10  # per ability: five folds of a probe with two of each in them
_REACH = 16  # examples read for each query wanted, before reading all


class Query(NamedTuple):
    """The first request of a user: uid of the conversation, name of the ability, text."""

    uid: str
    ability: str
    text: str


def choose_queries(data: PlannedData, num_queries: int) -> tuple[list[Query], dict[str, Counter[str]]]:
    """Choose the same number of queries of each ability, those whose training examples rank first.

    More queries contain fewer ones, as fractions do. Left out are texts that came before (an RFT question has many
    answers, each an example) and queries that are longer than ``max_length`` as prompts.

    Args:
        data: Loaded data of a config.
        num_queries: Queries of each ability.

    Returns:
        The queries, ability by ability, and for each ability how many were passed over by cause.

    Raises:
        ValueError: Fewer than two abilities, fewer than ten queries wanted, or an ability has not so many.
    """
    if num_queries < MIN_QUERIES:
        raise ValueError(f"--num_queries: {num_queries} are too few to measure anything; give {MIN_QUERIES} or more")
    if len(data.abilities) < 2:
        raise ValueError("data.abilities: separation is between abilities, and this config has one; give two or more")
    chosen: list[Query] = []
    passed_over = {}
    for name, ability in data.abilities.items():
        queries, passed_over[name] = _of_ability(data, ability, num_queries)
        if len(queries) < num_queries:
            left_out = "".join(f"; {cause}: {count:,}" for cause, count in passed_over[name].items())
            raise ValueError(
                f"--num_queries: {num_queries} wanted, but ability {name!r} has {len(queries)}{left_out}. Give "
                f"--num_queries {len(queries)}, or raise data.abilities.{name}.fraction or data.max_length"
            )
        chosen += queries
    return chosen, passed_over


def _of_ability(data: PlannedData, ability: AbilityData, num_queries: int) -> tuple[list[Query], Counter[str]]:
    assert data.encoder is not None, "the data is loaded first"
    assert ability.examples is not None
    # A piece of a split conversation and a repeated one stand for their conversation.
    uids = list(dict.fromkeys(uid.split("#")[0].split("/")[0] for uid in ability.pool(data.seed).uids_N))
    for reach in (_REACH * num_queries, len(uids)):
        texts = _first_turns(ability, uids[:reach])
        queries, passed_over = _fitting(ability.name, texts, data.encoder, data.max_length, num_queries)
        if len(queries) == num_queries:
            break
    return queries, passed_over


def _first_turns(ability: AbilityData, uids: Sequence[str]) -> dict[str, str]:
    """Return the first user turn of each of these conversations, in this order; empty if it has none."""
    texts: dict[str, str | None] = dict.fromkeys(uids)
    missing = len(texts)
    for uid, talk in ability.conversations():
        if uid in texts and texts[uid] is None:
            texts[uid] = next((turn.text for turn in talk.turns if turn.role == "user"), "")
            missing -= 1
        if not missing:
            break
    return {uid: text or "" for uid, text in texts.items()}


def _fitting(
    ability: str, texts: dict[str, str], encoder: Encoder, max_length: int, num_queries: int
) -> tuple[list[Query], Counter[str]]:
    queries: list[Query] = []
    passed_over: Counter[str] = Counter()
    seen: set[str] = set()
    for uid, text in texts.items():
        if len(queries) == num_queries:
            break
        if not text or text in seen:
            passed_over["same text again" if text else "no user turn"] += 1
        elif len(encoder.prompt_ids([Turn("user", text)])) > max_length:
            passed_over["prompt longer than max_length"] += 1
        else:
            queries.append(Query(uid, ability, text))
        seen.add(text)
    return queries, passed_over
