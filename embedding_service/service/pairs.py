"""From a query and a document to the token ids of a cross-encoder; over-long documents are cut.

Two forms: the tokenizer's own pair template (`[CLS] q [SEP] d [SEP]`), or a prompt in words whose
last position answers yes or no (Qwen3-Reranker). The query is never cut.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from embedding_service.errors import ContextLengthExceeded, InvalidRequest
from embedding_service.families import profiles
from embedding_service.service.checks import check_total
from embedding_service.service.prompts import ENCODE_TEXTS, Prepared, bare_tokenizer
from embedding_service.types import Field

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenizers import Tokenizer

    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import RerankJob, TokenIds

    Ids = list[int]
    Pairs = Iterator[tuple[Ids, Ids]]  # query and document, without special tokens


class Template(NamedTuple):
    """The ids around the two parts of a pair; `has_types`: segments are numbered."""

    head: Ids
    middle: Ids
    tail: Ids
    has_types: bool = False

    def around(self, query: Ids, document: Ids) -> tuple[TokenIds, int]:
        """Return a pair as the engine reads it, and the length of its first segment."""
        start = self.head + query + self.middle
        return np.array(start + document + self.tail, np.int32), len(start)


class PairEncoder:
    """The tokenizer and the pair template of one reranker."""

    def __init__(self, facts: ModelFacts, tokenizer_json: bytes, options: ModelOptions) -> None:
        self.facts = facts
        self.max_tokens = facts.max_tokens
        self.name = options.model_name
        self.prompt = profiles.find(
            model_name=self.name, architecture=facts.architecture
        ).pair_prompt
        self._tokenizer = bare_tokenizer(tokenizer_json)
        own = self.prompt.instruction if self.prompt else ""
        self.default_instruction = options.default_instruction or own
        if self.prompt is None:
            self._template = _pair_template(self._tokenizer)
        else:
            self._template = Template(self._ids(self.prompt.head), [], self._ids(self.prompt.tail))
        nothing, _ = self._template.around([], [])
        self._room_for_both = self.max_tokens - len(nothing)
        self._cut_query_to = self.max_tokens * 3 // 4  # as FlagEmbedding does

    def prepare(self, job: RerankJob, *, max_total: int) -> Prepared:
        """Tokenise every pair.

        Raises `InvalidRequest`, and `ContextLengthExceeded` if a query alone is too long.
        """
        self._check_instruction(job.instruction)
        ids: list[TokenIds] = []
        boundaries: Ids = []
        truncated: Ids = []
        total, most = 0, job.max_tokens_per_document or sys.maxsize
        for index, (query, document) in enumerate(self._encode(job)):
            if job.cut_longest:
                kept = self._cut_longest(query, document, job)
            else:
                room = min(self._room(query), most)
                if len(document) > room and not job.cut_documents:
                    raise self._too_long(index, len(document), room)
                kept = query, document[:room]
            if kept != (query, document):
                truncated.append(index)
            pair, boundary = self._template.around(*kept)
            ids.append(pair)
            boundaries.append(boundary)
            total += len(pair)
            check_total(total, max_total, param=Field.DOCUMENTS)
        numbered = boundaries if self._template.has_types else None
        return Prepared(ids, list(range(len(ids))), tuple(truncated), boundaries=numbered)

    def _check_instruction(self, instruction: str | None) -> None:
        if instruction is not None and self.prompt is None:
            text = f"{self.name} was not trained with instructions; leave instruction out"
            raise InvalidRequest(text, param="instruction")

    def _too_long(self, index: int, tokens: int, room: int) -> ContextLengthExceeded:
        where = f"{Field.DOCUMENTS}[{index}]"
        return ContextLengthExceeded(
            f"This model's maximum context length is {self.max_tokens} tokens, and beside the "
            f"query {where} has room for {room}, not for its {tokens}. Shorten it.",
            param=where,
        )

    def _room(self, query: Ids) -> int:
        """Return how many tokens of a document fit beside a query.

        Raises `ContextLengthExceeded` for none.
        """
        room = self._room_for_both - len(query)
        if room < 1:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.max_tokens} tokens, and the query "
                "leaves no room for a document. Shorten the query.",
                param="query",
            )
        return room

    def _encode(self, job: RerankJob) -> Pairs:
        """Tokenise a portion of the pairs at a time, and each query once."""
        queries: dict[str, Ids] = {}
        for start in range(0, len(job.pairs), ENCODE_TEXTS):
            portion = job.pairs[start : start + ENCODE_TEXTS]
            asked = [self._query_text(query, job.instruction) for query, _ in portion]
            for text in set(asked) - queries.keys():
                queries[text] = self._query_ids(text, job)
            texts = [document for _, document in portion]
            if (
                self.prompt is not None
            ):  # which is tokenised with the document, as the reference does
                texts = [query + text for query, text in zip(asked, texts, strict=True)]
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            for query, encoding in zip(asked, encodings, strict=True):
                yield self._parted(queries[query], encoding.ids)

    def _cut_longest(self, query: Ids, document: Ids, job: RerankJob) -> tuple[Ids, Ids]:
        """Cut a pair to its room, taking tokens from the longer part first; a prompt stays whole.

        https://huggingface.co/docs/transformers/pad_truncation: `longest_first`.
        """
        room = self._limited_room(job.max_tokens)
        if len(query) + len(document) <= room:
            return query, document
        shorter = min(len(query), len(document), room // 2)
        keep = shorter if len(query) <= len(document) else room - shorter
        if self.prompt is not None:
            keep = len(query)
            self._room(query)
        return _kept(query, keep, left=job.left), _kept(document, room - keep, left=job.left)

    def _limited_room(self, max_tokens: int | None) -> int:
        """Return the room for both parts. Raises `InvalidRequest` for a limit that leaves none."""
        if max_tokens is None:
            return self._room_for_both
        special = self.max_tokens - self._room_for_both
        if not special < max_tokens <= self.max_tokens:
            raise InvalidRequest(
                f"truncate_prompt_tokens must be -1 or between {special + 1} and {self.max_tokens}",
                param="truncate_prompt_tokens",
            )
        return max_tokens - special

    def _query_ids(self, text: str, job: RerankJob) -> Ids:
        """Tokenise a query; refuse one that cannot fit before each document gets a copy of it."""
        ids = self._ids(text)
        if job.cut_longest and self.prompt is None:
            return _kept(ids, self._room_for_both, left=job.left)
        if job.cut_queries and self.prompt is None:
            ids = ids[: self._cut_query_to]
        self._room(ids)
        return ids

    def _parted(self, query: Ids, ids: Ids) -> tuple[Ids, Ids]:
        """Return the ids of query and document; with a prompt, `ids` begin with the query.

        A document may join the query's last piece, so the two part where their ids differ first.
        """
        if self.prompt is None:
            return query, ids
        pieces = enumerate(zip(query, ids, strict=False))
        shorter = min(len(query), len(ids))
        cut = next((place for place, (own, both) in pieces if own != both), shorter)
        return ids[:cut], ids[cut:]

    def _query_text(self, query: str, instruction: str | None) -> str:
        if self.prompt is None:
            return query
        wanted = self.default_instruction if instruction is None else instruction
        return self.prompt.query.replace("{instruction}", wanted).replace("{query}", query)

    def _ids(self, text: str) -> Ids:
        ids: Ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _kept(ids: Ids, count: int, *, left: bool) -> Ids:
    """Return so many ids: the first ones, or the last ones if the left end is cut off."""
    count = max(0, count)
    return ids[len(ids) - count :] if left and count < len(ids) else ids[:count]


def _pair_template(tokenizer: Tokenizer) -> Template:
    """Return the template that the tokenizer puts around a pair."""
    pair = tokenizer.encode("a", "b", add_special_tokens=True)
    ids, parts = pair.ids, pair.sequence_ids
    first, second = parts.index(0), parts.index(1)
    return Template(
        head=ids[:first],
        middle=ids[first + parts.count(0) : second],
        tail=ids[second + parts.count(1) :],
        has_types=any(pair.type_ids),
    )
