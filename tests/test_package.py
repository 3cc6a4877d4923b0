"""The package as a whole: what it exports, what it lists, and which way its imports point."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import thriftroute
from thriftroute import _moved

ROOT = Path(thriftroute.__file__).resolve().parent
HEAVY = (
    *("torch", "litellm", "pandas", "transformers", "sklearn", "scipy", "matplotlib", "typer"),
    *("starlette", "uvicorn", "sqlalchemy", "redis", "pydantic", "httpx"),
)
# Which folders a folder may import, late imports included: as drawn in the contributors' guide.
# Modules at the root (errors, files, terminal) import none of them and are open to all.
ALLOWED = {
    "providers": set[str](),
    "router": {"providers"},
    "data": {"router", "providers"},
    "labels": {"data", "router", "providers"},
    "eval": {"data", "router", "providers"},
    "training": {"eval", "data", "router", "providers"},
    "serve": {"eval", "router", "providers"},
    "integrations": {"router", "providers"},
    "testing": {"serve", "training", "eval", "data", "router"},
    "research": {"training", "eval", "data", "router", "providers", "testing"},
    "cli": {
        *("training", "eval", "labels", "data", "router", "providers"),
        *("serve", "integrations", "testing"),
    },
}
ROOMS = tuple(ALLOWED)
EXPORTED = {
    "Bundle", "BundleError", "BundleFormatError", "BundleIntegrityError", "CalibrationError",
    "ConfigError", "Controller", "DataError", "Decision", "EvaluationError", "ExportError",
    "MissingExtraError", "Router", "RoutingError", "Scorer", "ThresholdError", "ThriftrouteError",
    "TrainingError", "TrainingInterruptedError", "UnknownRouterError", "__version__", "decision_of",
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
    outside = {".venv", "build", "dist", "out", "runs", "tests", "research", "benchmarks"}
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


def test_the_citation_is_of_this_version() -> None:
    assert f"version: {thriftroute.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_modules_that_the_docs_name_are_there() -> None:
    named = re.compile(r"(?<![\w./])[a-z_]+(?:/[a-z_]+)*/[a-z_]+\.py\b")
    found = {
        (page.name, name)
        for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
        for name in named.findall(page.read_text(encoding="utf-8"))
    }
    assert len(found) > 20
    assert [(page, name) for page, name in found if not (ROOT / name).is_file()] == []


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
    wrong = [
        f"{path.relative_to(ROOT)} imports {target}.{module}"
        for path in modules(room)
        for target, module, _ in imports(path)
        if target not in {room, *ALLOWED[room]}
    ]
    assert not wrong


def test_no_arrow_comes_back() -> None:
    order = TopologicalSorter(ALLOWED).static_order()
    assert list(order)[-1] == "cli"


def test_the_root_s_own_modules_import_no_folder() -> None:
    for path in ROOT.glob("*.py"):
        if path.name != "__init__.py":
            assert not list(imports(path)), path


def test_only_the_command_line_loads_late_what_is_above() -> None:
    """Folders that take long to import are loaded when a command needs them."""
    top = {target for path in modules("cli") for target, _, at_top in imports(path) if at_top}
    assert top <= {"cli", "router", "providers", "serve"}


def test_litellm_is_known_in_one_folder() -> None:
    found = set()
    for path in tracked():
        room = path.relative_to(ROOT).parts[0]
        if path.suffix == ".py" and room in ROOMS:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.split(".")[0] == "litellm" for name in names):
                    found.add(room)
    # The plugin is a class of LiteLLM's own proxy.
    assert found <= {"providers", "integrations"}


@pytest.mark.parametrize("old", sorted(_moved.MOVED))
def test_old_import_paths_go_on_working(old: str) -> None:
    module = importlib.import_module(old)
    assert module is importlib.import_module(_moved.MOVED[old])
    assert module.__spec__ is not None and module.__spec__.name == _moved.MOVED[old]


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
    # A path of the machine that a file was written on. Ordinary prompts name those of their users.
    prompts = {ROOT / "data/ordinary/prompts.jsonl", ROOT / "tests/data/ordinary_test.jsonl"}
    pattern = re.compile(rb"(?:/home/|/Users/)[a-z][\w.-]*/|/root/|C:\\Users\\")
    found = []
    for path in tracked():
        body = path.read_bytes()
        binary = b"\0" in body[:4096] and path.suffix != ".onnx"
        if path not in {Path(__file__).resolve(), *prompts} and not binary and pattern.search(body):
            found.append(str(path.relative_to(ROOT)))
    assert not found


def test_every_module_says_what_it_is_for() -> None:
    for room in ROOMS:
        for path in modules(room):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            assert doc and doc.strip(), path
