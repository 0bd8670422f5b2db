"""Policies by name: those that are built in, those of other packages, and classes named as `module:Class`.

A package offers policies by entry points in the groups `fairlead.placements` and `fairlead.orders`:

    [project.entry-points."fairlead.placements"]
    roomiest = "fairlead_example.roomiest:Roomiest"

A class is checked before it is used: it extends `PlacementPolicy` or `OrderPolicy`, defines every abstract method,
and its `__init__` takes nothing, or its settings (a frozen dataclass with defaults), or its settings
and `knowledge`. A package's code runs only when its policy is named, or when all policies are listed.
"""

import dataclasses
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, cast

from policies import catalog
from policies.knowledge import Knowledge
from policies.protocol import OrderPolicy, PlacementPolicy

Kind = Literal["placement", "queue"]
Entry = catalog.Entry[Any]

GROUPS: Mapping[Kind, str] = {"placement": "fairlead.placements", "queue": "fairlead.orders"}
"""The group of entry points in which a package offers policies of each kind."""
_BASES: Mapping[Kind, type[Any]] = {"placement": PlacementPolicy, "queue": OrderPolicy}
_DEFAULTS: Mapping[Kind, str] = {"placement": catalog.DEFAULT_PLACEMENT, "queue": catalog.DEFAULT_QUEUE}
_CLASS = re.compile(r"[\w.]+:[\w.]+")
_MOST_PARAMETERS = 2


class NoSuchPolicy(ValueError):
    """There is no policy of this name, or what the name leads to is none; the message says why."""


@dataclass(frozen=True, slots=True)
class _NoSettings:
    """Of a policy whose `__init__` takes nothing."""


def default(kind: Kind) -> str:
    """The name of the policy that is used where none is named."""
    return _DEFAULTS[kind]


def built_in(kind: Kind) -> dict[str, Entry]:
    """The policies of this project, by name."""
    return dict(catalog.placement_policies()) if kind == "placement" else dict(catalog.queue_policies())


def names(kind: Kind) -> list[str]:
    """Every name that has a policy: built in, then of other packages. Imports nothing of theirs."""
    return list(dict.fromkeys([*built_in(kind), *(point.name for point in _offered(kind))]))


def find(kind: Kind, name: str) -> Entry:
    """The policy of this name, or of this `module:Class`. Raises NoSuchPolicy."""
    known = built_in(kind)
    if name in known:
        return known[name]
    if ":" in name:
        return _from_class(kind, name, name)
    offered = [point for point in _offered(kind) if point.name == name]
    if len(offered) > 1:
        packages = " and ".join(sorted(f"{_package(point)} ({point.value})" for point in offered))
        raise NoSuchPolicy(
            f"several packages have a {kind} policy `{name}`: {packages}; name it as `module:Class`"
        )
    if offered:
        return _from_class(kind, name, offered[0].value, f"entry point `{name}` of {_package(offered[0])}: ")
    close = difflib.get_close_matches(name, names(kind), n=1)
    meant = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(names(kind))}, or `module:Class`"
    raise NoSuchPolicy(f"there is no {kind} policy `{name}`; {meant} (`fairlead policies` explains them)")


def everything(kind: Kind) -> tuple[dict[str, Entry], list[str]]:
    """Every policy that can be used by its name, and a sentence for each that a package offers and that cannot."""
    found, problems = built_in(kind), []
    for point in _offered(kind):
        if point.name in built_in(kind):
            problems.append(
                f"{_package(point)} offers a {kind} policy `{point.name}`, the name of one that is built in; "
                f"it can be used as `{point.value}`"
            )
            continue
        try:
            found[point.name] = find(kind, point.name)
        except NoSuchPolicy as error:
            problems.append(str(error))
    return found, list(dict.fromkeys(problems))


def _offered(kind: Kind) -> list[EntryPoint]:
    """What other packages offer, each once: a package may be seen twice on the path."""
    return list({(point.name, point.value): point for point in entry_points(group=GROUPS[kind])}.values())


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unnamed package"


# -- a class of another package


def _from_class(kind: Kind, name: str, target: str, where: str = "") -> Entry:
    """Import and check a class. `where` opens every message. Raises NoSuchPolicy."""
    if not _CLASS.fullmatch(target):
        raise NoSuchPolicy(f"{where}`{target}` should be `module:Class`, such as `my_package.roomiest:Roomiest`")
    module_name, _, class_name = target.partition(":")
    try:
        module: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise NoSuchPolicy(
            f"{where}`{target}` cannot be imported: {error}; install its package beside fairlead, "
            "or name its folder in PYTHONPATH"
        ) from None
    except Exception as error:
        raise NoSuchPolicy(
            f"{where}`{target}` cannot be imported: {module_name} raises {type(error).__name__}: {error}"
        ) from error
    try:
        policy = _checked(kind, module, class_name)
        settings, wants_knowledge = _parameters(policy)
    except _Unfit as error:
        raise NoSuchPolicy(f"{where}`{target}` {error}") from None
    text = inspect.getdoc(inspect.getmodule(policy)) or inspect.getdoc(policy) or ""
    wants_pairs = bool(getattr(policy, "wants_pairs", False))
    make = _maker(policy, settings, wants_knowledge=wants_knowledge)
    question, source = catalog.question_of(text), catalog.source_of(text)
    return catalog.Entry(name, question, source, settings or _NoSettings, make, wants_pairs, text)


class _Unfit(Exception):
    """What is wrong with a class: the rest of a sentence that begins with its name."""


def _checked(kind: Kind, module: Any, class_name: str) -> type[Any]:
    """The class, which extends the interface of its kind and is complete. Raises _Unfit."""
    base, other = _BASES[kind], _BASES["queue" if kind == "placement" else "placement"]
    policy: Any = module
    for part in class_name.split("."):
        policy = getattr(policy, part, None)
    if policy is None:
        have = [each for each, value in vars(module).items() if _is_a(value, base) and value is not base]
        close = difflib.get_close_matches(class_name, have, n=1)
        there = (
            f"did you mean `{close[0]}`?" if close else f"its {base.__name__} classes: {', '.join(have) or 'none'}"
        )
        raise _Unfit(f"does not exist: there is no {class_name} in {module.__name__}; {there}")
    if _is_a(policy, other):
        raise _Unfit(f"is of the other kind, {other.__name__}: name it under `{_other(kind)}`")
    if not _is_a(policy, base):
        raise _Unfit(f"is no {kind} policy: it should extend policies.protocol.{base.__name__}")
    if missing := sorted(getattr(policy, "__abstractmethods__", ())):
        raise _Unfit(f"is not complete: it has to define {', '.join(missing)}")
    return cast("type[Any]", policy)


def _other(kind: Kind) -> Kind:
    return "queue" if kind == "placement" else "placement"


def _is_a(value: Any, base: type[Any]) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def _parameters(policy: type[Any]) -> tuple[type[Any] | None, bool]:
    """The dataclass of its settings (None: it takes none), and whether it takes `knowledge`. Raises _Unfit."""
    should = "its __init__ should take (self), (self, settings: Settings) or (self, settings: Settings, knowledge)"
    if policy.__init__ is object.__init__:
        return None, False
    parameters = list(inspect.signature(policy.__init__).parameters.values())[1:]
    if any(each.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for each in parameters):
        raise _Unfit(f"takes arguments that are not by position: {should}")
    needed = [each for each in parameters if each.default is inspect.Parameter.empty]
    taken = parameters[: max(len(needed), _MOST_PARAMETERS)]
    if len(taken) > _MOST_PARAMETERS:
        raise _Unfit(f"takes {len(taken)} arguments: {should}")
    if not taken:
        return None, False
    try:
        settings = typing.get_type_hints(policy.__init__).get(taken[0].name)
    except NameError as error:
        raise _Unfit(f"has a type that cannot be read ({error}): import it where the class stands") from None
    if not (isinstance(settings, type) and dataclasses.is_dataclass(settings)):
        raise _Unfit(
            f"does not say what its settings are: annotate `{taken[0].name}` with a frozen dataclass; {should}"
        )
    if not settings.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise _Unfit(f"has settings that can change: declare {settings.__name__} with @dataclass(frozen=True)")
    bare = [
        field.name
        for field in dataclasses.fields(settings)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if bare:
        raise _Unfit(f"has settings without a default: give {settings.__name__}.{bare[0]} one")
    return settings, len(taken) == _MOST_PARAMETERS


def _maker(
    policy: type[Any], settings: type[Any] | None, *, wants_knowledge: bool
) -> Callable[[Any, Knowledge], Any]:
    if settings is None:
        return lambda _settings, _knowledge: policy()
    if wants_knowledge:
        return cast("Callable[[Any, Knowledge], Any]", policy)
    return lambda chosen, _knowledge: policy(chosen)
