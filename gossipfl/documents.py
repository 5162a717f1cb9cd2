"""Text of an operator's document (JSON, TOML) to a frozen model: every fault at once, each with file, line and remedy.

What is accepted is what the model says, strictly: an unknown or repeated key, a wrong type, a value out of range is a
`Fault`, with a suggestion where a name is misspelt. This room reads no network and writes nothing; what a document
means is the model's business (gossipfl.config, gossipfl.trust.membership).
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from gossipfl.errors import ConfigError, Exit, Fault

DOCUMENT_MAX: Final = 16 * 2**20
"""Bytes of one document at most: a federation of thousands fits, a file named by mistake does not."""

DEEPEST: Final = 32
"""Nesting up to which lines are looked up: a path is kept for each key, and hostile depth would make that quadratic."""

SHOWN: Final = 80
"""Characters of a wrong value that a fault repeats: enough to find it."""

_Item = TypeVar("_Item")
_Model = TypeVar("_Model", bound="Strict")
Key = str | int
Lines = dict[tuple[Key, ...], int]

Many = Annotated[tuple[_Item, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
"""A list in the document, a tuple in the model."""


class Strict(BaseModel):
    """Frozen; unknown names, wrong types, NaN and infinity are faults."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
        ignored_types=(cached_property,),
    )


def read_text(path: Path) -> str:
    """The text of a file. Raises ConfigError: absent, unreadable, too large, not UTF-8."""
    try:
        if path.stat().st_size > DOCUMENT_MAX:
            raise ConfigError(Fault(str(path), None, f"larger than {DOCUMENT_MAX} bytes", "name the right file"))
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except PermissionError:
        fault = Fault(str(path), None, "may not be read by this user", "change its owner or its mode")
        raise ConfigError(fault, exit_code=Exit.PERMISSION) from None
    except OSError as error:
        remedy = "check the path" if isinstance(error, FileNotFoundError) else "name a readable file"
        raise ConfigError(Fault(str(path), None, error.strerror or str(error), remedy)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(Fault(str(path), None, f"not UTF-8 text: {error.reason}", "save it as UTF-8")) from None


def from_json(model: type[_Model], text: str, file: str) -> _Model:
    """The model that a JSON text is. Raises ConfigError with every fault."""
    lines = json_lines(text)
    try:
        tree = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(Fault(file, error.lineno, f"not JSON: {error.msg}", "correct the syntax")) from None
    except RecursionError:
        raise ConfigError(Fault(file, None, "nested too deeply", "this is no document of gossipfl")) from None
    except _Repeated as error:
        raise ConfigError(Fault(file, _line_of_repeated(text, error.key), str(error), "leave one")) from None
    except ValueError as error:
        raise ConfigError(Fault(file, None, str(error), "write a number of JSON")) from None
    return validated(model, tree, file, lines)


def from_toml(model: type[_Model], text: str, file: str, context: dict[str, Any] | None = None) -> _Model:
    """The model that a TOML text is; `context` is for its validators. Raises ConfigError with every fault."""
    return validated(model, toml_tree(text, file), file, toml_lines(text), context)


def toml_tree(text: str, file: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises ConfigError with the line of the first error of syntax."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line (\d+)", str(error))
        line = int(at[1]) if at else len(text.splitlines())
        what = re.sub(r" \(at .*\)$", "", str(error))
        remedy = 'text needs quotes: name = "value"'
        if "twice" in what or "overwrite" in what or "redefine" in what:
            remedy = "it stands further up already: write your lines there, under the one that is there"
        raise ConfigError(Fault(file, line, f"not TOML: {what}", remedy)) from None
    except RecursionError:
        raise ConfigError(Fault(file, None, "nested too deeply", "this is no document of gossipfl")) from None
    except ValueError as error:  # an integer of thousands of digits
        raise ConfigError(Fault(file, None, f"not TOML: {error}", "write a smaller number")) from None


def validated(
    model: type[_Model], tree: object, file: str, lines: Lines, context: dict[str, Any] | None = None
) -> _Model:
    """The model that the tree is. Raises ConfigError with every fault."""
    try:
        return model.model_validate(tree, context=context)
    except ValidationError as error:
        faults = [_fault(model, tree, one, file, lines) for one in error.errors()]
        raise ConfigError(*sorted(faults, key=lambda fault: fault.line or 0)) from None


def located(error: ConfigError, file: str, lines: Lines, roots: Mapping[str, tuple[Key, ...]]) -> list[Fault | str]:
    """The faults that were found in a part of a document by who did not know its file, with file and line: `roots` says, by
    what they call their part, where in the document it is."""
    return [_located(fault, file, lines, roots) for fault in error.faults]


def _located(fault: Fault | str, file: str, lines: Lines, roots: Mapping[str, tuple[Key, ...]]) -> Fault | str:
    if isinstance(fault, str) or fault.file not in roots:
        return fault
    path = (*roots[fault.file], *fault.path)
    what = fault.what if fault.file in fault.what.split(":")[0] else f"{fault.file}: {fault.what}"
    return Fault(file, _nearest(lines, path), what, fault.remedy)


def _nearest(lines: Lines, path: tuple[Key, ...]) -> int | None:
    return next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), None)


# ---- faults --------------------------------------------------------------------------------------------------------


def _fault(model: type[Strict], tree: object, error: Any, file: str, lines: Lines) -> Fault:
    path: tuple[Key, ...] = _in_document(tree, error["loc"])
    line = _nearest(lines, path)
    name = _spelled(path)
    if error["type"] == "extra_forbidden":
        known = _names(model, path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, 1, 0.6)
        remedy = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known))}"
        return Fault(file, line, f"unknown key {name}", remedy)
    if error["type"] == "missing":
        return Fault(file, line, f"{name} is missing", "add it")
    what = error["msg"].removeprefix("Value error, ")
    what, _, remedy = what.partition(" -- ")
    given = error["input"]
    shown = f"{name} = {_short(given)}: " if name and isinstance(given, str | int | float) else f"{name}: " if name else ""
    what, remedy = _PLAIN.get(error["type"], (what, remedy))
    if brackets := _BRACKETS.get((error["type"], type(given).__name__)):
        remedy = brackets.format(name)
    for bound, word in _BOUNDS.items():
        if bound in error.get("ctx", {}):
            remedy = f"write {word}".format(error["ctx"][bound])
    if error["type"] == "literal_error":
        near = difflib.get_close_matches(str(given), re.findall(r"'([^']+)'", what), 1, 0.5)
        remedy = f"did you mean {near[0]!r}?" if near else "write one of these"
    return Fault(file, line, shown + what[:1].lower() + what[1:], remedy)


_TABLE: Final = ("not a table", 'it holds names and values: [name] and lines name = value below it, in JSON {"name": value}')
_PLAIN: Final = {
    "bool_type": ("not a truth value", "write true or false, without quotes"),
    "string_type": ("not text", "write it in quotes"),
    "int_type": ("not a whole number", "write digits, without quotes"),
    "int_from_float": ("not a whole number", "write digits, without a point"),
    "float_type": ("not a number", "write digits, without quotes"),
    "finite_number": ("not a finite number", "write digits, without quotes"),
    "tuple_type": ("not a list", "write it in brackets: [one, another]"),
    "dict_type": _TABLE,
    "model_type": _TABLE,
    "invalid-json-value": ("neither text, number, true, false, list nor table", "write a date or a time as text, in quotes"),
}
"""What pydantic finds, in the words of who writes the file: what it is not, and what to write."""

_BRACKETS: Final = {
    ("tuple_type", "dict"): "write [[{0}]], in two pairs of brackets: there may be several",
    ("model_type", "list"): "write [{0}], in one pair of brackets: there is one",
}
"""(what pydantic finds, what is there): the remedy where a head of a table has too few or too many brackets."""

_BOUNDS: Final = {
    "ge": "{} or more",
    "gt": "more than {}",
    "le": "{} or less",
    "lt": "less than {}",
    "min_length": "{} or more",
    "max_length": "{} or fewer",
}


def _short(given: object) -> str:
    text = repr(given)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _in_document(tree: object, loc: tuple[Key, ...]) -> tuple[Key, ...]:
    """The part of pydantic's location that exists in the document, and the one name after it (no tags of its own)."""
    path: list[Key] = []
    for key in loc:
        if isinstance(tree, dict) and key not in tree and key != loc[-1]:
            continue
        if not isinstance(tree, dict) and not (isinstance(tree, list) and isinstance(key, int)):
            continue
        path.append(key)
        if isinstance(tree, dict):
            tree = tree.get(key)
        elif isinstance(tree, list) and isinstance(key, int) and key < len(tree):
            tree = tree[key]
    return tuple(path)


def _names(model: type[BaseModel], path: tuple[Key, ...]) -> list[str]:
    """The names that the model knows at a path."""
    kind: Any = model
    for key in path:
        if isinstance(key, int):
            continue
        kind = _model_in(kind.model_fields[key].annotation) if key in kind.model_fields else None
        if kind is None:
            return []
    return [field.alias or name for name, field in kind.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in getattr(annotation, "__args__", ()) if (found := _model_in(one))), None)


def _spelled(path: tuple[Key, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


# ---- lines ---------------------------------------------------------------------------------------------------------

_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+|\n')


def json_lines(text: str) -> Lines:
    """Path -> line of every key and element of a JSON text. Never raises: of a broken text, what was understood."""
    lines: Lines = {(): 1}
    stack: list[Key] = []
    last, line = "", 1
    for token in _JSON_TOKEN.findall(text):
        if token == "\n":
            line += 1
        elif len(stack) > DEEPEST:
            break
        elif token in "{[":
            stack.append(-1 if token == "{" else 0)
            lines.setdefault(tuple(stack), line)
        elif token in "}]":
            del stack[-1:]
        elif token == ":" and stack:
            stack[-1] = _unquoted(last)
            lines.setdefault(tuple(stack), line)
        elif token == "," and stack and isinstance(stack[-1], int):
            stack[-1] += 1
            lines.setdefault(tuple(stack), line)
        else:
            last = token
    return lines


def _unquoted(token: str) -> str:
    try:
        return str(json.loads(token))
    except ValueError:
        return token


_TOML_HEAD: Final = re.compile(r"[ \t]*(\[\[?)[ \t]*([^\]\n]+?)[ \t]*\]")
_TOML_PART: Final = re.compile(r"""[\w-]+|"[^"\n]*"|'[^'\n]*'""")
_TOML_KEY: Final = re.compile(rf"[ \t]*((?:{_TOML_PART.pattern})(?:[ \t]*\.[ \t]*(?:{_TOML_PART.pattern}))*)[ \t]*=")
_TOML_TOKEN: Final = re.compile(
    r"""\"{3}(?:[^\\]|\\.)*?\"{3,5}|'{3}.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\#[^\n]*|[\[\]{}=,\n]|[^\s\[\]{}=,"'\#]+""",
    re.DOTALL,
)


def toml_lines(text: str) -> Lines:
    """Path -> line of every table, key and element of a valid TOML text."""
    lines: Lines = {(): 1}
    table: tuple[Key, ...] = ()
    count: dict[tuple[Key, ...], int] = {}
    at, line = 0, 1
    while at < len(text):
        if head := _TOML_HEAD.match(text, at):
            table = _keys(head[2])
            if head[1] == "[[":
                lines.setdefault(table, line)
                count[table] = count.get(table, -1) + 1
                table = (*table, count[table])
            lines.setdefault(table, line)
        elif key := _TOML_KEY.match(text, at):
            path = _note(lines, table, key[1], line)
            at, line = _in_value(text, key.end(), path, lines, line)
        at = text.find("\n", at) + 1 or len(text)
        line += 1
    return lines


def _keys(text: str) -> tuple[Key, ...]:
    return tuple(part.strip("\"'") for part in _TOML_PART.findall(text))


def _note(lines: Lines, table: tuple[Key, ...], dotted: str, line: int) -> tuple[Key, ...]:
    """The path of a dotted key below a table; each part of it that is new has this line."""
    path = table
    for part in _keys(dotted):
        path = (*path, part)
        lines.setdefault(path, line)
    return path


@dataclass
class _Open:
    """An array (`at` is its element's number) or an inline table (`at` is None) that is being read."""

    path: tuple[Key, ...]
    at: int | None
    value: tuple[Key, ...] | None
    """Where the next value belongs; None: a key comes first."""
    key: str = ""


def _in_value(text: str, at: int, path: tuple[Key, ...], lines: Lines, line: int) -> tuple[int, int]:
    """Notes the lines of what is inside a value; returns the place and line of the line break that ends it."""
    opened: list[_Open] = [_Open((), None, path)]
    for found in _TOML_TOKEN.finditer(text, at):
        token, now = found[0], opened[-1]
        if token == "\n" and len(opened) == 1:
            return found.start(), line
        line += token.count("\n")
        if token == "\n" or token[0] == "#":
            continue
        if token in ("]", "}"):
            opened = opened[:-1] or opened
        elif token == ",":
            now.at = None if now.at is None else now.at + 1
            now.value, now.key = (None, "") if now.at is None else ((*now.path, now.at), "")
        elif now.value is None and token == "=":
            now.value = _note(lines, now.path, now.key, line)
        elif now.value is None:
            now.key += token
        else:
            lines.setdefault(now.value, line - token.count("\n"))
            if token == "[":
                opened.append(_Open(now.value, 0, (*now.value, 0)))
            elif token == "{":
                opened.append(_Open(now.value, None, None))
    return len(text), line


class _Repeated(Exception):
    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"key {key!r} stands twice in one object")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in pairs:
        if key in tree:
            raise _Repeated(key)
        tree[key] = value
    return tree


def _line_of_repeated(text: str, key: str) -> int | None:
    """The last line on which the key stands: exact where it is repeated once in the whole text."""
    found = [text.count("\n", 0, at.start()) + 1 for at in re.finditer(re.escape(json.dumps(key)) + r"\s*:", text)]
    return found[-1] if found else None


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number of JSON")
