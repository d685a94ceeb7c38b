"""Tiny architectures with random weights, as transformers has them: the one place for all tests."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transformers as tf

from tests.acceptance import tokenizers_ as toks
from tests.acceptance.steps import H, dump

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenizers import Tokenizer

tf.utils.logging.set_verbosity_error()
tf.utils.logging.disable_progress_bar()
SEED = 20240205
ENC = {
    "hidden_size": H,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,  # of 32 numbers, the least that vLLM's attention on CPUs takes
    "intermediate_size": 128,
    "initializer_range": 0.2,  # wide enough that different texts get clearly different vectors
}
DEC = {**ENC, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
# Transformers 5 no longer writes these. Without the first vLLM takes the number of positions for
# the longest input, two more than XLM-R has.
SAYS = {"position_embedding_type": "absolute", "torch_dtype": "float32"}
ROPE_KEYS = ("rope_parameters", "layer_types")  # transformers 5's, which older files have not


@dataclass(frozen=True)
class Net:
    """An architecture; called with a folder, it writes config.json, tokenizer and weights.

    `prefix` and `head` name transformers' classes, `options` are its configuration's and `ids`
    those of them that are ids of tokens. `says` and `drop` change config.json afterwards.
    """

    prefix: str
    tok: Callable[[Path], Tokenizer]
    options: dict[str, Any]
    head: str = "Model"
    ids: dict[str, str] = field(default_factory=dict)
    says: dict[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32

    def but(self, head: str = "", **changes: Any) -> Net:
        """Return one with another head, other options, or more in its other fields."""
        own: dict[str, Any] = {"head": head or self.head}
        own |= {name: changes.pop(name) for name in ("tok", "dtype") if name in changes}
        own |= {name: getattr(self, name) | changes.pop(name, {}) for name in ("ids", "says")}
        own["drop"] = self.drop + changes.pop("drop", ())
        return dataclasses.replace(self, **own, options=self.options | changes)

    def __call__(self, path: Path) -> None:
        """Write it."""
        tok = self.tok(path)
        ids = {key: tok.token_to_id(token) for key, token in self.ids.items()}
        config = getattr(tf, f"{self.prefix}Config")
        config = config(**{"vocab_size": tok.get_vocab_size(), **self.options, **ids})
        model = getattr(tf, f"{self.prefix}{self.head}")(config)
        spread(model).to(self.dtype).save_pretrained(path)
        said = json.loads((path / "config.json").read_text())
        said = {key: value for key, value in said.items() if key not in self.drop}
        dump(path / "config.json", said | self.says)


def net(prefix: str, tok: Callable[[Path], Tokenizer], head: str = "Model", **given: Any) -> Net:
    """Return an architecture; what are no fields of it are options of its configuration."""
    fields = {name: given.pop(name) for name in ("ids", "says", "drop") if name in given}
    return Net(prefix, tok, given, head, **fields)


def spread(model: Any) -> Any:
    """Make norms and biases random: all would be 1 and 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return model.eval()


# --- encoders ---

PADDED = {
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
XLM_R = {**PADDED, "layer_norm_eps": 1e-5, **ENC, "says": SAYS, "drop": ("dtype",)}
DISTIL_SIZES = {"dim": H, "n_layers": 2, "n_heads": 2, "hidden_dim": 128, "initializer_range": 0.2}
# fmt: off
BERT = net("Bert", toks.bert(), max_position_embeddings=512, type_vocab_size=2, **ENC,
    says=SAYS, drop=("dtype",))
XLMR = net("XLMRoberta", toks.xlmr(), **XLM_R)
CAMEMBERT = net("Camembert", toks.xlmr(), **XLM_R)
ROBERTA = net("Roberta", toks.roberta(), **XLM_R)
DISTIL = net("DistilBert", toks.bert(cls="DistilBertTokenizer"), **DISTIL_SIZES)
ELECTRA = net("Electra", toks.bert(cls="ElectraTokenizer"), embedding_size=H,
    max_position_embeddings=512, **ENC, says=SAYS)
MODERN = net("ModernBert", toks.modernbert(), max_position_embeddings=8192, local_attention=16,
    **{**ENC, "num_hidden_layers": 4}, drop=ROPE_KEYS,
    ids={"pad_token_id": "[PAD]", "bos_token_id": "[CLS]", "eos_token_id": "[SEP]",
        "cls_token_id": "[CLS]", "sep_token_id": "[SEP]"},
    says={"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "layer_norm_eps": 1e-5,
        "global_attn_every_n_layers": 3, "position_embedding_type": "absolute"})
# fmt: on


def rope(theta: float) -> dict[str, Any]:
    """Return plain rotary positions as transformers 5 writes them."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


# fmt: off
GTE = net("Gte", toks.xlmr(8192), type_vocab_size=1, pad_token_id=1, num_labels=1, **ENC,
    **rope(160000))
GTE_EN = GTE.but(tok=toks.bert(max_length=8192), pad_token_id=0)
NOMIC = net("NomicBert", toks.bert(max_length=8192), **ENC, **rope(1000.0))
JINA_V3 = net("JinaEmbeddingsV3", toks.xlmr(8194), **ENC, **rope(20000.0))
# fmt: on
# By the prefix of its classes, what an encoder's configuration has beside the usual.
USUAL: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Camembert": PADDED,
    "DistilBert": DISTIL_SIZES,
    "Electra": {"embedding_size": H},
    "Ernie": {},
    "EuroBert": {"num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0},
    "Gte": rope(10000.0),
    "JinaEmbeddingsV3": rope(10000.0),
    "ModernBert": {"local_attention": 16, "pad_token_id": 0},
    "NomicBert": rope(10000.0),
    "Roberta": PADDED,
    "XLMRoberta": PADDED,
}


def encoder(prefix: str, head: str = "Model", **options: Any) -> Net:
    """Return an encoder as transformers 5 saves it."""
    sizes = {"max_position_embeddings": 512, **ENC, **USUAL[prefix], **options}
    if USUAL[prefix] is PADDED:
        return net(prefix, toks.xlmr(), head, **sizes, says=SAYS)
    return net(prefix, toks.bert(), head, **sizes)


# --- decoders ---

END = "<|endoftext|>"
QWEN2_SIZES = {**ENC, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
# fmt: off
QWEN3 = net("Qwen3", toks.qwen(), max_position_embeddings=32768, rope_theta=1e6,
    tie_word_embeddings=True, **DEC, drop=ROPE_KEYS,
    says={"architectures": ["Qwen3ForCausalLM"], "rope_theta": 1000000, "rope_scaling": None})
QWEN2 = net("Qwen2", toks.qwen(), max_position_embeddings=8192, rope_theta=1e6, bos_token_id=0,
    eos_token_id=0, tie_word_embeddings=False, **QWEN2_SIZES, drop=ROPE_KEYS,
    says={"rope_theta": 1e6})
QWEN2_CAUSAL = net("Qwen2", toks.qwen(), "ForCausalLM", max_position_embeddings=32768,
    rope_theta=1e6, tie_word_embeddings=True, **QWEN2_SIZES, drop=ROPE_KEYS,
    says={"rope_theta": 1e6})
LLAMA = net("Llama", toks.llama3(), max_position_embeddings=131072, rope_theta=500000.0, **DEC,
    says={"rope_theta": 500000.0}, drop=("rope_parameters",))
MISTRAL = net("Mistral", toks.llama2(), max_position_embeddings=32768, sliding_window=4096,
    bos_token_id=1, eos_token_id=2, **DEC, says={"rope_theta": 10000.0}, drop=("rope_parameters",))
GEMMA = net("Gemma", toks.gemma(8192, eos=False), max_position_embeddings=8192, **DEC,
    says={"rope_theta": 10000.0}, drop=("rope_parameters",))
GEMMA_IDS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "query_pre_attn_scalar": 32}
GEMMA2 = net("Gemma2", toks.gemma(8192), max_position_embeddings=8192, sliding_window=4096,
    **GEMMA_IDS, **DEC, says={"rope_theta": 10000.0}, drop=ROPE_KEYS)
# fmt: on


def decoder(prefix: str, head: str = "Model", **options: Any) -> Net:
    """Return a decoder as transformers 5 saves it."""
    sizes = {"max_position_embeddings": 4096, **DEC, **options}
    ids = {"pad_token_id": END, "eos_token_id": END}
    return net(prefix, toks.qwen(), head, **sizes, ids=ids)
