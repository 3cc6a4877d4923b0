"""What an answer holds, to be compared with another's: a number, a letter, JSON, a tool call, or a
final answer; and code, which is to parse.

That is found by a pattern of the user's, a regular expression with one group, such as
`The answer is (.+?)\\.`; its last match counts. `regex` and not `re`: it stops after a time, and
other threads run meanwhile.
"""

import ast
import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConfigError, require_extra

PATTERN = "pattern:"  # how an extractor begins that is a regular expression
SIMILAR = "similar:"  # and one that is a cosine: two answers below it differ
LONGEST = 500  # characters of a pattern
LOOKED_AT = 20_000  # characters at the end of a text
LIMIT_S = 0.25  # for one text
_LONGEST_CALL = 20_000  # characters; longer text is parsed as no call
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
_NAMED_LETTER = re.compile(r"answer\s*(?:is|:)?\s*\W{0,4}([A-J])\b", re.IGNORECASE)
_LETTER = re.compile(r"\b([A-J])\b")
_CALL = re.compile(r"[\[\s]*[A-Za-z_][\w.]*\s*\(")  # how Python's calls begin
_CODE = re.compile(r"^```(python|py|json)[ \t]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ESCAPE = re.compile(r"\\([^\n'\"\\])")  # Python warns, on stderr, of those that it does not know
_BRACES = re.compile(r"\{.*\}", re.DOTALL)

Call = tuple[str, Mapping[str, Any]]


def pattern_of(extractor: str | None) -> str | None:
    """The regular expression of an extractor; None for the others."""
    known = extractor is not None and extractor.startswith(PATTERN)
    return extractor.removeprefix(PATTERN) if extractor is not None and known else None


def limit_of(extractor: str | None) -> float | None:
    """The cosine of an extractor by similarity; None for the others. Raises ValueError."""
    known = extractor is not None and extractor.startswith(SIMILAR)
    return float(extractor.removeprefix(SIMILAR)) if extractor is not None and known else None


def extracted(extractor: str, text: str) -> str | None:
    """What of an answer is compared; None where the text has no such thing."""
    pattern = pattern_of(extractor)
    if pattern is None:
        return EXTRACTORS[extractor](text)
    span = final_answer(pattern, text)
    return None if span is None else _plain(text[slice(*span)])


def check_pattern(pattern: str) -> None:
    """Raise ConfigError for a pattern that cannot be used, MissingExtraError without `regex`."""
    if len(pattern) > LONGEST:
        raise ConfigError(f"--pattern: {len(pattern)} characters; at most {LONGEST} are taken")
    try:
        groups = _compiled(pattern).groups
    except require_extra("regex", "serve").error as error:
        raise ConfigError(f"--pattern {pattern!r}: {error}") from None
    if groups != 1:
        raise ConfigError(
            f"--pattern {pattern!r} has {groups} groups; expected one, around the final answer"
        )


def final_answer(pattern: str, text: str) -> tuple[int, int] | None:
    """Where the final answer lies in `text`, (start, end); None where there is none, or where the
    pattern takes too long."""
    start = max(0, len(text) - LOOKED_AT)
    try:
        spans = [
            match.span(1)
            for match in _compiled(pattern).finditer(
                text, pos=start, timeout=LIMIT_S, concurrent=True
            )
        ]
    except TimeoutError:
        return None
    found = [span for span in spans if span[0] >= 0]
    return found[-1] if found else None


@functools.lru_cache(maxsize=32)
def _compiled(pattern: str) -> Any:
    return require_extra("regex", "serve").compile(pattern)


def tool_calls(text: str) -> list[Call]:
    """The calls that a text is, as (name, arguments): Python's f(a=1), also in a list, or JSON with
    names and arguments. Empty where it is none."""
    # Some models escape underscores as Markdown does.
    text = text.strip().removeprefix("```json").strip("`").strip().replace("\\_", "_")
    if len(text) > _LONGEST_CALL:
        return []
    try:
        return [_json_call(item) for item in _listed(json.loads(text))]
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    if not _CALL.match(text):  # Python warns, on stderr, of much that is none
        return []
    try:
        tree = ast.parse(text, mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
        return [_python_call(node) for node in nodes]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def broken_code(text: str) -> int:
    """How many blocks of Python or JSON in an answer do not parse; long ones are taken to."""
    return sum(
        not _parses(language, code)
        for language, code in _CODE.findall(text)
        if len(code) <= _LONGEST_CALL
    )


def _parses(language: str, code: str) -> bool:
    try:
        if language == "json":
            json.loads(code)
        else:
            ast.parse(_ESCAPE.sub(r"\1", code))
    except (SyntaxError, ValueError):
        return False
    except (RecursionError, MemoryError):  # of the parser: it says nothing of the code
        return True
    return True


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _json_call(item: Any) -> Call:
    item = item.get("function", item) if isinstance(item, dict) else item
    if isinstance(item, dict) and len(item) == 1:  # {"name": arguments}
        [(name, given)] = item.items()
    else:
        name, given = item["name"], item["arguments"]
    given = json.loads(given) if isinstance(given, str) else given
    if not isinstance(given, dict):
        raise TypeError("no call")
    return plain_name(name), given


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise TypeError("no call")
    given = {k.arg or "**": ast.unparse(k.value) for k in node.keywords}
    return plain_name(ast.unparse(node.func)), {n: _literal(v) for n, v in given.items()}


def plain_name(name: object) -> str:
    """Providers that take no dots in a tool's name are given underscores."""
    return str(name).replace(".", "_")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def _number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return repr(float(found[-1].replace(",", ""))) if found else None


def _letter(text: str) -> str | None:
    found = _NAMED_LETTER.findall(text) or _LETTER.findall(text)
    return found[-1].upper() if found else None


def _json_value(text: str) -> str | None:
    found = _BRACES.search(text)
    try:
        value = json.loads(found.group()) if found else None
    except (ValueError, RecursionError):
        return None
    # Where an answer stands beside its reasoning, the reasoning may differ.
    value = value.get("answer", value) if isinstance(value, dict) else value
    return None if value is None else json.dumps(value, sort_keys=True)


def _call_value(text: str) -> str | None:
    calls = tool_calls(text)
    return json.dumps(sorted(calls, key=repr), sort_keys=True, default=repr) if calls else None


def _plain(text: str) -> str | None:
    return "".join(text.lower().split()) or None


# What of an answer is compared; each gives None where the text has no such thing.
EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "number": _number,
    "letter": _letter,
    "json": _json_value,
    "call": _call_value,
    "text": _plain,
}
