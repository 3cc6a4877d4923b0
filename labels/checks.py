"""Answers that can be checked need no judge: exact match, number, JSON schema, unit test.

A file of checks is JSONL. Each line names a row of the log, by `id` or by `prompt`, and says what
is right; `task` (text) may stand beside it:

    {"id": "r17", "exact": "Paris"}                     or a list of what is right as well
    {"prompt": "What is 2+2?", "number": 4}             the last number of the answer
    {"id": "r18", "number": 3.14159, "tolerance": 0.01} absolute; by default 1e-6 of the number
    {"id": "r19", "schema": {"type": "object"}}         JSON, by itself or in one fenced block
    {"id": "r20", "test": "from answer import add\\nassert add(1, 2) == 3"}

A test runs the answer's code. It is run only where that was asked for, in an empty folder of its
own, without this process's environment and with a limit on time, memory and output; that keeps
accidents small and is no sandbox: code that means harm has the rights of who runs it.
"""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..data.logs.reader import json_lines
from ..data.logs.schema import LogRow
from ..data.schema import shown
from ..errors import ConfigError, DataError, require_extra

Kind = Literal["exact", "number", "schema", "test"]
KINDS: tuple[Kind, ...] = ("exact", "number", "schema", "test")

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")
_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
_EDGES = " \t\r\n.\"'`*_$"
_MEMORY = 1 << 30
_FILE_SIZE = 16 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """What is right for one row: `want` as its `kind` has it. `tolerance` is for numbers."""

    kind: Kind
    want: Any
    tolerance: float | None = None


Checks = Mapping[tuple[str, str], Check]  # by ("id" or "prompt", its value)


def check_of(checks: Checks, row: LogRow) -> Check | None:
    """The check of a row; None where it has none."""
    return checks.get(("id", row.id)) or checks.get(("prompt", row.prompt))


def read_checks(path: str | Path, *, run_code: bool = False) -> Checks:
    """The checks of a JSONL file. Raises DataError with file, line and field; ConfigError where a
    test stands in the file and `run_code` does not allow it; MissingExtraError (a schema)."""
    checks: dict[tuple[str, str], Check] = {}
    for line, record in json_lines(path):
        try:
            check = _check(record)
            name = "prompt" if record.get("id") is None else "id"
            value = record.get(name)
            if not isinstance(value, str) or not value:
                raise DataError("missing; expected id or prompt, as the log has it", field=name)
            if (name, value) in checks:
                raise DataError(f"{shown(value)} has a check already", field=name)
        except DataError as error:
            raise error.at(path, line) from error
        if check.kind == "test" and not run_code:
            told = "a test runs code that a model wrote, on this machine; --run-code allows it"
            raise ConfigError(f"{path}:{line}: {told}")
        checks[name, value] = check
    if not checks:
        raise DataError("is empty; expected at least one check", path=path)
    return checks


def passes(check: Check, answer: str, *, timeout_s: float = 10.0) -> bool:
    """Whether an answer is right. A test takes at most `timeout_s` seconds, then it is not."""
    if check.kind == "exact":
        return _plain(answer) in {_plain(want) for want in check.want}
    if check.kind == "number":
        found, tolerance = number_in(answer), check.tolerance
        if tolerance is None:
            tolerance = 1e-6 * max(1.0, abs(check.want))
        return found is not None and abs(found - check.want) <= tolerance
    if check.kind == "schema":
        blocks = _FENCE.findall(answer)
        try:
            value = json.loads(blocks[0] if len(blocks) == 1 else answer)
        except (ValueError, RecursionError):
            return False
        return bool(_validator(check.want).is_valid(value))
    return _runs(answer, check.want, timeout_s)


def number_in(text: str) -> float | None:
    """The last number of a text: 1,234.5 and 1e3 count; None where there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def code_in(text: str) -> str:
    """The longest fenced block of an answer, or the whole of it where it has none."""
    return max(_FENCE.findall(text), key=len, default=text)


def _check(record: Mapping[str, Any]) -> Check:
    kinds = [kind for kind in KINDS if record.get(kind) is not None]
    if len(kinds) != 1:
        found = f"found {', '.join(kinds)}" if kinds else "found none"
        raise DataError(f"{found}; expected exactly one of {', '.join(KINDS)}", field=KINDS[0])
    kind, want, tolerance = kinds[0], record[kinds[0]], record.get("tolerance")
    what = ""
    if kind == "exact":
        want = [want] if isinstance(want, str) else want
        if not isinstance(want, list) or not want or not all(isinstance(w, str) for w in want):
            what = "text, or a list of texts"
    elif kind == "number":
        want = number_in(want) if isinstance(want, str) else want
        if isinstance(want, bool) or not isinstance(want, int | float) or not math.isfinite(want):
            what = "a finite number"
        elif tolerance is not None and (not isinstance(tolerance, int | float) or tolerance < 0):
            raise DataError(f"{shown(tolerance)} is not a number >= 0", field="tolerance")
    elif kind == "schema":
        _validator(want)
    elif not isinstance(want, str) or not want.strip():
        what = "Python code"
    if what:
        raise DataError(f"{shown(record[kind])} is not {what}", field=kind)
    return Check(kind, want, tolerance)


def _plain(text: str) -> str:
    """Without case, spaces at the ends or repeated, and marks around."""
    return " ".join(text.casefold().split()).strip(_EDGES)


def _validator(schema: object) -> Any:
    jsonschema = require_extra("jsonschema", "serve")
    referencing = require_extra("referencing", "serve")
    kind = jsonschema.Draft202012Validator
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise DataError(f"not a JSON schema ({error.message})", field="schema") from error
    return kind(schema, registry=referencing.Registry())  # which fetches nothing


def _runs(answer: str, test: str, timeout_s: float) -> bool:
    """Whether a test ends well, in a session of its own, which ends with all that it started."""
    with tempfile.TemporaryDirectory(prefix="thriftroute-check-") as folder:
        files = {"answer.py": code_in(answer), "answer.txt": answer, "test.py": test}
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8", errors="replace")
        # No key of this process is in its environment.
        known = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
        # A shell sets the limits: after a fork of a process with threads hardly anything is safe.
        limits = {"t": math.ceil(timeout_s) + 1, "v": _MEMORY >> 10, "f": _FILE_SIZE >> 9, "c": 0}
        script = "".join(f"ulimit -{name} {most} 2>/dev/null; " for name, most in limits.items())
        shell = ["/bin/sh", "-c", f'{script}exec "$0" "$@"'] if os.name == "posix" else []
        with subprocess.Popen(
            [*shell, sys.executable, "test.py"],
            cwd=folder,
            env={**known, "HOME": folder, "TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                return process.wait(timeout=timeout_s) == 0
            except subprocess.TimeoutExpired:
                return False
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
                    os.killpg(process.pid, signal.SIGKILL)  # Windows has none
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
