"""The card of a bundle: what it is, what it learned from, how good it is, what it cannot do."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

# Markdown, not HTML: nothing is escaped but what would break a table.
_CARD = """\
# {{ kind }} router

{{ {
  "mf": "Matrix factorization on a frozen sentence encoder and cheap features of the text: a "
    "quality for every model it knows.",
  "bert": "A sentence encoder fine-tuned to tell whether the strong model's answer wins.",
}[kind] }}
The score is the calibrated probability that the strong model's answer is preferred; ties count for
{#- #} the weak model.

- strong: {{ strong | join(", ") }}
- weak: {{ weak | join(", ") }}
- encoder: {{ encoder }}
{% if base %}
- started from: {{ base }}
{% endif %}
- seed: {{ seed }}
{% if label %}
- label: {{ label }}
{% elif weak_fails %}
- label: {{ "{:.0%}".format(1 - weak_fails) }} strong wins,
{#- #} {{ "{:.0%}".format(weak_fails) }} the weak answer falls short
{% else %}
- label: strong wins
{% endif %}

## Training data

{{ "{:,}".format(prompts.train) }} prompts
{%- if validated %}; figures by {{ validated }} on all of them.
{% else %} for training, {{ "{:,}".format(prompts.validation) }} for validation, split by the hash
{#- #} of the prompt.
{% endif %}

| source | prompts used | weight of one |
| --- | ---: | ---: |
{% for source, count in sources.items() %}
| {{ source | cell }} | {{ "{:,}".format(count) }} | {{ "{:g}".format(weights[source]) }} |
{% endfor %}

{% if dropped %}
Dropped before training, because they match a prompt of an evaluation set:

| source | prompts | dropped | by evaluation set and rule |
| --- | ---: | ---: | --- |
{% for source, row in dropped.items() %}
| {{ source | cell }} | {{ "{:,}".format(row.prompts) }} | {{ "{:,}".format(row.dropped) }}
{#- #} | {{ row.rules | counts }} |
{% endfor %}
{% else %}
Not decontaminated against any benchmark.
{% endif %}

{% if duplicates %}
Dropped as repeating another training prompt, by rule: {{ duplicates | counts(0) }}.

{% endif %}
{% if notes %}
## Notes

{% for note in notes %}
- {{ note }}
{% endfor %}

{% endif %}
## On the validation split

n = {{ "{:,}".format(validation.n) }} prompts of the same sources; strong wins on
{#- #} {{ "{:.1%}".format(validation.strong_wins) }} of them.
{% if fitted_on == "base" %}

**The labels are too few to improve on the bundle that was started from: its direction stands as it
{#- #} is, only calibrated anew.**
{% endif %}

| measure | value |
| --- | ---: |
| APGR | {{ validation.apgr | number }} |
| APGR of prompt length alone | {{ validation.apgr_prompt_length | number }} |
| APGR of a random mix | .500 |
| AUC | {{ validation.auc | number }} |
| ECE, before and after calibration | {{ "{:.4f} and {:.4f}".format(*validation.ece) }} |
| Brier score, before and after | {{ "{:.4f} and {:.4f}".format(*validation.brier) }} |

{% if validation.calibration == "none" -%}
**Not calibrated**: the split has too few labels, or no method helps; scores rank prompts, but are
{#- #} no probabilities to rely on.
{%- elif validation.calibrated_on == "these prompts" -%}
ECE and Brier after calibration ({{ validation.calibration }}) are cross-validated on these prompts.
{%- else -%}
Calibrated ({{ validation.calibration }}) on {{ validation.calibrated_on }}, out of fold.
{%- endif %} A prompt from a domain that is not in the table above is scored little better than by
{#- #} chance: train on your own logs.

## Export

{% if parity.torch_fp32 is none -%}
The graph differs from the head that was fitted by {{ "{:.1e}".format(parity.head) }} at most, on
{#- #} {{ parity.n }} prompts; its encoder is that of the bundle that was started from.
{%- else -%}
Torch against ONNX fp32 differs by {{ "{:.1e}".format(parity.torch_fp32) }} at most. On
{#- #} {{ parity.n }} validation prompts int8 moves scores by
{#- #} {{ "{:.4f}".format(parity.int8_score_mean) }} on average
{#- #} ({{ "{:.4f}".format(parity.int8_score_max) }} at most)
{%- if parity.int8_apgr is not none %} and APGR by {{ "{:+.4f}".format(parity.int8_apgr) }}
{%- endif %}.
{%- endif %}

{% if command %}

## Reproduce

    {{ command }}
{% endif %}
"""


def render_card(summary: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The card as Markdown, from a training summary (see `write_bundle.write_trained`)."""
    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 - Markdown
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
    )
    environment.filters |= {"cell": _cell, "counts": _counts, "number": _number}
    text = environment.from_string(_CARD).render(**summary, notes=notes)
    return text.rstrip("\n") + "\n"


def _cell(text: str) -> str:
    return (text or "(none)").replace("|", "\\|").replace("\n", " ")


def _counts(of: Mapping[str, int], least: int = 1) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in of.items() if count >= least)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
