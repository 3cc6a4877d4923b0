"""The config's rules: the first whose conditions all hold decides."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache

from ...router.languages import Languages
from ..config.settings import Config, Rule, When
from ..request import ChatRequest
from .patterns import BuiltInPattern, OwnPattern, has_signal


class Rules:
    """The rules of a config, compiled. Safe to share between threads.

    Raises ConfigError for a pattern or a language that cannot be used, MissingExtraError where a
    rule needs what the extra `serve` brings.
    """

    def __init__(self, config: Config) -> None:
        self._rules = tuple(_CompiledRule(rule) for rule in config.rules)
        named = {code for rule in config.rules for code in rule.when.languages}
        self._languages = Languages(named) if named else None

    def __len__(self) -> int:
        return len(self._rules)

    def matching(self, request: ChatRequest) -> Iterator[Rule]:
        """The rules that hold for a request, in order, each tried only when it is asked for."""

        @cache
        def language() -> str | None:  # of what the user wrote last
            return self._languages.of(request.text) if self._languages else None

        return (each.rule for each in self._rules if each.holds(request, language))


class _CompiledRule:
    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        regex = rule.when.regex
        self._keywords = _keywords(rule.when.keywords)
        self._regex = None if regex is None else OwnPattern(f"rule {rule.name!r}: regex", regex)

    def holds(self, request: ChatRequest, language: Callable[[], str | None]) -> bool:
        """Whether all conditions hold, the cheap ones tried first."""
        when, text = self.rule.when, request.text
        return (
            _holds_by_fields(when, request)
            and (self._keywords is None or self._keywords.found(text))
            and (not when.signals or any(has_signal(signal, text) for signal in when.signals))
            and (not when.languages or language() in when.languages)
            # A pattern that takes too long does not hold: no request waits for it.
            and (self._regex is None or self._regex.found(text) is True)
        )


def _holds_by_fields(when: When, request: ChatRequest) -> bool:
    options, principal = request.options, request.principal
    return (
        (not when.task or options.task in when.task)
        and (not when.tiers or principal.tier in when.tiers)
        and (not when.tenants or principal.tenant in when.tenants)
        and (when.min_tokens is None or request.prompt_tokens >= when.min_tokens)
        and (when.max_tokens is None or request.prompt_tokens <= when.max_tokens)
        and all(options.metadata.get(key) == value for key, value in when.metadata.items())
    )


def _keywords(keywords: Iterable[str]) -> BuiltInPattern | None:
    """One pattern for all of them, as whole words: "rag" is not in "fragment"."""
    words = [r"\s{1,20}".join(map(re.escape, keyword.split())) for keyword in keywords]
    words = [word for word in words if word]
    # Not \b, which "c++" and "#hashtag" have none of at their ends.
    pattern = rf"(?<!\w)(?:{'|'.join(words)})(?!\w)"
    return BuiltInPattern(re.compile(pattern, re.IGNORECASE)) if words else None
