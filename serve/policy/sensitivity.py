"""Personal and secret data in a request: what kinds it holds, and what is to follow from that.

Four kinds are known: `email`, `phone`, `card` (a payment card's number that passes Luhn's check)
and `key` (API keys, tokens and private keys of the common forms); the config adds patterns of its
own. All that a request sends is looked at: every message and what stands beside it, tools,
schemas and any other keyword, names too. What is in images, audio and files is not seen.

An action follows from each kind: `block` refuses the request, `secure` leaves only the models with
the config's tag, `mask` keeps the text out of records and logs. Whatever is found is masked there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...providers.pii import cover, masked
from ..config.settings import SensitivitySettings
from ..errors import RefusedError
from ..registry import Model
from ..request import ChatRequest
from ..request_parts import texts
from .detectors import detector_of


@dataclass(frozen=True, slots=True)
class Screening:
    """`kinds` that were found; `allowed` models; `mask`: text must not be recorded as it is."""

    kinds: tuple[str, ...]
    allowed: tuple[str, ...]
    mask: bool
    outcome: str


class Sensitivity:
    """A config's actions. Safe to share between threads. Raises as `detector_of` does."""

    def __init__(self, settings: SensitivitySettings) -> None:
        self._settings = settings
        self._detector = detector_of(settings)

    @property
    def active(self) -> bool:
        """False where the config has no actions: nothing is looked for."""
        return self._detector is not None

    def judge(
        self, request: ChatRequest, allowed: Sequence[str], models: Mapping[str, Model]
    ) -> Screening:
        """What a request holds and which of the `allowed` models may see it.

        Raises RefusedError (400): `sensitive_data` where it is blocked, `no_secure_model` where no
        allowed model may see it.
        """
        if self._detector is None:
            return Screening((), tuple(allowed), False, "not looked at")
        text = "\n".join(texts({**request.body, "messages": request.messages}))
        hit = {found.kind for found in self._detector.find(text)}
        actions = {kind: act for kind, act in self._settings.actions.items() if kind in hit}
        kinds, named = tuple(actions), ", ".join(actions)
        if not actions:
            return Screening((), tuple(allowed), False, "nothing found")
        blocked = ", ".join(kind for kind, action in actions.items() if action == "block")
        if blocked:
            message = f"the request holds data that must not be sent to a model: {blocked}; "
            message += "take it out of messages, tools and all other fields"
            raise RefusedError(400, "sensitive_data", message, param="messages")
        if "secure" not in actions.values():
            return Screening(kinds, tuple(allowed), True, f"{named}: masked in records")
        tag = self._settings.tag
        secure = tuple(name for name in allowed if tag in models[name].tags)
        if not secure:
            message = f"the request holds sensitive data ({named}), which only models tagged "
            message += f"{tag!r} may see, and none of these that can take it is: "
            message += ", ".join(allowed)
            raise RefusedError(400, "no_secure_model", message, param="messages")
        return Screening(kinds, secure, True, f"{named}: only models tagged {tag!r}")

    def masked(self, value: Any) -> Any:
        """JSON such as a list of messages, with all text in it masked, before it is written."""
        return masked(value, self.mask)

    def mask(self, text: str) -> str:
        """`text` with every piece of the configured kinds replaced by its kind, as "[email]"."""
        return text if self._detector is None else cover(text, self._detector.find(text))
