"""Old variables: the settings they set, in the words of the system that had them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from embedding_service.errors import BadConfiguration
from embedding_service.settings import old_variables


def apply(
    environment: Any, environ: dict[str, str], **tree: Any
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Return the tree with old variables, which variable set each setting, and the warnings."""
    tree["environment"] = environment
    set_by, warnings = old_variables.apply(tree, environ)
    del tree["environment"]
    return tree, set_by, warnings


@pytest.mark.parametrize(
    ("environment", "tree"),
    [
        ({"OLD": "port"}, {"port": "7"}),
        ({"OLD": ["port", "max_inputs"]}, {"port": "7", "max_inputs": "7"}),
        ({"OLD": {"settings": ["port"]}}, {"port": "7"}),
        ({"OLD": "rate_limit_paths./batch"}, {"rate_limit_paths": {"/batch": "7"}}),
        ({"OTHER": "port"}, {}),
    ],
)
def test_a_variable_sets_settings(environment: Any, tree: dict[str, Any]) -> None:
    """A variable sets one setting or several, also inside others, made where missing."""
    assert apply(environment, {"OLD": " 7\n"}) == (tree, dict.fromkeys(_leaves(tree), "OLD"), [])


def test_a_variable_reaches_into_lists() -> None:
    """A number names an entry of a list, and the other entries stay as they are."""
    models = [{"model_name": "a"}, {"model_name": "b"}]
    tree, set_by, _ = apply({"OLD": "models.1.model_name"}, {"OLD": "c"}, models=models)
    assert tree == {"models": [{"model_name": "a"}, {"model_name": "c"}]}
    assert set_by == {"models.1.model_name": "OLD"}


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_a_blank_variable_sets_nothing(text: str) -> None:
    """The file's value holds where the variable is blank."""
    assert apply({"OLD": "port"}, {"OLD": text}, port=1) == ({"port": 1}, {}, [])


def test_a_variable_without_effect_is_a_warning() -> None:
    """A variable that has no setting any more is named if it is set."""
    assert apply({"OLD": None}, {"OLD": "7"}) == ({}, {}, ["OLD is set and has no effect any more"])
    assert apply({"OLD": None}, {}) == ({}, {}, [])


@pytest.mark.parametrize(
    ("text", "value"),
    [("TRUE", 16), ("1", 16), ("yes", 16), ("on", 16), ("false", 32), ("0", 32), ("Off", 32)],
)
def test_words_are_translated(text: str, value: int) -> None:
    """Old words stand for values, in either case, and booleans in all their spellings."""
    environment = {"HALF": {"settings": ["bits"], "values": {True: 16, False: 32}}}
    assert apply(environment, {"HALF": text})[0] == {"bits": value}


def test_an_unknown_word_is_refused() -> None:
    """A word without a translation is refused with those there are."""
    environment = {"OLD": {"settings": ["device"], "values": {"cpu": "cpu", "cuda:0": "cuda"}}}
    with pytest.raises(BadConfiguration, match=r"^OLD is 'tpu', and must be one of cpu, cuda:0$"):
        apply(environment, {"OLD": "tpu"})


@pytest.mark.parametrize(
    "setting", ["models.1.dtype", "models.first.dtype", "port.high", "aliases.0"]
)
def test_a_setting_that_the_file_has_no_place_for_is_refused(setting: str) -> None:
    """A variable for an entry that the file does not have is refused in one line."""
    with pytest.raises(BadConfiguration, match=f"^OLD sets {setting}, for which"):
        apply({"OLD": setting}, {"OLD": "7"}, models=[{}], port=1, aliases=["a"])


def test_a_wrong_description_is_refused() -> None:
    """The entries of `environment` are checked also if their variables are not set."""
    with pytest.raises(ValidationError):
        apply({"OLD": {"setting": "port"}}, {})


def _leaves(tree: dict[str, Any], *above: str) -> list[str]:
    found = []
    for name, value in tree.items():
        found += (
            _leaves(value, *above, name) if isinstance(value, dict) else [".".join((*above, name))]
        )
    return found
