"""What a labelling run is asked to do, and what that comes to: models, prices, rubric, checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..data.logs.schema import LogRow
from ..data.schema import Message, content_text
from ..errors import CalibrationError, ConfigError
from ..providers import completion
from ..providers.prices import Price, listed_price
from ..router.output_tokens import DEFAULT_TOKENS, OutputTokens
from .checks import Check, check_of, read_checks
from .judge import RUBRIC, read_rubric
from .ledger import Reply

Side = Literal["strong", "weak"]
SIDES: tuple[Side, Side] = ("strong", "weak")
# What LiteLLM's general tokenizer counts may be less than what another model's own counts.
MARGIN = 1.5
# What would make a call another one than was planned, or dearer than was set aside for it.
_FIXED = frozenset(
    {"model", "messages", "stream", "n", "max_completion_tokens", "num_retries", "max_retries"}
)


@dataclass(frozen=True, slots=True)
class PricedModel:
    """A model as it is called: `name` and further `params` for LiteLLM, at most `max_tokens` an
    answer. `price` is None where nobody knows it and nobody needs to: it is never called then."""

    name: str
    price: Price | None
    max_tokens: int
    params: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def usd(self, input_tokens: float, output_tokens: float) -> float:
        """What so many tokens cost, without any discount for cached ones."""
        assert self.price is not None, self.name
        return float(self.price.costs(input_tokens, output_tokens))

    def most(self, input_tokens: float) -> float:
        """What a call costs at most whose input was counted as so many tokens."""
        return self.usd(MARGIN * input_tokens, self.max_tokens)


def count_tokens(messages: Sequence[Message]) -> int:
    """About how many tokens a request has; never raises."""
    size = sum(len(content_text(message.get("content")).encode()) for message in messages)
    return completion.count_tokens(messages, otherwise=size // 3 + 10)


@dataclass(frozen=True)
class LabelSettings:
    """What is asked of a run; the command's options have the same names.

    `prices`: "strong", "weak", "judge" -> "IN,OUT"; what is missing comes from LiteLLM's map.
    `params`: the same names, and "all" -> keywords for LiteLLM. `count`: rows to draw in all, with
    those of earlier runs; None: the whole log. `routers`: draw where they are least certain.
    """

    log: Path
    out: Path
    strong: str
    weak: str
    judge: str | None = None
    count: int | None = None
    max_usd: float | None = None
    state: Path | None = None
    only_estimate: bool = False
    prices: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    logged_as: Sequence[str] = ()
    rubric: Path | None = None
    checks: Path | None = None
    run_code: bool = False
    check_timeout_s: float = 10.0
    scores_out: Path | None = None
    votes: int = 0
    voter: str = "human"
    routers: Sequence[str] = ()
    threshold: float = 0.5
    explore: float = 0.3
    max_tokens: int = 1024
    judge_tokens: int = 512
    second_sample: bool = False
    output_tokens: int | None = None
    concurrency: int = 8
    retries: int = 3
    timeout_s: float = 120.0
    seed: int = 0

    @property
    def state_path(self) -> Path:
        """Where what was paid for is kept."""
        return self.state or Path(f"{self.out}.state.jsonl")


@dataclass(frozen=True)
class LabelSetup:
    """How rows are labelled: `judge` None: no judge; `checks` None: nothing can be checked.

    `logged_as`: names in the log whose answers stand for the strong model's, beside its own; "*"
    any. `lengths`: how long each model's answers are, to learn from those that come unless it is
    `fixed`. `second`: who gives another answer of the
    weak model, if anyone: itself, at a temperature at which it varies.
    """

    strong: PricedModel
    weak: PricedModel
    judge: PricedModel | None
    rubric: str = RUBRIC
    checks: Mapping[tuple[str, str], Check] | None = None
    logged_as: frozenset[str] = frozenset()
    lengths: OutputTokens = field(default_factory=OutputTokens)
    fixed: bool = False
    check_timeout_s: float = 10.0
    second: PricedModel | None = None

    def model(self, side: Side) -> PricedModel:
        """The model of a side."""
        return self.strong if side == "strong" else self.weak

    def logged(self, row: LogRow, side: Side) -> Reply | None:
        """The answer of a side that stands in the log; None where none does."""
        if not (row.answer and row.answer.strip()):
            return None
        model = self.model(side)
        names = {model.name} | (self.logged_as if side == "strong" else set())
        if "*" in names:
            if row.model and _is_same_model(row.model, self.weak.name):
                return None
        elif not (row.model and any(_is_same_model(row.model, name) for name in names)):
            return None
        usd = row.cost_usd
        if usd is None and row.output_tokens is not None and model.price is not None:
            tokens = row.input_tokens
            tokens = count_tokens(row.messages) if tokens is None else tokens
            usd = model.usd(tokens, row.output_tokens)
        return Reply(row.answer, None, row.input_tokens, row.output_tokens, usd)


def make_setup(settings: LabelSettings, rows: Sequence[LogRow]) -> LabelSetup:
    """Models with their prices and parameters, rubric and checks of a run over `rows`.

    Raises ConfigError, DataError (a file), CalibrationError (a price that nobody knows).
    """
    _check_settings(settings)
    told = [row.output_tokens for row in rows if row.output_tokens]
    mean = sum(told) / len(told) if told else DEFAULT_TOKENS
    checks = None
    if settings.checks is not None:
        checks = read_checks(settings.checks, run_code=settings.run_code)
        if not any(check_of(checks, row) for row in rows):
            raise ConfigError(
                f"--checks {settings.checks}: none of its {len(checks):,} checks names a row of "
                f"{settings.log}, neither by id nor by prompt"
            )
    setup = LabelSetup(
        strong=PricedModel(settings.strong, None, settings.max_tokens),
        weak=_model(settings, "weak", settings.weak),
        judge=None if settings.judge is None else _model(settings, "judge", settings.judge),
        rubric=read_rubric(settings.rubric),
        checks=checks,
        logged_as=frozenset(settings.logged_as),
        lengths=OutputTokens(settings.output_tokens or mean),
        fixed=settings.output_tokens is not None,
        check_timeout_s=settings.check_timeout_s,
    )
    if settings.second_sample:
        params = {**setup.weak.params, "temperature": 1.0}
        setup = replace(setup, second=replace(setup.weak, params=params))
    # Of a strong model whose answers are all there, what they cost is nobody's need.
    if "strong" in settings.prices or not all(setup.logged(row, "strong") for row in rows):
        setup = replace(setup, strong=_model(settings, "strong", settings.strong))
    return setup


def _model(settings: LabelSettings, side: str, name: str) -> PricedModel:
    own: dict[str, Any] = {"temperature": 0, "drop_params": True} if side == "judge" else {}
    own |= {**settings.params.get("all", {}), **settings.params.get(side, {})}
    most = settings.judge_tokens if side == "judge" else settings.max_tokens
    most = int(own.pop("max_tokens", most))
    try:
        completion.check_provider(name, own)
    except ConfigError as error:
        raise ConfigError(f"--{side}: {error}") from None
    option = f"--{side}-price"
    if (given := settings.prices.get(side)) is None:
        return PricedModel(name, listed_price(name, option=option), most, own)
    try:
        return PricedModel(name, Price.parse(given), most, own)
    except CalibrationError as error:
        raise CalibrationError(f"{option}: {error}") from error


def _check_settings(settings: LabelSettings) -> None:
    cap = settings.max_usd
    if settings.strong == settings.weak:
        raise ConfigError(
            f"--strong and --weak are both {settings.strong!r}; one model at two efforts is a pair "
            "as NAME@high and NAME@low"
        )
    if cap is not None and not 0 <= cap < float("inf"):
        raise ConfigError(f"--max-usd: expected a finite number >= 0, got {cap}")
    if settings.judge is None and settings.checks is None and not settings.votes:
        who = "--judge MODEL, --checks FILE or --votes N"
        raise ConfigError(f"nobody is there to compare the answers: give {who}")
    if not 0.0 <= settings.threshold <= 1.0:
        raise ConfigError(f"--threshold: expected a number in [0, 1], got {settings.threshold}")
    for side, given in settings.params.items():
        if side not in ("all", *SIDES, "judge"):
            raise ConfigError(f"--params: unknown name {side!r}; expected all, strong, weak, judge")
        for name, value in given.items():
            _check_param(f"--params: {side}.{name}", name, value)


def _check_param(where: str, name: str, value: Any) -> None:
    if name in _FIXED:
        raise ConfigError(f"{where}: cannot be set; for the longest answer, set max_tokens")
    kinds = {"max_tokens": ((int,), "whole number"), "timeout": ((int, float), "number")}
    if name in kinds:
        types, what = kinds[name]
        if type(value) not in types or not value > 0:
            raise ConfigError(f"{where}: expected a {what} above 0, got {value!r}")


def _is_same_model(name: str, other: str) -> bool:
    """Whether two names mean one model: openai/gpt-4o is gpt-4o."""
    return name == other or name.rpartition("/")[2] == other.rpartition("/")[2]
