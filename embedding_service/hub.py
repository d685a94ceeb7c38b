"""The Hugging Face hub and its cache: from the name of a model to a folder of its files.

A cached model is loaded whether or not the hub can be reached, and never waits for it long.
`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` are the library's, and obeyed.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import filter as fnmatch_filter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embedding_service.errors import ModelNotLoaded

if TYPE_CHECKING:
    from collections.abc import Iterator

# A hub that is up answers in a second or two; the library itself would try for minutes. It is worth
# more patience where there is nothing else to load.
ANSWERS_WITHIN_S = 5.0
ANSWERS_UNCACHED_WITHIN_S = 60.0
PROGRESS_EVERY_S = 2.0  # on a terminal; the log has fewer, see `telemetry.py`
# Formats that vLLM does not read, or reads only when it is told to.
_NOT_FETCHED = (
    *("onnx/*", "openvino/*", "coreml/*", "original/*", "consolidated*"),
    *("*.onnx", "*.msgpack", "*.h5", "*.ot", "*.tflite", "*.gguf"),
)
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
# Modules of sentence-transformers that are nothing without the files in their folder.
_WITH_FILES = ("Pooling", "Dense")

_OFFLINE = "HF_HUB_OFFLINE is set"
_REMEDY = "see its name, HF_TOKEN and the network, or set model_path to a folder"


class Say(Protocol):
    """Tells a person, or a log, how it goes."""

    def __call__(self, text: str, /, **facts: int) -> None:
        """Take a line, and for a download its `done_bytes` and `total_bytes`."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a model at one commit."""

    folder: Path
    commit: str
    downloaded_bytes: int = 0


@dataclass(slots=True)
class _Answer:
    """The hub's answer about a model: its files and sizes, or why there is none."""

    sizes: dict[str, int] | None = None
    error: BaseException | None = None


def is_name(model: str) -> bool:
    """Tell a name on the hub from a folder, a URL and vLLM's own forms (`name:quantisation`)."""
    elsewhere = os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true")
    return not elsewhere and bool(_NAME.fullmatch(model)) and not Path(model).is_dir()


def find(name: str, revision: str | None, *, folder: str | None = None, say: Say) -> Snapshot:
    """Return a model's files: the hub's newest, or those in the cache where it cannot be reached.

    A commit that is in the cache is taken from there at once. `folder` is the cache's, if not the
    library's own. Raises `ModelNotLoaded`.
    """
    from huggingface_hub import constants  # noqa: PLC0415 - reads the environment

    cached = _cached(name, revision, folder)
    if constants.HF_HUB_OFFLINE:
        return _complete(name, cached, _OFFLINE)
    if cached and _COMMIT.fullmatch(revision or "") and not any(_missing(cached.folder)):
        return cached
    answer = _ask(name, revision, ANSWERS_WITHIN_S if cached else ANSWERS_UNCACHED_WITHIN_S)
    if answer.sizes is not None:
        try:
            return _download(name, revision, answer.sizes, folder=folder, say=say)
        except Exception as error:  # noqa: BLE001 - any of three libraries' errors
            answer = _Answer(error=error)
    return _without_hub(name, cached, answer.error, say=say)


def _without_hub(
    name: str, cached: Snapshot | None, error: BaseException | None, *, say: Say
) -> Snapshot:
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415 - heavy

    refused = isinstance(error, HfHubHTTPError)  # gated, or unknown there, or an error of the hub's
    why = "the hub does not give it" if refused else "the hub cannot be reached"
    why = f"{why}: {_one_line(error)}"
    snapshot = _complete(name, cached, why)
    say(f"{why}; using {name} from the cache, commit {snapshot.commit}")
    _go_offline()
    return snapshot


def fetch(name: str, revision: str | None, *, say: Say) -> Snapshot:
    """Download a model. Raises `ModelNotLoaded` if the hub does not give it."""
    from huggingface_hub import constants  # noqa: PLC0415 - reads the environment

    if constants.HF_HUB_OFFLINE:
        raise ModelNotLoaded(f"{name}: {_OFFLINE}; unset it to download, or set model_path")
    answer = _ask(name, revision, ANSWERS_UNCACHED_WITHIN_S)
    if answer.sizes is None:
        raise ModelNotLoaded(f"{name}: {_one_line(answer.error)}; {_REMEDY}")
    return _download(name, revision, answer.sizes, folder=None, say=say)


def _complete(name: str, cached: Snapshot | None, why: str) -> Snapshot:
    """Return what the cache holds. Raises `ModelNotLoaded` unless that is a whole model."""
    if cached is None and why == _OFFLINE:
        raise ModelNotLoaded(
            f"{name} is not in the local cache and {why}: unset it, run `embedding-service fetch` "
            "where there is a network, or set model_path to a folder"
        )
    if cached is None:
        raise ModelNotLoaded(f"{name} is not in the local cache, and {why}; {_REMEDY}")
    if missing := next(_missing(cached.folder), None):
        raise ModelNotLoaded(
            f"{name} is in the local cache without {missing}, and {why}; "
            "`embedding-service fetch` downloads the rest"
        )
    return cached


def _cached(name: str, revision: str | None, folder: str | None) -> Snapshot | None:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - heavy

    for file in ("config.json", "modules.json"):  # old layouts have the first one in a folder
        path = try_to_load_from_cache(name, file, revision=revision, cache_dir=folder)
        if isinstance(path, str):
            return Snapshot(Path(path).parent, Path(path).parent.name)
    return None


def _missing(folder: Path) -> Iterator[str]:
    """Yield files that an interrupted download, or one for another program, has left out."""
    modules = _read(folder / "modules.json") or []
    transformer = folder / (modules[0]["path"] if modules else "")
    files = {path.name for path in transformer.glob("*") if path.is_file()}  # no dangling links
    wanted = _shards(transformer) or {name for name in files if name.endswith(_WEIGHTS)}
    if not wanted:
        yield "weights"
    yield from sorted(wanted - files)
    for module in modules:
        place = folder / module["path"] / "config.json"
        if module["type"].endswith(_WITH_FILES) and not place.is_file():
            yield f"{module['path']}/config.json"


def _shards(folder: Path) -> set[str]:
    """Return the files that the weights are spread over, if there are several."""
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if index := _read(folder / name):
            return set(index["weight_map"].values())
    return set()


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.is_file() else None


def _ask(name: str, revision: str | None, within_s: float) -> _Answer:
    """Ask the hub for a model's files, and wait so long.

    In a thread, since looking up the host's name obeys no timeout.
    """
    answer = _Answer()

    def ask() -> None:
        from huggingface_hub import HfApi  # noqa: PLC0415 - heavy

        try:
            info = HfApi().model_info(
                name, revision=revision, files_metadata=True, timeout=within_s
            )
            answer.sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits
            answer.error = error

    asking = threading.Thread(target=ask, name="hub", daemon=True)
    asking.start()
    asking.join(within_s)
    silent = answer.sizes is None and answer.error is None
    return _Answer(error=_silence(within_s)) if silent else answer


def _silence(within_s: float) -> TimeoutError:
    return TimeoutError(f"no answer within {within_s:g} s")


def _download(
    name: str, revision: str | None, sizes: dict[str, int], *, folder: str | None, say: Say
) -> Snapshot:
    """Download what the cache lacks, and tell every now and then how far that is."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - heavy

    ignored = _ignored(sizes)
    blobs = _blobs(name, folder)
    before = _bytes(blobs)
    with _telling(name, blobs, _total(sizes, ignored), say=say):
        path = snapshot_download(name, revision=revision, cache_dir=folder, ignore_patterns=ignored)
    return Snapshot(Path(path), Path(path).name, _bytes(blobs) - before)


def _ignored(sizes: dict[str, int]) -> list[str]:
    """Return patterns of the files that are left where they are."""
    if any(file.endswith(".safetensors") and "/" not in file for file in sizes):
        return [*_NOT_FETCHED, "pytorch_model*.bin"]  # the same weights once more
    return list(_NOT_FETCHED)


def _total(sizes: dict[str, int], ignored: list[str]) -> int:
    skipped = set(chain.from_iterable(fnmatch_filter(sizes, each) for each in ignored))
    return sum(size for file, size in sizes.items() if file not in skipped)


@contextmanager
def _telling(name: str, blobs: Path, total: int, *, say: Say) -> Iterator[None]:
    """Tell of a download in a thread of its own while the block runs."""
    done = threading.Event()
    threading.Thread(target=_tell, args=(name, blobs, total, done, say), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _blobs(name: str, folder: str | None) -> Path:
    from huggingface_hub import constants  # noqa: PLC0415 - reads the environment

    return Path(folder or constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "blobs")


def _tell(name: str, blobs: Path, total: int, done: threading.Event, say: Say) -> None:
    began, before = time.monotonic(), _bytes(blobs)
    while not done.wait(PROGRESS_EVERY_S):
        new = _bytes(blobs) - before
        seconds = time.monotonic() - began
        say(
            f"downloading {name}: {new / 1e6:.0f} MB in {seconds:.0f} s, "
            f"of {total / 1e6:.0f} MB that the model has",
            done_bytes=before + new,
            total_bytes=total,
        )


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # renamed meanwhile
            continue
    return total


def _go_offline() -> None:
    """Have nobody in this process, or one that it starts, wait for the hub again."""
    from huggingface_hub import constants  # noqa: PLC0415 - reads the environment

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def _one_line(error: BaseException | None) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
