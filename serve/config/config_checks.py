"""Whether the parts of a config fit each other: names that exist, patterns that compile."""

import re
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from ...errors import require_extra
from .settings import KINDS, Config
from .yaml_loader import Loc

Found = Iterator[tuple[Loc, str]]

RESERVED = "router-"  # `router-mf-0.3` asks for a router, never for a model
AUTO = "auto"


def problems(config: Config) -> Found:
    """(where, what is wrong and what to do) of everything that does not fit."""
    yield from _models(config)
    yield from _router(config)
    yield from _watching(config)
    yield from _rules(config)
    yield from _sensitivity(config)
    yield from _users(config)
    yield from _stores(config)


def _models(config: Config) -> Found:
    yield from _unique((("models", i, "name"), m.name) for i, m in enumerate(config.models))
    for i, model in enumerate(config.models):
        if model.name == AUTO or model.name.startswith(RESERVED):
            yield (
                ("models", i, "name"),
                f"{model.name!r} means the router; give another name (and this one as `model`)",
            )
        yield from _url(("models", i, "api_base"), model.api_base, "http", "https")
        if model.context_window is not None and (model.max_output_tokens or 0) > (
            model.context_window
        ):
            yield (
                ("models", i, "max_output_tokens"),
                f"more than context_window, {model.context_window}, which holds the prompt too",
            )
        for key in ("model", "api_base", "api_key", "messages", "stream", "tools"):
            if key in model.params:
                where = "beside `params`" if key in type(model).model_fields else "in the request"
                yield ("models", i, "params", key), f"this belongs {where}"
    for side in ("strong", "weak"):
        yield from _known(config, (side,), [getattr(config, side)])


def _router(config: Config) -> Found:
    router = config.router
    if router.threshold is not None and router.strong_share is not None:
        yield ("router", "strong_share"), "give threshold or strong_share, and not both"
    if set(router.quality) != {"low", "medium", "high"}:
        yield ("router", "quality"), "expected all of low, medium and high"
    elif not router.quality["low"] <= router.quality["medium"] <= router.quality["high"]:
        yield ("router", "quality"), "expected low <= medium <= high: they are shares of strong"
    if router.strategy != "bands":
        if router.bands:
            yield ("router", "bands"), f"not used by strategy {router.strategy}: set it to bands"
        return
    if not router.bands:
        yield ("router", "strategy"), "bands needs router.bands: what scores go to which model"
    yield from _unique((("router", "bands", i, "name"), b.name) for i, b in enumerate(router.bands))
    before = 0.0
    for i, band in enumerate(router.bands):
        loc: Loc = ("router", "bands", i)
        yield from _known(config, (*loc, "model"), [band.model])
        if i == len(router.bands) - 1:
            if band.below is not None:
                yield (*loc, "below"), "the last band takes all scores that are left: leave it out"
        elif band.below is None:
            yield loc, "missing `below`: only the last band has no limit"
        elif band.below <= before:
            yield (*loc, "below"), f"expected more than {before:g}, the band before ends there"
        else:
            before = band.below


def _watching(config: Config) -> Found:
    router, experiment = config.router, config.experiment
    if router.hold is not None:
        if router.strategy != "pair":
            yield ("router", "hold"), f"moves a threshold, which strategy {router.strategy} has not"
        elif router.threshold is None and router.strong_share is None:
            yield ("router", "hold"), "needs a threshold or strong_share to begin with"
    if experiment is None:
        return
    if config.shadow:
        yield ("experiment",), "shadow answers everything with the strong model: turn one off"
    if router.strategy != "pair":
        yield ("experiment",), f"is for strategy pair, not {router.strategy}"
    elif (
        experiment.router is not None
        and (router.threshold is None and router.strong_share is None)
        and (experiment.threshold is None and experiment.strong_share is None)
    ):
        yield ("experiment", "router"), "needs a threshold or strong_share"


def _rules(config: Config) -> Found:
    yield from _unique((("rules", i, "name"), rule.name) for i, rule in enumerate(config.rules))
    for i, rule in enumerate(config.rules):
        loc: Loc = ("rules", i)
        when = rule.when
        if rule.model is not None:
            yield from _known(config, (*loc, "model"), [rule.model])
        if when.regex is not None:
            yield from _pattern((*loc, "when", "regex"), when.regex)
        if None not in (when.min_tokens, when.max_tokens) and not (
            (when.min_tokens or 0) <= (when.max_tokens or 0)
        ):
            yield (*loc, "when"), "min_tokens is more than max_tokens: this never holds"
        for j, language in enumerate(when.languages):
            if not re.fullmatch("[a-z]{2}", language):
                yield (
                    (*loc, "when", "languages", j),
                    f"expected two small letters, as 'de' (ISO 639-1), got {language!r}",
                )
        for j, tier in enumerate(when.tiers):
            yield from _tier(config, (*loc, "when", "tiers", j), tier)
        # A rule for a model that cannot take a request is passed over: those after it are reached.
        always = not when.model_fields_set and rule.model is None
        if always and i < len(config.rules) - 1:
            yield loc, "has no `when`, so it always holds and no rule after it is reached"


def _sensitivity(config: Config) -> Found:
    settings = config.sensitivity
    for name, pattern in settings.patterns.items():
        loc: Loc = ("sensitivity", "patterns", name)
        yield from _pattern(loc, pattern)
        if name in KINDS:
            yield loc, f"{name!r} is built in: give your own pattern another name"
        if name not in settings.actions:
            yield loc, f"does nothing: add sensitivity.actions.{name}: secure, mask or block"
    known = (*KINDS, *settings.patterns)
    for kind, action in settings.actions.items():
        loc = ("sensitivity", "actions", kind)
        # Presidio names its own kinds in capitals, such as US_SSN.
        own = settings.detector == "presidio" and kind.isupper()
        if kind not in known and not own:
            yield loc, f"expected one of {', '.join(known)}; others need a pattern"
        if action == "secure" and not any(settings.tag in m.tags for m in config.models):
            yield loc, f"needs a model with the tag {settings.tag!r}"


def _users(config: Config) -> Found:
    for name, tier in config.tiers.items():
        loc: Loc = ("tiers", name)
        allowed = tier.models
        if allowed is not None:
            yield from _known(config, (*loc, "models"), sorted(allowed))
            if not allowed:
                yield (*loc, "models"), "no model is left; leave it out to allow all"
            elif tier.weak_only and config.weak not in allowed:
                yield (*loc, "models"), f"weak_only, but {config.weak!r} is not among them"
    if config.default_tier is not None:
        yield from _tier(config, ("default_tier",), config.default_tier)
    yield from _unique((("keys", i, "name"), key.name) for i, key in enumerate(config.keys))
    hashes: dict[str, str] = {}
    for i, key in enumerate(config.keys):
        if key.tier is not None:
            yield from _tier(config, ("keys", i, "tier"), key.tier)
        if key.sha256 in hashes:
            yield ("keys", i, "sha256"), f"the same key as {hashes[key.sha256]!r}"
        hashes.setdefault(key.sha256, key.name)
        if key.tenant == "default" and any(other.tenant is None for other in config.keys):
            yield ("keys", i, "tenant"), "'default' is the tenant of keys without one; name another"


def _stores(config: Config) -> Found:
    for i, origin in enumerate(config.server.cors_origins):
        loc: Loc = ("server", "cors_origins", i)
        if origin == "*":
            if not config.keys:
                yield loc, "without keys any page on the web could spend your money: name the sites"
        elif not re.fullmatch(r"https?://[^/?#@\s*A-Z]+", origin):
            yield loc, "expected '*' or a site as browsers name it, such as https://app.example.com"
    if config.cache.backend == "redis" and config.redis_url is None:
        yield ("cache", "backend"), "redis needs redis_url"
    if config.cache.semantic.enabled and config.cache.backend == "off":
        yield ("cache", "semantic", "enabled"), "needs a cache: set cache.backend"
    if config.server.workers > 1 and config.redis_url is None:
        # Each worker would count for itself: N workers, N times the budget.
        if any(tier.budgets for tier in config.tiers.values()):
            yield ("server", "workers"), "more than one share budgets only through redis_url"
        if config.sticky_s > 0:
            yield ("server", "workers"), "more than one share sessions only through redis_url"
    yield from _url(("redis_url",), config.redis_url, "redis", "rediss", "unix")
    yield from _url(("otel_endpoint",), config.otel_endpoint, "http", "https")
    yield from _url(("alerts", "webhook"), config.alerts.webhook, "http", "https")
    if config.records.url is not None:
        yield from _url(
            ("records", "url"),
            config.records.url,
            "sqlite",
            "postgresql",
            "postgresql+psycopg",
            "postgres",
        )


def _unique(named: Iterable[tuple[Loc, str]]) -> Found:
    first: set[str] = set()
    for loc, name in named:
        if name in first:
            yield loc, f"the name {name!r} is taken"
        first.add(name)


def _known(config: Config, loc: Loc, names: Iterable[str]) -> Found:
    known = [model.name for model in config.models]
    for name in names:
        if name not in known:
            yield loc, f"no model is named {name!r}; there are {', '.join(known)}"


def _tier(config: Config, loc: Loc, name: str) -> Found:
    if name not in config.tiers:
        there = ", ".join(config.tiers) or "none"
        yield loc, f"no tier is named {name!r}; there are {there}"


def _pattern(loc: Loc, pattern: str) -> Found:
    # What runs them too (see `policy.patterns`): its syntax is wider than that of `re`.
    regex = require_extra("regex", "serve")
    try:
        regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        yield loc, f"not a regular expression: {error}"


def _url(loc: Loc, url: str | None, *schemes: str) -> Found:
    if url is None:
        return
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme not in schemes or "://" not in url:
        # The URL itself may hold a password: it is not repeated.
        yield loc, f"expected a URL that starts with {' or '.join(f'{s}://' for s in schemes)}"
