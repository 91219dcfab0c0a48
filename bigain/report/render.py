"""What pages share: how templates are read, the style sheet, and settings as text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from bigain.results.wording import MISSING

__all__ = ["page_style", "shown_provenance", "shown_settings", "template"]

_HERE = Path(__file__).parent


def template(name: str) -> Template:
    """Read a template; what is put into it is escaped, and a name that is missing is an error."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def page_style() -> Markup:
    """Return the style sheet, to stand inside a page."""
    return Markup((_HERE / "page.css").read_text(encoding="utf-8"))


def shown_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Write settings as text, by their names in words."""
    return {key.replace("_", " "): _setting(value) for key, value in settings.items()}


def shown_provenance(origin: Mapping[str, Any]) -> dict[str, str]:
    """Write where a result came from as text, without the command, and the versions at the end."""
    versions = origin.get("versions") or {}
    plain = {key: value for key, value in origin.items() if key not in ("versions", "command")}
    return shown_settings(plain) | {key: str(value) for key, value in versions.items()}


def _setting(value: object) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_setting(item) for item in value)
    # Whole numbers here are seeds and settings to copy: no thousands separator.
    return str(value)
