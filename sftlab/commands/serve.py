"""``serve``: serve a stage to OpenAI-compatible clients, by vLLM or transformers, whichever is installed."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from sftlab.commands.options import CommandParser, wants_help, whole_number
from sftlab.screen import complain, show

PARSER = CommandParser(
    "serve",
    "Serves a stage of a run to OpenAI-compatible clients: by vLLM where it is installed, else by transformers serve;\n"
    "where neither is, prints the command.",
    notes="""
sftlab serve dmt/general --port 8000
sftlab evaluate --server http://localhost:8000/v1 --checkpoint NAME --tasks gsm8k    scores through it
""",
)
PARSER.add_argument("model", metavar="MODEL", help="a run, run/stage or Hugging Face folder")
PARSER.add_argument("--port", type=whole_number(1, 65_535), default=8000, metavar="8000", help="of the server")
PARSER.add_argument("--dry-run", action="store_true", help="print the command and do not run it")


def main(arguments: list[str]) -> int:
    """Find the model and a server, and run it."""
    if wants_help(arguments, PARSER):
        return 0
    options = PARSER.parse(arguments)
    from sftlab.run.results import model_named

    with ExitStack() as stack:
        folder = model_named(options.model, stack, complain)
        command, missing = server_command(folder, options.port)
        show(shlex.join(command))
        if missing:
            complain(f"Not run: {missing}")
            return 0 if options.dry_run else 1
        return 0 if options.dry_run else subprocess.call(command)


def server_command(folder: str, port: int) -> tuple[list[str], str]:
    """Return the command that serves a folder, and what is missing for it to run; empty if nothing is."""
    place = str(Path(folder).resolve()) if Path(folder).exists() else folder
    if shutil.which("vllm"):
        return ["vllm", "serve", place, "--port", str(port)], ""
    command = ["transformers", "serve", place, "--port", str(port)]
    lacking = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if lacking or not shutil.which("transformers"):
        return command, "install a server first: pip install 'transformers[serving]' (or vllm)"
    return command, ""
