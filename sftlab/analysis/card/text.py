"""The composition card as Markdown, and the tables that the page shares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sftlab.analysis.card.composition import MOST_EXCHANGES, AbilityCard, Composition
from sftlab.analysis.card.minhash import NUM_BANDS, NUM_HASHES, ROWS_OF_BAND, SHINGLE_WORDS, THRESHOLD
from sftlab.report.exhibit import Exhibit, Table
from sftlab.report.text import markdown_text
from sftlab.screen import visible

COUNTED = "All examples left after drop lists are counted, before fractions, validation included."
METHOD = (
    f"Same: equal words (case and punctuation aside). Near: Jaccard similarity of word {SHINGLE_WORDS}-grams from "
    f"{THRESHOLD:g}, candidates by MinHash (Broder 1997; {NUM_HASHES} hashes, {NUM_BANDS} bands of {ROWS_OF_BAND}), "
    "every pair verified. Counted are the row's conversations that the column's ability has too; on the diagonal of "
    "same, copies beyond the first."
)
Row = tuple[str, ...]


def size_rows(mix: Composition) -> list[Row]:
    """Return a header, then a row for each ability and one for all."""
    titles = ("conversations", "examples", "tokens", "supervised", "share of supervised", "exchanges", "median length")
    rows: list[Row] = [("ability", *titles)]
    cards = list(mix.abilities.values())
    total = sum(int(card.supervised_N.sum()) for card in cards)
    for card in cards:
        supervised, exchanges = int(card.supervised_N.sum()), card.num_exchanges / max(1, card.num_conversations)
        rows.append(
            (card.name, f"{card.num_conversations:,}", f"{len(card.lengths_N):,}", f"{int(card.lengths_N.sum()):,}",
             f"{supervised:,}", f"{supervised / max(1, total):.1%}", f"{exchanges:.2f}",
             f"{float(np.median(card.lengths_N)):,.0f}")
        )  # fmt: skip
    lengths_N = np.concatenate([card.lengths_N for card in cards])
    conversations = sum(card.num_conversations for card in cards)
    rows.append(
        ("all", f"{conversations:,}", f"{len(lengths_N):,}", f"{int(lengths_N.sum()):,}", f"{total:,}", "100.0%", "",
         f"{float(np.median(lengths_N)):,.0f}")
    )  # fmt: skip
    return rows


def length_facts(card: AbilityCard) -> str:
    """Return quantiles of length in one line."""
    low, middle, high, most = np.quantile(card.lengths_N, [0.1, 0.5, 0.9, 1.0])
    part = card.supervised_N.sum() / card.lengths_N.sum()
    return f"10 % {low:,.0f}, median {middle:,.0f}, 90 % {high:,.0f}, longest {most:,.0f} tokens; {part:.0%} supervised"


def word_facts(card: AbilityCard) -> str:
    """Return the size of the vocabulary in one line."""
    total, distinct = card.words.total(), len(card.words)
    once = sum(count == 1 for count in card.words.values())
    return f"{total:,} words, {distinct:,} different, {once / max(1, distinct):.0%} of them once"


def exchange_rows(card: AbilityCard) -> list[tuple[str, int]]:
    """Return conversations by number of exchanges."""
    counts = sorted(card.exchanges.items())
    return [(f"{number}{'+' if number == MOST_EXCHANGES else ''}", count) for number, count in counts]


def matrix(mix: Composition, kind: str) -> list[Row]:
    """Return abilities against abilities: covered, jaccard (of vocabularies), same or near (conversations)."""
    names = list(mix.abilities)
    rows: list[Row] = [("", *names)]
    for one in names:
        if kind == "covered":
            cells = [f"{mix.covered(one, other):.0%}" for other in names]
        elif kind == "jaccard":
            cells = [f"{mix.jaccard(one, other):.2f}" for other in names]
        else:
            counts = mix.duplicates.same if kind == "same" else mix.duplicates.near
            cells = [f"{counts[one, other]:,}" for other in names]
        rows.append((one, *cells))
    return rows


def exhibit(mix: Composition, title: str, page: Path) -> Exhibit:
    """Return the exhibit for the report of a study."""
    tables = [("sizes", "Abilities", size_rows(mix), [COUNTED])]
    tables += [("same", "Same conversations", matrix(mix, "same"), [])]
    tables += [("near", "Near-duplicates", matrix(mix, "near"), [METHOD])]
    parts = [Table(n, words, [*head], [[*row] for row in rows], notes) for n, words, (head, *rows), notes in tables]
    return Exhibit(f"What the data of {title} is made of", parts=parts, page=page)


def markdown(mix: Composition, title: str) -> str:
    """Return the whole card."""
    written = f"Template {mix.template}, rows of {mix.max_length:,} tokens."
    lines = [f"# What is in here: {_cell(title)}", "", f"{COUNTED} {written}", ""]
    lines += [*_table(size_rows(mix)), ""]
    for card in mix.abilities.values():
        lines += [f"## {_cell(card.name)}", "", f"- {_cell(card.source)}, fraction {card.fraction:g}"]
        lines += [f"- {length_facts(card)}", f"- {word_facts(card)}"]
        lines += ["- exchanges: " + ", ".join(f"{name}: {count:,}" for name, count in exchange_rows(card))]
        lines += ["- words that set it apart: " + ", ".join(_cell(word) for word, _ in card.distinctive)]
        lines += [f"- {_cell(cause)}: {count:,}" for cause, count in sorted(card.audit.items())]
        if card.tags:
            lines += ["- tags: " + ", ".join(f"{_cell(tag)} {count:,}" for tag, count in card.tags.most_common(12))]
        lines += ["", "Samples:", ""]
        for uid, talk in card.samples:
            lines += [f"- `{uid}` " + " / ".join(f"**{t.role}** {_cell(t.text[:200])}" for t in talk.turns[:4])]
        lines.append("")
    lines += ["## Overlap", "", "Part of the row's running words that the column's vocabulary has:", ""]
    lines += [*_table(matrix(mix, "covered")), "", "Same conversations:", "", *_table(matrix(mix, "same")), ""]
    lines += ["Near-duplicates:", "", *_table(matrix(mix, "near")), "", METHOD]
    for similarity, one, other in mix.duplicates.pairs:
        lines += ["", f"- {similarity:.2f} {one[0]} `{one[1]}`: {_cell(one[2][:160])}"]
        lines += [f"  / {other[0]} `{other[1]}`: {_cell(other[2][:160])}"]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row]) -> list[str]:
    head, *body = (f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)
    return [head, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *body]


def _cell(text: str) -> str:
    return markdown_text(visible(text))
