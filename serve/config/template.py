"""The config that `thriftroute init` writes: it works as it stands, and names every setting.

A setting that is turned off has its `#` right before it, prose has a space between: without those
`#` the file is a config too, which a test loads.
"""

import os
from pathlib import Path

from ...errors import ConfigError

TEMPLATE = """\
# thriftroute serve --config thriftroute.yaml
#
# Two models at OpenAI, a router in front of them, decisions in a SQLite file beside this one.
# What is commented out shows its default or an example. ${NAME} is an environment variable,
# ${NAME:-other} has a default, and a value that comes out empty counts as not given.
# Money is in USD, prices are USD per million tokens, times are in seconds. Paths of the records
# and the cache are relative to where the server is started.

# The pool. `name` is what clients and this file say, `model` what LiteLLM says (by default the
# same), as openai/gpt-4o, anthropic/claude-sonnet-4-5 or ollama_chat/llama3. Prices, context
# window and capabilities come from LiteLLM's map where they are not given here: see
# `thriftroute models` and `thriftroute prices refresh`. A model without a price is an error; one
# that costs nothing has {input: 0, output: 0}.
models:
  - name: gpt-4o
    api_key: ${OPENAI_API_KEY:-}
  - name: gpt-4o-mini
    api_key: ${OPENAI_API_KEY:-}
  #- name: own-model
    #model: openai/qwen3-8b            # any server that speaks OpenAI's language: openai/<its name>
    #api_base: http://127.0.0.1:8000/v1
    #api_key: none
    #params: {temperature: 0.2}        # more keywords for LiteLLM, in every call
    #price: {input: 0.1, output: 0.3, cached_input: 0.05}
    #context_window: 32768             # tokens, prompt and answer together
    #max_output_tokens: 8192
    #capabilities: [tools, json_schema]  # of vision, tools, json_schema, reasoning
    #tags: [secure, eu]                # own words, for requests that ask for them
    #bundle_model: gpt-4o-mini         # whose quality the router predicts for it (strategy: pool)
    #timeout_s: 120

# The pair: the expensive model, and the cheap one that answers where it is good enough.
strong: gpt-4o
weak: gpt-4o-mini

router:
  name: mf                   # mf, bert, or a bundle's folder
  threshold: 0.3             # strong where score >= threshold. Or instead: strong_share: 0.3
  #checkpoint_path: my-router  # a bundle of your own, relative to this file (thriftroute train)
  #context: conversation     # what is scored: last (message), conversation or full
  #on_error: strong          # who answers where scoring fails: strong or weak
  #threads: 1                # of one scoring run
  #hold:                     # moves the threshold by itself, so that the latest requests keep
    #strong_share: 0.3       # a strong share, or a budget: usd_per_1k: 2.5
    #every_s: 300
    #window: 2000            # the latest scores that are looked at
    #lowest: 0.1             # the threshold stays between these
    #highest: 0.9
  #tolerance: 0.1            # strategy pool: how far below the best is good enough
  #quality: {low: 0.2, medium: 0.5, high: 0.8}  # strong shares that a request's `quality` means
  #strategy: pair            # pair, pool (the cheapest that is good enough) or bands:
  # bands:                   # scores up to `below` go to `model`, the last band takes the rest
  #   - {name: simple, model: gpt-4o-mini, below: 0.3}
  #   - {name: complex, model: gpt-4o}

# true: the strong model answers everything, and records say what would have been, and saved.
#shadow: false

# A share of the sessions (or tenants) is routed in another way, to compare: see docs/watch.md.
#experiment:
  #name: lower-threshold
  #share: 0.1
  #by: session                # or tenant
  #threshold: 0.2             # or strong_share: 0.5; or another router: my-router

# Gauges of drift: whether prompts are still those that the router was calibrated on.
#watch:
  #enabled: true
  #baseline: baseline.json    # of `thriftroute watch --save-baseline`; else the bundle's own table
  #alpha: 0.01                # chance of a false alarm, ever
  #every_s: 60
  #novelty: 0                 # share of requests whose familiarity to the router is recorded

# The first rule whose `when` holds decides. Of a list one entry is enough; all that is given must
# hold. Each rule has one of model, threshold and block (the message that the client gets).
#rules:
  #- name: contracts
    #when:
      #task: [legal]           # what the request says it is
      #keywords: [contract, liability]  # whole words or phrases
      #languages: [en, de]
    #model: gpt-4o
  #- name: long code
    #when: {signals: [code, maths, comparison], min_tokens: 500, max_tokens: 100000}
    #threshold: 0.1
  #- name: no card numbers in support
    #when:
      #regex: '\\bCVV\\b'
      #tenants: [support]
      #tiers: [free]
      #metadata: {channel: chat}
    #block: Please do not send payment data.

# Kinds: email, phone, card, key, and your own patterns. Actions: secure (only models with the tag),
# mask (in records and logs), block.
#sensitivity:
  #detector: regex            # or presidio, an extra
  #tag: secure
  #actions: {card: block, key: block, email: mask, phone: mask, badge: mask}
  #patterns: {badge: '\\bEMP-\\d{6}\\b'}

# What the users of a tier get. Without budgets there is no limit.
#tiers:
  #free:
    #weak_only: true
    #budgets:
      #- {tokens: 50000, per: day, scope: tenant}
  #pro:
    #threshold: 0.3
    #budgets:
      #- {usd: 100, per: month, scope: tenant, soft: 0.8}  # past 80% weak only, past 100% refused
  #enterprise:
    #models: [gpt-4o, gpt-4o-mini]
#default_tier: free           # of keys without a tier

# Clients' keys, by hash: `thriftroute keys new --name alice --tenant acme --tier pro` makes one.
# Without any, everybody who reaches the server may use it: keep it on 127.0.0.1 then.
#keys:
  #- name: alice
    #sha256: "0000000000000000000000000000000000000000000000000000000000000000"
    #tenant: acme             # without one, each request may name its own
    #tier: pro
    #admin: false             # true: may see /stats, /decisions and the page

#sticky_s: 0                  # how long a session keeps its model; 0: each request on its own
#expected_output_tokens: 512  # for estimates, where a request sets no maximum
#max_cost_action: reject      # a request over its own max_cost: reject, or cheapest (that fits)

# Failures: the same model again, then the other models that fit.
calls:
  timeout_s: 600              # of a whole answer
  #first_token_timeout_s: 60  # of a stream's first piece
  #max_answer_bytes: 8000000  # unpacked; of a stream 8 times
  #retries: 1                 # of the same model
  #failures_to_cool: 3        # in a row, then the model is left alone for
  #cooldown_s: 30
  #fallbacks: true
  #fetch_urls: false          # true: images by address, for providers that take none, fetched here
  # The weak model first, always; strong where its answer is late or fails a check.
  #cascade:
    #enabled: false
    #timeout_s: 20
    #checks: [empty, json, schema]  # and refusal

cache:
  backend: "off"              # memory, disk or redis: answers to equal requests, kept for ttl_s
  #ttl_s: 3600
  #max_entries: 10000
  #max_entry_bytes: 1000000
  #path: thriftroute-cache    # disk: its folder
  #semantic:                  # also answers to nearly equal prompts
    #enabled: false
    #similarity: 0.97

# A row a decision: prices, tokens, reasons, never text unless `text` is true.
records:
  url: sqlite:///thriftroute.db  # or postgresql://user:${PGPASSWORD}@host/database; null: none
  #text: false
  #queue: 10000               # rows waiting to be written; past it the oldest are dropped
  #flush_s: 1
  #keep_days: 90

# Several servers or workers share budgets, sessions and cache through Redis.
#redis_url: redis://127.0.0.1:6379/0

#alerts:
  #webhook: https://hooks.example.com/spend
  #at: [0.5, 0.8, 1.0]        # shares of a budget

#otel_endpoint: http://127.0.0.1:4318  # OpenTelemetry, an extra: otel

server:
  host: 127.0.0.1
  port: 6060
  #workers: 1
  #max_body_bytes: 10000000
  #max_concurrency: 200       # requests in work at once, a worker
  #max_concurrency_per_key: 100  # of one key, or of one address where there are no keys
  #read_timeout_s: 30         # for a client to send its request
  #shutdown_s: 30             # for running requests to end
  #admin_sha256: "1111111111111111111111111111111111111111111111111111111111111111"
  #public_metrics: false      # true: /metrics without the admin key
  #cors_origins: [https://app.example.com]  # sites whose pages may ask from a browser
"""


def write_template(path: Path, *, force: bool = False) -> None:
    """Write it; raises ConfigError where a file is there and `force` is not given, and OSError."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if force else os.O_EXCL)
    try:
        # For its owner alone: sooner or later a key is written into it.
        handle = os.open(path, flags, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} is there already; --force replaces it") from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(TEMPLATE)
