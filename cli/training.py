"""The commands `train`, `add-model` and `demo`: from comparisons to a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError, require_extra
from ..terminal import new_console
from .options import JsonOption, RouterOption, SeedOption, names
from .output import print_json, say

OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the bundle that is there.")
]


def add_commands(app: typer.Typer) -> None:
    """Put the commands of this module on `app`."""
    app.command(rich_help_panel="Train")(train)
    app.command("add-model", rich_help_panel="Train")(add_model)
    app.command(rich_help_panel="Train")(demo)


def train(
    kind: Annotated[str, typer.Argument(help="mf, bert, fast, second-look or step.")],
    data: Annotated[
        list[str],
        typer.Option(help="A file, hf:owner/name, or a known source; may be given again."),
    ],
    strong: Annotated[str, typer.Option(help="Strong model; a tier: A,B,C.")],
    weak: Annotated[str, typer.Option(help="Weak model; a tier: A,B,C.")],
    out: Annotated[Path, typer.Option(help="The bundle's folder.")],
    seed: SeedOption = 0,
    encoder: Annotated[
        str | None, typer.Option(help="A sentence-transformers name or folder.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The bundle that mf or fast starts from; by default the built-in one."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=16, max=8192, help="Length after truncation.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    min_evidence: Annotated[
        float | None,
        typer.Option(
            help="Stay with the base bundle unless the labels' log evidence is above; 0, 1.",
        ),
    ] = None,
    validation: Annotated[
        float, typer.Option(help="bert: share of the prompts kept for validation.")
    ] = 0.1,
    against: Annotated[
        list[str] | None, typer.Option(help="Drop prompts that this benchmark or file contains.")
    ] = None,
    source_weight: Annotated[
        list[str] | None, typer.Option(help="SOURCE=FACTOR; may be given again.")
    ] = None,
    weak_fails: Annotated[
        float, typer.Option(help="Share of 'weak falls short' in the label.")
    ] = 0.0,
    note: Annotated[list[str] | None, typer.Option(help="A line for the card.")] = None,
    own_logs: Annotated[
        bool, typer.Option("--own-logs", help="Allow evaluation data to stand in for own logs.")
    ] = False,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Drop near-duplicates among the training prompts.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip and count bad rows instead of stopping.")
    ] = False,
    rejects: Annotated[
        Path | None, typer.Option(help="Where skipped rows are written (JSONL).")
    ] = None,
    router: Annotated[
        str | None, typer.Option(help="second-look, step: the bundle that it stands on.")
    ] = None,
    second: Annotated[
        str | None, typer.Option(help="second-look: a cheap model whose answers agree or not.")
    ] = None,
    price_ratio: Annotated[
        float | None, typer.Option(help="second-look: price of a strong call in weak calls [20].")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="second-look: finds the final answer, a regular expression, one group."),
    ] = None,
    schema: Annotated[
        str | None, typer.Option(help="second-look: a JSON schema that every answer must meet.")
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a router on preference data and write a verified bundle.

    Needs the extra 'fit'; 'train', with torch, for bert and --encoder.

    Interrupted, the same command goes on where it stopped. `second-look` trains a router and a
    check of the weak model's answers on rows with the text of answers; `step` fits what the state
    of an agent's loop adds to the score, on rated rows of `records export`.

    Example: thriftroute train mf --data logs.jsonl --strong gpt-4o --weak llama3 --out my-router

    Example: thriftroute train second-look --data F --strong S --weak W --router mf --out looks
    """
    require_extra("onnx", "fit")
    from ..training.progress import Progress
    from ..training.settings import settings_from_options
    from ..training.train import train as run

    look = {"--router": router, "--second": second, "--price-ratio": price_ratio}
    look |= {"--pattern": pattern, "--schema": schema}
    looks = kind == "second-look"
    own = {"--router"} if kind == "step" else set(look) if looks else set()
    if given := [name for name, value in look.items() if value is not None and name not in own]:
        raise ConfigError(f"{', '.join(given)}: only for train second-look; leave it out")
    if kind == "step":
        _train_step(data, weak, router or "mf", out, seed, overwrite, as_json)
        return
    if looks and base is not None:
        raise ConfigError("--base: a second look stands on --router; give that")
    settings = settings_from_options(
        kind="mf" if looks else kind, data=data, strong=names(strong), weak=names(weak), out=out,
        seed=seed,
        encoder=encoder, base=router if looks else base, max_tokens=max_tokens, epochs=epochs,
        min_evidence=min_evidence, validation=validation, against=against or (),
        source_weights=source_weight or (), weak_fails=weak_fails, notes=tuple(note or ()),
        own_logs=own_logs, dedupe=dedupe, skip_bad=skip_bad, rejects=rejects, overwrite=overwrite,
    )  # fmt: skip
    progress = Progress(new_console(stderr=True))
    if looks:
        from ..training.second_look import LookSettings, train_second_look

        options = LookSettings(second, price_ratio, pattern, schema)
        result = train_second_look(settings, options, progress)
    else:
        result = run(settings, progress)
    if as_json:
        print_json({"bundle": str(result.bundle.path), **result.summary})
        return
    measured = result.summary["validation"]
    say(
        f"wrote {result.bundle.path}: APGR {measured['apgr']} on {measured['n']} validation "
        f"prompts (prompt length {measured['apgr_prompt_length']}, random 0.5), "
        f"ECE {measured['ece'][1]:.3f}"
    )
    if looks:
        found = result.summary["second_look"]
        tells = "it is used" if found["tells"] else "that is not shown to help: the score decides"
        say(
            f"second look by {', '.join(found['signals'])}: AUC {found['auc']} on {found['n']:,} "
            f"answers out of fold (score alone {found['auc_prompt']}); {tells}"
        )


def _train_step(
    data: list[str], weak: str, router: str, out: Path, seed: int, overwrite: bool, as_json: bool
) -> None:
    from ..router.routers import BundleRouter, load_router
    from ..training.step_head import train_step_head

    loaded = load_router(router)
    if not isinstance(loaded, BundleRouter):
        raise ConfigError(f"--router {router}: it is no bundle, which a step head stands on")
    bundle = loaded.scorer.bundle
    head = train_step_head(data, weak, bundle, out, seed=seed, overwrite=overwrite)
    facts = head.facts
    if as_json:
        print_json({"bundle": str(out), "tells": head.tells, **facts})
        return
    tells = "it is used" if head.tells else "that is not shown to help: the score stays as it is"
    say(
        f"wrote {out}: the state of the loop lowers the log loss of {facts['n']:,} rated steps, "
        f"out of fold, from {facts['loss_of_score']:.4f} by {facts['saved']:.4f} (standard error "
        f"{facts['error']:.4f}); {tells}"
    )


def add_model(
    name: Annotated[str, typer.Argument(help="The new model, as the data names it.")],
    data: Annotated[str, typer.Option(help="Comparisons or scores, as for train.")],
    out: Annotated[Path, typer.Option(help="The new bundle's folder.")],
    router: RouterOption = "mf",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit a model that a bundle does not know from a few dozen comparisons; all else stays.

    Example: thriftroute add-model new-model --data votes.jsonl --router my-router --out grown
    """
    require_extra("onnx", "fit")
    from ..data.sources import read_source
    from ..router.routers import BundleRouter, load_router
    from ..training.add_model import add_model as fit

    loaded = load_router(router)
    if not isinstance(loaded, BundleRouter):
        raise ConfigError(f"router {router!r} is no bundle: there is nothing to add a model to")
    added = fit(loaded.scorer.bundle, read_source(data), name, out, overwrite=overwrite)
    if as_json:
        print_json(
            {
                "bundle": str(added.bundle.path),
                "model": added.name,
                "ability": added.ability,
                "ability_ci": [added.low, added.high],
                "comparisons": added.comparisons,
            }
        )
        return
    say(
        f"wrote {added.bundle.path}: {added.name} has ability {added.ability:+.2f} "
        f"[{added.low:+.2f}, {added.high:+.2f}] from {added.comparisons:,} comparisons, where the "
        "bundle's weak model has -0.50 and its strong one +0.50"
    )


def demo(
    out: Annotated[Path, typer.Option(help="Folder for what the demo makes.")] = Path("out/demo"),
    bert: Annotated[bool, typer.Option("--bert", help="Also a short bert; needs torch.")] = False,
) -> None:
    """Train, evaluate, calibrate and route, on the built-in samples; a minute or two on 2 cores.

    Example: thriftroute demo --out out/demo
    """
    require_extra("onnx", "fit")
    from ..testing.demo import run_demo

    run_demo(out, with_bert=bert)
