"""The composition card as one HTML page: no script, no font and no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from sftlab.analysis.card import text as card_text
from sftlab.analysis.card.composition import AbilityCard, Composition

_COLOURS = ("#3b6fb6", "#c8553d", "#4f8a5b", "#8a5fa8", "#b98b2f", "#4a8f9c", "#a34f74", "#6b7280")
_STYLE = """
:root { color-scheme: light; --ink: #1d2433; --dim: #667085; --line: #e4e7ec; --paper: #fff; --ground: #f6f7f9 }
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1120px; margin: 0 auto; padding: 36px 24px 60px }
h1 { font-size: 27px; margin: 0 0 4px; letter-spacing: -.01em }
h2 { font-size: 18px; margin: 34px 0 10px }
h3 { font-size: 12px; margin: 16px 0 4px; color: var(--dim); font-weight: 600; text-transform: uppercase;
     letter-spacing: .05em }
p { margin: 4px 0 } .dim { color: var(--dim) } .small { font-size: 13px }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 18px 22px;
        margin: 0 0 18px }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 6px 34px } .three { grid-template-columns: repeat(3, 1fr) }
@media (max-width: 860px) { .two, .three { grid-template-columns: 1fr } }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line) }
th { font-weight: 600; color: var(--dim); font-size: 13px }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
tr:last-child td { border-bottom: 0 } .sum tr:last-child td { font-weight: 600; border-top: 1px solid #98a2b3 }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px }
.bar { display: flex; height: 22px; border-radius: 5px; overflow: hidden; margin: 2px 0 8px }
.bar span { color: #fff; font-size: 12px; line-height: 22px; text-align: center; overflow: hidden; white-space: nowrap }
.chip { display: inline-block; background: var(--ground); border: 1px solid var(--line); border-radius: 12px;
        padding: 1px 9px; margin: 2px 3px 2px 0; font-size: 13px }
.turn { border-left: 3px solid var(--line); padding: 1px 0 1px 12px; margin: 6px 0; white-space: pre-wrap;
        overflow-wrap: anywhere; font-size: 14px }
.assistant { border-color: currentColor }
.turn b { font-size: 12px; color: var(--dim); font-weight: 600; display: block }
.turn span { color: var(--ink) } details { margin: 6px 0 } summary { cursor: pointer; color: var(--dim) }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--ground); padding: 10px 12px; border-radius: 6px;
      margin: 4px 0 }
mark { background: #d9f2df; color: inherit } svg text { font: 11px system-ui, sans-serif; fill: #667085 }
"""


def page(mix: Composition, title: str) -> str:
    """The whole page."""
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(mix.abilities)}
    parts = [_head(mix, title, colours)]
    parts += ["<h2>Abilities</h2>", *(_ability(card, colours[card.name]) for card in mix.abilities.values())]
    parts += ["<h2>Overlap</h2>", _overlap(mix), "<h2>As the model sees it</h2>", _as_seen(mix)]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><main>{''.join(parts)}</main></html>\n"
    )


def _head(mix: Composition, title: str, colours: dict[str, str]) -> str:
    totals = {
        "examples": {card.name: len(card.lengths_N) for card in mix.abilities.values()},
        "tokens": {card.name: int(card.lengths_N.sum()) for card in mix.abilities.values()},
        "supervised tokens": {card.name: int(card.supervised_N.sum()) for card in mix.abilities.values()},
    }
    bars = "".join(f"<h3>share of {unit}</h3>{_share_bar(counts, colours)}" for unit, counts in totals.items())
    return (
        f"<h1>What is in here: {escape(title)}</h1><p class='dim'>{escape(card_text.COUNTED)}</p><br>"
        f"<div class='card'>{_table(card_text.size_rows(mix), colours, 'sum')}</div><div class='card'>{bars}</div>"
    )


def _share_bar(counts: dict[str, int], colours: dict[str, str]) -> str:
    total = max(1, sum(counts.values()))
    spans = []
    for name, count in counts.items():
        label, style = f"{escape(name)} {count / total:.1%}", f"width:{count / total:.2%};background:{colours[name]}"
        spans.append(f"<span style='{style}' title='{label}'>{label if count / total > 0.08 else ''}</span>")
    return f"<div class='bar'>{''.join(spans)}</div>"


def _ability(card: AbilityCard, colour: str) -> str:
    words = "".join(f"<span class='chip'>{escape(word)}</span>" for word, _ in card.distinctive)
    causes = sorted(card.audit.items())
    audit = "".join(f"<tr><td>{escape(cause)}</td><td>{count:,}</td></tr>" for cause, count in causes)
    audit = f"<table class='small'>{audit}</table>" if audit else "<p class='small dim'>nothing</p>"
    facts = f"<p class='small'>{card_text.length_facts(card)}</p>"
    left = f"<h3>tokens of an example</h3>{_histogram(card.lengths_N, colour)}{facts}"
    right = f"<h3>exchanges</h3>{_rows(card_text.exchange_rows(card), colour)}<h3>changed or left out</h3>{audit}"
    tags = f"<h3>tags</h3>{_rows(card.tags.most_common(8), colour)}" if card.tags else ""
    samples = "".join(
        f"<details{' open' if number == 0 else ''}><summary class='small'>{escape(uid)}</summary>"
        + "".join(_turn(turn.role, turn.text, colour) for turn in talk.turns[:6])
        + (f"<p class='small dim'>and {len(talk.turns) - 6} more turns</p>" if len(talk.turns) > 6 else "")
        + "</details>"
        for number, (uid, talk) in enumerate(card.samples)
    )
    return (
        f"<div class='card'><b><span class='dot' style='background:{colour}'></span>{escape(card.name)}</b>"
        f" <span class='dim small'>{escape(card.source)}, fraction {card.fraction:g}</span>"
        f"<div class='two'><div>{left}</div><div>{right}</div></div>{tags}"
        f"<h3>words that set it apart</h3>{words}<p class='small dim'>{card_text.word_facts(card)}</p>"
        f"<h3>samples</h3>{samples}</div>"
    )


def _turn(role: str, text: str, colour: str) -> str:
    short = escape(text if len(text) <= 700 else text[:700] + " ...")
    return f"<div class='turn {escape(role)}' style='color:{colour}'><b>{escape(role)}</b><span>{short}</span></div>"


def _histogram(lengths_N: np.ndarray, colour: str) -> str:
    """Examples by tokens, on a logarithmic axis, in about 24 bars."""
    low, high = max(1, int(lengths_N.min())), int(lengths_N.max()) + 1
    start, octaves = np.log2(low), np.log2(high / low)
    edges = np.unique(np.round(2.0 ** np.linspace(start, start + octaves, 25)))  # whole tokens: rounding empties no bar
    counts, _ = np.histogram(lengths_N, edges)
    width, height = 460, 96
    places = (np.log2(edges) - start) / octaves * width
    tall = height * counts / counts.max()
    bars = "".join(
        f"<rect x='{places[i]:.1f}' y='{height - tall[i]:.1f}' width='{max(1, places[i + 1] - places[i] - 1):.1f}' "
        f"height='{tall[i]:.1f}' fill='{colour}'>"
        f"<title>{edges[i]:.0f} to {edges[i + 1]:.0f} tokens: {count:,}</title></rect>"
        for i, count in enumerate(counts)
    )
    per_octave = 1 if octaves > 2.5 else 4
    ticks = np.unique(np.round(2.0 ** (np.arange(0, 20 * per_octave) / per_octave)))
    marks = "".join(
        f"<text x='{min(width - 14, max(14, (np.log2(value) - start) / octaves * width)):.0f}' y='{height + 15}' "
        f"text-anchor='middle'>{value:,.0f}</text>"
        for value in ticks[(ticks >= low) & (ticks <= high)]
    )
    return f"<svg viewBox='0 0 {width} {height + 20}' width='100%'>{bars}{marks}</svg>"


def _rows(rows: Sequence[tuple[str, int]], colour: str) -> str:
    """Counts as horizontal bars."""
    most = max((count for _, count in rows), default=1)
    lines = []
    for i, (name, count) in enumerate(rows):
        length = 270 * count / most
        lines.append(
            f"<text x='92' y='{i * 19 + 13}' text-anchor='end'>{escape(name[:16])}</text>"
            f"<rect x='100' y='{i * 19 + 2}' width='{max(1, length):.1f}' height='14' rx='2' fill='{colour}'/>"
            f"<text x='{106 + length:.0f}' y='{i * 19 + 13}'>{count:,}</text>"
        )
    height = 19 * len(rows) + 2
    return f"<svg viewBox='0 0 460 {height}' width='100%' style='max-width:460px'>{''.join(lines)}</svg>"


def _overlap(mix: Composition) -> str:
    titles = {
        "covered": "words of the row the column knows",
        "same": "same conversations",
        "near": "near-duplicates",
    }
    tables = "".join(
        f"<div><h3>{title}</h3>{_heat(card_text.matrix(mix, kind), kind)}</div>" for kind, title in titles.items()
    )
    pairs = "".join(
        f"<div class='turn'><b>similarity {similarity:.2f}: {escape(one[0])} and {escape(other[0])}</b>"
        f"<span>{escape(one[2][:300])}</span>\n<span class='dim'>{escape(other[2][:300])}</span></div>"
        for similarity, one, other in mix.duplicates.pairs
    )
    found = f"<h3>the most similar</h3>{pairs}" if pairs else ""
    return (
        f"<div class='card'><div class='two three'>{tables}</div><p class='small dim'>{escape(card_text.METHOD)}</p>"
        f"{found}</div>"
    )


def _heat(rows: Sequence[card_text.Row], kind: str) -> str:
    """A matrix whose cells are darker for more; the diagonal of word coverage says nothing and stays white."""
    head, *body = rows
    values = [[float(cell.rstrip("%").replace(",", "")) for cell in row[1:]] for row in body]
    most = max((v for i, row in enumerate(values) for j, v in enumerate(row) if kind != "covered" or i != j), default=0)
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for i, row in enumerate(body):
        cells = [f"<td>{escape(row[0])}</td>"]
        for j, cell in enumerate(row[1:]):
            depth = 0.45 * values[i][j] / most if most and not (kind == "covered" and i == j) else 0
            cells.append(f"<td style='background:rgba(200,85,61,{depth:.2f})'>{escape(cell)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _as_seen(mix: Composition) -> str:
    pieces = [(escape(text[:1500]), trained) for text, trained in mix.example[:20]]
    text = "".join(f"<mark>{text}</mark>" if trained else text for text, trained in pieces)
    about = f"Template <b>{escape(mix.template)}</b>, rows of {mix.max_length:,} tokens; what is trained is green."
    return f"<div class='card'><p class='small'>{about}</p><pre>{text}</pre></div>"


def _table(rows: Sequence[card_text.Row], colours: dict[str, str], kind: str) -> str:
    head, *body = rows
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for row in body:
        dot = f"<span class='dot' style='background:{colours[row[0]]}'></span>" if row[0] in colours else ""
        cells = [f"<td>{dot}{escape(row[0])}</td>", *(f"<td>{escape(cell)}</td>" for cell in row[1:])]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table class='{kind}'>{''.join(lines)}</table>"
