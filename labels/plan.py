"""What is to be asked about a row, and what that costs: as expected, and at most."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..data.logs.schema import LogRow
from ..data.schema import Message
from .calls import MARGIN, Call, PricedModel, count_tokens
from .checks import Checks
from .judge import RUBRIC, parse, question
from .ledger import Ledger, Reply

Side = Literal["strong", "weak"]

# A verdict is a sentence or two; an answer is as long as those of the log, or as --output-tokens.
VERDICT_TOKENS = 80
# Where a verdict cannot be read, the judge is asked once more.
READINGS = 2


@dataclass(frozen=True)
class Setup:
    """How rows are labelled: `judge` None: no judge; `checks` None: nothing can be checked.

    `logged_as`: names in the log whose answers stand for the strong model's, beside its own; "*"
    any. `priced` is false where nobody knows what the strong model costs and nobody needs to,
    because it is never called. `output_tokens`: the assumed length of an answer.
    """

    strong: PricedModel
    weak: PricedModel
    judge: PricedModel | None = None
    rubric: str = RUBRIC
    checks: Checks | None = None
    logged_as: frozenset[str] = frozenset()
    priced: bool = True
    output_tokens: float = 300.0
    check_timeout_s: float = 10.0

    def model(self, side: Side) -> PricedModel:
        """The model of a side."""
        return self.strong if side == "strong" else self.weak


@dataclass(frozen=True)
class Estimate:
    """Of `rows` rows that are not labelled yet: calls and expected USD by model.

    `most_usd` is the sum of what each call costs at most, with answers of the full length that is
    allowed; nothing passes the cap either way.
    """

    rows: int
    calls: Mapping[str, int] = field(default_factory=dict)
    usd_by_model: Mapping[str, float] = field(default_factory=dict)
    most_usd: float = 0.0

    @property
    def usd(self) -> float:
        """Expected USD in all."""
        return sum(self.usd_by_model.values())


def is_same_model(name: str, other: str) -> bool:
    """Whether two names mean one model: openai/gpt-4o is gpt-4o."""
    return name == other or name.rpartition("/")[2] == other.rpartition("/")[2]


def logged(setup: Setup, row: LogRow, side: Side) -> Reply | None:
    """The answer of a side that stands in the log; None where none does."""
    if row.answer is None or not row.answer.strip():
        return None
    names = {setup.model(side).name}
    any_name = False
    if side == "strong":
        any_name = "*" in setup.logged_as
        names |= setup.logged_as
    if not any_name and not (row.model and any(is_same_model(row.model, n) for n in names)):
        return None
    if any_name and row.model and is_same_model(row.model, setup.weak.name):
        return None
    usd = row.cost_usd
    if usd is None and row.output_tokens is not None and (side == "weak" or setup.priced):
        tokens = row.input_tokens if row.input_tokens is not None else count_tokens(row.messages)
        usd = setup.model(side).usd(tokens, row.output_tokens)
    return Reply(row.answer, None, row.input_tokens, row.output_tokens, usd, logged=True)


def answer_call(setup: Setup, row: LogRow, side: Side) -> Call:
    """The call that answers a row on a side."""
    return Call(row.id, setup.model(side), row.messages)


def answer_of(setup: Setup, ledger: Ledger, row: LogRow, side: Side) -> Reply | None:
    """The answer that there is already: of the log, or of a call that was paid; else None."""
    return logged(setup, row, side) or ledger.replies.get(answer_call(setup, row, side).key)


def judge_call(
    setup: Setup, row: LogRow, strong: str, weak: str, *, strong_first: bool, turn: int = 0
) -> Call:
    """The call that compares two answers in one order. Needs a judge."""
    if setup.judge is None:
        raise ValueError("there is no judge")
    first, second = (strong, weak) if strong_first else (weak, strong)
    asked: tuple[Message, ...] = question(setup.rubric, row.messages, first, second)
    return Call(row.id, setup.judge, asked, turn)


def needs_judge(setup: Setup, row: LogRow, strong: Reply | None, weak: Reply | None) -> bool:
    """Whether a judge is to be asked, as far as one can tell: None is an answer not yet there."""
    if setup.judge is None or (setup.checks is not None and setup.checks.of(row) is not None):
        return False
    texts = [None if reply is None else reply.text.strip() for reply in (strong, weak)]
    if "" in texts:
        return False
    return None in texts or texts[0] != texts[1]


@dataclass
class RowCost:
    """Of what is still to be asked about one row."""

    calls: Counter[str] = field(default_factory=Counter)
    usd: dict[str, float] = field(default_factory=dict)
    most: float = 0.0

    def add(self, model: PricedModel, tokens_in: float, most_in: float, tokens_out: float) -> None:
        """One call; tokens as expected, and the most input that there can be."""
        self.calls[model.name] += 1
        usd = model.usd(tokens_in, min(tokens_out, model.max_tokens))
        self.usd[model.name] = self.usd.get(model.name, 0.0) + usd
        self.most += model.most(most_in)


def row_cost(setup: Setup, ledger: Ledger, row: LogRow) -> RowCost:
    """What is still to be asked about a row, and what that costs."""
    cost = RowCost()
    replies: dict[Side, Reply | None] = {}
    size = count_tokens(row.messages)
    for side in ("strong", "weak"):
        replies[side] = reply = answer_of(setup, ledger, row, side)
        if reply is None:
            cost.add(setup.model(side), size, size, setup.output_tokens)
    strong, weak = replies["strong"], replies["weak"]
    if setup.judge is None or not needs_judge(setup, row, strong, weak):
        return cost
    known = [reply for reply in (strong, weak) if reply is not None]
    for strong_first in (True, False):
        if (
            strong is not None
            and weak is not None
            and _is_judged(setup, ledger, row, strong.text, weak.text, strong_first=strong_first)
        ):
            continue
        empty = count_tokens(question(setup.rubric, row.messages, "", ""))
        given = sum(count_tokens([{"role": "user", "content": r.text}]) for r in known)
        missing = [setup.model(s) for s in ("strong", "weak") if replies[s] is None]
        expected = empty + given + setup.output_tokens * len(missing)
        # What comes as an answer's output tokens may be counted as more, as the judge's input.
        most = empty + given + sum(MARGIN * model.max_tokens for model in missing)
        cost.add(setup.judge, expected, most, VERDICT_TOKENS)
    return cost


def _is_judged(
    setup: Setup, ledger: Ledger, row: LogRow, strong: str, weak: str, *, strong_first: bool
) -> bool:
    """Whether the judge was asked in this order as often as it will be."""
    for turn in range(READINGS):
        call = judge_call(setup, row, strong, weak, strong_first=strong_first, turn=turn)
        reply = ledger.replies.get(call.key)
        if reply is None:
            return False
        if parse(reply.text) is not None:
            return True
    return True


def estimate(setup: Setup, ledger: Ledger, rows: Iterable[LogRow]) -> Estimate:
    """What the rows that are still to be asked about will cost."""
    calls: Counter[str] = Counter()
    usd: dict[str, float] = {}
    most, count = 0.0, 0
    for row in rows:
        cost = row_cost(setup, ledger, row)
        count += bool(cost.calls)
        calls += cost.calls
        most += cost.most
        for name, value in cost.usd.items():
            usd[name] = usd.get(name, 0.0) + value
    return Estimate(count, dict(calls), usd, most)


def mean_output_tokens(rows: Iterable[LogRow], otherwise: float) -> float:
    """Mean length of the answers of a log in tokens, or `otherwise` where it tells of none."""
    told = [row.output_tokens for row in rows if row.output_tokens]
    return sum(told) / len(told) if told else otherwise
