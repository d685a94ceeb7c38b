"""The vectors that are taken for right: of the reference library, or of another server."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from embedding_service.errors import NoVectors
from embedding_service.types import Output
from embedding_service.verify import reference
from embedding_service.verify.sides import About, Kind, Texts, collect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from embedding_service.progress import Progress
    from embedding_service.verify.checkpoint import Checkpoint
    from embedding_service.verify.servers import Server
    from embedding_service.verify.sides import Answer, Side

    # From the tokens of a model's context to the texts.
    Choose = Callable[[int | None], list[str]]

_POOLED = 8  # texts: sentences in Latin script, for which all poolings differ


@dataclass(slots=True)
class Truth:
    """The texts, with their lengths under its prompt, and their answers by kind of request.

    `poolings` has what the first texts would be with each other pooling.
    """

    about: About
    texts: dict[Kind, Texts] = field(default_factory=dict)
    answers: dict[Kind, list[Answer]] = field(default_factory=dict)
    poolings: dict[str, list[Answer]] = field(default_factory=dict)


async def of_library(checkpoint: Checkpoint, choose: Choose, progress: Progress) -> Truth:
    """Have the model's reference library compute; kinds with one prompt are computed once.

    A model without prompts has one kind of request. Raises `BadConfiguration`, `NoVectors`.
    """
    progress.say(f"{checkpoint.name}: loading the reference library")
    async with reference.opened(checkpoint) as library:
        about = library.about
        chosen, truth = choose(about.max_tokens), Truth(about)
        by_prompt: dict[str, list[Answer]] = {}
        for kind in _kinds(about):
            prompt = about.prompts[kind]
            if prompt not in by_prompt:
                by_prompt[prompt] = await ask_all(library, chosen, kind, progress)
            sizes = await library.lengths([prompt + text for text in chosen])
            truth.texts[kind] = Texts(chosen, sizes, about.max_tokens)
            truth.answers[kind] = by_prompt[prompt]
        for mode in library.poolings:
            truth.poolings[mode] = await library.ask(chosen[:_POOLED], mode)
        return truth


def _kinds(about: About) -> list[Kind]:
    return list(Kind) if len(set(about.prompts.values())) > 1 else [Kind.PLAIN]


async def of_server(server: Server, about: About, choose: Choose, progress: Progress) -> Truth:
    """Have another server compute; `about` is the side that it is compared with.

    Only between two of this service, prompts are compared too, if there are some. Raises
    `NoVectors`.
    """
    known = [limit for limit in (about.max_tokens, server.about.max_tokens) if limit]
    chosen, truth = choose(min(known, default=None)), Truth(server.about)
    both_own = about.own and server.about.own
    prompted = {*about.prompted, *server.about.prompted} if both_own else set()
    for kind in sorted({Kind.PLAIN} | prompted, key=list(Kind).index):
        truth.texts[kind] = Texts(chosen, list(map(len, chosen)), None, "characters")
        truth.answers[kind] = await ask_all(server, chosen, kind, progress)
    return truth


async def ask_all(
    side: Side, chosen: Sequence[str], kind: Kind, progress: Progress
) -> list[Answer]:
    """Return an answer to each text. Raises `NoVectors` if none has vectors, or several sizes."""
    tell = partial(progress.count, f"{side.about.label}, {kind} texts")
    answers = await collect(partial(side.ask, kind=kind), chosen, tell)
    given = [answer for answer in answers if answer and not isinstance(answer, str)]
    if not given:
        raise NoVectors(f"{side.about.label} gave no vector: {answers[0] or 'null'}")
    sizes = {rows[Output.DENSE].shape[1] for rows in given if Output.DENSE in rows}
    if len(sizes) > 1:
        listed = ", ".join(map(str, sorted(sizes)))
        raise NoVectors(f"{side.about.label} gave vectors of different sizes: {listed}")
    return answers
