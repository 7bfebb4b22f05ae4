"""``search``: choose runs, make them, report the best composition and what is noise; or test cheap proxies."""

from __future__ import annotations

import tempfile
import textwrap
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sftlab.commands.interrupt import heed_sigterm
from sftlab.commands.options import CommandParser, config_file, dotted, wants_help
from sftlab.commands.study import add_executor_options, executor_of, prepared_where
from sftlab.screen import complain, screen, show
from sftlab.yaml_files import read_yaml, scalar

PARSER = CommandParser(
    "search",
    "Searches a space of compositions with few runs: a design, a surface of each ability with its uncertainty,\n"
    "further runs where they are expected to gain most, and a check of the proposal against the best anchor with\n"
    "fresh seeds. The same command goes on after a kill and decides the same.",
    notes="""
--proxy tests something cheap against the runs that a search has made: its rank correlation, and the regret of
trusting it.
""",
)
PARSER.add_argument("--config", type=config_file, metavar="FILE", help="a search; or sftlab:searches/lab")
PARSER.add_argument("--name", default="", metavar="NAME", help="folder in lightning_logs/, instead of the file's")
PARSER.add_argument(
    "--dry-run",
    action="store_true",
    help="print the decisions so far, and the runs that would come next; train nothing",
)
PARSER.add_argument(
    "--proxy",
    default="",
    metavar="merge",
    help="merge: weighted averages of the specialists' weights, scored without training; held_out: losses for "
    "scores; or the folder of another search or study with the same compositions, such as one of a smaller model",
)
add_executor_options(PARSER)


def main(arguments: list[str]) -> int:
    """Search, or test a proxy."""
    if wants_help(arguments, PARSER):
        return 0
    options, rest = PARSER.parse_known_args(arguments)
    own: dict[str, Any] = {}
    for key, value in dotted(rest).items():
        kind, _, name = key.partition(".")
        if kind != "executor" or not name:
            PARSER.refuse([f"--{key}"])
        own[name] = scalar(value)
    if not options.config:
        raise ValueError("search needs --config FILE, such as --config sftlab:searches/lab")
    if missing := [name for name in ("scipy", "sklearn", "matplotlib") if find_spec(name) is None]:
        raise ValueError(f"search needs {' and '.join(missing)}: pip install 'sftlab[studies]'")
    executor = partial(executor_of, options, own)
    executor()  # an executor that cannot be created is reported before anything is planned
    with prepared_where(options):
        search = _search(options.config, options.name, executor)
    if options.proxy:
        from sftlab.search.proxies import proxy_report

        show(proxy_report(search, options.proxy))
        return _report(search.folder)
    if options.dry_run:
        return _dry_run(search)
    status_when_interrupted = heed_sigterm()
    from sftlab.search.outcome import write_outcome
    from sftlab.search.search import RunsFailed

    try:
        search.run()
        write_outcome(search)
        return _report(search.folder)
    except RunsFailed as failed:
        return failed.status
    except KeyboardInterrupt:
        complain("\nInterrupted. Finished runs are kept; the same command continues and makes the same decisions.")
        return status_when_interrupted()


def _search(config: Path, name: str, executor: Any) -> Any:
    from sftlab.search.search import Search
    from sftlab.search.site import StudySite, base_facts
    from sftlab.search.spec import read_search

    content = read_yaml(config, "--config")
    with tempfile.TemporaryDirectory(prefix="sftlab-") as folder:
        sizes, budget = base_facts(config, content, Path(folder))
    spec = read_search(config, sizes, {"search": name} if name else {})
    site = StudySite(spec, budget, executor, screen())
    return Search(spec, site, site.folder, lambda words: show("", _filled(words), ""))


def _filled(words: str) -> str:
    """Wrap a text to a terminal of 80 columns, without Markdown."""
    return textwrap.fill(words.replace("**", ""), 80, break_on_hyphens=False)


def _dry_run(search: Any) -> int:
    search.read()
    for number, decision in enumerate(search.decisions, 1):
        show(_filled(f"{number}. {decision.kind}: {decision.words}"))
    if not search.decisions:
        decision = search.design()
        show(_filled(f"{len(search.candidates)} candidates. {decision.words}"))
        search.site.show_plan(decision.trials)
    elif search.trials:
        search.site.show_plan(search.trials)
    return 0


def _report(folder: Path) -> int:
    from sftlab.commands.report import main as report

    return report([str(folder)])
