"""Reading settings strictly: YAML of plain values, and the faults that a pydantic model finds in them, in words.

A file that a person writes is small, holds every key once and no more aliases than a person writes; anything else is refused before it is
interpreted. A fault names the key, what came and what was expected, with the unit that the model gives as a field's description.
pydantic and PyYAML come with the extra ``workbook``; no other module of this library needs them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from .errors import EmphaseError, one_line, shortened


@dataclass(frozen=True)
class YamlLimits:
    """What a file that a person writes may hold at most."""

    file_bytes: int = 200_000
    aliases: int = 10  # each may stand for all that is in the one before: twenty of them fill a memory
    depth: int = 30  # values within each other


LIMITS = YamlLimits()


class _PlainLoader(yaml.SafeLoader):
    """YAML of plain values. A key that stands twice is an error, and so are more aliases than a person writes: they multiply."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node; `yaml.YAMLError` where it is one alias too many."""
        event = self.peek_event()
        self.aliases += isinstance(event, yaml.AliasEvent)
        if self.aliases > LIMITS.aliases:
            raise yaml.MarkedYAMLError(problem=f"more than {LIMITS.aliases} aliases (*)", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """A mapping; `yaml.YAMLError` naming the key that it holds twice."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {shortened(key.value)!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _unusable(value: Any, depth: int = 0) -> str:
    """What no settings may hold: values that are too deep (or contain themselves), text that cannot be shown; "" for neither."""
    if depth > LIMITS.depth:
        return f"more than {LIMITS.depth} values within each other"
    if isinstance(value, str) and re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", value):
        return f"characters that cannot be shown: {shortened(ascii(value))}"
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
    return next((fault for fault in (_unusable(part, depth + 1) for part in parts) if fault), "")


def read_yaml(path: Path, name: str, error: type[EmphaseError] = EmphaseError) -> Any:
    """The content of a YAML file as plain values.

    Parameters
    ----------
    path
        The file.
    name
        By which messages call it; they give the line as well.
    error
        The exception to raise.

    Raises
    ------
    EmphaseError
        Or ``error``, where the file is too large, no YAML, or holds what is no plain value.
    """
    if path.stat().st_size > LIMITS.file_bytes:
        raise error(f"{name}: {path.stat().st_size} bytes, expected at most {LIMITS.file_bytes}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_PlainLoader)
    except UnicodeDecodeError as fault:
        raise error(f"{name}: not YAML in UTF-8: {fault.reason} at byte {fault.start}") from None
    except yaml.YAMLError as fault:
        where = getattr(fault, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise error(f"{name}{line}: not YAML: {one_line(getattr(fault, 'problem', None) or fault)}") from None
    except (ValueError, RecursionError) as fault:  # a date or a number that there is not, or thousands of brackets
        raise error(f"{name}: not YAML: {one_line(fault)}") from None
    fault_in_content = _unusable(content)
    if fault_in_content:
        raise error(f"{name}: holds {fault_in_content}")
    return content


def fault_in_words(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One validation error of pydantic in the form "key: what came, what was expected".

    Parameters
    ----------
    error
        One of ``ValidationError.errors()``.
    model
        That was validated: its fields are named for an unknown key, but those that are excluded, which no file can set.
    """
    keys = [k for k in error["loc"] if isinstance(k, (str, int)) and not str(k).startswith(("float", "constrained"))]
    key = shortened(".".join(str(k) for k in keys))
    came = error["input"]
    if error["type"] == "extra_forbidden":
        owner: Any = model
        for k in keys[:-1]:
            owner = _field_model(owner, k) or owner
        known = [n for n, field in owner.model_fields.items() if not field.exclude]
        near = difflib.get_close_matches(str(keys[-1]), known, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{key}: unknown key, expected one of {', '.join(known)}{hint}"
    if error["type"] == "missing":
        return f"{key}: missing, expected a value here"
    unit = _unit_of(model, keys)
    expected = error["msg"].replace("Input should be ", "").replace("Value error, ", "")
    return f"{key}: got {shortened(repr(came))}, expected {expected}{f' ({unit})' if unit else ''}"


def _field_model(owner: Any, key: str | int) -> type[BaseModel] | None:
    """The pydantic model behind a field, looking through Optional and list."""
    if isinstance(key, int) or not hasattr(owner, "model_fields") or key not in owner.model_fields:
        return None
    todo = [owner.model_fields[key].annotation]
    while todo:
        annotation = todo.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        todo.extend(getattr(annotation, "__args__", ()))
    return None


def _unit_of(model: Any, keys: list) -> str | None:
    """The description of the field that keys lead to: its unit; None where it has none."""
    for k in keys[:-1]:
        model = _field_model(model, k) or model
    if not keys or keys[-1] not in model.model_fields:
        return None
    todo = [model.model_fields[keys[-1]]]
    while todo:
        item = todo.pop()
        if getattr(item, "description", None):
            return item.description
        todo.extend(getattr(item, "metadata", ()) or getattr(item, "__metadata__", ()))
        if getattr(item, "annotation", None) is not None:
            todo.append(item.annotation)
        todo.extend(getattr(item, "__args__", ()))
    return None
