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


@pytest.mark.parametrize("name", [*sorted(ALIASES), *sorted(LAYOUTS)])
@pytest.mark.parametrize(("mode", "embedding", "norm"), list(product(MODES, EMBEDDING, NORMS)))
def test_the_words_choose_a_native_class_or_are_refused(name, mode, embedding, norm):
    if name in ALIASES:
        expected = CHOSEN.get((mode == "post-ln", embedding, norm == "rms_norm"))
    else:
        its_mode, its_embedding, its_rms_norm = LAYOUTS[name]
        agrees = mode in (None, its_mode) and embedding in (None, its_embedding)
        expected = name if agrees and (norm is None or (norm == "rms_norm") == its_rms_norm) else None
    if expected is not None:
        assert resolve_model_type(name, mode, embedding, norm) == expected
        return
    with pytest.raises(InputError) as refused:
        resolve_model_type(name, mode, embedding, norm)
    reason, fix = str(refused.value).split("; use model_type ")
    assert "\n" not in reason + fix and all(f"{choice} (" in fix for choice in CHOICES)
    given = {"encoder_ln_mode": mode, "layernorm_embedding": embedding, "layer_norm_type": norm}
    for word, value in given.items():
        assert (f"{word} {str(value).lower()}" in reason) is (value is not None)
    assert (f"contradicts model_type {name} " in reason) is (name in LAYOUTS)


def test_types_of_another_layout():
    assert resolve_model_type("deberta-v2") == resolve_model_type("deberta-v2", layer_norm_type="apex") == "deberta-v2"
    with pytest.raises(
        InputError, match="^encoder_ln_mode pre-ln: model_type deberta-v2 has a layout of its own; use"
    ):
        resolve_model_type("deberta-v2", "pre-ln")
