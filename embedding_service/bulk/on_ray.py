"""The same job on a Ray cluster: one actor for each device, or for each node without one.

Ray Data hands out the numbers of the parts that are missing, and hands a part out again when its
node dies. An actor has an engine of its own, reads the rows of a part from the shared files, and
writes it into the shared folder as a single process does.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import orjson

from embedding_service import errors, telemetry
from embedding_service.bulk.embedder import EngineEmbedder
from embedding_service.bulk.folder import Part, replace
from embedding_service.bulk.manifest import SPACE, differences, known_space
from embedding_service.bulk.outputs import Layout, part_name
from embedding_service.bulk.pipeline import Pipeline, Sink
from embedding_service.bulk.progress import Progress
from embedding_service.bulk.rows import Corpus
from embedding_service.errors import BadConfiguration, JobStopped, StartupError
from embedding_service.local import local_service

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from embedding_service.bulk.folder import Folder
    from embedding_service.bulk.options import BulkOptions
    from embedding_service.settings.gateway import Settings


@dataclass(slots=True)
class Task:
    """All that an actor is told; `engine` has its settings, and the name of the model.

    The rows of all inputs are counted, which takes a while.
    """

    corpus: Corpus
    options: BulkOptions
    engine: tuple[Settings, str | None]
    out: Path
    made_of: dict[str, Any]
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = list(_count(self.corpus))

    @property
    def parts(self) -> range:
        """The numbers of all parts."""
        return range(-(-sum(self.counts) // self.options.rows_per_part))

    def name(self, part: int) -> str:
        """Return the name of a part's file."""
        return part_name(part, self.options.format)


def embed_parts(
    address: str | None, make_task: Callable[[], Task], folder: Folder, log: FilteringBoundLogger
) -> None:
    """Have all missing parts made by a cluster. Raises `StartupError`s."""
    ray = _ray(address)
    task = make_task()
    resources = _resources(ray.nodes(), task.engine[0])
    missing = [part for part in task.parts if not folder.is_done(task.name(part))]
    log.info("on_ray", parts=len(task.parts), missing=len(missing), **resources)
    progress = Progress(log, None)
    with progress.shown():
        for row in _results(ray, missing, task, resources):
            folder.note(task.name(row["part"]), row["rows"])
            progress.add(row["rows"] + row["failed"], row["tokens"], row["failed"], 0)
    log.info("embedded", **progress.figures())
    folder.claim(known_space(folder.path))
    (folder.path / SPACE).unlink(missing_ok=True)


def _ray(address: str | None) -> Any:
    """Return Ray, connected. Raises `BadConfiguration` where it is not installed."""
    try:
        importlib.import_module("ray.data")
        ray = importlib.import_module("ray")
    except ImportError as error:
        reason = f"--ray: {error}; pip install -r requirements-ray.txt"
        raise BadConfiguration(reason) from None
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # plans, between our lines
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    return ray


def _results(
    ray: Any, missing: list[int], task: Task, resources: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """Yield what actors say of each part. Raises `JobStopped` with the cause of a failure."""
    if not missing:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    actors = int(resources.pop("actors"))
    numbers = ray.data.from_items([{"part": part} for part in missing])
    done = numbers.repartition(len(missing)).map_batches(
        PartEmbedder,
        fn_constructor_args=(task,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(missing))),
        **resources,
    )
    try:
        for row in done.iter_rows():
            if row["stopped"]:
                raise getattr(errors, row["stopped"])(row["reason"])
            yield row
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1][:300]
        raise JobStopped(f"Ray: {last}; the same command goes on where this one ends") from None


def _resources(nodes: list[dict[str, Any]], settings: Settings) -> dict[str, float]:
    """Return how many actors there are, and what each takes of its node.

    Actors that take every CPU leave none for the tasks that feed them, and all stand still. Raises
    `BadConfiguration`.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    model = settings.served_models[0]
    devices = model.replicas * model.tensor_parallel_size
    gpus = sum(int(node.get("GPU", 0)) // devices for node in alive)
    if gpus:
        return {"actors": gpus, "num_gpus": devices, "num_cpus": 1}
    least = min(int(node.get("CPU", 0)) for node in alive)
    if least < 2:  # noqa: PLR2004 - one for the actor
        raise BadConfiguration(
            f"--ray: each node needs two logical CPUs, one of them for reading; a node has {least}"
        )
    return {"actors": len(alive), "num_cpus": least - 1}


def _count(corpus: Corpus) -> Iterator[int]:
    """Yield the number of rows of each source."""
    for source in corpus.sources:
        one = Corpus([source], corpus.columns, corpus.bad_lines)
        yield one.reader().skip(1 << 62)


class PartEmbedder:
    """An actor: an engine, and an event loop in a thread that watches it between parts."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._place = SharedFolder(task.out)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._stack = AsyncExitStack()
        self._loaded: tuple[EngineEmbedder, Layout] | None = None

    async def _load(self, settings: Settings, name: str | None) -> EngineEmbedder:
        service = await self._stack.enter_async_context(
            local_service(settings, telemetry.get_logger())
        )
        return EngineEmbedder(service, self._task.options, name)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Make the parts of these numbers."""
        made = [self._try(int(part)) for part in batch["part"]]
        return {name: list(map(itemgetter(name), made)) for name in made[0]}

    def _try(self, part: int) -> dict[str, Any]:
        """Make a part. An error that stops the job is a result: Ray passes on no error's class."""
        made = {"part": part, "rows": 0, "failed": 0, "tokens": 0, "stopped": "", "reason": ""}
        try:
            self._loaded = self._loaded or self._start()
            made |= self._run(self._make(part, *self._loaded))
        except StartupError as error:
            made |= {"stopped": type(error).__name__, "reason": str(error)}
        return made

    def _start(self) -> tuple[EngineEmbedder, Layout]:
        """Load the model, which has to be that of the others; return it and the shape of rows."""
        task = self._task
        embedder: EngineEmbedder = self._run(self._load(*task.engine))
        self._place.agree(embedder.identity, task.made_of)
        example = self._run(embedder.probe())
        return embedder, Layout(task.options, task.corpus.columns.kind, example.by_output)

    async def _make(self, part: int, embedder: EngineEmbedder, layout: Layout) -> dict[str, int]:
        task, rows = self._task, self._task.options.rows_per_part
        reader = task.corpus.reader_from(part * rows, task.counts, most=rows)
        progress = Progress(telemetry.get_logger(), None)
        sink = Sink(self._place, layout, rows, first=part)
        job = Pipeline(reader, embedder, sink, progress, rows_per_part=rows)
        await job.run()
        good = progress.rows - progress.failed
        return {"rows": good, "failed": progress.failed, "tokens": progress.tokens}


class SharedFolder:
    """The folder as an actor has it: whoever handed out the parts knows which are done."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_done(self, name: str) -> bool:  # noqa: ARG002 - it was asked for
        """Have the part made."""
        return False

    def commit(self, part: Part) -> None:
        """Make a part one that is done. Raises `OSError`."""
        part.commit()

    def check_end(self, rows: int, rows_per_part: int) -> None:
        """Leave it to those who have seen all inputs."""

    def agree(self, identity: dict[str, Any], made_of: dict[str, Any]) -> None:
        """Make sure that all engines are of one space. Raises `BadConfiguration`."""
        path = self.path / SPACE
        if not path.exists():
            own = path.with_name(f".space.{os.getpid()}.tmp")
            replace(own, [orjson.dumps(identity)])
            try:
                os.link(own, path)
            except FileExistsError:
                pass
            finally:
                own.unlink()
        for known in (known_space(self.path), made_of):
            if wrong := list(differences(known, identity)):
                raise BadConfiguration(f"{self.path} is of another model: {'; '.join(wrong)}")
