"""An inference engine started on a model's folder: queried over HTTP while it runs, stopped afterwards.

vllm serve {model} --port {port}    ->  http://127.0.0.1:PORT/v1  answers  ->  problems, answers  ->  ended
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sftlab.evaluate.server import ServerModel
from sftlab.processes import end_process, free_port

_PLACES = ("{model}", "{port}")
_STARTS_WITHIN_S = 1800.0  # an engine loads and compiles a large model
_LOOK_EVERY_S = 0.2
_TAIL = 12  # lines of a failed engine's output to show


def check_engine(command: str) -> None:
    """Check that a command can start an engine.

    Raises:
        ValueError: It has no {model} or {port} to fill in, or the program does not exist.
    """
    if missing := [place for place in _PLACES if place not in command]:
        raise ValueError(
            f"engine: {command!r} lacks {' and '.join(missing)}; such as: vllm serve {{model}} --port {{port}}"
        )
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"engine: {command!r}: {error}") from None
    if shutil.which(words[0]) is None:
        raise ValueError(f"engine: there is no program {words[0]!r} here")


@contextmanager
def running_engine(command: str, model: Path) -> Iterator[ServerModel]:
    """Run an engine on a model's folder, ready to answer; it is stopped in any case.

    Args:
        command: Starts it in the foreground; ``{model}`` and ``{port}`` are filled in.
        model: A Hugging Face folder.

    Raises:
        ValueError: The engine exits, does not answer in time, or serves no model.
    """
    port = free_port("127.0.0.1")
    words = [
        word.replace("{port}", str(port)).replace("{model}", str(model.resolve())) for word in shlex.split(command)
    ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}/v1"
            if problem := _wait(process, url):
                log.seek(0)
                lines = log.read().decode(errors="replace").splitlines()[-_TAIL:]
                raise ValueError("\n".join([f"engine: {shlex.join(words)} {problem}", *lines]))
            yield ServerModel.at(url, _name(url, command))
        finally:
            end_process(process)


def _wait(process: subprocess.Popen, url: str) -> str:
    """Wait until an engine answers; return why it will not."""
    deadline = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return f"ended with exit status {process.returncode}"
        try:
            _models(url)
        except (OSError, ValueError):
            time.sleep(_LOOK_EVERY_S)
        else:
            return ""
    return f"did not answer within {_STARTS_WITHIN_S / 60:.0f} minutes"


def _name(url: str, command: str) -> str:
    """Return the engine's name for its model."""
    names = _models(url)
    if not names:
        raise ValueError(f"engine: {command!r} serves no model")
    return names[0]


def _models(url: str) -> list[str]:
    with urllib.request.urlopen(f"{url}/models", timeout=10) as reply:
        return [str(model["id"]) for model in json.load(reply)["data"]]
