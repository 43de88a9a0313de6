"""Pages from template files. In HTML every value is escaped; a value that is not given is an error."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@cache
def _environment(package: str) -> Environment:
    return Environment(
        loader=PackageLoader(package),
        autoescape=lambda name: name is None or not name.endswith(".md.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )


def render(package: str, name: str, **values: object) -> Markup:
    """Fill a template from a package's folder `templates`.

    Args:
        package: The package's full name.
        name: The template's file name.
        values: What the template shows. Text is escaped unless it is Markup; Markdown (`NAME.md.jinja`) is not escaped.

    Returns:
        The filled template.
    """
    return Markup(_environment(package).get_template(name).render(values))
