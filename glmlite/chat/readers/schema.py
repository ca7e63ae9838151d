"""What a tool's schema says of one argument, as far as a value's type depends on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .literals import read_json, read_literal

_MOST_SCHEMAS, _DEEPEST = 256, 32  # that are looked at for one argument: references may lead in circles
_NOTHING: Mapping[str, Any] = {}
_ANY = "any"
_TYPES = frozenset(["string", "number", "integer", "boolean", "array", "object", "null", _ANY])
# What schemas that are written by hand, or made of a signature, call them.
_OTHER_NAMES = {
    "str": "string",
    "int": "integer",
    "long": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "dict": "object",
    "none": "null",
}


def _types_of(told: Any) -> list[str] | None:
    """The types that a schema's `type` allows, in the words of JSON schema: others are in capitals, as Google's API has
    them, or called as a language calls them. A name that nobody knows stays as it is. None: any type."""
    names = [told] if isinstance(told, str) else told if isinstance(told, list) else []
    small = [(name, name.lower()) for name in names if isinstance(name, str)]
    types = [low if low in _TYPES else _OTHER_NAMES.get(low, name) for name, low in small]
    return None if not types or _ANY in types else types


class Kind(NamedTuple):
    """types: of JSON, that are allowed; None: any. members: the values that are; None: any of the types."""

    types: frozenset[str] | None = None
    members: tuple[Any, ...] | None = None

    @property
    def is_text(self) -> bool:
        """Whether a value is taken as it is written."""
        return self.types == frozenset(["string"])

    def value(self, text: str) -> Any:
        """The value that a model wrote: JSON, or a Python literal, if its type is allowed; else the text."""
        if self.is_text:
            return text
        found = []
        for read in (read_json, read_literal):
            try:
                found.append(read(text))
            except ValueError:
                continue
        if self.members is not None:
            members = [value for value in (*found, text) if any(_same(value, member) for member in self.members)]
            if members:
                return members[0]
        return next((value for value in found if self.types is None or _types(value) & self.types), text)


class Parameters:
    """The parameters of a tool, `{"type": "object", "properties": ...}` or anything that is given as such."""

    def __init__(self, schema: Any):
        self._root = schema if isinstance(schema, Mapping) else _NOTHING

    def kind(self, key: str) -> Kind:
        """What is allowed as the argument `key`."""
        return self._kind(self.schema_of(key), _Budget())

    def schema_of(self, key: str) -> Any:
        """The schema of the argument `key`; None: none is declared."""
        for schema in self._all(self._root, _Budget()):
            properties = schema.get("properties")
            if isinstance(properties, Mapping) and key in properties:
                return properties[key]
        return self._root.get("additionalProperties")

    @property
    def required(self) -> frozenset[str]:
        """The arguments without which a call is not whole."""
        found = [schema.get("required") for schema in self._all(self._root, _Budget(), ("allOf",))]
        return frozenset(name for names in found if isinstance(names, list) for name in names if isinstance(name, str))

    @property
    def names(self) -> list[str]:
        """The arguments that are declared."""
        found = [schema.get("properties") for schema in self._all(self._root, _Budget())]
        return list({str(name): None for names in found if isinstance(names, Mapping) for name in names})

    @property
    def takes_others(self) -> bool:
        """Whether arguments that are not declared are taken; where nothing is said, by a tool that declares none."""
        told = self._root.get("additionalProperties")
        return told is not False and (told is not None or "properties" not in self._root)

    def _all(
        self, schema: Any, budget: _Budget, joined: tuple[str, ...] = ("allOf", "anyOf", "oneOf"), depth: int = 0
    ) -> Iterator[Mapping[str, Any]]:
        """A schema and those that it is made of."""
        if not isinstance(schema, Mapping) or not budget.spend(depth):
            return
        yield schema
        parts = [self._target(schema["$ref"])] if "$ref" in schema else []
        for part in [*parts, *(part for name in joined for part in _parts(schema, name))]:
            yield from self._all(part, budget, joined, depth + 1)

    def _target(self, reference: Any) -> Any:
        """What `#/$defs/x` points to."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        found: Any = self._root
        for name in reference[1:].split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    def _kind(self, schema: Any, budget: _Budget, depth: int = 0) -> Kind:
        if not isinstance(schema, Mapping) or not budget.spend(depth):
            return Kind()

        def of(part: Any) -> Kind:
            return self._kind(part, budget, depth + 1)

        kinds = []
        if (types := _types_of(schema.get("type"))) is not None:
            kinds.append(Kind(frozenset(types + ["null"] * (schema.get("nullable") is True))))
        if "const" in schema:
            kinds.append(_of_members([schema["const"]]))
        if isinstance(schema.get("enum"), list):
            kinds.append(_of_members(schema["enum"]))
        if "$ref" in schema:
            kinds.append(of(self._target(schema["$ref"])))
        kinds += map(of, _parts(schema, "allOf"))
        for name in ("anyOf", "oneOf"):
            if parts := _parts(schema, name):
                kinds.append(_either([of(part) for part in parts]))
        return _both(kinds)


class _Budget:
    """How many schemas may still be looked at."""

    def __init__(self) -> None:
        self._left = _MOST_SCHEMAS

    def spend(self, depth: int) -> bool:
        self._left -= 1
        return self._left >= 0 and depth < _DEEPEST


def _parts(schema: Mapping[str, Any], name: str) -> list[Any]:
    parts = schema.get(name)
    return parts if isinstance(parts, list) else []


def _of_members(members: list[Any]) -> Kind:
    return Kind(frozenset().union(*map(_types, members)) if members else None, tuple(members))


def _both(kinds: list[Kind]) -> Kind:
    types: frozenset[str] | None = None
    members: tuple[Any, ...] | None = None
    for kind in kinds:
        if kind.types is not None:
            types = kind.types if types is None else (types & _wider(kind.types)) | (_wider(types) & kind.types)
        if kind.members is not None:
            members = kind.members
    return Kind(types, members)


def _either(kinds: list[Kind]) -> Kind:
    if any(kind.types is None for kind in kinds):
        return Kind()
    types = frozenset().union(*(kind.types or () for kind in kinds))
    if any(kind.members is None for kind in kinds):
        return Kind(types)
    return Kind(types, tuple(member for kind in kinds for member in kind.members or ()))


def _wider(types: frozenset[str]) -> frozenset[str]:
    return types | {"integer"} if "number" in types else types


def _types(value: Any) -> frozenset[str]:
    """What JSON schema calls a value."""
    if value is None or isinstance(value, bool):
        return frozenset(["null" if value is None else "boolean"])
    if isinstance(value, int | float):
        return frozenset(["number", "integer"] if math.isfinite(value) and value == int(value) else ["number"])
    names = {str: "string", list: "array", tuple: "array", dict: "object"}
    return frozenset(name for kind, name in names.items() if isinstance(value, kind))


def _same(a: Any, b: Any) -> bool:
    """Equal, where 1 and True are not."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)
