"""`embedding-service init`: a commented file of settings for a model of one's choice.

On a terminal it asks for what no flag says. It never overwrites a file.
"""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from glob import escape, glob
from pathlib import Path
from typing import Annotated

import typer

from embedding_service.commands.first_files import (
    MODELS,
    PLATFORMS,
    SCHEMA,
    Choice,
    find_model,
    platform_text,
    settings_text,
)
from embedding_service.commands.settings import FIRST_FILE, presets
from embedding_service.errors import BadConfiguration

_DRIVER = Path("/proc/driver/nvidia/version")


class Device(StrEnum):
    """Where models run."""

    GPU = "gpu"
    CPU = "cpu"


class Platform(StrEnum):
    """The program that starts the gateway."""

    SYSTEMD = "systemd"
    COMPOSE = "compose"
    KUBERNETES = "kubernetes"


def _complete_model(incomplete: str) -> list[str]:
    names = (name for name in MODELS if name.startswith(incomplete))
    return [*names, *glob(f"{escape(incomplete)}*/")]  # noqa: PTH207 - as it was typed


Model = Annotated[
    str | None,
    typer.Option(
        help="qwen3-0.6b, qwen3-4b, qwen3-8b, bge-m3, a hub's name, or a folder.",
        autocompletion=_complete_model,
    ),
]
Reranker = Annotated[
    bool | None, typer.Option("--reranker/--no-reranker", help="Serve a reranker beside it.")
]
OnDevice = Annotated[Device | None, typer.Option(help="Default: what this machine has.")]
StartedBy = Annotated[
    Platform | None,
    typer.Option("--for", metavar="WHERE", help="systemd, compose or kubernetes: its file, too."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file of settings; - prints it.")]


def init(
    model: Model = None,
    *,
    reranker: Reranker = None,
    device: OnDevice = None,
    platform: StartedBy = None,
    output: Output = FIRST_FILE,
) -> None:
    """Write a commented file of settings for a model of your choice."""
    if not model and platform is Platform.SYSTEMD and output.is_file():
        _write_unit(output)
        return
    asking = not model
    if asking and not sys.stdin.isatty():
        names = ", ".join(MODELS)
        raise BadConfiguration(f"--model is missing: give {names}, a hub's name, or a folder")
    in_cluster = platform is Platform.KUBERNETES  # where folders are on volumes
    found = find_model(model, here=not in_cluster) if model else _ask_model()
    choice = Choice(
        *found,
        output,
        reranker=_ask_reranker(asking=asking) if reranker is None else reranker,
        gpu=(device or _ask_device(asking=asking)) is Device.GPU,
        platform=platform or _ask_platform(asking=asking),
    )
    if str(output) == "-":
        typer.echo(settings_text(choice), nl=False)
    else:
        _write(choice)


def register(app: typer.Typer, _: object) -> None:
    """Add the command."""
    app.command("init")(init)


def _ask_model() -> tuple[str, Path | None]:
    """Return a model's name and its folder, after as many questions as it takes."""
    known = dict(enumerate(MODELS, 1))
    for number, name in enumerate(MODELS.values(), 1):
        typer.echo(f"  {number}  {name}", err=True)
    while True:
        question = "Model (a number, a hub's name or a folder)"
        answer = str(typer.prompt(question, default="1", err=True)).strip()
        if answer.isdecimal() and int(answer) not in known:
            others = f"1 to {len(known)}, a hub's name, or a folder"
            typer.echo(f"There is no {answer}; give {others}", err=True)
            continue
        try:
            return find_model(known[int(answer)] if answer.isdecimal() else answer)
        except BadConfiguration as error:
            typer.echo(str(error).removeprefix("--model: "), err=True)


def _ask_reranker(*, asking: bool) -> bool:
    return asking and _one_of("A reranker beside it?", ["y", "n"], "n") == "y"


def _ask_device(*, asking: bool) -> Device:
    here = Device.GPU if _DRIVER.exists() else Device.CPU
    if not asking:
        return here
    return Device(_one_of("Device", list(Device), here))


def _ask_platform(*, asking: bool) -> Platform | None:
    if not asking:
        return None
    answer = _one_of("Started by", ["nothing", *Platform], "nothing")
    return None if answer == "nothing" else Platform(answer)


def _one_of(question: str, answers: list[str], default: str) -> str:
    known = [str(answer) for answer in answers]
    while True:
        text = f"{question} ({', '.join(known)})"
        answer = str(typer.prompt(text, default=str(default), err=True)).strip().lower()
        if answer in known:
            return answer
        typer.echo(f"Give one of {', '.join(known)}", err=True)


def _write(choice: Choice) -> None:
    """Write all files, or none if one is there already. Raises `BadConfiguration`."""
    from embedding_service.settings.schema import schema_text  # noqa: PLC0415

    texts = {choice.file: settings_text(choice)}
    if choice.platform is not None:
        beside = choice.file.with_name(PLATFORMS[choice.platform])
        texts[beside] = platform_text(choice)
    schema = choice.file.with_name(SCHEMA)
    if not schema.exists():
        texts[schema] = schema_text()
    _write_new(texts)
    _say_next(choice)


def _write_unit(file: Path) -> None:
    """Write the unit for settings that are there. Raises `BadConfiguration` if they are wrong."""
    from embedding_service.settings.load import load  # noqa: PLC0415

    model, *_ = load(file, presets=presets)[0].served_models
    folder = Path(model.model_path) if model.model_path else None
    choice = Choice(model.model_name, folder, file, platform=Platform.SYSTEMD)
    unit = file.with_name(PLATFORMS[Platform.SYSTEMD])
    _write_new({unit: platform_text(choice)})
    _say_next(choice)


def _say_next(choice: Choice) -> None:
    if choice.platform is None:
        typer.echo(f"Next: embedding-service serve --config {shlex.quote(str(choice.file))}")
    else:
        for path in choice.hidden:
            typer.echo(
                f"Note: the unit cannot read {path}; run init again in a folder that it can read, "
                "such as /opt/embedding",
                err=True,
            )
        name = PLATFORMS[choice.platform]
        typer.echo(f"Next: the commands in the first lines of {name}")


def _write_new(texts: dict[Path, str]) -> None:
    for path in texts:
        if path.exists():
            raise BadConfiguration(
                f"{path} exists and is left as it is; name another with --output"
            )
    made: list[Path] = []
    try:
        for path, text in texts.items():
            with path.open("x", encoding="utf-8") as file:
                made.append(path)
                file.write(text)
    except OSError as error:
        for each in made:  # half of a file would be left as it is by the next try
            each.unlink()
        why = error.strerror or type(error).__name__
        raise BadConfiguration(f"{path}: {why}; name another place with --output") from None
    for path in made:
        typer.echo(f"Wrote {path}")
