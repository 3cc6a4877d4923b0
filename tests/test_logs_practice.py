"""The log that ships, its rules, and the provider that answers by them."""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from thriftroute.data.logs.importing import Imported, ImportSettings, read_entries
from thriftroute.labels.judge import RUBRIC, JudgeVerdict, parse, question
from thriftroute.research import sample_log
from thriftroute.testing import practice
from thriftroute.testing.practice import DIFFICULTIES, LOG, PracticeProvider
from thriftroute.testing.stub_faults import Fault


def ask(provider: PracticeProvider, model: str, messages: Any) -> httpx.Response:
    body = {"model": model, "messages": list(messages)}
    return httpx.post(f"{provider.url}/chat/completions", json=body, timeout=300)


def test_the_log_is_what_its_rules_make(tmp_path: Path) -> None:
    sample_log.make(tmp_path)
    for path in (LOG, DIFFICULTIES):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_log_has_what_logs_have() -> None:
    result = Imported()
    rows = list(read_entries([LOG], ImportSettings(), result))
    assert result.formats == {str(LOG): "openai"}
    assert result.entries == 1500 and set(result.left_out) == {"failed", "not a chat"}
    assert 0.8 < len({row.prompt for row in rows}) / len(rows) < 0.95
    assert sum("@example.com" in row.prompt for row in rows) > 10
    assert {row.model for row in rows} == {"strong-sim"}
    assert all(row.answer and row.time and row.cost_usd and row.output_tokens for row in rows)
    assert {row.feedback for row in rows} == {None, 0.0, 1.0}
    assert "VERDICT" not in LOG.read_text() and "weak-sim" not in LOG.read_text()


def test_wins_are_as_often_as_the_comparisons_have_them() -> None:
    wins = Counter(
        (gap > 2.55) - (gap < -2.55)
        for _, _, messages in sample_log.requests(1500)
        for strong in [practice.quality("strong-sim", messages)]
        for gap in [strong - practice.quality("weak-sim", messages)]
    )
    assert 0.30 < wins[1] / 1500 < 0.42
    assert 0.08 < wins[-1] / 1500 < 0.18


def test_what_is_masked_is_as_hard_as_before() -> None:
    requests = sample_log.requests(500)
    _, difficulty, messages = next(r for r in requests if "@" in r[2][-1]["content"])
    masked = [dict(m) for m in messages]
    words = masked[-1]["content"].split(practice.CONTACT)[0]
    masked[-1]["content"] = f"{words} Reach me at [email]"
    assert practice.difficulty_of(masked) == difficulty
    assert practice.answer("weak-sim", masked) == practice.answer("weak-sim", messages)


def test_the_judge_goes_by_quality_and_not_by_place() -> None:
    verdicts = []
    for _, _, messages in sample_log.requests(400):
        texts = [practice.answer(m, messages) for m in ("strong-sim", "weak-sim")]
        first, second = (
            parse(practice.verdict(str(question(RUBRIC, messages, *pair)[-1]["content"])))
            for pair in (texts, texts[::-1])
        )
        assert first is not None and second is not None
        verdicts.append(JudgeVerdict(first, 1.0 - second))
    assert 0.85 < sum(v.strong_first == v.weak_first for v in verdicts) / 400 < 0.97
    assert 0.25 < sum(v.strong == 1.0 for v in verdicts) / 400 < 0.45
    assert parse(practice.verdict("nothing to compare")) == 0.5


def test_the_provider_says_what_the_rules_say() -> None:
    messages = next(sample_log.requests(1))[2]
    with PracticeProvider() as provider:
        for model in ("strong-sim", "weak-sim"):
            body = ask(provider, model, messages).json()
            assert body["choices"][0]["message"]["content"] == practice.answer(model, messages)
            usage = body["usage"]
            assert (usage["prompt_tokens"], usage["completion_tokens"]) == practice.tokens(
                model, messages
            )
        shown = question(RUBRIC, messages, "quality 9.0", "quality 1.0")
        said = ask(provider, "judge-sim", shown).json()["choices"][0]["message"]["content"]
        assert parse(said) == 1.0
        assert "Answer of other" in ask(provider, "other", messages).text
        provider.fail(Fault(status=503))
        assert ask(provider, "weak-sim", messages).status_code == 503


def test_the_command_serves_until_it_is_told_to_stop() -> None:
    command = [sys.executable, "-m", "thriftroute.testing.practice", "--port"]
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split()[-1]
        assert json.loads(httpx.get(f"{url}/models").text)["data"][0]["id"] == "strong-sim"
        taken = subprocess.run(
            [*command, url.split(":")[-1].removesuffix("/v1")],
            capture_output=True,
            text=True,
            check=False,
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert taken.returncode == 1
    assert "cannot be used" in taken.stderr
