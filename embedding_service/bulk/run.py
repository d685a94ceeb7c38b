"""One run of the command: what it works with is put together, in the order that refuses early."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import signal
import sys
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import uvloop

from embedding_service import telemetry
from embedding_service.bulk import columns, inputs
from embedding_service.bulk.dry_run import measure
from embedding_service.bulk.embedder import EngineEmbedder
from embedding_service.bulk.folder import ERRORS, Folder
from embedding_service.bulk.outputs import Layout
from embedding_service.bulk.pipeline import Pipeline, Sink
from embedding_service.bulk.progress import Progress
from embedding_service.bulk.rows import Corpus
from embedding_service.engine.process import WorkerProcess
from embedding_service.errors import BadConfiguration, RowsFailed
from embedding_service.local import local_service

if TYPE_CHECKING:
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from embedding_service.bulk.embedder import Answer, Embedder
    from embedding_service.bulk.options import BulkOptions, InputFormat
    from embedding_service.engine.process import StartWorker
    from embedding_service.settings.gateway import Settings

_INTERRUPTED = 128  # and the number of the signal, as shells have it
# The settings that a vector space is made of (`service/vector_space.py`).
_DECIDING = {
    "models",
    "over_long_texts",
    "max_text_characters",
    "default_truncate",
    "records",
    "sparse_token_mapping",
    "sparse_index_space",
}
_OBJECTS_BETWEEN_COLLECTIONS = 20_000  # as in a gateway: nothing here is garbage of cycles


@dataclass(frozen=True, slots=True)
class Work:
    """The request of one command. Without `out` it is only measured.

    The engine is that of `settings`, unless there are `servers`, which want a `key`. `ray` is the
    address of a cluster, "local" for one of this machine.
    """

    names: list[str]
    read_as: InputFormat | None
    options: BulkOptions
    out: Path | None
    model: str | None = None
    settings: Settings | None = None
    servers: tuple[str, ...] = ()
    key: str | None = field(default=None, repr=False)
    ray: str | None = None
    start_worker: StartWorker = WorkerProcess.start


def run(work: Work) -> int:
    """Do the work; return the exit status. Raises `StartupError`s."""
    settings = work.settings
    form = settings.log_format if settings else "auto"
    if form == "auto" and work.out is None:  # read by people, beside the figures
        form = "text"
    telemetry.configure(settings.log_level if settings else "info", form)
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_stopped(work))


async def _until_stopped(work: Work) -> int:
    """Do the work until a signal comes; a second one does not wait for the engine's end."""
    working = asyncio.ensure_future(do(work, telemetry.get_logger()))
    signals: list[int] = []

    def stop(number: int) -> None:
        if signals:
            os._exit(_INTERRUPTED + number)
        signals.append(number)
        working.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    await asyncio.wait({working})
    if not working.cancelled():
        working.result()
        return 0
    sys.stderr.write("embedding-service: stopped; the same command goes on from there\n")
    if work.ray:  # a thread waits for the cluster, which ends the job once this process is gone
        os._exit(_INTERRUPTED + signals[0])
    return _INTERRUPTED + signals[0]


async def do(work: Work, log: FilteringBoundLogger) -> None:
    """Do the work within a running loop. Raises `StartupError`s."""
    sources = await asyncio.to_thread(inputs.find, work.names, work.read_as, work.out)
    chosen = await asyncio.to_thread(columns.choose, sources, work.options)
    corpus = Corpus(sources, chosen, work.options.bad_lines)
    if work.out is None:
        async with AsyncExitStack() as stack:
            embedder, _ = await _embedder(work, log, stack)
            await measure(corpus, embedder, work.options.rows_per_part)
        return
    least = work.options.rows_per_part if corpus.is_piped else 0
    with closing(Folder(work.out, _made_of(corpus, work.options), least=least)) as folder:
        await _complete(folder, work, corpus, log)


async def _complete(folder: Folder, work: Work, corpus: Corpus, log: FilteringBoundLogger) -> None:
    """Fill a folder, unless that is done. Raises `RowsFailed` if rows have no vectors.

    With the settings of before the engine is not started for a folder that is complete; with others
    it is, since only then its vector space is known.
    """
    engine = _engine(work)
    known, folder.engine = folder.engine, engine
    was_complete = folder.complete
    if was_complete and engine is not None and engine == known:
        failed = folder.failed()
    else:
        folder.check_writable()
        await (_fill_on_ray if work.ray else _fill_here)(folder, work, corpus, log)
        failed = folder.finish()
    if was_complete:
        log.info("complete", folder=str(folder.path), rows=sum(folder.rows.values()))
    if failed:
        rows = "row has" if failed == 1 else "rows have"
        raise RowsFailed(f"{failed} {rows} no vectors; see {folder.path / ERRORS}")


def _engine(work: Work) -> str | None:
    """Return a hash of what the engine is started with; a server's is not known."""
    if work.settings is None:
        return None
    settings = _of_one_model(work.settings, work.model)
    text = f"{work.model} {settings.model_dump_json(include=_DECIDING, exclude_defaults=True)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _made_of(corpus: Corpus, options: BulkOptions) -> dict[str, Any]:
    """Return what the content of parts depends on, beside the model."""
    return {
        "inputs": [source.identity() for source in corpus.sources],
        "settings": options.identity() | {"ids": corpus.columns.kind},
    }


async def _fill_on_ray(
    folder: Folder, work: Work, corpus: Corpus, log: FilteringBoundLogger
) -> None:
    """Have a cluster write all parts that are missing. Raises `StartupError`s."""
    from embedding_service.bulk.on_ray import Task, embed_parts

    if work.settings is None or corpus.is_piped:
        raise BadConfiguration("--ray: needs files that all nodes see, and engines of its own")
    if folder.complete:
        raise BadConfiguration(
            f"{folder.path} is complete, with other settings of the engine; without --ray the "
            "engine is started, and compared"
        )
    folder.claim({})
    engine = (_of_one_model(work.settings, work.model), work.model)
    task = partial(Task, corpus, work.options, engine, folder.path, folder.identity)
    await asyncio.to_thread(embed_parts, work.ray, task, folder, log)


async def _fill_here(folder: Folder, work: Work, corpus: Corpus, log: FilteringBoundLogger) -> None:
    """Write all parts that are missing. Raises `StartupError`s."""
    async with AsyncExitStack() as stack:
        embedder, example = await _embedder(work, log, stack)
        folder.claim(embedder.identity)
        if folder.complete:
            return
        layout = Layout(work.options, corpus.columns.kind, example.by_output)
        sink = Sink(folder, layout, work.options.rows_per_part)
        await embed_rows(corpus, embedder, sink, work.options.rows_per_part, log)


async def embed_rows(
    corpus: Corpus, embedder: Embedder, sink: Sink, rows_per_part: int, log: FilteringBoundLogger
) -> None:
    """Have all rows that are missing embedded and written. Raises `BadInput`, `JobStopped`."""
    progress = Progress(log, corpus.bytes)
    job = Pipeline(corpus.reader(), embedder, sink, progress, rows_per_part=rows_per_part)
    with progress.shown():
        await job.run()
    log.info("embedded", **progress.figures())


async def _embedder(
    work: Work, log: FilteringBoundLogger, stack: AsyncExitStack
) -> tuple[Embedder, Answer]:
    """Return what embeds, until the stack is closed, and its answer to a word."""
    if work.servers:
        from embedding_service.bulk.servers import ServerEmbedder, served_model

        model = work.model or await served_model(work.servers[0], work.key)
        remote = ServerEmbedder(work.servers, work.options, model, work.key, log)
        stack.push_async_callback(remote.close)
        return remote, await remote.probe()
    assert work.settings is not None  # noqa: S101 - without servers there are settings
    settings = _of_one_model(work.settings, work.model)
    service = await stack.enter_async_context(local_service(settings, log, work.start_worker))
    local = EngineEmbedder(service, work.options, work.model)
    stack.callback(local.close)
    return local, await local.probe()


def _of_one_model(settings: Settings, name: str | None) -> Settings:
    """Return the settings with the one model that is asked for. Raises `BadConfiguration`."""
    for model in settings.served_models:
        if name is None or name in model.names:
            return settings.model_copy(
                update={"models": (model.model_copy(update={"required": True}),)}
            )
    known: list[Any] = [model.model_name for model in settings.served_models]
    raise BadConfiguration(f"--model: {name!r} is none of {', '.join(known)}")
