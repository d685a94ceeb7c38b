"""`embedding-service embed`: a corpus to its vectors."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_service.bulk.options import (
    ROWS_PER_PART,
    BadLines,
    BulkOptions,
    InputFormat,
    OutputFormat,
)
from embedding_service.commands.settings import FLAGS, Config, own_options, presets
from embedding_service.errors import BadConfiguration
from embedding_service.settings import flags
from embedding_service.settings.load import load
from embedding_service.types import EmbedDtype, InputType, Output, Truncate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from embedding_service.bulk.run import Work

_WRITTEN = (Output.DENSE, Output.SPARSE, Output.COLBERT)
Option = typer.Option
Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT...", help="Files, folders, patterns, URLs; - for stdin."),
]
Out = Annotated[Path | None, Option(help="Folder of the vectors: new, or of the same job.")]
Column = Annotated[str, Option(help="Column or field of the text.")]
Id = Annotated[str | None, Option("--id", help="Column of the id; default: id, else row numbers.")]
Outputs = Annotated[str, Option(help="dense, sparse, colbert; separated by commas.")]
ReadAs = Annotated[InputFormat | None, Option(help="Default: by the name; JSONL from stdin.")]
Format = Annotated[OutputFormat, Option("--format", help="Kind of the parts.")]
RowsPerPart = Annotated[int, Option(min=1, help="Rows of one file; a kill loses as many at most.")]
Bad = Annotated[BadLines, Option(help="Lines that cannot be read: stop, or count as errors.")]
Type = Annotated[InputType | None, Option(help="Selects the model's prompt.")]
Instruction = Annotated[str | None, Option(help="Task for an instructed model.")]
Prompt = Annotated[str | None, Option(help="One of the model's named prompts.")]
Dimensions = Annotated[int | None, Option(min=1, help="Shorter vectors.")]
Dtype = Annotated[EmbedDtype, Option(help="Number format of the vectors.")]
Cut = Annotated[Truncate | None, Option(help="For over-long texts; default: default_truncate.")]
Normalize = Annotated[bool, Option(help="Scale vectors to length 1.")]
Model = Annotated[str | None, Option(help="One of several models, or an alias.")]
Server = Annotated[
    list[str] | None, Option(help="Have this server embed; may be repeated. Its key: $SERVER_KEY.")
]
Ray = Annotated[str | None, Option(help="On this Ray cluster: an address, auto, or local.")]
DryRun = Annotated[bool, Option("--dry-run", help="Tell how much it is, and how long it takes.")]


def embed(  # noqa: PLR0913 - each is a flag
    context: typer.Context,
    inputs: Inputs,
    *,
    out: Out = None,
    column: Column = "text",
    id_column: Id = None,
    outputs: Outputs = "dense",
    input_format: ReadAs = None,
    form: Format = OutputFormat.PARQUET,
    rows_per_part: RowsPerPart = ROWS_PER_PART,
    bad_lines: Bad = BadLines.STOP,
    input_type: Type = None,
    instruction: Instruction = None,
    prompt_name: Prompt = None,
    dimensions: Dimensions = None,
    embed_dtype: Dtype = EmbedDtype.FLOAT32,
    truncate: Cut = None,
    normalize: Normalize = True,
    model: Model = None,
    server: Server = None,
    ray: Ray = None,
    dry_run: DryRun = False,
    config: Config = None,
) -> None:
    """Embed a corpus, files to files; it can be continued. Takes the settings of `serve`, too.

    Complete parts stay, however it ends; the same command goes on from there. Exit status 12: done,
    and some rows have no vectors; _errors.jsonl lists them.
    """
    from embedding_service.bulk import run

    names, given = split(inputs)
    settings = flags.read(given, own_options(context))
    _check_out(out, dry_run=dry_run)
    options = BulkOptions(
        column=column,
        id_column=id_column,
        outputs=_read_outputs(outputs, form),
        input_type=input_type,
        instruction=instruction,
        prompt_name=prompt_name,
        dimensions=dimensions,
        embed_dtype=embed_dtype,
        truncate=truncate,
        normalize=normalize,
        format=form,
        rows_per_part=rows_per_part,
        bad_lines=bad_lines,
    )
    work = run.Work(names, input_format, options, None if dry_run else out, model, ray=ray)
    if server:
        work = _with_servers(work, server, given)
    else:
        work = _with_settings(work, config, settings, truncate)
    raise typer.Exit(run.run(work))


def _with_servers(work: Work, urls: list[str], given: list[str]) -> Work:
    """Return the work with servers that do it."""
    if given:
        raise BadConfiguration(f"{given[0]}: with --server, the server has its own settings")
    return replace(work, servers=tuple(urls), key=os.environ.get("SERVER_KEY"))


def _with_settings(
    work: Work, config: Path | None, given: dict[str, Any], truncate: Truncate | None
) -> Work:
    """Return the work with the settings of its engine."""
    settings, warnings = load(config, given, presets=presets)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    options = replace(work.options, truncate=truncate or settings.default_truncate)
    return replace(work, settings=settings, options=options)


def register(app: typer.Typer, _: object) -> None:
    """Add the command to the program; it reads settings itself, from among its inputs."""
    app.command(context_settings=FLAGS)(embed)


def _check_out(out: Path | None, *, dry_run: bool) -> None:
    if out is None and not dry_run:
        raise BadConfiguration("--out: name the folder of the vectors")
    if out is not None and re.match(r"[a-z0-9+]{2,}:/", str(out)):  # a path has one of its slashes
        raise BadConfiguration(
            "--out: parts are renamed once they are complete, which stores cannot do; name a "
            "folder of this machine, and copy it"
        )


def split(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the inputs among some arguments, and the flags of settings with their values."""
    names: list[str] = []
    given: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            names.append(argument)
            continue
        given.append(argument)
        if "=" not in argument:
            given += [value for value in [next(rest, None)] if value is not None]
    return names, given


def _read_outputs(text: str, form: OutputFormat) -> tuple[Output, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = {str(output): output for output in _WRITTEN}
    if wrong := next((name for name in names if name not in known), None):
        raise BadConfiguration(f"--outputs: {wrong!r} is none of {', '.join(known)}")
    outputs = tuple(output for output in _WRITTEN if output in names)
    if not outputs:
        raise BadConfiguration(f"--outputs: name at least one of {', '.join(known)}")
    if form is OutputFormat.NPY and outputs != (Output.DENSE,):
        raise BadConfiguration("--format npy holds dense vectors alone; take parquet or jsonl")
    return outputs
