"""The original's words for a BERT's layout, and the native class that has it (standard library only)."""

from __future__ import annotations

from typing import Any, NamedTuple

from budget_trainer.core.errors import InputError

# The paper's pre-LN BERT is the library's megatron-bert: no embedding LayerNorm, pre-LN blocks, a final LayerNorm.
# The original's other names are the same net with RoBERTa's tokenizer, and with next-sentence prediction (`add_nsp`).
ALIASES = dict.fromkeys(("bert-mlm", "bert-mlm-roberta", "bert-mlm-nsp"), "megatron-bert")
PAIR_TYPES = ("bert", "megatron-bert")  # with a native class that has both heads and is trained here
LN_MODES = ("pre-ln", "post-ln")
NORM_TYPES = ("pytorch", "apex", "rms_norm")  # the first two are LayerNorm, computed by the one or the other


class Layout(NamedTuple):
    """Where a model type normalises, and with what."""

    encoder_ln_mode: str
    layernorm_embedding: bool
    rms_norm: bool

    def __str__(self) -> str:
        embedding = "a norm" if self.layernorm_embedding else "no norm"
        return (
            f"{self.encoder_ln_mode}, {embedding} behind the embeddings, {'RMSNorm' if self.rms_norm else 'LayerNorm'}"
        )


# What the original's words choose from: the first that fits.
CHOICES = {
    "megatron-bert": Layout("pre-ln", False, False),
    "bert": Layout("post-ln", True, False),
    "roberta-prelayernorm": Layout("pre-ln", True, False),
    "eurobert": Layout("pre-ln", False, True),
}
LAYOUTS = CHOICES | {
    "roberta": Layout("post-ln", True, False),
    "xlm-roberta": Layout("post-ln", True, False),
    "camembert": Layout("post-ln", True, False),
    "modernbert": Layout("pre-ln", True, False),
}


def resolve_model_type(
    model_type: str = "bert-mlm",
    encoder_ln_mode: str | None = None,
    layernorm_embedding: bool | None = None,
    layer_norm_type: str | None = None,
) -> str:
    """Return the native model type that has the layout of the original's words; None leaves a word out.

    For the original's `bert-mlm` the words choose: pre-ln (which it is by default) is megatron-bert, post-ln bert,
    layernorm_embedding roberta-prelayernorm, rms_norm eurobert. For a native type they may only say what it is.

    Raises:
        InputError: an unknown word, a combination that no native class has, or one that contradicts the native type.
    """
    _check_word("encoder_ln_mode", encoder_ln_mode, LN_MODES)
    _check_word("layer_norm_type", layer_norm_type, NORM_TYPES)
    given = {
        "encoder_ln_mode": encoder_ln_mode,
        "layernorm_embedding": layernorm_embedding,
        "layer_norm_type": layer_norm_type,
    }
    words = ", ".join(f"{name} {str(value).lower()}" for name, value in given.items() if value is not None)
    asked = {name: given[name] for name in ("encoder_ln_mode", "layernorm_embedding") if given[name] is not None}
    if layer_norm_type is not None:
        asked["rms_norm"] = layer_norm_type == "rms_norm"
    if model_type in ALIASES:
        asked.setdefault("encoder_ln_mode", "pre-ln")
        return _choose(
            asked, f"{words}: model_type {model_type} would need a native class of this layout, there is none"
        )
    if not asked or (model_type not in LAYOUTS and asked == {"rms_norm": False}):
        return model_type
    if model_type not in LAYOUTS:
        raise InputError(
            f"{words}: model_type {model_type} has a layout of its own; leave these flags out, or use model_type "
            f"{', '.join(CHOICES)}"
        )
    if _agreement(LAYOUTS[model_type], asked) < len(asked):
        reason = f"{words}: contradicts model_type {model_type} ({LAYOUTS[model_type]})"
        raise InputError(f"{reason}; use model_type {_nearest(asked)}, or leave these flags out")
    return model_type


def check_pair_type(model_type: str) -> None:
    """Refuse next-sentence prediction for a native type whose class for it we do not train."""
    if model_type not in PAIR_TYPES:
        raise InputError(
            f"add_nsp: model_type {model_type} has no next-sentence head here; use model_type {' or '.join(PAIR_TYPES)}, "
            "or leave add_nsp out"
        )


def _choose(asked: dict[str, Any], refusal: str) -> str:
    for name, layout in CHOICES.items():
        if _agreement(layout, asked) == len(asked):
            return name
    raise InputError(f"{refusal}; use model_type {_nearest(asked)}")


def _nearest(asked: dict[str, Any]) -> str:
    """The choices that agree with most of what was asked, with their layouts; only the first where one has it all."""
    scores = {name: _agreement(layout, asked) for name, layout in CHOICES.items()}
    best = max(scores.values())
    names = [name for name, score in scores.items() if score == best]
    if best == len(asked):
        names = names[:1]
    return " or ".join(f"{name} ({CHOICES[name]})" for name in names)


def _agreement(layout: Layout, asked: dict[str, Any]) -> int:
    return sum(getattr(layout, name) == value for name, value in asked.items())


def _check_word(name: str, value: str | None, words: tuple[str, ...]) -> None:
    if value is not None and value not in words:
        raise InputError(f"{name}: {value!r} is unknown; choose {' or '.join(words)}")
