"""Where a text is cut, how positions are computed, and in which case letters arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.acceptance import tokenizers_ as toks
from tests.acceptance.nets import BERT, DEC, DISTIL, ELECTRA, QWEN2_CAUSAL, ROBERTA, net
from tests.acceptance.steps import drop, patch, st
from tests.acceptance.table import example

if TYPE_CHECKING:
    from tests.acceptance.nets import Net

# A row is a line or two: a table, and not code.
# fmt: off

NO_LIMIT = 10**30
TOKENIZER = "tokenizer_config.json"
NO_LENGTH = drop("sentence_bert_config.json", "max_seq_length")
BERT_ST = (BERT, st())

# --- the least of what several files say ---

# max_seq_length of the modules, model_max_length of the tokenizer, max_position_embeddings; None
# for no such key.
LENGTHS = {"length-of-tokenizer": (None, 24, 512), "length-of-positions": (None, NO_LIMIT, 40),
    "length-of-positions-without-key": (None, None, 40), "length-of-modules": (20, 512, 512),
    "length-of-modules-above-tokenizer": (200, 24, 512)}
for name, (most, limit, positions) in LENGTHS.items():
    unsaid = [NO_LENGTH] if most is None else []
    unsaid += [drop(TOKENIZER, "model_max_length")] if limit is None else []
    said = [patch(TOKENIZER, model_max_length=limit)] if limit else []
    tiny = BERT.but(max_position_embeddings=positions)
    example(name, tiny, st(max_len=most), *unsaid, *said)
example("no-max-seq-length", BERT, st(max_len=None))
example("length-of-a-decoder", QWEN2_CAUSAL.but(tok=toks.qwen(max_length=40)), st("lasttoken"),
    NO_LENGTH)
example("cut-at-the-left", BERT, st(max_len=40), patch(TOKENIZER, truncation_side="left"))
CUT = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
PAD = {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
    "pad_type_id": 0, "pad_token": "[PAD]"}
example("cut-and-padded-in-tokenizer-json", BERT, st(max_len=64),
    patch("tokenizer.json", truncation=CUT, padding=PAD))

# --- more promised than the model has: no text may end the engine ---

LONG_ELECTRA = ELECTRA.but(tok=toks.bert(cls="ElectraTokenizer", max_length=2048))
example("max-seq-above-positions", BERT, st(max_len=1024), kind="positions")
example("max-seq-above-positions-roberta", ROBERTA, st(max_len=2048), kind="positions")
example("max-seq-above-positions-distilbert", DISTIL, st(max_len=1024), kind="positions")
example("max-seq-above-positions-electra", LONG_ELECTRA, st(max_len=2048), kind="positions")
example("length-of-roberta-positions", ROBERTA, st(), NO_LENGTH,
    patch(TOKENIZER, model_max_length=NO_LIMIT), kind="positions")

# --- rotary positions that are scaled ---

LINEAR, DYNAMIC = ({"rope_type": kind, "factor": 4.0} for kind in ("linear", "dynamic"))
BEFORE = "original_max_position_embeddings"


def scaled(prefix: str, told: dict[str, Any], positions: int, **options: int) -> Net:
    """Return a decoder with positions that are scaled, of so many before scaling unless it says."""
    rope = {"rope_parameters": {"rope_theta": 10000.0, **told}}
    sizes = {"max_position_embeddings": 1024 if BEFORE in told else positions, **DEC, **options}
    return net(prefix, toks.qwen(), **rope, **sizes)


YARN = {"rope_type": "yarn", "factor": 4.0, BEFORE: 64}
for told, positions in ((LINEAR, 64), (DYNAMIC, 64), (YARN, 256)):
    tiny = scaled("Qwen2", told, 64, hidden_size=128, max_position_embeddings=positions)
    tiny = tiny.but(tok=toks.qwen(max_length=NO_LIMIT))
    example(f"length-of-positions-{told['rope_type']}", tiny, st("lasttoken"), NO_LENGTH)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"rope_type": "longrope", "factor": 4.0,
    "short_factor": [1.0 + i / 16 for i in range(16)],
    "long_factor": [2.0 + i / 8 for i in range(16)]}
ROTARY = (DYNAMIC, LINEAR, {**LLAMA3, BEFORE: 64}, {**LONGROPE, BEFORE: 256}, {**YARN, BEFORE: 256})
for told in ROTARY:
    kind, end = told["rope_type"], st("lasttoken", max_len=250)
    for prefix in ("Llama", "Qwen3"):
        example(f"rotary-{kind}-{prefix.lower()}", scaled(prefix, told, 256), end)
    # A text may be longer than the positions before scaling.
    short = {**told, BEFORE: 64} if BEFORE in told else told
    example(f"rotary-beyond-{kind}", scaled("Llama", short, 64), end, may_refuse=True)

# --- cases ---

CASED = BERT.but(tok=toks.bert(lower=False))
example("do-lower-case", CASED, st(lower=True))
example("do-lower-case-roberta", ROBERTA, st(lower=True))
example("lower-case-in-tokenizer-config-only", CASED, st(), patch(TOKENIZER, do_lower_case=True))
example("cased-in-tokenizer-config-only", *BERT_ST, patch(TOKENIZER, do_lower_case=False))
example("lower-case-in-both", BERT, st(lower=True))
example("value-special-tokens-split", *BERT_ST, patch(TOKENIZER, split_special_tokens=True),
    may_refuse=True)
