"""Language models that sentence-transformers scores pairs with: its module LogitScore.

Their question is in a chat template and their answers are two tokens. Served is a family's own
question (`PairPrompt`), so these files are compared with it. Source: sentence-transformers 6.2,
`cross_encoder/modules/logit_score.py`, and `pair_to_messages` in `base/modality.py`.
"""

from __future__ import annotations

import os.path
from typing import TYPE_CHECKING, Final

from embedding_service.families import feeding, pipeline, tokenizer_files
from embedding_service.families.checkpoint import ModelRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedding_service.families.checkpoint import Files, Json
    from embedding_service.families.profiles import PairPrompt, Profile

# Stand for a query and a document in a question that is compared.
_QUERY: Final = "a query"
_DOCUMENT: Final = "a document"
# Characters that an error shows of two questions, around the place where they part.
_BEFORE: Final = 20
_BEHIND: Final = 60


def is_in(modules: list[Json]) -> bool:
    """Whether modules.json says that a language model's logits are the score."""
    return any(str(module.get("type")).endswith(".LogitScore") for module in modules)


def check(files: Files, profile: Profile, template: str) -> None:
    """Raise `ModelRefused` where the files ask otherwise than the family does."""
    modules = files.json("modules.json")
    if profile.pair_prompt is None or not is_in(modules):
        return
    if modules[2:] or not is_in(modules[1:]):
        kinds = pipeline.kinds(modules)
        raise ModelRefused(f"modules.json has {kinds}; known is LogitScore behind a Transformer")
    feeding.check_language_model(files, pipeline.folder_of(modules[0]))
    _check_answers(files, profile, pipeline.folder_of(modules[1]))
    _check_question(files, profile.pair_prompt, template, profile.name)


def _check_answers(files: Files, profile: Profile, folder: str) -> None:
    """Compare the tokens whose logits count."""
    place = f"{folder}/config.json"
    config = files.json(place)
    words = profile.hf_overrides.get("classifier_from_token", ())
    for key, wanted in _answers(files, words).items():
        if config.get(key) != wanted:
            raise ModelRefused(
                f"{place} says {key}: {config.get(key)}, and {profile.name} answers with "
                f"{' or '.join(words)} ({wanted}), the only words that are served"
            )


def _answers(files: Files, words: Sequence[str]) -> dict[str, int | None]:
    """Return the ids that a LogitScore of these words has: yes is the last of them."""
    tokenizer = files.json("tokenizer.json")
    ids = [tokenizer_files.token_id(tokenizer, word) for word in words]
    return dict(
        zip(("true_token_id", "false_token_id"), [*reversed(ids), None, None], strict=False)
    )


def _check_question(files: Files, prompt: PairPrompt, template: str, family: str) -> None:
    """Compare what the model is asked, by default, about one pair."""
    texts, default = feeding.prompts(files)
    instruction = None if default is None else texts[default]
    if instruction not in (None, prompt.instruction):
        raise ModelRefused(
            f"config_sentence_transformers.json says default_prompt_name: {default!r}, whose text "
            f"is not the family's {prompt.instruction!r}; send it as instruction, and take it out "
            "in a folder of your own and set model_path"
        )
    asked, own = _rendered(files, template, instruction), _asked(prompt)
    if asked != own:
        place = len(os.path.commonprefix([asked, own]))  # noqa: RUF071 - of texts
        raise ModelRefused(
            "the chat template (chat_template.jinja or tokenizer_config.json) asks "
            f"{_excerpt(asked, place)} where {family} asks {_excerpt(own, place)}, and only the "
            "family's own question is served"
        )


def _excerpt(question: str, place: int) -> str:
    """Return what a person needs to see of a question that differs from this place on."""
    return repr(question[max(0, place - _BEFORE) : place + _BEHIND])


def _asked(prompt: PairPrompt) -> str:
    """Return the family's own question about the pair."""
    form = prompt.instructed if prompt.instruction else prompt.query
    query = (form or "").format(instruction=prompt.instruction, query=_QUERY)
    separator = prompt.separator or ""
    return f"{prompt.head}{query}{separator}{prompt.document}{_DOCUMENT}{''.join(prompt.tail)}"


def _rendered(files: Files, template: str, instruction: str | None) -> str:
    """Return what the chat template makes of the pair; nothing where it fails."""
    # Imported here because few models need it; transformers renders with the same options.
    from jinja2 import TemplateError  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = _messages(instruction, structured=_is_structured(files))
    try:
        return environment.from_string(template).render(_variables(files), messages=messages)
    except (TemplateError, TypeError, AttributeError, LookupError):
        return ""


def _variables(files: Files) -> Json:
    """Return what a chat template is given beside the messages."""
    config = files.json("tokenizer_config.json")
    tokens = {key: value for key, value in config.items() if key.endswith("_token")}
    options = (_fed(files).get("processing_kwargs") or {}).get("chat_template") or {}
    return {"add_generation_prompt": False} | tokens | options


def _is_structured(files: Files) -> bool:
    """Whether a message's content is a list of parts, and no text."""
    modalities = _fed(files).get("modality_config") or {}
    return (modalities.get("message") or {}).get("format") == "structured"


def _fed(files: Files) -> Json:
    folder = pipeline.transformer_folder(files)
    return feeding.read(files, folder)[1]


def _messages(instruction: str | None, *, structured: bool) -> list[Json]:
    said = {"system": instruction, "query": _QUERY, "document": _DOCUMENT}
    return [_message(role, text, structured=structured) for role, text in said.items() if text]


def _message(role: str, text: str, *, structured: bool) -> Json:
    content = [{"type": "text", "text": text}] if structured else text
    return {"role": role, "content": content}
