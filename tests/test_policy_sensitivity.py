import json
from typing import Any

import pytest
from thriftroute.errors import ConfigError
from thriftroute.providers.pii import passes_luhn, spans
from thriftroute.serve.config.settings import KINDS, SensitivitySettings
from thriftroute.serve.errors import RefusedError
from thriftroute.serve.policy.sensitivity import Sensitivity
from thriftroute.tests.helpers.asking import asked, model

MODELS = {
    m.name: m for m in (model("open"), model("safe", tags=["secure"]), model("eu", tags=["eu"]))
}
DETECTOR = Sensitivity(SensitivitySettings(actions=dict.fromkeys(KINDS, "mask")))


def sensitivity(**settings: Any) -> Sensitivity:
    return Sensitivity(SensitivitySettings.model_validate(settings))


def pieces(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for piece in DETECTOR.find(text):
        found.setdefault(piece.kind, []).append(text[piece.start : piece.end])
    return found


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("email", "bob@example.com"),
        ("email", "first.last+tag@mail.example.co.uk"),
        ("email", "jürgen@müller.de"),
        ("phone", "+49 30 1234567"),
        ("phone", "+44 (0)20 7946 0958"),
        ("phone", "+1-212-555-0123"),
        ("phone", "(212) 555-0123"),
        ("phone", "212-555-0123"),
        ("phone", "020 7946 0958"),
        ("phone", "0171/2345678"),
        ("card", "4111 1111 1111 1111"),
        ("card", "5500-0000-0000-0004"),
        ("card", "378282246310005"),
        ("card", "3782 822463 10005"),
        ("card", "4111111111111111"),
        ("key", "sk-proj-abcdefghijklmnopqrstuvwxyz012345"),
        ("key", "AKIAIOSFODNN7EXAMPLE"),
        ("key", "ghp_" + "a1B2" * 9),
        ("key", "xoxb-1234567890-abcdef"),
        ("key", "AIza" + "a-1_B" * 7),
        ("key", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"),
        ("key", "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAK=\n-----END RSA PRIVATE KEY-----"),
    ],
)
def test_pieces_that_are_found_whole(kind: str, text: str) -> None:
    assert pieces(f"Here: {text}, as you asked.") == {kind: [text]}
    assert pieces(f"({text})")[kind] == [text]


@pytest.mark.parametrize(
    "text",
    [
        "at 3 @ noon, see @handle and user@localhost",
        "on 01-02-2024 or 01.02.2024, from 2019-2020",
        "4111 1111 1111 1112",  # fails Luhn's check
        "the numbers 1000000 2000000 3000000 and 3.14159265358979",
        "commit 4111111111111111111111111111111111111111",
        "version 1.2.3.4, IP 192.168.100.200, ISBN 978-3-16-148410-0",
        "ask-me-anything-about-the-long-road, task_live_now, sk-short",
        "f(0 1 2 3) + [0, 1, 2]",
    ],
)
def test_what_looks_alike_is_left_alone(text: str) -> None:
    assert pieces(text) == {}


@pytest.mark.parametrize("piece", ["a", "1", "1 ", "+1", "0/", "a@", "a@a.", "eyJa.", "sk-", "4 1"])
def test_long_texts_of_any_kind_come_to_an_end(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    assert pieces(f"{text} bob@example.com")["email"][-1] == "bob@example.com"


def test_luhn() -> None:
    assert passes_luhn("4111-1111-1111-1111")
    assert passes_luhn("79927398713")  # the standard's own example
    assert not passes_luhn("79927398710")


def test_all_messages_are_looked_at() -> None:
    call = {"id": "1", "function": {"name": "mail", "arguments": '{"to": "bob@example.com"}'}}
    histories: list[list[dict[str, Any]]] = [
        [{"role": "system", "content": "You work for bob@example.com"}],
        [{"role": "assistant", "content": None, "tool_calls": [call]}],
        [{"role": "user", "content": [{"type": "text", "text": "bob@example.com"}]}],
    ]
    judge = sensitivity(actions={"email": "mask"})
    for history in histories:
        request = asked("thanks", messages=[*history, {"role": "user", "content": "thanks"}])
        assert judge.judge(request, ["open"], MODELS).kinds == ("email",)


def test_without_actions_nothing_is_looked_for() -> None:
    judge = sensitivity()
    verdict = judge.judge(asked("bob@example.com"), ["open"], MODELS)
    assert (judge.active, verdict.kinds, verdict.mask) == (False, (), False)
    assert judge.mask("bob@example.com") == "bob@example.com"


def test_mask_leaves_the_models_and_asks_for_masked_records() -> None:
    judge = sensitivity(actions={"email": "mask", "card": "mask"})
    verdict = judge.judge(asked("I am bob@example.com"), ["open", "safe"], MODELS)
    assert (verdict.allowed, verdict.mask) == (("open", "safe"), True)
    assert verdict.outcome == "email: masked in records"
    clean = judge.judge(asked("hello"), ["open"], MODELS)
    assert (clean.mask, clean.outcome) == (False, "nothing found")


def test_secure_leaves_the_models_with_the_tag() -> None:
    judge = sensitivity(actions={"phone": "secure", "email": "mask"})
    verdict = judge.judge(asked("call +49 30 1234567"), ["open", "safe", "eu"], MODELS)
    assert (verdict.allowed, verdict.mask) == (("safe",), True)
    own = sensitivity(actions={"phone": "secure"}, tag="eu")
    assert own.judge(asked("call +49 30 1234567"), ["open", "safe", "eu"], MODELS).allowed == (
        "eu",
    )


def test_secure_without_such_a_model_is_refused() -> None:
    judge = sensitivity(actions={"phone": "secure"})
    with pytest.raises(
        RefusedError, match=r"sensitive data \(phone\), which only models tagged"
    ) as e:
        judge.judge(asked("call +49 30 1234567"), ["open", "eu"], MODELS)
    assert (e.value.status, e.value.code) == (400, "no_secure_model")
    assert "1234567" not in str(e.value)


def test_block_wins_over_the_others_and_names_only_what_is_blocked() -> None:
    judge = sensitivity(actions={"card": "block", "email": "secure"})
    with pytest.raises(RefusedError, match="must not be sent to a model: card;") as e:
        judge.judge(asked("bob@example.com 4111111111111111"), ["open", "safe"], MODELS)
    assert (e.value.status, e.value.code) == (400, "sensitive_data")
    assert "4111" not in str(e.value)


def test_own_patterns_are_further_kinds() -> None:
    judge = sensitivity(actions={"order": "block"}, patterns={"order": r"ACME-\d{4}"})
    with pytest.raises(RefusedError, match="order"):
        judge.judge(asked("about ACME-1234"), ["open"], MODELS)
    assert judge.mask("about ACME-1234.") == "about [order]."


def test_an_own_pattern_that_takes_too_long_counts_as_found() -> None:
    judge = sensitivity(actions={"slow": "block"}, patterns={"slow": "(x+x+)+y"})
    with pytest.raises(RefusedError, match="slow"):
        judge.judge(asked("x" * 100_000), ["open"], MODELS)


def test_an_own_pattern_that_does_not_compile_is_named() -> None:
    with pytest.raises(ValueError, match=r"patterns\.bad\n.*not a regular expression"):
        sensitivity(actions={"bad": "mask"}, patterns={"bad": "["})


def test_a_kind_that_nobody_tells_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"sensitivity\.actions: there is no kind 'e-mail'"):
        sensitivity(actions={"e-mail": "mask"})


def test_mask_replaces_every_piece_of_the_configured_kinds() -> None:
    judge = sensitivity(actions={"email": "mask", "card": "block"})
    text = "bob@example.com and eve@example.com pay 4111 1111 1111 1111; call +49 30 1234567"
    assert judge.mask(text) == "[email] and [email] pay [card]; call +49 30 1234567"


def test_pieces_that_overlap_are_masked_once_and_whole() -> None:
    judge = sensitivity(
        actions={"first": "mask", "second": "mask", "inner": "mask"},
        patterns={"first": "abcd", "second": "cdef", "inner": "bc"},
    )
    assert judge.mask("1abcdef2") == "1[first]2"


@pytest.mark.parametrize("text", ["bob@example.com", "212-555-0123", "4111 1111 1111 1111"])
def test_the_start_of_a_line_in_written_json(text: str) -> None:
    (found,) = pieces(json.dumps({"body": f"Dear all,\n{text}\nBye"})).values()
    assert found == [text]


def test_messages_are_masked_part_by_part() -> None:
    judge = sensitivity(actions={"phone": "mask", "email": "mask"})
    messages = [
        {"role": "user", "content": "call\n212-555-0123"},
        {"role": "user", "content": [{"type": "text", "text": "bob@example.com"}, {"n": 1}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{}"}}]},
    ]
    assert judge.masked(messages) == [
        {"role": "user", "content": "call\n[phone]"},
        {"role": "user", "content": [{"type": "text", "text": "[email]"}, {"n": 1}]},
        messages[2],
    ]


def test_what_is_nested_too_deep_is_left_out() -> None:
    value: Any = "bob@example.com"
    for _ in range(900):
        value = [value]
    assert "bob" not in json.dumps(sensitivity(actions={"email": "mask"}).masked(value))


SECRET = "write to bob@example.com"
BESIDE: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "hi", "name": SECRET}]},
    {"messages": [{"role": "assistant", "content": "hi", "refusal": SECRET}]},
    {"messages": [{"role": "assistant", "content": "hi", "reasoning_content": SECRET}]},
    {"messages": [{"role": "user", "content": "hi", "odd": [{"deep": {SECRET: 1}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "file", "file": {"filename": SECRET}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "document", "source": {"x": SECRET}}]}]},
    {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "http://x/?to=bob@example.com"}}
                ],
            }
        ]
    },
    {"tools": [{"type": "function", "function": {"name": "f", "description": SECRET}}]},
    {"functions": [{"name": "f", "parameters": {"properties": {SECRET: {}}}}]},
    {"response_format": {"type": "json_schema", "json_schema": {"description": SECRET}}},
    {"prediction": {"type": "content", "content": SECRET}},
    {"stop": [SECRET]},
    {"user": "bob@example.com"},
    {"contents": [{"parts": [{"text": SECRET}]}]},
    {"anything": {"else": [SECRET]}},
    {SECRET: True},
]


@pytest.mark.parametrize("body", BESIDE)
def test_all_text_that_is_sent_is_judged(body: dict[str, Any]) -> None:
    judge = sensitivity(actions={"email": "block"}).judge
    request = asked("hi", messages=body.get("messages"), body=body)
    with pytest.raises(RefusedError, match="must not be sent to a model: email"):
        judge(request, tuple(MODELS), MODELS)


def test_a_card_is_found_as_a_number_too_and_masked() -> None:
    card = 4111111111111111
    shield = sensitivity(actions={"card": "mask", "email": "mask"})
    request = asked(messages=[{"role": "user", "content": "hi", "odd": card}])
    assert shield.judge(request, tuple(MODELS), MODELS).mask
    hidden = shield.masked([{"bob@example.com": [card, 4111, True, 4111111111111112]}])
    assert hidden == [{"[email]": ["[card]", 4111, True, 4111111111111112]}]


def test_what_images_and_files_hold_is_not_read() -> None:
    shield = sensitivity(actions={"word": "block"}, patterns={"word": "AAAA"})
    data = "A" * 4000
    for part in (
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{data}"}},
    ):
        request = asked(messages=[{"role": "user", "content": [part]}])
        assert shield.judge(request, tuple(MODELS), MODELS).kinds == ()
    for part in (
        {"type": "text", "text": data},
        {"type": "image_url", "image_url": {"url": f"data:text/plain,{data} x"}},
    ):
        request = asked(messages=[{"role": "user", "content": [part]}])
        with pytest.raises(RefusedError):
            shield.judge(request, tuple(MODELS), MODELS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_patterns_find_the_same_in_the_server_as_in_the_runtime(kind: str) -> None:
    text = (
        "+49 30 1234567 (212) 555-0123 030) 12 x4111111111111111 4111 1111 1111 1111 a@b.example "
        "\\nbob@example.com sk-proj-abcdefghijklmnopqrst AKIAIOSFODNN7EXAMPLE 5500-0000-0000-0004"
    )
    found = [(p.start, p.end) for p in sensitivity(actions={kind: "mask"}).find(text)]
    assert found == spans(kind, text) != []
