"""What a labelling run drew, asked, paid and voted, in an append-only JSONL; and its cap.

    {"kind": "round", "round": 1, "population": 5000, "rows": [["id", 0.06], ...]}
    {"kind": "asked", "key": "...", "item": "id", "model": "gpt-4o", "most_usd": 0.012}
    {"kind": "answered", "key": "...", "text": "...", "usd": 0.003, ...}
    {"kind": "failed", "key": "...", "error": "...", "usd": 0.0}
    {"kind": "vote", "item": "id", "pair": "...", "voter": "anna", "strong": 0.5}

Every line is handed to the operating system before the next call is made, so that a killed run
loses the calls that were under way and no others. Those have an `asked` without an end: what they
may have cost at most counts as spent. The key of a call is a hash of all that the provider is sent.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from ..data.logs.reader import json_lines
from ..errors import DataError, ThriftrouteError
from ..files import locked, private

_ROUNDING = 1e-12  # USD: sums of floats are no reason to stop


class LabelError(ThriftrouteError):
    """A run that cannot go on: a provider that refuses or is down. What was paid for is kept."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer, and what it cost; `counted` is false where the tokens were counted here.
    `confidence`: geometric mean of the probabilities of its tokens, None where it is not known;
    `logprobs`: (token, logarithm of its probability) of each, where they were told."""

    text: str
    finish: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    usd: float | None = None
    counted: bool = True
    confidence: float | None = None
    logprobs: Sequence[Sequence[Any]] = ()


@dataclass(frozen=True, slots=True)
class Round:
    """Rows drawn in one go of `population`: row id -> its probability to be drawn, in (0, 1]."""

    population: int
    rows: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Vote:
    """A person's vote on a pair of answers; `strong` is 1, 0.5 or 0. `pair` is their hash."""

    item: str
    pair: str
    voter: str
    strong: float


class LabelLedger:
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
        self.by_model: dict[str, float] = {}
        self.spent = self.lost = 0.0
        self.lost_calls = 0
        self._pending: dict[str, tuple[str, float]] = {}
        with contextlib.ExitStack() as stack:
            # It holds prompts and answers: nobody else's to read.
            self._file = private(str(path), os.O_RDWR | os.O_CREAT | os.O_APPEND)
            stack.callback(os.close, self._file)
            busy = f"{path}: another run writes to this state; wait for it, or give another --state"
            stack.enter_context(locked(Path(f"{path}.lock"), busy=busy))
            whole = self.path.read_bytes().rfind(b"\n") + 1
            os.ftruncate(self._file, whole)  # a last line that was not written to its end
            for line, record in json_lines(self.path):
                try:
                    self._take(record)
                except (KeyError, TypeError, ValueError) as error:
                    why = f"{type(error).__name__}: {error}"
                    problem = f"no line of a labelling state ({why}); give another --state"
                    raise DataError(problem, path=self.path, line=line) from error
            self._open = stack.pop_all()
        for key in list(self._pending):
            self._lose(key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    close = __exit__

    @property
    def total(self) -> float:
        """USD that count against a cap: what was paid, and what may have been."""
        return self.spent + self.lost

    @property
    def drawn(self) -> list[str]:
        """Ids of the rows of all rounds, in the order in which they were drawn."""
        return [row for drawn in self.rounds for row in drawn.rows]

    def draw(self, drawn: Round) -> None:
        """Write a round down."""
        rows = list(drawn.rows.items())
        self._write("round", round=len(self.rounds) + 1, population=drawn.population, rows=rows)

    def ask(self, key: str, *, item: str, model: str, most_usd: float) -> None:
        """Write down that a call goes out now."""
        self._write("asked", key=key, item=item, model=model, most_usd=most_usd)

    def answer(self, key: str, reply: Reply) -> None:
        """Write a call's answer down, and see it on the disk: it was paid for."""
        self._write("answered", key=key, **asdict(reply))
        os.fsync(self._file)

    def fail(self, key: str, error: str, usd: float) -> None:
        """Write down that a call failed, and what it may have cost all the same."""
        self._write("failed", key=key, error=error, usd=usd)

    def vote(self, vote: Vote) -> None:
        """Write a vote down."""
        self._write("vote", **asdict(vote))

    def _write(self, kind: str, **values: Any) -> None:
        record = {"kind": kind, **values, "time": datetime.now(UTC).isoformat(timespec="seconds")}
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
        self._take(record)

    def _take(self, record: Mapping[str, Any]) -> None:
        kind = record["kind"]
        if kind == "asked":
            if record["key"] in self._pending:  # of a run that was killed
                self._lose(record["key"])
            self._pending[record["key"]] = record["model"], float(record["most_usd"])
        elif kind in ("answered", "failed"):
            model, _ = self._pending.pop(record["key"])
            usd = float(record["usd"])
            self.spent += usd
            self.by_model[model] = self.by_model.get(model, 0.0) + usd
            if kind == "answered":
                # States of earlier versions lack what came later.
                known = {n: record[n] for n in Reply.__slots__ if n in record}
                known["logprobs"] = tuple(map(tuple, known.get("logprobs", ())))
                self.replies[record["key"]] = Reply(**known)
        elif kind == "round":
            rows = {str(row): float(p) for row, p in record["rows"]}
            self.rounds.append(Round(int(record["population"]), rows))
        elif kind == "vote":
            self.votes.append(Vote(*(record[name] for name in Vote.__slots__)))
        else:
            raise ValueError(f"unknown kind {kind!r}")

    def _lose(self, key: str) -> None:
        self.lost += self._pending.pop(key)[1]
        self.lost_calls += 1


class Purse:
    """USD: `cap`, `spent` so far (also by earlier runs), `held` for calls that may go out.

    spent + held never passes the cap, so that the cap holds whatever the calls under way cost, as
    long as each costs no more than was set aside for it.
    """

    def __init__(self, cap: float, spent: float = 0.0) -> None:
        self.cap, self.spent, self._held = cap, spent, 0.0

    @property
    def held(self) -> float:
        """USD set aside now; 0 and not nearly 0 where all was settled."""
        return self._held if self._held > _ROUNDING else 0.0

    def hold(self, usd: float) -> "RowMoney | None":
        """Set `usd` aside; None where the cap does not allow it."""
        if self.spent + self.held + usd > self.cap + _ROUNDING:
            return None
        self._held += usd
        return RowMoney(self, usd)

    def free(self, usd: float, spent: float = 0.0) -> None:
        """What was set aside is needed no more; `spent` of it was paid."""
        self._held -= usd
        self.spent += spent


@dataclass(slots=True)
class RowMoney:
    """Money set aside for one row's calls; `left` USD of it."""

    purse: Purse
    left: float = 0.0

    def take(self, most: float) -> bool:
        """Whether a call of at most `most` USD may go out; from what is left, else from the cap."""
        missing = most - self.left
        if missing > _ROUNDING:
            if self.purse.hold(missing) is None:
                return False
            self.left = most
        self.left -= most
        return True

    def settle(self, most: float, usd: float) -> None:
        """The call that `most` was taken for cost `usd`."""
        self.purse.free(most, usd)

    def close(self) -> None:
        """Give back what was not needed."""
        self.purse.free(self.left)
        self.left = 0.0
