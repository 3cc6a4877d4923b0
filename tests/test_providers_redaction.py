"""Keys out of what is told."""

from thriftroute.providers.redaction import redact, secrets_of


def test_secrets_are_found_by_name_at_any_depth_and_keys_by_their_look() -> None:
    params = {
        "api_base": "http://host/v1",
        "api_key": "plain-word",
        "extra_headers": {"x-token": "other-word", "accept": "json"},
        "aws_secret_access_key": "third-word",
    }
    secrets = secrets_of(params)
    assert secrets == {"plain-word", "other-word", "third-word"}
    text = redact("plain-word at host, sk-abcdefghijklmnop, Bearer xyz, task-force", secrets)
    assert text == "[hidden] at host, [hidden], Bearer [hidden], task-force"
