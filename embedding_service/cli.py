"""`embedding-service serve | check-config | fetch | keys`: the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from embedding_service import __version__, hub
from embedding_service.errors import BadConfiguration, StartupError
from embedding_service.settings import flags
from embedding_service.settings.gateway import ENV_PREFIX, Settings
from embedding_service.settings.load import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedding_service.dropin.preset import Preset

_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar=f"{ENV_PREFIX}CONFIG", help="YAML file of settings."),
]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="An OpenAI-compatible embedding gateway backed by vLLM.",
)


def _settings_help() -> str:
    lines = [
        "A setting can be given in the file, in the environment as EMBEDDING_NAME, or as a flag:",
        "",
        "\b",
    ]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, (), {}) else f" (default: {field.default})"
        lines.append(f"  --{name.replace('_', '-')}: {field.description}{default}")
    return "\n".join(lines)


@app.command(context_settings=_FLAGS, epilog=_settings_help())
def serve(context: typer.Context, config: Config = None) -> None:
    """Serve embeddings. Flags win over the environment, the environment over the file."""
    settings, warnings = _load(context, config)

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


@app.command("check-config", context_settings=_FLAGS)
def check_config(context: typer.Context, config: Config = None) -> None:
    """Print the settings in force, secrets masked; exit 2 if one is wrong."""
    settings, warnings = _load(context, config)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(yaml.safe_dump(settings.effective(), sort_keys=False, allow_unicode=True), nl=False)


@app.command(context_settings=_FLAGS)
def fetch(context: typer.Context, config: Config = None) -> None:
    """Download the configured models (HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are obeyed)."""
    settings, _ = _load(context, config)
    for model in settings.served_models:
        name, folder = model.model_name, model.model_path
        if folder is None:
            folder = str(hub.fetch(name, model.revision, say=_say).folder)
        typer.echo(f"{name}: {folder}")


def _say(text: str) -> None:
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
        raise BadConfiguration("there is no key on standard input")
    typer.echo(f"sha256:{digest(key.encode()).hex()}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run the command line; an error at start-up is one line and an exit status."""
    try:
        app()
    except StartupError as error:
        sys.stderr.write(f"embedding-service: {error}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)


def _presets() -> Mapping[str, Preset]:
    from embedding_service.dropin.presets import PRESETS  # noqa: PLC0415 - imports numpy

    return PRESETS


def _load(context: typer.Context, config: Path | None) -> tuple[Settings, list[str]]:
    return load(config, flags.read(context.args), presets=_presets)


if __name__ == "__main__":
    main()
