import sys

import pytest
from thriftroute.errors import ConfigError, MissingExtraError
from thriftroute.serve.config.settings import SensitivitySettings
from thriftroute.serve.errors import RefusedError
from thriftroute.serve.policy.sensitivity import Sensitivity
from thriftroute.tests.helpers.asking import asked, model

MODELS = {"open": model("open")}
IBAN = "DE89 3704 0044 0532 0130 00"


def presidio(actions: dict[str, str], patterns: dict[str, str] | None = None) -> Sensitivity:
    settings = {"detector": "presidio", "actions": actions, "patterns": patterns or {}}
    return Sensitivity(SensitivitySettings.model_validate(settings))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'thriftroute\[presidio\]'"):
        presidio({"IBAN_CODE": "block"})


def test_its_kinds_come_beside_the_others() -> None:
    pytest.importorskip("presidio_analyzer", reason="the extra 'presidio' is not installed")
    judge = presidio(
        {"IBAN_CODE": "block", "email": "mask", "order": "mask"}, {"order": r"ACME-\d{4}"}
    )
    with pytest.raises(RefusedError, match="IBAN_CODE"):
        judge.judge(asked(f"send it to {IBAN}"), ["open"], MODELS)
    masked = judge.mask(f"bob@example.com ordered ACME-1234, pays from {IBAN}.")
    assert masked == "[email] ordered [order], pays from [IBAN_CODE]."
    assert judge.judge(asked("hello"), ["open"], MODELS).kinds == ()


@pytest.mark.parametrize("kind", ["PERSON", "URL", "US_DRIVER_LICENSE", "NONSENSE"])
def test_kinds_that_it_cannot_tell_by_itself_are_refused(kind: str) -> None:
    pytest.importorskip("presidio_analyzer", reason="the extra 'presidio' is not installed")
    with pytest.raises(ConfigError, match=f"no kind '{kind}' without a language model.*IBAN_CODE"):
        presidio({kind: "block"})
