"""Commands that have modules of their own, which are imported when they are asked for.

`--help` and the completion of a shell know them by their names and sentences alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from embedding_service.commands.settings import load_settings


class LazyCommand(NamedTuple):
    """A command's module, which has `register(app, load)`, and its sentence."""

    module: str
    help: str


COMMANDS = {
    "settings": LazyCommand(
        "embedding_service.commands.settings", "Explain one setting, or list all of them."
    ),
    "init": LazyCommand(
        "embedding_service.commands.init",
        "Write a commented file of settings for a model of your choice.",
    ),
    "embed": LazyCommand(
        "embedding_service.bulk.command", "Embed a corpus, files to files; it can be continued."
    ),
    "verify": LazyCommand(
        "embedding_service.verify.command",
        "Compare vectors with the reference library or another server.",
    ),
}


# The order of the list: as a person meets them.
_ORDER = (
    *("init", "serve", "check-config", "settings", "fetch"),
    *("keys", "embed", "verify", "canary", "version"),
)


class Commands(TyperGroup):
    """A group that has the commands above beside its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, command in COMMANDS.items():
            self.add_command(TyperCommand(name, help=command.help))

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of use."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that is asked for, imported."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, imported(name) if name in COMMANDS else command, rest


def imported(name: str) -> Any:
    """Return a command of another module."""
    app = typer.Typer(add_completion=False)
    import_module(COMMANDS[name].module).register(app, load_settings)
    command = get_command(app)
    command.name = name
    return command
