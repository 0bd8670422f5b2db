"""What a value is here: frozen for the type checker, and as cheap to build as a plain slotted class.

A frozen dataclass sets each field through a call of `object.__setattr__`: building one of five fields takes five
times as long as building a plain one, and a request's life builds a dozen of them. So a value must not be changed,
mypy sees to that, and the interpreter does not check it once more.

For values that are built for every request or event. What is built rarely stays a frozen dataclass.
"""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[_T]) -> type[_T]:
    """Make a slotted dataclass that is compared and hashed by its fields; not to be changed once it is built."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
