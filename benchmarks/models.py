"""The models that are measured: MiniLM, its first layer alone, and random weights in the shapes of
two large ones.

Those are made under .bench/models when first asked for. Their vocabulary and tokenizer are MiniLM's
(30,522 entries): an embedding is a look-up, so its size changes no arithmetic. On a machine without
MiniLM, its tokenizer alone may lie at .bench/tokenizer.json.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.texts import ROOT

SCRATCH = ROOT / ".bench"
SPECIAL = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}
# Names for the gateway, which knows these models' habits by them.
NAMES = {
    "minilm": "all-MiniLM-L6-v2",
    "one-layer": "one-layer",
    "qwen3-0.6b": "Qwen/Qwen3-Embedding-0.6B",
    "bge-m3": "BAAI/bge-m3",
    "arctic-m": "arctic-m",
    "minilm-shape": "minilm-shape",
}
BERT_SHAPES = {"arctic-m": (768, 12), "minilm-shape": (384, 6)}  # width, layers


@dataclass(frozen=True)
class Model:
    """A checkpoint; `products` are the (in, out) widths of one layer's matrices."""

    name: str
    path: Path
    max_tokens: int | None  # None: what the model says
    layers: int
    products: tuple[tuple[int, int], ...]
    pooling: str

    @property
    def flop_per_token(self) -> int:
        """Two operations a weight, without embeddings and attention's own products."""
        return 2 * self.layers * sum(rows * columns for rows, columns in self.products)


def find(name: str) -> Model:
    """Return a model by its name in `NAMES`; make it first where that is needed."""
    path = minilm() if name == "minilm" else SCRATCH / "models" / name
    if not (path / "config.json").exists():
        unfinished = path.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        if name in BERT_SHAPES:
            _bert(unfinished, *BERT_SHAPES[name])
        else:
            {"one-layer": _one_layer, "qwen3-0.6b": _qwen3, "bge-m3": _bge_m3}[name](unfinished)
        shutil.copy(_tokenizer(), unfinished)
        (unfinished / "tokenizer_config.json").write_text(
            json.dumps(SPECIAL | {"tokenizer_class": "PreTrainedTokenizerFast"})
        )
        unfinished.rename(path)
    config = json.loads((path / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    if "head_dim" in config:  # Qwen3
        queries, keys = (
            config["head_dim"] * config[f"num_{kind}_heads"] for kind in ("attention", "key_value")
        )
        products = (
            (hidden, queries + 2 * keys),
            (queries, hidden),
            (hidden, 2 * inner),
            (inner, hidden),
        )
    else:
        products = ((hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden))
    longest = 1024 if config["max_position_embeddings"] > 1024 else None
    pooling = {"qwen3-0.6b": "last", "bge-m3": "cls", "arctic-m": "cls"}.get(name, "mean")
    return Model(name, path, longest, config["num_hidden_layers"], products, pooling)


def _tokenizer() -> Path:
    alone = SCRATCH / "tokenizer.json"
    return alone if alone.exists() else minilm() / "tokenizer.json"


def minilm() -> Path:
    from embedding_service.settings.load import load
    from embedding_service.worker.location import resolve_model

    return Path(resolve_model(load(ROOT / "config" / "demo.yaml")[0].served_models[0]).model)


def _one_layer(folder: Path) -> None:
    """Nearly all time is spent around this one."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(
        minilm(), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "onnx")
    )
    (weights,) = minilm().glob("*.safetensors")
    tensors = {
        name: tensor
        for name, tensor in load_file(weights).items()
        if not re.search(r"layer\.[1-9]", name)
    }
    save_file(tensors, folder / weights.name, metadata={"format": "pt"})
    config = json.loads((minilm() / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))


def _qwen3(folder: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=30522,
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=101,
        eos_token_id=102,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def _bert(folder: Path, width: int, layers: int) -> None:
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=30522,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=4 * width,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    BertModel(config, add_pooling_layer=False).to(torch.bfloat16).save_pretrained(folder)
    mode = "cls_token" if folder.stem == "arctic-m" else "mean_tokens"
    pooling = {"word_embedding_dimension": width, f"pooling_mode_{mode}": True}
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": int(name),
                    "name": name,
                    "path": path,
                    "type": f"sentence_transformers.models.{kind}",
                }
                for name, path, kind in modules
            ]
        )
    )
    length = {"max_seq_length": 512, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(length))


def _bge_m3(folder: Path) -> None:
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(
        vocab_size=30522,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=8194,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=101,
        eos_token_id=102,
        pad_token_id=0,
        position_embedding_type="absolute",
    )
    torch.manual_seed(0)
    XLMRobertaModel(config).to(torch.bfloat16).save_pretrained(folder)
    for name, width in (("sparse", 1), ("colbert", config.hidden_size)):
        torch.save(
            torch.nn.Linear(config.hidden_size, width).state_dict(), folder / f"{name}_linear.pt"
        )
