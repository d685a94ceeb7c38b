"""The numbers of sentence-transformers, transformers or a formula, in float32 on a CPU."""

from __future__ import annotations

import contextlib
import json
import shutil
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from tests.acceptance.rows import nomic_moe
from tests.acceptance.steps import dump, native
from tests.acceptance.table import WEB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.acceptance.table import Row

    Told = dict[str, Any]

TEXTS = [
    "Hello, world",
    "The quick brown fox jumps over the lazy dog, and a dense vector meets a sparse vector in one pass.",
    "What is the capital of France?",
    "HELLO World, Mixed CASE Text; NASA and IBM met in New York.",
    "Быстрая лиса прыгает через ленивую собаку. Москва — столица России.",
    "敏捷的棕色狐狸跳过了懒狗。北京是中国的首都。 東京",
    "a",
    "  leading and trailing whitespace \n",
    "two\nlines\n\nand  double  spaces\tand a tab",
    "café naïve ﬁ ① ½ — “quotes” 👩‍🚀 e\u0301",
    "<s> </s> [SEP] <pad> <mask> <|endoftext|> <eos>",
    " ".join(f"word{i} the fox {i * 7}" for i in range(16)),
    " ".join(f"sentence {i} answers the query." for i in range(24)),
]
PAIRS = [
    ("What is the capital of France?", "Paris is the capital of France."),
    ("What is the capital of France?", "Berlin is in Germany, not here!"),
    ("What is the capital of France?", "The quick brown fox jumps over the lazy dog"),
    (
        "dense vector",
        "Embedding models map sentences to vectors such that similar sentences are close to each other in space.",
    ),
    ("Быстрая лиса", "敏捷的棕色狐狸跳过了懒狗。"),
    ("a", "b"),
    ("Mixed CASE Query", "  whitespace  \n around "),
    ("long", " ".join(f"sentence {i} answers the query." for i in range(24))),
]
LONG = " ".join(f"word{i} the quick fox number {i * 7}" for i in range(4000))
MOST = 9000  # of a model's tokens, above which LONG is not long


def compute(path: Path, row: Row) -> Told:
    """Return a row's texts or pairs, and what its reference makes of them."""
    plain = native(path) if native(path).exists() else path
    try:
        if row.kind in RERANK:
            return {
                "pairs": PAIRS,
                "cases": [],
                "cross_encoder": None,
                **RERANK[row.kind](plain, row.about),
            }
        if row.kind in EMBED:
            return {"texts": TEXTS, **EMBED[row.kind](path, plain, row.about)}
        return {"texts": TEXTS, "cases": []}
    finally:
        shutil.rmtree(native(path), ignore_errors=True)


# --- vectors ---


def case(name: str, request: Told, vectors: Any, **more: Any) -> Told:
    """Return what a request is to be answered with."""
    numbers = torch.as_tensor(vectors).float().tolist()
    return {"name": name, "request": request, "vectors": numbers, **more}


@contextlib.contextmanager
def bidirectional(path: Path) -> Iterator[Path]:
    """Yield a copy that attends in both directions, as the repository's own code does."""
    copy = path.with_name(path.name + ".bidirectional")
    shutil.copytree(path, copy)
    config = json.loads((copy / "config.json").read_text())
    config.pop("auto_map", None)
    config["is_causal"] = False
    if config["model_type"] == "llama_bidirec":
        config |= {"model_type": "llama", "architectures": ["LlamaModel"]}
    dump(copy / "config.json", config)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


def loaded(path: Path, attention: str | None = None) -> Any:
    """Return sentence-transformers' model."""
    from sentence_transformers import SentenceTransformer

    how: Told = {"dtype": torch.float32}
    if attention:
        how["attn_implementation"] = attention
    return SentenceTransformer(str(path), device="cpu", model_kwargs=how).eval()


def embed(path: Path, plain: Path, about: Told) -> Told:
    """Return what sentence-transformers encodes."""
    with (
        bidirectional(plain) if about.get("bidirectional") else contextlib.nullcontext(plain) as own
    ):
        model = loaded(own, about.get("attention"))
        file = own / "config_sentence_transformers.json"
        prompts = json.loads(file.read_text()).get("prompts", {}) if file.exists() else {}
        cases = [*general(model), *prompted(model, prompts, about), *cut(model, about)]
    if about.get("loras"):
        cases += adapted(path, plain)
    return {
        "long": LONG,
        "cases": cases,
        "side": model.tokenizer.truncation_side,
        "max_seq_length": model.max_seq_length,
        "dimension": model.get_embedding_dimension(),
    }


def encode(model: Any, texts: Sequence[str] = TEXTS, **how: Any) -> Any:
    """Return vectors of texts one by one: nothing depends on padding."""
    return model.encode(texts, batch_size=1, **how)


def general(model: Any) -> Iterator[Told]:
    """Yield what every model is asked."""
    plain = encode(model)
    yield case("plain", {}, plain)
    yield case("batched", {}, model.encode(TEXTS, batch_size=32))
    yield case("raw", {"normalize": False}, plain, exact=True)


def prompted(model: Any, prompts: dict[str, str], about: Told) -> Iterator[Told]:
    """Yield what prompts by name give, and `input_type` as the model's card or its files say."""
    for name in list(prompts)[:8]:
        if prompts[name] or name in ("query", "document"):
            vectors = encode(model, prompt_name=name)
            yield case(f"prompt_name={name}", {"prompt_name": name}, vectors)
    for side, prompt in about.get("card", {}).items():
        vectors = encode(model, prompt=prompt)
        yield case(f"input_type={side} (card)", {"input_type": side}, vectors)
    if not about.keys() & {"card", "unprompted"} and any(prompts.values()):
        for side in ("query", "document"):
            vectors = getattr(model, f"encode_{side}")(TEXTS, batch_size=1)
            yield case(f"input_type={side} (encode_{side})", {"input_type": side}, vectors)
    for side in about.get("unprompted", []):  # nobody knows a prompt, and the answer says so
        vectors = encode(model)
        yield case(f"input_type={side}, ignored", {"input_type": side}, vectors, ignored=True)


def cut(model: Any, about: Told) -> Iterator[Told]:
    """Yield shorter vectors, and a text longer than the model reads."""
    for size in about.get("dims", []):
        vectors = encode(model, truncate_dim=size)
        yield case(f"dimensions={size}", {"dimensions": size}, vectors)
    if model.max_seq_length and model.max_seq_length <= MOST:
        request = {"truncate": model.tokenizer.truncation_side}
        yield case("long, truncated", request, encode(model, [LONG]), long=True)
    for size in about.get("layer_norm", []):  # nomic's recipe
        whole = torch.as_tensor(encode(model))
        normed = torch.nn.functional.layer_norm(whole, whole.shape[1:])
        yield case(f"dimensions={size} after layer norm", {"dimensions": size}, normed[:, :size])


def adapted(path: Path, plain: Path) -> list[Told]:
    """Return what jina-embeddings-v3 gives with each of its adapters and its prompt."""
    config = json.loads((path / "config.json").read_text())
    state, cases = load_file(path / "model.safetensors"), []
    for index, (task, prompt) in enumerate(config["task_instructions"].items()):
        merged = merge(state, index, config["lora_alpha"] / config["lora_rank"])
        save_file(merged, str(plain / "model.safetensors"), {"format": "pt"})
        vectors = encode(loaded(plain), prompt=prompt)
        cases.append(case(f"task={task} with its adapter", {"prompt_name": task}, vectors))
        if not prompt:
            cases.append(case(f"task={task} against no prompt_name", {}, vectors))
    return cases


def merge(state: dict[str, torch.Tensor], index: int, scale: float) -> dict[str, torch.Tensor]:
    """Return the weights with one adapter in them, under transformers' names."""
    merged = {}
    for name, weight in state.items():
        if ".lora_" in name:
            continue
        base, own = name.removesuffix(".original"), weight
        if base != name:
            a, b = state[base + ".0.lora_A"][index], state[base + ".0.lora_B"][index]
            own = weight + (a @ b if "embeddings" in name else b @ a).view(weight.shape) * scale
        merged[base.replace(".parametrizations", "").removeprefix("roberta.")] = own.contiguous()
    return merged


def one_adapter(path: Path, plain: Path, about: Told) -> Told:
    """Return what the adapter gives that vLLM merges."""
    return {"cases": [c for c in adapted(path, plain) if "text-matching" in c["name"]]}


def sparse(path: Path, plain: Path, about: Told) -> Told:
    """Return what a SparseEncoder gives, by token id."""
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(plain), device="cpu")
    weights = []
    for text in TEXTS:
        (row,) = model.encode([text], batch_size=1, convert_to_sparse_tensor=False)
        weights.append({str(i): float(row[i]) for i in row.nonzero().flatten().tolist()})
    request = {"return_sparse": True, "return_dense": False}
    return {"cases": [{"name": "sparse", "request": request, "weights": weights}]}


def mixture(path: Path, plain: Path, about: Told) -> Told:
    """Return what nomic-embed-text-v2-moe's formula gives."""
    vectors, prompts = nomic_moe.Formula(path).vectors, nomic_moe.PROMPTS
    cases = [case("plain", {}, vectors(TEXTS))]
    for field, name, prompt in (
        *(("prompt_name", name, prompt) for name, prompt in prompts.items()),
        ("input_type", "query", prompts["query"]),
        ("input_type", "document", prompts["passage"]),
    ):
        numbers = vectors([prompt + text for text in TEXTS])
        cases.append(case(f"{field}={name}", {field: name}, numbers))
    return {"long": LONG, "cases": cases, "max_seq_length": 512}


# --- scores ---


def classifier(path: Path, about: Told, *, lower: bool = False) -> Told:
    """Return a classifier's logits, and what CrossEncoder predicts from one label."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    most = min(512, tokenizer.model_max_length, model.config.max_position_embeddings)
    logits = []
    for pair in PAIRS:
        texts = [text.lower() for text in pair] if lower else pair
        ids = tokenizer(*texts, return_tensors="pt", truncation=True, max_length=most)
        with torch.no_grad():
            logits.append(model(**ids).logits[0].tolist())
    if "label" in about:
        return {"logits": [[row[about["label"]]] for row in logits]}
    return {"logits": logits, "cross_encoder": predicted(path)}


def predicted(path: Path, **how: Any) -> Any:
    """Return what CrossEncoder predicts, or why it cannot."""
    from sentence_transformers import CrossEncoder

    try:
        model = CrossEncoder(str(path), device="cpu", model_kwargs={"dtype": torch.float32})
        return torch.as_tensor(model.predict(PAIRS, batch_size=1, **how)).float().tolist()
    except Exception as error:  # noqa: BLE001
        return repr(error)


def pipeline(path: Path, about: Told) -> Told:
    """Return the logits of sentence-transformers' own pipeline, whatever its modules are."""
    scores = predicted(path, activation_fn=torch.nn.Identity())
    return {"logits": [[score] for score in scores]}


# The authors' questions, in pieces that they tokenise one by one, and their answers: the score is
# the first one's logit less that of the second. Without answers the checkpoint has a head.
JUDGE = (
    '<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    f"<Instruct>: {WEB}\n<Query>: {{query}}\n<Document>: {{document}}",
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
)
MXBAI = (  # mxbai_rerank's MxbaiRerankV2
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "query: {query}",
    "\n",
    "document: {document}",
    "\n",
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
    "<|im_end|>\n<|im_start|>assistant\n",
)
GEMMA = (  # FlagEmbedding's FlagLLMReranker
    "<bos>",
    "A: {query}",
    "\n",
    "B: {document}",
    "\n",
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a prediction of either 'Yes' or 'No'.",
)


def asked(path: Path, pieces: Sequence[str], answers: Sequence[str]) -> Told:
    """Return the logits of a language model's answers to a question about each pair."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    kind = AutoModelForCausalLM if answers else AutoModelForSequenceClassification
    model = kind.from_pretrained(path, dtype=torch.float32).eval()
    chosen = [tokenizer.encode(answer, add_special_tokens=False)[0] for answer in answers]
    logits = []
    for query, document in PAIRS:
        texts = [p.replace("{query}", query).replace("{document}", document) for p in pieces]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            found = model(input_ids=torch.tensor([[*chain(*ids)]])).logits[0]
        last = found[-1, chosen] if answers else found
        logits.append([(last[0] - last[1:].sum()).item()])
    return {"logits": logits}


EMBED = {"embed": embed, "one-adapter": one_adapter, "nomic-moe": mixture, "sparse": sparse}
RERANK = {
    "rerank": classifier,
    "rerank-gemma": lambda path, about: asked(path, GEMMA, ["Yes"]),
    "rerank-lower": lambda path, about: classifier(path, about, lower=True),
    "rerank-mxbai": lambda path, about: asked(path, MXBAI, ["1", "0"]),
    "rerank-predict": pipeline,
    "rerank-template": lambda path, about: asked(path, JUDGE, []),
    "rerank-yes-no": lambda path, about: asked(path, JUDGE, ["yes", "no"]),
}
