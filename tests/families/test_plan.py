"""How a checkpoint is served, from its files alone: computed as they say, or refused by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from embedding_service.families import architectures, plan, recipe, refusals
from embedding_service.families.checkpoint import ModelRefused

if TYPE_CHECKING:
    from pathlib import Path

    from embedding_service.families.plan import Plan

ST = "sentence_transformers.models."
POOLING = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}


def write(folder: Path, files: dict[str, Any]) -> Path:
    """Write JSON files; None is an empty file that nobody reads."""
    for place, value in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if value is None else json.dumps(value))
    return folder


def modules(*names: str) -> list[dict[str, str]]:
    """Return a modules.json: each module in its folder, as sentence-transformers numbers them."""
    kinds = ["Transformer", "Pooling", *names]
    return [
        {"type": ST + kind if "." not in kind else kind, "path": f"{i}_{kind}" if i else ""}
        for i, kind in enumerate(kinds)
    ]


def planned(folder: Path, files: dict[str, Any] | None = None, **wishes: Any) -> Plan:
    """Return the plan for a BERT with mean pooling and these files."""
    plain = {
        "config.json": {"architectures": ["BertModel"]},
        "modules.json": modules(),
        "1_Pooling/config.json": POOLING,
    }
    write(folder, plain | (files or {}))
    return plan.make(str(folder), plan.Wishes(**{"name": "some/model"} | wishes))


def reason(folder: Path, files: dict[str, Any], **wishes: Any) -> str:
    """Return why a checkpoint is refused."""
    with pytest.raises(ModelRefused) as error:
        planned(folder, files, **wishes)
    return str(error.value)


def test_a_plain_model_is_left_to_vllm(tmp_path: Path) -> None:
    """Where vLLM's pooling is that of the files, nothing of ours takes its place."""
    files = {"modules.json": modules("Normalize")}
    found = planned(tmp_path, files)
    assert (found.pooling, found.pools) == ("MEAN", False)
    assert found.recipe == recipe.Recipe(modes=("mean",), normalizes=True)


@pytest.mark.parametrize(
    ("pooling", "modes"),
    [
        ({"pooling_mode_max_tokens": True}, ("max",)),
        (
            {"pooling_mode_weightedmean_tokens": True, "pooling_mode_cls_token": True},
            ("cls", "weightedmean"),
        ),
        (
            {"pooling_mode": ["lasttoken", "mean_sqrt_len_tokens"]},
            ("lasttoken", "mean_sqrt_len_tokens"),
        ),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
        ({"pooling_mode_mean_tokens": True, "include_prompt": False}, ("mean",)),
    ],
)
def test_pooling_is_read(tmp_path: Path, pooling: dict[str, Any], modes: tuple[str, ...]) -> None:
    """All modes of sentence-transformers are known, in the order in which they are joined."""
    found = planned(tmp_path, {"1_Pooling/config.json": {"word_embedding_dimension": 8} | pooling})
    assert found.recipe is not None
    assert found.recipe.modes == modes
    assert found.pools == (modes != ("mean",) or "include_prompt" in pooling)


def test_steps_are_read_in_order(tmp_path: Path) -> None:
    """A scaling that is cut behind it, and one in between, are the model's; weights are found."""
    dense = {"in_features": 8, "out_features": 4, "activation_function": "torch.nn.GELU"}
    files = {
        "modules.json": modules("Dense", "Normalize", "LayerNorm", "Dropout", "Normalize"),
        "2_Dense/config.json": dense,
        "2_Dense/model.safetensors": None,
        "4_LayerNorm/config.json": {"dimension": 4},
        "4_LayerNorm/pytorch_model.bin": None,
        "config_sentence_transformers.json": {"truncate_dim": 2},
    }
    found = planned(tmp_path, files).recipe
    assert found is not None
    assert not found.normalizes
    assert found.steps == (
        recipe.Dense(
            inputs=8,
            outputs=4,
            bias=True,
            activation="GELU",
            residual=False,
            weights=tmp_path / "2_Dense/model.safetensors",
        ),
        recipe.Normalize(),
        recipe.LayerNorm(4, tmp_path / "4_LayerNorm/pytorch_model.bin"),
        recipe.Normalize(),
        recipe.Cut(2),
    )


@pytest.mark.parametrize(
    ("architecture", "config", "modes"),
    [
        ("BertModel", {}, ("mean",)),
        ("MistralModel", {}, ("mean",)),
        ("Qwen2ForCausalLM", {}, ("lasttoken",)),
        ("Qwen2ForCausalLM", {"is_causal": False}, ("mean",)),
    ],
)
def test_without_modules_it_is_as_sentence_transformers_takes_it(
    tmp_path: Path, architecture: str, config: dict[str, Any], modes: tuple[str, ...]
) -> None:
    """The mean of all tokens, or the last one of a causal language model."""
    files = {"config.json": {"architectures": [architecture]} | config, "modules.json": []}
    found = planned(tmp_path, files).recipe
    assert found is not None
    assert found.modes == modes


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"modules.json": modules("WordWeights")}, ["modules.json", "WordWeights"]),
        ({"modules.json": modules("pylate.models.Dense.Dense")}, ["modules.json", "pylate"]),
        (
            {"1_Pooling/config.json": {"pooling_mode_median": True}},
            ["1_Pooling/config.json", "median"],
        ),
        ({"1_Pooling/config.json": {"pooling_mode": "median"}}, ["1_Pooling", "median"]),
        ({"sentence_bert_config.json": {"query_length": 32}}, ["sentence_bert", "query_length"]),
        (
            {"sentence_bert_config.json": {"model_args": {"layers": 2}}},
            ["sentence_bert_config.json, model_args", "layers"],
        ),
        (
            {"config_sentence_transformers.json": {"similarity_fn_name": "MaxSim"}},
            ["config_sentence_transformers.json", "MaxSim"],
        ),
        (
            {"config_sentence_transformers.json": {"default_prompt_name": "absent"}},
            ["default_prompt_name", "absent"],
        ),
        (
            {"config.json": {"architectures": ["HF_ColBERT"]}},
            ["config.json", "HF_ColBERT", "each token"],
        ),
        ({"artifact.metadata": None}, ["artifact.metadata", "ColBERT"]),
        (
            {"config.json": {"architectures": ["BertModel"], "position_embedding_type": "alibi"}},
            ["position_embedding_type", "alibi"],
        ),
        (
            {"config.json": {"architectures": ["Qwen2Model"], "auto_map": {"AutoModel": "a.Mine"}}},
            ["auto_map", "a.Mine", "hf_overrides: {auto_map: {}}"],
        ),
        (
            {"config.json": {"architectures": ["XLMRobertaModel"], "lora_adaptations": ["a"]}},
            ["lora_adaptations", "text-matching"],
        ),
    ],
)
def test_what_nobody_knows_is_refused(
    tmp_path: Path, files: dict[str, Any], words: list[str]
) -> None:
    """One line has the file and the value."""
    line = reason(tmp_path, files)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_an_operator_may_vouch_for_vllms_class(tmp_path: Path) -> None:
    """With `auto_map` taken away, vLLM's class serves the architecture."""
    config = {"architectures": ["Qwen2Model"], "auto_map": {"AutoModel": "a.Mine"}}
    found = planned(tmp_path, {"config.json": config}, overrides={"auto_map": {}})
    assert found.overrides["auto_map"] == {}


def test_known_code_says_what_it_changes(tmp_path: Path) -> None:
    """The code of gte-Qwen2 and stella makes Qwen2 see every token from every other."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "auto_map": {"AutoModel": "org/repo--modeling_qwen.Qwen2Model"},
    }
    assert planned(tmp_path, {"config.json": config}).overrides["is_causal"] is False


LABELS = {"id2label": {"0": "contradiction", "1": "entailment"}}
CLASSIFIER: dict[str, Any] = {
    "config.json": {"architectures": ["BertForSequenceClassification"]} | LABELS,
    "modules.json": [],
}


@pytest.mark.parametrize("label", ["entailment", "1"])
def test_the_configuration_names_the_label(tmp_path: Path, label: str) -> None:
    """Of several labels one is the score, by its name or its number."""
    assert planned(tmp_path, CLASSIFIER, label=label).label == 1


def test_several_labels_are_refused(tmp_path: Path) -> None:
    """The first label is a contradiction, in many; the line lists them."""
    assert "contradiction, entailment; set score_label" in reason(tmp_path, CLASSIFIER)
    assert "score_label" in reason(tmp_path, CLASSIFIER, label="neutral")


SCORER: dict[str, Any] = {
    "config.json": {"architectures": ["BertForSequenceClassification"], "num_labels": 1},
    "modules.json": [{"type": "sentence_transformers.base.modules.transformer.Transformer"}],
    "config_sentence_transformers.json": {"model_type": "CrossEncoder"},
}


def test_a_classifiers_files_are_read(tmp_path: Path) -> None:
    """sentence-transformers 6 saves cross-encoders with modules."""
    told = {"transformer_task": "sequence-classification", "do_lower_case": True}
    found = planned(tmp_path, SCORER | {"sentence_bert_config.json": told})
    assert found.scores
    assert found.lower_case


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (
            {
                "config_sentence_transformers.json": {
                    "model_type": "CrossEncoder",
                    "prompts": {"query": "q: "},
                    "default_prompt_name": "query",
                }
            },
            "default_prompt_name",
        ),
        (
            {"modules.json": [*SCORER["modules.json"], {"type": ST + "Dense", "path": "1_Dense"}]},
            "Dense",
        ),
    ],
)
def test_a_classifier_with_more_is_refused(
    tmp_path: Path, files: dict[str, Any], word: str
) -> None:
    """A prompt before each query, or a module behind the transformer."""
    assert word in reason(tmp_path, SCORER | files)


def causal(architecture: str, **more: Any) -> dict[str, Any]:
    """Return the files of a causal language model without sentence-transformers' own."""
    return {"config.json": {"architectures": [architecture]}, "modules.json": []} | more


END = {"id": "<|endoftext|>", "ids": [7], "tokens": ["<|endoftext|>"]}
APPENDS = {
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": END["id"]}}],
        "special_tokens": {END["id"]: END},
    }
}
SAVED_AGAIN = {"post_processor": {"type": "TemplateProcessing", "special_tokens": {}}}
JUDGE = {"chat_template": "… Judge whether the Document meets the requirements …"}


@pytest.mark.parametrize(
    ("files", "wishes", "family"),
    [
        (causal("Qwen3ForCausalLM"), {"name": "Qwen/Qwen3-Reranker-4B"}, "qwen3-reranker"),
        (causal("Qwen3ForCausalLM", **{"tokenizer.json": {}}), {}, "qwen3-reranker"),
        (causal("Qwen3ForCausalLM", **{"tokenizer.json": SAVED_AGAIN}), {}, "qwen3-reranker"),
        (
            causal(
                "Qwen3ForCausalLM", **{"tokenizer.json": APPENDS, "tokenizer_config.json": JUDGE}
            ),
            {},
            "qwen3-reranker",
        ),
        (
            causal("Qwen2ForCausalLM"),
            {"name": "mixedbread-ai/mxbai-rerank-large-v2"},
            "mxbai-rerank-v2",
        ),
        (
            causal("GemmaForCausalLM"),
            {"name": "BAAI/bge-reranker-v2-gemma"},
            "bge-reranker-v2-gemma",
        ),
        (
            {
                "config.json": {
                    "architectures": ["Qwen3ForSequenceClassification"],
                    "num_labels": 1,
                },
                "modules.json": [],
            },
            {"name": "tomaarsen/Qwen3-Reranker-0.6B-seq-cls"},
            "qwen3-reranker-seq-cls",
        ),
    ],
)
def test_rerankers_that_are_asked_in_words(
    tmp_path: Path, files: dict[str, Any], wishes: dict[str, Any], family: str
) -> None:
    """They are recognised by their files, or by their names, and have a question."""
    found = planned(tmp_path, files, **wishes)
    assert found.scores
    assert found.profile.name == family
    assert found.profile.pair_prompt is not None


@pytest.mark.parametrize(
    ("architecture", "ours"),
    [
        ("BertForSequenceClassification", architectures.BERT),
        ("RobertaForQuestionAnswering", architectures.ROBERTA),
        ("DistilBertForMaskedLM", architectures.DISTIL),
        ("ModernBertForMaskedLM", "ModernBertModel"),
    ],
)
def test_modules_that_pool_have_no_use_for_a_head(
    tmp_path: Path, architecture: str, ours: str
) -> None:
    """A checkpoint may still name the head of another task."""
    found = planned(tmp_path, {"config.json": {"architectures": [architecture]}})
    assert found.overrides["architectures"] == [ours]
    assert not found.scores


@pytest.mark.parametrize(
    ("architecture", "served"),
    [
        ("Qwen2ForCausalLM", True),
        ("MistralModel", True),
        ("BertModel", True),
        ("Gemma2Model", False),
    ],
)
def test_tokens_see_each_other_where_the_class_can(
    tmp_path: Path, architecture: str, *, served: bool
) -> None:
    """vLLM's classes that have no use for `is_causal` would pass over it."""
    files = {"config.json": {"architectures": [architecture], "is_causal": False}}
    if served:
        planned(tmp_path, files)
    else:
        assert "is_causal: False" in reason(tmp_path, files)


def test_wrapped_classes_are_served_where_they_were_compared() -> None:
    """vLLM's wrapper around transformers' classes numbers positions in its own way."""
    refusals.check_class("TransformersEmbeddingModel", "electra")
    refusals.check_class("BertModel", "bert")
    with pytest.raises(ModelRefused, match="xmod"):
        refusals.check_class("TransformersEmbeddingModel", "xmod")


@pytest.mark.parametrize(
    ("architecture", "scores", "compared"),
    [
        ("GPT2LMHeadModel", False, True),
        ("Qwen3ForCausalLM", False, True),
        ("LlamaModel", False, True),
        (architectures.BERT, False, True),
        ("Qwen3ForSequenceClassification", True, True),
        ("PhiForSequenceClassification", True, False),
        ("Qwen3VLForConditionalGeneration", False, False),
        ("DeepseekV3ForCausalLM", False, False),
        ("", False, False),
    ],
)
def test_classes_that_nobody_compared_are_refused(
    architecture: str, scores: bool, compared: bool
) -> None:
    """vLLM has a hundred more, and its numbers are not always the authors'."""
    if compared:
        refusals.check_compared(architecture, scores=scores)
        return
    with pytest.raises(ModelRefused, match="set task: "):
        refusals.check_compared(architecture, scores=scores)


def test_a_head_in_the_checkpoint_counts(tmp_path: Path) -> None:
    """Only a causal model's head is made of its rows for yes and no."""
    config = {"architectures": ["Qwen3ForSequenceClassification"], "num_labels": 1}
    files = {"config.json": config, "modules.json": []}
    found = planned(tmp_path, files, name="me/Qwen3-Reranker-finetuned")
    assert "classifier_from_token" not in found.overrides


@pytest.mark.parametrize(
    "files", [causal("Qwen3ForCausalLM", **{"tokenizer.json": APPENDS}), causal("MistralModel")]
)
def test_causal_models_embed(tmp_path: Path, files: dict[str, Any]) -> None:
    """A tokenizer that ends a text, as Qwen3-Embedding's does, is for embedding."""
    assert not planned(tmp_path, files).scores


def test_other_causal_rerankers_are_refused(tmp_path: Path) -> None:
    """Their question is not in their files."""
    assert "task: embed" in reason(tmp_path, causal("LlamaForCausalLM"), task="rerank")
    assert "task: embed" in reason(tmp_path, causal("LlamaForCausalLM"), name="my/reranker")
    pictures = causal("Qwen3VLForConditionalGeneration")
    assert "task: embed" in reason(tmp_path, pictures, name="Qwen/Qwen3-VL-Reranker-2B")
    assert not planned(
        tmp_path, causal("LlamaForCausalLM"), name="my/reranker", task="embed"
    ).scores


def test_sparse_models_are_known_by_their_modules(tmp_path: Path) -> None:
    """SPLADE is served whatever its name is, and of architectures that ours have a head for."""
    sparse = "sentence_transformers.sparse_encoder.models."
    files: dict[str, Any] = {
        "config.json": {"architectures": ["DistilBertForMaskedLM"]},
        "modules.json": [
            {"type": sparse + "MLMTransformer", "path": ""},
            {"type": sparse + "SpladePooling", "path": "1_SpladePooling"},
        ],
        "1_SpladePooling/config.json": {"pooling_strategy": "sum"},
    }
    found = planned(tmp_path, files)
    assert found.overrides["architectures"] == [architectures.DISTIL_SPLADE]
    assert found.overrides["splade"] == ["sum", "relu"]
    files["config.json"] = {"architectures": ["RobertaForMaskedLM"]}
    assert "RobertaForMaskedLM" in reason(tmp_path, files)


def test_a_plain_masked_language_model_is_no_splade(tmp_path: Path) -> None:
    """Without modules it takes the name to be one."""
    files = causal("BertForMaskedLM")
    assert planned(tmp_path, files).overrides["architectures"] == [architectures.BERT]
    found = planned(tmp_path, files, name="naver/splade-cocondenser")
    assert found.overrides["architectures"] == [architectures.SPLADE]


@pytest.mark.parametrize(
    ("files", "ours"),
    [
        ({"1_Pooling/config.json": {"pooling_mode": "cls"}}, architectures.BGE_M3),
        ({"modules.json": []}, architectures.BGE_M3),
        ({}, architectures.ROBERTA),
    ],
)
def test_bge_m3s_class_is_for_its_own_pooling(
    tmp_path: Path, files: dict[str, Any], ours: str
) -> None:
    """A fine-tune of it that says another pooling is served as any XLM-RoBERTa."""
    config = {"config.json": {"architectures": ["XLMRobertaModel"]}}
    found = planned(tmp_path, config | files, name="me/bge-m3-legal")
    assert found.overrides["architectures"] == [ours]


def test_old_layouts_have_the_transformer_in_a_folder(tmp_path: Path) -> None:
    """vLLM loads the folder; pooling and length are read where sentence-transformers reads them."""
    old = modules()
    old[0]["path"] = "0_Transformer"
    files = {
        "modules.json": old,
        "0_Transformer/config.json": {"architectures": ["XLMRobertaModel"]},
        "0_Transformer/sentence_bert_config.json": {"do_lower_case": True},
    }
    found = planned(tmp_path, files)
    assert found.model == str(tmp_path / "0_Transformer")
    assert found.recipe is not None
    assert found.recipe.lower_case
    assert found.overrides["architectures"] == [architectures.ROBERTA]


def test_a_model_without_a_transformer_is_named(tmp_path: Path) -> None:
    """Static embeddings have modules and no config.json."""
    write(tmp_path, {"modules.json": [{"type": ST + "StaticEmbedding", "path": "0_Static"}]})
    with pytest.raises(ModelRefused, match="StaticEmbedding"):
        plan.make(str(tmp_path), plan.Wishes(name="static"))


def test_the_operators_overrides_come_last(tmp_path: Path) -> None:
    """Overrides set by hand win, also over our own classes."""
    overrides = {"architectures": ["RobertaModel"], "is_causal": True}
    found = planned(
        tmp_path, {"config.json": {"architectures": ["XLMRobertaModel"]}}, overrides=overrides
    )
    assert found.overrides == {"problem_type": "regression"} | overrides
    assert not planned(
        tmp_path, {"1_Pooling/config.json": {"pooling_mode": "max"}}, pooling=True
    ).pools
