"""In place of jina-embeddings-v3's code: the same class name."""

from transformers import PretrainedConfig


class XLMRobertaFlashConfig(PretrainedConfig):
    model_type = "xlm-roberta"
