"""Import paths of older releases, which README and docs have shown: they go on working."""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

MOVED = {
    "thriftroute.logs": "thriftroute.data.logs",
    "thriftroute.logs.practice": "thriftroute.testing.practice",
    "thriftroute.router.cli": "thriftroute.cli",
    "thriftroute.router.completion": "thriftroute.providers.completion",
    "thriftroute.router.errors": "thriftroute.errors",
    "thriftroute.router.stub": "thriftroute.testing.stub",
}


class OldPaths(MetaPathFinder, Loader):
    """Gives the module of the new path under the old one: the same object, not a copy."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As of MetaPathFinder."""
        if name not in MOVED:
            return None
        moved = importlib.util.find_spec(MOVED[name])
        folder = moved is not None and moved.submodule_search_locations is not None
        return ModuleSpec(name, self, is_package=folder)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module of the new path."""
        module = importlib.import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It ran already; the import system has just given it the old path's spec."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, name: str) -> CodeType:
        """For `python -m` with an old path."""
        run = f"import runpy; runpy.run_module({MOVED[name]!r}, None, '__main__', True)"
        return compile(run, name, "exec")


def install() -> None:
    """Let imports find the old paths, before what an older clone left of their folders."""
    sys.meta_path.insert(0, OldPaths())
