"""Pages: one HTML file each, which holds all that it shows, and fetches and runs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from markupsafe import Markup


def render(template: str, filters: dict[str, Callable[..., Any]] | None = None, **given: Any) -> str:
    """Return the page that a template beside this module makes of what is given; all of it is text, not markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters |= filters or {}
    return environment.get_template(template).render(**given)


def drawing(svg: bytes) -> Markup:
    """Return a drawing of ours as markup, without what only a file of its own has: the lines before its element."""
    from markupsafe import Markup

    text = svg.decode()
    return Markup(text[text.index("<svg") :])  # noqa: S704
