"""No keyword of a client's body chooses a key, an address, a file or a provider, or stands for the
messages: what arrives at providers of several kinds, and that nothing arrives anywhere else."""

import inspect
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from thriftroute.providers.completion import load_litellm
from thriftroute.serve.upstream.failures import UpstreamError
from thriftroute.serve.upstream.request import PARAMETERS, is_barred
from thriftroute.testing.stub import StubProvider
from thriftroute.tests.helpers.callers import HELLO, KEY, make_caller, make_model, run

# LiteLLM's own types, when it first imports a provider's code.
pytestmark = pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class:UserWarning")
SECRET = "of a file that nobody reads"


class Listener:
    """Keeps every request to it, of any path, and refuses it as wrong."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], str]] = []  # path, headers, body
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
                headers = {name.lower(): value for name, value in self.headers.items()}
                listener.seen.append((self.path, headers, body))
                answer = b'{"error": {"message": "no"}}'
                self.send_response(400)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_HEAD = do_PUT = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Listener":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def provider() -> Iterator[Listener]:
    with Listener() as listener:
        yield listener


@pytest.fixture
def elsewhere() -> Iterator[StubProvider]:
    with StubProvider() as stub:
        yield stub


MODELS = {
    "openai": "m",
    "hosted_vllm": "m",
    "litellm_proxy": "m",
    "mistral": "m",
    "groq": "m",
    "openrouter": "m",
    "azure": "m",
    "anthropic": "claude-3-5-haiku-20241022",
    "gemini": "gemini-2.0-flash",
    "ollama": "m",
    "ollama_chat": "m",
    "cohere_chat": "m",
}


def sent(
    provider: Listener, name: str, body: Mapping[str, Any]
) -> list[tuple[str, dict[str, str], str]]:
    """What arrives at the provider of that name for a client's body."""
    params: dict[str, Any] = {"api_base": provider.url, "api_key": KEY, "timeout": 20.0}
    if name == "azure":
        params["api_version"] = "2024-06-01"
    model = make_model("weak", "", litellm_model=f"{name}/{MODELS[name]}", params=params)
    caller = make_caller({"weak": model})
    with pytest.raises(UpstreamError):
        run(caller, caller.call(("weak",), {"messages": HELLO, **body}, stream=False))
    return provider.seen


def hostile(url: str, file: Path) -> dict[str, Any]:
    """Every keyword of LiteLLM's, and those of its providers and of gateways, with an address, a
    key or a file."""
    named = inspect.signature(load_litellm().completion).parameters
    further = """
        api_base base_url api_key custom_llm_provider extra_headers headers extra_body
        extra_query fallbacks context_window_fallbacks model_list mock_response mock_tool_calls
        litellm_params litellm_metadata litellm_credential_name litellm_logging_obj callbacks
        success_callback failure_callback logger_fn vertex_credentials vertex_ai_credentials
        vertex_project vertex_location aws_access_key_id aws_secret_access_key aws_session_token
        aws_role_name aws_web_identity_token aws_profile_name aws_region_name
        aws_bedrock_runtime_endpoint azure_ad_token azure_ad_token_provider azure_username
        azure_password tenant_id client_id client_secret organization api_version api_type
        region_name project watsonx_token hf_model_name input_cost_per_token
        output_cost_per_token base_model model_info user_config proxy_server_request
        secret_fields ssl_verify langfuse_host langfuse_secret_key langsmith_api_key
        s3_endpoint_url gcs_path_service_account provider models route preset plugins
        data_sources kv_transfer_params logits_processors adapter_source lora_path apiBase
        apiKey baseURL modelList _litellm_internal prompt_id guardrails
    """.split()  # noqa: SIM905
    values = {"address": url, "file": str(file), "uri": file.as_uri(), "key": "sk-theirs"}
    kept = PARAMETERS | {"model", "stream", "stream_options", "kwargs"}
    lists = {"fallbacks", "model_list", "models", "callbacks", "success_callback"}
    texts = {"api_base", "base_url", "apiBase", "baseURL"}
    found: dict[str, Any] = {}
    for name in [*named, *further]:
        if name not in kept:
            found[name] = url if name in texts else [url] if name in lists else dict(values)
    found["api_key"] = found["azure_ad_token"] = "sk-theirs"
    found["custom_llm_provider"] = "hosted_vllm"
    found["mock_response"] = "not asked"
    # These say nothing about where an answer is from.
    found |= dict.fromkeys(
        ("enable_json_schema_validation", "include_server_side_tool_invocations"), True
    )
    return found


INSTEAD = {
    "contents": [{"role": "user", "parts": [{"text": "INSTEAD"}]}],
    "prompt": "INSTEAD",
    "input": "INSTEAD",
    "system": "INSTEAD",
    "systemInstruction": {"parts": [{"text": "INSTEAD"}]},
    "system_instruction": "INSTEAD",
    "instructions": "INSTEAD",
    "template": "INSTEAD",
    "chat_template": "INSTEAD",
    "preamble": "INSTEAD",
    "chat_history": [{"message": "INSTEAD"}],
    "previous_response_id": "INSTEAD",
}


@pytest.mark.parametrize("name", MODELS)
def test_no_keyword_chooses_a_key_an_address_a_file_or_a_provider(
    name: str, provider: Listener, elsewhere: StubProvider, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    odd = hostile(elsewhere.url, file)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}, **odd}]
    given: list[dict[str, Any]] = [{}, odd, {"extra_body": odd}, {"litellm_params": odd}]
    given += [{"metadata": odd}, {"tools": tools}]
    for body in given:
        sent(provider, name, body)
    assert len(provider.seen) == len(given)  # one call each, all of them here
    assert elsewhere.requests == []
    plain = provider.seen[0]
    for path, headers, body in provider.seen:
        assert (path, credentials(headers)) == (plain[0], credentials(plain[1]))
        assert SECRET not in body
    for _, _, body in provider.seen[1:4]:
        assert {k: v for k, v in json.loads(body).items() if v is not True} == json.loads(plain[2])


def credentials(headers: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in headers.items() if "key" in k or k in {"authorization", "host"}}


@pytest.mark.parametrize("name", MODELS)
def test_no_keyword_stands_for_the_messages(name: str, provider: Listener) -> None:
    got = sent(provider, name, INSTEAD)
    assert len(got) == 1
    assert "INSTEAD" not in got[0][2]
    assert HELLO[0]["content"] in got[0][2]


@pytest.mark.parametrize(
    "name", ["mistral", "azure", "anthropic", "gemini", "ollama", "cohere_chat"]
)
def test_other_apis_than_openais_get_no_further_keywords_but_of_sampling(
    name: str, provider: Listener
) -> None:
    further = {
        "generationConfig": {"maxOutputTokens": 8000},
        "options": {"num_predict": 8000},
        "num_predict": 8000,
        "max_output_tokens": 8000,
        "thinkingConfig": {"thinkingBudget": 8000},
        "candidateCount": 8,
        "safety_settings": [],
    }
    got = sent(provider, name, {"max_tokens": 5, "top_k": 3, **further})
    assert "8000" not in got[0][2]
    assert "extra_body" not in got[0][2]
    assert '"top_k": 3' in got[0][2].replace('":3', '": 3')


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_no_part_of_a_message_reads_a_file(
    name: str, scheme: str, provider: Listener, tmp_path: Path
) -> None:
    file = tmp_path / "secret.png"
    file.write_text(SECRET)
    address = f"{scheme}{file}"
    data = "b2YgYSBmaWxlIHRoYXQgbm9ib2R5IHJlYWRz"  # SECRET in base64
    for part in (
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "image_url", "image_url": address},
        {"type": "file", "file": {"file_id": address}},
        {"type": "file", "file": {"file_data": address}},
        {"type": "input_audio", "input_audio": {"data": address, "format": "wav"}},
        {"type": "document", "source": {"type": "url", "url": address}},
    ):
        content = [{"type": "text", "text": "hi"}, part]
        got = sent(provider, name, {"messages": [{"role": "user", "content": content}]})
        assert SECRET not in str(got)
        assert data not in str(got)


def test_what_is_sent_on_and_what_is_not() -> None:
    sent_on = (
        "top_k min_p guided_json guided_choice stop_token_ids min_tokens skip_special_tokens "
        "chat_template_kwargs repetition_penalty ignore_eos structured_outputs grammar documents "
        "add_generation_prompt truncate_prompt_tokens n_predict mirostat_tau num_ctx keep_alive"
    )
    assert [name for name in sent_on.split() if is_barred(name)] == []
    for name in ("apiBase", "api-base", "API_BASE", "my_api_key", "_x", "", "systemInstruction"):
        assert is_barred(name)
