"""The original's words for a layout choose a native class, or are refused: a table over all of them."""

from itertools import product

import pytest

from budget_trainer.core.errors import InputError
from budget_trainer.model.types import ALIASES, CHOICES, LAYOUTS, resolve_model_type

MODES, EMBEDDING, NORMS = (None, "pre-ln", "post-ln"), (None, False, True), (None, "pytorch", "apex", "rms_norm")
# (post-ln, layernorm_embedding, rms_norm) -> the class for the original's bert-mlm
CHOSEN = {
    (False, None, False): "megatron-bert",
    (False, False, False): "megatron-bert",
    (False, True, False): "roberta-prelayernorm",
    (True, None, False): "bert",
    (True, True, False): "bert",
    (False, None, True): "eurobert",
    (False, False, True): "eurobert",
}


@pytest.mark.parametrize("name", sorted(ALIASES))
@pytest.mark.parametrize(("mode", "embedding", "norm"), list(product(MODES, EMBEDDING, NORMS)))
def test_the_words_choose_a_native_class(name, mode, embedding, norm):
    expected = CHOSEN.get((mode == "post-ln", embedding, norm == "rms_norm"))
    if expected is not None:
        assert resolve_model_type(name, mode, embedding, norm) == expected
        return
    with pytest.raises(InputError) as refused:
        resolve_model_type(name, mode, embedding, norm)
    message = str(refused.value)
    assert "\n" not in message and "use model_type " in message
    given = {"encoder_ln_mode": mode, "layernorm_embedding": embedding, "layer_norm_type": norm}
    for word, value in given.items():
        assert (f"{word} {str(value).lower()}" in message) is (value is not None)
    assert any(choice in message.split("use model_type ")[1] for choice in CHOICES)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
@pytest.mark.parametrize(("mode", "embedding", "norm"), list(product(MODES, EMBEDDING, NORMS)))
def test_for_a_native_class_the_words_say_what_it_is(name, mode, embedding, norm):
    its_mode, its_embedding, its_rms_norm = LAYOUTS[name]
    agrees = mode in (None, its_mode) and embedding in (None, its_embedding)
    agrees = agrees and (norm is None or (norm == "rms_norm") == its_rms_norm)
    if agrees:
        assert resolve_model_type(name, mode, embedding, norm) == name
    else:
        with pytest.raises(InputError, match=f"contradicts model_type {name} .*; use model_type .*, or leave"):
            resolve_model_type(name, mode, embedding, norm)


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (("bert", "pre-ln"), "megatron-bert"),
        (("bert", None, False), "megatron-bert"),
        (("bert", "pre-ln", True), "roberta-prelayernorm"),
        (("modernbert", "post-ln"), "bert"),
        (("megatron-bert", None, None, "rms_norm"), "eurobert"),
        (("eurobert", None, None, "apex"), "megatron-bert"),
        (("bert-mlm", "post-ln", None, "rms_norm"), "bert"),
        (("bert-mlm", "pre-ln", True, "rms_norm"), "roberta-prelayernorm"),
    ],
)
def test_the_refusal_names_the_type_to_use(arguments, suggested):
    with pytest.raises(InputError) as refused:
        resolve_model_type(*arguments)
    assert f" {suggested} (" in str(refused.value).split("use model_type")[1]


def test_types_of_another_layout():
    assert resolve_model_type("deberta-v2") == "deberta-v2"
    assert resolve_model_type("deberta-v2", layer_norm_type="apex") == "deberta-v2"
    with pytest.raises(
        InputError, match="^encoder_ln_mode pre-ln: model_type deberta-v2 has a layout of its own; use"
    ):
        resolve_model_type("deberta-v2", "pre-ln")
