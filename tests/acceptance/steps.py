"""The steps that write a checkpoint's files; each is called with its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Step = Callable[[Path], Any]
State = dict[str, torch.Tensor]

H = 64  # the width of nearly all checkpoints
ST = "sentence_transformers.models."
IDENTITY = "torch.nn.modules.linear.Identity"
ACTIVATION = "torch.nn.modules.activation."
MODES = (
    "cls_token",
    "mean_tokens",
    "max_tokens",
    "mean_sqrt_len_tokens",
    "weightedmean_tokens",
    "lasttoken",
)
STAND_INS = Path(__file__).with_name("stand_ins")


def dump(path: Path, value: object) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False))


def native(path: Path) -> Path:
    """Return where a checkpoint lies as transformers' own class reads it, if not at `path`."""
    return path.with_name(path.name + ".native")


def keep_native(path: Path) -> None:
    """Keep a copy for the reference before the files become those of the authors' own code."""
    shutil.copytree(path, native(path))


def write(file: str, value: object) -> Step:
    """Write a JSON file."""
    return lambda path: dump(path / file, value)


def patch(file: str, **changes: Any) -> Step:
    """Change keys of a JSON file."""
    return lambda path: dump(path / file, json.loads((path / file).read_text()) | changes)


def drop(file: str, *keys: str) -> Step:
    """Take keys out of a JSON file."""

    def edit(path: Path) -> None:
        found = json.loads((path / file).read_text())
        dump(path / file, {key: value for key, value in found.items() if key not in keys})

    return edit


def remove(*files: str) -> Step:
    """Delete files."""
    return lambda path: [(path / file).unlink() for file in files]


def tensors(edit: Callable[[State], State], file: str = "model.safetensors") -> Step:
    """Change the weights."""

    def rewrite(path: Path) -> None:
        state = edit(load_file(path / file))
        state = {name: weight.contiguous() for name, weight in state.items()}
        save_file(state, str(path / file), {"format": "pt"})

    return rewrite


def renamed(name: Callable[[str], str]) -> Step:
    """Give the weights other names."""
    return tensors(lambda state: {name(old): weight for old, weight in state.items()})


def stand_in(name: str, file: str) -> Step:
    """Put code of ours in place of the repository's own, which is never copied."""
    return lambda path: shutil.copyfile(STAND_INS / f"{name}.py", path / file)


# --- sentence-transformers' files ---


def listed(*modules: tuple[str, str]) -> list[dict[str, Any]]:
    """Return what modules.json says of these (folder, class)."""
    return [
        {"idx": i, "name": str(i), "path": folder, "type": kind}
        for i, (folder, kind) in enumerate(modules)
    ]


def modules(*after: str) -> Step:
    """Write modules.json: transformer, pooling, and these folders, called after their class."""
    pairs = [(folder, ST + folder.partition("_")[2]) for folder in after]
    head = (("", ST + "Transformer"), ("1_Pooling", ST + "Pooling"))
    return write("modules.json", listed(*head, *pairs))


def dense(
    folder: str, inner: int = H, outer: int = H, *, bias: bool = True, act: str = IDENTITY
) -> Step:
    """Write a Dense module with random weights."""
    said = {"in_features": inner, "out_features": outer, "bias": bias, "activation_function": act}

    def make(path: Path) -> None:
        dump(path / folder / "config.json", said)
        state = {"linear.weight": torch.randn(outer, inner) * 0.3}
        if bias:
            state["linear.bias"] = torch.randn(outer) * 0.3
        save_file(state, str(path / folder / "model.safetensors"))

    return make


def layer_norm(folder: str) -> Step:
    """Write a LayerNorm module with random weights."""

    def make(path: Path) -> None:
        dump(path / folder / "config.json", {"dimension": H})
        state = {"norm.weight": torch.rand(H) + 0.5, "norm.bias": torch.randn(H) * 0.3}
        save_file(state, str(path / folder / "model.safetensors"))

    return make


def st(
    *modes: str,
    normalize: bool = True,
    layers: tuple[Step, ...] = (),
    prompts: dict[str, str] | None = None,
    max_len: int | None = 512,
    lower: bool = False,
    include_prompt: bool = True,
    dim: int = H,
    **told: Any,
) -> Step:
    """Write sentence-transformers' files as they are on the hub, beside the native copy, too.

    `modes` are the pooling's, the mean without any; `layers` are Dense modules that follow it, and
    `told` is what config_sentence_transformers.json has beside the prompts.
    """
    on = modes or ("mean_tokens",)
    pooling = {
        "word_embedding_dimension": dim,
        **{f"pooling_mode_{mode}": mode in on for mode in MODES},
        "include_prompt": include_prompt,
    }
    places = [f"{n}_Dense" for n in range(2, 2 + len(layers))]
    places += [f"{2 + len(layers)}_Normalize"] if normalize else []
    steps = [
        write("1_Pooling/config.json", pooling),
        *layers,
        modules(*places),
        write("sentence_bert_config.json", {"max_seq_length": max_len, "do_lower_case": lower}),
    ]
    if prompts is not None or told:
        versions = {"sentence_transformers": "3.4.1", "transformers": "4.48.0", "pytorch": "2.5.1"}
        main = {
            "__version__": versions,
            "prompts": prompts or {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        }
        steps.append(write("config_sentence_transformers.json", main | told))

    def make(path: Path) -> None:
        for folder in filter(Path.exists, (path, native(path))):
            for step in steps:
                step(folder)

    return make
