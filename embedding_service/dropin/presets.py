"""All presets by name: a file and a line each."""

from __future__ import annotations

from embedding_service.dropin import (
    bge_inference_service,
    emb_infer_bge_m3,
    embed,
    matching_service,
    qwen3,
    tei,
)
from embedding_service.dropin.preset import Preset

NO_PRESET = Preset(name="")
PRESETS = {
    preset.name: preset
    for preset in (
        qwen3.EMBEDDING,
        qwen3.RERANKER,
        embed.PRESET,
        emb_infer_bge_m3.PRESET,
        bge_inference_service.PRESET,
        matching_service.PRESET,
        tei.PRESET,
    )
}
