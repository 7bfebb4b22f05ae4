"""``represent``: measure how far abilities lie apart in the hidden states of checkpoints, and draw a map of it."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftlab.commands.options import CommandParser, names, wants_help, whole_number
from sftlab.nearest import nearest
from sftlab.screen import screen, show, tell_progress

if TYPE_CHECKING:
    from rich.table import Table

    from sftlab.analysis.map.queries import Query
    from sftlab.analysis.map.representation import HiddenStates
    from sftlab.analysis.map.separation import Separation
    from sftlab.cli import PlannedObjects

PARSER = CommandParser(
    "represent",
    "Measures how far abilities lie apart in the hidden states of checkpoints, layer by layer, and draws a map.\n"
    "Queries are the first user turns of the config's training examples that rank first.",
    takes_config=True,
    notes="""
A query is written as a prompt by the checkpoint's own template if sftlab trained it, else by the config's.
Writes maps (t-SNE, PCA, and UMAP where umap-learn is installed) as PNG, SVG and a page, separation.jsonl with the
figures of every layer, points.jsonl, and the pooled states as hidden/<checkpoint>/layer_007.npy [queries, hidden size].
""",
)
PARSER.add_argument(
    "--checkpoints",
    type=names,
    default=[],
    metavar="A,B",
    help="each a run (its last stage), run/stage, a .ckpt inside a run, a Hugging Face folder or id, "
    "lab-base and the like (random weights), or `before`: the config's own model with the weights from which its "
    "training starts",
)
PARSER.add_argument("--num_queries", type=whole_number(), default=100, metavar="100", help="of each ability")
PARSER.add_argument(
    "--layer",
    default="0.67",
    metavar="0.67",
    help="the layer that is drawn: a number (15) or, with a point, a fraction of the depth. Layer 0 are the "
    "embeddings, layer i is what leaves block i, before the last norm. All layers are measured",
)
PARSER.add_argument(
    "--pooling",
    default="last",
    choices=("last", "mean"),
    help="last: the state of the prompt's last token; mean: over the tokens in which prompts differ",
)
PARSER.add_argument(
    "--to",
    default="",
    metavar="FOLDER",
    help="where results go; it must not exist. Without it representations/<last checkpoint>, or "
    "<study>/exhibits/<last checkpoint> for a run of a study, whose report then shows it",
)


class _Checkpoint(NamedTuple):
    """What to load: a label, the weights' path or a config, the tokenizer's path, the template, the drawn layer."""

    label: str
    path: str | None
    config: dict[str, Any] | None
    tokenizer: str
    template: str
    layer: int


def main(arguments: list[str]) -> int:
    """Measure and draw."""
    if wants_help(arguments, PARSER):
        return 0
    options, config = PARSER.split(arguments)
    if not options.checkpoints:
        raise ValueError("represent needs --checkpoints; see represent --help")
    missing = [package for module, package in _NEEDED.items() if not find_spec(module)]
    if missing:
        raise ValueError(f"represent needs {' and '.join(missing)}: pip install 'sftlab[studies]'")
    from sftlab.analysis.map.queries import choose_queries
    from sftlab.analysis.map.representation import layer_number
    from sftlab.cli import parse_objects
    from sftlab.files import whole_folder
    from sftlab.run.results import path_named

    layer_number(options.layer, sys.maxsize)
    objects = parse_objects(config)
    if options.to:
        _free_folder(options.to, "", "")  # before any model is loaded
    options.checkpoints = [path_named(name) for name in options.checkpoints]
    with ExitStack() as stack:
        checkpoints = [_located(name, objects, options.layer, stack) for name in options.checkpoints]
        checkpoints = _told_apart(checkpoints)
        folder = _free_folder(options.to, options.checkpoints[-1], checkpoints[-1].label)
        objects.data.load(objects.model.tokenizer)
        queries, passed_over = choose_queries(objects.data, options.num_queries)
        _tell_queries(queries, passed_over)
        with whole_folder(folder) as unfinished:
            states = {c.label: _states(c, queries, unfinished, options.pooling, objects.seed) for c in checkpoints}
            _report(checkpoints, queries, states, unfinished, options.pooling, objects.data.seed)
    show(f"Results in {folder}; look at {folder / 'map.html'}")
    return 0


_NEEDED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def _located(name: str, objects: PlannedObjects, layer: str, stack: ExitStack) -> _Checkpoint:
    """Resolve a name of the command line, and check its layer before anything is computed."""
    from sftlab.analysis.map.representation import layer_number
    from sftlab.model.backbone import load_config
    from sftlab.model.contents import noted_template
    from sftlab.run.opening import model_folder

    path, config, tokenizer, label = name, None, name, Path(name.rstrip("/")).name
    template = objects.data.template
    if Path(name).exists():
        folder = Path(model_folder(name, stack, show))
        path = tokenizer = str(folder)
        template = noted_template(folder) or template
    elif name == "before":
        model = objects.model
        path, config, tokenizer = model.path, model.config, model.tokenizer_path
    elif len(Path(name).parts) > 1 and Path(name).parent.is_dir():  # a path, not a hub id
        near = nearest(label, [path.name for path in Path(name).parent.iterdir()])
        hint = f"; did you mean {Path(name).parent / near}?" if near else ""
        raise ValueError(f"--checkpoints: there is no {name}{hint}")
    try:
        blocks = load_config(path, config).get_text_config().num_hidden_layers
    except ValueError as error:
        raise ValueError(f"--checkpoints: {str(error).removeprefix('model.path: ')}") from None
    return _Checkpoint(label, path, config, str(tokenizer), template, layer_number(layer, blocks))


def _told_apart(checkpoints: Sequence[_Checkpoint]) -> list[_Checkpoint]:
    """Number labels that occur twice."""
    seen: Counter[str] = Counter()
    apart = []
    for checkpoint in checkpoints:
        seen[checkpoint.label] += 1
        number = f" ({seen[checkpoint.label]})" if seen[checkpoint.label] > 1 else ""
        apart.append(checkpoint._replace(label=checkpoint.label + number))
    return apart


def _free_folder(to: str, checkpoint: str, label: str) -> Path:
    """Return --to; by default a folder in the checkpoint's study, so that its report shows the map."""
    if to:
        if Path(to).exists():
            raise ValueError(f"--to: {to} exists; name a new folder")
        return Path(to)
    parents = Path(os.path.abspath(checkpoint)).parents
    study = next((folder for folder in parents if (folder / "stages.json").is_file()), None)
    folder, number = (study / "exhibits" if study else Path("representations")) / label, 2
    while folder.exists():
        folder, number = folder.with_name(f"{label}-{number}"), number + 1
    return folder


def _tell_queries(queries: Sequence[Query], passed_over: Mapping[str, Counter[str]]) -> None:
    for ability, count in Counter(query.ability for query in queries).items():
        causes = ", ".join(f"{cause}: {number:,}" for cause, number in passed_over[ability].items())
        show(f"{ability}: {count:,} queries" + (f" (passed over: {causes})" if causes else ""))


def _states(checkpoint: _Checkpoint, queries: Sequence[Query], folder: Path, pooling: str, seed: int) -> HiddenStates:
    """Load one checkpoint, write its states, free it."""
    import torch

    from sftlab.analysis.map.representation import write_hidden_states
    from sftlab.data.conversation import Turn
    from sftlab.data.encoder import Encoder
    from sftlab.data.template import get_template
    from sftlab.model.backbone import build_backbone, load_tokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    torch.manual_seed(seed)  # as fit seeds random weights
    model = build_backbone(checkpoint.path, checkpoint.config, None, dtype).to(device)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    encoder = Encoder(tokenizer, get_template(checkpoint.template, tokenizer))
    prompts = [encoder.prompt_ids([Turn("user", query.text)]) for query in queries]

    tell = partial(tell_progress, f"{checkpoint.label}, template {checkpoint.template}, queries read")
    return write_hidden_states(model, prompts, folder / "hidden" / checkpoint.label, pooling, tell=tell)


def _report(
    checkpoints: Sequence[_Checkpoint],
    queries: Sequence[Query],
    states: Mapping[str, HiddenStates],
    folder: Path,
    pooling: str,
    seed: int,
) -> None:
    """Draw one layer, measure all, write and print everything."""
    from sftlab.analysis.map.atlas import project_all, write_atlas
    from sftlab.analysis.map.separation import measure_all

    drawn = {checkpoint.label: checkpoint.layer for checkpoint in checkpoints}
    projections = project_all(states, drawn, seed)
    measured = measure_all(
        states, [query.ability for query in queries], seed, partial(tell_progress, "separation, layers measured")
    )
    lines = [json.dumps(asdict(s), ensure_ascii=False) for layers in measured.values() for s in layers]
    (folder / "separation.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    write_atlas(folder, queries, projections, measured, drawn, pooling)
    console = screen()
    for label, layers in measured.items():
        console.print(_layers_table(label, layers, drawn[label]))
        console.print(_alignment_line(layers[drawn[label]]))


def _layers_table(label: str, layers: Sequence[Separation], drawn: int) -> Table:
    """Return a table with a line for each layer; the drawn one is marked."""
    from rich.table import Table

    first = layers[0]
    table = Table(title=f"{label}: {first.num_queries} queries, probe by chance {first.probe_chance:.1%}; * drawn")
    table.title_justify = "left"
    headers = ["layer", "probe accuracy (95 %)", "silhouette", *(f"of {name}" for name in first.silhouette_by_ability)]
    for header in [*headers, *(f"CKA with {other} (chance)" for other in first.cka)]:
        table.add_column(header, justify="right")
    for s in layers:
        low, high = s.probe_interval
        cells = [f"{'*' if s.layer == drawn else ''}{s.layer}", f"{s.probe_accuracy:.1%} ({low:.0%} to {high:.0%})"]
        cells += [f"{value:+.3f}" for value in (s.silhouette, *s.silhouette_by_ability.values())]
        cells += [_cka(found) for found in s.cka.values()]
        table.add_row(*cells, style="bold" if s.layer == drawn else "")
    return table


def _cka(found: Mapping[str, Any]) -> str:
    return "-" if found["cka"] is None else f"{found['cka']:.3f} ({found['chance']:.3f})"


def _alignment_line(figures: Separation) -> str:
    """Describe how abilities share directions at the drawn layer; with themselves for comparison."""
    pairs = [f"{pair} {'-' if value is None else f'{value:.2f}'}" for pair, value in figures.alignment.items()]
    return f"Layer {figures.layer}, alignment of the abilities' covariances: {', '.join(pairs)}"
