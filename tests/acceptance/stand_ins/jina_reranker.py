"""In place of jina-reranker-v2's code: the same class name."""

from transformers import XLMRobertaConfig


class XLMRobertaFlashConfig(XLMRobertaConfig):
    pass
