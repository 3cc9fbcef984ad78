"""The code behind a result: which modules of this project a module runs through, and their digest."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

from hnm.files import key_of

PLUMBING = frozenset(
    {
        "hnm",
        "hnm.errors",
        "hnm.names",
        "hnm.params",
        "hnm.tables",
        "hnm.store",
        "hnm.files",
        "hnm.folders",
        "hnm.leases",
        "hnm.output",
        "hnm.code",
        "hnm.redaction",
        "hnm.failpoints",
        "hnm.processes",
        "hnm.progress",
        "hnm.experiments",
        "hnm.experiments.state",
        "hnm.experiments.tracking",
        "pipelines",
        "pipelines.stage",
    }
)
"""Modules whose text changes no result; they are neither code dependencies nor part of a code version."""


def imports_of(module: str) -> frozenset[str]:
    """All modules of this project that `module` imports, directly or not, itself included, without the plumbing."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name in PLUMBING:
            continue
        found.add(name)
        waiting += _direct_imports(name)
    return frozenset(found)


def code_version(module: str) -> str:
    """Digest of the code that `module` runs through, comments, docstrings and layout aside."""
    return key_of(code={name: ast.dump(_without_docstrings(ast.parse(_source(name)))) for name in imports_of(module)})


@cache
def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")


@cache
def _direct_imports(module: str) -> tuple[str, ...]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if _ours(alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.module and _ours(node.module):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if importlib.util.find_spec(node.module).submodule_search_locations and importlib.util.find_spec(name)}  # type: ignore[union-attr]
            names |= modules or {node.module}
    return tuple(sorted(names))


def _ours(module: str) -> bool:
    return module.split(".")[0] in {"hnm", "pipelines"}


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str))
            ]
    return tree
