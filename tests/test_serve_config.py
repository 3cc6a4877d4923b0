"""thriftroute.yaml: what it may say, and what each mistake is answered with."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thriftroute.errors import ConfigError
from thriftroute.serve.config.loader import check, config_from_flags, load_config, pool_of
from thriftroute.serve.config.settings import Config
from thriftroute.serve.config.template import TEMPLATE

POOL = """\
models:
  - name: big
  - name: small
    tags: [eu]
strong: big
weak: small
"""
HASH = "ab" * 32


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "thriftroute.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def load(tmp_path: Path, text: str, **environ: str) -> Config:
    return load_config(write(tmp_path, text), environ)


def errors(tmp_path: Path, text: str, **environ: str) -> list[str]:
    """Each error as 'line: key: what', without the file's name."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ)
    lines = str(caught.value).splitlines()
    assert all(line.startswith((f"{path}:", "... and ")) for line in lines)
    return [line.removeprefix(f"{path}:").strip() for line in lines]


def error(tmp_path: Path, text: str, **environ: str) -> str:
    found = errors(tmp_path, text, **environ)
    assert len(found) == 1, found
    return found[0]


def test_the_smallest_config(tmp_path: Path) -> None:
    config = load(tmp_path, POOL)
    assert [model.name for model in config.models] == ["big", "small"]
    assert config.models[1].tags == {"eu"}
    assert (config.router.name, config.server.port) == ("mf", 6060)


def test_an_error_names_file_line_key_what_was_expected_and_what_was_found(tmp_path: Path) -> None:
    text = POOL.replace("tags: [eu]", "price:\n      output: 1\n      input: abc")
    assert error(tmp_path, text) == "6: models[1].price.input: expected a number >= 0, got 'abc'"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("router: {threshold: 2}", "router.threshold: expected a number >= 0 and <= 1, got 2"),
        ("router: {threshold: .nan}", "router.threshold: expected a number >= 0 and <= 1, got nan"),
        ("router: {threshold: yes}", "router.threshold: expected a number >= 0 and <= 1, got true"),
        ("router: {context: all}", "expected one of last, conversation, full, got 'all'"),
        ("router: {thresold: 1}", "router.thresold: unknown key; did you mean 'threshold'?"),
        ("router: mf", "router: expected a mapping with name, checkpoint_path, "),
        ("calls: {retries: 1.5}", "calls.retries: expected a whole number >= 0 and <= 10, got 1.5"),
        ("calls: {timeout_s: 0}", "calls.timeout_s: expected a number > 0, got 0"),
        ("calls: {timeout_s: .inf}", "calls.timeout_s: expected a number > 0, got inf"),
        ("calls: {fallbacks: 7}", "calls.fallbacks: expected true or false, got 7"),
        ("cache: {max_entries: -1}", "expected a whole number >= 1, got -1"),
        ("alerts: {at: 0.5}", "alerts.at: expected a list, got 0.5"),
        ("alerts: {at: [0.5, x]}", "alerts.at[1]: expected a number >= 0 and <= 1, got 'x'"),
        ("server: {host: 1}", "server.host: expected text, got 1; put it in quotes"),
        (
            "server: {port: [1]}",
            "server.port: expected a whole number >= 0 and <= 65535, got a list",
        ),
        ("experiment: {name: a, share: 2}", "share: expected a number > 0 and < 1, got 2"),
        ("zzz: 1", "zzz: unknown key; known are models, strong, weak, router, "),
        ("rules: [{name: a}]", "rules[0]: give exactly one of model, threshold, block"),
        ("rules: [{threshold: 1}]", "rules[0].name: missing; expected text of 1 to 200 characters"),
        ("keys: [{name: a, sha256: x}]", "keys[0].sha256: expected 64 small hexadecimal digits"),
        (
            "tiers: {free: {budgets: [{}]}}",
            "tiers.free.budgets[0]: give exactly one of usd, tokens",
        ),
        ("tiers: {free: }", "tiers.free: expected a mapping with weak_only, models, "),
        ("tiers: {'a b': 3}", "tiers['a b']: expected a mapping with weak_only, models, "),
        ("router: {quality: {high: 1, best: 2}}", "best: expected one of low, medium, high"),
        ("rules: [{name: n, block: b, when: {languages: [no]}}]", "got false; put it in quotes"),
        ("sticky_s: 2024-01-01", "sticky_s: expected a number >= 0, got 2024-01-01"),
        ("sticky_s: 2024-13-01", "sticky_s: cannot be read: month must be in 1..12"),
        (f"sticky_s: 1{':00' * 100_000}", "sticky_s: a number of 300,001 characters; put it in"),
        (f"sticky_s: 1{':00' * 3000}.5", "sticky_s: a number of 9,003 characters"),
        (f"sticky_s: 0x{'f' * 5000}", "sticky_s: a number of 5,002 characters"),
        (f"sticky_s: {'9' * 5000}", "sticky_s: a number of 5,000 characters"),
        ("sticky_s: !!bool maybe", "sticky_s: cannot be read as tag:yaml.org,2002:bool"),
        ("sticky_s: !!timestamp x", "sticky_s: cannot be read as tag:yaml.org,2002:timestamp"),
    ],
)
def test_values_that_do_not_fit(tmp_path: Path, more: str, expected: str) -> None:
    found = error(tmp_path, f"{POOL}{more}\n")
    assert found.startswith("7: ")
    assert expected in found


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("router: {threshold: 0.3, strong_share: 0.3}", "router.strong_share: give threshold or"),
        ("router: {quality: {low: 0.5}}", "router.quality: expected all of low, medium and high"),
        ("router: {quality: {low: 1, medium: 0.5, high: 0.8}}", "expected low <= medium <= high"),
        ("router: {strategy: bands}", "router.strategy: bands needs router.bands"),
        ("router: {bands: [{name: a, model: big}]}", "router.bands: not used by strategy pair"),
        ("rules: [{name: a, model: huge}]", "rules[0].model: no model is named 'huge'; there are"),
        ("rules: [{name: a, threshold: 1, when: {regex: '('}}]", "not a regular expression: "),
        ("rules: [{name: a, threshold: 1, when: {tiers: [gold]}}]", "no tier is named 'gold'"),
        ("rules: [{name: a, threshold: 1, when: {languages: [ger]}}]", "got 'ger'"),
        (
            "rules: [{name: a, threshold: 1, when: {min_tokens: 9, max_tokens: 8}}]",
            "rules[0].when: min_tokens is more than max_tokens",
        ),
        (
            "rules: [{name: a, threshold: 1}, {name: b, model: big}]",
            "rules[0]: has no `when`, so it always holds and no rule after it is reached",
        ),
        ("rules: [{name: a, model: big}, {name: a, block: b}]", "the name 'a' is taken"),
        ("sensitivity: {actions: {mail: mask}}", "expected one of email, phone, card, key"),
        ("sensitivity: {actions: {card: secure}}", "needs a model with the tag 'secure'"),
        ("sensitivity: {patterns: {badge: x}}", "patterns.badge: does nothing: add"),
        (
            "sensitivity: {patterns: {badge: '['}, actions: {badge: mask}}",
            "sensitivity.patterns.badge: not a regular expression",
        ),
        (
            "sensitivity: {patterns: {card: x}, actions: {card: mask}}",
            "'card' is built in: give your own pattern another name",
        ),
        ("tiers: {a: {models: [huge]}}", "tiers.a.models: no model is named 'huge'"),
        ("tiers: {a: {models: []}}", "tiers.a.models: no model is left"),
        ("tiers: {a: {models: [big], weak_only: true}}", "weak_only, but 'small' is not among"),
        (
            f"keys: [{{name: a, sha256: {'a' * 64}, tenant: default}},"
            f" {{name: b, sha256: {'b' * 64}}}]",
            "keys[0].tenant: 'default' is the tenant of keys without one",
        ),
        ("default_tier: gold", "default_tier: no tier is named 'gold'; there are none"),
        (f"keys: [{{name: a, sha256: {HASH}, tier: gold}}]", "keys[0].tier: no tier is named"),
        (
            f"keys: [{{name: a, sha256: {HASH}}}, {{name: b, sha256: {HASH}}}]",
            "keys[1].sha256: the same key as 'a'",
        ),
        ("cache: {backend: redis}", "cache.backend: redis needs redis_url"),
        ("cache: {semantic: {enabled: true}}", "cache.semantic.enabled: needs a cache"),
        (
            "{tiers: {a: {budgets: [{usd: 1}]}}, server: {workers: 2}}",
            "server.workers: more than one share budgets only through redis_url",
        ),
        ("{sticky_s: 60, server: {workers: 2}}", "share sessions only through redis_url"),
        ("redis_url: localhost", "redis_url: expected a URL that starts with redis:// or rediss"),
        ("otel_endpoint: 'http:/x'", "otel_endpoint: expected a URL"),
        ("records: {url: a.db}", "records.url: expected a URL that starts with sqlite:// or"),
        ("alerts: {webhook: 'ftp://[x'}", "alerts.webhook: expected a URL"),
    ],
)
def test_parts_that_do_not_fit_each_other(tmp_path: Path, more: str, expected: str) -> None:
    more = more[1:-1].replace(", server", "\nserver") if more.startswith("{") else more
    found = error(tmp_path, f"{POOL}{more}\n")
    assert found.startswith("8: " if "\n" in more else "7: ")
    assert expected in found


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("models: []\nstrong: a\nweak: a", "1: models: expected a list with at least one entry"),
        ("models:\n- name: a\nstrong: a\nweak: b", "4: weak: no model is named 'b'; there are a"),
        ("models: [{name: a}, {name: a}]\nstrong: a\nweak: a", "1: models[1].name: the name 'a'"),
        ("models: [{name: auto}]\nstrong: auto\nweak: auto", "'auto' means the router"),
        ("models: [{name: router-x}]\nstrong: router-x\nweak: router-x", "means the router"),
        ("models: [{name: a, api_base: x}]\nstrong: a\nweak: a", "models[0].api_base: expected a"),
        (
            "models: [{name: a, params: {api_key: x}}]\nstrong: a\nweak: a",
            "models[0].params.api_key: this belongs beside `params`",
        ),
        (
            "models: [{name: a, params: {stream: true}}]\nstrong: a\nweak: a",
            "models[0].params.stream: this belongs in the request",
        ),
        (
            "models: [{name: a, context_window: 9, max_output_tokens: 10}]\nstrong: a\nweak: a",
            "models[0].max_output_tokens: more than context_window, 9, which holds the prompt too",
        ),
        ("models: [a]\nstrong: a\nweak: a", "1: models[0]: expected a mapping with name, model"),
        ("models: [{name: a}]\nstrong: a", "1: weak: missing; expected text"),
    ],
)
def test_pools_that_cannot_be(tmp_path: Path, pool: str, expected: str) -> None:
    assert expected in error(tmp_path, pool)


BANDS = POOL + "router:\n  strategy: bands\n  bands:\n"


@pytest.mark.parametrize(
    ("bands", "expected"),
    [
        ("- {name: a, model: big, below: 0.5}", "10: router.bands[0].below: the last band takes"),
        (
            "- {name: a, model: big}\n  - {name: b, model: small}",
            "10: router.bands[0]: missing `below`: only the last band has no limit",
        ),
        (
            "- {name: a, model: big, below: 0.5}\n  - {name: b, model: small, below: 0.5}\n"
            "  - {name: c, model: big}",
            "11: router.bands[1].below: expected more than 0.5, the band before ends there",
        ),
        ("- {name: a, model: huge}", "10: router.bands[0].model: no model is named 'huge'"),
        (
            "- {name: a, model: big, below: 0.5}\n  - {name: a, model: small}",
            "11: router.bands[1].name: the name 'a' is taken",
        ),
    ],
)
def test_bands_that_do_not_follow_each_other(tmp_path: Path, bands: str, expected: str) -> None:
    assert expected in error(tmp_path, f"{BANDS}  {bands}\n")


def test_four_bands_load(tmp_path: Path) -> None:
    rows = [("simple", 0.25), ("moderate", 0.5), ("complex", 0.75)]
    bands = "".join(f"  - {{name: {name}, model: small, below: {b}}}\n" for name, b in rows)
    config = load(tmp_path, f"{BANDS}{bands}  - {{name: reasoning, model: big}}\n")
    assert [band.below for band in config.router.bands] == [0.25, 0.5, 0.75, None]


def test_all_errors_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = POOL + "router: {threshold: 2}\nnope: 1\nserver:\n  port: x\nkeys: [{name: ''}]\n"
    found = errors(tmp_path, text)
    assert [line.split(": ")[:2] for line in found] == [
        ["7", "router.threshold"],
        ["8", "nope"],
        ["10", "server.port"],
        ["11", "keys[0].name"],
        ["11", "keys[0].sha256"],
    ]


def test_no_more_than_ten_errors_are_told(tmp_path: Path) -> None:
    found = errors(tmp_path, POOL + "".join(f"wrong{i}: 1\n" for i in range(15)))
    assert len(found) == 11
    assert found[-1] == "... and 5 more"


def test_keys_given_twice(tmp_path: Path) -> None:
    found = errors(tmp_path, POOL + "weak: big\nrouter:\n  name: mf\n  name: bert\n")
    assert found == [
        "7: weak: given before, in line 6",
        "10: router.name: given before, in line 9",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: expected a mapping with models, strong and weak"),
        ("- a\n", "1: expected a mapping"),
        ("a: [1\nb: 2\n", "2: not YAML: while parsing a flow sequence"),
        ("a: 1\n---\nb: 2\n", "2: not YAML: expected a single document"),
        ("a:\n  - {b: ${C}, d: 1}\n", 'inside of { } write "${NAME}", in quotes'),
        ("a: !!python/object:os.system {}\n", "1: "),
        ("a: &x [*x]\n", "an alias inside of what it stands for"),
        ("a: *x\n", "1: not YAML: found undefined alias"),
        ("{[1]: 2}\n", "1: a key must be text"),
        ("a: \x01\n", "1: not YAML: the character U+0001"),
        ("[" * 500 + "]" * 500, "1: nested too deep"),
        ("\n" + "[" * 500_000, "2: nested too deep"),
        ("\n".join(" " * i + "a:" for i in range(1000)), "50: nested too deep"),
        ("a: " + "x" * 2_000_000, "more than 2,000,000 characters"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
                for a, b in itertools.pairwise("abcdefg")
            ),
            "more than 100,000 values",
        ),
    ],
)  # fmt: skip
def test_files_that_are_no_config(tmp_path: Path, text: str, expected: str) -> None:
    assert any(expected in line for line in errors(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file; `thriftroute init --out "):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\n")
    with pytest.raises(ConfigError, match="cannot be read: 'utf-8'"):
        load_config(tmp_path / "latin.yaml")


def test_a_byte_order_mark_and_windows_lines_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + POOL.replace("\n", "\r\n").encode())
    assert load_config(path, {}).strong == "big"


def test_what_has_nothing_below_it_counts_as_not_there(tmp_path: Path) -> None:
    config = load(tmp_path, POOL + "rules:\nkeys:\nserver:\n  port:\nrecords:\n  url:\n")
    assert (config.rules, config.keys, config.server.port) == ((), (), 6060)
    assert config.records.url is None  # null means something there: nowhere


def test_merged_mappings_and_aliases(tmp_path: Path) -> None:
    text = (
        "models:\n- &one {name: big, api_base: 'http://a', timeout_s: 3}\n"
        "- {<<: *one, name: small}\nstrong: big\nweak: small\n"
    )
    config = load(tmp_path, text)
    assert [(m.name, m.api_base, m.timeout_s) for m in config.models] == [
        ("big", "http://a", 3.0),
        ("small", "http://a", 3.0),
    ]
    wrong = text.replace("timeout_s: 3", "timeout_s: x")
    assert [line.split(": ")[:2] for line in errors(tmp_path, wrong)] == [
        ["2", "models[0].timeout_s"],
        ["2", "models[1].timeout_s"],
    ]


def with_key(value: str, more: str = "") -> str:
    return POOL.replace("tags: [eu]", f"api_key: {value}") + more


@pytest.mark.parametrize(
    ("value", "environ", "expected"),
    [
        ("${KEY}", {"KEY": "abc"}, "abc"),
        ('"${KEY}-${OTHER}"', {"KEY": "a", "OTHER": "b"}, "a-b"),
        ("${KEY:-none}", {}, "none"),
        ("${KEY:-none}", {"KEY": ""}, "none"),
        ("${KEY:-none}", {"KEY": "abc"}, "abc"),
        ("${KEY:-}", {}, None),
        ("${KEY}", {"KEY": ""}, None),
        ("$${KEY}", {}, "${KEY}"),
        ("$KEY", {"KEY": "abc"}, "$KEY"),
        ("'${KEY}'", {"KEY": "${OTHER}: [x]"}, "${OTHER}: [x]"),  # filled in once, never YAML
    ],
)
def test_variables_of_the_environment(
    tmp_path: Path, value: str, environ: dict[str, str], expected: str | None
) -> None:
    assert load(tmp_path, with_key(value), **environ).models[1].api_key == expected


def test_variables_in_numbers_and_switches(tmp_path: Path) -> None:
    text = POOL + "server:\n  port: ${PORT}\n  public_metrics: ${PUBLIC}\n"
    server = load(tmp_path, text, PORT="7000", PUBLIC="true").server
    assert (server.port, server.public_metrics) == (7000, True)


def test_variables_only_in_values(tmp_path: Path) -> None:
    found = error(tmp_path, POOL + "${NAME}: 1\n", NAME="router")
    assert found.startswith("7: ['${NAME}']: unknown key")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("${KEY}", "the environment variable KEY is not set"),
        ("${KEY }", "expected ${NAME} or ${NAME:-default} ($${ for a plain ${)"),
        ("${", "expected ${NAME} or ${NAME:-default}"),
    ],
)
def test_variables_that_cannot_be_filled_in(tmp_path: Path, value: str, expected: str) -> None:
    found = error(tmp_path, with_key(f"'{value}'"))
    assert found.startswith("4: models[1].api_key: ")
    assert expected in found


def test_a_missing_variable_is_told_once_even_where_a_value_is_needed(tmp_path: Path) -> None:
    found = error(tmp_path, POOL.replace("weak: small", "weak: ${WEAK}"))
    assert found == "6: weak: the environment variable WEAK is not set"


def test_no_secret_is_repeated(tmp_path: Path) -> None:
    text = (
        "models:\n- {name: a, api_key: 123456, params: [hunter2]}\nstrong: a\nweak: a\n"
        "redis_url: 654321\nkeys: [{name: x, sha256: hunter2}]\n"
        "server: {port: '${TOKEN}', admin_sha256: hunter2}\nrecords: {url: 654321}\n"
    )
    found = "\n".join(errors(tmp_path, text, TOKEN="hunter2"))
    assert len(found.splitlines()) == 7
    assert not re.search("hunter2|123456|654321", found)
    assert (
        "server.port: expected a whole number >= 0 and <= 65535, got the value of ${TOKEN}" in found
    )


def test_urls_with_passwords_are_neither_told_nor_printed(tmp_path: Path) -> None:
    found = error(tmp_path, POOL + "records: {url: 'mysql://me:hunter2@db/x'}\n")
    assert "hunter2" not in found
    text = with_key("hunter2", "redis_url: redis://:hunter2@r\n") + (
        "records: {url: 'postgresql://me:hunter2@db/x'}\nalerts: {webhook: 'https://h/hunter2'}\n"
    )
    assert "hunter2" not in repr(load(tmp_path, text))


def test_a_checkpoint_is_relative_to_the_file(tmp_path: Path) -> None:
    near = load(tmp_path, POOL + "router: {checkpoint_path: out/mine}\n")
    assert near.router.checkpoint_path == str(tmp_path / "out/mine")
    far = load(tmp_path, POOL + "router: {checkpoint_path: /out/mine}\n")
    assert far.router.checkpoint_path == str(Path("/out/mine"))


def test_presidio_has_kinds_of_its_own(tmp_path: Path) -> None:
    config = load(tmp_path, POOL + "sensitivity: {detector: presidio, actions: {US_SSN: mask}}\n")
    assert config.sensitivity.actions == {"US_SSN": "mask"}


def test_a_rule_for_a_model_without_when_may_have_others_after_it(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        POOL + "rules: [{name: a, model: big}, {name: b, block: no}]\n".replace("no}", "stop}"),
    )
    assert [rule.name for rule in config.rules] == ["a", "b"]


def test_flags() -> None:
    config = config_from_flags(
        {
            "strong_model": "gpt-4o", "weak_model": "own", "router": "bert", "threshold": 0.3,
            "api_base": "http://127.0.0.1:9", "api_key": "k", "weak_price": "0.1,0.2", "port": 0,
        }
    )  # fmt: skip
    assert [m.name for m in config.models] == ["gpt-4o", "own"]
    assert {m.api_base for m in config.models} == {"http://127.0.0.1:9"}
    assert config.models[0].price is None
    price = config.models[1].price
    assert price is not None and (price.input, price.output) == (0.1, 0.2)
    assert (config.router.name, config.router.threshold, config.server.port) == ("bert", 0.3, 0)


def test_flags_with_one_model_for_both_sides() -> None:
    config = config_from_flags({"strong_model": "a", "weak_model": "a", "strong_price": "1,2"})
    assert [m.name for m in config.models] == ["a"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"threshold": 3.0}, "--threshold: expected a number >= 0 and <= 1, got 3.0"),
        ({"port": 70000}, "--port: expected a whole number >= 0 and <= 65535, got 70000"),
        ({"strong_model": ""}, "--strong-model: expected text of 1 to 200 characters, got ''"),
        ({"weak_model": "auto"}, "--weak-model: 'auto' means the router"),
        ({"api_base": "host:80"}, "--api-base: expected a URL that starts with http://"),
        ({"threshold": 0.1, "strong_share": 0.2}, "--strong-share: give threshold or strong_share"),
        ({"weak_price": "1"}, "--weak-price '1': expected IN,OUT in USD per million tokens"),
        ({"strong_price": "1,nan"}, "--strong-price '1,nan': expected IN,OUT"),
        ({"strong_price": "1,-2"}, "--strong-price '1,-2': expected IN,OUT"),
    ],
)
def test_flags_that_cannot_be_used(flags: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_flags({"strong_model": "big", "weak_model": "small", **flags})
    assert str(caught.value).startswith(expected)
    assert len(str(caught.value).splitlines()) == 1


def test_a_config_made_in_python_is_checked_too() -> None:
    config = Config.model_validate({"models": [{"name": "a"}], "strong": "a", "weak": "b"})
    with pytest.raises(ConfigError, match=r"^weak: no model is named 'b'"):
        check(config)
    check(config.model_copy(update={"weak": "a"}))


def test_a_pool_of_names() -> None:
    assert [m.name for m in pool_of(["a", "b"]).models] == ["a", "b"]
    with pytest.raises(ConfigError, match=r"^models\[1\].name: expected text of 1 to 200"):
        pool_of(["a", ""])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_whatever_the_file_says_it_loads_or_is_a_config_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    lines = re.sub(r"^(\s*)#(?! |$)", r"\1", TEMPLATE, flags=re.M).splitlines()
    words = ["1", "-1", ".inf", "null", "true", "[]", "{}", "[1]", "''", "{a: b}", "2024-01-01"]
    words += ["${X}", "${X:-}", "!!set {a}", "!!binary aa", "&a", "*a"]
    scalars = st.sampled_from(words)
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.integers(0, len(lines) - 1))
        key, colon, _ = lines[i].partition(":")
        lines[i] = f"{key}{colon} {data.draw(scalars | st.text(max_size=8))}"
    path = tmp_path / "fuzzed.yaml"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    try:
        config = load_config(path, {})
    except ConfigError as wrong:
        assert str(wrong)
    else:
        check(config)
