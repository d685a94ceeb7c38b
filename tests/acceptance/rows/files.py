"""Weights in all forms, tokenizers of all kinds, files that are not whole, and other decoders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.acceptance import tokenizers_ as toks
from tests.acceptance.nets import BERT, DEC, END, net
from tests.acceptance.steps import dense, drop, dump, patch, remove, renamed, st, tensors, write
from tests.acceptance.table import example

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.acceptance.steps import State, Step

# A row is a line or two: a table, and not code.
# fmt: off

FILE = "model.safetensors"
BERT_ST = (BERT, st())


def saved(place: str, edit: Callable[[State], State] = dict) -> Step:
    """Save the weights once more under another name."""

    def save(path: Path) -> None:
        state = edit(load_file(path / FILE))
        if place.endswith("safetensors"):
            save_file(state, str(path / place), {"format": "pt"})
        else:
            torch.save(state, path / place)

    return save


def shards(stem: str = "model", ending: str = "safetensors") -> Step:
    """Spread the weights over two files and an index."""

    def spread(path: Path) -> None:
        names = sorted(load_file(path / FILE))
        places = {}
        for number, part in enumerate((names[:20], names[20:]), 1):
            place = f"{stem}-{number:05}-of-00002.{ending}"
            saved(place, lambda state, part=part: {name: state[name] for name in part})(path)
            places |= dict.fromkeys(part, place)
        dump(path / f"{stem}.{ending}.index.json", {"metadata": {}, "weight_map": places})
        (path / FILE).unlink()

    return spread


def without(*starts: str) -> Step:
    """Take weights out."""
    return tensors(lambda state: {k: w for k, w in state.items() if not k.startswith(starts)})


def to(dtype: torch.dtype) -> Step:
    """Save the weights in another precision."""
    return tensors(lambda state: {name: weight.to(dtype) for name, weight in state.items()})


def other(state: State) -> State:
    """Return other numbers under the same names."""
    return {name: weight * 1.5 + 0.05 for name, weight in state.items()}


def cut_off(path: Path) -> None:
    """Keep half of the weights' bytes."""
    (path / FILE).write_bytes((path / FILE).read_bytes()[:60_000])


def beside_an_index(path: Path) -> None:
    """Put the shards and the index of another state beside the one file."""
    first = load_file(path / FILE)
    for step in (tensors(other), shards()):
        step(path)
    save_file(first, str(path / FILE), {"format": "pt"})


# --- weights: of several files those count that transformers takes ---

BUFFER = {"embeddings.position_ids": torch.arange(512)[None], "foo.bar": torch.ones(3)}
WEIGHTS: dict[str, tuple[Step, ...]] = {
    "bin-only": (saved("pytorch_model.bin"), remove(FILE)),
    "bin-beside": (saved("pytorch_model.bin", other),),
    "in-shards": (shards(),), "in-bin-shards": (shards("pytorch_model", "bin"),),
    "beside-an-index": (beside_an_index,), "of-a-second-copy": (saved("z.safetensors", other),),
    "of-a-left-over-shard": (saved("model-00001-of-00001.safetensors", other),),
    "beside-mistrals-own": (saved("consolidated.safetensors", other),),
    "in-float16": (to(torch.float16),), "in-float64": (to(torch.float64),),
    "under-a-prefix": (renamed(lambda name: f"bert.{name}"),),
    "without-pooler": (without("pooler"),)}
NO_WEIGHTS: dict[str, tuple[Step, ...]] = {
    "absent": (remove(FILE),), "cut-off": (cut_off,),
    "in-too-few-shards": (shards(), remove("model-00002-of-00002.safetensors")),
    "of-a-wrapper": (renamed(lambda name: f"module.{name}"),),
    "without-a-layer": (without("encoder.layer.1."),),
    "without-a-norm": (without("embeddings.LayerNorm.bias"),),
    "without-words": (without("embeddings.word_embeddings"),),
    "without-a-key": (without("encoder.layer.0.attention.self.key.bias"),),
    "of-too-few-layers": (patch("config.json", num_hidden_layers=3),)}
for name, steps in WEIGHTS.items():
    example(f"weights-{name}", *BERT_ST, *steps)
for name, steps in NO_WEIGHTS.items():
    example(f"weights-{name}", *BERT_ST, *steps, kind="refuse")
example("weights-unexpected", *BERT_ST, tensors(lambda state: state | BUFFER), may_refuse=True)
example("weights-of-more-layers", *BERT_ST, patch("config.json", num_hidden_layers=1),
    may_refuse=True)

# --- files that are not whole ---


def text(place: str, said: str) -> Step:
    """Write a file that is no JSON."""
    return lambda path: (path / place).write_text(said)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064}\nsize 90900000\n"
DENSE = st(layers=(dense("2_Dense", outer=32),))
for place in (FILE, "tokenizer.json", "2_Dense/model.safetensors", "modules.json"):
    example(f"pointer-{place.replace('/', '-')}", BERT, DENSE, text(place, POINTER), kind="refuse")
example("config-cut-off", *BERT_ST, text("config.json", '{"architectures": ["Be'), kind="refuse")
example("config-empty", *BERT_ST, write("config.json", {}), kind="refuse")
example("config-without-architectures", *BERT_ST, drop("config.json", "architectures"),
    may_refuse=True)
example("modules-none-but-the-rest", BERT, patch("tokenizer_config.json", model_max_length=64),
    write("sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": True}))

# --- modules.json ---


def each(**changes: Any) -> Step:
    """Change each module in modules.json."""

    def edit(path: Path) -> None:
        rows = json.loads((path / "modules.json").read_text())
        dump(path / "modules.json", [row | changes for row in rows])

    return edit


example("modules-of-one-name", BERT, DENSE, each(name="same"), kind="refuse")
example("modules-numbered-otherwise", BERT, DENSE, each(idx=0))

# --- tokenizers: a prompt that is not pooled takes special tokens along ---

NOT_POOLED = st(prompts={"query": "query: "}, include_prompt=False)
TYPED = ["input_ids", "token_type_ids", "attention_mask"]


def told(change: Callable[[Tokenizer], object]) -> tuple[Step, ...]:
    """Return a BERT whose tokenizer is changed."""

    def make() -> Tokenizer:
        tok = toks.wordpiece()
        change(tok)
        return tok

    return (BERT.but(tok=toks.saved(make, toks.MARKS, model_input_names=TYPED)), NOT_POOLED)


AROUND = {"no-ends": "$A", "two-ends": "[CLS] $A [SEP] [SEP]", "two-heads": "[CLS] [CLS] $A [SEP]",
    "end-only": "$A [SEP]", "padding-as-end": "[CLS] $A [PAD]",
    "second-segment": "[CLS]:1 $A:1 [SEP]:1"}
for name, single in AROUND.items():
    example(f"tokens-{name}", *told(lambda t, s=single: toks.template(t, s, f"{s} $B:1")),
        may_refuse=":" in single)
NORMALIZED = {"strip": [normalizers.Strip(), normalizers.Replace("0", "1")],
    "prepend": [normalizers.Prepend("x"), normalizers.Lowercase()],
    "strip-accents": [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]}
for name, parts in NORMALIZED.items():
    example(f"tokens-{name}",
        *told(lambda t, p=parts: setattr(t, "normalizer", normalizers.Sequence(p))))
ADDED = {"lstrip": AddedToken("fox", lstrip=True, normalized=False),
    "rstrip": AddedToken("fox", rstrip=True, normalized=True),
    "single-word": AddedToken("the", single_word=True, normalized=False),
    "special": AddedToken("fox", special=True, normalized=False)}
for name, token in ADDED.items():
    example(f"tokens-added-{name}", *told(lambda t, a=token: t.add_tokens([a])))


def words_only() -> Tokenizer:
    """A token for each word between spaces."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*specials, *toks.TEXT.split()]))}
    tok = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tok.add_special_tokens(specials)
    return tok


def old_files(path: Path) -> None:
    """Write vocab.txt in place of tokenizer.json."""
    tok = Tokenizer.from_file(str(path / "tokenizer.json"))
    (path / "vocab.txt").write_text("\n".join(sorted(tok.get_vocab(), key=tok.token_to_id)) + "\n")
    (path / "tokenizer.json").unlink()
    dump(path / "tokenizer_config.json", {"do_lower_case": True, "model_max_length": 512})


example("tokens-words-only", BERT.but(tok=toks.saved(words_only, toks.MARKS)), NOT_POOLED)
example("tokens-in-vocab-txt", *BERT_ST, old_files)
CUT = {"direction": "Left", "max_length": 24, "strategy": "LongestFirst", "stride": 0}
example("tokens-cut-left-in-json", BERT, st(max_len=24), patch("tokenizer.json", truncation=CUT))

# --- decoders of other families; padded at the left, learned positions depend on the batch ---

PLAIN = {**DEC, "hidden_size": 128, "max_position_embeddings": 512}
USUAL = {key: value for key, value in PLAIN.items() if key != "head_dim"}
SMALL = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
SCALES = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5}
SAME = ("Apertus", "Arcee", "Cohere", "Exaone4", "Jais2", "Nemotron", "Olmo", "Olmo2", "Phi")
OTHERS: dict[str, dict[str, Any]] = {**dict.fromkeys((*SAME, "Phi3", "GPTNeoX"), USUAL),
    **dict.fromkeys(("Ernie4_5", "Glm", "HunYuanDenseV1"), PLAIN), "Granite": USUAL | SCALES,
    **dict.fromkeys(("GPT2", "GPTBigCode"), SMALL), "Cohere2": USUAL | {"sliding_window": 16},
    "Bloom": {"hidden_size": 128, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "Mixtral": USUAL | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "OPT": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128,
        "word_embed_proj_dim": 128, "max_position_embeddings": 512, "init_std": 0.2},
    "Qwen2Moe": USUAL | EXPERTS | {"shared_expert_intermediate_size": 64}}
ENDS = {"pad_token_id": END, "eos_token_id": END, "bos_token_id": END}
for prefix, options in OTHERS.items():
    tiny = net(prefix, toks.qwen(max_length=512, padding_side="right"), **options, ids=ENDS)
    example(f"decoder-{prefix}", tiny, st("lasttoken", max_len=400),
        may_refuse=prefix in ("Cohere2", "GPTNeoX"))
