"""What sentence-transformers (transformers where it has nothing to say) computes from a checkpoint, in fp32 on a CPU."""

from __future__ import annotations

import json
import shutil

import torch

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


def compute(path, hub: str, kind: str, more: dict) -> dict:
    plain = path.with_name(path.name + ".native") if more.get("native") else path
    try:
        if kind == "embed":
            return {"texts": TEXTS, "long": LONG, **embed(plain, more)}
        if kind == "one-adapter":  # the one that vLLM merges
            tasks = jina_v3_tasks(path, plain)
            return {"texts": TEXTS, "cases": [c for c in tasks if "text-matching" in c["name"]]}
        if kind == "rerank":
            return rerank(plain, label=more.get("label"))
        if kind in ALONE:
            return ALONE[kind](plain)
        return {"texts": TEXTS, "cases": []}
    finally:
        if more.get("native"):
            shutil.rmtree(plain, ignore_errors=True)


def embed(path, more: dict) -> dict:
    from sentence_transformers import SentenceTransformer

    own = path
    if more.get("bidirectional"):  # as the repository's own code attends
        own = path.with_name(path.name + ".bidirectional")
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(path, own)
        data = json.loads((own / "config.json").read_text())
        data.pop("auto_map", None)
        data["is_causal"] = False
        if data["model_type"] == "llama_bidirec":
            data |= {"model_type": "llama", "architectures": ["LlamaModel"]}
        (own / "config.json").write_text(json.dumps(data))
    model = SentenceTransformer(
        str(own),
        device="cpu",
        model_kwargs={
            "dtype": torch.float32,
            **({"attn_implementation": more["attention"]} if "attention" in more else {}),
        },
    )
    model.eval()
    lists = lambda a: torch.as_tensor(a).float().tolist()  # noqa: E731
    cases = []

    def case(name, request, vectors, **kw):
        cases.append({"name": name, "request": request, "vectors": lists(vectors), **kw})

    one = lambda texts, **kw: model.encode(texts, batch_size=1, **kw)  # noqa: E731 - no padding: nothing depends on it
    case("plain", {}, one(TEXTS))
    case("batched", {}, model.encode(TEXTS, batch_size=32))
    case("raw", {"normalize": False}, one(TEXTS), exact=True)
    told = own / "config_sentence_transformers.json"
    own_prompts = json.loads(told.read_text()).get("prompts", {}) if told.exists() else {}
    for name in list(own_prompts)[:8]:
        if own_prompts[name] or name in ("query", "document"):
            case(f"prompt_name={name}", {"prompt_name": name}, one(TEXTS, prompt_name=name))
    for side, prompt in more.get("card", {}).items():
        case(f"input_type={side} (card)", {"input_type": side}, one(TEXTS, prompt=prompt))
    if not more.keys() & {"card", "unprompted"} and any(own_prompts.values()):
        case(
            "input_type=query (encode_query)",
            {"input_type": "query"},
            model.encode_query(TEXTS, batch_size=1),
        )
        case(
            "input_type=document (encode_document)",
            {"input_type": "document"},
            model.encode_document(TEXTS, batch_size=1),
        )
    for side in more.get("unprompted", []):  # nobody knows a prompt, and the answer says so
        case(f"input_type={side}, ignored", {"input_type": side}, one(TEXTS), ignored=True)
    for size in more.get("dims", []):
        case(f"dimensions={size}", {"dimensions": size}, one(TEXTS, truncate_dim=size))
    limit = model.max_seq_length
    if limit and limit <= 9000:
        side = model.tokenizer.truncation_side
        case("long, truncated", {"truncate": side}, one([LONG]), long=True)
    for size in more.get("layer_norm", []):  # nomic's recipe: layer norm, then cut
        whole = torch.as_tensor(one(TEXTS))
        case(
            f"dimensions={size} after layer norm",
            {"dimensions": size},
            torch.nn.functional.layer_norm(whole, whole.shape[1:])[:, :size],
        )
    if more.get("loras"):
        cases += jina_v3_tasks(path.with_name(path.name.removesuffix(".native")), path)
    if own != path:
        shutil.rmtree(own)
    return {
        "cases": cases,
        "side": model.tokenizer.truncation_side,
        "max_seq_length": limit,
        "dimension": model.get_embedding_dimension(),
    }


def sparse(path) -> dict:
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(str(path), device="cpu")
    rows = [model.encode([t], batch_size=1, convert_to_sparse_tensor=False)[0] for t in TEXTS]
    weights = [{str(i): float(r[i]) for i in r.nonzero().flatten().tolist()} for r in rows]
    return {
        "name": "sparse",
        "request": {"return_sparse": True, "return_dense": False},
        "weights": weights,
    }


def rerank(path, label=None, lower=False) -> dict:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    most = min(512, tokenizer.model_max_length, model.config.max_position_embeddings)
    logits, default = [], None
    with torch.no_grad():
        for q, d in PAIRS:
            q, d = (q.lower(), d.lower()) if lower else (q, d)
            logits.append(
                model(**tokenizer(q, d, return_tensors="pt", truncation=True, max_length=most))
                .logits[0]
                .tolist()
            )
    if label is not None:
        return {
            "pairs": PAIRS,
            "logits": [[row[label]] for row in logits],
            "cross_encoder": None,
            "cases": [],
        }
    try:
        from sentence_transformers import CrossEncoder

        ce = CrossEncoder(str(path), device="cpu")
        default = torch.as_tensor(ce.predict(PAIRS, batch_size=1)).float().tolist()
    except Exception as error:  # noqa: BLE001
        default = repr(error)
    return {"pairs": PAIRS, "logits": logits, "cross_encoder": default, "cases": []}


def predict(path) -> dict:
    """Return the logits of sentence-transformers' own pipeline, whatever its modules are."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(path), device="cpu", model_kwargs={"dtype": torch.float32})
    scores = [model.predict([pair], activation_fn=torch.nn.Identity())[0] for pair in PAIRS]
    return {
        "pairs": PAIRS,
        "logits": [[float(score)] for score in scores],
        "cross_encoder": None,
        "cases": [],
    }


# The authors' questions, in pieces that they tokenise one by one: mxbai_rerank's MxbaiRerankV2, and
# FlagEmbedding's FlagLLMReranker. The score is the first answer's logit less that of the second.
MXBAI_QUESTION = (
    [
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "query: {query}",
        "\n",
        "document: {document}",
        "\n",
        "You are a search relevance expert who evaluates how well documents match search queries. For each query-document pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
        "<|im_end|>\n<|im_start|>assistant\n",
    ],
    ("1", "0"),
)
GEMMA_QUESTION = (
    [
        "<bos>",
        "A: {query}",
        "\n",
        "B: {document}",
        "\n",
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a prediction of either 'Yes' or 'No'.",
    ],
    ("Yes",),
)


def in_words(path, question) -> dict:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tok = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    pieces, answers = question
    answer_ids = [tok.encode(a, add_special_tokens=False)[0] for a in answers]
    out = []
    with torch.no_grad():
        for q, d in PAIRS:
            texts = [p.replace("{query}", q).replace("{document}", d) for p in pieces]
            ids = [i for t in texts for i in tok.encode(t, add_special_tokens=False)]
            last = model(input_ids=torch.tensor([ids])).logits[0, -1, answer_ids]
            out.append([(last[0] - last[1:].sum()).item()])
    return {"pairs": PAIRS, "logits": out, "cross_encoder": None, "cases": []}


def yes_no(path, score: bool = False) -> dict:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tok = AutoTokenizer.from_pretrained(path)
    model = (
        (AutoModelForSequenceClassification if score else AutoModelForCausalLM)
        .from_pretrained(path, dtype=torch.float32)
        .eval()
    )
    head = '<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    tail = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    task = "Given a web search query, retrieve relevant passages that answer the query"
    out = []
    with torch.no_grad():
        for q, d in PAIRS:
            ids = [
                i
                for part in (head, f"<Instruct>: {task}\n<Query>: {q}\n<Document>: {d}", tail)
                for i in tok.encode(part, add_special_tokens=False)
            ]
            last = model(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            ).logits[0]
            if score:
                out.append([last.item()])
                continue
            last = last[-1]
            out.append(
                [
                    (
                        last[tok.convert_tokens_to_ids("yes")]
                        - last[tok.convert_tokens_to_ids("no")]
                    ).item()
                ]
            )
    return {"pairs": PAIRS, "logits": out, "cross_encoder": None, "cases": []}


def jina_v3_tasks(path, plain) -> list[dict]:
    """jina-embeddings-v3 with each of its adapters, and the prompt that goes with it."""
    from safetensors.torch import load_file, save_file
    from sentence_transformers import SentenceTransformer

    config = json.loads((path / "config.json").read_text())
    state, cases = load_file(path / "model.safetensors"), []
    for index, task in enumerate(config["lora_adaptations"]):
        merged = {}
        for name, w in state.items():
            if name.endswith(".original"):
                base = name.removesuffix(".original")
                a, b = state[base + ".0.lora_A"][index], state[base + ".0.lora_B"][index]
                w = (
                    w
                    + (a @ b if "embeddings" in name else b @ a).view(w.shape)
                    * config["lora_alpha"]
                    / config["lora_rank"]
                )
                name = base.replace(".parametrizations", "")
            elif ".lora_" in name:
                continue
            merged[name.removeprefix("roberta.")] = w.contiguous()
        save_file(merged, str(plain / "model.safetensors"), {"format": "pt"})
        model = SentenceTransformer(str(plain), device="cpu", model_kwargs={"dtype": torch.float32})
        prompt = config["task_instructions"][task]
        vectors = torch.as_tensor(model.encode(TEXTS, batch_size=1, prompt=prompt)).float().tolist()
        cases.append(
            {
                "name": f"task={task} with its adapter",
                "request": {"prompt_name": task},
                "vectors": vectors,
            }
        )
        if prompt:
            continue
        cases.append(
            {"name": f"task={task} against no prompt_name", "request": {}, "vectors": vectors}
        )
    return cases


def nomic_moe(path) -> dict:
    """nomic-embed-text-v2-moe written out: softmax over experts, the best k as they are, one bias behind all."""
    from safetensors.torch import load_file
    from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention
    from transformers import AutoTokenizer

    c, w, tok = (
        json.loads((path / "config.json").read_text()),
        load_file(path / "model.safetensors"),
        AutoTokenizer.from_pretrained(path),
    )
    n, heads, experts = c["n_embd"], c["n_head"], c["num_experts"]

    def norm(x, name):
        return layer_norm(x, (n,), w[name + ".weight"], w[name + ".bias"], c["layer_norm_epsilon"])

    def rotate(x):
        half = x.shape[-1] // 2
        inverse = c["rotary_emb_base"] ** -(torch.arange(half).float() / half)
        angle = torch.arange(x.shape[1]).float()[:, None] * inverse
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def one(text):
        ids = torch.tensor(tok(text, truncation=True, max_length=512).input_ids)
        x = norm(
            w["embeddings.word_embeddings.weight"][ids]
            + w["embeddings.token_type_embeddings.weight"][0],
            "emb_ln",
        )
        for i in range(c["n_layer"]):
            p = f"encoder.layers.{i}."
            q, k, v = (
                (x @ w[p + "attn.Wqkv.weight"].T + w[p + "attn.Wqkv.bias"])
                .view(len(ids), 3, heads, -1)
                .permute(1, 2, 0, 3)
            )
            y = (
                scaled_dot_product_attention(rotate(q), rotate(k), v)
                .transpose(0, 1)
                .reshape(len(ids), n)
            )
            x = norm(
                y @ w[p + "attn.out_proj.weight"].T + w[p + "attn.out_proj.bias"] + x, p + "norm1"
            )
            if p + "mlp.router.layer.weight" in w:
                chosen, which = (
                    (x @ w[p + "mlp.router.layer.weight"].T).softmax(-1).topk(c["moe_top_k"])
                )
                w1, w2 = (w[p + f"mlp.experts.mlp.{m}"].view(experts, -1, n) for m in ("w1", "w2"))
                y = (
                    torch.stack(
                        [
                            sum(
                                g * (gelu(row @ w1[e].T) @ w2[e])
                                for g, e in zip(gs, es, strict=False)
                            )
                            for row, gs, es in zip(x, chosen, which, strict=False)
                        ]
                    )
                    + w[p + "mlp.experts.bias"]
                )
            else:
                y = (
                    gelu(x @ w[p + "mlp.fc1.weight"].T + w[p + "mlp.fc1.bias"])
                    @ w[p + "mlp.fc2.weight"].T
                    + w[p + "mlp.fc2.bias"]
                )
            x = norm(y + x, p + "norm2")
        return (x.mean(0) / x.mean(0).norm()).tolist()

    prompts = json.loads((path / "config_sentence_transformers.json").read_text())["prompts"]
    cases = [{"name": "plain", "request": {}, "vectors": [one(t) for t in TEXTS]}]
    cases += [
        {
            "name": f"prompt_name={k}",
            "request": {"prompt_name": k},
            "vectors": [one(v + t) for t in TEXTS],
        }
        for k, v in prompts.items()
    ]
    cases += [
        {
            "name": f"input_type={k}",
            "request": {"input_type": k},
            "vectors": [one(prompts[v] + t) for t in TEXTS],
        }
        for k, v in (("query", "query"), ("document", "passage"))
    ]
    return {"texts": TEXTS, "long": LONG, "cases": cases, "max_seq_length": 512}


# Kinds of one function.
ALONE = {
    "nomic-moe": nomic_moe,
    "rerank-gemma": lambda path: in_words(path, GEMMA_QUESTION),
    "rerank-lower": lambda path: rerank(path, lower=True),
    "rerank-mxbai": lambda path: in_words(path, MXBAI_QUESTION),
    "rerank-predict": predict,
    "rerank-template": lambda path: yes_no(path, score=True),
    "rerank-yes-no": yes_no,
    "sparse": lambda path: {"texts": TEXTS, "cases": [sparse(path)]},
}
