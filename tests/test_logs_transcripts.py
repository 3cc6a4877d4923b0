"""Transcripts of coding agents as calls of models, and as requests of a log."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from thriftroute.data.logs.import_rows import ImportSettings
from thriftroute.data.logs.importing import import_logs
from thriftroute.data.logs.reader import objects
from thriftroute.errors import DataError

Line = Mapping[str, Any]


def write(path: Path, lines: Iterable[Line | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n")
    return path


def said(second: int, content: object, session: str = "s1", **more: Any) -> Line:
    """A line of Claude Code that the user, or a tool, said."""
    return {
        **{"type": "user", "uuid": f"u{second}", "sessionId": session, "isSidechain": False},
        **{"timestamp": f"2026-02-11T20:00:{second:02}.000Z"},
        **{"message": {"role": "user", "content": content}, **more},
    }


def answered(
    second: int, id_: str, block: Line, usage: tuple[int, int, int, int], **more: Any
) -> Line:
    """One block of an answer of Claude Code; usage: read, written, of that for 1h, output."""
    read, wrote, hour, output = usage
    counts = {
        **{"input_tokens": 3, "cache_read_input_tokens": read, "output_tokens": output},
        "cache_creation_input_tokens": wrote,
        "cache_creation": {"ephemeral_1h_input_tokens": hour},
    }
    message = {"id": id_, "model": "claude-opus-4-6", "content": [block], "usage": counts}
    line = {**said(second, None), "type": "assistant", "uuid": f"a{second}", "message": message}
    return {**line, **more}


def words(text: str) -> Line:
    return {"type": "text", "text": text}


def tool(name: str) -> Line:
    return {"type": "tool_use", "id": name, "name": name, "input": {}}


def result(*, failed: bool = False) -> list[Line]:
    return [{"type": "tool_result", "tool_use_id": "x", "content": "text", "is_error": failed}]


CLAUDE: list[Line] = [
    {"type": "summary", "summary": "What it was about", "leafUuid": "x"},
    said(0, "Mend the parser"),
    answered(1, "m1", words("I look."), (0, 9000, 9000, 1)),
    answered(2, "m1", tool("Bash"), (0, 9000, 9000, 50)),
    said(3, result()),
    answered(4, "m2", tool("Read"), (9000, 500, 0, 20)),
    said(5, result(failed=True)),
    answered(6, "m3", words("Done."), (9500, 400, 0, 30)),
    said(7, "<command-name>/cost</command-name>"),
    said(8, "a note of the harness", isMeta=True),
    {**answered(9, "e1", words("limit"), (0, 0, 0, 0)), "isApiErrorMessage": True},
    said(10, "Now its tests"),
    answered(11, "m4", words("Yes."), (9900, 100, 0, 10)),
]


def calls(path: Path) -> list[dict[str, Any]]:
    return [dict(call) for _, call in objects(path) if not isinstance(call, DataError)]


def test_lines_of_one_message_are_one_call(tmp_path: Path) -> None:
    found = calls(write(tmp_path / "s1.jsonl", CLAUDE))
    assert [call["id"] for call in found] == ["m1", "m2", "m3", "m4"]
    first = found[0]
    assert first["output_tokens"] == 50  # of the last line
    assert (first["cache_write_tokens"], first["cache_write_1h_tokens"]) == (9000, 9000)
    assert first["tools"] == "Bash" and first["session"] == "s1" and not first["sidechain"]
    assert [call["tool_results"] for call in found] == [0, 1, 2, 2]
    assert [call["tool_errors"] for call in found] == [0, 0, 1, 1]
    assert [call["step"] for call in found] == [0, 1, 2, 3]


def test_only_what_the_user_said_is_a_request(tmp_path: Path) -> None:
    found = calls(write(tmp_path / "s1.jsonl", CLAUDE))
    assert ["conversation" in call for call in found] == [True, False, False, True]
    assert found[3]["conversation"] == [
        {"role": "user", "content": "Mend the parser"},
        {"role": "assistant", "content": "I look."},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Now its tests"},
    ]


def test_a_compaction_takes_the_place_of_what_was_said(tmp_path: Path) -> None:
    more = [
        said(12, "A summary of it all", isCompactSummary=True),
        answered(13, "m5", words("On."), (100, 900, 0, 5)),
    ]
    found = calls(write(tmp_path / "s1.jsonl", [*CLAUDE, *more]))
    assert found[-1]["conversation"] == [{"role": "user", "content": "A summary of it all"}]


def test_subagents_are_sessions_of_their_own(tmp_path: Path) -> None:
    side = {"isSidechain": True}
    lines = [
        said(0, "Do it"),
        answered(1, "m1", tool("Task"), (0, 5000, 0, 9)),
        said(2, "Search here", uuid="r1", parentUuid=None, **side),
        said(3, "Search there", uuid="r2", parentUuid=None, **side),
        answered(4, "n1", tool("Grep"), (0, 2000, 0, 3), uuid="x1", parentUuid="r1", **side),
        answered(5, "n2", tool("Grep"), (0, 2000, 0, 3), uuid="x2", parentUuid="r2", **side),
        answered(6, "n3", words("Here."), (2000, 90, 0, 3), parentUuid="x1", **side),
        said(7, "Look", agentId="a7", **side),
        answered(8, "n4", words("Yes."), (0, 2000, 0, 3), agentId="a7", **side),
    ]
    found = {call["id"]: call for call in calls(write(tmp_path / "s1.jsonl", lines))}
    names = {id_: call["session"] for id_, call in found.items()}
    assert names == {"m1": "s1", "n1": "s1/r1", "n2": "s1/r2", "n3": "s1/r1", "n4": "s1/a7"}
    assert [found[id_]["sidechain"] for id_ in ("m1", "n1")] == [False, True]
    assert found["n2"]["conversation"] == [{"role": "user", "content": "Search there"}]


def codex(kind: str, **load: Any) -> Line:
    return {"timestamp": "2026-03-01T10:00:00.000Z", "type": kind, "payload": load}


def counted(total: int, usage: tuple[int, int, int] | None) -> Line:
    names = ("input_tokens", "cached_input_tokens", "output_tokens")
    last = None if usage is None else dict(zip(names, usage, strict=True))
    totals = {"input_tokens": total, "output_tokens": total // 10, "total_tokens": total}
    info = {"total_token_usage": totals, "last_token_usage": last}
    return codex("event_msg", type="token_count", info=info)


def heard(role: str, text: str) -> Line:
    return codex(
        "response_item", type="message", role=role, content=[{"type": "text", "text": text}]
    )


CODEX: list[Line] = [
    codex("session_meta", id="c1", cwd="/src", source="cli"),
    heard("user", "<environment_context>the folder</environment_context>"),
    codex("turn_context", model="gpt-5.1", effort="low"),
    heard("user", "List the files"),
    codex("response_item", type="function_call", name="shell", arguments="{}", call_id="1"),
    codex("event_msg", type="token_count", info=None),
    counted(5000, (4900, 0, 100)),
    counted(5000, (4900, 0, 100)),
    codex("response_item", type="function_call_output", output='{"metadata":{"exit_code":2}}'),
    heard("assistant", "None."),
    counted(10_100, (5100, 4900, 50)),
    heard("user", "Thanks"),
    codex("turn_context", model="gpt-5-mini"),
    counted(15_000, None),
]


def test_a_rollout_of_codex(tmp_path: Path) -> None:
    found = calls(write(tmp_path / "rollout-x.jsonl", CODEX))
    assert [call["model"] for call in found] == ["gpt-5.1", "gpt-5.1", "gpt-5-mini"]
    usage = [(c["input_tokens"], c["cache_read_tokens"], c["output_tokens"]) for c in found]
    # The last one has only totals.
    assert usage == [(4900, 0, 100), (200, 4900, 50), (4900, 0, 490)]
    assert [call["tool_errors"] for call in found] == [0, 1, 1]
    assert ["conversation" in call for call in found] == [True, False, True]
    assert found[0]["conversation"] == [{"role": "user", "content": "List the files"}]


OPENCODE: Line = {
    "info": {"id": "ses_1", "projectID": "p", "directory": "/src"},
    "messages": [
        {
            "info": {"id": "msg_0", "sessionID": "ses_1", "role": "user"},
            "parts": [{"type": "text", "text": "Hello there"}],
        },
        {
            "info": {
                **{"id": "msg_1", "sessionID": "ses_1", "role": "assistant"},
                **{"modelID": "gpt-5.1", "time": {"created": 1_770_000_001_000}},
                "tokens": {
                    **{"input": 1000, "output": 20, "reasoning": 5},
                    "cache": {"read": 4000, "write": 7},
                },
            },
            "parts": [
                {"type": "text", "text": "Hi"},
                {"type": "tool", "tool": "bash", "state": {"status": "error"}},
            ],
        },
    ],
}


@pytest.mark.parametrize("form", ["claude", "codex", "opencode"])
def test_transcripts_are_imported_as_requests(tmp_path: Path, form: str) -> None:
    lines = {"claude": CLAUDE, "codex": CODEX, "opencode": [OPENCODE]}[form]
    write(tmp_path / "in" / "deep" / f"{form}.jsonl", lines)
    result = import_logs([tmp_path / "in"], tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert result.written == len(rows) == {"claude": 2, "codex": 2, "opencode": 1}[form]
    inside = result.left_out["a step inside a turn"]
    assert inside == {"claude": 2, "codex": 1, "opencode": 0}[form]
    first = rows[0]
    assert first["prompt"] == {
        "claude": "Mend the parser", "codex": "List the files", "opencode": "Hello there"
    }[form]  # fmt: skip
    assert first["input_tokens"] == {"claude": 9003, "codex": 4900, "opencode": 5007}[form]
    assert first["task"] == {"claude": "claude-code"}.get(form, form)


def test_a_transcript_that_is_cut_goes_on_from_where_it_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "s1.jsonl", [*CLAUDE, "{broken"])
    with pytest.raises(DataError, match=r"s1\.jsonl:14: not valid JSON"):
        import_logs([path], tmp_path / "out.jsonl")
    result = import_logs([path], tmp_path / "out.jsonl", ImportSettings(on_bad="skip"))
    assert (result.written, result.bad) == (2, 1)


def test_a_folder_without_logs_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no file of \.jsonl"):
        import_logs([tmp_path], tmp_path / "out.jsonl")
