"""Pictures of representations: maps side by side, and separation by layer; PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftlab.report.exhibit import Picture
from sftlab.report.style import INK, look
from sftlab.report.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sftlab.analysis.map.projection import Projection
    from sftlab.analysis.map.separation import Separation


class Panel(NamedTuple):
    """One checkpoint's part of a map: its label, the drawn layer of how many, the map, measures of that layer."""

    label: str
    layer: int
    num_blocks: int
    projection: Projection
    figures: Separation


def save_figure(figure: Figure, folder: Path, name: str, title: str, caption: str) -> Picture:
    """Write NAME.png and NAME.svg; the same figure gives the same files."""
    figure.savefig(folder / f"{name}.png", dpi=150)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return Picture(folder / f"{name}.png", title, caption)


def map_figure(panels: Sequence[Panel], abilities_N: Sequence[str]) -> Figure:
    """Draw the maps of some checkpoints side by side: the same queries in the same colours."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(abilities_N))
    figure = Figure(figsize=(5.2 * len(panels), 5.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for position, name in enumerate(names):
            points_M2 = panel.projection.map_N2[[ability == name for ability in abilities_N]]
            style: dict[str, Any] = {"c": look(position).colour, "marker": look(position).marker}
            axis.scatter(*points_M2.T, s=22, alpha=0.75, linewidths=0, label=_named(name), **style)
        axis.set_aspect("equal", adjustable="datalim")  # distances mean something, directions do not
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"{shortened(panel.label)}\nlayer {panel.layer} of {panel.num_blocks}", fontsize=11)
        axis.set_xlabel(f"{panel_note(panel)}\n{panel.projection.method}: {panel.projection.note}", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(names), frameon=False)
    return figure


def _named(label: str) -> str:
    """Return a label as a legend shows it; matplotlib would leave out one that begins with ``_``."""
    return shortened(f" {label}" if label.startswith("_") else label)


def panel_note(panel: Panel) -> str:
    """Return the measures of the drawn layer in one line; they are of the hidden states, not of the drawing."""
    figures = panel.figures
    return f"silhouette {figures.silhouette:.2f}, probe {figures.probe_accuracy:.1%}"


def layers_figure(measured: Mapping[str, Sequence[Separation]]) -> Figure:
    """Draw probe accuracy, silhouette and, with two or more checkpoints, CKA with the first one, by depth."""
    from matplotlib.figure import Figure

    labels = list(measured)
    figure = Figure(figsize=(5 * (2 + (len(labels) > 1)), 4.2), layout="constrained")
    probe, silhouette, *rest = figure.subplots(1, 2 + (len(labels) > 1))
    for position, (label, layers) in enumerate(measured.items()):
        how = look(position)
        style = {"color": how.colour, "marker": how.marker, "ms": 4, "linestyle": how.dashes}
        depth_L = [100 * s.depth for s in layers]
        low_L, high_L = zip(*(s.probe_interval for s in layers), strict=True)
        probe.plot(depth_L, [s.probe_accuracy for s in layers], label=_named(label), **style)
        probe.fill_between(depth_L, low_L, high_L, color=style["color"], alpha=0.15, linewidth=0)
        silhouette.plot(depth_L, [s.silhouette for s in layers], label=_named(label), **style)
        if position:
            _draw_cka(rest[0], labels[0], label, layers, style)
    chance = next(iter(measured.values()))[0].probe_chance
    probe.axhline(chance, color=INK, linewidth=0.8, linestyle=":")
    probe.annotate("chance", (100, chance), ha="right", va="bottom", fontsize=8)
    probe.set_ylim(0, 1.03)
    probe.set_title("Probe accuracy, 95 % interval")
    silhouette.set_title("Silhouette")
    for axis in (probe, silhouette, *rest):
        _depth_axis(axis)
        axis.legend(frameon=False, fontsize=9, loc="best")
    return figure


def _depth_axis(axis: Axes) -> None:
    axis.set_xlim(-4, 104)
    axis.set_xlabel("depth in % of the blocks (0: embeddings)")
    axis.grid(alpha=0.25)


def _draw_cka(axis: Axes, first: str, label: str, layers: Sequence[Separation], style: dict[str, Any]) -> None:
    found = [(100 * s.depth, s.cka[first]) for s in layers if s.cka[first]["cka"] is not None]
    axis.plot([x for x, _ in found], [cka["cka"] for _, cka in found], label=_named(f"{label} and {first}"), **style)
    chance = {"color": style["color"], "linestyle": ":", "linewidth": 1}
    axis.plot([x for x, _ in found], [cka["chance"] for _, cka in found], **chance)
    axis.set_ylim(0, 1.03)
    axis.set_title("CKA with the first checkpoint\n(dotted: queries paired at random)")


def abilities_figure(measured: Mapping[str, Sequence[Separation]]) -> Figure:
    """Draw the silhouette of each ability by depth, one panel per checkpoint."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(measured), 4.2), layout="constrained")
    axes = figure.subplots(1, len(measured), squeeze=False, sharey=True)[0]
    for axis, (label, layers) in zip(axes, measured.items(), strict=True):
        for position, name in enumerate(layers[0].silhouette_by_ability):
            style = {"color": look(position).colour, "marker": look(position).marker, "ms": 4}
            depth_L, mine_L = [100 * s.depth for s in layers], [s.silhouette_by_ability[name] for s in layers]
            axis.plot(depth_L, mine_L, label=_named(name), **style)
        axis.axhline(0, color=INK, linewidth=0.8, linestyle=":")
        axis.set_title(shortened(label))
        _depth_axis(axis)
    axes[0].set_ylabel("silhouette")
    axes[0].legend(frameon=False)
    return figure
