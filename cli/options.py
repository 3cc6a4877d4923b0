"""Options that several commands have."""

from typing import Annotated

import typer

RouterOption = Annotated[
    str,
    typer.Option("--router", help="mf, bert, fast, random, a bundle's folder, or another's name."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ShareOption = Annotated[
    float | None,
    typer.Option(
        "--strong-share",
        help="Share of prompts that goes to the strong model, by the bundle's table; 0.3 where no "
        "threshold is given.",
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option("--threshold", help="Instead: strong where score >= threshold, 0 to 1."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
StrongOption = Annotated[
    str | None,
    typer.Option("--strong", help="Strong model as the data names it; several: A,B (a tier)."),
]
WeakOption = Annotated[
    str | None, typer.Option("--weak", help="Weak model as the data names it; several: A,B.")
]
BenchmarkOption = Annotated[
    list[str] | None,
    typer.Option("--benchmark", help="mmlu, gsm8k or mt-bench; may be given again."),
]
ContextOption = Annotated[
    str,
    typer.Option("--context", help="What of a conversation is scored: last, conversation or full."),
]
StrongModelOption = Annotated[
    str | None, typer.Option("--strong-model", help="Its price, from LiteLLM's map.")
]
WeakModelOption = Annotated[
    str | None, typer.Option("--weak-model", help="Its price, from LiteLLM's map.")
]
StrongPriceOption = Annotated[
    str | None, typer.Option("--strong-price", help="IN,OUT in USD per 1,000,000 tokens.")
]
WeakPriceOption = Annotated[
    str | None, typer.Option("--weak-price", help="IN,OUT in USD per 1,000,000 tokens.")
]
TokensOption = Annotated[
    int | None,
    typer.Option("--output-tokens", min=0, help="Assumed answer [as known ones, or 300]."),
]


def names(text: str | None) -> tuple[str, ...]:
    """The models of --strong or --weak: one, or a tier as "A,B,C"."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())
