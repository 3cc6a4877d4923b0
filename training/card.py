"""The card of a bundle: what it is, what it learned from, how good it is, what it cannot do."""

from collections.abc import Mapping, Sequence
from typing import Any

KIND_TEXT = {
    "mf": "Matrix factorization on a frozen sentence encoder and cheap features of the text: a "
    "quality for every model it knows.",
    "bert": "A sentence encoder fine-tuned to tell whether the strong model's answer wins.",
}


def render_card(summary: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The card as Markdown, from a training summary (see `run.train`)."""
    validation, parity = summary["validation"], summary["parity"]
    lines = [
        f"# {summary['kind']} router",
        "",
        KIND_TEXT[summary["kind"]],
        "The score is the calibrated probability that the strong model's answer is preferred; ties "
        "count for the weak model.",
        "",
        f"- strong: {', '.join(summary['strong'])}",
        f"- weak: {', '.join(summary['weak'])}",
        f"- encoder: {summary['encoder']}",
        *([f"- started from: {summary['base']}"] if summary.get("base") else []),
        f"- seed: {summary['seed']}",
        f"- label: {summary.get('label') or _label(summary['weak_fails'])}",
        "",
        "## Training data",
        "",
        _prompts(summary),
        "",
        "| source | prompts used | weight of one |",
        "| --- | ---: | ---: |",
        *(
            f"| {_cell(source)} | {count:,} | {summary['weights'][source]:g} |"
            for source, count in summary["sources"].items()
        ),
        "",
        *_dropped(summary["dropped"]),
        *_duplicates(summary.get("duplicates", {})),
        *_section("Notes", [f"- {note}" for note in notes]),
        "## On the validation split",
        "",
        f"n = {validation['n']:,} prompts of the same sources; strong wins on "
        f"{validation['strong_wins']:.1%} of them.",
        *_fitted(summary),
        "",
        "| measure | value |",
        "| --- | ---: |",
        f"| APGR | {_number(validation['apgr'])} |",
        f"| APGR of prompt length alone | {_number(validation['apgr_prompt_length'])} |",
        "| APGR of a random mix | .500 |",
        f"| AUC | {_number(validation['auc'])} |",
        f"| ECE, before and after calibration | {_pair(validation['ece'])} |",
        f"| Brier score, before and after | {_pair(validation['brier'])} |",
        "",
        _calibrated(validation)
        + " A prompt from a domain that is not in the table above is scored little better "
        "than by chance: train on your own logs.",
        "",
        "## Export",
        "",
        _parity(parity),
    ]
    if summary["command"]:
        lines += ["", "## Reproduce", "", "    " + summary["command"]]
    return "\n".join(lines) + "\n"


def _dropped(dropped: Mapping[str, Any]) -> list[str]:
    if not dropped:
        return ["Not decontaminated against any benchmark.", ""]
    lines = [
        "Dropped before training, because they match a prompt of an evaluation set:",
        "",
        "| source | prompts | dropped | by evaluation set and rule |",
        "| --- | ---: | ---: | --- |",
    ]
    for source, row in dropped.items():
        rules = ", ".join(f"{rule} {count:,}" for rule, count in row["rules"].items() if count)
        lines.append(f"| {_cell(source)} | {row['prompts']:,} | {row['dropped']:,} | {rules} |")
    return [*lines, ""]


def _duplicates(dropped: Mapping[str, int]) -> list[str]:
    if not dropped:
        return []
    rules = ", ".join(f"{rule} {count:,}" for rule, count in dropped.items())
    return [f"Dropped as repeating another training prompt, by rule: {rules}.", ""]


def _prompts(summary: Mapping[str, Any]) -> str:
    prompts = summary["prompts"]
    if summary.get("validated"):
        return f"{prompts['train']:,} prompts; figures by {summary['validated']} on all of them."
    return (
        f"{prompts['train']:,} prompts for training, {prompts['validation']:,} for validation, "
        "split by the hash of the prompt."
    )


def _fitted(summary: Mapping[str, Any]) -> list[str]:
    if summary.get("fitted_on") != "base":
        return []
    return [
        "",
        "**The labels are too few to improve on the bundle that was started from: its direction "
        "stands as it is, only calibrated anew.**",
    ]


def _parity(parity: Mapping[str, Any]) -> str:
    if parity["torch_fp32"] is None:
        return (
            f"The graph differs from the head that was fitted by {parity['head']:.1e} at most, on "
            f"{parity['n']} prompts; its encoder is that of the bundle that was started from."
        )
    text = (
        f"Torch against ONNX fp32 differs by {parity['torch_fp32']:.1e} at most. "
        f"On {parity['n']} validation prompts int8 moves scores by "
        f"{parity['int8_score_mean']:.4f} on average ({parity['int8_score_max']:.4f} at most)"
    )
    if parity["int8_apgr"] is not None:
        text += f" and APGR by {parity['int8_apgr']:+.4f}"
    return text + "."


def _calibrated(validation: Mapping[str, Any]) -> str:
    method = validation["calibration"]
    if method == "none":
        return (
            "**Not calibrated**: the split has too few labels, or no method helps; scores rank "
            "prompts, but are no probabilities to rely on."
        )
    where = validation["calibrated_on"]
    if where == "these prompts":
        return f"ECE and Brier after calibration ({method}) are cross-validated on these prompts."
    return f"Calibrated ({method}) on {where}, out of fold."


def _label(weak_fails: float) -> str:
    if not weak_fails:
        return "strong wins"
    return f"{1 - weak_fails:.0%} strong wins, {weak_fails:.0%} the weak answer falls short"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""] if lines else []


def _cell(text: str) -> str:
    return (text or "(none)").replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _pair(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.4f}" for value in values)
