"""Files that vLLM would pass over in silence: read as sentence-transformers does, or refused."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest

from embedding_service.families import architectures, plan, recipe, refusals, weights
from embedding_service.families.checkpoint import ModelRefused
from embedding_service.families.profiles import QWEN_PAIR, QWEN_TASK
from tests.families.test_plan import (
    APPENDS,
    CLASSIFIER,
    JUDGE,
    SCORER,
    ST,
    causal,
    modules,
    planned,
    reason,
    write,
)

if TYPE_CHECKING:
    from pathlib import Path

MAIN = "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("told", "limit"),
    [
        ({"model_max_length": 64}, 64),
        ({"model_max_length": 1e30}, None),
        ({"model_max_length": 2**31}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("kind", [{}, SCORER])
def test_the_tokenizers_limit_counts(
    tmp_path: Path, told: dict[str, Any], limit: int | None, kind: dict[str, Any]
) -> None:
    """sentence-transformers 6 writes no max_seq_length; vectors and pairs are cut alike."""
    assert planned(tmp_path, kind | {"tokenizer_config.json": told}).max_tokens == limit
    config = kind.get("config.json", {"architectures": ["BertModel"]})
    shorter = {"config.json": config | {"max_position_embeddings": 32}}
    files = kind | {"tokenizer_config.json": told} | shorter
    assert planned(tmp_path, files).max_tokens == 32


@pytest.mark.parametrize(("own", "limits"), [(256, (256, None)), (None, (None, 64))])
def test_a_length_of_sentence_transformers_own_wins(
    tmp_path: Path, own: int | None, limits: tuple[int | None, int | None]
) -> None:
    """Many old models have a tokenizer whose limit is not theirs; null is no length."""
    files = {
        "tokenizer_config.json": {"model_max_length": 64},
        "sentence_bert_config.json": {"max_seq_length": own},
    }
    found = planned(tmp_path, files)
    assert (found.max_seq_length, found.max_tokens) == limits


def test_without_modules_its_other_files_have_no_effect(tmp_path: Path) -> None:
    """sentence-transformers reads none of them, and the start names them."""
    main = {"prompts": {"query": "Q: "}, "default_prompt_name": "query", "truncate_dim": 4}
    files = {
        "modules.json": [],
        "config_sentence_transformers.json": main,
        "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": True},
    }
    found = planned(tmp_path, files)
    assert found.unread == ["config_sentence_transformers.json", "sentence_bert_config.json"]
    assert (found.max_seq_length, found.lower_case) == (None, False)
    assert (found.prompts, found.default_prompt_name) == ({}, None)
    assert found.recipe == recipe.Recipe(modes=("mean",), described=False)


def test_the_tokenizer_is_that_beside_the_transformer(tmp_path: Path) -> None:
    """In the old layout it lies in the transformer's folder."""
    old = modules()
    old[0]["path"] = "0_Transformer"
    files = {
        "modules.json": old,
        "0_Transformer/config.json": {"architectures": ["BertModel"]},
        "0_Transformer/tokenizer_config.json": {"model_max_length": 64},
        "tokenizer_config.json": {"model_max_length": 32},
    }
    assert planned(tmp_path, files).max_tokens == 64


@pytest.mark.parametrize("kind", ["models.Pooling", "sparse_encoder.models.SpladePooling"])
def test_a_pooling_without_its_file_is_refused(tmp_path: Path, kind: str) -> None:
    """A download that broke off would be served with the mean."""
    named = {"type": f"sentence_transformers.{kind}", "path": "1_Absent"}
    line = reason(tmp_path, {"modules.json": [modules()[0], named]})
    assert "there is no 1_Absent/config.json" in line


@pytest.mark.parametrize(
    "activation",
    [
        "torch.nn.modules.activation.Sigmoid",
        "torch.nn.modules.linear.Identity",
        "torch.nn.modules.Identity",
        "torch.nn.Sigmoid",
    ],
)
def test_activations_of_scores(tmp_path: Path, activation: str) -> None:
    """sentence-transformers 6 writes one into every cross-encoder; requests choose between two."""
    main = {"model_type": "CrossEncoder", "activation_fn": activation}
    assert planned(tmp_path, SCORER | {MAIN: main}).scores


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (MAIN, {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Tanh"}),
        (MAIN, {"model_type": "CrossEncoder", "activation_fn": "mine.Sigmoid"}),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.ReLU"}}),
        ("config.json", {"sbert_ce_default_activation_function": "torch.nn.ReLU"}),
    ],
)
def test_other_activations_of_scores_are_refused(
    tmp_path: Path, place: str, told: dict[str, Any]
) -> None:
    """Scores would be others."""
    line = reason(tmp_path, SCORER | {place: SCORER[place] | told})
    assert f"{place} says activation_fn" in line


def test_an_activation_is_for_scores(tmp_path: Path) -> None:
    """A model that embeds has none."""
    line = reason(tmp_path, {MAIN: {"activation_fn": "torch.nn.modules.activation.Sigmoid"}})
    assert "activation_fn" in line


@pytest.mark.parametrize("name", ["Qwen/Qwen3-Reranker-0.6B", "some/model"])
def test_pooling_wins_over_name_and_template(tmp_path: Path, name: str) -> None:
    """An embedder that was trained from a reranker still has its name or its template."""
    files = {
        "config.json": {"architectures": ["Qwen3ForCausalLM"]},
        "tokenizer_config.json": JUDGE,
        "1_Pooling/config.json": {"pooling_mode": "lasttoken"},
    }
    found = planned(tmp_path, files, name=name)
    assert found.recipe is not None
    assert found.recipe.modes == ("lasttoken",)
    assert "classifier_from_token" not in found.overrides


def test_a_reranker_that_is_to_embed_keeps_its_class(tmp_path: Path) -> None:
    """`task: embed` is no wish for a classifier."""
    files = causal("Qwen3ForCausalLM")
    found = planned(tmp_path, files, name="Qwen/Qwen3-Reranker-0.6B", task="embed")
    assert "architectures" not in found.overrides


def template(question: str) -> str:
    """Return a chat template that asks about a pair."""
    said = "(messages | selectattr('role', 'eq', '{}') | first).content"
    query, document = (f"{{{{ {said.format(role)} }}}}" for role in ("query", "document"))
    head = QWEN_PAIR.head.replace("\n", "\\n")
    tail = QWEN_PAIR.tail[0].replace("\n", "\\n")
    return (
        f"{{{{ '{head}' }}}}<Instruct>: {question}\n<Query>: {query}\n<Document>: {document}"
        f"{{{{ '{tail}' }}}}"
    )


LOGIT_SCORE: dict[str, Any] = causal(
    "Qwen3ForCausalLM",
    **{
        "modules.json": [
            SCORER["modules.json"][0],
            {
                "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
                "path": "1_LogitScore",
            },
        ],
        "1_LogitScore/config.json": {"true_token_id": 7, "false_token_id": 3},
        "sentence_bert_config.json": {
            "transformer_task": "text-generation",
            "module_output_name": "causal_logits",
        },
        "tokenizer.json": {"model": {"vocab": {"no": 3, "yes": 7}}},
        "tokenizer_config.json": {"chat_template": template(QWEN_TASK)},
        MAIN: {
            "model_type": "CrossEncoder",
            "activation_fn": "torch.nn.modules.activation.Sigmoid",
            "prompts": {"web": QWEN_TASK, "code": "Find code"},
            "default_prompt_name": "web",
        },
    },
)


def test_a_logit_score_that_asks_as_the_family_does(tmp_path: Path) -> None:
    """Qwen3-Reranker's own files, saved by sentence-transformers, are served."""
    found = planned(tmp_path, LOGIT_SCORE)
    assert found.scores
    assert found.profile.name == "qwen3-reranker"


@pytest.mark.parametrize(
    ("place", "told", "word"),
    [
        ("1_LogitScore/config.json", {"true_token_id": 3, "false_token_id": 7}, "true_token_id: 3"),
        ("1_LogitScore/config.json", {"true_token_id": 7}, "false_token_id: None"),
        ("tokenizer_config.json", {"chat_template": template("Judge")}, "<Instruct>: Judge"),
        ("tokenizer_config.json", {"chat_template": "{{ raise('') }}"}, "chat template"),
        ("tokenizer_config.json", {}, "chat template"),
        (MAIN, LOGIT_SCORE[MAIN] | {"default_prompt_name": "code"}, "default_prompt_name: 'code'"),
        (MAIN, LOGIT_SCORE[MAIN] | {"activation_fn": "torch.nn.Tanh"}, "torch.nn.Tanh"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
        ("sentence_bert_config.json", {"query_length": 4}, "query_length"),
    ],
)
def test_a_logit_score_that_asks_otherwise_is_refused(
    tmp_path: Path, place: str, told: dict[str, Any], word: str
) -> None:
    """Other answers, another question, another instruction."""
    files = LOGIT_SCORE | {place: told}
    assert word in reason(tmp_path, files, name="Qwen/Qwen3-Reranker-0.6B")


def scorer(architecture: str, **more: Any) -> dict[str, Any]:
    """Return the files of a classifier with one label."""
    config = {"architectures": [architecture], "num_labels": 1} | more
    return SCORER | {"config.json": config}


def test_classifiers_in_vllms_wrapper() -> None:
    """It leaves out what stands between encoder and classifier; ELECTRA's was compared."""
    refusals.check_class("TransformersForSequenceClassification", "electra", scores=True)
    for kind in sorted(architectures.WRAPPED - {"electra"}):
        with pytest.raises(ModelRefused, match=kind):
            refusals.check_class("TransformersForSequenceClassification", kind, scores=True)


SPECIAL = {"<end>": {"id": "<end>", "ids": [5], "tokens": ["<end>"]}}
SECOND = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<end>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 1}},
    ],
    "special_tokens": SPECIAL,
}
ENDS = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 0}},
        {"SpecialToken": {"id": "<end>", "type_id": 0}},
    ],
    "special_tokens": SPECIAL,
}


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"tokenizer.json": {"post_processor": ENDS}},
        {
            "tokenizer.json": {
                "post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"}, ENDS]}
            }
        },
        {
            "tokenizer.json": {
                "post_processor": {"type": "BertProcessing", "sep": ["s", 5], "cls": ["c", 1]}
            }
        },
        {"tokenizer_config.json": {"add_eos_token": True}},
    ],
    ids=["template", "sequence", "bert", "end"],
)
def test_pairs_that_end_in_padding_are_refused(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    """transformers scores the token before it, where that is a decoder's."""
    files = scorer("Qwen2ForSequenceClassification", pad_token_id=5, eos_token_id=5) | tokenizer
    assert "pad_token_id" in reason(tmp_path, files)
    write(tmp_path, scorer("Qwen2ForSequenceClassification", pad_token_id=4, eos_token_id=5))
    assert plan.make(str(tmp_path), plan.Wishes(name="some/model")).scores


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (scorer("ErnieForSequenceClassification"), ["ErnieFor", "pooler"]),
        (scorer("EuroBertForSequenceClassification"), ["EuroBertFor", "compared"]),
        (
            scorer("ModernBertForSequenceClassification", classifier_activation="relu"),
            ["config.json", "classifier_activation: 'relu'"],
        ),
        (
            {"config.json": {"architectures": ["XLMRobertaModel"], "is_decoder": True}},
            ["config.json", "is_decoder: True"],
        ),
        (
            {"config.json": {"architectures": ["NewModel"], "logn_attention_scale": True}},
            ["config.json", "logn_attention_scale"],
        ),
        (
            {"modules.json": modules("Dense"), MAIN: {"model_type": "CrossEncoder"}},
            [MAIN, "scores pairs", "Dense"],
        ),
        ({MAIN: {"model_type": "MultiVectorEncoder"}}, [MAIN, "late interaction"]),
        *(
            (
                {"config.json": {"architectures": [architecture]} | {key: value} | more},
                ["config.json", key, repr(value)],
            )
            for architecture, key, value, more in [
                ("NewModel", "layer_norm_type", "rms_norm", {}),
                ("ElectraModel", "embedding_size", 32, {"hidden_size": 64}),
                ("LlamaModel", "partial_rotary_factor", 0.5, {}),
                ("Qwen2Model", "head_dim", 64, {"hidden_size": 128, "num_attention_heads": 4}),
                ("Qwen3ForCausalLM", "attention_bias", True, {}),
            ]
        ),
        (
            {"tokenizer_config.json": {"split_special_tokens": True}},
            ["tokenizer_config.json", "split_special_tokens: true"],
        ),
        (
            {"config.json": {"architectures": ["Qwen3ForTokenClassification"]}},
            ["config.json", "Qwen3ForTokenClassification", "under that head"],
        ),
        (
            {"adapter_config.json": {"base_model_name_or_path": "org/base"}},
            ["adapter_config.json", "org/base", "merge the adapter first"],
        ),
        *(
            (
                {"config.json": {"architectures": ["NomicBertModel"], "n_embd": 64} | told},
                ["config.json", *told],
            )
            for told in (
                {"causal": True},
                {"parallel_block": True},
                {"prenorm": True},
                {"rotary_emb_fraction": 0.5},
                {"use_rms_norm": True},
            )
        ),
        (
            {"config.json": {"architectures": ["NomicBertModel"], "hidden_act": "gelu"}},
            ["config.json", "hidden_act: 'gelu'"],
        ),
        (
            {"config.json": {"architectures": ["NomicBertModel"], "head_dim": 32}},
            ["config.json", "head_dim: 32"],
        ),
        (
            {"config.json": {"architectures": ["BertModel"], "transformers_weights": "a.bin"}},
            ["config.json", "transformers_weights: 'a.bin'"],
        ),
        (
            {"sentence_bert_config.json": {"transformer_task": "fill-mask"}},
            ["sentence_bert_config.json", "transformer_task: fill-mask", "Pooling"],
        ),
        (
            {"modules.json": [module | {"name": "same"} for module in modules()]},
            ["modules.json", "two modules 'same'"],
        ),
        (
            {"tokenizer.json": {"post_processor": SECOND}},
            ["tokenizer.json", "post_processor", "type_id"],
        ),
    ],
)
def test_what_vllm_computes_otherwise_is_refused(
    tmp_path: Path, files: dict[str, Any], words: list[str]
) -> None:
    """One line has the file and the value."""
    line = reason(tmp_path, files)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_the_same_values_as_vllms_are_served(tmp_path: Path) -> None:
    """Keys that say what is computed anyway."""
    modern = scorer("ModernBertForSequenceClassification", classifier_activation="gelu")
    assert planned(tmp_path / "a", modern).scores
    bert = {"architectures": ["BertModel"], "is_decoder": False, "logn_attention_scale": False}
    assert not planned(tmp_path / "b", {"config.json": bert}).scores


def test_segments_count_where_the_model_takes_them(tmp_path: Path) -> None:
    """RoBERTa's kin and decoders have one at most."""
    files = {
        "config.json": {"architectures": ["XLMRobertaModel"], "type_vocab_size": 1},
        "tokenizer.json": {"post_processor": SECOND},
    }
    assert not planned(tmp_path / "a", files).scores
    files["config.json"] = {"architectures": ["MistralModel"]}
    assert not planned(tmp_path / "b", files).scores


def tensors(path: Path, *names: str) -> None:
    """Write a safetensors file with these tensors of one byte each."""
    names = (*names, "wte.weight")
    places = {name: [i, i + 1] for i, name in enumerate(names)}
    table = {n: {"dtype": "U8", "shape": [1], "data_offsets": at} for n, at in places.items()}
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(len(names)))


@pytest.mark.parametrize(
    ("names", "absent"),
    [
        (["a.0.query.weight", "a.0.key.weight", "a.0.value.weight"], None),
        (["a.0.query.bias", "a.0.value.bias"], "a.0.key.bias"),
        (["0.q_proj.weight", "0.k_proj.weight"], "0.v_proj.weight"),
        (["0.q_proj.weight", "0.kv_a_proj_with_mqa.weight"], None),
        (["0.gate_proj.weight"], "0.up_proj.weight"),
        (["0.up_proj.weight", "0.down_proj.weight"], None),
        (["0.k_proj.k_scale", "0.v_proj.v_scale"], None),
        (["key"], None),
    ],
)
def test_parts_that_vllm_joins_are_all_there(
    tmp_path: Path, names: list[str], absent: str | None
) -> None:
    """It would leave the part that is not there as it finds the memory."""
    tensors(tmp_path / "model.safetensors", *names)
    if absent is None:
        refusals.check_weights(tmp_path)
        return
    with pytest.raises(ModelRefused, match=absent):
        refusals.check_weights(tmp_path)


@pytest.mark.parametrize("place", ["tokenizer.json", "vocab.txt", "vocab.json", "spiece.model"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, place: str) -> None:
    """transformers makes one that knows no word."""
    write(tmp_path, {"config.json": {}, "tokenizer_config.json": {}})
    with pytest.raises(ModelRefused, match="has no tokenizer"):
        refusals.check_vocabulary(tmp_path)
    write(tmp_path, {place: None})
    refusals.check_vocabulary(tmp_path)


def test_a_bert_may_be_named_as_under_a_head(tmp_path: Path) -> None:
    """transformers takes the prefix off, and vLLM's class does not."""
    tensors(tmp_path / "model.safetensors", "bert.a.weight", "bert.b.weight")
    assert planned(tmp_path).overrides["architectures"] == [architectures.BERT]
    tensors(tmp_path / "model.safetensors", "a.weight", "classifier.weight")
    assert planned(tmp_path).overrides["architectures"] == [architectures.BERT]
    tensors(tmp_path / "model.safetensors", "a.weight", "b.weight")
    assert "architectures" not in planned(tmp_path).overrides


def test_the_vectors_of_words_are_there(tmp_path: Path) -> None:
    """vLLM would take what is in the memory."""
    path = tmp_path / "model.safetensors"
    tensors(path)
    refusals.check_weights(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"wte.weight", b"any.weight"))
    with pytest.raises(ModelRefused, match="no word_embeddings"):
        refusals.check_weights(tmp_path)


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_weights_that_are_cut_off_are_named(tmp_path: Path, cut: int) -> None:
    """At any place, before vLLM is imported."""
    path = tmp_path / "model.safetensors"
    tensors(path, "0.weight", "1.weight")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelRefused, match="cannot be read"):
        refusals.check_weights(tmp_path)
    with pytest.raises(ModelRefused, match="cannot be read"):
        planned(tmp_path)  # which looks under a BERT's head


@pytest.mark.parametrize("index", ["", "{", "[]", "{}", '{"weight_map": []}'])
def test_an_index_that_is_damaged_is_named(tmp_path: Path, index: str) -> None:
    """Whatever is wrong with it."""
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelRefused, match=r"index\.json cannot be read"):
        refusals.check_weights(tmp_path)


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["model.safetensors", "pytorch_model.bin", "best.safetensors"], {"model.safetensors"}),
        (["model.safetensors", "model.safetensors.index.json"], {"model.safetensors"}),
        (["model.safetensors.index.json", "a", "b", "pytorch_model.bin"], {"a", "b"}),
        (["pytorch_model.bin", "training_args.bin"], {"pytorch_model.bin"}),
        (["pytorch_model.bin.index.json", "a", "b", "c.bin"], {"a", "b"}),
    ],
)
def test_weights_are_those_that_transformers_loads(
    tmp_path: Path, places: list[str], names: set[str]
) -> None:
    """One file before its shards, safetensors before others."""
    for place in places:
        index = {"weight_map": {"x": "a", "y": "b"}}
        write(tmp_path, {place: index if place.endswith("index.json") else None})
        if place.endswith(".safetensors"):
            tensors(tmp_path / place)
    assert weights.chosen(tmp_path) == names
    refusals.check_weights(tmp_path)


@pytest.mark.parametrize(
    ("places", "word"),
    [
        ([], "has no weights"),
        (["model.gguf"], "has no weights"),
        (["consolidated.safetensors"], "has no weights"),
        (["model.safetensors.index.json", "a"], "has no b"),
        (["pytorch_model.bin", "best.safetensors"], "best.safetensors beside pytorch_model.bin"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, places: list[str], word: str) -> None:
    """A download that is not complete, and files that vLLM would take for the model."""
    for place in places:
        index = {"weight_map": {"x": "a", "y": "b"}}
        write(tmp_path, {place: index if place.endswith("index.json") else None})
    with pytest.raises(ModelRefused, match=word):
        refusals.check_weights(tmp_path)


def test_an_adapter_alone_is_named(tmp_path: Path) -> None:
    """The model that it belongs to is not there."""
    write(tmp_path, {"adapter_config.json": {"base_model_name_or_path": "org/base"}})
    with pytest.raises(ModelRefused, match=r"adapter_config\.json.* of org/base"):
        plan.make(str(tmp_path), plan.Wishes(name="some/adapter"))


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("config.json", ["BertModel"]),
        ("config.json", {"architectures": "BertModel"}),
        ("config.json", {"architectures": ["BertModel"], "auto_map": ["a.Mine"]}),
        ("config.json", CLASSIFIER["config.json"] | {"id2label": ["a", "b"]}),
        ("config.json", CLASSIFIER["config.json"] | {"id2label": None, "num_labels": "1"}),
        ("modules.json", {"0": modules()[0]}),
        ("modules.json", ["Transformer"]),
        ("modules.json", [{"type": ST + "Transformer", "path": 0}]),
        ("1_Pooling/config.json", [["pooling_mode", "mean"]]),
        ("1_Pooling/config.json", {"pooling_mode": {"mean": True}}),
        ("1_Pooling/config.json", {"pooling_mode": [["mean"]]}),
        ("1_Pooling/config.json", {"include_prompt": "no"}),
        (MAIN, []),
        (MAIN, {"prompts": ["query: "]}),
        (MAIN, {"truncate_dim": "64"}),
        ("sentence_bert_config.json", {"max_seq_length": "256"}),
        ("sentence_bert_config.json", {"model_args": ["dtype"]}),
        ("sentence_bert_config.json", {"modality_config": {"text": "forward"}}),
        ("tokenizer_config.json", {"model_max_length": "64"}),
        (MAIN, {"model_type": "CrossEncoder", "activation_fn": ["torch.nn.Sigmoid"]}),
        ("config.json", {"architectures": ["BertModel"], "position_embedding_type": ["rope"]}),
    ],
)
def test_values_of_another_type_are_refused(tmp_path: Path, place: str, told: object) -> None:
    """The line names the file."""
    files = (CLASSIFIER if "id2label" in str(told) else {}) | {place: told}
    assert place in reason(tmp_path, files)


@pytest.mark.parametrize(
    "told", [[], {"post_processor": []}, {"post_processor": {"processors": APPENDS}}]
)
def test_a_language_models_tokenizer_of_another_type_is_refused(
    tmp_path: Path, told: object
) -> None:
    """It is looked into where a language model may score or embed."""
    files = causal("Qwen3ForCausalLM", **{"tokenizer.json": told})
    assert "tokenizer.json" in reason(tmp_path, files)


@pytest.mark.parametrize(
    "told",
    [
        {"type": "TemplateProcessing", "pair": ["<end>"]},
        {"type": "TemplateProcessing", "pair": ENDS["pair"]},
        {"type": "BertProcessing", "sep": []},
    ],
)
def test_a_classifiers_tokenizer_of_another_type_is_refused(tmp_path: Path, told: object) -> None:
    """It is looked into where the last token is scored."""
    files = scorer("Qwen2ForSequenceClassification", pad_token_id=5)
    tokenizer = {"tokenizer.json": {"post_processor": told}}
    assert "tokenizer.json" in reason(tmp_path, files | tokenizer)
