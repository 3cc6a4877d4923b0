"""The boundary to LiteLLM: imported late and once, silent, off the network, able to call tools."""

import asyncio
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import thriftroute
from thriftroute.errors import ConfigError
from thriftroute.providers.completion import (
    acomplete,
    check_provider,
    complete,
    load_litellm,
)
from thriftroute.router.decision import Decision, attach, decision_of
from thriftroute.testing.stub import StubProvider
from thriftroute.testing.stub_faults import Fault

HELLO = [{"role": "user", "content": "hello"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
]
# LiteLLM silences these itself when it is imported; pytest undoes that for each test.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the .* attribute on the instance:Warning"),
]
DECISION = Decision("openai/strong", "strong", 0.7, 0.5, "mf", "score 0.7 >= threshold 0.5", 1.0)

# Runs in a fresh process without `mcp`, and reports what it imported, where it connected to and
# what LiteLLM printed.
FRESH = """
import sys
addresses = []
def watch(event, arguments):
    if event == "socket.connect":
        addresses.append(str(arguments[1][0]))
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        addresses.append(str(arguments[0]))
sys.addaudithook(watch)
sys.modules["mcp"] = None  # not installed, even where it is

import asyncio, json, threading
from thriftroute.router import controller, completion
heavy = ("litellm", "onnxruntime", "torch", "pandas", "yaml", "rich")
light = [name for name in heavy if name in sys.modules]

start = threading.Barrier(8)
modules = []
def load():
    start.wait()
    modules.append(completion.load_litellm())
threads = [threading.Thread(target=load) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(modules) == 8 and len(set(map(id, modules))) == 1 and modules[0].completion

request = json.loads(sys.argv[1])
plain = completion.complete(request)
tools = {**request, "tools": json.loads(sys.argv[2])}
called = completion.complete(tools)

async def main():
    answer = await completion.acomplete(tools)
    stream = await completion.acomplete({**tools, "stream": True})
    return answer, [chunk async for chunk in stream]

answer, chunks = asyncio.run(main())
names = [r.choices[0].message.tool_calls[0].function.name for r in (called, answer)]
calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
names += [call.function.name for call in calls if call.function.name]
print(json.dumps({"light": light, "addresses": addresses, "names": names,
                  "text": plain.choices[0].message.content}))
"""


@pytest.fixture(scope="module", autouse=True)
def no_loop_of_litellms() -> None:
    """LiteLLM asks for the thread's event loop, which Python 3.11 would create and nobody close;
    once `asyncio.run` has run, there is none to be created."""
    asyncio.run(asyncio.sleep(0))


@pytest.fixture(scope="module")
def provider() -> Iterator[StubProvider]:
    with StubProvider() as running:
        yield running


def request(provider: StubProvider, **more: Any) -> dict[str, Any]:
    base = {"model": "openai/strong", "messages": HELLO, "api_base": provider.url, "api_key": "k"}
    return {**base, **more}


@pytest.fixture(scope="module")
def fresh(provider: StubProvider, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Report of the fresh process, and what the provider received from it."""
    before = len(provider.requests)
    script = tmp_path_factory.mktemp("fresh") / "fresh.py"
    script.write_text(textwrap.dedent(FRESH))
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(request(provider)), json.dumps(TOOLS)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    report: dict[str, Any] = json.loads(lines.pop())
    return {
        **report,
        "printed": lines + done.stderr.splitlines(),
        "received": provider.requests[before:],
    }


def test_the_controller_imports_nothing_heavy(fresh: dict[str, Any]) -> None:
    assert fresh["light"] == []


def test_importing_and_calling_connects_to_api_base_alone(fresh: dict[str, Any]) -> None:
    assert fresh["addresses"]
    assert set(fresh["addresses"]) == {"127.0.0.1"}


def test_nothing_is_printed(fresh: dict[str, Any]) -> None:
    assert fresh["printed"] == []


def test_tools_are_called_without_mcp_and_nothing_of_ours_is_sent(fresh: dict[str, Any]) -> None:
    assert fresh["text"] == "Answer of strong."
    assert fresh["names"] == ["weather"] * 3
    assert len(fresh["received"]) == 4
    for received in fresh["received"][1:]:
        assert received.body["tools"] == TOOLS
        assert set(received.body) <= {"model", "messages", "tools", "stream"}


def test_the_import_is_kept() -> None:
    litellm = load_litellm()
    assert load_litellm() is litellm is sys.modules["litellm"]
    assert litellm.suppress_debug_info is True


def test_tools_with_what_is_installed_here(provider: StubProvider) -> None:
    answer = complete(request(provider, tools=TOOLS))
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"


def test_the_providers_errors_come_through(provider: StubProvider) -> None:
    with StubProvider(status=401) as refusing:
        with pytest.raises(load_litellm().AuthenticationError):
            complete(request(refusing))
        with pytest.raises(load_litellm().AuthenticationError):
            asyncio.run(acomplete(request(refusing)))


@pytest.mark.parametrize("how", [complete, lambda given: asyncio.run(acomplete(given))])
def test_a_local_server_needs_no_key(
    provider: StubProvider, how: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for given in ({"api_key": None}, {"model": "lm_studio/strong", "api_key": ""}):
        assert how(request(provider, **given)).choices
    # A key that is in the environment is sent as it is.
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", "vllm-environment")
    how(request(provider, api_key=None))
    how(request(provider, model="hosted_vllm/strong", api_key=None))
    sent = [received.api_key for received in provider.requests[-4:]]
    assert sent[0] == "none"
    assert sent[2:] == ["sk-environment", "vllm-environment"]


@pytest.mark.parametrize("how", [complete, lambda given: asyncio.run(acomplete(given))])
def test_a_model_whose_provider_nobody_knows_says_what_to_write(
    provider: StubProvider, how: Callable[[Any], Any]
) -> None:
    with pytest.raises(ConfigError, match=r"who serves the model 'qwen3:32b'.*openai/qwen3:32b"):
        how(request(provider, model="qwen3:32b"))
    with pytest.raises(load_litellm().BadRequestError), StubProvider(status=400) as refusing:
        how(request(refusing))


def test_a_provider_of_the_users_own_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    litellm = load_litellm()
    monkeypatch.setattr(
        litellm, "custom_provider_map", [{"provider": "mine", "custom_handler": None}]
    )
    monkeypatch.setattr(litellm, "model_alias_map", {"short": "openai/gpt-4o"})
    check_provider("mine/it", {})
    check_provider("short", {})


@pytest.mark.parametrize("stream", [False, True])
def test_a_decision_rides_on_the_answer(provider: StubProvider, stream: bool) -> None:
    answer = complete(request(provider, stream=stream))
    assert decision_of(answer) is None
    before = dict(answer._hidden_params)
    attach(answer, DECISION)
    assert decision_of(answer) is DECISION
    assert answer._hidden_params["thriftroute"] is DECISION
    assert before.items() <= answer._hidden_params.items()
    if stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in answer]
        assert "".join(pieces) == "Answer of strong."
        assert decision_of(answer) is DECISION
    else:
        assert "thriftroute" not in answer.model_dump_json()


def test_other_objects_carry_no_decision() -> None:
    assert decision_of(None) is None
    assert decision_of("text") is None


def test_nobody_else_imports_litellm() -> None:
    """The plugin is a class of LiteLLM's proxy; a benchmark measures LiteLLM by itself."""
    root = Path(thriftroute.__file__).resolve().parent
    listed = subprocess.run(
        ["git", "ls-files", "-z", "*.py"], cwd=root, capture_output=True, text=True, check=False
    )
    others = [
        name
        for name in listed.stdout.split("\0")
        if name and name.split("/")[0] not in {"providers", "integrations", "tests", "benchmarks"}
    ]
    found = [
        name
        for name in others
        if re.search(r"^\s*(?:import|from) litellm|load_litellm", (root / name).read_text(), re.M)
    ]
    assert found == []


@pytest.mark.parametrize("is_async", [False, True])
def test_a_provider_that_refuses_log_probabilities_is_asked_without(is_async: bool) -> None:
    refusal = Fault(status=400, error="property 'logprobs' is not supported")
    with StubProvider() as provider:
        asked = {"model": "openai/m", "api_base": provider.url, "api_key": "k", "max_retries": 0}
        asked |= {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True}

        def ask(*optional: str) -> Any:
            if is_async:
                return asyncio.run(acomplete(asked, optional=optional))
            return complete(asked, optional=optional)

        provider.fail(refusal)
        assert ask("logprobs").choices[0].message.content == "Answer of m."
        assert ["logprobs" in request.body for request in provider.requests] == [True, False]
        provider.fail(refusal)
        with pytest.raises(load_litellm().exceptions.BadRequestError):
            ask("user")
        assert len(provider.requests) == 3
        provider.fail(Fault(status=400, error="temperature is odd"))
        with pytest.raises(load_litellm().exceptions.BadRequestError):
            ask("logprobs")
        assert len(provider.requests) == 4
