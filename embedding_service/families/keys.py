"""Keys of config.json under the names by which vLLM's classes look for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from embedding_service.families.checkpoint import Json

_GTE: Final = frozenset({"GteModel", "GteForSequenceClassification"})
# transformers' names for a nomic model, and those of the authors' code.
_NOMIC: Final = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "layer_norm_eps": "layer_norm_epsilon",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
# Transformers' class computes these, and has no keys for them.
_NOMIC_DEFAULTS: Final = {
    "activation_function": "swiglu",
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "qkv_proj_bias": False,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
}


def missing(config: Json, architecture: str) -> Json:
    """Return keys of config.json under the names by which vLLM's class looks for them."""
    if architecture in _GTE and "position_embedding_type" not in config:
        return {"position_embedding_type": "rope"}  # transformers' own layout has no key
    if architecture == "JinaEmbeddingsV3Model":
        return {"position_embedding_type": "rotary"}
    if architecture.startswith("DistilBert"):
        return _of_distilbert(config)
    if architecture == "NomicBertModel":
        return _of_nomic(config)
    return {}


def _of_distilbert(config: Json) -> Json:
    """Return DistilBERT's keys as BERT's."""
    return {
        "hidden_act": config.get("activation", "gelu"),
        "intermediate_size": config.get("hidden_dim", 3072),
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute",
        "type_vocab_size": 1,
    }


def _of_nomic(config: Json) -> Json:
    """Return both layouts' keys: transformers reads one of them, and vLLM's class the other."""
    pairs = _NOMIC.items()
    if "n_embd" not in config:  # transformers' layout
        named = {theirs: config[own] for own, theirs in pairs if own in config}
        return _NOMIC_DEFAULTS | named
    named = {own: config[theirs] for own, theirs in pairs if theirs in config}
    theta = config.get("rotary_emb_base", 1000)
    return named | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
