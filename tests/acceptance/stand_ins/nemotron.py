"""In place of llama-nemotron-embed's code: the same class names; bidirectional as transformers 5 does it."""

from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel


class LlamaBidirectionalConfig(LlamaConfig):
    model_type = "llama_bidirec"

    def __init__(self, pooling="avg", temperature=1.0, **told):
        super().__init__(**told)
        self.pooling = pooling
        self.temperature = temperature
        self.is_causal = False


class LlamaBidirectionalModel(LlamaModel):
    config_class = LlamaBidirectionalConfig
