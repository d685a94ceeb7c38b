"""The command line. A command's module is light to import: `--help` and completion are quick."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from typer.exceptions import TyperException

from embedding_service import __version__
from embedding_service.commands.lazy import Commands
from embedding_service.commands.settings import (
    FLAGS,
    Config,
    HelpAll,
    SettingsCommand,
    load_settings,
)
from embedding_service.errors import BadConfiguration, StartupError

_INTERRUPTED = 130  # as shells have it: 128 and SIGINT

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:  # noqa: FBT001 - typer calls it so
    if value:
        version()
        raise typer.Exit


@app.callback()
def embedding_service(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version."),
    ] = False,
) -> None:
    """Serve embeddings as OpenAI's API does, computed by vLLM."""


@app.command(cls=SettingsCommand, context_settings=FLAGS)
def serve(context: typer.Context, config: Config = None, *, help_all: HelpAll = False) -> None:
    """Serve models until SIGTERM or Ctrl-C."""
    settings, warnings = load_settings(context, config)

    # Only now the heavy imports: a wrong setting is refused in a fraction of a second.
    from embedding_service import server, telemetry  # noqa: PLC0415

    telemetry.configure(settings.log_level, settings.log_format)
    log = telemetry.get_logger()
    for warning in warnings:
        log.warning("environment", detail=warning)
    if settings.allow_anonymous and not settings.has_keys and not settings.uds:
        address = f"{settings.host}:{settings.port}"
        log.warning("no_api_key", detail=f"anyone who can reach {address} can use this service")
    raise typer.Exit(server.serve(settings, log))


@app.command("check-config", cls=SettingsCommand, context_settings=FLAGS)
def check_config(
    context: typer.Context,
    config: Config = None,
    *,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON Schema instead.")] = False,
    help_all: HelpAll = False,
) -> None:
    """Check the settings as `serve` does, and print those in force, secrets masked.

    Folders and files that they name have to be here; no model is loaded.
    """
    if schema:
        from embedding_service.settings.schema import schema_text  # noqa: PLC0415

        typer.echo(schema_text(), nl=False)
        return
    settings, warnings = load_settings(context, config)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)

    from embedding_service import preflight  # noqa: PLC0415 - once the settings are right

    preflight.check(settings)
    if sys.stdout.isatty():
        typer.echo("The settings are right. In force are:\n", err=True)
    typer.echo(yaml.safe_dump(settings.effective(), sort_keys=False, allow_unicode=True), nl=False)


@app.command(cls=SettingsCommand, context_settings=FLAGS)
def fetch(context: typer.Context, config: Config = None, *, help_all: HelpAll = False) -> None:
    """Download the configured models.

    HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are obeyed.
    """
    from embedding_service import hub  # noqa: PLC0415 - other commands need none

    settings, _ = load_settings(context, config)
    for model in settings.served_models:
        name, folder = model.model_name, model.model_path
        if folder is None and model.engine == "fake":
            folder = "made up, there is nothing to download"
        if folder is None:
            folder = str(hub.fetch(name, model.revision, say=_say).folder)
            typer.echo("\r\x1b[K" if sys.stderr.isatty() else "", err=True, nl=False)  # the bar
        typer.echo(f"{name}: {folder}")


def _say(text: str, /, **facts: int) -> None:
    if sys.stderr.isatty() and facts.get("total_bytes"):
        from embedding_service.terminal import bar  # noqa: PLC0415 - other commands need none

        done = facts["done_bytes"], facts["total_bytes"]
        typer.echo(f"\r{bar(*done)}\x1b[K", err=True, nl=False)
        return
    typer.echo(text, err=True)


keys = typer.Typer(no_args_is_help=True, help="Make API keys, and their digests for a server.")
app.add_typer(keys, name="keys")


@keys.command("new")
def keys_new(
    name: Annotated[str, typer.Option(help="The key's owner, in the server's log.")] = "",
    models: Annotated[str, typer.Option(help="Models it may use, separated by commas.")] = "",
) -> None:
    """Print a new key on standard error, and on standard output its entry for `api_keys_file`."""
    from embedding_service.http.keys import digest, new_key  # noqa: PLC0415 - only here

    key = new_key()
    entry: dict[str, Any] = {"name": name} if name else {}
    entry["key"] = f"sha256:{digest(key.encode()).hex()}"
    if models:
        entry["models"] = [model.strip() for model in models.split(",")]
    typer.echo(f"The key, shown this once: {key}", err=True)
    typer.echo(yaml.safe_dump([entry], sort_keys=False), nl=False)


@keys.command("hash")
def keys_hash() -> None:
    """Read a key from standard input (not echoed on a terminal), and print `sha256:HEX` of it."""
    from getpass import getpass  # noqa: PLC0415 - only here

    from embedding_service.http.keys import digest  # noqa: PLC0415

    key = getpass("Key: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    if not key:
        raise BadConfiguration("there is no key on standard input; write one there")
    typer.echo(f"sha256:{digest(key.encode()).hex()}")


canary = typer.Typer(no_args_is_help=True, help="Pin vectors, to prove later ones by.")
app.add_typer(canary, name="canary")


@canary.command("pin", context_settings=FLAGS)
def canary_pin(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="JSON, for the setting canary_file.")],
    config: Config = None,
    server: Annotated[str, typer.Option(help="URL; else the settings' model is started.")] = "",
    model: Annotated[str, typer.Option(help="One of several models.")] = "",
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write the vectors of 64 texts; exit 6 if there are none, 4 if the model does not load.

    The key of --server is in the variable SERVER_KEY.
    """
    settings = None if server else load_settings(context, config)[0]
    if file.exists() and not force:
        raise BadConfiguration(
            f"{file} exists and is left as it is; name another file, or give --force"
        )

    from embedding_service import canary, telemetry  # noqa: PLC0415 - heavy

    if settings is None:
        key = os.environ.get("SERVER_KEY")
        pinned = canary.pin_server(server, file, name=model or None, key=key)
    else:
        telemetry.configure(settings.log_level, settings.log_format)
        log = telemetry.get_logger()
        pinned = asyncio.run(canary.pin_here(settings, log, file, model or None))
    typer.echo(f"{file}: {len(pinned.texts)} texts, {pinned.dtype}, in {pinned.space}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _check_folder() -> None:
    """Raise `BadConfiguration` if the current folder was deleted, as before a new clone."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise BadConfiguration("the current folder is gone; change to one that is there") from None


def _wrong_use(error: TyperException) -> str:
    """Return an error of the command line's library in one line, with the help to look at."""
    context = getattr(error, "ctx", None)
    help_of = f"`{context.command_path} --help`" if context else "--help"
    said = error.format_message().replace("Value error, ", "")
    if not said:  # the help has been printed
        return ""
    return f"{said} See {help_of}" if said.endswith((".", "?")) else f"{said}; see {help_of}"


def main() -> None:
    """Run the command line; an error at start-up is one line and an exit status."""
    try:
        _check_folder()
        sys.exit(app(standalone_mode=False))
    except StartupError as error:
        said, status = str(error), error.exit_code
    except TyperException as error:
        said, status = _wrong_use(error), BadConfiguration.exit_code
    except typer.Abort:  # Ctrl-C where a question is asked
        said, status = "stopped; nothing is written", _INTERRUPTED
    sys.stdout.flush()
    if said:
        sys.stderr.write(f"embedding-service: {said}\n")
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
