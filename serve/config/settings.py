"""What can be set in thriftroute.yaml: its keys, their types, defaults and bounds.

`loader` reads a file into these, with the line of each error. Every class refuses keys it does not
know. Money is in US dollars, prices are per million tokens, times are in seconds.
"""

import contextlib
from typing import Annotated, Any, ClassVar, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ...errors import require_extra
from ..request import Quality


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):  # YAML reads `yes` as true, and pydantic true as 1
        raise PydanticCustomError("switch", "not a number")
    return value


def _url(*schemes: str) -> AfterValidator:
    def check(value: str) -> str:
        with contextlib.suppress(ValueError):
            parts = urlsplit(value)
            has_host = bool(parts.netloc) or parts.scheme not in {"http", "https"}
            if parts.scheme in schemes and "://" in value and has_host:
                return value
        # The URL itself may hold a password: it is not repeated.
        wanted = " or ".join(f"{scheme}://" for scheme in schemes)
        raise ValueError(f"expected a URL that starts with {wanted}")

    return AfterValidator(check)


def _compiles(value: str) -> str:
    regex = require_extra("regex", "serve")  # as `policy.patterns`, whose syntax is wider than re's
    try:
        regex.compile(value)
    except (regex.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


def _text(pattern: str, description: str) -> Any:
    return Field(pattern=f"^(?:{pattern})$", description=description)


NUMBER = BeforeValidator(_no_switch)
Share = Annotated[float, Field(ge=0, le=1), NUMBER]
Part = Annotated[float, Field(gt=0, lt=1), NUMBER]
Amount = Annotated[float, Field(ge=0), NUMBER]
Positive = Annotated[float, Field(gt=0), NUMBER]
Count = Annotated[int, Field(ge=1), NUMBER]
Tokens = Annotated[int, Field(ge=0), NUMBER]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Label = Annotated[str, _text(r"[\w.-]{1,64}", "1 to 64 letters, digits, '_', '.' or '-'")]
Language = Annotated[str, _text("[a-z]{2}", "two small letters, as 'de' (ISO 639-1)")]
_HEX = "64 small hexadecimal digits, a SHA-256 (`thriftroute keys new` prints one)"
Digest = Annotated[str, _text("[0-9a-f]{64}", _HEX)]
_SITE = "'*' or a site as browsers name it, such as https://app.example.com"
Site = Annotated[str, _text(r"\*|https?://[^/?#@\s*A-Z]+", _SITE)]
WebUrl = Annotated[str, _url("http", "https")]
RedisUrl = Annotated[str, _url("redis", "rediss", "unix")]
DatabaseUrl = Annotated[str, _url("sqlite", "postgresql", "postgresql+psycopg", "postgres")]
Regex = Annotated[str, AfterValidator(_compiles)]
Capability = Literal["vision", "tools", "json_schema", "reasoning"]
CAPABILITIES: tuple[Capability, ...] = get_args(Capability)
Transport = Literal["auto", "direct", "litellm"]
Kind = Literal["email", "phone", "card", "key"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # of sensitive data, built in


class Settings(BaseModel):
    """Base of all: unknown keys are errors, nothing changes once it is read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        # `rules:` with every line below it commented out is null: as if it were not there.
        fields = cls.model_fields.items()
        takes_null = {n for n, field in fields if type(None) in get_args(field.annotation)}
        if not isinstance(data, dict):
            return data
        return {k: v for k, v in data.items() if v is not None or k in takes_null}

    one_of: ClassVar[tuple[str, ...]] = ()  # exactly one of these is to be given

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        given = [name for name in self.one_of if getattr(self, name) is not None]
        if self.one_of and len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(self.one_of)}")
        return self


class PriceSettings(Settings):
    """USD per million tokens. What is not given is priced as LiteLLM does (cached as input)."""

    input: Amount
    output: Amount
    cached_input: Amount | None = None


class ModelSettings(Settings):
    """One model of the pool."""

    name: Name  # what clients and this file call it
    model: Name | None = None  # what LiteLLM calls it; `name` where it is not given
    api_base: WebUrl | None = None
    api_key: str | None = Field(default=None, repr=False)
    params: dict[str, Any] = Field(default_factory=dict, repr=False)  # more keywords for LiteLLM
    transport: Transport = "auto"  # how it is called: auto takes LiteLLM where it must translate
    price: PriceSettings | None = None  # from LiteLLM's map where it is not given
    context_window: Count | None = None  # tokens, prompt and answer together
    max_output_tokens: Count | None = None
    capabilities: frozenset[Capability] | None = None
    tags: frozenset[Name] = frozenset()
    bundle_model: Name | None = None  # whose quality the bundle predicts for it
    timeout_s: Positive | None = None
    responses: bool | None = None  # whether its server has /v1/responses; null: only OpenAI's own


class Band(Settings):
    """Scores below `below` (and not below the band before) go to `model`; the last has no limit."""

    name: Name
    model: Name
    below: Share | None = None


class HoldSettings(Settings):
    """Moves the threshold so that the latest scored requests keep a share or a budget."""

    one_of = ("strong_share", "usd_per_1k")
    strong_share: Share | None = None
    usd_per_1k: Positive | None = None  # what 1,000 scored requests may cost
    every_s: Positive = 300.0
    window: Annotated[int, Field(ge=100), NUMBER] = 2000  # the latest scores that are looked at
    lowest: Share = 0.0  # the threshold stays between these
    highest: Share = 1.0


class RouterSettings(Settings):
    """What scores a request and how the score becomes a choice."""

    name: Name = "mf"
    checkpoint_path: str | None = None
    threshold: Share | None = None
    # Instead of a threshold, through the bundle's table; 0.3 for a pair where neither is given.
    strong_share: Share | None = None
    # Of ordinary prompts: after 100 scored requests the share's threshold is read off those.
    adapt_share: bool = True
    context: Literal["last", "conversation", "full"] = "conversation"
    on_error: Literal["strong", "weak"] = "strong"
    threads: Count = 1
    strategy: Literal["pair", "pool", "bands"] = "pair"
    # Whether the sessions of agents change their model: where the price of it is earned back, as
    # each request is scored, or not at all.
    switch: Literal["priced", "free", "never"] = "priced"
    tolerance: Share = 0.1  # pool: how far below the best predicted quality is good enough
    bands: tuple[Band, ...] = ()
    # Strong shares that a request's `quality` stands for.
    quality: dict[Quality, Share] = {"low": 0.2, "medium": 0.5, "high": 0.8}
    hold: HoldSettings | None = None


class ExperimentSettings(Settings):
    """A share of the traffic, by hash, is routed in another way: the treatment."""

    name: Label  # another name draws anew
    share: Part
    by: Literal["session", "tenant"] = "session"  # a request without a session is drawn by itself
    threshold: Share | None = None
    strong_share: Share | None = None
    router: Name | None = None  # another one than `router.name`, or a bundle's folder

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [each for each in (self.threshold, self.strong_share) if each is not None]
        if len(given) > 1:
            raise ValueError("give threshold or strong_share, and not both")
        if not given and self.router is None:
            raise ValueError("give a threshold, a strong_share or another router")
        return self


class WatchSettings(Settings):
    """The gauges of drift, in each worker, from its start on."""

    enabled: bool = True
    baseline: str | None = None  # a file of `thriftroute watch --save-baseline`
    alpha: Part = 0.01  # false alarms a run, over all its time
    every_s: Positive = 60.0
    novelty: Share = 0.0  # of the scored requests: their familiarity is recorded, after the answer


class When(Settings):
    """All that is given must hold; of a list, one entry is enough."""

    task: tuple[Name, ...] = ()
    keywords: tuple[Name, ...] = ()  # whole words or phrases, letter case ignored
    regex: Regex | None = None
    min_tokens: Tokens | None = None  # of the prompt
    max_tokens: Tokens | None = None
    signals: tuple[Literal["code", "maths", "comparison"], ...] = ()
    languages: tuple[Language, ...] = ()
    tiers: tuple[Name, ...] = ()
    tenants: tuple[Name, ...] = ()
    metadata: dict[str, str] = Field(default_factory=dict)


class Rule(Settings):
    """The first rule whose `when` holds sends the request to a model, a threshold, or nowhere."""

    one_of = ("model", "threshold", "block")
    name: Name
    when: When = When()
    model: Name | None = None
    threshold: Share | None = None
    block: str | None = None  # the message that the client gets


class SensitivitySettings(Settings):
    """What to do with e-mail addresses, phone numbers, payment cards, keys and own patterns."""

    # By kind: one of KINDS or of patterns.
    actions: dict[Name, Literal["secure", "mask", "block"]] = Field(default_factory=dict)
    patterns: dict[Name, Regex] = Field(default_factory=dict)  # further kinds: regular expressions
    tag: Name = "secure"  # the tag of the models that may see what is marked "secure"
    detector: Literal["regex", "presidio"] = "regex"


class BudgetSettings(Settings):
    """A limit for each `scope` and calendar day or month (UTC)."""

    one_of = ("usd", "tokens")
    usd: Positive | None = None
    tokens: Count | None = None
    per: Literal["day", "month"] = "day"
    scope: Literal["key", "tenant", "tier"] = "tenant"
    soft: Share | None = 0.8  # from this share of the limit on only weak models answer


class TierSettings(Settings):
    """What the users of a tier get."""

    weak_only: bool = False
    models: frozenset[Name] | None = None  # allowed ones; all where it is not given
    threshold: Share | None = None
    budgets: tuple[BudgetSettings, ...] = ()


class KeySettings(Settings):
    """A client's API key: its SHA-256, never the key. `thriftroute keys` makes one."""

    name: Name
    sha256: Digest = Field(repr=False)
    tenant: Name | None = None  # None: each request may name its own
    tier: Name | None = None
    admin: bool = False


class AlertSettings(Settings):
    """A POST to `webhook`, once a budget and window, when spending passes each share of `at`."""

    webhook: WebUrl | None = Field(default=None, repr=False)
    at: tuple[Share, ...] = (0.5, 0.8, 1.0)


class CascadeSettings(Settings):
    """Weak first; strong where the answer comes late or fails a check."""

    enabled: bool = False
    timeout_s: Positive | None = None
    checks: tuple[Literal["empty", "refusal", "json", "schema"], ...] = ("empty", "json", "schema")


class SecondLookSettings(CascadeSettings):
    """Weak first where the router's bundle says so; strong where the bundle's second look at the
    answer says that it falls short, or a check fails, or it comes late."""

    checks: tuple[Literal["empty", "refusal", "json", "schema"], ...] = ()
    stream_first: bool = False  # a stream starts at once, and what the look would say is recorded


class CallSettings(Settings):
    """Timeouts, retries, cooldowns, fallbacks."""

    timeout_s: Positive = 600.0  # of a whole answer
    first_token_timeout_s: Positive = 60.0  # of a stream's first piece
    max_answer_bytes: Count = 8_000_000  # unpacked; of a stream, whose tokens are events, 8 times
    retries: Annotated[int, Field(ge=0, le=10), NUMBER] = 1  # of the same model
    cooldown_s: Amount = 30.0
    failures_to_cool: Count = 3  # in a row, a model
    fallbacks: bool = True  # weak -> strong -> the others that fit
    fetch_urls: bool = False  # images and files by address, here, for providers that take none
    cascade: CascadeSettings = CascadeSettings()
    second_look: SecondLookSettings = SecondLookSettings()

    @property
    def looking(self) -> CascadeSettings:
        """What is looked at in a weak answer: by the second look, else by the cascade's checks."""
        return self.second_look if self.second_look.enabled else self.cascade


class SemanticSettings(Settings):
    """Answers to a prompt at least this close, by cosine of the bundle's own embedding."""

    enabled: bool = False
    similarity: Share = 0.97


class CacheSettings(Settings):
    """Exact by default; off until it is turned on."""

    backend: Literal["off", "memory", "disk", "redis"] = "off"
    ttl_s: Positive = 3600.0
    max_entries: Count = 10_000
    max_entry_bytes: Count = 1_000_000
    path: str = "thriftroute-cache"
    semantic: SemanticSettings = SemanticSettings()


class RecordSettings(Settings):
    """Where decisions are written. Text of prompts and answers only where `text` is true."""

    # A URL may hold a password: it is not printed. None: nowhere.
    url: DatabaseUrl | None = Field(default="sqlite:///thriftroute.db", repr=False)
    text: bool = False
    queue: Count = 10_000  # rows waiting to be written; past it the oldest are dropped, counted
    flush_s: Positive = 1.0
    keep_days: Count | None = None


class ServerSettings(Settings):
    """The HTTP side."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535), NUMBER] = 6060
    workers: Count = 1
    max_body_bytes: Count = 10_000_000
    max_concurrency: Count = 200  # requests in work at once, a worker; past it 429
    max_concurrency_per_key: Count = 100  # of one key, or address without keys; on their way too
    read_timeout_s: Positive = 30.0  # for a client to send its request
    shutdown_s: Positive = 30.0  # for running requests to end after SIGTERM
    admin_sha256: Digest | None = Field(default=None, repr=False)
    public_metrics: bool = False
    access_log: bool = False  # a line a request, beside warnings, on standard error
    cors_origins: tuple[Site, ...] = ()  # sites whose pages may ask, as "https://app.example.com"


class Config(Settings):
    """All of thriftroute.yaml."""

    models: Annotated[tuple[ModelSettings, ...], Field(min_length=1)]
    strong: Name
    weak: Name
    router: RouterSettings = RouterSettings()
    shadow: bool = False  # the strong model answers all; what would have been is recorded
    experiment: ExperimentSettings | None = None
    watch: WatchSettings = WatchSettings()
    # A pattern of names that clients ask for, as claude-* -> auto, a router's name, or a model.
    aliases: dict[Name, Name] = Field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    sensitivity: SensitivitySettings = SensitivitySettings()
    tiers: dict[Name, TierSettings] = Field(default_factory=dict)
    default_tier: Name | None = None
    keys: tuple[KeySettings, ...] = ()
    sticky_s: Amount = 0.0  # how long a session keeps its model; 0: not
    # Where a request sets no maximum; None: as each model's own answers say.
    expected_output_tokens: Count | None = None
    max_cost_action: Literal["reject", "cheapest"] = "reject"
    calls: CallSettings = CallSettings()
    cache: CacheSettings = CacheSettings()
    records: RecordSettings = RecordSettings()
    # Shares budgets, sessions and cache between workers and servers.
    redis_url: RedisUrl | None = Field(default=None, repr=False)
    alerts: AlertSettings = AlertSettings()
    otel_endpoint: WebUrl | None = None
    server: ServerSettings = ServerSettings()
