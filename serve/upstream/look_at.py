"""The second look of the router's bundle, for the server's calls."""

from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ...router.looking import Look, judge, look_keywords, looks_of
from ...router.routers import BundleRouter, Router
from ...router.second_look import LookPolicy, SecondLook
from ..config.settings import Config
from ..errors import bad_setting
from ..registry import Registry


class LookAt:
    """What is asked beside a weak answer, and what the look says of it. Safe to share.

    second: the model of the pool whose answer is to agree, None where the look needs none.
    """

    def __init__(
        self, look: SecondLook, router: BundleRouter, weak: str, second: str | None
    ) -> None:
        self._look, self._scorer, self._weak = look, router.scorer, weak
        self.second = second

    @classmethod
    def of(cls, config: Config, registry: Registry, router: Router) -> "LookAt | None":
        """That of the config; None where it has none. Raises ConfigError where the bundle has no
        second look, or the pool not the second model that it was trained with."""
        if not config.calls.second_look.enabled:
            return None
        try:
            look = looks_of({config.router.name: router})[config.router.name]
        except ConfigError as error:
            raise bad_setting("calls.second_look.enabled", str(error)) from error
        assert isinstance(router, BundleRouter)
        second = None
        if "agreement" in look.signals:
            wanted = look.second or config.weak
            known = (n for n, m in registry.items() if wanted in {n, m.litellm_model})
            second = next(known, None)
            if second is None:
                problem = f"its look compares with answers of {wanted!r}: add it to models"
                raise bad_setting("calls.second_look.enabled", problem)
        return cls(look, router, config.weak, second)

    @property
    def policy(self) -> LookPolicy:
        """When it is looked."""
        return self._look.policy

    def asks(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body for the weak model."""
        return {**body, **look_keywords(self._look, body)}

    def asks_again(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body for the second answer, which must not be the same one from a cache."""
        again = {"temperature": 1} if self.second == self._weak else {}
        return {**{k: v for k, v in body.items() if k != "n"}, **again}  # one to compare with

    def judge(
        self,
        score: float,
        completion: Mapping[str, Any],
        other: Mapping[str, Any] | None,
        body: Mapping[str, Any],
    ) -> Look:
        """What the look says of a completion, dicts of OpenAI's; milliseconds of CPU."""
        return judge(self._look, self._scorer, score, completion, other, body)
