"""A YAML file as plain data, with the line of everything in it and `${VARIABLE}`s filled in.

`${NAME}` in a text value is the environment variable NAME, `${NAME:-other}` has a default, `$${`
stands for `${`. A value that comes out empty counts as not given.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.reader import ReaderError

Loc = tuple[str | int, ...]  # ("models", 1, "price")

_VARIABLE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|(\$\{)")
_MOST_NODES = 100_000
_MOST_CHARACTERS = 2_000_000  # some seconds to read
_DEEPEST = 50
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_LONGEST_NUMBER = 64  # 1:00:00 is 3,600 to YAML, and what has no end is computed without one
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with the value at `loc`; `line` is 1-based, None where there is no file."""

    loc: Loc
    text: str
    line: int | None = None


@dataclass(slots=True)
class Document:
    """What was read. `lines`: loc -> 1-based line; `variables`: loc -> names filled in there."""

    data: Any = None
    lines: dict[Loc, int] = field(default_factory=dict)
    variables: dict[Loc, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, loc: Loc) -> int | None:
        """The line of `loc`, or of the nearest thing around it that is in the file."""
        around = (loc[:end] for end in range(len(loc), -1, -1))
        return next((self.lines[each] for each in around if each in self.lines), None)


def read(text: str, environ: Mapping[str, str]) -> Document:
    """The document in `text`; what is wrong with it is in its `problems`, nothing is raised."""
    document = Document()
    if len(text) > _MOST_CHARACTERS:
        problem = f"more than {_MOST_CHARACTERS:,} characters: too large to be a config"
        document.problems.append(Problem((), problem))
        return document
    try:
        loader = _Loader(text, environ, document)
        node = loader.get_single_node()
        document.data = None if node is None else loader.value(node, ())
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"not YAML: the character U+{int(error.character):04X}"
        document.problems.append(Problem((), problem, line))
    except yaml.MarkedYAMLError as error:
        document.problems.append(_syntax(error, text))
    except yaml.YAMLError as error:
        document.problems.append(Problem((), " ".join(str(error).split())))
    return document


class _TooMuchError(yaml.MarkedYAMLError):
    """YAML, but no config."""


class _Loader(yaml.SafeLoader):
    """Nodes to data with their lines; duplicates are problems, depth and size have an end."""

    def __init__(self, text: str, environ: Mapping[str, str], document: Document) -> None:
        super().__init__(text)
        self.document = document
        self._environ = environ
        self._flattened: set[int] = set()
        self._open: list[yaml.Node] = []
        self._depth = self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth == _DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _TooMuchError(problem="nested too deep to be a config", problem_mark=mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def value(self, node: yaml.Node, loc: Loc) -> Any:
        """The node's data; what is in it is noted in `document`."""
        self.document.lines.setdefault(loc, node.start_mark.line + 1)
        self._count += 1
        if node in self._open:
            problem = "an alias inside of what it stands for"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if self._count > _MOST_NODES:
            problem = f"more than {_MOST_NODES:,} values: too large to be a config"
            raise _TooMuchError(problem=problem, problem_mark=node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, loc)
        self._open.append(node)
        found: Any
        if isinstance(node, yaml.MappingNode):
            found = self._mapping(node, loc)
        else:
            items = (self.value(item, (*loc, i)) for i, item in enumerate(node.value))
            found = [None if item is _ABSENT else item for item in items]
        self._open.pop()
        return found

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        if id(node) not in self._flattened:
            self._flattened.add(id(node))
            first: dict[str, int] = {}
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in first and key.value != "<<":
                    text = f"given before, in line {first[key.value]}"
                    self._problem((*loc, key.value), text, key)
                first.setdefault(key.value, key.start_mark.line + 1)
            self.flatten_mapping(node)  # `<<: *other`
        found: dict[str, Any] = {}
        for key, value in node.value:
            # As it is written: YAML reads `on` and `no` as booleans.
            if not isinstance(key, yaml.ScalarNode):
                self._problem(loc, "a key must be text", key)
                continue
            inner = (*loc, key.value)
            self.document.lines[inner] = key.start_mark.line + 1
            read_value = self.value(value, inner)
            if read_value is not _ABSENT:
                found[key.value] = read_value
        return found

    def _scalar(self, node: yaml.ScalarNode, loc: Loc) -> Any:
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            problem = f"a number of {len(node.value):,} characters; put it in quotes if it is text"
            return self._problem(loc, problem, node)
        try:
            value = self.construct_object(node)
        except (AttributeError, LookupError):  # what has a tag of its own and is not of its form
            return self._problem(loc, f"cannot be read as {node.tag}", node)
        except ValueError as error:  # such as a date without a 13th month
            text = f"cannot be read: {error}; put it in quotes if it is text"
            return self._problem(loc, text, node)
        return self._filled(value, loc, node) if isinstance(value, str) else value

    def _filled(self, text: str, loc: Loc, node: yaml.Node) -> Any:
        names: list[str] = []
        wrong: list[str] = []

        def fill(match: re.Match[str]) -> str:
            escaped, name, default, bad = match.groups()
            if escaped:
                return "${"
            if bad:
                wrong.append("expected ${NAME} or ${NAME:-default} ($${ for a plain ${)")
                return ""
            names.append(name)
            found = self._environ.get(name)
            if found or (found is not None and default is None):
                return found
            if default is None:
                wrong.append(f"the environment variable {name} is not set")
            return default or ""

        filled = _VARIABLE.sub(fill, text)
        if wrong:
            return self._problem(loc, "; ".join(wrong), node)
        if names:
            self.document.variables[loc] = names
        return filled if filled or not names else _ABSENT

    def _problem(self, loc: Loc, text: str, node: yaml.Node) -> object:
        self.document.problems.append(Problem(loc, text, node.start_mark.line + 1))
        return _ABSENT


def _syntax(error: yaml.MarkedYAMLError, whole: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    parts = [part for part in (error.context, error.problem) if part]
    kind = "" if isinstance(error, _TooMuchError) else "not YAML: "
    text = f"{kind}{', '.join(parts)}"
    if mark is None:
        return Problem((), text)
    text += f" (column {mark.column + 1})"
    if whole[: mark.index].endswith("$"):
        text += '; inside of { } write "${NAME}", in quotes'
    return Problem((), text, mark.line + 1)
