"""Would routing pay on what went through a LiteLLM proxy? From its database to a verdict.

The proxy must keep texts: `general_settings.store_prompts_in_spend_logs: true`. Export its log, one
JSON object a line, and give it to this script, which writes logs.jsonl and labels.jsonl beside it:

    psql -At "$DATABASE_URL" -c 'select row_to_json(t) from "LiteLLM_SpendLogs" t' > spend.jsonl
    python examples/audit_spend_logs.py spend.jsonl

As it stands, a local provider plays the weak model and the judge by made-up rules, for nothing. For
a real audit take PracticeProvider and PLAYED out and set the three names, as LiteLLM has them; the
answers and the judge then cost at most MAX_USD.
"""

import os
import subprocess
import sys
from pathlib import Path

from thriftroute.testing.practice import PracticeProvider

STRONG, WEAK, JUDGE = "openai/strong-sim", "openai/weak-sim", "openai/judge-sim"
LOGGED_AS = "strong-sim"  # the strong model, as the log names it: its answers are not paid again
PRICES = ["--strong-price", "2.5,10", "--weak-price", "0.15,0.6"]  # else LiteLLM's
PLAYED = ["--judge-price", "2.5,10"]
ROWS, MAX_USD = "80", "5"


def thriftroute(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "thriftroute.cli", *arguments], check=True)


spend = Path(sys.argv[1])
logs, labels = str(spend.with_name("logs.jsonl")), str(spend.with_name("labels.jsonl"))
pair = ["--strong", STRONG, "--weak", WEAK, *PRICES]
with PracticeProvider() as provider:
    os.environ |= {"OPENAI_API_BASE": provider.url, "OPENAI_API_KEY": "practice"}
    # Distinct requests, e-mail addresses and the like masked before anything leaves this machine.
    thriftroute("logs", "import", str(spend), "--format", "litellm", "--out", logs, "--mask")
    asked = ["--judge", JUDGE, "--logged-as", LOGGED_AS, "--n", ROWS, "--max-usd", MAX_USD]
    thriftroute("label", logs, "--out", labels, *pair, *asked, *PLAYED)
    # The built-in router has seen none of these prompts, so that all of them may measure it.
    thriftroute("audit", "--router", "mf", "--data", labels, *pair, "--min-quality", "0.9")
