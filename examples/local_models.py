"""Two models on GPUs of your own: prices in GPU seconds, and so the saving in GPU seconds too.

    python examples/local_models.py

Prices are only compared and added up. Any unit does, if both models have the same: here GPU seconds
for a million tokens, which is GPUs * 1,000,000 / (tokens a second). Measure the speeds at the load
that you have; those below are made up, as the two models are, by a local stand-in. For your own
servers leave StubProvider out and give their address to --api-base; servers at two addresses need a
thriftroute.yaml (`thriftroute init`).
"""

import subprocess
import sys
import tempfile

import httpx
from thriftroute.testing.stub import StubProvider

MILLION = 1_000_000
# model: GPUs, tokens a second that all of them read, and write
SPEEDS = {"openai/large-70b": (4, 12_000, 900), "openai/small-8b": (1, 25_000, 4_000)}
PROMPTS = [
    "Which day comes after Monday?",
    "Make this friendlier: send me the file.",
    "Translate 'good morning' into Spanish.",
    "Prove that the square root of 2 is irrational, and generalise to every prime.",
]


def price(model: str) -> tuple[float, float]:
    """GPU seconds for a million tokens: read, written."""
    gpus, read, written = SPEEDS[model]
    return gpus * MILLION / read, gpus * MILLION / written


def ask(url: str, prompt: str) -> tuple[str, float, float]:
    """Who answered, what that took, and what the large model would have: GPU seconds."""
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=300).raise_for_status()
    usage, (read, written) = answer.json()["usage"], price("openai/large-70b")
    large = usage["prompt_tokens"] * read + usage["completion_tokens"] * written
    told = answer.headers
    return told["x-thriftroute-choice"], float(told["x-thriftroute-cost"]), large / MILLION


large, small = SPEEDS
command = [sys.executable, "-m", "thriftroute.cli", "serve", "--port", "0", "--strong-share", "0.3"]
command += ["--strong-model", large, "--weak-model", small]
command += ["--strong-price", "{},{}".format(*price(large))]
command += ["--weak-price", "{},{}".format(*price(small))]
with StubProvider() as provider, tempfile.TemporaryDirectory() as folder:
    command += ["--api-base", provider.url]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as server:
        try:
            line = server.stderr.readline() if server.stderr else ""
            if " serves " not in line:
                sys.exit(f"the server did not start: {line}")
            url = line.split(" serves ")[1].split()[0]
            asked = [ask(url, prompt) for prompt in PROMPTS]
        finally:
            server.terminate()
strong = sum(choice == "strong" for choice, _, _ in asked)
spent, always = sum(cost for _, cost, _ in asked), sum(cost for _, _, cost in asked)
print(f"{strong} of {len(asked)} went to {large}")
print(f"{spent:.4f} GPU seconds instead of {always:.4f}")
