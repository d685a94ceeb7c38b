"""From the inputs of a request to the token ids that the engine reads: prompt, tokenise, fit.

Pure functions of a model's facts; slow ones go in steps, each of them meant for a worker thread
(the tokenizer releases the interpreter lock).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, TypeVar

import numpy as np
from tokenizers import Tokenizer

from embedding_service.errors import ContextLengthExceeded, InvalidRequest
from embedding_service.service import cl100k, slices
from embedding_service.service.checks import CHARACTERS_PER_TOKEN, check_total
from embedding_service.service.model_prompts import Prompts
from embedding_service.types import Field, TokenIdPolicy, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.service.slices import Steps
    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import EmbedJob, TokenIds

_MOST_BYTES_A_CHARACTER = 4  # in UTF-8
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Token ids ready for the engine.

    `ids` holds one array per chunk and `owner` the input that each chunk belongs to; unless an
    input was chunked, the two run in parallel with the inputs. `boundaries` are those of pairs, if
    the model numbers its segments, or of prompts that are not pooled; see `Batch`.
    """

    ids: list[TokenIds]
    owner: list[int]
    truncated: tuple[int, ...] = ()
    chunked: tuple[int, ...] = ()
    read_as: TokenIdPolicy | None = None
    boundaries: list[int] | None = None

    @property
    def total(self) -> int:
        """Tokens that the engine will read."""
        return sum(map(len, self.ids))

    def with_truncated(self, inputs: Sequence[int]) -> Prepared:
        """Return the same, with these inputs among those that are truncated."""
        if not inputs:
            return self
        return replace(self, truncated=tuple(sorted({*inputs, *self.truncated})))

    def by_input(
        self, values: list[_Value], join: Callable[[list[_Value]], _Value]
    ) -> list[_Value]:
        """Join the values of each input's chunks; without chunks there is nothing to join."""
        if not self.chunked:
            return values
        groups: list[list[_Value]] = [[] for _ in range(self.owner[-1] + 1)]
        for index, value in zip(self.owner, values, strict=True):
            groups[index].append(value)
        return list(map(join, groups))


class Token(TypedDict):
    """One token and the place of its characters in the text; a special token has none."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Content(NamedTuple):
    """One input without special tokens; the first `prompt` of its ids are the prompt."""

    ids: list[int]
    prompt: int = 0


class Encoder:
    """The prompts and the tokenizer of one model."""

    def __init__(self, facts: ModelFacts, tokenizer_json: bytes, options: ModelOptions) -> None:
        self.facts = facts
        self.options = options
        self.max_tokens = facts.max_tokens
        self.prompts = Prompts(facts, options)
        self.profile = self.prompts.profile
        self._prompted = re.compile(self.profile.prompted or r"(?!)")
        self._tokenizer = bare_tokenizer(tokenizer_json)
        self._slices = slices.SlicedTokenizer(self._tokenizer)
        self._head, self._tail = _special_tokens(self._tokenizer)
        self.room = self.max_tokens - len(self._head) - len(self._tail)
        if options.token_ids is TokenIdPolicy.CL100K:
            cl100k.load()  # now, where nobody waits

    def completed(self, job: EmbedJob) -> EmbedJob:
        """Return the job with what the family's recipe and the model's tokenizer ask for."""
        if job.truncate is Truncate.MODEL and not self.facts.cuts_left:
            job = replace(job, truncate=Truncate.RIGHT)
        wanted = self.profile.layer_norm_before_cut and job.dimensions is not None
        return replace(job, layer_norm=True) if wanted else job

    def prepare(self, job: EmbedJob, prefix: str, *, max_total: int) -> Prepared:
        """Take all `steps` at once."""
        return slices.finish(self.steps(job, prefix, max_total=max_total))

    def steps(self, job: EmbedJob, prefix: str, *, max_total: int) -> Steps[Prepared]:
        """Tokenise, and fit every input into the model's context as `job.truncate` says.

        Raises `InvalidRequest` (`param` names the input) and `ContextLengthExceeded`; stops as soon
        as the request holds more than `max_total` tokens.
        """
        inputs: Sequence[Any] = job.inputs
        read_as = None if isinstance(inputs[0], str) else self.options.token_ids
        if read_as is TokenIdPolicy.REJECT:
            raise InvalidRequest(
                "this model takes text, not token ids; send strings", param=job.field
            )
        if read_as is TokenIdPolicy.NATIVE:
            contents = self._own_ids(inputs, prefix, job.field)
        else:
            if read_as is TokenIdPolicy.CL100K:
                inputs = yield from _decoded(inputs, job.field, max_total)
            contents = yield from self._encode(inputs, prefix, job, max_total=max_total)
        shortened = self._shorten(contents, job)
        # Before the prompt is copied for each chunk: a long one may be in thousands of them.
        check_total(self._total(contents, job.truncate), max_total, param=job.field)
        prepared = yield from self._fit(contents, job, read_as)
        return prepared.with_truncated(shortened)

    def _shorten(self, contents: list[Content], job: EmbedJob) -> list[int]:
        """Cut inputs to `job.max_tokens`, special ones included, and return which were longer."""
        if job.max_tokens is None:
            return []
        room = job.max_tokens - (self.max_tokens - self.room)
        if not 0 < room <= self.room:
            least = self.max_tokens - self.room + 1
            raise InvalidRequest(
                f"truncate_prompt_tokens must be -1 or between {least} and {self.max_tokens}",
                param="truncate_prompt_tokens",
            )
        long = [i for i, content in enumerate(contents) if len(content.ids) > room]
        for index in long:
            ids = _cut(contents[index], room, job.truncate)
            contents[index] = Content(ids, min(contents[index].prompt, room))
        return long

    def _own_ids(self, inputs: Sequence[list[int]], prefix: str, field: Field) -> list[Content]:
        if prefix:
            text = "a prompt cannot be put before native token ids; send text"
            raise InvalidRequest(text, param=field)
        self._check_vocabulary(inputs, field)
        return list(map(Content, map(self._without_special, inputs)))

    def _check_vocabulary(self, inputs: Sequence[list[int]], field: Field) -> None:
        """Raise `InvalidRequest` for token ids that the model does not have."""
        largest = self.facts.vocab_size - 1
        for index, ids in enumerate(inputs):
            if max(ids) > largest or min(ids) < 0:
                where = f"{field}[{index}]"
                text = f"{where} holds a token id outside 0 to {largest}; send its own, or text"
                raise InvalidRequest(text, param=where)

    def _without_special(self, ids: list[int]) -> list[int]:
        """Take off the special tokens, which `_fit` adds."""
        head, tail = self._head, self._tail
        if head and ids[: len(head)] == head:
            ids = ids[len(head) :]
        if tail and ids[-len(tail) :] == tail:
            ids = ids[: -len(tail)]
        return ids

    def _encode(
        self, texts: Sequence[str], prefix: str, job: EmbedJob, *, max_total: int
    ) -> Steps[list[Content]]:
        """Tokenise without special tokens, and no more of a text than its treatment asks for."""
        whole = job.truncate is Truncate.ERROR and self.facts.pools_prompts
        prompt = 0 if whole else self._prompt_tokens(prefix)
        fits = job.truncate in (Truncate.ERROR, Truncate.RIGHT)
        limits = slices.Limits(
            max_total,
            job.field,
            most=self.room if fits else None,
            cut=job.truncate in (Truncate.LEFT, Truncate.RIGHT, Truncate.MODEL),
        )
        prompted = (self.prompted(text, prefix) for text in texts) if prefix else texts
        read = yield from self._slices.read(prompted, slices.Count(limits))
        if not prompt:
            return list(map(Content, read))
        return [
            Content(ids, 0 if self._has_another(text, prefix) else prompt)
            for text, ids in zip(texts, read, strict=False)
        ]

    def _prompt_tokens(self, prefix: str) -> int:
        return len(self._tokenizer.encode(prefix, add_special_tokens=False).ids) if prefix else 0

    def prompted(self, text: str, prefix: str) -> str:
        """Put the prompt before a text that has none."""
        has_one = text.startswith(prefix) or self._has_another(text, prefix)
        return text if has_one else prefix + text

    def _has_another(self, text: str, prefix: str) -> bool:
        """Tell whether a text came with a prompt of its own."""
        return not text.startswith(prefix) and self._prompted.match(text) is not None

    def _fit(
        self, contents: list[Content], job: EmbedJob, read_as: TokenIdPolicy | None
    ) -> Steps[Prepared]:
        """Cut or chunk the inputs that are too long, and add the special tokens."""
        arrays: list[TokenIds] = []
        owner: list[int] = []
        pace, head, tail = slices.Pace(), self._head, self._tail
        long = [i for i, content in enumerate(contents) if len(content.ids) > self.room]
        for index, content in enumerate(contents):
            fits = 0 < len(content.ids) <= self.room
            for chunk in [content.ids] if fits else self._chunks(content, index, job):
                arrays.append(np.array([*head, *chunk, *tail], np.int32))
                owner.append(index)
                if pace.rests(len(chunk)):
                    yield False
        chunks = job.truncate is Truncate.CHUNK_MEAN
        return Prepared(
            arrays,
            owner,
            truncated=() if chunks else tuple(long),
            chunked=tuple(long) if chunks else (),
            read_as=read_as,
            boundaries=self._boundaries(contents, owner),
        )

    def _total(self, contents: list[Content], truncate: Truncate) -> int:
        """Return how many tokens the engine will read, special ones included."""
        lengths = [len(content.ids) for content in contents]
        if max(lengths) <= self.room:
            return sum(lengths) + (self.max_tokens - self.room) * len(lengths)
        return sum(self._fitted_tokens(content, truncate) for content in contents)

    def _fitted_tokens(self, content: Content, truncate: Truncate) -> int:
        """Return how many tokens the engine will read of an input, special ones included."""
        special = self.max_tokens - self.room
        size, length = self.room - content.prompt, len(content.ids)
        if length <= self.room or truncate is not Truncate.CHUNK_MEAN or size < 1:
            return min(length, self.room) + special
        chunks = math.ceil((length - content.prompt) / size)
        return chunks * (content.prompt + special) + length - content.prompt

    def _boundaries(self, contents: list[Content], owner: list[int]) -> list[int] | None:
        """Return how many tokens the model's pooling leaves out of each chunk, if it leaves any.

        sentence-transformers counts those of the prompt as a text of its own, and takes off one
        special token at its end (`Transformer._get_prompt_length`).
        """
        if self.facts.pools_prompts:
            return None
        around = len(self._head) + max(0, len(self._tail) - 1)
        prompts = [contents[index].prompt for index in owner]
        return [around + prompt if prompt else 0 for prompt in prompts]

    def _chunks(self, content: Content, index: int, job: EmbedJob) -> Iterator[list[int]]:
        """Yield the parts of an input that is too long, or the whole of one without tokens."""
        (ids, prompt), where = content, f"{job.field}[{index}]"
        if not ids:
            if not (self._head or self._tail):
                raise InvalidRequest(f"{where} has no tokens; send a text", param=where)
            yield ids
            return
        self._check_can_be_cut(content, where, job.truncate)
        if job.truncate is not Truncate.CHUNK_MEAN:
            yield _cut(content, self.room, job.truncate)
            return
        size = self.room - prompt  # every chunk begins with the prompt, as a text of its own would
        for start in range(prompt, len(ids), size):
            yield ids[:prompt] + ids[start : start + size]

    def _check_can_be_cut(self, content: Content, where: str, truncate: Truncate) -> None:
        limit = f"maximum context length {{}} {self.max_tokens} tokens"
        if truncate is Truncate.ERROR:
            requested = str(len(content.ids) + self.max_tokens - self.room)
            if isinstance(content.ids, slices.Beginning):
                requested = f"more than {self.max_tokens}"
            raise ContextLengthExceeded(
                f"This model's {limit.format('is')}, however you requested {requested} "
                f"tokens in {where}. Shorten it, or set {Field.TRUNCATE}.",
                param=where,
            )
        if content.prompt >= self.room:
            raise ContextLengthExceeded(
                f"the prompt alone has {content.prompt} tokens, which leaves no room for {where} "
                f"in this model's {limit.format('of')}; shorten the instruction",
                param="instruction",
            )

    def tokenize(
        self,
        texts: Iterable[str],
        write: Callable[[Iterable[Token]], bytes],
        *,
        add_special_tokens: bool,
        max_total: int,
    ) -> Steps[list[bytes]]:
        """Return the tokens of each text, uncut and written; tokens take four times as much memory.

        Raises `InvalidRequest` beyond `max_total`.
        """
        count = slices.Count(slices.Limits(max_total, Field.INPUT))
        texts = list(texts)
        if sum(map(len, texts)) > slices.SLICE_CHARACTERS:
            # Too many are refused before any is listed, which takes as long as to read them.
            yield from self._slices.read(texts, count)
        found: list[bytes] = []
        total = 0
        for portion in slices.portions(texts, slices.SLICE_CHARACTERS):
            yield len(portion[0]) > slices.SLICE_CHARACTERS
            encodings = self._tokenizer.encode_batch(portion, add_special_tokens=add_special_tokens)
            total += sum(map(len, encodings))
            check_total(total, max_total, param=Field.INPUT)
            pairs = zip(portion, encodings, strict=True)
            found += [write(_tokens(text, encoding)) for text, encoding in pairs]
        return found

    def decode(self, inputs: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """Return the text of each list of the model's own token ids. Raises `InvalidRequest`."""
        self._check_vocabulary(inputs, Field.INPUT)
        return list(self._tokenizer.decode_batch(inputs, skip_special_tokens=skip_special_tokens))


def _cut(content: Content, room: int, truncate: Truncate) -> list[int]:
    """Return so many ids of an input that has more."""
    ids, prompt = content
    if truncate is Truncate.MODEL:
        return ids[len(ids) - room :]
    if truncate is Truncate.LEFT and prompt < room:
        return ids[:prompt] + ids[len(ids) - room + prompt :]
    return ids[:room]


def _decoded(inputs: Sequence[list[int]], field: Field, max_total: int) -> Steps[list[str]]:
    """Return the texts of token ids. Raises `InvalidRequest` for more than anybody could mean."""
    texts: list[str] = []
    characters, pace = 0, slices.Pace()
    for index, ids in enumerate(inputs):
        size = cl100k.size_bytes(ids)
        fewest = characters + size // _MOST_BYTES_A_CHARACTER
        check_total(fewest // CHARACTERS_PER_TOKEN, max_total, param=field)
        texts.append(cl100k.decode(ids, f"{field}[{index}]"))
        characters += len(texts[-1])
        if pace.rests(len(ids)):
            yield False
    check_total(characters // CHARACTERS_PER_TOKEN, max_total, param=field)
    return texts


def bare_tokenizer(tokenizer_json: bytes) -> Tokenizer:
    """Return a tokenizer that neither cuts nor pads: both is done here."""
    tokenizer: Tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []  # pragma: no cover - a post-processor that rewrites the text itself


def _tokens(text: str, encoding: Any) -> Iterator[Token]:
    columns = (encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets)
    for token_id, token, special, (start, stop) in zip(*columns, strict=True):
        if special:
            yield {"id": token_id, "text": token, "special": True, "start": None, "stop": None}
        else:
            part = text[start:stop]
            yield {"id": token_id, "text": part, "special": False, "start": start, "stop": stop}
