"""A probe: which model tells log-probabilities."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .calls import judged, told
from .completion import acomplete
from .error_meaning import CallError
from .http_answer import BadAnswerError, HttpAnswer
from .log_probabilities import mean_probability, token_logprobs

# What a probe asks of a model: an answer of one or two tokens, of which it is not certain: a
# probability of 1 looks like a degenerate one.
PROBE = {
    "messages": [{"role": "user", "content": "Name any colour, in one word."}],
    "logprobs": True,
    "max_tokens": 16,
}
_MOST_BYTES = 1_000_000  # of an answer

# yes: they came; missing: the model answered without; refused: by LiteLLM, or by the provider;
# degenerate: all are 0 or -9999, as servers say that do not know; failed: nothing is known.
Outcome = Literal["yes", "missing", "refused", "degenerate", "failed"]


@dataclass(frozen=True, slots=True)
class Probed:
    """What came of asking a model for log-probabilities. `probability`: the geometric mean of its
    tokens' probabilities; `why`: what was refused or failed; `answer`: the completion, if any."""

    outcome: Outcome
    probability: float | None = None
    why: str | None = None
    answer: Mapping[str, Any] | None = None


async def probe(request: Mapping[str, Any]) -> Probed:
    """Make one call, `PROBE` with the keywords of a model, and say what came back."""
    try:
        async with judged(HttpAnswer(_MOST_BYTES), float(request["timeout"])):
            response = await acomplete(request)
            if not getattr(response, "choices", None):
                raise BadAnswerError("the answer has no choices")
    except CallError as failure:
        why = told(failure, request)
        takes_none = failure.status in (None, 400, 422) and "logprob" in why.lower()
        return Probed("refused" if takes_none else "failed", why=why)
    tokens, answer = token_logprobs(response.choices[0]), response.model_dump()
    if not tokens:
        return Probed("missing", answer=answer)
    probability = mean_probability([value for _, value in tokens])
    return Probed("degenerate" if probability is None else "yes", probability, answer=answer)
