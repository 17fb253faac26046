"""Native model types by the original's words for a BERT's layout. Standard library only."""

from __future__ import annotations

from budget_trainer.core.errors import InputError

# The paper's pre-LN BERT is the library's megatron-bert: no embedding LayerNorm, pre-LN blocks, a final LayerNorm.
# The original's other names are the same net with RoBERTa's tokenizer, and with next-sentence prediction (`add_nsp`).
ALIASES = dict.fromkeys(("bert-mlm", "bert-mlm-roberta", "bert-mlm-nsp"), "megatron-bert")
PAIR_TYPES = ("bert", "megatron-bert")  # with a native class that has both heads and is trained here
# (encoder_ln_mode, layernorm_embedding, RMSNorm) of native types. With an alias the first four are chosen from, in this order.
LAYOUTS = {
    "megatron-bert": ("pre-ln", False, False),
    "bert": ("post-ln", True, False),
    "roberta-prelayernorm": ("pre-ln", True, False),
    "eurobert": ("pre-ln", False, True),
    "roberta": ("post-ln", True, False),
    "xlm-roberta": ("post-ln", True, False),
    "camembert": ("post-ln", True, False),
    "modernbert": ("pre-ln", True, False),
}
CHOICES = tuple(LAYOUTS)[:4]
_WORDS = {"encoder_ln_mode": ("pre-ln", "post-ln"), "layer_norm_type": ("pytorch", "apex", "rms_norm")}


def resolve_model_type(
    model_type: str = "bert-mlm",
    encoder_ln_mode: str | None = None,
    layernorm_embedding: bool | None = None,
    layer_norm_type: str | None = None,
) -> str:
    """Return the native model type that has the layout of the original's words; None leaves a word out.

    For the original's `bert-mlm` the words choose: pre-ln (which it is by default) is megatron-bert, post-ln bert,
    layernorm_embedding roberta-prelayernorm, rms_norm eurobert. For a native type they may only repeat what it is.
    pytorch and apex are two kernels of one LayerNorm.

    Raises:
        InputError: an unknown word, a combination that no native class has, or one that contradicts the native type.
    """
    words = (encoder_ln_mode, layernorm_embedding, layer_norm_type)
    given = dict(zip(("encoder_ln_mode", "layernorm_embedding", "layer_norm_type"), words, strict=True))
    for name, known in _WORDS.items():
        if given[name] not in (None, *known):
            raise InputError(f"{name}: {given[name]!r} is unknown; choose {' or '.join(known)}")
    rms_norm = None if layer_norm_type is None else layer_norm_type == "rms_norm"
    asked: tuple[object, ...] = (encoder_ln_mode, layernorm_embedding, rms_norm)
    if model_type in ALIASES:
        asked, candidates = (encoder_ln_mode or "pre-ln", *asked[1:]), CHOICES
        reason = f"model_type {model_type} would need a native class of this layout, there is none"
    elif model_type in LAYOUTS:
        candidates, reason = (model_type,), f"contradicts model_type {model_type} ({_layout(model_type)})"
    elif asked in ((None, None, None), (None, None, False)):
        return model_type
    else:
        candidates, reason = (), f"model_type {model_type} has a layout of its own"
    for name in candidates:
        if all(word in (None, has) for word, has in zip(asked, LAYOUTS[name], strict=True)):
            return name
    flags = ", ".join(f"{name} {str(value).lower()}" for name, value in given.items() if value is not None)
    others = " or ".join(f"{name} ({_layout(name)})" for name in CHOICES)
    raise InputError(f"{flags}: {reason}; use model_type {others}, or leave these flags out")


def check_pair_type(model_type: str) -> None:
    """Refuse next-sentence prediction for a native type whose class for it we do not train."""
    if model_type not in PAIR_TYPES:
        raise InputError(
            f"add_nsp: model_type {model_type} has no next-sentence head here; use model_type {' or '.join(PAIR_TYPES)}, "
            "or leave add_nsp out"
        )


def _layout(model_type: str) -> str:
    mode, embedding, rms_norm = LAYOUTS[model_type]
    return f"{mode}, {'a' if embedding else 'no'} norm behind the embeddings, {'RMS' if rms_norm else 'Layer'}Norm"
