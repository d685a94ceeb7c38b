"""Faults of real checkpoints, planted in files: real vLLM against sentence-transformers.

One engine serves the right files, and the library reads a copy with one of them changed. To a
comparison it is the same as the other way round, which would take an engine for each fault.
"""

from __future__ import annotations

import io
import json
import shutil
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from embedding_service.client import Client
from embedding_service.errors import NoVectors
from embedding_service.progress import Progress
from embedding_service.settings.gateway import Settings
from embedding_service.types import Output
from embedding_service.verify import servers
from embedding_service.verify.checkpoint import Checkpoint, of_name, with_prompts
from embedding_service.verify.run import Options, Verification, compare_side
from embedding_service.verify.sides import About, Kind, Texts
from embedding_service.verify.texts import built_in
from embedding_service.verify.truth import Truth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import RunningGateway

pytestmark = pytest.mark.engine
CONTEXT = 64
NAME = "tiny"


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uncased BERT with mean pooling and a prompt for queries."""
    import torch

    from tests.acceptance.nets import BERT
    from tests.acceptance.steps import modules, write

    folder = tmp_path_factory.mktemp("right")
    torch.manual_seed(7)
    prompts = {"query": "search the web for what this question asks: ", "document": ""}
    for step in (
        BERT,
        modules("2_Normalize"),
        write("1_Pooling/config.json", {"embedding_dimension": 64, "pooling_mode": "mean"}),
        write("sentence_bert_config.json", {"max_seq_length": CONTEXT}),
        write("config_sentence_transformers.json", {"prompts": prompts}),
    ):
        step(folder)
    return folder


@pytest.fixture(scope="module")
def served(start_gateway: Callable[..., RunningGateway], right: Path) -> RunningGateway:
    """Return a gateway with the right files."""
    return start_gateway(
        model_name=NAME, model_path=str(right), dtype="float32", gpu_memory_utilization=0.05, port=0
    )


def change(path: Path, edit: Callable[[Any], None]) -> None:
    """Change a JSON file."""
    value = json.loads(path.read_text("utf-8"))
    edit(value)
    path.write_text(json.dumps(value), "utf-8")


def first_token(folder: Path) -> None:
    change(folder / "1_Pooling/config.json", lambda c: c.update(pooling_mode="cls"))


def no_prompt(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    change(path, lambda c: c["prompts"].update(query=""))


def end_token(folder: Path) -> None:
    def edit(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        tokenizer["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [vocabulary["[MASK]"]]

    change(folder / "tokenizer.json", edit)
    generic(folder)


def cased(folder: Path) -> None:
    change(folder / "tokenizer.json", lambda t: t["normalizer"].update(lowercase=False))
    generic(folder)


def other_ids(folder: Path) -> None:
    def edit(tokenizer: dict[str, Any]) -> None:
        words = tokenizer["model"]["vocab"]
        ids = [i for word, i in words.items() if not word.startswith("[")]
        moved = dict(zip(ids, [*ids[7:], *ids[:7]], strict=True))
        tokenizer["model"]["vocab"] = {word: moved.get(i, i) for word, i in words.items()}

    change(folder / "tokenizer.json", edit)
    generic(folder)


def cut_left(folder: Path) -> None:
    change(folder / "tokenizer_config.json", lambda c: c.update(truncation_side="left"))


def generic(folder: Path) -> None:
    """Have the tokenizer's file read as it is: BERT's own class would write parts of it anew."""
    change(
        folder / "tokenizer_config.json",
        lambda c: c.update(tokenizer_class="PreTrainedTokenizerFast"),
    )


def truth_of(folder: Path) -> Truth:
    """Return what sentence-transformers makes of these files, in this process."""
    from embedding_service.verify.libraries import SentenceTransformers

    library = SentenceTransformers(Checkpoint(str(folder), "m"))
    texts = built_in(CONTEXT)
    truth = Truth(About("library", "float32", CONTEXT))
    for kind in Kind:
        sizes = library.lengths([library.prompts[kind] + text for text in texts])
        truth.texts[kind] = Texts(texts, sizes, CONTEXT)
        rows = library.encode(texts, kind)["dense"]
        truth.answers[kind] = [{Output.DENSE: row} for row in rows]
    truth.poolings = {
        mode: [{Output.DENSE: row} for row in library.encode(texts[:8], mode)["dense"]]
        for mode in library.poolings
    }
    return truth


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another pooling": (first_token, "pooling"),
    "a missing prompt": (no_prompt, "prompt"),
    "a wrong end token": (end_token, "ends"),
    "lower-casing off": (cased, "normalisation"),  # BERT strips accents with it
    "another tokenizer's ids": (other_ids, "everywhere"),
    "truncation on the left": (cut_left, "truncation"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_planted_fault_is_found_and_named(
    fault: str, right: Path, served: RunningGateway, tmp_path: Path
) -> None:
    """The first finding is the fault."""
    spoil, name = FAULTS[fault]
    folder = tmp_path / "wrong"
    shutil.copytree(right, folder)
    spoil(folder)
    async with aclosing(Client([served.url], None, patience_s=1, say=str)) as http:
        server = await servers.connect(http, NAME)
        result = await compare_side(
            NAME, server, truth_of(folder), Options(), Progress(io.StringIO())
        )
    assert not result.right
    assert result.findings[0].name == name, result.lines()


async def test_the_right_files_are_right(right: Path, served: RunningGateway) -> None:
    """The whole way, with the library in a process of its own: all kinds of requests are right."""
    options = Options(server=served.url, reference=str(right))
    verification = Verification(
        options, Settings(), structlog.get_logger(), Progress(io.StringIO())
    )
    (result,) = await verification.run()
    assert result.right, result.lines()
    assert [(part.kind, part.compared) for part in result.parts] == [
        ("plain", 200),
        ("query", 200),
        ("document", 200),
    ]
    assert min(part.quantiles["worst"] for part in result.parts) > 0.99999
    assert result.context == CONTEXT


async def test_a_library_that_fails_ends_in_a_line(right: Path, tmp_path: Path) -> None:
    """Files without weights are no model."""
    from embedding_service.verify import reference

    folder = tmp_path / "empty"
    shutil.copytree(right, folder)
    (folder / "model.safetensors").unlink()
    checkpoint = with_prompts(of_name(str(folder), lambda _: None))
    with pytest.raises(NoVectors, match=r"^the reference library failed: \w+.*model\.safetensors"):
        async with reference.opened(checkpoint):
            pass
