"""The server: an OpenAI-compatible front of a router, for production. Needs the extra `serve`."""

from ..errors import require_extra

for _module in ("starlette", "uvicorn", "prometheus_client", "sqlalchemy", "redis"):
    require_extra(_module, "serve")
