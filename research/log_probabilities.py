"""Which providers take `logprobs`, by LiteLLM's own list: the table of docs/second-look.md.

    python -m thriftroute.research.log_probabilities

The list says what LiteLLM lets through, not what comes back: `thriftroute models --probe` asks.
"""

from collections.abc import Iterator

from rich.console import Console

from ..providers.completion import parameters_of, quiet

ASKED = {
    "OpenAI": ("openai/gpt-4o", "openai/gpt-5", "openai/o3"),
    "Azure": ("azure/gpt-4o",),
    "Anthropic": ("anthropic/claude-sonnet-4-5",),
    "Gemini": ("gemini/gemini-2.5-flash",),
    "Vertex AI": ("vertex_ai/gemini-2.5-flash",),
    "Bedrock": ("bedrock/us.amazon.nova-pro-v1:0",),
    "vLLM": ("hosted_vllm/any",),
    "Ollama": ("ollama_chat/any",),
    "llama.cpp and any other server": ("openai/any",),
    "LM Studio": ("lm_studio/any",),
    "Groq": ("groq/llama-3.3-70b-versatile",),
    "Together": ("together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo",),
    "Fireworks": ("fireworks_ai/any",),
    "OpenRouter": ("openrouter/any",),
    "Mistral": ("mistral/mistral-large-latest",),
    "DeepSeek": ("deepseek/deepseek-chat",),
    "xAI": ("xai/grok-4",),
    "Cohere": ("cohere_chat/command-r",),
}


def rows() -> Iterator[tuple[str, str, bool]]:
    """(provider, model, whether LiteLLM takes `logprobs` for it)."""
    for provider, models in ASKED.items():
        for model in models:
            prefix, _, name = model.partition("/")
            with quiet():
                takes = "logprobs" in parameters_of(name, prefix)
            yield provider, model, takes


def main() -> None:
    """Print the rows as Markdown."""
    for provider, model, takes in rows():
        line = f"| {provider} | `{model}` | {'yes' if takes else 'no'} |"
        Console().print(line, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    main()
