"""The config's rules: the first whose conditions all hold decides."""

import re
from collections.abc import Iterable, Iterator

from ...router.languages import Languages
from ..config.settings import Config, Rule, When
from ..request import Asked
from .patterns import BuiltInPattern, OwnPattern
from .signals import has_signal


class Facts:
    """What rules may ask of one request, each found out only when it is asked for."""

    def __init__(self, asked: Asked, languages: Languages | None) -> None:
        self.asked = asked
        self._languages = languages
        self._language: tuple[str | None] | None = None

    @property
    def language(self) -> str | None:
        """The language of what the user wrote last, or None."""
        if self._language is None:
            found = self._languages.of(self.asked.text) if self._languages else None
            self._language = (found,)
        return self._language[0]


class Rules:
    """The rules of a config, compiled. Safe to share between threads.

    Raises ConfigError for a pattern or a language that cannot be used, MissingExtraError where a
    rule needs what the extra `serve` brings.
    """

    def __init__(self, config: Config) -> None:
        self._rules = tuple(_Compiled(rule) for rule in config.rules)
        named = {code for rule in config.rules for code in rule.when.languages}
        self._languages = Languages(named) if named else None

    def __len__(self) -> int:
        return len(self._rules)

    def matching(self, asked: Asked) -> Iterator[Rule]:
        """The rules that hold for a request, in order, each tried only when it is asked for."""
        facts = Facts(asked, self._languages)
        return (compiled.rule for compiled in self._rules if compiled.holds(facts))


class _Compiled:
    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        when = rule.when
        self._keywords = _keywords(when.keywords)
        self._regex = (
            OwnPattern(f"rule {rule.name!r}: regex", when.regex) if when.regex is not None else None
        )

    def holds(self, facts: Facts) -> bool:
        """Whether all conditions hold, the cheap ones tried first."""
        when, asked = self.rule.when, facts.asked
        if not _holds_by_fields(when, asked):
            return False
        if self._keywords is not None and not self._keywords.found(asked.text):
            return False
        if when.signals and not any(has_signal(signal, asked.text) for signal in when.signals):
            return False
        if when.languages and facts.language not in when.languages:
            return False
        # A pattern that takes too long does not hold: no request waits for it.
        return self._regex is None or self._regex.found(asked.text) is True


def _holds_by_fields(when: When, asked: Asked) -> bool:
    options, principal = asked.options, asked.principal
    return (
        (not when.task or options.task in when.task)
        and (not when.tiers or principal.tier in when.tiers)
        and (not when.tenants or principal.tenant in when.tenants)
        and (when.min_tokens is None or asked.prompt_tokens >= when.min_tokens)
        and (when.max_tokens is None or asked.prompt_tokens <= when.max_tokens)
        and all(options.metadata.get(key) == value for key, value in when.metadata.items())
    )


def _keywords(keywords: Iterable[str]) -> BuiltInPattern | None:
    """One pattern for all of them, as whole words: "rag" is not in "fragment"."""
    words = [r"\s{1,20}".join(map(re.escape, keyword.split())) for keyword in keywords]
    words = [word for word in words if word]
    # Not \b, which "c++" and "#hashtag" have none of at their ends.
    pattern = rf"(?<!\w)(?:{'|'.join(words)})(?!\w)"
    return BuiltInPattern(re.compile(pattern, re.IGNORECASE)) if words else None
