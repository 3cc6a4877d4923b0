"""Who may ask what: API keys of clients, and the admin key.

Keys are compared as SHA-256 digests, in constant time, every one of them on every request. Where
no key is configured everybody is "anonymous", as OpenAI's clients always send some key.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping

from ..config.settings import Config
from ..errors import RefusedError
from ..request import Principal

TENANT_HEADER = "x-thriftroute-tenant"
_PROXIED = ("forwarded", "x-forwarded-for", "x-real-ip")
_TENANT_CHARS = 200
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


def digest(key: str) -> str:
    """SHA-256 of a key, in hex. What HTTP cannot carry in a header is left out."""
    # Header values are read as latin-1: this gives back the bytes that the client sent.
    return hashlib.sha256(key.encode("latin-1", "ignore")).hexdigest()


def principal(
    headers: Mapping[str, str], config: Config, *, tenant: str | None = None
) -> Principal:
    """Who sent a request with these `headers` (lower-case names, or Starlette's own). tenant: what
    its metadata names; the header `x-thriftroute-tenant` wins over it.

    Raises RefusedError: 401 without a valid key where keys are configured, 403 where a key asks for
    a tenant that is not its own (one that any key names belongs to such keys) or another site's
    page asks without a key, 400 for a tenant that is no name.
    """
    asked = _tenant(headers.get(TENANT_HEADER, tenant))
    hashed = _digest_sent(headers, config)
    if _is(hashed, config.server.admin_sha256):
        return Principal("admin", asked or "default", config.default_tier, admin=True)
    # No early exit: the time taken does not tell which key came close.
    for key in [key for key in config.keys if _is(hashed, key.sha256)]:
        tenant = asked or key.tenant or "default"
        owned = {other.tenant for other in config.keys}
        free = key.tenant is None and (key.admin or tenant not in owned)
        if tenant != key.tenant and not free:
            what = "leave out" if key.tenant is not None else "name another in"
            message = f"the key {key.name!r} does not belong to the tenant of this request; "
            message += f"{what} {TENANT_HEADER} or the metadata's tenant"
            raise RefusedError(403, "wrong_tenant", message)
        return Principal(key.name, tenant, key.tier or config.default_tier, key.admin)
    if config.keys:
        raise _unknown(hashed)
    allowed = headers.get("origin", "") in config.server.cors_origins
    if not allowed and _from_another_site(headers, config):
        message = "this server has no API keys and takes no requests from other sites' pages; "
        message += "`thriftroute keys new` makes a key, server.cors_origins lets a site in"
        raise RefusedError(403, "foreign_origin", message)
    return Principal("anonymous", asked or "default", config.default_tier)


def client_of(headers: Mapping[str, str], config: Config, address: str) -> str:
    """Whom a request counts for: its key's digest, or its address where it has no key of ours."""
    hashed = _digest_sent(headers, config)
    known = {config.server.admin_sha256, *(key.sha256 for key in config.keys)}
    return hashed if hashed is not None and hashed in known else address


def admin(
    headers: Mapping[str, str], config: Config, *, client: str | None = "127.0.0.1"
) -> Principal:
    """Who sent a request to an admin route from the address `client`. Without any key in the
    configuration that is whoever sits at this machine (see `open_to_this_machine`).

    Raises RefusedError: 401 without a valid key, 403 for who may not use it.
    """
    hashed = _digest_sent(headers, config)
    if _is(hashed, config.server.admin_sha256):
        return principal(headers, config)
    if config.server.admin_sha256 is not None or any(key.admin for key in config.keys):
        if not config.keys:
            raise _unknown(hashed)
        who = principal(headers, config)
        if who.admin:
            return who
        raise RefusedError(403, "not_admin", f"the key {who.key!r} is not an admin's")
    if not config.keys and open_to_this_machine(headers, config, client):
        return Principal("local", "default", config.default_tier, admin=True)
    message = "this route needs an admin key and none is configured; run `thriftroute keys new "
    message += "--admin` and put what it prints in thriftroute.yaml"
    raise RefusedError(403, "no_admin_key", message)


def open_to_this_machine(
    headers: Mapping[str, str], config: Config, client: str | None = "127.0.0.1"
) -> bool:
    """True where a request without a key comes from this very machine (the server listens on a
    loopback address), straight (no proxy's headers), and from no other site's page."""
    return (
        _is_loopback(config.server.host)
        and _is_loopback(client or "")
        and not any(name in headers for name in _PROXIED)
        and _names_this_machine(headers)
        and not _from_another_site(headers, config)
    )


def _from_another_site(headers: Mapping[str, str], config: Config) -> bool:
    """True where a browser sent the request for another site's page: `Origin` names that site; or,
    where its name was made to resolve to this machine, `Host` names it too."""
    origin = headers.get("origin")
    if origin is None:  # no browser, or its address bar
        return False
    scheme, _, site = origin.lower().partition("://")
    if scheme not in {"http", "https"} or site != headers.get("host", "").lower():
        return True
    return _is_loopback(config.server.host) and not _names_this_machine(headers)


def _names_this_machine(headers: Mapping[str, str]) -> bool:
    host = headers.get("host", "").lower()
    end = host.rfind("]")  # an IPv6 address has colons of its own
    return host[: end + 1] + host[end + 1 :].partition(":")[0] in _LOCAL_NAMES


def _digest_sent(headers: Mapping[str, str], config: Config) -> str | None:
    """The digest of the key that was sent; None where there is none, or none is configured."""
    if not config.keys and config.server.admin_sha256 is None:
        return None
    scheme, _, token = headers.get("authorization", "").partition(" ")
    sent = token.strip() if scheme.lower() == "bearer" else ""
    sent = sent or headers.get("x-api-key", "").strip()  # as Anthropic's clients send it
    return digest(sent) if sent else None


def _is(hashed: str | None, expected: str | None) -> bool:
    return bool(hashed and expected) and hmac.compare_digest(str(hashed), str(expected))


def _unknown(sent: str | None) -> RefusedError:
    code, problem = "invalid_api_key", "the API key is not known here; ask whoever runs this server"
    if sent is None:
        code = "missing_api_key"
        problem = "no API key in the request; send the header 'Authorization: Bearer <key>'"
    challenge = {"www-authenticate": 'Bearer realm="thriftroute"'}
    return RefusedError(401, code, problem, headers=challenge)


def _tenant(value: str | None) -> str | None:
    if value is None:
        return None
    if value.strip() and value.isprintable() and len(value) <= _TENANT_CHARS:
        return value.strip()
    message = f"the tenant must be a name of 1 to {_TENANT_CHARS} printable characters"
    raise RefusedError(400, "invalid_tenant", message, param="metadata.tenant")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
