"""`embedding-service verify`: the command line of a verification, and its exit statuses.

Imports nothing heavy, so that `--help` of the whole program stays fast.
"""

from __future__ import annotations

import os
import traceback
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_service.errors import BadConfiguration, NoVectors, StartupError
from embedding_service.settings.gateway import ENV_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from embedding_service.settings.gateway import Settings
    from embedding_service.verify.result import ModelResult

    Load = Callable[[typer.Context, Path | None], tuple[Settings, list[str]]]

_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
_STATUSES = (
    "Exit status: 0 all vectors are right; 1 they are not; 2 wrong use, or the reference library "
    "is not installed; 4 the model could not be loaded; 6 the other server or the library gave no "
    "vectors."
)


_Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar=f"{ENV_PREFIX}CONFIG", help="YAML file of settings."),
]
_Server = Annotated[
    str | None, typer.Option(help="Verify the server at this URL, not the settings' models.")
]
_Against = Annotated[
    str | None, typer.Option(help="Compare with this server, not with the reference library.")
]
_Model = Annotated[str | None, typer.Option(help="One of several models.")]
_AgainstModel = Annotated[str | None, typer.Option(help="Its name at the --against server.")]
_Reference = Annotated[
    str | None, typer.Option(help="Folder or hub name that the reference library reads.")
]
_Texts = Annotated[
    Path | None,
    typer.Option(help="Texts, a line each, or .json, .jsonl; default: 200 built-in ones."),
]
_Longest = Annotated[int, typer.Option(min=1, help="About the longest of the built-in texts.")]
_Threshold = Annotated[
    float | None, typer.Option(min=0, max=1, help="Least cosine; default: by the number format.")
]
_Page = Annotated[
    Path | None, typer.Option("--report", help="Write a page with pictures to this file.")
]
_Numbers = Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file.")]


def register(app: typer.Typer, load: Load) -> None:
    """Add the command to the program, which knows how settings are read."""

    @app.command(context_settings=_FLAGS, epilog=_STATUSES)
    def verify(  # noqa: PLR0913 - a flag each
        context: typer.Context,
        config: _Config = None,
        *,
        server: _Server = None,  # noqa: ARG001 - the context has them all
        against: _Against = None,  # noqa: ARG001
        model: _Model = None,  # noqa: ARG001
        against_model: _AgainstModel = None,  # noqa: ARG001
        reference: _Reference = None,  # noqa: ARG001
        texts: _Texts = None,  # noqa: ARG001
        longest_tokens: _Longest = 8192,  # noqa: ARG001 - 32,768 take a CPU half an hour
        threshold: _Threshold = None,  # noqa: ARG001
        page: _Page = None,
        numbers: _Numbers = None,
    ) -> None:
        """Compare vectors with the reference library or another server.

        Takes the settings that `serve` takes, and computes without listening. Keys of --server and
        --against are in the variables SERVER_KEY and AGAINST_KEY.
        """
        settings, _ = load(context, config)
        with _one_line():
            results = _run(context.params, settings)
        for model_result in results:
            typer.echo("\n".join(model_result.lines()))
        with _one_line():
            _write(results, page, numbers)
        raise typer.Exit(0 if all(each.right for each in results) else 1)


@contextmanager
def _one_line() -> Iterator[None]:
    """Make a line of an error that nobody foresaw: status 1 is for vectors that are wrong."""
    try:
        yield
    except StartupError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        text = " ".join(str(error).split())
        raise NoVectors(f"a defect in verify: {type(error).__name__} {text} ({place})") from error


def _run(given: dict[str, Any], settings: Settings) -> list[ModelResult]:
    """Compare. Raises `StartupError`."""
    import asyncio  # noqa: PLC0415 - only here

    from embedding_service import telemetry  # noqa: PLC0415
    from embedding_service.progress import Progress  # noqa: PLC0415
    from embedding_service.verify.run import Options, Verification  # noqa: PLC0415 - numpy, httpx

    if given["reference"] is not None and given["against"] is not None:
        raise BadConfiguration("--reference and --against are two things to compare with: give one")
    chosen = {name: given[name] for name in Options.__dataclass_fields__ if name in given}
    # Not by flags, which everybody sees in the list of processes.
    chosen["server_key"] = os.environ.get("SERVER_KEY")
    chosen["against_key"] = os.environ.get("AGAINST_KEY")
    telemetry.configure("warning", settings.log_format)
    log = telemetry.get_logger()
    with closing(Progress()) as progress:
        return asyncio.run(Verification(Options(**chosen), settings, log, progress).run())


def _write(results: Sequence[ModelResult], page: Path | None, numbers: Path | None) -> None:
    """Write the reports. Raises `BadConfiguration`."""
    from embedding_service.verify import report  # noqa: PLC0415 - only here

    if page is not None:
        report.write(page, report.as_html(results))
    if numbers is not None:
        report.write(numbers, report.as_json(results))
