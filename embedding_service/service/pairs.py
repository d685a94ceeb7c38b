"""From a query and a document to the token ids of a cross-encoder; over-long documents are cut.

Two forms: the tokenizer's own pair template (`[CLS] q [SEP] d [SEP]`), or a prompt in words whose
last position answers yes or no (Qwen3-Reranker). The query is never cut.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from itertools import chain, product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from embedding_service.errors import ContextLengthExceeded, InvalidRequest
from embedding_service.families import profiles
from embedding_service.service import slices
from embedding_service.service.checks import check_total
from embedding_service.service.prompts import Prepared, bare_tokenizer
from embedding_service.types import Field

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenizers import Tokenizer

    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.families.profiles import PairPrompt
    from embedding_service.service.slices import Steps
    from embedding_service.settings.model import ModelOptions
    from embedding_service.types import RerankJob, TokenIds

    Ids = list[int]
    Portion = list[tuple[str, str]]  # query and document


# Pairs that are put together between two rests: each may be as long as the model's context.
_PAIRS_AT_ONCE = 64
_PLACES = re.compile(r"\{instruction\}|\{query\}")
_ENDS = ("a", ".", " ", "\n", "\t ", "!?", "狐", "é", "0", "<", ">", "'s")


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


class Query(NamedTuple):
    """A query's ids, and the end of its text that is tokenised together with each document."""

    head: Ids
    joined: str
    joined_ids: Ids


@dataclass(slots=True)
class _Rows:
    """The pairs that are put together so far. `add` raises `InvalidRequest` for too many tokens."""

    most: int
    ids: list[TokenIds] = field(default_factory=list)
    boundaries: Ids = field(default_factory=list)
    truncated: Ids = field(default_factory=list)
    total: int = 0

    def add(self, pair: TokenIds, boundary: int) -> None:
        self.ids.append(pair)
        self.boundaries.append(boundary)
        self.total += len(pair)
        check_total(self.total, self.most, param=Field.DOCUMENTS)


class PairEncoder:
    """The tokenizer and the pair template of one reranker."""

    def __init__(self, facts: ModelFacts, tokenizer_json: bytes, options: ModelOptions) -> None:
        self.facts = facts
        self.max_tokens = facts.max_tokens
        self.name = options.model_name
        self.prompt = profiles.named(facts.family).pair_prompt
        self._joint = self.prompt is not None and self.prompt.separator is None
        self._tokenizer = bare_tokenizer(tokenizer_json)
        self._slices = slices.SlicedTokenizer(self._tokenizer)
        own = self.prompt.instruction if self.prompt else None
        self.default_instruction = options.default_instruction or own
        self._template = (
            _pair_template(self._tokenizer) if self.prompt is None else self._worded(self.prompt)
        )
        self._last_line = self._find_last_line() if self._joint else ""
        nothing, _ = self._template.around([], [])
        self._room_for_both = self.max_tokens - len(nothing)
        self._cut_query_to = self.max_tokens * 3 // 4  # as FlagEmbedding does

    def prepare(self, job: RerankJob, *, max_total: int) -> Prepared:
        """Take all `steps` at once."""
        return slices.finish(self.steps(job, max_total=max_total))

    def steps(self, job: RerankJob, *, max_total: int) -> Steps[Prepared]:
        """Tokenise every pair.

        Raises `InvalidRequest`, and `ContextLengthExceeded` if a query alone is too long.
        """
        self._check_instruction(job.instruction)
        queries: dict[str, Query] = {}
        asked_count = slices.Count(self._query_limits(job, max_total))
        rows, count = _Rows(max_total), slices.Count(self._limits(job, max_total))
        for portion in _portions(job.pairs):
            for text in {query for query, _ in portion} - queries.keys():
                queries[text] = yield from self._read_query(text, job, asked_count)
            asked = [queries[query] for query, _ in portion]
            documents = yield from self._slices.read(self._joined(asked, portion), count)
            for query, document in zip(asked, documents, strict=False):
                self._add(rows, query, document, job)
            yield False
        return self._prepared(rows)

    def _joined(self, asked: list[Query], portion: Portion) -> list[str]:
        """Return each document with what of its query it might join."""
        before = "" if self.prompt is None else self.prompt.document
        pairs = zip(asked, portion, strict=True)
        return [query.joined + before + text for query, (_, text) in pairs]

    def _prepared(self, rows: _Rows) -> Prepared:
        numbered = rows.boundaries if self._template.has_types else None
        alone = list(range(len(rows.ids)))
        return Prepared(rows.ids, alone, tuple(rows.truncated), boundaries=numbered)

    def _add(self, rows: _Rows, query: Query, document: Ids, job: RerankJob) -> None:
        """Put a pair together, with as much of it as fits."""
        own, document = self._parted(query, document)
        wanted = document[: job.max_tokens_per_document]
        if job.cut_longest:
            kept = self._cut_longest(own, wanted, job)
        else:
            kept = own, self._cut_document(len(rows.ids), own, wanted, job)
        if kept != (own, document):
            rows.truncated.append(len(rows.ids))
        rows.add(*self._template.around(*kept))

    def _cut_document(self, index: int, query: Ids, document: Ids, job: RerankJob) -> Ids:
        room = self._room(query)
        if len(document) > room and not job.cut_documents:
            raise self._too_long(index, len(document), room)
        return _kept(document, room, left=self.facts.cuts_left)

    def _find_last_line(self) -> str:
        """Return the last line of the prompt if no token reaches across its beginning, or nothing.

        The reference tokenises query and document together. The tokens before that line are then
        the same for all documents of a query, and are made once.
        """
        prompt = self._query_text("{query}", None)
        last = prompt[prompt.rfind("\n") + 1 :]
        heads, tails = [f"a{end}\n" for end in _ENDS], [last + start for start in _ENDS]
        certain = "{" not in last and all(
            self._ids(head) + self._ids(tail) == self._ids(head + tail)
            for head, tail in product(heads, tails)
        )
        return last if certain else ""

    def _worded(self, prompt: PairPrompt) -> Template:
        """Return the template of a question in words, its pieces tokenised one by one."""
        tail = list(chain.from_iterable(map(self._ids, prompt.tail)))
        return Template(self._ids(prompt.head), self._ids(prompt.separator or ""), tail)

    def _check_instruction(self, instruction: str | None) -> None:
        takes = self.prompt is not None and self.prompt.instructed is not None
        if instruction is not None and not takes:
            raise InvalidRequest(
                f"{self.name} was not trained with instructions; leave instruction out",
                param="instruction",
                code="not_supported_by_model",
            )

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

    def _limits(self, job: RerankJob, max_total: int) -> slices.Limits:
        return slices.Limits(
            max_total,
            Field.DOCUMENTS,
            most=None if self._reads_ends(job) else self.max_tokens,
            cut=job.cut_documents or job.cut_longest,
            kept=self._kept_of_document(job),
        )

    def _reads_ends(self, job: RerankJob) -> bool:
        """Whether texts that are too long are cut at their beginnings."""
        return job.left if job.cut_longest else self.facts.cuts_left

    def _kept_of_document(self, job: RerankJob) -> int | None:
        """Return how much a pair keeps of a long document at least, None for all that is read."""
        most = min(job.max_tokens_per_document or sys.maxsize, self.max_tokens)
        if job.cut_longest:
            return min(self._kept_of_longest(job), most)
        return most if job.cut_documents else None

    def _kept_of_longest(self, job: RerankJob) -> int:
        """Return how much of each part a pair keeps at least; beside a prompt perhaps one token."""
        if self.prompt is not None:
            return 1
        return max(1, self._limited_room(job.max_tokens) // 2)

    def _query_limits(self, job: RerankJob, max_total: int) -> slices.Limits:
        """Return the limits of all queries: each counts as much as a pair keeps of it at least."""
        most, kept = None if self._reads_ends(job) else self.max_tokens, None
        cut_longest = job.cut_longest and self.prompt is None
        if cut_longest:
            kept = self._kept_of_longest(job)
        elif job.cut_queries and not self._joint:
            kept = self._cut_query_to
        return slices.Limits(max_total, "query", most, cut=kept is not None, kept=kept)

    def _read_query(self, query: str, job: RerankJob, count: slices.Count) -> Steps[Query]:
        """Tokenise a query; refuse one that cannot fit before each document gets a copy of it."""
        cut = count.limits.cut
        text = self._query_text(query, job.instruction)
        head = text.removesuffix(self._last_line)
        (ids,) = yield from self._slices.read([head or text], count)
        if job.cut_longest and self.prompt is None:
            return Query(_kept(ids, self._room_for_both, left=job.left), "", [])
        if cut:
            ids = _kept(ids, self._cut_query_to, left=self.facts.cuts_left)
        asked = Query(ids, self._last_line, self._ids(self._last_line))
        if self._joint and not self._last_line:
            asked = Query([], text, ids)
        self._room(asked.head + asked.joined_ids)
        return asked

    def _parted(self, query: Query, ids: Ids) -> tuple[Ids, Ids]:
        """Return the ids of query and document; `ids` begin with those of the joined part.

        A document may join the query's last piece, so the two part where their ids differ first.
        """
        own = query.joined_ids
        pieces = enumerate(zip(own, ids, strict=False))
        shorter = min(len(own), len(ids))
        cut = next((place for place, (before, both) in pieces if before != both), shorter)
        return query.head + ids[:cut], ids[cut:]

    def _query_text(self, query: str, instruction: str | None) -> str:
        if self.prompt is None:
            return query
        wanted = self.default_instruction if instruction is None else instruction
        if wanted is None or self.prompt.instructed is None:
            return (self.prompt.query or "{query}").replace("{query}", query)
        values = {"{instruction}": wanted, "{query}": query}
        # In one pass: an instruction full of `{query}` would be as many copies of the query.
        return _PLACES.sub(lambda place: values[place[0]], self.prompt.instructed)

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


def _portions(pairs: Portion) -> Iterator[Portion]:
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        yield pairs[start : start + _PAIRS_AT_ONCE]
