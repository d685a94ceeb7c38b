"""Models whose adapters lie beside the weights, one for each task: jina-embeddings v3 and v5."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from tests.acceptance import tokenizers_ as toks
from tests.acceptance.nets import JINA_V3, QWEN3, net
from tests.acceptance.steps import H, dump, keep_native, native, patch, st, stand_in, tensors
from tests.acceptance.table import TRUST, ask, family, like, overriding

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.steps import State

# A row is a line or two: a table, and not code.
# fmt: off

JINA_TASKS = {"retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ", "separation": "",
    "classification": "", "text-matching": ""}
RANK = 4  # of the adapters
JINA_KEYS = {"architectures": ["XLMRobertaModel"], "attention_probs_dropout_prob": 0.1,
    "auto_map": {"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig"},
    "bos_token_id": 0, "classifier_dropout": None, "emb_pooler": None, "eos_token_id": 2,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": H, "initializer_range": 0.02,
    "intermediate_size": 128, "layer_norm_eps": 1e-5, "load_trained_adapters": True,
    "lora_adaptations": list(JINA_TASKS), "lora_alpha": 1, "lora_dropout_p": 0.0,
    "lora_main_params_trainable": False, "lora_rank": RANK, "matryoshka_dimensions": [32, 64],
    "max_position_embeddings": 8194, "model_type": "xlm-roberta", "num_attention_heads": 2,
    "num_hidden_layers": 2, "output_past": True, "pad_token_id": 1,
    "position_embedding_type": "rotary", "rotary_emb_base": 20000.0,
    "task_instructions": JINA_TASKS, "torch_dtype": "float32", "truncate_dim": None,
    "type_vocab_size": 1, "use_cache": True, "use_flash_attn": True, "use_reentrant": False}
ADAPTED = (*("Wqkv.weight", "out_proj.weight", "fc1.weight", "fc2.weight", "pooler.dense.weight"),
    *("word_embeddings.weight", "token_type_embeddings.weight"))


def with_adapters(state: State) -> State:
    """Put an adapter for each task beside each matrix."""
    out: State = {}
    for name, weight in state.items():
        if not name.endswith(ADAPTED):
            out[f"roberta.{name}"] = weight
            continue
        base, kind = f"roberta.{name}".rsplit(".", 1)
        rows, columns = weight.shape
        first, second = (
            ((rows, RANK), (RANK, columns))
            if "embeddings" in name
            else ((RANK, columns), (rows, RANK))
        )
        out[f"{base}.parametrizations.{kind}.original"] = weight
        out[f"{base}.parametrizations.{kind}.0.lora_A"] = torch.randn(5, *first) * 0.2
        out[f"{base}.parametrizations.{kind}.0.lora_B"] = torch.randn(5, *second) * 0.2
    return out


def jina_v3(path: Path) -> None:
    """Give jina-embeddings-v3 its authors' keys and names, and its adapters."""
    keep_native(path)
    vocabulary = json.loads((path / "config.json").read_text())["vocab_size"]
    tensors(with_adapters)(path)
    dump(path / "config.json", {**JINA_KEYS, "vocab_size": vocabulary})
    stand_in("jina_v3", "configuration_xlm_roberta.py")(path)


JINA_ST = st(max_len=8194, prompts=JINA_TASKS)
JINA_HUB = "jinaai/jina-embeddings-v3"
ONE_TASK = overriding('{"lora_adaptations": ["text-matching"]}')
family("jina-v3", JINA_HUB, JINA_V3, jina_v3, JINA_ST, may_refuse=True)
like("jina-v3-trust", "jina-v3", args=TRUST, loras=True)
like("jina-v3-one-adapter", "jina-v3", kind="one-adapter", args=(*TRUST, *ONE_TASK),
    may_refuse=False)
family("jina-v3-hf", f"{JINA_HUB}-hf", JINA_V3, JINA_ST, unprompted=["query", "document"])


def jina_v5(path: Path) -> None:
    """Put adapters into folders, one for each task; the native copy has one of them merged."""
    keep_native(path)
    base = load_file(path / "model.safetensors")
    for task in ("retrieval", "text-matching", "classification", "clustering"):
        adapter, merged = {}, dict(base)
        for name in filter(lambda name: "_proj.weight" in name, base):
            rows, columns = base[name].shape
            a, b = torch.randn(4, columns) * 0.2, torch.randn(rows, 4) * 0.2
            key = "base_model.model." + name.removesuffix(".weight")
            adapter |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
            merged[name] = base[name] + (b @ a) * (8 / 4)
        folder = path / "adapters" / task
        dump(folder / "adapter_config.json", {"peft_type": "LORA", "r": 4, "lora_alpha": 8})
        save_file(adapter, str(folder / "adapter_model.safetensors"))
        if task == "retrieval":
            save_file(merged, str(native(path) / "model.safetensors"), {"format": "pt"})


JINA_V5 = "configuration_jina_embeddings_v5"
family("jina-v5-small", "jinaai/jina-embeddings-v5-text-small",
    net("Qwen3", toks.qwen(), **QWEN3.options, drop=("layer_types",)), jina_v5,
    patch("config.json", architectures=["JinaEmbeddingsV5Model"], model_type="jina_embeddings_v5",
        task_names=["retrieval", "text-matching", "clustering", "classification"],
        auto_map={"AutoConfig": f"{JINA_V5}.JinaEmbeddingsV5Config"}),
    stand_in("jina_v5", f"{JINA_V5}.py"),
    st("lasttoken", max_len=4096, prompts=ask("Query: ", "Document: ")), args=TRUST,
    card=ask("Query: ", "Document: "))
