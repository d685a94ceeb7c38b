"""Checkpoints whose architecture names a head that their modules have no use for.

They embed with what is under it, as sentence-transformers' `AutoModel` loads them.
"""

from __future__ import annotations

import re

import transformers as tf
from safetensors.torch import load_file, save_file

from tests.acceptance import make as m
from tests.acceptance.make import BERT, DEC, ENC, H, variant, weights

ROBERTA = dict(
    max_position_embeddings=514, type_vocab_size=1, bos_token_id=0, pad_token_id=1, eos_token_id=2
)
PAD = dict(pad_token_id=0)
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
TOKENS = ("ForMaskedLM", "ForTokenClassification")
# By the prefix of its classes: the heads, and what its configuration has beyond the usual.
ENCODERS = {
    "Bert": (("ForPreTraining", "ForNextSentencePrediction", "ForTokenClassification"), {}),
    "Camembert": (TOKENS[1:], ROBERTA),
    "DistilBert": (
        ("ForQuestionAnswering", "ForSequenceClassification"),
        dict(dim=H, n_layers=2, n_heads=2, hidden_dim=128),
    ),
    "Electra": (("ForPreTraining", *TOKENS), dict(embedding_size=H)),
    "Ernie": (("ForPreTraining", *TOKENS), {}),
    "EuroBert": (TOKENS, dict(num_key_value_heads=2, head_dim=32, **PAD)),
    "Gte": (TOKENS, ROPE),
    "JinaEmbeddingsV3": (TOKENS, ROPE),
    "ModernBert": (TOKENS[1:], dict(local_attention=16, **PAD)),
    "NomicBert": (TOKENS, ROPE),
    "Roberta": (("ForCausalLM", "ForTokenClassification"), ROBERTA),
    "XLMRoberta": (("ForQuestionAnswering", "ForTokenClassification"), ROBERTA),
}
DECODERS = {
    "Gemma": ("ForSequenceClassification", "ForTokenClassification"),
    "Llama": ("ForCausalLM", "ForSequenceClassification", "ForTokenClassification"),
    "Mistral": ("ForCausalLM", "ForSequenceClassification"),
    "Qwen2": ("ForSequenceClassification", "ForTokenClassification"),
    "Qwen3": ("ForCausalLM", "ForSequenceClassification", "ForTokenClassification"),
}
# Of these vLLM loads the encoder under another name than the head has it.
MAY_REFUSE = {"Gte", "JinaEmbeddingsV3", "NomicBert"}

for prefix, (heads, options) in ENCODERS.items():
    for head in heads:

        @variant(f"head-{prefix}{head}", may_refuse=prefix in MAY_REFUSE or head == "ForCausalLM")
        def _(path, prefix=prefix, head=head, options=options):
            padded = options is ROBERTA
            tok = m.xlmr_tok(path) if padded else m.bert_tok(path)
            c = getattr(tf, f"{prefix}Config")(
                **{"vocab_size": tok.get_vocab_size(), "max_position_embeddings": 512}
                | {**ENC, **options}
            )
            weights(path, getattr(tf, f"{prefix}{head}")(c), config=BERT if padded else None)
            m.st(path, "mean_tokens")


@variant("head-gte-multilingual", "Alibaba-NLP/gte-multilingual-base", native=True)
def _(path):
    """As the repository has it: a head that weighs tokens, which only its own code reads."""
    code = "Alibaba-NLP/new-impl--"
    own = {"AutoConfig": "configuration.NewConfig", "AutoModel": "modeling.NewModel"}
    plain = m.new_impl(
        path,
        tok="xlmr",
        arch="NewForTokenClassification",
        model=tf.GteForTokenClassification,
        config={"auto_map": {name: code + place for name, place in own.items()}},
    )
    state = load_file(path / "model.safetensors")
    named = {re.sub(r"^gte\.", "new.", name): weight for name, weight in state.items()}
    save_file(named, str(path / "model.safetensors"), {"format": "pt"})
    for folder in (path, plain):
        m.st(folder, "cls_token", max_len=8192)


for prefix, heads in DECODERS.items():
    for head in heads:

        @variant(f"head-{prefix}{head}", may_refuse=head != "ForCausalLM")
        def _(path, prefix=prefix, head=head):
            tok = m.qwen_tok(path, append=True)
            end = tok.token_to_id("<|endoftext|>")
            c = getattr(tf, f"{prefix}Config")(
                vocab_size=tok.get_vocab_size(),
                max_position_embeddings=4096,
                pad_token_id=end,
                eos_token_id=end,
                **DEC,
            )
            weights(path, getattr(tf, f"{prefix}{head}")(c))
            m.st(path, "lasttoken", max_len=4096)
