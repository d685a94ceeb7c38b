"""Which class serves a checkpoint of which architecture; our own classes are in `models/`.

Plain data: what vLLM calls otherwise, what it computes otherwise than the authors, and what cannot
be served, with the reason.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

BERT: Final = "EmbeddingServiceBertModel"
BGE_M3: Final = "EmbeddingServiceBgeM3Model"
SPLADE: Final = "EmbeddingServiceSpladeModel"
DISTIL_SPLADE: Final = "EmbeddingServiceDistilSpladeModel"
DISTIL: Final = "EmbeddingServiceDistilBertModel"
GTE_PAIRS: Final = "EmbeddingServiceGteForSequenceClassification"
HEADLESS: Final = "EmbeddingServiceHeadlessModel"
JINA: Final = "EmbeddingServiceJinaModel"
ROBERTA: Final = "EmbeddingServiceRobertaModel"
ROBERTA_PAIRS: Final = "EmbeddingServiceRobertaForSequenceClassification"
# Dense models that are loaded with another class than config.json names, whatever their name. A
# name without its end stands for the encoder in a model with a head (`HEADS`).
DENSE: Final[Mapping[str, str]] = {
    "Bert": BERT,
    "CamembertModel": ROBERTA,
    "Camembert": ROBERTA,
    "DistilBertModel": DISTIL,
    "DistilBert": DISTIL,
    "Electra": HEADLESS,
    "Ernie": HEADLESS,
    "EuroBert": HEADLESS,
    "ModernBert": "ModernBertModel",
    "RobertaModel": ROBERTA,
    "Roberta": ROBERTA,
    "XLMRobertaModel": ROBERTA,
    "XLMRoberta": ROBERTA,
    "JinaEmbeddingsV3Model": JINA,
    # https://huggingface.co/Alibaba-NLP/new-impl
    "NewModel": "GteNewModel",
    # gte-multilingual-base, whose head gives weights of tokens.
    "NewForTokenClassification": "GteNewModel",
}
PAIRS: Final[Mapping[str, str]] = {
    "RobertaForSequenceClassification": ROBERTA_PAIRS,
    "XLMRobertaForSequenceClassification": ROBERTA_PAIRS,
    "CamembertForSequenceClassification": ROBERTA_PAIRS,
    "GteForSequenceClassification": GTE_PAIRS,
    "NewForSequenceClassification": "GteNewForSequenceClassification",
}
SPARSE: Final[dict[str, str]] = {"BertForMaskedLM": SPLADE, "DistilBertForMaskedLM": DISTIL_SPLADE}
# Encoders in which every token sees every other.
ENCODER: Final = r"(EmbeddingService|Electra|Ernie|Gte|New|\w*(Bert|Roberta|Camembert))"
# Learned positions begin behind the padding id, so `pad_token_id + 1` of them are not used.
PADDED_POSITIONS: Final = frozenset({"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl"})
LATE: Final = (
    "it gives a vector for each token (late interaction, ColBERT), of which only BGE-M3's are "
    "served here"
)
_OTHERWISE: Final = "vLLM computes other vectors than transformers"
_WINDOW: Final = f"{_OTHERWISE} of texts that are longer than its sliding window"
_T5: Final = "vLLM has no T5 encoder"
# Architectures that vLLM loads, or stumbles over, and that give no vector or score of a text.
REFUSED: Final[Mapping[str, str]] = {
    "HF_ColBERT": LATE,
    "ColBERTModernBertModel": LATE,
    "ColBERTJinaRobertaModel": LATE,
    "ColBERTLfm2Model": LATE,
    "ColPaliForRetrieval": LATE,
    "Cohere2ForCausalLM": _WINDOW,
    "Cohere2Model": _WINDOW,
    "GPTNeoXForCausalLM": _OTHERWISE,
    "GPTNeoXModel": _OTHERWISE,
    "JinaForRanking": "it ranks a list of documents at once, which no request here says",
    "T5EncoderModel": _T5,
    "T5Model": _T5,
    "T5ForConditionalGeneration": _T5,
    "MT5EncoderModel": _T5,
    "StaticModel": "it has no transformer but a table of token vectors (model2vec)",
}
# Classes of vLLM's own, by the beginning of their names, that were compared with the authors'. Our
# own classes were, too.
COMPARED: Final = frozenset({
    "Apertus", "Arcee", "Bert", "Bloom", "Cohere", "Ernie4_5", "Exaone4", "GPT2", "GPTBigCode",
    "Gemma", "Gemma2", "Gemma3Text", "Glm", "Granite", "Gte", "GteNew", "HunYuanDenseV1", "Jais2",
    "JinaEmbeddingsV5", "Llama", "LlamaBidirectional", "Mistral", "Mixtral", "ModernBert",
    "Nemotron", "NomicBert", "OPT", "Olmo", "Olmo2", "Phi", "Phi3", "Qwen2", "Qwen2Moe", "Qwen3",
    "XLMRoberta",
})  # fmt: skip
COMPARED_PAIRS: Final = frozenset({
    "Bert", "Gemma", "GteNew", "Llama", "ModernBert", "Qwen2", "Qwen3", "XLMRoberta",
})  # fmt: skip
# By model_type, encoders of transformers' own that vLLM runs in a wrapper, where they were compared
# with themselves. The wrapper numbers positions from 0: RoBERTa's kin would be wrong in it.
WRAPPED: Final = frozenset({"electra", "ernie", "eurobert"})
# Those whose classifier was compared, too.
WRAPPED_PAIRS: Final = frozenset({"electra"})
# Classifiers that vLLM loads and computes otherwise than their authors.
REFUSED_PAIRS: Final[Mapping[str, str]] = {
    "ErnieForSequenceClassification": (
        "vLLM runs it in a wrapper, which leaves out the layer between the first token and the "
        "classifier (pooler)"
    ),
    "EuroBertForSequenceClassification": (
        "vLLM runs it in a wrapper, whose scores nobody has compared with transformers'"
    ),
}
# Architectures whose classes in vLLM can let every token see every other, if config.json says so.
BIDIRECTIONAL: Final = (
    r"(EmbeddingService|Llama|Mistral|Qwen2Model|Qwen2For|Qwen3Model|Qwen3For|Gemma3Text|Apertus"
    r"|Jina|Voyage|Gte|New|Nomic|Electra|Ernie|EuroBert|\w*(Bert|Roberta|Camembert)).*"
)
# Heads that a checkpoint's architecture may name though its modules embed with the encoder alone.
HEADS: Final = r"For(PreTraining|MaskedLM|NextSentence|Sequence|Token|Question|Multiple)\w*"
# Classes in repositories' own Python code, by the end of their names in `auto_map`, that compute
# what vLLM's class of the same architecture computes, with these differences to config.json.
KNOWN_CODE: Final[Mapping[str, Mapping[str, Any]]] = {
    # gte-Qwen2 and stella_en_1.5B: every token sees every other.
    "modeling_qwen.Qwen2Model": {"is_causal": False},
    # jina-reranker-v2: a faster RoBERTa.
    "modeling_xlm_roberta.XLMRobertaForSequenceClassification": {},
    "modeling_xlm_roberta.XLMRobertaModel": {},
    # jina-embeddings-v3: `plan.py` looks at its adapters.
    "modeling_lora.XLMRobertaLoRA": {},
}
MERGED_TASK: Final = "text-matching"  # of jina-embeddings-v3's adapters, that which vLLM merges
# Architectures that transformers did not have, which vLLM wrote after the repositories' own code.
WRITTEN_AFTER_CODE: Final = frozenset({
    "GteModel", "GteNewForSequenceClassification", "GteNewModel", "JinaEmbeddingsV5Model",
    "LlamaBidirectionalForSequenceClassification", "LlamaBidirectionalModel",
    "NewForSequenceClassification", "NewForTokenClassification", "NewModel", "NomicBertModel",
    "VoyageQwen3BidirectionalEmbedModel",
})  # fmt: skip
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


def named_in(config: Mapping[str, Any]) -> str:
    """Return the architecture that a config.json names first, "" where it names none."""
    return str(next(iter(config.get("architectures") or ()), ""))


def replacement(config: Mapping[str, Any], classes: Mapping[str, str]) -> str | None:
    """Return which of `classes` serves a checkpoint with this config.json, if any does.

    Models with rotary positions (jina-embeddings-v3 calls itself XLMRobertaModel) are left to vLLM,
    unless their architecture has no others.
    """
    architecture = named_in(config)
    rotary = config.get("position_embedding_type", "absolute") != "absolute"
    if rotary and architecture not in WRITTEN_AFTER_CODE:
        return None
    return classes.get(architecture) or classes.get(re.sub(f"{HEADS}$", "", architecture))


def own_class(config: Mapping[str, Any]) -> str | None:
    """Return the class in the repository's own code that stands for the architecture, if any."""
    names = config.get("auto_map") or {}
    pairs = named_in(config).endswith("Classification")
    name = names.get("AutoModelForSequenceClassification" if pairs else "AutoModel")
    return None if name is None else re.sub(r"^.*--", "", str(name))


def missing_keys(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
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


def _of_distilbert(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return DistilBERT's keys as BERT's."""
    return {
        "hidden_act": config.get("activation", "gelu"),
        "intermediate_size": config.get("hidden_dim", 3072),
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute",
        "type_vocab_size": 1,
    }


def _of_nomic(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return both layouts' keys: transformers reads one of them, and vLLM's class the other."""
    pairs = _NOMIC.items()
    if "n_embd" not in config:  # transformers' layout
        named = {theirs: config[own] for own, theirs in pairs if own in config}
        return _NOMIC_DEFAULTS | named
    named = {own: config[theirs] for own, theirs in pairs if theirs in config}
    theta = config.get("rotary_emb_base", 1000)
    return named | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
