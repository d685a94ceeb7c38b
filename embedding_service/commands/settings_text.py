"""Settings as text for a terminal: the help of `serve`, all names, and one setting's page."""

from __future__ import annotations

import shlex
import textwrap
from importlib.resources import files
from typing import TYPE_CHECKING

import typer
import yaml

from embedding_service.settings import catalogue
from embedding_service.settings.groups import GROUPS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedding_service.settings.catalogue import Setting
    from embedding_service.settings.groups import Group

_WIDTH = 80
_INDENT = 6
_OF_TYPES = {"INTEGER": "1", "NUMBER": "1", "RATE": "100/minute", "PATH": "/a/path"}


def grouped(*, everything: bool) -> str:
    """Return the settings under their headings: the common ones, or all."""
    return "\n\n".join(_group(group, everything=everything) for group in _groups())


def _groups() -> Iterator[Group]:
    """Yield the groups, at last one of settings that have none."""
    yield from GROUPS
    yield from {setting.group for setting in catalogue.settings().values()} - set(GROUPS)


def _group(group: Group, *, everything: bool) -> str:
    known = catalogue.settings().values()
    members = [setting for setting in known if setting.group.title == group.title]
    shown = [each for each in members if everything or each.name in group.common]
    return "\n".join([typer.style(group.title, bold=True), *map(_entry, shown)])


def _entry(setting: Setting) -> str:
    """Return a setting in two lines or three."""
    head = f"  {setting.flag} {setting.type}"
    gap = max(2, _WIDTH - len(head) - len(setting.variable))
    if gap + len(head) + len(setting.variable) > _WIDTH:  # the variable gets a line of its own
        head, gap = head + "\n", _WIDTH - len(setting.variable)
    lines = [typer.style(head, fg="cyan") + " " * gap + typer.style(setting.variable, dim=True)]
    lines += _wrapped(_sentence(setting), indent=_INDENT)
    return "\n".join(lines)


def _sentence(setting: Setting) -> str:
    """Return the description, with the default unless it names that itself."""
    if setting.default is None or "default:" in setting.description.lower():
        return setting.description
    return f"{setting.description} Default: {setting.default}"


def listing() -> str:
    """Return the names of all settings, by group, a line each."""
    parts = []
    for group in _groups():
        members = [each for each in catalogue.settings().values() if each.group == group]
        lines = [f"  {each.name:<28} {_brief(each.description)}" for each in members]
        parts.append("\n".join([typer.style(group.title, bold=True), *lines]))
    return "\n\n".join(parts)


def _brief(text: str) -> str:
    return textwrap.shorten(text, 68, placeholder=" …")


def page(setting: Setting) -> str:
    """Return all that is known about one setting."""
    in_file, elsewhere = samples(setting)
    facts = {
        "type": setting.type,
        "default": setting.default or "none",
        "bounds": setting.bounds or None,
        "set for": setting.scope,
        "file": f"{setting.name}: {in_file}",
        "environment": f"{setting.variable}={shlex.quote(elsewhere)}",
        "flag": f"{setting.flag} {shlex.quote(elsewhere)}",
        "group": setting.group.title,
        "related": ", ".join(catalogue.related(setting)) or None,
    }
    lines = [typer.style(setting.name, bold=True), *_wrapped(setting.description, indent=2), ""]
    for name, value in facts.items():
        if value is not None:
            head = f"  {name:<13}"
            lines += textwrap.wrap(
                head + value, 100, subsequent_indent=" " * 15, break_long_words=False
            )
    return "\n".join(lines)


def samples(setting: Setting) -> tuple[str, str]:
    """Return a value as YAML, and as a variable or flag has it: the default, or one of the form."""
    own = yaml.safe_load((files(__package__) / "samples.yaml").read_text("utf-8"))
    if (found := own.get(setting.name)) is not None:
        return (found, found) if isinstance(found, str) else (found[0], found[1])
    if setting.default is not None:
        plain = setting.default.partition(" (")[0]
        return _quoted(plain), plain
    if setting.choices:
        return setting.choices[0], setting.choices[0]
    usual = _OF_TYPES.get(setting.type, "text")
    return usual, usual


def _quoted(text: str) -> str:
    """Return a text in quotes if YAML would read something else: `off`, `a:`."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    plain = str(value).lower() == text.lower() or text.startswith(("{", "["))
    return text if plain else f'"{text}"'


def unknown(name: str) -> str:
    """Return an error about a name that no setting has, with those that are near."""
    close = ", ".join(catalogue.near(name))
    hint = f"near: {close}" if close else "`embedding-service settings` lists all"
    return f"{name}: no such setting; {hint}"


def _wrapped(text: str, *, indent: int) -> list[str]:
    space = " " * indent
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=space,
        subsequent_indent=space,
        break_long_words=False,
        break_on_hyphens=False,
    )
