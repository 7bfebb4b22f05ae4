"""The rules of the house: imports go down only, files and functions stay small, light modules stay light."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "sftlab").rglob("*.py"))
# A module imports only from modules that stand above it.
ORDER = """
    moved nearest screen files processes ray_cluster fingerprint bounds credentials shipped foreign yaml_files config
    stats.interval stats.fits stats.tradeoff
    stats.forgetting stats.paired stats.ranks class_help
    results.row results.score results.verdict
    plan.hardware
    plan.uids plan.pool plan.policy plan.adaptive plan.adaptive_policies plan.returning_policies
    plan.curriculum plan.rate plan.stage
    plan.packing
    plan.plan
    plan.compile plan.adapt plan.ledger plan.table
    lab.python lab.words lab.options lab.registers lab.predict lab.content lab.samples lab.grading
    lab.abilities lab.text lab.vocabulary lab.tokenizer lab.bases
    data.conversation data.marks
    data.stream data.json_records data.columns data.hub_set data.records data.droplist data.split data.keys data.readers
    data.chat_template data.messages data.pieces data.survey
    data.own_template data.template data.encoder data.fitter data.workers data.cluster data.examples
    data.repeats data.prepare
    data.source
    data.seed data.feed data.ability data.mixture data.plan_cache
    model.contents model.leftover model.attention model.sharded model.adapter model.backbone model.freeze
    model.noise model.loss model.compiled model.limits model.isolation model.muon model.optim model.moments
    model.recompute model.checkpoint model.weights model.tensor_parallel model.layout model.snapshot model.async_save
    model.parallel model.loading model.unadapted
    model.arguments model.module model.memory model.needs model.card model.export model.rewrite model.hub
    endpoint.replies endpoint.response endpoint.client
    sandbox.system_calls sandbox.guest sandbox.host
    tasks.task tasks.thinking tasks.completion tasks.humaneval tasks.plain_numpy tasks.evalplus tasks.gsm8k
    tasks.judge_prompts tasks.mtbench tasks.lab
    tasks.likelihood tasks.harness tasks.registry
    evaluate.backend evaluate.decoding evaluate.local evaluate.server evaluate.engine evaluate.spread
    evaluate.run evaluate.folder
    report.text report.style report.page report.exhibit report.rows report.evidence report.paper_numbers
    report.spots
    report.svg report.figures report.heat report.fronts report.surfaces report.section report.verdicts report.lines
    report.budgets report.choosing report.against
    report.sections.scaling report.sections.single_against_mixed report.sections.conflict report.sections.ratio
    report.sections.equal_count
    report.sections.strategies report.sections.leave_one_out report.sections.curve report.sections.setting
    report.sections.forgetting report.sections.exhibits report.sections.cost report.sections.search
    report.named report.write report.beside
    run.folder run.launcher run.settings run.identity run.opening run.results run.record
    callbacks.trainer_options callbacks.context callbacks.base_loss callbacks.segment_states callbacks.adaptation
    callbacks.finite callbacks.keep_best callbacks.tail_average callbacks.monitors
    callbacks.signals callbacks.micro_batches
    callbacks.optimizers callbacks.resume_guard callbacks.conductor callbacks.schedule callbacks.adaptive
    callbacks.checkpoints callbacks.folder_logger callbacks.run_config callbacks.hparams
    callbacks.metrics
    callbacks.ledger callbacks.progress callbacks.measured
    callbacks.judging callbacks.scores
    callbacks.layers callbacks.heat_map callbacks.interference callbacks.weight_change
    callbacks.defaults
    parser cli starter
    analysis.map.queries analysis.map.representation analysis.map.separation analysis.map.projection
    analysis.map.figure analysis.map.page analysis.map.atlas
    analysis.tags.rules analysis.tags.tagging analysis.tags.llm_tagger
    analysis.words analysis.leaks.problems analysis.leaks.find
    analysis.card.minhash analysis.card.composition analysis.card.text analysis.card.page
    study.study study.freed study.graph study.keep study.reuse study.job study.nodes study.results study.executors
    study.overview
    search.factors search.space search.design search.surface search.effect search.observation search.spec
    search.proposal search.decision search.findings search.search search.site search.outcome
    search.merge search.proxies
    commands.interrupt commands.options
    commands.fit commands.plan commands.show commands.export commands.evaluate commands.compare commands.represent
    commands.report commands.study commands.search commands.tag commands.leaks commands.card commands.init
    commands.runs commands.chat commands.serve commands.docs
    launch
    __main__
""".split()
LIGHT = """
    screen files shipped config commands.options plan.plan plan.compile plan.table report.exhibit report.write
    model.contents run.folder run.opening run.results run.record
    data.records data.conversation data.readers data.survey data.template data.encoder data.workers data.prepare
    results.score results.verdict stats.paired stats.forgetting
    endpoint.client tasks.registry evaluate.server evaluate.run
""".split()


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "sftlab").with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, inside functions too, and those that it names in text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sftlab"):
            base = node.module.removeprefix("sftlab").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                found.add(inner if inner in ORDER else base)
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("sftlab.") for a in node.names if a.name.startswith("sftlab.")}
    return found - {""}


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "__init__.py"], ids=name_of)
def test_imports_only_go_down(path):
    name = name_of(path)
    assert name in ORDER, f"{name} has no place in the order: give it one"
    above = ORDER[: ORDER.index(name)]
    wrong = sorted(imports_of(path) - set(above))
    assert not wrong, f"{name} imports {wrong}, which do not stand above it"


def test_no_two_rooms_import_each_other():
    uses: dict[str, set[str]] = {}
    for path in FILES:
        room = name_of(path).split(".")[0]
        uses.setdefault(room, set()).update(name.split(".")[0] for name in imports_of(path))
    while uses:  # take away, again and again, the rooms that import none of those left
        free = {room for room, others in uses.items() if not others & (set(uses) - {room})}
        assert free, f"a circle among {sorted(uses)}"
        uses = {room: others for room, others in uses.items() if room not in free}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_stay_small_and_say_what_they_are(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no module docstring"
    assert text.count("\n") <= 400
    assert path.name not in ("utils.py", "helpers.py", "misc.py", "common.py")
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert not [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= 60]


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_do_not_import_torch(name):
    code = f"import sys, sftlab.{name}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_what_is_lightnings_own_is_touched_in_four_files():
    named = r"(trainer|strategy|_loop|launcher|lightning_module)\._[a-z]|from lightning\S* import .*\b_[A-Za-z]"
    private = re.compile(
        named + r"|self\._(data_parallel_size|process_group_backend)"
    )  # of a strategy that ours extends
    touching = {name_of(path) for path in FILES if private.search(path.read_text())}
    assert touching == {"callbacks.conductor", "callbacks.signals", "run.launcher", "model.parallel"}


def test_no_two_files_of_tests_have_one_name():
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert not [name for name, count in names.items() if count > 1], "pytest imports them by their names alone"


def test_no_file_names_a_machine_or_a_registry():
    tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    places = re.compile("/" + "work/|/" + "root/|" + "pypi" + r"\.org|files\.python" + "hosted")
    names = [name for name in tracked.split("\0") if name]
    texts = {name: (ROOT / name).read_text(errors="replace") for name in names if (ROOT / name).is_file()}
    assert not [name for name, text in texts.items() if places.search(text)]
