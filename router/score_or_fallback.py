"""What of a request a router gets to see, and its score or, in a line, why there is none."""

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..errors import RoutingError
from .routers import BundleRouter, Router, checked_scores
from .text import Conversation, Promptlike, as_conversation
from .threshold import choose


def conversation_for(prompt: Promptlike, context: str) -> Conversation:
    """What of `prompt` is scored, by the rule `context`; see `router.text`.

    Raises RoutingError and DataError where it is neither text nor messages.
    """
    if not isinstance(prompt, str | Sequence):
        raise RoutingError(f"expected text or a list of messages, got {type(prompt).__name__}")
    if not isinstance(prompt, str):
        # An earlier answer's message, appended as it came, is an object and no mapping.
        prompt = [m.model_dump() if hasattr(m, "model_dump") else m for m in prompt]
    whole = as_conversation(prompt)
    return Conversation(
        whole.system if context == "full" else "",
        "" if context == "last" else whole.history,
        whole.last,
    )


def score_or_problem(router: Router, prompt: Promptlike, context: str) -> tuple[float | None, str]:
    """(score, "") or (None, what went wrong). Never raises, and the line holds no prompt's text."""
    try:
        conversation = conversation_for(prompt, context)
        if conversation.is_blank:
            return None, "no text to score"
        if isinstance(router, BundleRouter):
            score = router.score(conversation)
            if 0.0 <= score <= 1.0:
                return score, ""
        values = router.scores([conversation])
    except Exception as error:  # noqa: BLE001 - whatever it is, the request goes out
        # Not the error's own message: it may quote the prompt.
        return None, f"scoring failed: {place_of(error)}"
    try:
        return float(checked_scores(values, 1)[0]), ""
    except RoutingError as error:
        return None, f"scoring failed: {error}"


def compare(
    score: float, threshold: float, source: str = ""
) -> tuple[Literal["strong", "weak"], str]:
    """The choice, and the reason for it in a line. source: where the threshold is from. Raises
    ThresholdError for a bad threshold."""
    choice = choose(score, threshold)
    sign = ">=" if choice == "strong" else "<"
    reason = f"score {score:.6g} {sign} threshold {threshold:.6g}"
    return choice, f"{reason}, {source}" if source else reason


def place_of(error: Exception) -> str:
    """The error's class and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
