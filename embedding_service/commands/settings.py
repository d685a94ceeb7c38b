"""Commands that take every setting as a flag, and `settings`, which explains one of them.

Light to import: the settings themselves are read by those functions alone that need them, so that
`--help` and the completion of a shell are quick.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import CompletionItem, TyperCommand  # type: ignore[attr-defined] # no public name

from embedding_service.errors import BadConfiguration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from embedding_service.dropin.preset import Preset
    from embedding_service.settings.gateway import Settings

FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="EMBEDDING_CONFIG", help="YAML file of settings."),
]
FIRST_FILE = Path("embedding-service.yaml")  # that `init` writes
_MODELS = {"model_name", "model_path", "models"}
_HEAD = """\
Usage: {usage} [--config FILE] [--SETTING VALUE]...

{about}

  {usage} --model-name BAAI/bge-m3
  {usage} --config embedding-service.yaml --port 9000

{options}

Flags win over the environment, the environment over the file, where a name has underscores:
max_inputs. `embedding-service init` writes a file to begin with.
"""
_HELP = ("help", "help_all")  # who reads it knows the one, and its last line names the other
_MORE = """
--help-all shows {number} settings more; `embedding-service settings NAME` explains one.
"""


def load_settings(context: typer.Context, config: Path | None) -> tuple[Settings, list[str]]:
    """Return the settings in force, and warnings. Raises `BadConfiguration`."""
    from embedding_service.settings import flags  # noqa: PLC0415 - see the module's docstring
    from embedding_service.settings.load import load  # noqa: PLC0415

    given = flags.read(context.args, own_options(context))
    settings, warnings = load(config, given, presets=presets)
    if config is None and not settings.model_fields_set & _MODELS and FIRST_FILE.is_file():
        warnings.append(f"{FIRST_FILE} is here and not read; give --config {FIRST_FILE}")
    return settings, warnings


def own_options(context: typer.Context) -> list[str]:
    """Return the flags of a command that are no settings."""
    params = context.command.get_params(context)
    return list(chain.from_iterable(param.opts for param in params))


def presets() -> Mapping[str, Preset]:
    """Return the presets by name."""
    from embedding_service.dropin.presets import PRESETS  # noqa: PLC0415 - imports numpy

    return PRESETS


class SettingsCommand(TyperCommand):
    """A command whose flags are all settings: its help groups them, and a shell completes them."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the common settings."""
        formatter.write(self.help_text(ctx, everything=False))

    def help_text(self, ctx: Any, *, everything: bool) -> str:
        """Return the help, with the common settings or with all."""
        from embedding_service.commands.settings_text import grouped  # noqa: PLC0415
        from embedding_service.settings.groups import GROUPS  # noqa: PLC0415

        params = (param for param in self.get_params(ctx) if param.name not in _HELP)
        records = [param.get_help_record(ctx) for param in params]
        options = "\n".join(f"  {names:<21}{text}" for names, text in filter(None, records))
        head = _HEAD.format(usage=ctx.command_path, about=self.help, options=options)
        more = "" if everything else _MORE.format(number=sum(len(each.further) for each in GROUPS))
        return f"{head}\n{grouped(everything=everything)}\n{more}"

    def shell_complete(self, ctx: Any, incomplete: str) -> list[CompletionItem]:
        """Return flags, or the values of the flag before."""
        found: list[CompletionItem] = super().shell_complete(ctx, incomplete)
        return [*found, *_completions(ctx.args[-1] if ctx.args else "", incomplete)]


def _completions(before: str, incomplete: str) -> Iterator[CompletionItem]:
    from embedding_service.settings.catalogue import settings  # noqa: PLC0415

    for setting in settings().values():
        if before == setting.flag:
            for choice in setting.choices:
                if choice.startswith(incomplete):
                    yield CompletionItem(choice)
        elif incomplete.startswith("-") and setting.flag.startswith(incomplete):
            yield CompletionItem(setting.flag, help=setting.description)


def _show_all(context: typer.Context, value: bool) -> None:  # noqa: FBT001 - typer calls it so
    if value:
        command = context.command
        assert isinstance(command, SettingsCommand)  # noqa: S101 - it alone has the option
        typer.echo(command.help_text(context, everything=True), nl=False)
        raise typer.Exit


HelpAll = Annotated[
    bool, typer.Option("--help-all", is_eager=True, callback=_show_all, help="Show every setting.")
]


def _complete_name(incomplete: str) -> list[tuple[str, str]]:
    from embedding_service.settings.catalogue import settings  # noqa: PLC0415

    known = settings().values()
    return [(each.name, each.description) for each in known if each.name.startswith(incomplete)]


def show(
    name: Annotated[
        str | None,
        typer.Argument(help="A setting, its flag, or its variable.", autocompletion=_complete_name),
    ] = None,
) -> None:
    """Explain one setting, or list all of them."""
    from embedding_service.commands import settings_text  # noqa: PLC0415
    from embedding_service.settings.catalogue import find  # noqa: PLC0415

    if name is None:
        typer.echo(settings_text.listing())
        return
    setting = find(name)
    if setting is None:
        raise BadConfiguration(settings_text.unknown(name))
    typer.echo(settings_text.page(setting))


def register(app: typer.Typer, _: object) -> None:
    """Add the command `settings`."""
    app.command("settings", context_settings={"ignore_unknown_options": True})(show)
