"""Register the two pipelines with `transformers.pipeline` without importing transformers."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

PIPELINES = "transformers.pipelines"


def register_pipelines() -> None:
    """Register both pipelines: now if transformers' pipelines are imported already, otherwise at their import."""
    if PIPELINES in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterPipelines) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPipelines())


def _register() -> None:
    from .pipeline_loading import register

    register()


class _AfterPipelines(MetaPathFinder):
    """Find `transformers.pipelines` as Python does, and register both pipelines after its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != PIPELINES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                _register()

            spec.loader.exec_module = run_and_register
        return spec
