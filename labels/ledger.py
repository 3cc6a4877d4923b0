"""The state of a labelling run: an append-only JSONL of what was drawn, asked, paid and voted.

    {"kind": "round", "round": 1, "population": 5000, "rows": [["id", 0.06], ...]}
    {"kind": "asked", "key": "...", "item": "id", "model": "gpt-4o", "most_usd": 0.012}
    {"kind": "answered", "key": "...", "text": "...", "usd": 0.003, ...}
    {"kind": "failed", "key": "...", "error": "...", "usd": 0.0}
    {"kind": "vote", "item": "id", "pair": "...", "voter": "anna", "strong": 0.5}

Every line is handed to the operating system before the next call is made, so that a killed run
loses the calls that were under way and no others. Those have an `asked` without an end: what they
may have cost at most counts as spent, because nobody can tell. The key of a call is a hash of all
that the provider is sent, so that a changed rubric asks the judge anew, and no answer.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..data.logs.reader import json_lines
from ..errors import ConfigError, DataError
from ..files import private


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer. `usd` is what it cost; `counted` is false where the provider did not say
    how many tokens it used and they were counted here. `logged`: it stood in the log, for free."""

    text: str
    finish: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    usd: float | None = None
    counted: bool = True
    logged: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """Rows drawn in one go: row id -> its probability to be drawn then, in (0, 1].

    `population` is how many rows it was drawn from: those of no earlier round.
    """

    population: int
    rows: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Vote:
    """A person's vote on a pair of answers; `strong` is 1, 0.5 or 0. `pair` is their hash."""

    item: str
    pair: str
    voter: str
    strong: float


class Ledger:
    """An open state file. Use as a context manager; one process writes it at a time.

    `replies` by key, `rounds`, `votes`; `spent` is USD of what was answered, `lost` what calls that
    never ended here may have cost at most; `by_model` USD of the answered and failed by model.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises ConfigError where another run holds the file, DataError where it is damaged."""
        self.path = Path(path)
        self.replies: dict[str, Reply] = {}
        self.rounds: list[Round] = []
        self.votes: list[Vote] = []
        self.by_model: Counter[str] = Counter()
        self.spent = 0.0
        self.lost = 0.0
        self.lost_calls = 0
        self._pending: dict[str, tuple[str, float]] = {}
        # It holds prompts and answers: nobody else's to read.
        self._file = private(str(self.path), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            _lock(self._file, self.path)
            self._mend()
            for line, record in json_lines(self.path):
                try:
                    self._take(record)
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(
                        f"no line of a labelling state ({type(error).__name__}: {error}); give "
                        "another --state",
                        path=self.path,
                        line=line,
                    ) from error
        except BaseException:
            os.close(self._file)
            raise
        for model, usd in self._pending.values():
            self._lose(model, usd)
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Flush to the disk and let go of the file; closing twice does nothing."""
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    @property
    def total(self) -> float:
        """USD that count against a cap: what was paid, and what may have been."""
        return self.spent + self.lost

    @property
    def drawn(self) -> list[str]:
        """Ids of the rows of all rounds, in the order in which they were drawn."""
        return [row for round_ in self.rounds for row in round_.rows]

    def draw(self, drawn: Round) -> None:
        """Write a round down."""
        rows = [[row, p] for row, p in drawn.rows.items()]
        number = len(self.rounds) + 1
        self._write(
            {"kind": "round", "round": number, "population": drawn.population, "rows": rows}
        )

    def ask(self, key: str, *, item: str, model: str, most_usd: float) -> None:
        """Write down that a call goes out now."""
        self._write(
            {"kind": "asked", "key": key, "item": item, "model": model, "most_usd": most_usd}
        )

    def answer(self, key: str, reply: Reply) -> None:
        """Write a call's answer down."""
        self._write(
            {
                "kind": "answered",
                "key": key,
                "text": reply.text,
                "finish": reply.finish,
                "input_tokens": reply.input_tokens,
                "output_tokens": reply.output_tokens,
                "usd": reply.usd,
                "counted": reply.counted,
            }
        )

    def fail(self, key: str, error: str, usd: float) -> None:
        """Write down that a call failed, and what it may have cost all the same."""
        self._write({"kind": "failed", "key": key, "error": error, "usd": usd})

    def vote(self, vote: Vote) -> None:
        """Write a vote down."""
        self._write(
            {
                "kind": "vote",
                "item": vote.item,
                "pair": vote.pair,
                "voter": vote.voter,
                "strong": vote.strong,
            }
        )

    def _write(self, record: dict[str, Any]) -> None:
        record["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        # ASCII, so that half a surrogate pair in an answer can be written at all.
        data = json.dumps(record).encode() + b"\n"
        size = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:  # a full disk: half a line would spoil the next one
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise
        if record["kind"] == "answered":
            os.fsync(self._file)  # it was paid for
        self._take(record)

    def _take(self, record: Mapping[str, Any]) -> None:
        kind = record["kind"]
        if kind == "asked":
            if record["key"] in self._pending:  # of a run that was killed
                self._lose(*self._pending[record["key"]])
            self._pending[record["key"]] = record["model"], float(record["most_usd"])
        elif kind in ("answered", "failed"):
            model, _ = self._pending.pop(record["key"])
            usd = float(record["usd"])
            self.spent += usd
            self.by_model[model] += usd  # type: ignore[assignment]
            if kind == "answered":
                names = ("text", "finish", "input_tokens", "output_tokens", "usd", "counted")
                self.replies[record["key"]] = Reply(*(record[name] for name in names))
        elif kind == "round":
            rows = {str(row): float(p) for row, p in record["rows"]}
            self.rounds.append(Round(int(record["population"]), rows))
        elif kind == "vote":
            shown = (record["item"], record["pair"], record["voter"])
            self.votes.append(Vote(*shown, strong=float(record["strong"])))
        else:
            raise ValueError(f"unknown kind {kind!r}")

    def _lose(self, model: str, usd: float) -> None:
        self.lost += usd
        self.lost_calls += 1

    def _mend(self) -> None:
        """Cut off a last line that was not written to its end."""
        size = os.fstat(self._file).st_size
        with self.path.open("rb") as file:
            last = b""
            for line in _tail(file, size):
                last = line
        if last and not last.endswith(b"\n"):
            os.ftruncate(self._file, size - len(last))


def _tail(file: Any, size: int) -> Iterator[bytes]:
    """The lines of a file from somewhere before its last one on."""
    step = 1 << 16
    start = size
    while start > 0:
        start = max(0, start - step)
        step *= 2
        file.seek(start)
        found = file.read(size - start)
        if b"\n" in found[:-1] or start == 0:
            yield from found.splitlines(keepends=True)
            return


def _lock(file: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps two runs apart there
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"{path}: another run writes to this state; wait for it, or give another --state"
        ) from None
    except OSError:  # a file system without locks
        with contextlib.suppress(OSError):
            return
