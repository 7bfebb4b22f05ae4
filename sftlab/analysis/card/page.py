"""The composition card as one HTML page without external resources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sftlab.analysis.card import text as card_text
from sftlab.analysis.card.composition import AbilityCard, Composition
from sftlab.report.page import render
from sftlab.report.style import variable

_TITLES = {"covered": "words of the row the column knows", "same": "same conversations", "near": "near-duplicates"}
_MOST_TURNS, _MOST_PIECES = 6, 20


def page(mix: Composition, title: str) -> str:
    """Return the whole page."""
    colours = {name: variable(i) for i, name in enumerate(mix.abilities)}
    return render(
        "card.html",
        "sftlab.analysis.card",
        title=f"What is in here: {title}",
        counted=card_text.COUNTED,
        sizes=card_text.size_rows(mix),
        colours=colours,
        shares=_shares(mix, colours),
        abilities=[_ability(card, colours[card.name]) for card in mix.abilities.values()],
        overlaps=[_heat(card_text.matrix(mix, kind), kind) | {"title": words} for kind, words in _TITLES.items()],
        method=card_text.METHOD,
        pairs=[
            {"title": f"similarity {similarity:.2f}: {one[0]} and {other[0]}", "texts": [one[2][:300], other[2][:300]]}
            for similarity, one, other in mix.duplicates.pairs
        ],
        chat_template=mix.template,
        max_length=f"{mix.max_length:,}",
        pieces=[{"text": text[:1500], "trained": trained} for text, trained in mix.example[:_MOST_PIECES]],
    )


def _shares(mix: Composition, colours: dict[str, str]) -> list[dict[str, Any]]:
    """Draw a bar for each unit, with parts as wide as their shares."""
    cards = list(mix.abilities.values())
    totals = {
        "examples": [len(card.lengths_N) for card in cards],
        "tokens": [int(card.lengths_N.sum()) for card in cards],
        "supervised tokens": [int(card.supervised_N.sum()) for card in cards],
    }
    bars = []
    for unit, counts in totals.items():
        total = max(1, sum(counts))
        parts = [
            {"label": f"{card.name} {n / total:.1%}", "share": n / total, "colour": colours[card.name]}
            for card, n in zip(cards, counts, strict=True)
        ]
        bars.append({"unit": unit, "parts": parts})
    return bars


def _ability(card: AbilityCard, colour: str) -> dict[str, Any]:
    samples = [
        {
            "uid": uid,
            "turns": [
                {"role": turn.role, "text": turn.text if len(turn.text) <= 700 else f"{turn.text[:700]} ..."}
                for turn in talk.turns[:_MOST_TURNS]
            ],
            "more": max(0, len(talk.turns) - _MOST_TURNS),
        }
        for uid, talk in card.samples
    ]
    return {
        "name": card.name,
        "colour": colour,
        "about": f"{card.source}, fraction {card.fraction:g}",
        "histogram": _histogram(card.lengths_N),
        "lengths": card_text.length_facts(card),
        "exchanges": _bars(card_text.exchange_rows(card)),
        "audit": [(cause, f"{count:,}") for cause, count in sorted(card.audit.items())],
        "tags": _bars(card.tags.most_common(8)) if card.tags else None,
        "words": [word for word, _ in card.distinctive],
        "word_facts": card_text.word_facts(card),
        "samples": samples,
    }


def _histogram(lengths_N: np.ndarray) -> dict[str, Any]:
    """Draw a histogram of examples by tokens, on a logarithmic axis, in about 24 bars."""
    low, high = max(1, int(lengths_N.min())), int(lengths_N.max()) + 1
    start, octaves = np.log2(low), np.log2(high / low)
    edges = np.unique(np.round(2.0 ** np.linspace(start, start + octaves, 25)))  # whole tokens, so no bar is empty
    counts, _ = np.histogram(lengths_N, edges)
    width, height = 460, 96
    places = (np.log2(edges) - start) / octaves * width
    tall = height * counts / counts.max()
    bars = [
        {
            "x": f"{places[i]:.1f}",
            "y": f"{height - tall[i]:.1f}",
            "width": f"{max(1, places[i + 1] - places[i] - 1):.1f}",
            "height": f"{tall[i]:.1f}",
            "title": f"{edges[i]:.0f} to {edges[i + 1]:.0f} tokens: {count:,}",
        }
        for i, count in enumerate(counts)
    ]
    per_octave = 1 if octaves > 2.5 else 4
    ticks = np.unique(np.round(2.0 ** (np.arange(0, 20 * per_octave) / per_octave)))
    marks = [
        {"x": f"{min(width - 14, max(14, (np.log2(v) - start) / octaves * width)):.0f}", "text": f"{v:,.0f}"}
        for v in ticks[(ticks >= low) & (ticks <= high)]
    ]
    return {"width": width, "height": height, "bars": bars, "marks": marks}


def _bars(rows: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Draw counts as horizontal bars."""
    most = max((count for _, count in rows), default=1)
    lines = [
        {
            "y": i * 19,
            "name": name[:16],
            "length": f"{max(1, 270 * n / most):.1f}",
            "end": f"{106 + 270 * n / most:.0f}",
        }
        | {"count": f"{n:,}"}
        for i, (name, n) in enumerate(rows)
    ]
    return {"height": 19 * len(rows) + 2, "lines": lines}


def _heat(rows: Sequence[card_text.Row], kind: str) -> dict[str, Any]:
    """Draw a matrix with darker cells for more; the diagonal of word coverage is meaningless and stays white."""
    head, *body = rows
    values = [[float(cell.rstrip("%").replace(",", "")) for cell in row[1:]] for row in body]
    shown = [v for i, row in enumerate(values) for j, v in enumerate(row) if kind != "covered" or i != j]
    most = max(shown, default=0)
    lines = []
    for i, row in enumerate(body):
        depths = [0.0 if not most or (kind == "covered" and i == j) else v / most for j, v in enumerate(values[i])]
        cells = [{"text": cell, "depth": f"{45 * depth:.0f}%"} for cell, depth in zip(row[1:], depths, strict=True)]
        lines.append({"name": row[0], "cells": cells})
    return {"head": head, "rows": lines}
