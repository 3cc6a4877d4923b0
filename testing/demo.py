"""`thriftroute demo`: the whole main job on the built-in samples, in minutes on two cores.

Nothing leaves the machine: the samples come with the package, and the two models are played by the
local stub provider. Interrupted, it goes on where the training stopped when it is run again.
"""

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .._version import __version__
from ..data.readers import read_rows
from ..data.split import split_by_hash
from ..errors import ConfigError, TrainingError, TrainingInterruptedError
from ..eval import report
from ..eval.command import Target, run_calibration, run_evaluation
from ..router.bundle import MANIFEST
from ..router.controller import Controller
from ..router.decision import decision_of
from ..router.threshold import format_threshold
from ..training.progress import Progress
from ..training.settings import DEFAULT_ENCODER, BertSettings, MFSettings, TrainSettings
from ..training.train import train
from ..training.write_bundle import TrainResult
from .stub import StubProvider

SAMPLES = Path(__file__).resolve().parent.parent / "data" / "samples"
STRONG, WEAK = "strong-sim", "weak-sim"
HELD_OUT = 0.25
VALIDATION = 0.2
STRONG_PCT = 0.3
SEED = 0
# Not SEED: the trainer splits by hash too, and with one seed its validation part would fall into
# what is held out here.
SPLIT_SEED = 1
# Short, so that the demo takes minutes: a real run has longer texts and more epochs.
BERT = BertSettings(epochs=2, train_tokens=48, frozen_layers=2)
MARKER = ".thriftroute-demo.json"
TRAIN_FILE, HELD_OUT_FILE = "train.jsonl", "held-out.jsonl"
# All that the demo ever deletes in its folder.
MADE = (TRAIN_FILE, HELD_OUT_FILE, "mf", "fast", "bert", "report")
UNFINISHED = ("mf.run", "bert.run")
PROMPTS = (
    "Hello!",
    "What is the capital of Portugal?",
    "Say this more politely: send me the report today.",
    "Write a regular expression that matches an ISO date.",
    "Prove that there are infinitely many primes of the form 4k + 3, and state every lemma.",
    "Design a payment ledger for 8 million users across three regions, justify every trade-off, "
    "and show how it recovers when one region is lost in the middle of a transfer.",
)
SIMULATED = (
    "The samples are simulated: no model answered them (see data/samples/README.md). The figures "
    "show that the machinery works; about real models they say nothing."
)
NEXT = """\
look:      open {out}/report/report.html
inspect:   thriftroute inspect {out}/mf --card
train:     thriftroute train mf --data YOUR_LOGS --strong MODEL --weak MODEL --out my-router
evaluate:  thriftroute evaluate --router my-router --data HELD_OUT --strong MODEL --weak MODEL \
--out report
calibrate: thriftroute calibrate --router my-router --prompts YOUR_PROMPTS --strong-pct 0.3
use:       Controller(['my-router'], strong_model=..., weak_model=...), see docs/python.md"""


class _Screen:
    """What the demo prints: numbered headings, and lines."""

    def __init__(self, steps: int) -> None:
        self.console = Console()
        self._step, self._steps = 0, steps

    def heading(self, text: str, *, numbered: bool = True) -> None:
        self._step += numbered
        title = f"{self._step}/{self._steps}  {text}" if numbered else text
        self.console.print()
        self.console.rule(title, align="left", style="cyan")

    def say(self, text: str, style: str = "") -> None:
        self.console.print(escape(text), style=style, highlight=False, soft_wrap=True)


def run_demo(out: Path, *, with_bert: bool, encoder: str = DEFAULT_ENCODER) -> None:
    """Train, export, evaluate, calibrate and route, with everything that is made under `out`.

    encoder: as for `TrainSettings`. A folder of an earlier demo is reused: what it made is
    replaced, other files in it stay. Raises ConfigError where `out` holds anything else, and what
    the steps raise.
    """
    kinds = ("mf", "fast", "bert") if with_bert else ("mf", "fast")
    bundles = {kind: out / kind for kind in kinds}
    _own(out)
    screen = _Screen(len(bundles) + 4)
    screen.say(SIMULATED, style="yellow")
    _split(out, screen)
    for kind, bundle in bundles.items():
        screen.heading(f"Train and export {kind}{', very short' if kind == 'bert' else ''}")
        settings = TrainSettings(
            kind=kind,
            data=[str(out / TRAIN_FILE)],
            strong=(STRONG,),
            weak=(WEAK,),
            out=bundle,
            seed=SEED,
            # mf and fast start from the built-in bundles, where no other encoder is asked for.
            encoder=None if encoder == DEFAULT_ENCODER or kind == "fast" else encoder,
            validation=VALIDATION,
            options=BERT if kind == "bert" else MFSettings(),
            command=f"thriftroute demo --out {out}",
            notes=(SIMULATED,),
        )
        _show_training(_train(settings, screen), screen)
    _evaluate(out, bundles, screen)
    _route(_calibrate(bundles["mf"], screen), screen)
    screen.heading("What next", numbered=False)
    screen.say(SIMULATED, style="yellow")
    screen.say(NEXT.format(out=out))


def _own(out: Path) -> None:
    """Make `out` the demo's own, and empty it of what an earlier demo made.

    The state of an interrupted training stays, where it is of this version and these samples.
    """
    marker = out / MARKER
    samples = hashlib.sha256((SAMPLES / "comparisons.jsonl").read_bytes()).hexdigest()
    mark = {"made_by": "thriftroute demo", "version": __version__, "samples": samples}
    resumable = False
    if out.is_dir() and any(out.iterdir()):
        if not marker.is_file():
            raise ConfigError(
                f"{out} is not empty and not of an earlier demo: nothing was touched; give "
                "another --out"
            )
        with suppress(ValueError):  # a torn marker: nothing of that run is trusted
            resumable = json.loads(marker.read_text(encoding="utf-8")) == mark
    out.mkdir(parents=True, exist_ok=True)
    for name in (*MADE, *(() if resumable else UNFINISHED)):
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    marker.write_text(json.dumps(mark), encoding="utf-8")


def _split(out: Path, screen: _Screen) -> None:
    screen.heading("Samples")
    source = SAMPLES / "comparisons.jsonl"
    lines = [line for line in source.read_bytes().splitlines(keepends=True) if line.strip()]
    prompts = [row.prompt for row in read_rows(source)]
    part = split_by_hash(prompts, (1 - HELD_OUT, HELD_OUT), seed=SPLIT_SEED)
    for index, name in enumerate((TRAIN_FILE, HELD_OUT_FILE)):
        chosen = [line for line, p in zip(lines, part, strict=True) if p == index]
        (out / name).write_bytes(b"".join(chosen))
        screen.say(f"{len(chosen)} comparisons of {STRONG} with {WEAK} -> {out / name}")
    screen.say("Split by the hash of the prompt, so that no prompt is on both sides.")


def _train(settings: TrainSettings, screen: _Screen) -> TrainResult:
    unfinished = settings.work.exists()
    try:
        return train(settings, Progress(screen.console))
    except TrainingError as error:
        if not unfinished or isinstance(error, TrainingInterruptedError):
            raise
        screen.say(f"the interrupted run cannot go on, so it starts anew ({error})")
        shutil.rmtree(settings.work, ignore_errors=True)
        return train(settings, Progress(screen.console))


def _show_training(result: TrainResult, screen: _Screen) -> None:
    summary, measured = result.summary, result.summary["validation"]
    parity, (brier, ece) = summary["parity"], (measured["brier"], measured["ece"])
    how = f"best epoch {summary['best_epoch']} of {summary['epochs']}"
    if "validated" in summary:
        how = f"fitted in closed form, starting from {summary['base']}; {summary['validated']}"
    checked = f"the graph differs from the fitted head by {parity['head']:.1e} at most"
    if parity["torch_fp32"] is not None:
        checked = (
            f"torch against ONNX fp32: {parity['torch_fp32']:.1e} at most; int8 moves scores by "
            f"{parity['int8_score_mean']:.4f} on average, {parity['int8_score_max']:.4f} at most"
        )
    size = (result.bundle.path / "model.onnx").stat().st_size / 1e6
    screen.say(
        f"{how}; AUC {measured['auc']:.3f} on {measured['n']} validation prompts\n"
        f"calibrated: Brier {brier[0]:.3f} -> {brier[1]:.3f}, ECE {ece[0]:.3f} -> {ece[1]:.3f}\n"
        f"exported, {size:.1f} MB; {checked}"
    )
    screen.say(f"wrote {result.bundle.path}", style="green")


def _evaluate(out: Path, bundles: dict[str, Path], screen: _Screen) -> None:
    screen.heading("Evaluate on the held-out part, beside all baselines")
    target = Target((), str(out / HELD_OUT_FILE), (STRONG,), (WEAK,))
    routers = {kind: str(path) for kind, path in bundles.items()}
    measured = run_evaluation(routers, target, train_data=[str(out / TRAIN_FILE)], seed=SEED)
    report.print_report(measured, screen.console)
    for path in report.save(measured, out / "report").values():
        screen.say(f"wrote {path}", style="green")


def _calibrate(bundle: Path, screen: _Screen) -> float:
    """The threshold of the built-in bundle."""
    screen.heading(f"Calibrate for {STRONG_PCT:.0%} strong calls")
    prompts = str(SAMPLES / "prompts.jsonl")
    screen.say("On other prompts, which have no labels: a share of calls needs none.")
    result = run_calibration(
        str(bundle), Target(), prompts=prompts, strong_pct=STRONG_PCT, write=True
    )
    report.print_calibration(result, screen.console)
    screen.say(f"wrote the table into {bundle / MANIFEST}", style="green")
    result = run_calibration("mf", Target(), prompts=prompts, strong_pct=STRONG_PCT)
    screen.say(
        "The built-in bundle has scores of its own; its threshold for the same share: "
        f"{format_threshold(result.threshold)}"
    )
    return result.threshold


def _route(threshold: float, screen: _Screen) -> None:
    screen.heading("Route with the built-in bundle, and call both models")
    model = f"router-mf-{format_threshold(threshold)}"
    table = Table("prompt", "score", "choice", "answer", box=box.SIMPLE_HEAD, pad_edge=False)
    with StubProvider((STRONG, WEAK)) as provider:
        screen.say(f"A stub of a provider listens on {provider.url}; the client asks for {model}")
        names = f"openai/{STRONG}", f"openai/{WEAK}"
        with (
            Controller(["mf"], *names, api_base=provider.url, api_key="none") as client,
            screen.console.status("loading LiteLLM"),
        ):
            for prompt in PROMPTS:
                messages = [{"role": "user", "content": prompt}]
                answer = client.chat.completions.create(model=model, messages=messages)
                decision = decision_of(answer)
                assert decision is not None
                score = "-" if decision.score is None else f"{decision.score:.3f}"
                told = answer.choices[0].message.content or ""
                table.add_row(escape(prompt), score, decision.choice, escape(told))
            counts = client.model_counts["mf"]
    screen.console.print(table)
    screen.say(", ".join(f"{name}: {count} calls" for name, count in counts.most_common()))
