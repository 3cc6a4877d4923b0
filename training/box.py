"""The bundles in the box: python -m thriftroute.training.box mf --out checkpoints/mf

Needs THRIFTROUTE_DATA (the files of `data.sources`). mf takes about ten minutes on two cores the
first time, bert about half an hour.
"""

import argparse
from pathlib import Path

from rich.console import Console

from ..data.sources import SOURCES, eval_sources, train_sources
from ..router.errors import ThriftrouteError
from .bert import BertSettings
from .command import evaluation_prompts
from .mf import MFSettings
from .progress import Progress
from .run import KINDS, TrainRequest, train

# Tiers by what the sources know: frontier-class models of their day, and models of the class of
# Mixtral-8x7B. Names differ from source to source.
STRONG = (
    "gpt-4o-2024-05-13", "gpt-4o-2024-08-06", "gpt-4o", "gpt-4-turbo-2024-04-09", "gpt-4-turbo",
    "claude-3-5-sonnet-20240620", "claude-3-opus-20240229", "gemini-1.5-pro", "gemini-1.5-pro-002",
    "Mistral-Large-2", "Mistral-Large-Instruct-2407", "Llama-3.1-405B-Inst@hyperbolic",
    "Meta-Llama-3.1-405B-Instruct", "gpt-4o_chat", "gpt-4-turbo_chat", "claude-3.5-sonnet_aws",
    "claude-3-opus", "llama-3.1-405b_aws", "llama-3.1-nemotron-51b-instruct",
)  # fmt: skip
WEAK = (
    "Mixtral-8x7B-Instruct-v0.1", "gpt-3.5-turbo-0125", "claude-3-haiku-20240307",
    "Meta-Llama-3-8B-Instruct", "Meta-Llama-3.1-8B-Instruct", "Meta-Llama-3_1-8B-Instruct",
    "Mistral-7B-Instruct-v0.2", "Mistral-7B-Instruct-v0.3", "Qwen1.5-7B-Chat", "Qwen2-7B-Instruct",
    "gemma-2-9b-it", "Yi-1.5-9B-Chat", "Yi-1.5-34B-Chat", "Phi-3-mini-4k-instruct",
    "c4ai-command-r-v01", "llama3-70b-8192_groq", "gemini-pro", "mistral-7b-instruct-v0.3",
    "qwen2.5-7b-instruct", "llama-3.1-8b-instruct",
)  # fmt: skip
# Sources of one skill or of a few templates must not set the scale of difficulty for all.
WEIGHTS = {"planbench": 0.1, "kor_bench": 0.5}
# Two epochs on the upper four layers: what half an hour on two cores allows.
SETTINGS: dict[str, MFSettings | BertSettings] = {
    "mf": MFSettings(),
    "bert": BertSettings(epochs=2, train_tokens=128, frozen_layers=2),
}
# Half of each label: better by leaving out one source at a time, though most of that is planbench.
WEAK_FAILS = 0.5

NOTES = (
    "The tiers are frontier-class models of 2024 against models of the class of Mixtral-8x7B; "
    "other pairs were not learned.",
    "The prompts are exam questions, mathematics, code, logic and planning, nearly all in English: "
    "no chat. On chat, on your own domain and in other languages measure before you trust it.",
    "Left out for unknown or unclear licences of their results: routerbench, bfcl, livecodebench.",
)


def request(kind: str, out: Path) -> TrainRequest:
    """What `kind` in the box is trained from."""
    names = train_sources(publishable=True)
    licences = ", ".join(f"{name} {SOURCES[name].licence}" for name in names)
    return TrainRequest(
        kind=kind,
        data=names,
        strong=STRONG,
        weak=WEAK,
        out=out,
        against={name: evaluation_prompts(name) for name in eval_sources()},
        source_weights=WEIGHTS,
        weak_fails=WEAK_FAILS,
        settings=SETTINGS[kind],
        overwrite=True,
        command=f"python -m thriftroute.training.box {kind} --out checkpoints/{kind}",
        notes=(*NOTES, f"Licences of the training files: {licences}."),
    )


def main() -> None:
    """Train one of the bundles in the box."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        result = train(request(arguments.kind, arguments.out), Progress(Console(stderr=True)))
    except ThriftrouteError as error:
        raise SystemExit(f"error: {error}") from error
    Console().print(result.bundle.file("card.md").read_text(), markup=False)


if __name__ == "__main__":
    main()
