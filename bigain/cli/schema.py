"""`bigain schema`: a JSON schema of recipes, so that an editor completes keys and marks unknown ones.

It is made from signatures and docstrings. It has the settings of registered classes,
third-party ones included; classes of other packages accept any settings.
"""

import importlib
import inspect
import json
import pkgutil
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from bigain import registry
from bigain.cli.classes import Parameter, class_paths, parameters_of, summary_of
from bigain.cli.parser import Parser
from bigain.errors import SettingError

__all__ = ["RECIPE_COMMANDS", "make_parser", "recipe_schema", "run"]

RECIPE_COMMANDS = ("fit", "test", "compare", "flops", "latency")
"""Commands that take recipes."""

Schema = dict[str, Any]

_WITH_CLASS_PATHS = ("fit", "test", "compare")
"""Commands whose recipes name classes of `_OUR_MODULES`."""

_PLAIN: Mapping[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}

_OUR_MODULES = ("bigain.tasks", "bigain.training", "bigain.data", "bigain.metrics", "bigain.backbones")
"""Packages of classes that recipes name by class path, without a registry."""


def make_parser() -> Parser:
    """Make the command's parser."""
    parser = Parser(prog="bigain schema", description="Print a JSON schema of a command's recipes, for editors.")
    known = ", ".join(RECIPE_COMMANDS)
    parser.add_argument("command", nargs="?", default="test", help=f"One of {known}; default: test.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Print the schema."""
    given = make_parser().parse_args([*arguments])
    print(json.dumps(recipe_schema(given.command), indent=2))


def recipe_schema(command: str) -> Schema:
    """Make the schema of a command's recipes (JSON Schema, draft 2020-12).

    Args:
        command: One of `RECIPE_COMMANDS`.

    Raises:
        SettingError: The command takes no recipes.
    """
    if command not in RECIPE_COMMANDS:
        raise SettingError(f"Recipes are for {', '.join(RECIPE_COMMANDS)}; got {command!r}.")
    # The others take registered classes only, and need not wait for Lightning.
    for name in _OUR_MODULES if command in _WITH_CLASS_PATHS else ():
        for found in pkgutil.iter_modules(importlib.import_module(name).__path__):
            importlib.import_module(f"{name}.{found.name}")
    maker = _Maker()
    top = maker.verb(command) if command in ("fit", "test") else maker.own(command)
    title = f"Recipe of bigain {command}, bigain {registry.running_version()}"
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **top,
        "$defs": dict(sorted(maker.definitions.items())),
    }


class _Maker:
    """Makes schemas of types; those of classes become definitions to refer to."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}

    def verb(self, verb: str) -> Schema:
        """Make the schema of a recipe for one of Lightning's verbs."""
        from lightning.pytorch import LightningDataModule, LightningModule, Trainer

        from bigain.cli.lightning_cli import verb_parser

        # Every key that the verb knows accepts anything; some get a schema below.
        keys = verb_parser(verb).get_defaults(skip_validation=True).as_dict()
        properties: Schema = {key: {} for key in keys if key != "config"}
        properties |= {"output": {"type": ["string", "null"]}, "resume": {"type": "boolean"}}
        properties["trainer"] = self.settings(parameters_of(Trainer), partial=True)
        properties |= {"model": self.of(LightningModule), "data": self.of(LightningDataModule)}
        return {**_object(properties), "required": ["model", "data"]}

    def own(self, command: str) -> Schema:
        """Make the schema of a recipe for one of bigain's own commands."""
        output, flag = {"type": ["string", "null"]}, {"type": "boolean"}
        if command == "compare":
            from bigain.benchmark.comparison import Comparison

            inner = self.settings(parameters_of(Comparison))
            return {**_object({"output": output, "resume": flag, "comparison": inner}), "required": ["comparison"]}
        from bigain.benchmark.flops_settings import FlopsSettings
        from bigain.benchmark.latency_settings import LatencySettings

        settings, file = (FlopsSettings, "csv") if command == "flops" else (LatencySettings, "output")
        made = self.settings(parameters_of(settings))
        made["properties"][file] = output
        return made

    def settings(self, parameters: Iterable[Parameter], partial: bool = False) -> Schema:
        """Make the schema of a mapping of settings; a partial one requires none."""
        properties, required = {}, []
        for item in parameters:
            made = dict(self.of(item.annotation))
            if item.meaning:
                made["description"] = item.meaning
            if isinstance(item.default, bool | int | float | str):
                made["default"] = item.default
            properties[item.name] = made
            if item.required and not partial:
                required.append(item.name)
        return _object(properties) | ({"required": required} if required else {})

    def of(self, annotation: Any) -> Schema:
        """Make the schema of a type; an unknown type accepts anything."""
        if annotation in _PLAIN:
            return {"type": _PLAIN[annotation]}
        if annotation is type(None):
            return {"type": "null"}
        origin, inner = get_origin(annotation), get_args(annotation)
        if origin is Literal:
            return {"enum": [*inner]}
        if origin in (Union, types.UnionType):
            return self._union(inner)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return {"type": "object", "additionalProperties": self.of(inner[1]) if len(inner) == 2 else {}}
        if isinstance(origin, type) and issubclass(origin, Iterable):
            return {"type": "array", "items": self.of(inner[0])}
        if is_dataclass(annotation) and isinstance(annotation, type):
            return self._refer(_path(annotation), lambda: self.settings(parameters_of(annotation)))
        if isinstance(annotation, type) and annotation is not object:
            return self._refer(_path(annotation), lambda: self._one_of_classes(annotation))
        return {}

    def _union(self, members: tuple[Any, ...]) -> Schema:
        kind = next((kind for kind in registry.KINDS if registry.base_of(kind) in members), None)
        values = [member for member in members if is_dataclass(member) and isinstance(member, type)]
        loose = any(map(_is_mapping, members))
        made = []
        for member in members:
            if loose and member in values:
                made.append(self._from_mapping(member))
            # Free text and free mappings would hide every mistake in a key or a name.
            elif not (_is_mapping(member) and (kind or values)) and not (member is str and kind):
                made.append(self.of(member))
        if kind and str in members:
            made.append(self._by_name(kind))
        return {"anyOf": made} if {} not in made else {}

    def _from_mapping(self, value: type[Any]) -> Schema:
        """Make the schema of a dataclass given as a mapping, in which a registered name may replace an object."""

        def fields() -> Schema:
            bases = {registry.base_of(kind) for kind in registry.KINDS}
            parameters = parameters_of(value)
            return self.settings(
                replace(item, annotation=item.annotation | str if item.annotation in bases else item.annotation)
                for item in parameters
            )

        return self._refer(f"{_path(value)} from a mapping", fields)

    def _refer(self, name: str, make: Callable[[], Schema]) -> Schema:
        """Define a schema once; a class that takes its own kind would otherwise recurse forever."""
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] |= make()
        return {"$ref": f"#/$defs/{name}"}

    def _one_of_classes(self, base: type[Any]) -> Schema:
        """Make the schema of what jsonargparse builds an object from: a class path, with or without settings."""
        known = _known(base)
        if not known:
            return _ANY_CLASS if base.__module__.startswith("lightning.") else {}
        paths = {one: class_paths(one) for one in known}
        ours = {one.__module__.partition(".")[0] for one in known}
        elsewhere = {"type": "string", "pattern": rf"^(?!({'|'.join(map(re.escape, sorted(ours)))})\.).+\."}
        return {
            "anyOf": [
                {"enum": [path for one in known for path in paths[one]]},
                elsewhere,
                {**_object({"class_path": elsewhere, "init_args": {"type": "object"}}), "required": ["class_path"]},
                *(self._with_settings("class_path", paths[one], one) for one in known),
            ]
        }

    def _with_settings(self, key: str, values: list[str], one: type[Any]) -> Schema:
        made = self._refer(f"settings of {_path(one)}", lambda: self.settings(parameters_of(one)))
        needed = ["init_args"] if any(item.required for item in parameters_of(one)) else []
        summary = {"description": summary_of(one)}
        return {**_object({key: {"enum": values}, "init_args": made}), "required": [key, *needed], **summary}

    def _by_name(self, kind: str) -> Schema:
        """Make the schema of what `registry.build` takes too: a name, or a mapping with a name and settings."""
        found = {entry.name: registry.get(kind, entry.name) for entry in registry.entries(kind) if not entry.problem}

        def forms() -> Schema:
            made: list[Schema] = [{"enum": [*found]}, {"type": "string", "pattern": r"\."}]
            for name, one in found.items():
                beside = self.settings(parameters_of(one))
                beside["properties"]["name"] = {"const": name}
                beside["required"] = ["name", *beside.get("required", [])]
                made += [beside, self._with_settings("name", [name], one)]
            return {"anyOf": made}

        return self._refer(f"{kind} by name", forms)


def _path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _object(properties: Mapping[str, Any]) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


_ANY_CLASS: Schema = {
    "anyOf": [
        {"type": "string"},
        {**_object({"class_path": {"type": "string"}, "init_args": {"type": "object"}}), "required": ["class_path"]},
    ]
}
"""Some class of Lightning's, such as a callback."""


def _is_mapping(member: Any) -> bool:
    found = get_origin(member) or member
    return isinstance(found, type) and issubclass(found, Mapping)


def _known(base: type[Any]) -> list[type[Any]]:
    """List the classes that can be built for a base: registered ones, or bigain's own that derive from it."""
    kinds = [kind for kind in registry.KINDS if registry.base_of(kind) is base]
    if kinds:
        found = [registry.get(kinds[0], entry.name) for entry in registry.entries(kinds[0]) if not entry.problem]
        return list(dict.fromkeys(found))
    pending, seen = [base], []
    while pending:
        one = pending.pop()
        pending += one.__subclasses__()
        if one.__module__.startswith("bigain.") and not one.__name__.startswith("_") and not inspect.isabstract(one):
            seen.append(one)
    return list(dict.fromkeys(seen))
