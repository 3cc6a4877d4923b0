"""The boundary to LiteLLM: imported on first use, because its import takes seconds.

The first use sets what keeps the import silent and off the network, and leaves alone what the
user set before. Every keyword goes to LiteLLM as it was given, with a key that stands for none
where a local server needs none (`local_key`).
"""

import contextlib
import functools
import importlib
import logging
import os
import re
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from ..errors import ConfigError

# LiteLLM's names for providers that speak OpenAI's API, whatever model they serve.
OPENAI_API = frozenset(
    {"openai", "custom_openai", "openai_like", "hosted_vllm", "litellm_proxy", "lm_studio"}
)
# Asking LiteLLM about these opens a log-in, or asks a server.
ASKS_OTHERS = frozenset({"github_copilot", "chatgpt", "ollama", "ollama_chat"})
# What a model's name may end with, as in `gpt-5@low`: how much it thinks. Vertex has dates there.
EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})

_OF_KEYS = re.compile(r"missing.{0,40}(key|credential)", re.IGNORECASE)

_lock = threading.Lock()
_BESIDE = 3  # tokens that LiteLLM's counter adds to all messages together
_MOST_COUNTS = 100_000
_counts: dict[int, int] = {}  # tokens of what was counted, by its hash


def load_litellm() -> ModuleType:
    """LiteLLM, imported once however many threads ask. Takes seconds and ~100 MB the first time."""
    with _lock:
        return _import_litellm()


@functools.cache
def _import_litellm() -> ModuleType:
    # Otherwise the import fetches the list of prices from the network.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    # Otherwise errors without a status end in a long link to LiteLLM's bug form.
    os.environ.setdefault("LITELLM_DISABLE_BUG_REPORT_LINK", "True")
    litellm = importlib.import_module("litellm")
    for name, value in (("suppress_debug_info", True), ("telemetry", False)):
        if hasattr(litellm, name):  # the one prints adverts, the other is gone from newer versions
            setattr(litellm, name, value)
    return litellm


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without LiteLLM's warnings about types of its own, as it loads what it has for a provider."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def warm_up() -> None:
    """Load what LiteLLM otherwise loads at its first call, a second in which no loop turns, and
    keep its own log, which may quote prompts, silent unless the user has set `LITELLM_LOG`."""
    litellm = load_litellm()
    if "LITELLM_LOG" not in os.environ:
        for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    importlib.import_module("openai.resources.chat.completions")
    prompt = [{"role": "user", "content": "hi"}]
    with quiet():
        more = {"mock_response": "hi", "stream": True}
        list(litellm.completion(model="openai/gpt-4o", messages=prompt, **more))


def arm_of(name: str) -> tuple[str, dict[str, str]]:
    """The model that a name means, and the keywords that its effort adds to each call: `gpt-5@low`
    is gpt-5 with reasoning_effort low. Any other name is the model's own."""
    model, _, effort = name.rpartition("@")
    return (model, {"reasoning_effort": effort}) if model and effort in EFFORTS else (name, {})


def _called(request: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a call; an effort of its own comes before that of the model's name."""
    model, effort = arm_of(request["model"])
    return {**effort, **request, "model": model, **local_key(model, request)}


def complete(request: Mapping[str, Any], *, optional: Collection[str] = ()) -> Any:
    """`litellm.completion(**request)`: a ModelResponse, or a stream wrapper with `stream=True`.

    optional: keywords that are left out where LiteLLM refuses a parameter, `logprobs` also where
    the provider does. Raises what LiteLLM raises, and ConfigError for a model whose provider it
    cannot tell."""
    litellm = load_litellm()
    request = _called(request)
    try:
        return litellm.completion(**request)
    except litellm.exceptions.BadRequestError as error:
        fewer = _without_refused(error, request, optional)
        if fewer is not None:
            return litellm.completion(**fewer)
        check_provider(request["model"], request)
        raise


async def acomplete(request: Mapping[str, Any], *, optional: Collection[str] = ()) -> Any:
    """`complete` for asyncio; imports happen in a thread, never on the loop. LiteLLM says that it
    takes some of the `optional` where it does not (1.110: prompt_cache_key)."""
    if not is_loaded():
        import asyncio  # 6 MB, with ssl, for who has no loop

        await asyncio.to_thread(load_litellm)
    litellm = load_litellm()
    request = _called(request)
    try:
        return await litellm.acompletion(**request)
    except litellm.exceptions.BadRequestError as error:
        fewer = _without_refused(error, request, optional)
        if fewer is not None:
            return await litellm.acompletion(**fewer)
        check_provider(request["model"], request)
        raise


def _without_refused(
    error: Exception, request: Mapping[str, Any], optional: Collection[str]
) -> dict[str, Any] | None:
    """The request without what is optional; None where that would mend nothing."""
    fewer = {key: value for key, value in request.items() if key not in optional}
    # LiteLLM lets it through to some (1.110: groq) that answer with an error about it.
    refused = "logprobs" in optional and "logprob" in str(error).lower()
    refused |= isinstance(error, load_litellm().exceptions.UnsupportedParamsError)
    return fewer if refused and len(fewer) < len(request) else None


def is_loaded() -> bool:
    """Whether LiteLLM has been imported here."""
    return _import_litellm.cache_info().currsize > 0


async def close_connections() -> None:
    """Close the connections that LiteLLM keeps, of all of this process, and forget them: it finds
    them again by the address of the event loop, which the next loop may have."""
    if not is_loaded():
        return
    litellm = load_litellm()
    await litellm.close_litellm_async_clients()
    litellm.in_memory_llm_clients_cache.flush_cache()


def provider_of(model: str, params: Mapping[str, Any]) -> str:
    """LiteLLM's name for who serves `model` with these keywords; "" where it cannot tell."""
    return _resolved(model, params)[0]


def check_provider(model: str, params: Mapping[str, Any]) -> None:
    """Raise ConfigError, which says what to write, where LiteLLM cannot tell who serves `model`."""
    model = arm_of(model)[0]
    # A provider by name needs no look at the rest, which for some opens a log-in.
    if model.partition("/")[0] in load_litellm().provider_list or provider_of(model, params):
        return
    known = load_litellm().model_cost.get(model, {}).get("litellm_provider")
    offered = f"{known}/{model}" if known else f"openai/{model} or ollama_chat/{model}"
    raise ConfigError(
        f"LiteLLM cannot tell who serves the model {model!r}: put the provider before its name, "
        f"such as {offered} (openai/ is any server at an api_base that speaks OpenAI's API); in a "
        "config file as `model`, where `name` may stay as it is"
    )


def parameters_of(model: str, provider: str) -> frozenset[str]:
    """The parameters that LiteLLM takes for this model; it refuses others."""
    return frozenset(load_litellm().get_supported_openai_params(model, provider) or ())


def openai_alike() -> frozenset[str]:
    """Providers that LiteLLM itself lists as speaking OpenAI's API, nearly."""
    return frozenset(load_litellm().openai_compatible_providers)


def missing_key(model: str) -> str | None:
    """The environment variable that would hold the API key of a model, where it is not set; None
    where there is another way to log in, or LiteLLM knows of no key."""
    if model.partition("/")[0] in ASKS_OTHERS:
        return None
    missing = load_litellm().validate_environment(model)["missing_keys"]
    names = [name for name in missing if name.endswith("_API_KEY")]
    return names[-1] if names and len(names) == len(missing) else None


def check_key(request: Mapping[str, Any], error: Exception) -> None:
    """Raise ConfigError, of one line, where a call failed because nobody gave a key: providers'
    own clients say so in many words, over several exceptions."""
    litellm = load_litellm()
    refused = isinstance(error, litellm.exceptions.AuthenticationError)
    if request.get("api_key") or not (refused or _OF_KEYS.search(str(error))):
        return
    name = missing_key(request["model"])
    if name is None or litellm.api_key:
        return
    raise ConfigError(
        f"model {request['model']!r}: there is no API key; set the variable {name}, or give "
        "api_key (of one model: under `models`)"
    ) from None


def local_key(model: str, params: Mapping[str, Any]) -> dict[str, str]:
    """The keyword `api_key` for calls that have no key and go to an address of the user's own.

    A local server asks for no key, OpenAI's client for any. Empty where there is a key."""
    address = params.get("api_base") or params.get("base_url")
    if not address or params.get("api_key"):
        return {}
    litellm = load_litellm()
    provider, key = _resolved(model, params)
    found = key or litellm.api_key or litellm.openai_key or os.environ.get("OPENAI_API_KEY")
    return {} if found or provider not in OPENAI_API else {"api_key": "none"}


def count_tokens(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, *, otherwise: int
) -> int:
    """About how many tokens a request has, by LiteLLM's general tokenizer; `otherwise` where it
    cannot tell: an odd message is the model's to refuse. Never raises.

    What was counted before is not counted again, as the messages of a conversation that goes on."""
    try:
        start = [{"role": "system" if _has_system(messages) else "user", "content": ""}]
        more = _counted(start, tools) - _counted(start) if tools else 0
        return _BESIDE + more + sum(_counted([message]) - _BESIDE for message in messages)
    except Exception:  # noqa: BLE001 - whatever it cannot count
        return otherwise


def _has_system(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Tools count a little less beside a system message."""
    return any(message.get("role") == "system" for message in messages)


def _counted(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> int:
    key = hash(repr((messages, tools)))  # 64 bits, secret to this process: nothing of the text
    found = _counts.get(key)
    if found is None:
        found = load_litellm().token_counter(
            model="gpt-4o",
            messages=[dict(message) for message in messages],
            tools=list(tools) if tools else None,
            # Otherwise an image's address is fetched to learn its size.
            use_default_image_token_count=True,
        )
        if len(_counts) >= _MOST_COUNTS:
            _counts.clear()
        _counts[key] = found = int(found)
    return found


def _resolved(model: str, params: Mapping[str, Any]) -> tuple[str, str | None]:
    """(provider, the key that LiteLLM has for it), as far as LiteLLM tells before a call."""
    litellm = load_litellm()
    model = arm_of(model)[0]
    model = litellm.model_alias_map.get(model, model)
    given = params.get("custom_llm_provider")
    first = given or model.partition("/")[0]
    if given or any(first == own["provider"] for own in litellm.custom_provider_map):
        return str(first), None
    try:
        address = params.get("api_base") or params.get("base_url")
        _, provider, key, _ = litellm.get_llm_provider(model, api_base=address)
    except litellm.exceptions.BadRequestError:
        return "", None
    return str(provider), key
