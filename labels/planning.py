"""What is still to be asked about rows, and what that is expected to cost."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from ..data.logs.schema import LogRow
from ..router.output_tokens import ArmRow, OutputTokens
from .asking import READINGS, answer_call, judge_call, second_call
from .checks import check_of
from .judge import parse, question
from .ledger import LabelLedger, Reply
from .settings import MARGIN, SIDES, LabelSetup, PricedModel, Side, count_tokens

VERDICT_TOKENS = 80  # a sentence or two, until verdicts are known
VERDICT = "the judge's verdict"  # an arm of its own: the judge may be a model that answers too

KnownLengths = dict[tuple[str, str], ArmRow]  # by the row's id and what of it


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A call to come, of `most_usd` USD at most, about a row of `size` tokens. Of a verdict,
    `given` are the tokens that it reads beside the answers to come, those of `answers`."""

    model: PricedModel
    size: float
    most_usd: float
    given: float | None = None
    answers: Sequence[PricedModel] = ()

    def usd(self, lengths: OutputTokens) -> float:
        """USD expected."""
        if self.given is None:
            return self.model.usd(self.size, self._tokens(self.model, lengths))
        read = self.given + sum(self._tokens(model, lengths) for model in self.answers)
        known = VERDICT in lengths.arms
        tokens = lengths.tokens(VERDICT, self.size) if known else VERDICT_TOKENS
        return self.model.usd(read, min(tokens, self.model.max_tokens))

    def _tokens(self, model: PricedModel, lengths: OutputTokens) -> float:
        return min(lengths.tokens(model.name, self.size), model.max_tokens)


@dataclass(frozen=True)
class CostEstimate:
    """Of `rows` rows that are not labelled yet: calls and expected USD by model. `most_usd` is for
    answers of the full length that is allowed; nothing passes the cap either way."""

    rows: int
    calls: Counter[str]
    usd_by_model: Mapping[str, float]
    most_usd: float

    @property
    def usd(self) -> float:
        """Expected USD in all."""
        return sum(self.usd_by_model.values())


def estimate(rows: Sequence[Sequence[PlannedCall]], lengths: OutputTokens) -> CostEstimate:
    """What the planned calls of several rows cost."""
    calls = list(chain.from_iterable(rows))
    usd: dict[str, float] = defaultdict(float)
    for call in calls:
        usd[call.model.name] += call.usd(lengths)
    most = sum(call.most_usd for call in calls)
    return CostEstimate(sum(map(bool, rows)), Counter(c.model.name for c in calls), usd, most)


def plan_calls(setup: LabelSetup, ledger: LabelLedger, row: LogRow) -> list[PlannedCall]:
    """What is still to be asked about a row, as far as one can tell before the answers."""
    size = count_tokens(row.messages)
    found = known_replies(setup, ledger, row)
    known = [reply.text for reply in found.values()]
    missing = [setup.model(side) for side in SIDES if side not in found]
    planned = [PlannedCall(model, size, model.most(size)) for model in missing]
    second = setup.second
    if second is not None and second_call(second, row).key not in ledger.replies:
        planned.append(PlannedCall(second, size, second.most(size)))
    texts = {text.strip() for text in known}
    checked = setup.checks is not None and check_of(setup.checks, row)
    if setup.judge is None or checked or "" in texts or (not missing and len(texts) == 1):
        return planned
    given = count_tokens(question(setup.rubric, row.messages, "", ""))
    given += sum(count_tokens([{"role": "user", "content": text}]) for text in known)
    # What comes as an answer's output tokens may be counted as more, as the judge's input.
    most = given + sum(MARGIN * model.max_tokens for model in missing)
    for first in (True, False):
        if not missing:
            turns = range(READINGS)
            calls = [judge_call(setup, row, known, strong_first=first, turn=turn) for turn in turns]
            said = [ledger.replies.get(call.key) for call in calls]
            if None not in said or any(reply and parse(reply.text) is not None for reply in said):
                continue
        planned.append(PlannedCall(setup.judge, size, setup.judge.most(most), given, missing))
    return planned


def known_replies(setup: LabelSetup, ledger: LabelLedger, row: LogRow) -> dict[Side, Reply]:
    """The answers of a row that are known: of the log, or paid for."""
    found = {
        side: setup.logged(row, side) or ledger.replies.get(answer_call(setup, row, side).key)
        for side in SIDES
    }
    return {side: reply for side, reply in found.items() if reply is not None}


def lengths_of(
    setup: LabelSetup, row: LogRow, replies: Mapping[Side, Reply], verdicts: Sequence[Reply] = ()
) -> KnownLengths:
    """Answers of a row, and verdicts on it."""
    size = count_tokens(row.messages)
    told: list[tuple[str, str, Reply]]
    told = [(side, setup.model(side).name, reply) for side, reply in replies.items()]
    told += [(f"verdict {i}", VERDICT, reply) for i, reply in enumerate(verdicts)]
    return {
        (row.id, what): (arm, (size, reply.output_tokens, None))
        for what, arm, reply in told
        if reply.output_tokens
    }
