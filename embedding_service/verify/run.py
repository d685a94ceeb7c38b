"""The story of a verification: the true vectors first, then those under test, then the numbers."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np

from embedding_service.client import Client
from embedding_service.errors import BadConfiguration, ModelNotLoaded, NoVectors
from embedding_service.local import local_service
from embedding_service.types import Output
from embedding_service.verify import causes, checkpoint, compare, servers, truth
from embedding_service.verify import texts as built_in_texts
from embedding_service.verify.causes import Finding
from embedding_service.verify.result import ModelResult, part_of
from embedding_service.verify.service_side import ServiceSide, alone_settings
from embedding_service.verify.sides import About, Kind, collect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from embedding_service.progress import Progress
    from embedding_service.settings.gateway import Settings
    from embedding_service.settings.model import ModelOptions
    from embedding_service.verify.compare import Comparison
    from embedding_service.verify.sides import Answer, Side, Texts
    from embedding_service.verify.truth import Truth

_ALONE_EVERY: Final = 8  # of the texts, one is also sent by itself
_CONTEXT_UNKNOWN: Final = 512


@dataclass(frozen=True, slots=True)
class Options:
    """The command line apart from the settings of the service.

    `model` chooses among several; `reference` is a folder or a name on the hub to read in place
    of the model's own files.
    """

    server: str | None = None
    against: str | None = None
    model: str | None = None
    against_model: str | None = None
    reference: str | None = None
    server_key: str | None = None
    against_key: str | None = None
    texts: Path | None = None
    longest_tokens: int = 8192
    threshold: float | None = None


class Verification:
    """One run of the command."""

    def __init__(
        self, options: Options, settings: Settings, log: FilteringBoundLogger, progress: Progress
    ) -> None:
        self._options = options
        self._settings = settings
        self._log = log
        self._progress = progress

    async def run(self) -> list[ModelResult]:
        """Return what was found about each model. Raises `StartupError`."""
        with np.errstate(all="ignore"):  # numbers that are not finite are findings
            if self._options.server is not None:
                return [await self._server(self._options.server)]
            return await self._service()

    async def _server(self, url: str) -> ModelResult:
        options = self._options
        async with aclosing(self._client(url, options.server_key)) as http:
            server = await servers.connect(http, options.model)
            name = server.model
            configured = (each for each in self._settings.served_models if name in each.names)
            true = await self._truth(name, server.about, next(configured, None))
            server.prompts = true.about.prompts
            result = await compare_side(name, server, true, options, self._progress)
            if server.from_cache:
                result.notes.append(
                    f"{server.from_cache} answers came from the server's cache: whether these "
                    "texts are the same alone and in a batch is not known"
                )
            return result

    async def _service(self) -> list[ModelResult]:
        """Compare the configured models; all references end before any engine starts."""
        chosen = self._chosen()
        truths: dict[str, Truth] = {}
        for model in chosen:
            about = About(model.model_name, max_tokens=model.max_model_len, own=True)
            truths[model.model_name] = await self._truth(model.model_name, about, model)
        self._progress.say("starting the service")
        results = []
        async with local_service(alone_settings(self._settings, chosen), self._log) as service:
            for served in service.models:
                if served.facts is None:
                    raise ModelNotLoaded(f"{served.name} could not be loaded; the log says why")
                side, true = ServiceSide(service, served), truths[served.name]
                results.append(
                    await compare_side(served.name, side, true, self._options, self._progress)
                )
        return results

    def _chosen(self) -> list[ModelOptions]:
        """Return the models to compare; those that score pairs are named and left out."""
        wanted, found = self._options.model, []
        for model in self._settings.served_models:
            if wanted is not None and wanted not in model.names:
                continue
            if self._scores(model):
                self._progress.say(checkpoint.SCORES.format(model.model_name))
            else:
                found.append(model)
        if not found:
            which = f" called {wanted}" if wanted else ""
            raise BadConfiguration(f"there is no model{which} with vectors to compare")
        return found

    def _scores(self, model: ModelOptions) -> bool:
        if model.engine == "fake" or model.task == "rerank":
            return model.task == "rerank"
        return checkpoint.of_model(model, self._progress.say).library is None

    async def _truth(self, name: str, about: About, model: ModelOptions | None) -> Truth:
        """Have the texts computed by the other server, or by the reference library."""
        options = self._options
        if options.against is not None:
            client = self._client(options.against, options.against_key)
            async with aclosing(client) as http:
                other = await servers.connect(http, options.against_model or name)
                return await truth.of_server(other, about, self._texts, self._progress)
        found = checkpoint.with_prompts(self._checkpoint(name, model))
        limits = [limit for limit in (found.max_tokens, about.max_tokens) if limit]
        found = replace(found, max_tokens=min(limits, default=None))
        return await truth.of_library(found, self._texts, self._progress)

    def _client(self, url: str, key: str | None) -> Client:
        return Client([url], key, patience_s=servers.PATIENCE_S, say=self._progress.say)

    def _checkpoint(self, name: str, model: ModelOptions | None) -> checkpoint.Checkpoint:
        """Return what the reference reads. Raises `BadConfiguration`, `ModelNotLoaded`."""
        own, say = self._options.reference, self._progress.say
        if own is not None:
            return checkpoint.of_name(own, say)
        if model is not None:
            if model.engine != "fake":
                return checkpoint.of_model(model, say)
            raise BadConfiguration(f"{name} is made up (engine: fake): compare it with --against")
        try:
            return checkpoint.of_name(name, say)
        except ModelNotLoaded:
            raise BadConfiguration(
                f"the files of {name} are neither in the cache nor to be had from the hub; "
                "name their folder, or their name on the hub, with --reference"
            ) from None

    def _texts(self, context: int | None) -> list[str]:
        if self._options.texts is not None:
            return built_in_texts.read(self._options.texts)
        return built_in_texts.built_in(
            min(context or _CONTEXT_UNKNOWN, self._options.longest_tokens)
        )


async def compare_side(
    name: str, side: Side, true: Truth, options: Options, progress: Progress
) -> ModelResult:
    """Ask a side for all texts in batches and for some by themselves, and compare.

    Raises `NoVectors`.
    """
    result = _empty_result(name, side.about, true, options)
    low: dict[str, float] = {}
    for kind in _kinds(side.about, true):
        texts = true.texts[kind]
        found = await truth.ask_all(side, texts.texts, kind, progress)
        alone = await _alone(side, texts.texts, progress) if kind is Kind.PLAIN else {}
        seen = _compared(texts, true.answers[kind], found, alone, result)
        low[kind] = max(_note_findings(result, kind, *each) for each in seen.items())
        if low[kind] and kind is Kind.PLAIN:
            named = causes.of_poolings(texts, found, true.poolings, result.threshold)
            result.findings[:0] = named
    result.findings = causes.narrowed([*causes.of_prompts(low), *result.findings])
    return result


async def _alone(side: Side, chosen: Sequence[str], progress: Progress) -> dict[int, Answer]:
    """Return the answers to every eighth text, sent by itself."""
    answers: dict[int, Answer] = {}
    indices = range(0, len(chosen), _ALONE_EVERY)
    for place, index in enumerate(indices):
        ask = partial(side.ask, kind=Kind.PLAIN)
        found = await collect(ask, [chosen[index]], lambda *_: None)
        answers[index] = found[0]
        progress.count(f"{side.about.label}, alone", place + 1, len(indices))
    return answers


def _kinds(about: About, true: Truth) -> list[Kind]:
    """Return the kinds of requests to compare.

    Before texts for another server, we put the prompts: two equal ones would be the same request.
    """
    if about.own:
        return list(true.answers)
    by_prompt = {true.about.prompts.get(kind, ""): kind for kind in reversed(true.answers)}
    return [kind for kind in true.answers if kind in by_prompt.values()]


def _empty_result(name: str, about: About, true: Truth, options: Options) -> ModelResult:
    usual = min(map(compare.threshold, (about.dtype, true.about.dtype)))
    texts = true.texts[Kind.PLAIN]
    context = about.max_tokens or texts.context
    return ModelResult(
        name=name,
        subject=about.label,
        reference=true.about.label,
        dtype=about.dtype,
        threshold=usual if options.threshold is None else options.threshold,
        context=context,
        unit=texts.unit,
        notes=list(_notes(context, texts.context, options)),
    )


def _notes(context: int | None, theirs: int | None, options: Options) -> Iterator[str]:
    """Say what the comparison could not show."""
    if theirs and context != theirs:
        yield f"the reference reads {theirs} tokens, not {context}"
    longest = options.longest_tokens
    if options.texts is None and (context or 0) > longest:
        yield f"texts end at about {longest} of {context} tokens, so no cut was compared"


def _compared(
    texts: Texts,
    true: list[Answer],
    found: list[Answer],
    alone: dict[int, Answer],
    result: ModelResult,
) -> dict[Output, Comparison]:
    """Compare all kinds of vectors that both sides give. Raises `NoVectors` if there are none."""
    outputs = [each for each in Output if each in _outputs_in(true) & _outputs_in(found)]
    if not outputs:
        raise NoVectors(f"{result.subject} and {result.reference} give no kind of vector alike")
    seen = {each: compare.compare(texts, true, found, each, result.threshold) for each in outputs}
    for output, comparison in seen.items():
        compare.compare_alone(comparison, true, found, alone, output)
    return seen


def _outputs_in(answers: list[Answer]) -> set[Output]:
    return set(chain.from_iterable(each for each in answers if not isinstance(each, str)))


def _note_findings(result: ModelResult, kind: Kind, output: Output, seen: Comparison) -> float:
    """Add what one comparison shows; return the share of texts that are wrong."""
    result.notes += _note_of_skipped(
        seen, f"{result.reference} has no sound {kind} {output} vector"
    )
    if long := causes.too_long(seen):
        said = f"{len(long)} refused as too long: {seen.refused[long[0]]}"
        result.notes.append(f"{kind} texts: {said}")
    known = {each.text.partition(": ")[2] for each in result.findings}
    new = (each for each in causes.find(seen) if each.text not in known)
    where = f"{kind} texts, {output}"
    result.findings += [Finding(each.name, f"{where}: {each.text}") for each in new]
    result.parts.append(part_of(seen, kind, output))
    return float(seen.low.sum()) / max(1, len(seen.compared))


def _note_of_skipped(seen: Comparison, why: str) -> list[str]:
    """Name the texts about which nothing can be said. Raises `NoVectors` if they are many."""
    skipped = seen.of_state(compare.State.SKIPPED)
    text = f"{why} for {causes.named(skipped)}"
    if len(skipped) > causes.FEW * len(seen.states):
        raise NoVectors(f"{text}: too few are left to compare")
    return [text] if skipped else []
