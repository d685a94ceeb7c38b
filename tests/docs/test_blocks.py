"""Every fenced block of every page runs as it stands, in the order of its page, or is listed here.

A page's blocks share a reader's folder (`shell.py`), and the gateway that one of them starts; before
that, one with the models of all pages answers.
"""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from tests.deploy.tools import free_ports
from tests.docs.shell import Shell
from tests.documents import PAGES, Block, blocks, blocks_of, name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import RunningGateway

pytestmark = pytest.mark.process
RUN = {"sh", "bash", "python"}
# Languages that no interpreter runs, with the place that reads them.
READ = {
    "yaml": "tests/test_docs.py::test_yaml_is_accepted",
    "json": "test_a_line_of_a_batch_is_one",
    "": "a drawing",
}
# Blocks that do not run here: by page and first words, with the reason.
LISTED = {
    ("docs/bulk.md", "import psycopg"): "needs PostgreSQL with pgvector; only parsed",
    ("docs/bulk.md", "import lancedb"): "LanceDB is not among the test tools; only parsed",
    ("docs/verify.md", "import httpx"): "the library takes 20 s to score two pairs; only parsed",
    ("docs/changing.md", '"""Sentences in'): "tests/test_changing.py mounts it",
}
# A reader's own values in place of placeholders, and of places that no test can reach.
PUT_IN = {
    "docs/batches.md": {
        "\n...\n": "\nwhile client.batches.retrieve(batch.id).status != 'completed':\n    pass\n"
    },
    "docs/bulk.md": {
        "s3://bucket/pages/": "pages/",
        "/shared/": "shared/",
        " --ray auto": "",  # tests/bulk/test_ray.py runs clusters
        "http://host-1:8890 --server http://host-2:8890": "http://host --model my-model",
        "--out vectors": "--out $(mktemp -ud)",  # the lines are for different people
        '"http://localhost:6333"': '":memory:"',
    },
    "docs/getting-started.md": {"KEY=emb-...": "KEY=$(cat $READER/key)"},
    "docs/operations.md": {"<pid>": "$(cat $READER/pid)"},
    "docs/vectors.md": {
        "pin canaries.json --config": "pin canaries.json --force --config",  # the line above, or this
        "client = OpenAI": "from openai import OpenAI\nURL, KEY, SPACE, texts = 'http://host/v1', 'none', 'SPACE_ID', ['a']\nclient = OpenAI",
    },
    "docs/verify.md": {
        # Made-up vectors have no reference; tests/verify/test_faults.py and tests/worker compare real ones.
        "config.yaml  ": "config.yaml --against http://host  ",
        "config.yaml --report": "config.yaml --against http://host --report",
        "--server http://host:8890 --reference BAAI/bge-base-en-v1.5": "--server http://host --model my-model --against http://host",
        "--server http://new:8890": "--server http://new --model my-model",
    },
}
# Typed before a page's first block: what its text takes for granted.
BEFORE = {
    "docs/bulk.md": (
        "mkdir pages shared shared/corpus && cp corpus/a.jsonl pages && cp corpus/a.jsonl shared/corpus\n"
        'EMBEDDING_ENGINE_ARGS=\'{"outputs": ["dense", "sparse"], "dimension": 1024}\' '
        "embedding-service embed corpus.jsonl --out vectors --model-name m --outputs dense,sparse"
    ),
    "docs/operations.md": (
        "embedding-service keys new >keys.yaml\n"
        "embedding-service serve --model-name m --api-keys-file keys.yaml"
    ),
}
ROWS = '{"id": 1, "page": 1, "text": "a text", "body": "a body"}\n'
MODELS: list[dict[str, Any]] = [
    {"model_name": "my-model", "aliases": {"docs": {}, "BAAI/bge-m3": {}}},
    {"model_name": "bge-m3", "engine_args": {"outputs": ["dense", "sparse", "colbert"]}},
    {
        "model_name": "reranker",
        "aliases": {"BAAI/bge-reranker-base": {}},
        "engine_args": {"outputs": ["score"]},
    },
]


def by_page() -> dict[str, list[Block]]:
    """Return the blocks of each page that run here."""
    found: dict[str, list[Block]] = {}
    for page in PAGES:
        for block in blocks_of(page):
            if block.language in RUN and not listed(block):
                found.setdefault(name(page), []).append(block)
    return found


def listed(block: Block) -> bool:
    """Tell whether a block is one of those that cannot run here."""
    return any(name(block.page) == page and block.text.startswith(words) for page, words in LISTED)


@pytest.fixture(scope="module")
def documented(
    start_gateway: Callable[..., RunningGateway], tmp_path_factory: pytest.TempPathFactory
) -> RunningGateway:
    """Return a gateway with the models of all pages, and with files and batches."""
    models = [{"engine": "fake", "required": True, **model} for model in MODELS]
    return start_gateway(models=models, port=0, state_dir=tmp_path_factory.mktemp("state"))


@pytest.fixture
def shell(tmp_path: Path, documented: RunningGateway) -> Iterator[Shell]:
    """Return a reader's folder, with the files that pages speak of."""
    shell = Shell(tmp_path, free_ports(1)[0])
    (tmp_path / "address").write_text(documented.url.removeprefix("http://"))
    place = shell.checkout
    for folder in ("my-model", "corpus"):
        (place / folder).mkdir()
    (place / "my-model" / "config.json").write_text("{}")
    (place / "config.yaml").write_text("model_name: my-model\n")
    (place / "corpus" / "a.jsonl").write_text(ROWS)
    (place / "corpus.jsonl").write_text(ROWS)
    for packed in ("corpus.jsonl.gz", "corpus/a.jsonl.zst"):
        with pa.output_stream(str(place / packed), compression="detect") as file:
            file.write(ROWS.encode())
    (line,) = (block.text for block in blocks("json"))
    (place / "requests.jsonl").write_text(line)
    yield shell
    shell.close()


@pytest.mark.parametrize("page", by_page())
def test_a_page_works_as_it_stands(page: str, shell: Shell, documented: RunningGateway) -> None:
    """Its commands and programs, one after another in a reader's folder, end without an error."""
    typed = by_page()[page]
    if page in BEFORE:
        shell.run(typed[0]._replace(language="sh"), BEFORE[page])
    for block in typed:
        text = block.text
        for placeholder, value in PUT_IN.get(page, {}).items():
            text = text.replace(placeholder, value.replace("SPACE_ID", space(documented)))
        shell.run(block, text)


def space(gateway: RunningGateway) -> str:
    """Return the vector space of a gateway's first model."""
    with gateway.client() as http:
        return str(http.get("/v1/models").json()["data"][0]["vector_space"]["id"])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_is_passed_by(page: Path) -> None:
    """Each block of a page is of a language that runs here, or that another test reads."""
    for block in blocks_of(page):
        assert block.language in RUN | READ.keys(), f"{block.language}: {block.text}"


def test_every_exception_is_still_one() -> None:
    """A block on the list is there, a placeholder stands on its page, and programs can be parsed."""
    every = [block for page in PAGES for block in blocks_of(page)]
    for page, words in LISTED:
        (block,) = (
            each for each in every if name(each.page) == page and each.text.startswith(words)
        )
        ast.parse(block.text)
    for page, placeholders in PUT_IN.items():
        text = "".join(block.text for block in by_page()[page])
        assert [words for words in placeholders if words not in text] == []


def test_a_line_of_a_batch_is_one(documented: RunningGateway) -> None:
    """The line that a page shows is a request that the gateway answers."""
    (block,) = blocks("json")
    line = json.loads(block.text)
    with documented.client() as http:
        answer = http.request(line["method"], line["url"], json=line["body"])
    assert answer.status_code == 200, answer.text


WRONG = {
    "a flag": ("sh", "embedding-service init --modle bge-m3", "--modle"),
    "a setting": ("sh", "embedding-service check-config --prot 1 | cat", "prot"),
    "a program": ("sh", "embeding-service version", "command not found"),
    "a target": ("sh", "make sevre", "No rule to make target"),
    "a unit": ("sh", "sudo systemctl enable --now embedding", "embedding.service"),
    "a path": ("bash", "curl http://127.0.0.1:8890/v2/models", "404"),
    "a program of Python": ("python", "import openia", "No module named 'openia'"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_would_be_found(mistake: str, shell: Shell) -> None:
    """The tests above are some: a slip in a block ends it."""
    language, text, said = WRONG[mistake]
    with pytest.raises(AssertionError, match=said):
        shell.run(Block(PAGES[0], language, text), text)
