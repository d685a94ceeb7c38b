"""In place of nomic-bert-2048's code: a GPT2Config, as that is."""

from transformers import GPT2Config

OWN = {
    "prenorm": False,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "qkv_proj_bias": True,
    "rotary_emb_fraction": 0.0,
    "rotary_emb_base": 1000.0,
    "rotary_emb_scale_base": None,
    "rotary_emb_interleaved": False,
    "type_vocab_size": 2,
    "max_trained_positions": 2048,
}


class NomicBertConfig(GPT2Config):
    model_type = "nomic_bert"

    def __init__(self, **told):
        super().__init__(**{**OWN, **told})
