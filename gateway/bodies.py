"""JSON bodies: strict reading of untrusted bytes into a model, with every wrong field named. Pure."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from chassis.errors import InvalidField, Violation
from gateway.errors import MalformedJson, UnsupportedMediaType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEPTH_MAX = 20
FIELD_CHARS_MAX = 128
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
"""A string without its end is one token too: looking for its end from every quote in it took seconds."""
M = TypeVar("M", bound=BaseModel)


def read(model: type[M], body: bytes, content_type: str | None) -> M:
    """The model in a body.

    Raises: UnsupportedMediaType unless it says application/json; MalformedJson; InvalidField with the wrong
    fields.
    """
    media_type, _, parameters = (content_type or "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise UnsupportedMediaType
    value = parse(body)
    if not isinstance(value, dict):
        raise MalformedJson(expected="an object")
    try:
        return model.model_validate(value)
    except ValidationError as wrong:
        raise InvalidField(*violations(wrong.errors(include_url=False, include_input=False))) from None


def parse(body: bytes) -> Any:
    """A JSON value without doubled names, NaN or Infinity, and at most 20 levels deep.

    Raises: MalformedJson.
    """
    if depth(body) > DEPTH_MAX:
        raise MalformedJson(expected=f"at most {DEPTH_MAX} levels")
    try:
        return json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise MalformedJson(expected="valid JSON in UTF-8") from None


def depth(body: bytes) -> int:
    """How deeply arrays and objects are nested, whether or not it is valid JSON; costs one pass."""
    deepest = level = 0
    for token in _TOKENS.finditer(body):
        match token[0]:
            case b"[" | b"{":
                level += 1
                deepest = max(deepest, level)
            case b"]" | b"}":
                level -= 1
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name appears twice")
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def violations(errors: Iterable[Mapping[str, Any]]) -> list[Violation]:
    """The wrong fields of a failed validation; what was sent is not repeated, except for the names of unknown
    fields.
    """
    return [Violation(_field(error["loc"]), _sentence(error["msg"])) for error in errors]


def _field(location: Sequence[str | int]) -> str:
    parts = location[1:] if location and location[0] in ("query", "path", "header", "body") else location
    return (
        ".".join(str(part) for part in parts)[:FIELD_CHARS_MAX].encode("utf-8", "replace").decode() or "body"
    )


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ")
