"""The processes that `benchmarks/serve.py` measures: a stub provider, and who stands before it."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KEY = "sk-" + "0123456789abcdef" * 2
AT_ONCE = 1000  # requests in work that a server is set up for
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22},
}

_HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
WORDS = ("Yes", ",", " it", " is", ".")


def servers(
    folder: Path,
    base: str,
    ports: dict[str, int],
    options: Namespace,
    wanted: Sequence[str],
) -> dict[str, subprocess.Popen[bytes]]:
    """All that answer the ways that are `wanted`, by their ports' names."""
    commands: dict[str, list[str]] = {}
    if {"plain", "routed", "messages", "responses"} & set(wanted):
        commands["server"] = server(folder, base, ports["server"], "mf")
    if "fast" in wanted:
        commands["fast"] = server(folder, base, ports["fast"], "fast")
    if options.portkey and "portkey" in wanted and (node := shutil.which("node")):
        script = options.portkey / "node_modules/@portkey-ai/gateway/build/start-server.js"
        commands["portkey"] = [node, str(script), f"--port={ports['portkey']}", "--headless"]
    if options.litellm_proxy and "proxy" in wanted:
        commands["proxy"] = _proxy(folder, base, ports["proxy"], options.litellm_proxy)
    return {name: start(command) for name, command in commands.items()}


def server(folder: Path, base: str, port: int, router: str) -> list[str]:
    """The command of a server of three models of the provider at `base`, routed by `router`."""
    config = folder / f"{router}.yaml"
    config.write_text(
        json.dumps(
            {
                "models": [
                    {
                        "name": name,
                        "model": f"openai/{name}",
                        "api_base": base,
                        "api_key": "key",
                        "price": {"input": price, "output": price},
                    }
                    for name, price in (("strong", 5), ("weak", 0.5), ("slow", 5))
                ],
                "strong": "strong",
                "weak": "weak",
                "router": {"name": router, "threshold": 0.3},
                "records": {"url": f"sqlite:///{folder}/{router}.db"},
                "server": {
                    "port": port,
                    "max_concurrency": AT_ONCE,
                    "max_concurrency_per_key": AT_ONCE,
                },
            }
        )
    )
    script = "from thriftroute.cli import main; main()"
    return [sys.executable, "-c", script, "serve", "--config", str(config)]


def _proxy(folder: Path, base: str, port: int, command: str) -> list[str]:
    config = folder / "proxy.yaml"
    params = {"model": "openai/strong", "api_base": base, "api_key": "key"}
    model = {"model_name": "strong", "litellm_params": params}
    config.write_text(json.dumps({"model_list": [model]}))
    return [command, "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]


def start(command: list[str]) -> subprocess.Popen[bytes]:
    quiet = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MASTER_KEY": KEY,  # the proxy does not start without one
    }
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
        env={**os.environ, **quiet},
    )


async def wait(port: int, process: subprocess.Popen[bytes], name: str) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            sys.exit(f"{name} ended with {process.returncode}; VERBOSE=1 shows what it said")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            await writer.wait_closed()
            return
    sys.exit(f"{name} did not listen within two minutes")


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


async def stub(port: int) -> None:
    """Answers every request at once, connections kept open; as little Python as there can be. A
    stream of the model "slow" says a word each 0.4 s."""
    body = json.dumps(ANSWER).encode()
    head = "HTTP/1.1 200 OK\r\ncontent-type: {}\r\n"
    answer = f"{head.format('application/json')}content-length: {len(body)}\r\n\r\n".encode() + body
    begin = f"{head.format('text/event-stream')}transfer-encoding: chunked\r\n\r\n".encode()
    deltas: list[dict[str, Any]] = [{"delta": {"content": word}} for word in WORDS]
    deltas += [{"delta": {}, "finish_reason": "stop"}]
    events = [json.dumps({**_HEAD, "choices": [{"index": 0, **each}]}) for each in deltas]
    events += [json.dumps({**_HEAD, "choices": [], "usage": ANSWER["usage"]}), "[DONE]"]
    pieces = [b"%x\r\ndata: %s\n\n\r\n" % (len(e) + 8, e.encode()) for e in events] + [b"0\r\n\r\n"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                lines = request.lower().split(b"\r\n")
                size = next(int(x.split(b":")[1]) for x in lines if x.startswith(b"content-length"))
                asked = await reader.readexactly(size)
                if b'"stream":' not in asked:
                    writer.write(answer)
                else:
                    writer.write(begin)
                    for piece in pieces:
                        writer.write(piece)
                        if b'"slow"' in asked:
                            await asyncio.sleep(0.4)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=AT_ONCE)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(stub(int(sys.argv[1])))
