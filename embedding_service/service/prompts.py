"""From what a client sent to the token ids the engine reads: prompt, tokenise, truncate or chunk.

Pure functions of a model's facts; slow ones are meant for a worker thread (the tokenizer
releases the interpreter lock).
"""

from __future__ import annotations

import binascii
import gzip
import importlib.util
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from embedding_service.errors import ContextLengthExceeded, InvalidRequest
from embedding_service.families import profiles
from embedding_service.types import EmbedJob, Field, InputType, TokenIdPolicy, Truncate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.settings.model import AliasSettings, ModelOptions
    from embedding_service.types import TokenIds

CL100K_VOCABULARY = 100_277
CL100K_SPECIAL = {
    100_257: "<|endoftext|>",
    100_258: "<|fim_prefix|>",
    100_259: "<|fim_middle|>",
    100_260: "<|fim_suffix|>",
    100_276: "<|endofprompt|>",
}
# Texts tokenised in one call: enough for the tokenizer's own threads, small enough that a cancelled
# request stops soon.
ENCODE_TEXTS = 256
# A prompt stands before every input, so that up to ENCODE_TEXTS copies of it are in memory at a time.
MAX_PROMPT_CHARACTERS = 16_384


@dataclass(frozen=True, slots=True)
class Prepared:
    """Token ids ready for the engine.

    `ids` holds one array per chunk and `owner` the input that each chunk belongs to; unless an
    input was chunked, the two run in parallel with the inputs.
    """

    ids: list[TokenIds]
    owner: list[int]
    truncated: tuple[int, ...] = ()
    chunked: tuple[int, ...] = ()
    read_as: TokenIdPolicy | None = None

    @property
    def total(self) -> int:
        """Tokens that the engine will read."""
        return sum(map(len, self.ids))


@dataclass(slots=True)
class _Cut:
    """Collects what did not fit as it was."""

    truncated: list[int] = field(default_factory=list)
    chunked: list[int] = field(default_factory=list)


class Token(NamedTuple):
    """One token, with the characters it stands for; a special token stands for none."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Encoder:
    """The prompts and the tokenizer of one model."""

    def __init__(self, facts: ModelFacts, tokenizer_json: bytes, options: ModelOptions) -> None:
        self.facts = facts
        self.options = options
        self.max_tokens = facts.max_tokens
        self.profile = profiles.find(model_name=options.model_name, architecture=facts.architecture)
        self.template = options.instruction_template or self.profile.instruction_template
        self.default_instruction = options.default_instruction or self.profile.default_instruction
        self._prompted = re.compile(self.profile.prompted or r"(?!)")
        self._tokenizer: Tokenizer = Tokenizer.from_buffer(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._head, self._tail = _special_tokens(self._tokenizer)
        self.room = self.max_tokens - len(self._head) - len(self._tail)
        if options.token_ids is TokenIdPolicy.CL100K:
            _cl100k()  # read now, where nobody waits

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """Names that `prompt_name` may take."""
        return tuple(self.facts.prompts)

    def prefix(self, job: EmbedJob, alias: AliasSettings | None) -> str:
        """Return the text to put before every input of `job`.

        The request's own `instruction` wins, then its `prompt_name`, then its `input_type`, then
        what the alias says, in the same order, then the model's own default prompt.
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

    def prepare(self, job: EmbedJob, prefix: str, *, max_total: int) -> Prepared:
        """Tokenise, and fit every input into the model's context as `job.truncate` says.

        Raises `InvalidRequest` (`param` names the input) and `ContextLengthExceeded`; stops as soon
        as the request holds more than `max_total` tokens.
        """
        if len(prefix) > MAX_PROMPT_CHARACTERS:
            raise InvalidRequest(f"the prompt has more than {MAX_PROMPT_CHARACTERS} characters", param="instruction")
        read_as, field = None, job.field
        inputs: Sequence[str] | Sequence[list[int]] = job.inputs
        if not isinstance(inputs[0], str):
            read_as = self.options.token_ids
            if read_as is TokenIdPolicy.NATIVE:
                if prefix:
                    raise InvalidRequest("a prompt cannot be put before native token ids; send text", param=field)
                contents = [(self._native(ids, f"{field}[{i}]"), 0) for i, ids in enumerate(job.inputs)]  # type: ignore[arg-type]
                return self._fit(contents, job, max_total=max_total, read_as=read_as)
            if read_as is TokenIdPolicy.REJECT:
                raise InvalidRequest("this model takes text, not token ids; send strings", param=field)
            inputs = [_decode_cl100k(ids, f"{field}[{i}]") for i, ids in enumerate(job.inputs)]  # type: ignore[arg-type]
        contents = []
        texts: list[str] = list(inputs)  # type: ignore[arg-type]
        budget = max_total
        for start in range(0, len(texts), ENCODE_TEXTS):
            part = self._encode(texts[start : start + ENCODE_TEXTS], prefix, job.truncate)
            if job.truncate in (Truncate.ERROR, Truncate.CHUNK_MEAN):
                budget -= sum(len(ids) for ids, _ in part)
                check_total(max_total - budget, max_total, param=field)
            contents += part
        return self._fit(contents, job, max_total=max_total, read_as=read_as)

    def tokenize(self, texts: list[str], *, add_special_tokens: bool, max_total: int) -> list[list[Token]]:
        """Return the tokens of each text, uncut. Raises `InvalidRequest` for more than `max_total`."""
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        check_total(sum(map(len, encodings)), max_total, param=Field.INPUT)
        return [
            [
                Token(i, token, True, None, None) if special else Token(i, text[start:stop], False, start, stop)  # noqa: FBT003
                for i, token, special, (start, stop) in zip(
                    e.ids, e.tokens, e.special_tokens_mask, e.offsets, strict=True
                )
            ]
            for text, e in zip(texts, encodings, strict=True)
        ]

    def decode(self, inputs: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """Return the text of each list of the model's own token ids. Raises `InvalidRequest`."""
        for index, ids in enumerate(inputs):
            self._native(ids, f"{Field.INPUT}[{index}]")
        return list(self._tokenizer.decode_batch(inputs, skip_special_tokens=skip_special_tokens))

    def _encode(self, texts: list[str], prefix: str, truncate: Truncate) -> list[tuple[list[int], int]]:
        """Return for each text its ids without special tokens, and how many of them are prompt."""
        if prefix:
            texts = [t if t.startswith(prefix) or self._prompted.match(t) else prefix + t for t in texts]
        cuts = bool(prefix) and truncate is not Truncate.ERROR
        head = len(self._tokenizer.encode(prefix, add_special_tokens=False).ids) if cuts else 0
        contents = []
        for text, encoding in zip(
            texts, self._tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True
        ):
            contents.append((encoding.ids, head if text.startswith(prefix) else 0))
        return contents

    def _native(self, ids: list[int], where: str) -> list[int]:
        """Check ids of the model's own vocabulary, and take off special tokens that `_fit` adds."""
        if max(ids) >= self.facts.vocab_size or min(ids) < 0:
            raise InvalidRequest(f"{where} holds a token id outside 0 to {self.facts.vocab_size - 1}", param=where)
        head, tail = self._head, self._tail
        if head and ids[: len(head)] == head:
            ids = ids[len(head) :]
        if tail and ids[-len(tail) :] == tail:
            ids = ids[: -len(tail)]
        return ids

    def _fit(
        self,
        contents: list[tuple[list[int], int]],
        job: EmbedJob,
        *,
        max_total: int,
        read_as: TokenIdPolicy | None,
    ) -> Prepared:
        arrays: list[TokenIds] = []
        owner: list[int] = []
        cut = _Cut()
        for index, (ids, prompt) in enumerate(contents):
            for chunk in self._chunks(ids, prompt, index, job, cut):
                if not (chunk or self._head or self._tail):
                    where = f"{job.field}[{index}]"
                    raise InvalidRequest(f"{where} has no tokens", param=where)
                arrays.append(np.array([*self._head, *chunk, *self._tail], np.int32))
                owner.append(index)
        prepared = Prepared(arrays, owner, tuple(cut.truncated), tuple(cut.chunked), read_as)
        check_total(prepared.total, max_total, param=job.field)
        return prepared

    def _chunks(self, ids: list[int], prompt: int, index: int, job: EmbedJob, cut: _Cut) -> list[list[int]]:
        room = self.room
        if len(ids) <= room:
            return [ids]
        where = f"{job.field}[{index}]"
        if job.truncate is Truncate.ERROR:
            requested = len(ids) + self.max_tokens - room
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.max_tokens} tokens, however you requested {requested} "
                f"tokens in {where}. Shorten it, or set truncate to {Field.TRUNCATE}.",
                param=where,
            )
        if prompt >= room:
            raise ContextLengthExceeded(
                f"the prompt alone has {prompt} tokens, which leaves no room for {where} in this model's "
                f"maximum context length of {self.max_tokens} tokens; shorten the instruction",
                param="instruction",
            )
        if job.truncate is Truncate.CHUNK_MEAN:
            cut.chunked.append(index)
            head, rest, size = ids[:prompt], ids[prompt:], room - prompt
            return [head + rest[i : i + size] for i in range(0, len(rest), size)]
        cut.truncated.append(index)
        if job.truncate is Truncate.RIGHT:
            return [ids[:room]]
        return [ids[:prompt] + ids[len(ids) - (room - prompt) :]]

    def _instructed(self, instruction: str) -> str:
        if self.template is None:
            raise InvalidRequest(
                f"{self.options.model_name} was not trained with instructions; leave instruction out "
                "(or set instruction_template in the server's configuration)",
                param="instruction",
            )
        return self.template.replace("{instruction}", instruction) if instruction else ""

    def _named(self, name: str) -> str:
        if name not in self.facts.prompts:
            known = ", ".join(sorted(self.facts.prompts)) or "none"
            raise InvalidRequest(f"prompt_name is not one of this model's prompts: {known}", param="prompt_name")
        return self.facts.prompts[name]

    def _typed(self, input_type: InputType) -> str:
        own = {InputType.QUERY: self.profile.query, InputType.DOCUMENT: self.profile.document}[input_type]
        if input_type is InputType.QUERY and self.template and self.default_instruction:
            return self._instructed(self.default_instruction)
        if own is not None:
            return own
        names = ("query",) if input_type is InputType.QUERY else ("document", "passage")
        return next((self.facts.prompts[name] for name in names if name in self.facts.prompts), "")


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return what the tokenizer puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []  # pragma: no cover - a post-processor that rewrites the text itself


def check_total(total: int, allowed: int, *, param: str | None) -> None:
    """Raise `InvalidRequest` for a request of more than `allowed` tokens."""
    if total > allowed:
        raise InvalidRequest(
            f"this request has more than {allowed} tokens, the most that one request may have; "
            "send fewer or shorter inputs",
            param=param,
            code="max_tokens_per_request",
        )


@cache
def _cl100k() -> list[bytes | None]:
    """Return the bytes of each cl100k_base token, None for an id that is not used.

    The ranks are bpe-openai's file; importing that package for them takes 0.8 s and 100 MB, this 0.1 s and 8 MB.
    """
    pieces: list[bytes | None] = [None] * CL100K_VOCABULARY
    package = importlib.util.find_spec("bpe_openai")
    assert package is not None  # noqa: S101 - a requirement of ours
    assert package.submodule_search_locations  # noqa: S101
    ranks = Path(package.submodule_search_locations[0], "data", "cl100k_base.tiktoken.gz")
    for line in gzip.decompress(ranks.read_bytes()).splitlines():
        piece, rank = line.split()
        pieces[int(rank)] = binascii.a2b_base64(piece)
    for token, text in CL100K_SPECIAL.items():
        pieces[token] = text.encode()
    return pieces


def _decode_cl100k(ids: list[int], where: str) -> str:
    if max(ids) >= CL100K_VOCABULARY or min(ids) < 0:
        raise InvalidRequest(
            f"{where} holds a token id outside cl100k_base, which this server reads token ids as; "
            "send text, or set token_ids: native in the server's configuration",
            param=where,
        )
    pieces = _cl100k()
    try:
        return b"".join([pieces[token] for token in ids]).decode("utf-8", "replace")  # type: ignore[misc]
    except TypeError:  # one of them is None
        raise InvalidRequest(f"{where} holds a token id that cl100k_base leaves unused", param=where) from None
