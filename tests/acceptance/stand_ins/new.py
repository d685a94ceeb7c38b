"""In place of Alibaba-NLP/new-impl's code: the same class name."""

from transformers import PretrainedConfig


class NewConfig(PretrainedConfig):
    model_type = "new"
