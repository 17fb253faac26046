"""From a recipe's keys to a native Transformers config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from budget_trainer.errors import InputError
from budget_trainer.model_types import ALIASES
from budget_trainer.sparse import HEADS

MODEL_TYPES = ("bert-mlm", *HEADS)
# Their position numbers start behind the padding id.
OFFSET_POSITIONS = {"camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "roberta"}
OFFSET_POSITIONS |= {"roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
FIXED_OFFSETS = {"mpnet": 2}  # ... or behind the 1 that the class takes for it
# Our key -> the names that configs give it; every name that a config has is set.
NATIVE_NAMES = {
    "hidden_dropout_prob": ("hidden_dropout_prob", "mlp_dropout", "embedding_dropout", "dropout"),
    "attention_probs_dropout_prob": ("attention_probs_dropout_prob", "attention_dropout"),
    "hidden_act": ("hidden_act", "hidden_activation", "activation"),
    "layer_norm_eps": ("layer_norm_eps", "norm_eps", "rms_norm_eps"),
    "intermediate_size": ("intermediate_size", "hidden_dim"),
}
SPECIAL_NAMES = {
    "pad": ("pad_token_id",),
    "cls": ("cls_token_id", "bos_token_id"),
    "sep": ("sep_token_id", "eos_token_id"),
    "mask": ("mask_token_id",),
}
# Keys that config classes take without declaring them.
UNDECLARED_KEYS = {"attn_implementation", "global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"}


def build_config(
    model_type: str,
    *,
    vocab_size: int,
    special_ids: Mapping[str, int],
    max_position_embeddings: int,
    model_config: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> PretrainedConfig:
    """Return the native config of a recipe; see `modeling.build_model` for the keys and errors."""
    model_type = ALIASES.get(model_type, model_type)
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_FOR_MASKED_LM_MAPPING:
        raise InputError(
            f"model_type={model_type!r} has no masked-language-model head; use one of {', '.join(MODEL_TYPES)}, or "
            "another type of AutoModelForMaskedLM"
        )
    _check_sizes(recipe)
    config_class = CONFIG_MAPPING[model_type]
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    positions = max_position_embeddings + position_offset(model_type, special_ids["pad"])
    values: dict[str, Any] = {"vocab_size": vocab_size, "max_position_embeddings": positions}
    for key, value in recipe.items():
        values |= native_values(key, value, known, model_type)
    for name, keys in SPECIAL_NAMES.items():
        values |= {key: special_ids[name] for key in keys if key in known}
    for key in model_config or {}:
        if key not in known | UNDECLARED_KEYS and not isinstance(getattr(config_class, key, None), property):
            raise InputError(f"model_config key {key!r} is unknown to {config_class.__name__}: remove or correct it")
    try:
        return config_class(**values | dict(model_config or {}))
    except Exception as error:  # the library's strict dataclasses have error classes of their own
        reason = " ".join(str(error).split())
        raise InputError(f"model_type={model_type!r} refuses its configuration: {reason}") from error


def _check_sizes(recipe: Mapping[str, Any]) -> None:
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    for key in sizes:
        if isinstance(recipe.get(key), int) and recipe[key] < 1:
            raise InputError(f"{key}={recipe[key]} must be 1 or more")
    width, heads = recipe.get("hidden_size"), recipe.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int) and width % heads:
        raise InputError(f"num_attention_heads={heads} does not divide hidden_size={width}; change one of them")


def native_values(key: str, value: Any, known: set[str], model_type: str) -> dict[str, Any]:
    """Return a recipe's key under the names that the config has; None keeps the library's default."""
    if value is None:
        return {}
    found = {name: value for name in NATIVE_NAMES.get(key, (key,)) if name in known}
    if not found and not (key.endswith("dropout_prob") and value == 0):
        fix = "set it to 0" if key.endswith("dropout_prob") else "leave it out (null in a recipe)"
        raise InputError(f"{key}={value!r} has no counterpart in model_type={model_type!r}: {fix}")
    return found


def position_offset(model_type: str, pad_id: int | None) -> int:
    """Rows of the position table that no token uses, because positions start behind the padding's number."""
    if model_type in OFFSET_POSITIONS:
        return (pad_id or 0) + 1
    return FIXED_OFFSETS.get(model_type, 0)


def check_positions(config: PretrainedConfig, longest: int, field: str) -> None:
    """Refuse blocks of `longest` tokens for a model with fewer positions; `field` is the flag that it comes from."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:  # no table, no limit
        return
    positions -= position_offset(config.model_type, config.pad_token_id)
    if positions < longest:
        raise InputError(
            f"{field}: this {config.model_type} takes {positions} tokens, the longest block of data_dir has {longest}; "
            "give it more positions, or prepare shorter blocks"
        )
