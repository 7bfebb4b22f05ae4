"""Credentials: they come from an environment variable, are sent to one host, and never leave memory otherwise.

Everything that is written passes through ``mask``: a server's text on its way into answers, verdicts, caches and
messages, and a user's options on their way into messages.
"""

from __future__ import annotations

import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

HIDDEN = "***"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,79}")
_USUAL_NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+|[A-Z_]*(KEY|TOKEN|SECRET)")
_USER_OF_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/?#@'\"]*@", re.I)
_KEY_OF_URL = re.compile(r"([?&](?:api[_-]?key|key|token|secret|password|sig)=)[^\s&#'\"]+", re.I)
_REFERENCE = re.compile(r"\$\{\s*oc\.env:\s*([A-Za-z_][A-Za-z0-9_]*)")
_ONE_REFERENCE = re.compile(r"\$\{\s*oc\.env:\s*[A-Za-z_][A-Za-z0-9_]*\s*\}")
_NAME_OF_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS(WORD|WD|PHRASE)?$|CREDENTIAL")
_SECRET_OPTIONS = {"api_key", "apikey", "password", "secret", "token", "auth_token", "access_token", "hf_token"}


def mask(text: str, *secrets: str, urls: bool = False) -> str:
    """Return a text without credentials.

    A word that is too short or too plain for a key (``none``, ``EMPTY``) is not a secret: masking it would change what
    a model said.

    Args:
        text: The text to be written.
        secrets: Keys; each is searched as it is, encoded for a URL and for JSON.
        urls: Whether to remove passwords and keys from URLs too. Not for a model's text, which may be about URLs.
    """
    for secret in secrets:
        if is_secret(secret):
            for form in {secret, urllib.parse.quote(secret, safe=""), json.dumps(secret)[1:-1]}:
                text = text.replace(form, HIDDEN)
    if urls:
        text = _KEY_OF_URL.sub(rf"\g<1>{HIDDEN}", _USER_OF_URL.sub(rf"\g<1>{HIDDEN}@", text))
    return text


def is_secret(key: str) -> bool:
    """Return whether a key is secret, rather than a word for servers that need none."""
    return len(key) >= 8 and (len(key) >= 20 or not key.isalpha())


def unresolved(text: str, asked: Any) -> str:
    """Return a config with its environment secrets replaced by the references that produced them.

    Args:
        text: The config as YAML, its references resolved.
        asked: The config as the user wrote it, with ``${oc.env:NAME}``.
    """
    for name in sorted(set(_REFERENCE.findall(str(asked)))):
        value = os.environ.get(name, "")
        is_named = _NAME_OF_SECRET.search(name.upper()) or any(f"{one}: {value}" in text for one in _SECRET_OPTIONS)
        if is_named and is_secret(value):
            text = text.replace(value, f"${{oc.env:{name}}}")
    return text


def kept_secrets(config: Any, option: str = "") -> Any:
    """Return a config with references to secrets unresolved, for a file.

    Args:
        config: The config with references, such as ``${oc.env:NAME}``.
        option: The key that contains it.
    """
    if isinstance(config, Mapping):
        return {key: kept_secrets(value, str(key)) for key, value in config.items()}
    if isinstance(config, list):
        return [kept_secrets(value, option) for value in config]
    found = _REFERENCE.findall(config) if isinstance(config, str) else []
    if option.lower() in _SECRET_OPTIONS or any(_NAME_OF_SECRET.search(name.upper()) for name in found):
        return re.sub(r"(?<!\\)\$\{(?=\s*oc\.env:)", r"\\${", config) if found else config
    return config


def secrets_of_environment() -> list[str]:
    """Return the values of variables whose names suggest secrets."""
    return [value for name, value in os.environ.items() if _NAME_OF_SECRET.search(name.upper()) and is_secret(value)]


def flat(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Return every setting of a config that has a value, by dotted key, without credentials; references stay."""
    if isinstance(config, Mapping):
        items: Iterable[tuple[Any, Any]] = config.items()
    elif isinstance(config, list) and any(isinstance(item, (Mapping, list)) for item in config):
        items = enumerate(config)
    else:
        if config is not None:
            yield path, config if isinstance(config, (bool, int, float)) else mask(str(config), urls=True)
        return
    for key, value in items:
        where = f"{path}.{key}" if path else str(key)
        if str(key).lower() in _SECRET_OPTIONS and value:
            yield where, value if isinstance(value, str) and _ONE_REFERENCE.fullmatch(value) else HIDDEN
        else:
            yield from flat(value, where)


def find_credentials(config: Any, path: str = "") -> Iterator[str]:
    """Return what in a config would carry a password or key into files, logs and messages; none is repeated."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            where = f"{path}.{key}" if path else str(key)
            if str(key).lower() in _SECRET_OPTIONS and isinstance(value, str) and value and "${" not in value:
                yield f"{where}: configs are written to disk and logged, so no key belongs there; use the environment"
            else:
                yield from find_credentials(value, where)
    elif isinstance(config, (list, tuple)):
        for number, value in enumerate(config):
            yield from find_credentials(value, f"{path}.{number}")
    elif isinstance(config, str) and mask(config, urls=True) != config:
        yield f"{path}: a URL with a password or key in it; it would be written to configs and logs, put it elsewhere"


class Key:
    """The key of an endpoint, by the name of the environment variable that holds it; read when it is sent.

    Raises:
        ValueError: The name of the variable is not a valid name. It is not repeated: it may be a key.
    """

    def __init__(self, variable: str) -> None:
        if not isinstance(variable, str) or not _NAME.fullmatch(variable):
            raise ValueError(
                "the key's environment variable: give its name, such as OPENAI_API_KEY, never the key itself; what was "
                "given can be no name, and is not repeated here"
            )
        self._variable = variable

    def __repr__(self) -> str:
        """Show the variable."""
        return f"Key({self.name})"

    @property
    def name(self) -> str:
        """Return the variable's name for messages; one that may be a key itself is not shown."""
        if self._variable in os.environ or _USUAL_NAME.fullmatch(self._variable):
            return f"${self._variable}"
        return "the environment variable that was named (not repeated here: it is not set, and may be a key itself)"

    def read(self) -> str:
        """Return the key; empty if it is not set."""
        return os.environ.get(self._variable, "").strip()

    def mask(self, text: str) -> str:
        """Return a text without the key, and without the variable's name if that may be a key."""
        return mask(text, self.read(), "" if self.name.startswith("$") else self._variable)
