"""Whether the parts of a config fit each other: names that exist, limits in order."""

from collections.abc import Iterable, Iterator

from .settings import KINDS, Config
from .yaml_loader import Loc

Found = Iterator[tuple[Loc, str]]

RESERVED = "router-"  # `router-mf-0.3` asks for a router, never for a model
AUTO = "auto"


def problems(config: Config) -> Found:
    """(where, what is wrong and what to do) of everything that does not fit."""
    for check in (_models, _router, _bands, _live, _rules, _sensitivity, _tiers, _keys, _stores):
        yield from check(config)


def _models(config: Config) -> Found:
    yield from _unique((("models", i, "name"), m.name) for i, m in enumerate(config.models))
    for i, model in enumerate(config.models):
        if model.name == AUTO or model.name.startswith(RESERVED):
            text = f"{model.name!r} means the router; give another name (and this one as `model`)"
            yield ("models", i, "name"), text
        window = model.context_window
        if window is not None and (model.max_output_tokens or 0) > window:
            text = f"more than context_window, {window}, which holds the prompt too"
            yield ("models", i, "max_output_tokens"), text
        for key in ("model", "api_base", "api_key", "messages", "stream", "tools"):
            if key in model.params:
                where = "beside `params`" if key in type(model).model_fields else "in the request"
                yield ("models", i, "params", key), f"this belongs {where}"
    yield from _known(config, ("strong",), config.strong)
    yield from _known(config, ("weak",), config.weak)


def _router(config: Config) -> Found:
    router = config.router
    if router.threshold is not None and router.strong_share is not None:
        yield ("router", "strong_share"), "give threshold or strong_share, and not both"
    if set(router.quality) != {"low", "medium", "high"}:
        yield ("router", "quality"), "expected all of low, medium and high"
    elif not router.quality["low"] <= router.quality["medium"] <= router.quality["high"]:
        yield ("router", "quality"), "expected low <= medium <= high: they are shares of strong"


def _bands(config: Config) -> Found:
    router = config.router
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
        yield from _known(config, (*loc, "model"), band.model)
        if i == len(router.bands) - 1:
            if band.below is not None:
                yield (*loc, "below"), "the last band takes all scores that are left: leave it out"
        elif band.below is None:
            yield loc, "missing `below`: only the last band has no limit"
        elif band.below <= before:
            yield (*loc, "below"), f"expected more than {before:g}, the band before ends there"
        else:
            before = band.below


def _live(config: Config) -> Found:
    router, experiment = config.router, config.experiment
    if config.calls.second_look.enabled:
        loc: Loc = ("calls", "second_look", "enabled")
        if config.calls.cascade.enabled:
            yield loc, "has its own `checks`: turn calls.cascade off"
        if router.strategy != "pair" or router.hold is not None:
            yield loc, "goes by thresholds of the pair: no other router.strategy, no router.hold"
    if router.hold is not None:
        if router.strategy != "pair":
            yield ("router", "hold"), f"moves a threshold, which strategy {router.strategy} has not"
        if router.hold.lowest > router.hold.highest:
            yield ("router", "hold"), "expected lowest <= highest"
    if experiment is None:
        return
    if config.shadow:
        yield ("experiment",), "shadow answers everything with the strong model: turn one off"
    if router.strategy != "pair":
        yield ("experiment",), f"is for strategy pair, not {router.strategy}"


def _rules(config: Config) -> Found:
    yield from _unique((("rules", i, "name"), rule.name) for i, rule in enumerate(config.rules))
    for i, rule in enumerate(config.rules):
        loc: Loc = ("rules", i)
        when = rule.when
        if rule.model is not None:
            yield from _known(config, (*loc, "model"), rule.model)
        if when.max_tokens is not None and (when.min_tokens or 0) > when.max_tokens:
            yield (*loc, "when"), "min_tokens is more than max_tokens: this never holds"
        for j, tier in enumerate(when.tiers):
            yield from _tier(config, (*loc, "when", "tiers", j), tier)
        # A rule for a model that cannot take a request is passed over: those after it are reached.
        always = not when.model_fields_set and rule.model is None
        if always and i < len(config.rules) - 1:
            yield loc, "has no `when`, so it always holds and no rule after it is reached"


def _sensitivity(config: Config) -> Found:
    settings = config.sensitivity
    for name in settings.patterns:
        loc: Loc = ("sensitivity", "patterns", name)
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


def _tiers(config: Config) -> Found:
    for name, tier in config.tiers.items():
        loc: Loc = ("tiers", name, "models")
        if tier.models is None:
            continue
        yield from _known(config, loc, *sorted(tier.models))
        if not tier.models:
            yield loc, "no model is left; leave it out to allow all"
        elif tier.weak_only and config.weak not in tier.models:
            yield loc, f"weak_only, but {config.weak!r} is not among them"
    yield from _tier(config, ("default_tier",), config.default_tier)


def _keys(config: Config) -> Found:
    yield from _unique((("keys", i, "name"), key.name) for i, key in enumerate(config.keys))
    hashes: dict[str, str] = {}
    for i, key in enumerate(config.keys):
        yield from _tier(config, ("keys", i, "tier"), key.tier)
        if key.sha256 in hashes:
            yield ("keys", i, "sha256"), f"the same key as {hashes[key.sha256]!r}"
        hashes.setdefault(key.sha256, key.name)
        if key.tenant == "default" and any(other.tenant is None for other in config.keys):
            yield ("keys", i, "tenant"), "'default' is the tenant of keys without one; name another"


def _stores(config: Config) -> Found:
    for i, origin in enumerate(config.server.cors_origins):
        if origin == "*" and not config.keys:
            text = "without keys any page on the web could spend your money: name the sites"
            yield ("server", "cors_origins", i), text
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


def _unique(named: Iterable[tuple[Loc, str]]) -> Found:
    first: set[str] = set()
    for loc, name in named:
        if name in first:
            yield loc, f"the name {name!r} is taken"
        first.add(name)


def _known(config: Config, loc: Loc, *names: str) -> Found:
    known = [model.name for model in config.models]
    for name in names:
        if name not in known:
            yield loc, f"no model is named {name!r}; there are {', '.join(known)}"


def _tier(config: Config, loc: Loc, name: str | None) -> Found:
    if name is not None and name not in config.tiers:
        there = ", ".join(config.tiers) or "none"
        yield loc, f"no tier is named {name!r}; there are {there}"
