"""A model as a worker has loaded it, and the names under which its results are kept."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING

from msgspec import structs

from embedding_service.engine.identity import identity
from embedding_service.families.weights import weights_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.settings.model import ModelOptions


class LoadedModel:
    """Facts, tokenizer and identity of a model.

    Results are kept under `identity` on this machine. Machines share them under `shared_identity`:
    for a model of the hub it is the same, since its commit names the weights. Those in a folder are
    known by sizes and times of files only, until somebody has all of them read by `weights`.
    """

    def __init__(self, options: ModelOptions, facts: ModelFacts, tokenizer_json: bytes) -> None:
        self.facts = facts
        self.tokenizer_json = tokenizer_json
        self.identity = identity(options, facts)
        self.shared_identity = self.identity if facts.folder is None else None
        self._options = options
        self._weights: asyncio.Future[str] | None = None

    def weights(self) -> asyncio.Future[str]:
        """Return what brings the digest of the weights; once it has, there is a `shared_identity`.

        They are read when this is first asked for, which takes a while.
        """
        if self._weights is None:
            self._weights = self._read_weights()
        return self._weights

    def _read_weights(self) -> asyncio.Future[str]:
        facts = self.facts
        if facts.folder is None:  # they bear the hub's name
            known: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            known.set_result(facts.weights)
            return known
        reading = _in_daemon_thread(partial(weights_digest, facts.folder, stamp=facts.weights))
        reading.add_done_callback(self._share)
        return reading

    def _share(self, reading: asyncio.Future[str]) -> None:
        named = structs.replace(self.facts, weights=reading.result())
        self.shared_identity = identity(self._options, named)


def _in_daemon_thread(work: Callable[[], str]) -> asyncio.Future[str]:
    """Run something long that nothing waits for when the process exits, unlike an executor's."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[str] = loop.create_future()

    def run() -> None:
        value = work()
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(result.set_result, value)

    threading.Thread(target=run, name="weights", daemon=True).start()
    return result
