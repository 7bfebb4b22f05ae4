"""The template that all pages share: escaped by default, no external resources, no scripts but our own.

A page is a template of its own room over ``templates/base.html``. What comes from data is text: it is escaped, control
characters become pictures of themselves, and a Content-Security-Policy keeps a browser from running or loading what
slips through all the same.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from sftlab.report.style import css_variables
from sftlab.screen import visible

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

SCRIPTS = ("map.js",)
"""Scripts that pages may run; they are in ``templates``."""


def render(template: str, package: str = "sftlab.report", script: str = "", **values: Any) -> str:
    """Render a page as text.

    Args:
        template: Its file in ``templates`` of ``package``.
        package: Where the template is from.
        script: The one of ``SCRIPTS`` that it runs, if any.
        values: What the template names; text is escaped, ``Markup`` is not.
    """
    from markupsafe import Markup

    shell = environment(package)
    css = css_variables() + shell.loader.get_source(shell, "style.css")[0]  # type: ignore[union-attr]
    return shell.get_template(template).render(
        css=Markup(css), policy=Markup(policy(script)), script=Markup(_script(script)) if script else None, **values
    )


def policy(*scripts: str) -> str:
    """Return the Content-Security-Policy of a page: its own pictures and styles, and these scripts."""
    hashes = [base64.b64encode(hashlib.sha256(_script(name).encode()).digest()).decode() for name in scripts if name]
    allowed = " ".join(f"'sha256-{found}'" for found in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def guarded(html: str) -> str:
    """Return a page made by something else under our policy: only our own scripts run in it.

    A page may carry several policies, of which each must allow what is done; ours stands before all else.
    """
    guard = f'<!doctype html>\n<meta http-equiv="Content-Security-Policy" content="{policy(*SCRIPTS)}">\n'
    return guard + re.sub(r"^\s*<!doctype[^>]*>\s*", "", html, flags=re.IGNORECASE)


@cache
def environment(package: str) -> Environment:
    """Return the templates of a package, with those of this package as fallback."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(package, "templates"), PackageLoader("sftlab.report", "templates")])
    made = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,
    )
    made.filters["words"] = words
    return made


def words(text: str) -> Markup:
    """Escape text, with **bold** as the only markup."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escape(visible(text)))))


def _shown(value: Any) -> Any:
    return visible(value) if type(value) is str else value


@cache
def _script(name: str) -> str:
    shell = environment("sftlab.report")
    return shell.loader.get_source(shell, name)[0]  # type: ignore[union-attr]
