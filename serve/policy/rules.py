"""The config's rules: the first whose conditions all hold decides."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache

from ...router.languages import Languages
from ..config.settings import Config, Rule, When
from ..request import ChatRequest
from .patterns import SafePattern, has_signal


class Rules:
    """The rules of a config, compiled. Safe to share between threads.

    Raises ConfigError for a language that cannot be told, MissingExtraError where a rule needs what
    the extra `serve` brings.
    """

    def __init__(self, config: Config) -> None:
        self._rules: list[tuple[Rule, list[SafePattern]]] = []
        for rule in config.rules:
            patterns = list(_keywords(rule.when.keywords))
            if rule.when.regex is not None:
                patterns.append(SafePattern(f"rule {rule.name!r}: regex", rule.when.regex))
            self._rules.append((rule, patterns))
        named = {code for rule in config.rules for code in rule.when.languages}
        self._languages = Languages(named) if named else None

    def __len__(self) -> int:
        return len(self._rules)

    def matching(self, request: ChatRequest) -> Iterator[Rule]:
        """The rules that hold for a request, in order, each tried only when it is asked for."""

        @cache
        def language() -> str | None:  # of what the user wrote last
            return self._languages.of(request.text) if self._languages else None

        # A pattern that takes too long does not hold: no request waits for it.
        return (
            rule
            for rule, patterns in self._rules
            if _holds(rule.when, request, language)
            and all(pattern.found(request.text) for pattern in patterns)
        )


def _holds(when: When, request: ChatRequest, language: Callable[[], str | None]) -> bool:
    """Whether all conditions but the patterns hold, the cheap ones tried first."""
    options, principal = request.options, request.principal
    return (
        (not when.task or options.task in when.task)
        and (not when.tiers or principal.tier in when.tiers)
        and (not when.tenants or principal.tenant in when.tenants)
        and (when.min_tokens is None or request.prompt_tokens >= when.min_tokens)
        and (when.max_tokens is None or request.prompt_tokens <= when.max_tokens)
        and all(options.metadata.get(key) == value for key, value in when.metadata.items())
        and (not when.signals or any(has_signal(signal, request.text) for signal in when.signals))
        and (not when.languages or language() in when.languages)
    )


def _keywords(keywords: Iterable[str]) -> Iterator[SafePattern]:
    """One pattern for all of them, as whole words: "rag" is not in "fragment"."""
    words = filter(None, (r"\s{1,20}".join(map(re.escape, each.split())) for each in keywords))
    if either := "|".join(words):
        # Not \b, which "c++" and "#hashtag" have none of at their ends.
        pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)
        yield SafePattern.built_in(pattern)
