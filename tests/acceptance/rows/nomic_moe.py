"""nomic-embed-text-v2-moe, which transformers has no class for: its files, and its formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tests.acceptance import tokenizers_ as toks
from tests.acceptance.steps import dump

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.steps import State

# fmt: off

WIDTH, INNER, EXPERTS, LAYERS = 768, 128, 4, 2
PROMPTS = {"query": "search_query: ", "passage": "search_document: ",
    "Classification": "classification: "}
CODE = "nomic-ai/nomic-bert-2048--"
CONFIG = {"activation_function": "gelu", "architectures": ["NomicBertModel"], "attn_pdrop": 0.0,
    "bos_token_id": None, "causal": False, "dense_seq_output": True, "embd_pdrop": 0.1,
    "eos_token_id": None, "expert_choice_router": False, "ffn_div": 1, "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "auto_map": {"AutoConfig": CODE + "configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": CODE + "modeling_hf_nomic_bert.NomicBertModel"}, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-5, "max_trained_positions": 2048, "mlp_fc1_bias": True,
    "mlp_fc2_bias": True, "model_type": "nomic_bert", "moe_every_n_layers": 2,
    "moe_impl": "megablocks", "moe_normalize_expert_weights": False, "moe_resid_pdrop": 0.0,
    "moe_top_k": 2, "n_embd": WIDTH, "n_head": 12, "n_inner": INNER, "n_layer": LAYERS,
    "n_positions": 2048, "num_experts": EXPERTS, "num_shared_experts": 0, "pad_token_id": 1,
    "pad_vocab_size_multiple": 64, "parallel_block": False, "prenorm": False, "qkv_proj_bias": True,
    "resid_pdrop": 0.0, "rotary_emb_base": 10000, "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "rotary_scaling_factor": None,
    "router_aux_loss_coef": 0.1, "scale_attn_weights": True, "torch_dtype": "float32",
    "type_vocab_size": 1, "use_flash_attn": True, "use_rms_norm": None}


def small(*shape: int) -> torch.Tensor:
    """Return random numbers."""
    return torch.randn(*shape) * 0.05


def layer(i: int) -> State:
    """Return the weights of a layer; every second one has experts."""
    p, n = f"encoder.layers.{i}.", WIDTH
    state = {
        p + "attn.Wqkv.weight": small(3 * n, n),
        p + "attn.Wqkv.bias": small(3 * n),
        p + "attn.out_proj.weight": small(n, n),
        p + "attn.out_proj.bias": small(n),
    }
    for norm in ("norm1", "norm2"):
        state |= {f"{p}{norm}.weight": torch.rand(n) + 0.5, f"{p}{norm}.bias": small(n)}
    if i % 2 == 1:
        return state | {
            p + "mlp.router.layer.weight": small(EXPERTS, n),
            p + "mlp.experts.mlp.w1": small(EXPERTS * INNER, n),
            p + "mlp.experts.mlp.w2": small(EXPERTS * INNER, n),
            p + "mlp.experts.bias": small(n),
        }
    return state | {
        p + "mlp.fc1.weight": small(INNER, n),
        p + "mlp.fc1.bias": small(INNER),
        p + "mlp.fc2.weight": small(n, INNER),
        p + "mlp.fc2.bias": small(n),
    }


def make(path: Path) -> None:
    """Write config.json, tokenizer and weights."""
    words = toks.xlmr()(path).get_vocab_size()
    state = {
        "embeddings.word_embeddings.weight": torch.randn(words, WIDTH) * 0.2,
        "embeddings.token_type_embeddings.weight": small(1, WIDTH),
        "emb_ln.weight": torch.rand(WIDTH) + 0.5,
        "emb_ln.bias": small(WIDTH),
    }
    for i in range(LAYERS):
        state |= layer(i)
    save_file(state, str(path / "model.safetensors"), {"format": "pt"})
    dump(path / "config.json", {**CONFIG, "vocab_size": words})


# --- its formula: softmax over experts, the best of them as they are, one bias behind all ---


class Formula:
    """The model of a checkpoint."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.state = load_file(path / "model.safetensors")

    def vectors(self, texts: list[str]) -> list[list[float]]:
        """Return normalised means."""
        return [self.vector(text) for text in texts]

    def vector(self, text: str) -> list[float]:
        """Return the normalised mean of a text's last states."""
        ids = torch.tensor(self.tokenizer(text, truncation=True, max_length=512).input_ids)
        words = self.state["embeddings.word_embeddings.weight"][ids]
        types = self.state["embeddings.token_type_embeddings.weight"][0]
        x = self.norm(words + types, "emb_ln")
        for i in range(LAYERS):
            p = f"encoder.layers.{i}."
            x = self.norm(self.attention(x, p + "attn.") + x, p + "norm1")
            mlp = self.experts if f"{p}mlp.router.layer.weight" in self.state else self.mlp
            x = self.norm(mlp(x, p + "mlp.") + x, p + "norm2")
        mean = x.mean(0)
        return (mean / mean.norm()).tolist()

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Multiply, and add the bias."""
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Apply a layer norm."""
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return functional.layer_norm(x, (WIDTH,), weight, bias, CONFIG["layer_norm_epsilon"])

    def attention(self, x: torch.Tensor, p: str) -> torch.Tensor:
        """Attend in both directions."""
        three = self.linear(x, p + "Wqkv").view(len(x), 3, CONFIG["n_head"], -1)
        q, k, v = three.permute(1, 2, 0, 3)
        y = functional.scaled_dot_product_attention(rotate(q), rotate(k), v)
        return self.linear(y.transpose(0, 1).reshape(len(x), WIDTH), p + "out_proj")

    def mlp(self, x: torch.Tensor, p: str) -> torch.Tensor:
        """Apply the plain layer's."""
        return self.linear(functional.gelu(self.linear(x, p + "fc1")), p + "fc2")

    def experts(self, x: torch.Tensor, p: str) -> torch.Tensor:
        """Add what the chosen experts give, each by its share."""
        shares = (x @ self.state[p + "router.layer.weight"].T).softmax(-1)
        chosen, which = shares.topk(CONFIG["moe_top_k"])
        up, down = (
            self.state[f"{p}experts.mlp.{w}"].view(EXPERTS, -1, WIDTH) for w in ("w1", "w2")
        )
        out = torch.zeros_like(x)
        for row, gates, indices in zip(range(len(x)), chosen, which, strict=True):
            for gate, expert in zip(gates, indices, strict=True):
                out[row] += gate * (functional.gelu(x[row] @ up[expert].T) @ down[expert])
        return out + self.state[p + "experts.bias"]


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Turn each half against the other by the positions."""
    half = x.shape[-1] // 2
    inverse = CONFIG["rotary_emb_base"] ** -(torch.arange(half).float() / half)
    angle = torch.arange(x.shape[1]).float()[:, None] * inverse
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
