"""The command `label`: from a log without labels to comparisons that train and audit."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ..errors import ConfigError
from ..terminal import new_console
from .options import JsonOption, StrongPriceOption, WeakPriceOption
from .output import print_json, say

NOT_ALL = 3  # exit status: stopped at the cap


def add_commands(app: typer.Typer) -> None:
    """Put the command of this module on `app`."""
    app.command(rich_help_panel="Logs")(label)


def label(
    log: Annotated[Path, Argument(help="A log, as `thriftroute logs import` writes it.")],
    strong: Annotated[str, Option(help="Strong model, as LiteLLM names it.")],
    weak: Annotated[str, Option(help="Weak model, as LiteLLM names it.")],
    out: Annotated[Path, Option(help="Comparisons, JSONL.")],
    judge: Annotated[str | None, Option(help="Model that compares, in both orders.")] = None,
    checks: Annotated[
        Path | None, Option(help="JSONL of what is right: exact, number, schema or test.")
    ] = None,
    votes: Annotated[int, Option(min=0, help="Ask a person at the terminal for so many.")] = 0,
    n: Annotated[
        int | None, Option("--n", min=1, help="Rows to draw in all; by default the log.")
    ] = None,
    max_usd: Annotated[
        float | None, Option(help="Most that may be spent, with earlier runs.")
    ] = None,
    estimate: Annotated[
        bool, Option("--estimate", help="Say what it would cost, and ask nobody.")
    ] = False,
    state: Annotated[
        Path | None, Option(help="What was paid for [OUT.state.jsonl]; a run goes on from it.")
    ] = None,
    logged_as: Annotated[
        list[str] | None, Option(help="A name in the log that means the strong model; '*' any.")
    ] = None,
    strong_price: StrongPriceOption = None,
    weak_price: WeakPriceOption = None,
    judge_price: Annotated[str | None, Option(help="IN,OUT in USD per 1,000,000 tokens.")] = None,
    rubric: Annotated[Path | None, Option(help="Text file: what makes an answer better.")] = None,
    run_code: Annotated[
        bool, Option("--run-code", help="Allow checks that run the answers' code, here.")
    ] = False,
    check_timeout: Annotated[float, Option(min=0.1, help="Seconds a test may take.")] = 10.0,
    scores_out: Annotated[
        Path | None, Option(help="Of what was checked: scores of each model, JSONL.")
    ] = None,
    voter: Annotated[str, Option(help="Who votes.")] = "human",
    router: Annotated[
        list[str] | None, Option(help="Draw where it is least certain; may be given again.")
    ] = None,
    threshold: Annotated[float, Option(help="Where that router decides, 0 to 1.")] = 0.5,
    explore: Annotated[float, Option(help="Share that is drawn whatever the router thinks.")] = 0.3,
    max_tokens: Annotated[int, Option(min=1, help="Longest answer.")] = 1024,
    second_sample: Annotated[
        bool, Option("--second-sample", help="Ask the weak model twice, for a second look.")
    ] = False,
    judge_tokens: Annotated[int, Option(min=16, help="Longest verdict.")] = 512,
    output_tokens: Annotated[
        int | None, Option(min=1, help="Assumed answer [as known ones are, or 300].")
    ] = None,
    concurrency: Annotated[int, Option(min=1, max=256, help="Calls at a time.")] = 8,
    retries: Annotated[int, Option(min=0, max=20, help="Of a call that failed.")] = 3,
    timeout: Annotated[float, Option(min=1, help="Seconds a call may take.")] = 120.0,
    api_base: Annotated[str | None, Option(help="Where all models are called.")] = None,
    api_key: Annotated[
        str | None, Option(help="For all; better in the provider's own variable.")
    ] = None,
    params: Annotated[
        Path | None, Option(help="JSON: all, strong, weak, judge -> keywords for LiteLLM.")
    ] = None,
    seed: Annotated[int, Option(min=0, help="Seed of what is drawn.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Label rows of a log: by a judge model in both orders, by checks, or by people's votes.

    Calls the weak model, and the strong one where the log has no answer of it. The cost is
    estimated first and never passes --max-usd. Interrupted or stopped at the cap, the same command
    goes on and pays nothing twice. Exit status 3: stopped at the cap.

    Example: thriftroute label logs.jsonl --strong gpt-4o --weak gpt-4o-mini --judge gpt-4.1 --n 300
    --max-usd 5 --out labels.jsonl
    """
    from ..labels.output import summary_lines
    from ..labels.run import run_labels
    from ..labels.settings import LabelSettings

    prices = {"strong": strong_price, "weak": weak_price, "judge": judge_price}
    settings = LabelSettings(
        log=log,
        out=out,
        strong=strong,
        weak=weak,
        judge=judge,
        count=n,
        max_usd=max_usd,
        state=state,
        only_estimate=estimate,
        prices={side: price for side, price in prices.items() if price is not None},
        params=_params(params, api_base, api_key),
        logged_as=tuple(logged_as or ()),
        rubric=rubric,
        checks=checks,
        run_code=run_code,
        check_timeout_s=check_timeout,
        scores_out=scores_out,
        votes=votes,
        voter=voter,
        routers=tuple(router or ()),
        threshold=threshold,
        explore=explore,
        max_tokens=max_tokens,
        judge_tokens=judge_tokens,
        second_sample=second_sample,
        output_tokens=output_tokens,
        concurrency=concurrency,
        retries=retries,
        timeout_s=timeout,
        seed=seed,
    )
    result = run_labels(settings, console=new_console(stderr=True), source=sys.stdin)
    if as_json:
        print_json(result.summary)
    else:
        for line in summary_lines(result.summary, out):
            say(line)
    if result.error is not None:
        raise result.error
    if result.stopped == "interrupted":
        raise KeyboardInterrupt
    if result.stopped == "cap":
        raise typer.Exit(NOT_ALL)


def _params(path: Path | None, api_base: str | None, api_key: str | None) -> dict[str, Any]:
    """Keywords for LiteLLM by side. Raises ConfigError where the file is not of that shape."""
    found: dict[str, Any] = {}
    if path is not None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"--params {path}: not a readable JSON file: {error}") from error
        if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
            raise ConfigError(
                f'--params {path}: expected objects by name, as {{"weak": {{"api_base": ...}}}}'
            )
    given = {"api_base": api_base, "api_key": api_key}
    every = {name: value for name, value in given.items() if value is not None}
    return {**found, "all": {**every, **found.get("all", {})}}
