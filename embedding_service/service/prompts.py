"""From the inputs of a request to the token ids that the engine reads: prompt, tokenise, fit.

Pure functions of a model's facts; slow ones are meant for a worker thread (the tokenizer
releases the interpreter lock).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from tokenizers import Tokenizer

from embedding_service.errors import ContextLengthExceeded, InvalidRequest
from embedding_service.families import profiles
from embedding_service.service import cl100k
from embedding_service.service.checks import check_total
from embedding_service.types import Field, InputType, TokenIdPolicy, Truncate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.settings.model import AliasSettings, ModelOptions
    from embedding_service.types import EmbedJob, TokenIds

# Texts tokenised in one call: enough for the tokenizer's own threads, small enough that a cancelled
# request stops soon.
ENCODE_TEXTS = 256
# A prompt is put before every input, so up to ENCODE_TEXTS copies of it are in memory at a time.
MAX_PROMPT_CHARACTERS = 16_384
_Value = TypeVar("_Value")
_PROMPT_NAMES = {InputType.QUERY: ("query",), InputType.DOCUMENT: ("document", "passage")}


@dataclass(frozen=True, slots=True)
class Prepared:
    """Token ids ready for the engine.

    `ids` holds one array per chunk and `owner` the input that each chunk belongs to; unless an
    input was chunked, the two run in parallel with the inputs. `boundaries` are those of pairs, if
    the model numbers its segments; see `Batch`.
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


class Token(NamedTuple):
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
        self.profile = profile = profiles.find(
            model_name=options.model_name, architecture=facts.architecture
        )
        self.template = options.instruction_template or profile.instruction_template
        self.default_instruction = options.default_instruction or profile.default_instruction
        self._prompted = re.compile(profile.prompted or r"(?!)")
        self._tokenizer = bare_tokenizer(tokenizer_json)
        self._head, self._tail = _special_tokens(self._tokenizer)
        self.room = self.max_tokens - len(self._head) - len(self._tail)
        if options.token_ids is TokenIdPolicy.CL100K:
            cl100k.load()  # now, where nobody waits

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """Names that `prompt_name` may take."""
        return tuple(self.facts.prompts)

    def prefix(self, job: EmbedJob, alias: AliasSettings | None) -> str:
        """Return the text to put before every input of `job`.

        The request's own `instruction` wins, then its `prompt_name`, then its `input_type`, then
        those of the alias, in the same order, then the model's own default prompt.
        """
        for source in (job, alias):
            if source is None:
                continue
            if source.instruction is not None:
                return self._instructed(source.instruction)
            if source.prompt_name is not None:
                return self._named(source.prompt_name)
            if source.input_type is not None:
                return self._typed(source.input_type)
        default = self.facts.default_prompt_name
        return self.facts.prompts.get(default, "") if default else ""

    def _instructed(self, instruction: str) -> str:
        if self.template is None:
            raise InvalidRequest(
                f"{self.options.model_name} was not trained with instructions; leave instruction "
                "out (or set instruction_template in the server's configuration)",
                param="instruction",
            )
        return self.template.replace("{instruction}", instruction) if instruction else ""

    def _named(self, name: str) -> str:
        prompts = self.facts.prompts
        if name not in prompts:
            known = ", ".join(sorted(prompts)) or "none"
            raise InvalidRequest(
                f"prompt_name is not one of this model's prompts: {known}", param="prompt_name"
            )
        return prompts[name]

    def _typed(self, input_type: InputType) -> str:
        if input_type is InputType.QUERY and self.template and self.default_instruction:
            return self._instructed(self.default_instruction)
        own = self.profile.query if input_type is InputType.QUERY else self.profile.document
        if own is not None:
            return own
        prompts = self.facts.prompts
        return next((prompts[name] for name in _PROMPT_NAMES[input_type] if name in prompts), "")

    def prepare(self, job: EmbedJob, prefix: str, *, max_total: int) -> Prepared:
        """Tokenise, and fit every input into the model's context as `job.truncate` says.

        Raises `InvalidRequest` (`param` names the input) and `ContextLengthExceeded`; stops as soon
        as the request holds more than `max_total` tokens.
        """
        if len(prefix) > MAX_PROMPT_CHARACTERS:
            raise InvalidRequest(
                f"the prompt has more than {MAX_PROMPT_CHARACTERS} characters", param="instruction"
            )
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
                inputs = _decoded(inputs, job.field)
            contents = self._encode(inputs, prefix, job, max_total=max_total)
        shortened = self._shorten(contents, job)
        prepared = self._fit(contents, job, read_as)
        if shortened:
            truncated = tuple(sorted({*shortened, *prepared.truncated}))
            prepared = replace(prepared, truncated=truncated)
        check_total(prepared.total, max_total, param=job.field)
        return prepared

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
            ids, prompt = contents[index]
            if job.truncate is Truncate.LEFT and prompt < room:
                ids = ids[:prompt] + ids[len(ids) - room + prompt :]
            contents[index] = Content(ids[:room], min(prompt, room))
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
                text = f"{where} holds a token id outside 0 to {largest}"
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
    ) -> list[Content]:
        """Tokenise without special tokens, a portion at a time.

        Inputs that are not cut count whole, so that a request with too many tokens ends early.
        """
        counts_whole = job.truncate in (Truncate.ERROR, Truncate.CHUNK_MEAN)
        prompt = 0 if job.truncate is Truncate.ERROR else self._prompt_tokens(prefix)
        contents: list[Content] = []
        total = 0
        for start in range(0, len(texts), ENCODE_TEXTS):
            portion = [self._prompt(text, prefix) for text in texts[start : start + ENCODE_TEXTS]]
            encodings = self._tokenizer.encode_batch_fast(portion, add_special_tokens=False)
            for text, encoding in zip(portion, encodings, strict=True):
                contents.append(Content(encoding.ids, prompt if text.startswith(prefix) else 0))
                total += len(encoding.ids)
            if counts_whole:
                check_total(total, max_total, param=job.field)
        return contents

    def _prompt_tokens(self, prefix: str) -> int:
        return len(self._tokenizer.encode(prefix, add_special_tokens=False).ids) if prefix else 0

    def _prompt(self, text: str, prefix: str) -> str:
        """Put the prompt before a text that has none."""
        if not prefix or text.startswith(prefix) or self._prompted.match(text):
            return text
        return prefix + text

    def _fit(
        self, contents: list[Content], job: EmbedJob, read_as: TokenIdPolicy | None
    ) -> Prepared:
        """Cut or chunk the inputs that are too long, and add the special tokens."""
        arrays: list[TokenIds] = []
        owner: list[int] = []
        long = [i for i, content in enumerate(contents) if len(content.ids) > self.room]
        for index, content in enumerate(contents):
            for chunk in self._chunks(content, f"{job.field}[{index}]", job.truncate):
                arrays.append(np.array([*self._head, *chunk, *self._tail], np.int32))
                owner.append(index)
        chunks = job.truncate is Truncate.CHUNK_MEAN
        return Prepared(
            arrays,
            owner,
            truncated=() if chunks else tuple(long),
            chunked=tuple(long) if chunks else (),
            read_as=read_as,
        )

    def _chunks(self, content: Content, where: str, truncate: Truncate) -> Iterator[list[int]]:
        ids, prompt = content
        if len(ids) <= self.room:
            if not (ids or self._head or self._tail):
                raise InvalidRequest(f"{where} has no tokens", param=where)
            yield ids
            return
        self._check_can_be_cut(content, where, truncate)
        size = self.room - prompt
        if truncate is Truncate.RIGHT:
            yield ids[: self.room]
        elif truncate is Truncate.LEFT:
            yield ids[:prompt] + ids[len(ids) - size :]
        else:  # every chunk begins with the prompt, as a text of its own would
            for start in range(prompt, len(ids), size):
                yield ids[:prompt] + ids[start : start + size]

    def _check_can_be_cut(self, content: Content, where: str, truncate: Truncate) -> None:
        limit = f"maximum context length {{}} {self.max_tokens} tokens"
        if truncate is Truncate.ERROR:
            requested = len(content.ids) + self.max_tokens - self.room
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
        self, texts: list[str], *, add_special_tokens: bool, max_total: int
    ) -> list[list[Token]]:
        """Return the tokens of each text, uncut; raise `InvalidRequest` beyond `max_total`."""
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        check_total(sum(map(len, encodings)), max_total, param=Field.INPUT)
        pairs = zip(texts, encodings, strict=True)
        return [list(_tokens(text, encoding)) for text, encoding in pairs]

    def decode(self, inputs: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """Return the text of each list of the model's own token ids. Raises `InvalidRequest`."""
        self._check_vocabulary(inputs, Field.INPUT)
        return list(self._tokenizer.decode_batch(inputs, skip_special_tokens=skip_special_tokens))


def _decoded(inputs: Sequence[list[int]], field: Field) -> list[str]:
    return [cl100k.decode(ids, f"{field}[{index}]") for index, ids in enumerate(inputs)]


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
            yield Token(token_id, token, special=True, start=None, stop=None)
        else:
            yield Token(token_id, text[start:stop], special=False, start=start, stop=stop)
