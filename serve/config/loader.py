"""thriftroute.yaml into `settings.Config`: every error at once, each with its line and key.

    thriftroute.yaml:14: models[1].price.input: expected a number >= 0, got 'abc'

Values of settings that may hold secrets, and what environment variables held, are never repeated.
"""

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...errors import ConfigError, UnknownRouterError
from .config_checks import problems
from .settings import Config, PriceSettings, Settings
from .yaml_loader import Document, Loc, Problem, read

MOST_SHOWN = 10
FLAGS: dict[str, tuple[Loc, ...]] = {
    "strong_model": (("strong",), ("models", 0, "name")),
    "weak_model": (("weak",), ("models", 1, "name")),
    "strong_price": (("models", 0, "price"),),
    "weak_price": (("models", 1, "price"),),
    "api_base": (("models", 0, "api_base"), ("models", 1, "api_base")),
    "api_key": (("models", 0, "api_key"), ("models", 1, "api_key")),
    "router": (("router", "name"),),
    "threshold": (("router", "threshold"),),
    "strong_share": (("router", "strong_share"),),
    "host": (("server", "host"),),
    "port": (("server", "port"),),
    "workers": (("server", "workers"),),
    "access_log": (("server", "access_log"),),
}
_LIMITS = {"minimum": ">=", "maximum": "<=", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """The config in the YAML file `path`, checked; its `router.checkpoint_path` is relative to it.
    environ: what `${VARIABLE}`s stand for, the process's own where it is not given.

    Raises ConfigError with a line for each error, at most ten.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"config {path}: there is no such file; `thriftroute init --out {path}` writes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from error
    document = read(text, os.environ if environ is None else environ)
    if not document.problems and not isinstance(document.data, dict):
        document.problems.append(Problem((), "expected a mapping with models, strong and weak", 1))
    config = _checked(document, lambda p: f"{path}:{p.line or ''}: {_where(p.loc)}")
    given = config.router.checkpoint_path
    if given is None:
        return config
    folder = str(path.parent / Path(given).expanduser())  # as it is where it is absolute
    router = config.router.model_copy(update={"checkpoint_path": folder})
    return config.model_copy(update={"router": router})


@contextlib.contextmanager
def lines_told(path: Path | None) -> Iterator[None]:
    """What is found wrong with a config of the file `path` only once its models and its router are
    loaded gets the line that it is about. None: no file.

    Raises ConfigError in place of ConfigError and UnknownRouterError; all else passes.
    """
    try:
        yield
    except (ConfigError, UnknownRouterError) as error:
        if path is None:
            raise
        if isinstance(error, UnknownRouterError):
            errors = [ConfigError(f"router.name: {error}", loc=("router", "name"))]
        else:
            errors = list(error.errors) or [error]
        document = read(path.read_text(encoding="utf-8-sig"), os.environ)
        lines = [f"{path}:{document.line(e.loc)}: {e}" if e.loc else str(e) for e in errors]
        raise ConfigError("\n".join(lines)) from error


def config_from_flags(flags: Mapping[str, Any]) -> Config:
    """A config for two models at one address, as the flags of `thriftroute serve` give it, by the
    names of `FLAGS`. Prices are "IN,OUT", USD per million tokens. Raises ConfigError, which names
    flags."""
    data: dict[str, Any] = {"models": [{}, {}], "router": {}, "server": {}}
    for flag, value in flags.items():
        for loc in FLAGS[flag]:
            place = data
            for part in loc[:-1]:
                place = place[part]  # type: ignore[index]
            place[loc[-1]] = _price(flag, value) if flag.endswith("_price") else value  # type: ignore[index]
    if data["strong"] == data["weak"]:
        del data["models"][1]
    return _checked(Document(data=data), lambda p: f"{_flag(p.loc)}: ")


def pool_of(names: Sequence[str]) -> Config:
    """A config for these models, as LiteLLM names them. Raises ConfigError for a bad name."""
    models = [{"name": name} for name in names]
    data = {"models": models, "strong": names[0], "weak": names[-1]}
    return _checked(Document(data=data), lambda p: _where(p.loc))


def check(config: Config) -> None:
    """Raise ConfigError where the parts of a config, made in Python, do not fit each other."""
    _raise([Problem(*found) for found in problems(config)], lambda p: _where(p.loc))


def _checked(document: Document, label: Callable[[Problem], str]) -> Config:
    """Raises ConfigError with a line for each problem, which `label` begins."""
    found = document.problems
    config = None
    if isinstance(document.data, dict):
        try:
            config = Config.model_validate(document.data)
        except ValidationError as error:
            # What could not be read is missing from the data: one error of it is enough.
            known = {problem.loc for problem in found}
            found += [each for each in _problems(error, document) if each.loc not in known]
    if config is not None:
        found += [Problem(loc, text, document.line(loc)) for loc, text in problems(config)]
    _raise(sorted(found, key=lambda p: p.line or 0), label)
    assert config is not None
    return config


def _raise(found: Sequence[Problem], label: Callable[[Problem], str]) -> None:
    # Flags set both models alike: one error of both is enough.
    lines = list(dict.fromkeys(f"{label(problem)}{problem.text}" for problem in found))
    rest = len(lines) - MOST_SHOWN
    if rest > 0:
        lines[MOST_SHOWN:] = [f"... and {rest} more"]
    if lines:
        raise ConfigError("\n".join(lines))


def _problems(error: ValidationError, document: Document) -> list[Problem]:
    errors = error.errors(include_url=False)
    # A list counts as empty where none of its entries is valid: theirs are the errors.
    inside = {e["loc"][:end] for e in errors for end in range(len(e["loc"]))}
    first: dict[Loc, Problem] = {}
    for each in errors:
        if each["type"] != "too_short" or each["loc"] not in inside:
            loc = tuple(part for part in each["loc"] if part != "[key]")
            problem = Problem(loc, _text(each, loc, document), document.line(loc))
            first.setdefault(loc, problem)  # what is wrong with a key makes its value wrong too
    return list(first.values())


def _text(error: Mapping[str, Any], loc: Loc, document: Document) -> str:
    schema, around = _schema_at(loc), _schema_at(loc[:-1])
    if error["type"] == "missing":
        return f"missing; expected {_expected(schema)}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "extra_forbidden":
        known = list(around.get("properties", {}))
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"unknown key; {hint}"
    if len(loc) < len(error["loc"]):
        return f"expected {_expected(around.get('propertyNames', {}))}"
    return f"expected {_expected(schema)}, got {_shown(error['input'], loc, document)}"


def _shown(value: object, loc: Loc, document: Document) -> str:
    if names := document.variables.get(loc):
        return "the value of " + " and ".join(f"${{{name}}}" for name in names)
    if value is None or isinstance(value, dict):
        return "nothing" if value is None else "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty one"
    if any(part in _secrets() for part in loc):
        return "something else (not shown)"
    shown = repr(value) if isinstance(value, str) else str(value)
    shown = shown.lower() if isinstance(value, bool) else shown
    shown = shown if len(shown) <= 60 else f"{shown[:59]}…"
    is_text = _schema_at(loc).get("type") == "string"
    return f"{shown}; put it in quotes" if is_text and not isinstance(value, str) else shown


@cache
def _secrets() -> set[str]:
    fields = (each for kind in Settings.__subclasses__() for each in kind.model_fields.items())
    return {name for name, field in fields if not field.repr}


def _schema_at(loc: Loc) -> dict[str, Any]:
    """The JSON schema of what may stand at `loc`; empty where nothing is known."""
    found = _resolved(_root())
    for part in loc:
        if isinstance(part, int):
            inner = found.get("items", {})
        else:
            inner = found.get("properties", {}).get(part, found.get("additionalProperties", {}))
        found = _resolved(inner if isinstance(inner, dict) else {})
    return found


@cache
def _root() -> dict[str, Any]:
    return Config.model_json_schema()


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Without references, and of `X or null` the X."""
    while "$ref" in schema or "anyOf" in schema:
        if "$ref" in schema:
            schema = _root()["$defs"][schema["$ref"].rsplit("/", 1)[1]]
        else:
            schema = next(s for s in schema["anyOf"] if s.get("type") != "null")
    return schema


def _expected(schema: Mapping[str, Any]) -> str:
    """What a JSON schema takes, in words: "a number >= 0"."""
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if "maxLength" in schema:
        return f"text of 1 to {schema['maxLength']} characters"
    kind = str(schema.get("type"))
    if kind in {"integer", "number"}:
        limits = [f" {sign} {schema[key]:g}" for key, sign in _LIMITS.items() if key in schema]
        return f"a {'whole ' if kind == 'integer' else ''}number{' and'.join(limits)}"
    keys = ", ".join(schema.get("properties", ()))
    words = {
        "string": schema.get("description", "text"),
        "array": "a list with at least one entry" if schema.get("minItems") else "a list",
        "object": f"a mapping with {keys}" if keys else "a mapping",
    }
    return str(words.get(kind, "true or false"))


def _price(flag: str, text: str) -> dict[str, Any]:
    try:
        given = dict(zip(("input", "output"), text.split(","), strict=True))
        return PriceSettings.model_validate(given).model_dump()
    except ValueError:  # pydantic's too
        problem = f"{text!r}: expected IN,OUT in USD per million tokens, as 2.5,10"
        raise ConfigError(f"--{flag.replace('_', '-')} {problem}") from None


def _flag(loc: Loc) -> str:
    places = {place: flag for flag, each in FLAGS.items() for place in each}
    around = (loc[:end] for end in range(len(loc), 0, -1))
    flag = next((places[each] for each in around if each in places), None)
    return _where(loc).removesuffix(": ") if flag is None else f"--{flag.replace('_', '-')}"


def _where(loc: Loc) -> str:
    text = ""
    for part in loc:
        if isinstance(part, str) and re.fullmatch(r"[\w-]+", part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return f"{text}: " if text else ""
