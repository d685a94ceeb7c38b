"""Which prompt goes before an input: that of the request, the alias, the operator or the model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from embedding_service.errors import InvalidRequest
from embedding_service.families import profiles
from embedding_service.types import InputType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedding_service.engine.protocol import ModelFacts
    from embedding_service.settings.model import AliasSettings, ModelOptions
    from embedding_service.types import EmbedJob

MAX_PROMPT_CHARACTERS = 16_384  # it is put before every input
# Of the model's own prompts, the first of these is for the input type; those of
# sentence-transformers' `encode_query` and `encode_document` come first. Case and punctuation do
# not count.
_PROMPT_NAMES = {
    InputType.QUERY: (
        "query", "search_query", "retrieval_query", "s2p_query", "web_search_query",
    ),
    InputType.DOCUMENT: (
        "document", "passage", "corpus", "search_document", "retrieval_document",
        "retrieval_passage",
    ),
}  # fmt: skip
# The forms that instructions have in prompts of model cards.
_INSTRUCTED = re.compile(r"(Instruct: )[^\n]+(\nQuery: ?)|(<instruct>)[^\n]+(\n<query>)")


class Prompts:
    """The prompts of one model. `template` is None where it takes no instruction."""

    def __init__(self, facts: ModelFacts, options: ModelOptions) -> None:
        self.facts = facts
        self.options = options
        self.profile = profile = profiles.named(facts.family)
        self._own = _own_prompts(facts.prompts) if profile.typed else {}
        own = _template(self._own.get(InputType.QUERY, ""))
        self.template = options.instruction_template or own or profile.instruction_template
        self.default_instruction = options.default_instruction or profile.default_instruction

    @property
    def input_types(self) -> tuple[InputType, ...]:
        """The types for which this model has a prompt, be it an empty one."""
        return tuple(each for each in InputType if self.typed(each) is not None)

    def prefix(self, job: EmbedJob, alias: AliasSettings | None) -> str:
        """Return the text to put before every input of `job`. Raises `InvalidRequest`.

        The request's own `instruction` wins, then its `prompt_name`, then its `input_type`, then
        those of the alias, in the same order, then the model's own default prompt.
        """
        return self._chosen(job, alias) or ""

    def ignored(self, job: EmbedJob) -> tuple[str, ...]:
        """Name the fields of a job that change nothing: this model has no prompt for its type."""
        by_type = job.input_type is not None and job.instruction is job.prompt_name is None
        return ("input_type",) if by_type and self._chosen(job, None) is None else ()

    def _chosen(self, job: EmbedJob, alias: AliasSettings | None) -> str | None:
        for source in (job, alias):
            if source is None:
                continue
            if source.instruction is not None:
                return self._instructed(source.instruction)
            if source.prompt_name is not None:
                return self._named(source.prompt_name)
            if source.input_type is not None:
                return self.typed(source.input_type)
        return self._default()

    def _default(self) -> str | None:
        name = self.facts.default_prompt_name
        return self.facts.prompts.get(name) if name else None

    def _instructed(self, instruction: str) -> str:
        if self.template is None:
            raise InvalidRequest(
                f"{self.options.model_name} was not trained with instructions; leave instruction "
                "out (or set instruction_template in the server's configuration)",
                param="instruction",
                code="not_supported_by_model",
            )
        if len(instruction) > MAX_PROMPT_CHARACTERS:
            raise InvalidRequest(
                f"the prompt has more than {MAX_PROMPT_CHARACTERS} characters; shorten it",
                param="instruction",
            )
        return self.template.replace("{instruction}", instruction) if instruction else ""

    def _named(self, name: str) -> str:
        prompts = self.facts.prompts
        if name not in prompts:
            known = ", ".join(sorted(prompts)) or "none"
            raise InvalidRequest(
                f"prompt_name is not one of this model's prompts: {known}; send one of these",
                param="prompt_name",
            )
        return prompts[name]

    def typed(self, input_type: InputType) -> str | None:
        """Return the prompt for queries or documents, None if nobody knows one.

        The operator's instruction wins, then the model's own files, where a prompt for the other
        side means that this one has none, then the family. A default prompt is for neither side, as
        in sentence-transformers.
        """
        is_query = input_type is InputType.QUERY
        set_by_hand = self.options.instruction_template or self.options.default_instruction
        if is_query and set_by_hand and self.template and self.default_instruction:
            return self._instructed(self.default_instruction)
        if input_type in self._own:
            return self._own[input_type]
        if self._own:
            return ""
        family = self._typed_by_family(is_query=is_query)
        return "" if family is None and self._default() is not None else family

    def _typed_by_family(self, *, is_query: bool) -> str | None:
        if is_query and self.template and self.default_instruction:
            return self._instructed(self.default_instruction)
        return self.profile.query if is_query else self.profile.document


def _own_prompts(prompts: Mapping[str, str]) -> dict[InputType, str]:
    """Return those of a model's named prompts that are for queries and for documents."""
    plain = {re.sub(r"[\W_]+", "_", name).lower(): text for name, text in prompts.items()}
    if plain.get("query") == plain.get("document") == "":
        # sentence-transformers writes both into whatever it saves, and nobody meant them.
        del plain["query"], plain["document"]
    known: dict[InputType, str] = {}
    for input_type, names in _PROMPT_NAMES.items():
        found = next(filter(plain.__contains__, names), None)
        # "corpus" is for documents beside a prompt for queries; alone it says nothing.
        if found is not None and (found != "corpus" or InputType.QUERY in known):
            known[input_type] = plain[found]
    return known


def _template(prompt: str) -> str | None:
    """Return the form of a prompt's instruction, if it has one that is known."""
    match = _INSTRUCTED.fullmatch(prompt)
    return "{instruction}".join(filter(None, match.groups())) if match else None
