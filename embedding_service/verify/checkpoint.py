"""The files of a model as the reference reads them: where they are, and which library reads them.

Prompts are looked up here apart from `service/prompts.py`, which is under test.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from embedding_service import hub
from embedding_service.errors import BadConfiguration
from embedding_service.families import architectures, feeding, profiles
from embedding_service.families.checkpoint import Files, ModelRefused
from embedding_service.worker.location import resolve_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedding_service.settings.model import ModelOptions

SCORES: Final = (
    "{} scores pairs, and verify compares vectors; docs/verify.md#rerankers compares scores"
)
_HEADS: Final = ("sparse_linear.pt", "colbert_linear.pt")
# Names by which sentence-transformers finds a prompt, and others that model cards use, in order.
_QUERY: Final = ("query", "search_query", "retrieval_query", "s2p_query", "web_search_query")
_DOCUMENT: Final = (
    *("document", "passage", "search_document", "retrieval_document", "retrieval_passage"),
    "corpus",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files. Longer texts than `max_tokens` are cut, if that is less than its own limit.

    `prompts` by kind are those that the library would not find by itself. `template` and
    `instruction` are the operator's.
    """

    folder: str
    name: str
    max_tokens: int | None = None
    trust_remote_code: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    template: str | None = None
    instruction: str | None = None

    @property
    def library(self) -> str | None:
        """The key of the library that its authors use, None if it scores pairs.

        Raises `BadConfiguration` about files that cannot be read.
        """
        try:
            return _library_of(Files(self.folder))
        except ModelRefused as refusal:
            raise BadConfiguration(f"{self.name}: {refusal}") from None


def of_model(model: ModelOptions, say: Callable[[str], None]) -> Checkpoint:
    """Return the files of a configured model. Raises `BadConfiguration`, `ModelNotLoaded`."""
    try:
        folder = resolve_model(model).model if model.model_path else None
    except ModelRefused as refusal:
        raise BadConfiguration(str(refusal)) from None
    return Checkpoint(
        folder or _found(model.model_name, model.revision, say),
        model.model_name,
        model.max_model_len,
        trust_remote_code=model.trust_remote_code,
        template=model.instruction_template,
        instruction=model.default_instruction,
    )


def of_name(name: str, say: Callable[[str], None]) -> Checkpoint:
    """Return the files in a folder, or under a name on the hub. Raises `ModelNotLoaded`."""
    return Checkpoint(_found(name, None, say), name)


def _found(name: str, revision: str | None, say: Callable[[str], None]) -> str:
    def tell(text: str, /, **progress: int) -> None:
        if not progress:
            say(text)

    return str(hub.find(name, revision, say=tell).folder) if hub.is_name(name) else name


def _library_of(files: Files) -> str | None:
    if any(files.path(name) for name in _HEADS):
        return "bge-m3"
    modules = files.json("modules.json") or []
    architecture = architectures.named_in(files.json("config.json"))
    main = files.json("config_sentence_transformers.json")
    if main.get("model_type") == "CrossEncoder" or "Classification" in architecture:
        return None
    splade = any(str(module.get("type")).endswith("SpladePooling") for module in modules)
    weighs = architecture.endswith("ForMaskedLM") and not modules
    return "sparse" if splade or weighs else "dense"


def with_prompts(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with all prompts that its library would not find.

    The operator's instruction comes first, then the files' under other names than the library
    looks for, and where the files have none those of the model's card.
    """
    files = Files(checkpoint.folder)
    texts, default = feeding.prompts(files)
    profile = profiles.find(
        model_name=checkpoint.name,
        architecture=architectures.named_in(files.json("config.json")),
        files=[mark for mark in profiles.MARKS if files.path(mark)],
    )
    found = _of_files(texts) if profile.typed else {}
    if not found and default is None:
        found = _of_card(profile)
    return replace(checkpoint, prompts=found | _of_operator(checkpoint, profile))


def _of_files(texts: dict[str, str]) -> dict[str, str]:
    """Return the prompts of both sides, where the files have one of them."""
    query = next((texts[name] for name in _QUERY if name in texts), None)
    document = next((texts[name] for name in _DOCUMENT if name in texts), None)
    if query is None and (document is None or "corpus" in texts):
        return {}
    return {"query": query or "", "document": document or ""}


def _of_card(profile: profiles.Profile) -> dict[str, str]:
    query, document = profile.query, profile.document
    if profile.instruction_template and profile.default_instruction:
        query = profile.instruction_template.replace("{instruction}", profile.default_instruction)
    sides = {"query": query, "document": document}
    return {side: text for side, text in sides.items() if text is not None}


def _of_operator(checkpoint: Checkpoint, profile: profiles.Profile) -> dict[str, str]:
    """Return the prompt that the settings make, which may name a part of it."""
    template = checkpoint.template or profile.instruction_template
    instruction = checkpoint.instruction or profile.default_instruction
    set_by_hand = checkpoint.template is not None or checkpoint.instruction is not None
    if not set_by_hand or not template or not instruction:
        return {}
    return {"query": template.replace("{instruction}", instruction)}
