"""Dataclasses whose fields are flags of the stages and keys of recipes, and check themselves."""

import dataclasses
import math
from typing import Any

from budget_trainer.core.errors import InputError


def flag(
    default: Any,
    help: str,
    choices: tuple[str, ...] | None = None,
    within: tuple[float, float] = (1, math.inf),
    name: str | None = None,
    path: bool = False,
) -> Any:
    """A field of `Options`, with its help. within: the least and the largest number that it may be; name: of the flag, where
    it is not the field's; path: it is one."""
    about = {"help": help, "choices": choices, "within": within, "name": name, "path": path}
    return dataclasses.field(default=default, metadata=about)


class Options:
    """Base of a dataclass of `flag` fields. Raises InputError for a value that is no choice or out of its range."""

    def __post_init__(self: Any) -> None:
        for field in dataclasses.fields(self):
            about, value = field.metadata, getattr(self, field.name)
            name = about.get("name") or field.name
            if about and about["choices"] and value not in about["choices"]:
                raise InputError(f"{name} {value!r} is unknown; choose of {', '.join(about['choices'])}")
            if about and isinstance(value, int | float) and not isinstance(value, bool):
                least, most = about["within"]
                if not least <= value <= most:
                    wanted = f"{least} or more" if most == math.inf else f"{least} to {most}"
                    raise InputError(f"{name} {value}: give {wanted}")
