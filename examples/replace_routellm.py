"""RouteLLM's quickstart here: another import, and a share of strong calls for a copied threshold.

    python examples/replace_routellm.py

A local stand-in answers, so that this runs without a key. With real models leave `api_base` and
`api_key` out, and name the models as LiteLLM does: "gpt-4o", "anthropic/claude-haiku-4-5".
"""

from thriftroute import (
    Controller,
    decision_of,
)  # before: from routellm.controller import Controller
from thriftroute.testing.stub import StubProvider

PROMPTS = [
    "What is the capital of France?",
    "Let n be odd and A an n x n integer matrix with zero diagonal and A + A^T = 0 mod 3. "
    "Prove that 3 divides det A.",
]

with (
    StubProvider() as provider,
    Controller(
        routers=["mf"],  # no checkpoint_path: the built-in bundle; no paid call for embeddings
        strong_model="openai/strong",
        weak_model="openai/weak",
        api_base=provider.url,
        api_key="any",
    ) as client,
):
    for prompt in PROMPTS:
        answer = client.chat.completions.create(
            # Before: model="router-mf-0.11593". That form works, but a threshold holds for the
            # router that it was calibrated on: say the share of strong calls instead.
            model="router-mf",
            strong_share=0.3,
            messages=[{"role": "user", "content": prompt}],
        )
        decision = decision_of(answer)
        print(f"{answer.choices[0].message.content}  {decision.reason}")
    print(client.batch_calculate_win_rate(PROMPTS, router="mf"))
