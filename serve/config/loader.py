"""thriftroute.yaml into `settings.Config`: every error at once, each with its line and key.

    thriftroute.yaml:14: models[1].price.input: expected a number >= 0, got 'abc'

Values of settings that may hold secrets, and what environment variables held, are never repeated.
"""

import contextlib
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ValidationError

from ...errors import ConfigError, UnknownRouterError
from .config_checks import problems
from .expected import described, expected, schema_at
from .settings import Config, Settings
from .yaml_loader import Document, Loc, Problem, read

MOST_SHOWN = 10
_FLAGS: dict[Loc, str] = {
    ("models", 0, "name"): "--strong-model",
    ("models", 1, "name"): "--weak-model",
    ("models", 0, "price"): "--strong-price",
    ("models", 1, "price"): "--weak-price",
    ("models", 0, "api_base"): "--api-base",
    ("models", 0, "api_key"): "--api-key",
    ("models", 1, "api_base"): "--api-base",
    ("models", 1, "api_key"): "--api-key",
    ("strong",): "--strong-model",
    ("weak",): "--weak-model",
    ("router", "name"): "--router",
    ("router", "threshold"): "--threshold",
    ("router", "strong_share"): "--strong-share",
    ("server", "host"): "--host",
    ("server", "port"): "--port",
    ("server", "workers"): "--workers",
}


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """The config in the YAML file `path`, checked.

    A relative `router.checkpoint_path` is relative to the file. environ: what `${VARIABLE}`s stand
    for; the process's own where it is not given.

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
    found = document.problems
    config = None
    if isinstance(document.data, dict):
        config, more = _validated(document)
        # What could not be read is missing from the data: one error of it is enough.
        known = {problem.loc for problem in found}
        found += [problem for problem in more if problem.loc not in known]
    if config is not None:
        found += [Problem(loc, text) for loc, text in problems(config)]
    if found or config is None:
        found.sort(key=lambda p: p.line or document.line(p.loc) or 0)
        _raise(found, lambda p: f"{path}{_line(document, p)}{_where(p.loc)}")
    router = config.router
    if router.checkpoint_path is not None:
        # As it is where it is absolute.
        folder = str(path.parent / Path(router.checkpoint_path).expanduser())
        config = config.model_copy(
            update={"router": router.model_copy(update={"checkpoint_path": folder})}
        )
    return config


@contextlib.contextmanager
def lines_told(path: Path | None) -> Iterator[None]:
    """What is found wrong with a config of the file `path` only once its models and its router are
    loaded gets the line that it is about, as what `load_config` finds has. None: no file.

    Raises ConfigError in place of ConfigError and UnknownRouterError; all else passes.
    """
    try:
        yield
    except (ConfigError, UnknownRouterError) as error:
        try:
            text = "" if path is None else path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):  # it was read before
            text = ""
        if not text:
            raise
        document = read(text, os.environ)
        said = f"router.name: {error}" if isinstance(error, UnknownRouterError) else str(error)
        placed: list[str] = []
        for line in said.splitlines():
            loc = _about(line, document)
            at = None if loc is None else document.line(loc)
            placed.append(line if at is None else f"{path}:{at}: {line}")
        raise ConfigError("\n".join(placed)) from error


def config_from_flags(
    *,
    strong_model: str,
    weak_model: str,
    router: str = "mf",
    threshold: float | None = None,
    strong_share: float | None = None,
    api_base: str | None = None,
    api_key: str | None = None,
    strong_price: str | None = None,
    weak_price: str | None = None,
    host: str = "127.0.0.1",
    port: int = 6060,
    workers: int = 1,
    **further: Any,
) -> Config:
    """A config for two models at one address, as the flags of `thriftroute serve` give it.

    strong_price, weak_price: "IN,OUT", USD per million tokens; from LiteLLM's map where they are
    not given. further: other sections of the config, as mappings.

    Raises ConfigError, which names flags.
    """
    models: list[dict[str, Any]] = []
    for side, name, price in (
        ("strong", strong_model, strong_price),
        ("weak", weak_model, weak_price),
    ):
        given = None if price is None else _price(f"--{side}-price", price)
        models.append({"name": name, "api_base": api_base, "api_key": api_key, "price": given})
    if strong_model == weak_model:
        del models[1]
    data = {
        "models": models,
        "strong": strong_model,
        "weak": weak_model,
        "router": {"name": router, "threshold": threshold, "strong_share": strong_share},
        "server": {"host": host, "port": port, "workers": workers},
        **further,
    }
    config, found = _validated(Document(data=data))
    if config is not None:
        found = [Problem(loc, text) for loc, text in problems(config)]
    if found or config is None:
        # Both models have the same address and key: one error of them is enough.
        once = {_flag(p.loc): p for p in reversed(found)}
        _raise(reversed(once.values()), lambda p: f"{_flag(p.loc)}: ")
    return config


def pool_of(names: Sequence[str]) -> Config:
    """A config for these models, as LiteLLM names them, with all else by default.

    Raises ConfigError for a name that is none.
    """
    models = [{"name": name} for name in names]
    data = {"models": models, "strong": names[0], "weak": names[-1]}
    config, found = _validated(Document(data=data))
    if config is None:
        _raise(found, lambda p: _where(p.loc))
    return config


def check(config: Config) -> None:
    """Raise ConfigError where the parts of a config, made in Python, do not fit each other."""
    found = [Problem(loc, text) for loc, text in problems(config)]
    if found:
        _raise(found, lambda p: _where(p.loc))


def _validated(document: Document) -> tuple[Config | None, list[Problem]]:
    data = document.data
    while True:
        try:
            config = Config.model_validate(data)
        except ValidationError as error:
            errors = error.errors(include_url=False)
            # `rules:` with every line below commented out is null: as if it were not there.
            empty = [e["loc"] for e in errors if e["input"] is None and e["type"] != "missing"]
            if _drop(data, empty):
                continue
            # A list counts as empty where none of its entries is valid: theirs are the errors.
            inside = {e["loc"][:end] for e in errors for end in range(len(e["loc"]))}
            errors = [e for e in errors if e["type"] != "too_short" or e["loc"] not in inside]
            # The first at each place: what is wrong with a key makes its value wrong too.
            first = {p.loc: p for p in reversed([_problem(dict(e), document) for e in errors])}
            return None, list(reversed(first.values()))
        return config, list(_booleans(config, data, ()))


def _drop(data: Any, locs: Iterable[Loc]) -> bool:
    """Delete these entries of mappings; whether there were any."""
    dropped = False
    for loc in locs:
        parent = data
        for part in loc[:-1]:
            parent = parent[part]
        if isinstance(parent, dict) and parent.pop(loc[-1], ...) is None:
            dropped = True
    return dropped


def _booleans(made: Any, given: Any, loc: Loc) -> Iterable[Problem]:
    """Places where YAML's true or false was taken for the number 1 or 0, as pydantic does."""
    if isinstance(given, bool) and not isinstance(made, bool):
        yield Problem(loc, f"expected {expected(loc)}, got {str(given).lower()}")
    elif isinstance(given, dict) and isinstance(made, BaseModel):
        for key, value in given.items():
            yield from _booleans(getattr(made, key), value, (*loc, key))
    elif isinstance(given, dict) and isinstance(made, dict):
        for key, value in given.items():
            yield from _booleans(made[key], value, (*loc, key))
    elif isinstance(given, list) and isinstance(made, list | tuple):
        for i, value in enumerate(given):
            yield from _booleans(made[i], value, (*loc, i))


def _problem(error: Mapping[str, Any], document: Document) -> Problem:
    loc: Loc = tuple(part for part in error["loc"] if part != "[key]")
    if error["type"] == "missing":
        return Problem(loc, f"missing; expected {expected(loc)}")
    if error["type"] == "extra_forbidden":
        return Problem(loc, _unknown(loc))
    if error["type"] == "value_error":
        return Problem(loc, str(error["ctx"]["error"]))
    if len(loc) < len(error["loc"]):
        return Problem(loc, f"expected {described(schema_at(loc[:-1]).get('propertyNames', {}))}")
    return Problem(loc, f"expected {expected(loc)}, got {_shown(error['input'], loc, document)}")


def _unknown(loc: Loc) -> str:
    known = list(schema_at(loc[:-1]).get("properties", {}))
    near = difflib.get_close_matches(str(loc[-1]), known, n=1)
    if near:
        return f"unknown key; did you mean {near[0]!r}?"
    return f"unknown key; known are {', '.join(known)}"


def _shown(value: object, loc: Loc, document: Document) -> str:
    if names := document.variables.get(loc):
        return "the value of " + " and ".join(f"${{{name}}}" for name in names)
    kinds: dict[type, str] = {dict: "a mapping", list: "a list", type(None): "nothing"}
    if value == []:
        return "an empty one"
    if type(value) in kinds:
        return kinds[type(value)]
    if _secret(loc):
        return "something else (not shown)"
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    if not isinstance(value, str | int | float):  # such as a date
        shown = str(value)
    if len(shown) > 60:
        shown = f"{shown[:59]}…"
    is_text = schema_at(loc).get("type") == "string"
    return f"{shown}; put it in quotes" if is_text and not isinstance(value, str) else shown


@cache
def _secrets() -> frozenset[str]:
    return frozenset(
        name
        for kind in Settings.__subclasses__()
        for name, field in kind.model_fields.items()
        if not field.repr
    )


def _secret(loc: Loc) -> bool:
    return any(part in _secrets() for part in loc)


def _price(flag: str, text: str) -> dict[str, float]:
    parts = text.split(",")
    try:
        if len(parts) != 2:
            raise ValueError
        prices = [float(part) for part in parts]
        if not all(0 <= price < float("inf") for price in prices):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"{flag} {text!r}: expected IN,OUT in USD per million tokens, as 2.5,10"
        ) from None
    return {"input": prices[0], "output": prices[1]}


def _about(text: str, document: Document) -> Loc | None:
    """The place that an error's text begins with: "records.url: ...", "models[1] (big): ...", or,
    in the words of other rooms, "router 'mf': ..." and "model 'big': bundle_model ..."."""
    if text.startswith("router '"):
        loc: Loc = ("router", "checkpoint_path")
        return loc if loc in document.lines else ("router", "name")
    models = document.data.get("models") if isinstance(document.data, dict) else None
    if found := re.match(r"model '([^']*)': (\w+)", text):
        named = enumerate(models if isinstance(models, list) else ())
        is_it = (i for i, m in named if isinstance(m, dict) and m.get("name") == found[1])
        index = next(is_it, None)
        return None if index is None else ("models", index, found[2])
    key = re.match(r"[a-z_]+(?:\.[\w-]+|\[\d+\])*(?=:| \()", text)
    parts = re.findall(r"[\w-]+", key[0]) if key else []
    if not parts or parts[0] not in Config.model_fields:
        return None
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _flag(loc: Loc) -> str:
    for end in range(len(loc), 0, -1):
        if loc[:end] in _FLAGS:
            return _FLAGS[loc[:end]]
    side: Literal["strong", "weak"] = "weak" if loc[:2] == ("models", 1) else "strong"
    return f"--{side}-model" if loc[:1] == ("models",) else _where(loc).removesuffix(": ")


def _where(loc: Loc) -> str:
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[\w-]+", part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return f"{text}: " if text else ""


def _line(document: Document, problem: Problem) -> str:
    line = problem.line or document.line(problem.loc)
    return ": " if line is None else f":{line}: "


def _raise(found: Iterable[Problem], label: Any) -> NoReturn:
    lines = list(dict.fromkeys(f"{label(problem)}{problem.text}" for problem in found))
    rest = len(lines) - MOST_SHOWN
    if rest > 0:
        lines[MOST_SHOWN:] = [f"... and {rest} more"]
    raise ConfigError("\n".join(lines))
