"""The package as a whole: what it exports, what it lists, and which way its imports point."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import thriftroute

ROOT = Path(thriftroute.__file__).resolve().parent
HEAVY = (
    *("torch", "litellm", "pandas", "transformers", "sklearn", "scipy", "matplotlib", "typer"),
    *("starlette", "uvicorn", "sqlalchemy", "redis", "pydantic", "httpx"),
)
ROOMS = (
    *("router", "data", "training", "eval"),
    *("serve", "integrations", "logs", "audit", "watch", "scale"),
)
# Which rooms a room may import at all.
ALLOWED = {
    "router": {"router"},
    "data": {"data", "router"},
    "eval": {"eval", "data", "router"},
    "training": {"training", "eval", "data", "router"},
    "serve": {"serve", "watch", "router"},
    "integrations": {"integrations", "router"},
    "logs": {"logs", "eval", "data", "router"},
    "audit": {"audit", "eval", "data", "router"},
    "watch": {"watch", "audit", "eval", "data", "router"},
    "scale": {"scale", "logs", "data", "router"},
}
EXPORTED = {
    "Bundle", "BundleError", "BundleFormatError", "BundleIntegrityError", "CalibrationError",
    "ConfigError", "Controller", "DataError", "Decision", "EvaluationError", "ExportError",
    "MissingExtraError", "Router", "RoutingError", "Scorer", "ThresholdError", "ThriftrouteError",
    "TrainingError", "UnknownRouterError", "__version__", "decision_of",
}  # fmt: skip


def tracked() -> list[Path]:
    """Files that git knows; skips where this is no clone."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    run = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    paths = [ROOT / name for name in run.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def imports(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(room, module within it, at module level) of each import of our own in a file."""
    package = ("thriftroute", *path.relative_to(ROOT).parent.parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(outer, ast.If) and ast.unparse(outer.test) == "TYPE_CHECKING")
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            # `from ..eval import report` names a module, or something in one: both are followed.
            names = [".".join([*base, alias.name]) for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "thriftroute" and len(parts) > 1 and parts[1] in ROOMS:
                yield parts[1], parts[2] if len(parts) > 2 else "", id(node) not in inner


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).glob("**/*.py"))


def test_the_public_names_are_pinned() -> None:
    assert set(thriftroute.__all__) == EXPORTED
    assert sorted(thriftroute.__all__) == thriftroute.__all__
    assert all(hasattr(thriftroute, name) for name in thriftroute.__all__)


def test_every_error_of_the_tree_is_exported_and_has_one_root() -> None:
    from thriftroute import errors

    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, thriftroute.ThriftrouteError)
    }
    assert tree <= set(thriftroute.__all__)
    assert all(name in (errors.__doc__ or "") for name in tree)


def test_the_package_list_is_that_of_the_folders() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    outside = {".venv", "build", "dist", "out", "runs", "tests"}
    found = {
        ".".join(("thriftroute", *path.parent.relative_to(ROOT).parts))
        for path in tracked()
        if path.name == "__init__.py" and path.relative_to(ROOT).parts[0] not in outside
    }
    assert found == set(listed)
    assert len(listed) == len(set(listed))


def test_data_files_that_the_package_lists_exist() -> None:
    read = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for pattern in read["package-data"]["thriftroute"]:
        if not pattern.startswith("checkpoints"):
            assert list(ROOT.glob(pattern)), pattern


def test_the_version_is_that_of_the_changelog() -> None:
    headings = re.findall(r"^## \[?(\S+?)\]?(?:\s|$)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    if headings[0] == "Unreleased":
        headings.pop(0)
    assert headings[0] == thriftroute.__version__


def test_importing_the_package_brings_nothing_heavy() -> None:
    code = "import json, sys, thriftroute; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    )
    loaded = {name.split(".")[0] for name in json.loads(run.stdout)}
    assert "thriftroute" in loaded
    assert loaded.isdisjoint(HEAVY), loaded.intersection(HEAVY)


def test_the_command_line_brings_nothing_heavy() -> None:
    code = "import json, sys, thriftroute.cli; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in json.loads(run.stdout)}
    assert "typer" in loaded
    assert loaded.isdisjoint(set(HEAVY) - {"typer"})


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    wrong = []
    for path in modules(room):
        for target, module, top in imports(path):
            # The command line reaches into the other rooms, but only when a command needs them.
            on_demand = path.parent == ROOT / "router" / "cli" and not top
            if target not in ALLOWED[room] and not on_demand:
                wrong.append(f"{path.relative_to(ROOT)} imports {target}.{module}")
    assert not wrong


def test_data_imports_of_the_router_only_what_imports_nothing() -> None:
    found = {
        module for path in modules("data") for room, module, _ in imports(path) if room == "router"
    }
    assert "errors" in found
    assert found <= {"errors", "private", "text"}


def test_the_router_never_names_torch() -> None:
    for path in modules("router"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            heads = {name.split(".")[0] for name in names}
            assert heads.isdisjoint({"torch", "transformers", "pandas"}), path


def test_no_tracked_file_names_a_home_folder() -> None:
    # A path of the machine that a file was written on.
    pattern = re.compile(rb"(?:/home/|/Users/)[a-z][\w.-]*/|/root/|C:\\Users\\")
    found = []
    for path in tracked():
        body = path.read_bytes()
        binary = b"\0" in body[:4096] and path.suffix != ".onnx"
        if path != Path(__file__).resolve() and not binary and pattern.search(body):
            found.append(str(path.relative_to(ROOT)))
    assert not found


def test_every_module_says_what_it_is_for() -> None:
    for room in ROOMS:
        for path in modules(room):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            assert doc and doc.strip(), path
