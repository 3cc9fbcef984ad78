"""The causes of a result beside its inputs and params: code, libraries, and the machine's
arithmetic.

DVC's stages depend on them through the files of the stage `causes`, and every key of the store
holds them (`keys_of`). Both ask `causes_of` alone. No library is imported to learn its version.
"""

import ast
import hashlib
import importlib
import importlib.util
import os
import platform
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hnm.files import key_of

Causes = dict[str, dict[str, str]]
"""`code` (module or file -> digest), `libraries` (name -> version) and, where torch computes,
`machine`.
"""

PLUMBING = frozenset(
    {
        "hnm",
        "hnm.errors",
        "hnm.names",
        "hnm.params",
        "hnm.tables",
        "hnm.project",
        "hnm.store",
        "hnm.store_keeping",
        "hnm.files",
        "hnm.folders",
        "hnm.leases",
        "hnm.loop.paths",
        "hnm.output",
        "hnm.causes",
        "hnm.redaction",
        "hnm.failpoints",
        "hnm.processes",
        "hnm.progress",
        "hnm.repository",
        "hnm.tracking",
        "hnm.repository.stages",
        "hnm.tracking.runs",
        "pipelines",
        "pipelines.stage",
    }
)
"""Modules whose text changes no result. Neither they nor what they import are causes."""

CARRIERS = frozenset(
    {
        "aiohttp",
        "dask_jobqueue",
        "distributed",
        "fsspec",
        "huggingface_hub",
        "optuna",
        "pebble",
        "pydantic",
        "rich",
        "ruamel",
    }
)
"""Libraries that bring, check or show bytes and never change those of a result."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "PIL": ("pillow",),
    "jinja2": ("jinja2", "markupsafe"),
    "kornia": ("kornia", "kornia-rs"),
    "markdown_it": ("markdown-it-py",),
    "matplotlib": ("matplotlib", "contourpy", "pillow"),
    "openslide": ("openslide-python", "openslide-bin"),
    "pandas": ("pandas", "pyarrow"),
    "skimage": ("scikit-image", "scipy"),
    "sklearn": ("scikit-learn", "scipy"),
    "tifffile": ("tifffile", "imagecodecs"),
    "timm": ("timm", "torchvision"),
}
"""Import -> the distributions that do its work. An import that is missing here is its own."""

SETTINGS = frozenset(
    {
        "ATEN_CPU_CAPABILITY",
        "CUBLAS_WORKSPACE_CONFIG",
        "DNNL_DEFAULT_FPMATH_MODE",
        "DNNL_MAX_CPU_ISA",
        "MKL_CBWR",
        "MKL_DEBUG_CPU_TYPE",
        "MKL_ENABLE_INSTRUCTIONS",
        "NPY_DISABLE_CPU_FEATURES",
        "NPY_ENABLE_CPU_FEATURES",
        "NVIDIA_TF32_OVERRIDE",
        "ONEDNN_CPU_ISA_HINTS",
        "ONEDNN_DEFAULT_FPMATH_MODE",
        "ONEDNN_MAX_CPU_ISA",
        "OPENBLAS_CORETYPE",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    }
)
"""Environment variables that choose the kernels of torch and NumPy."""
SAME_AS_NONE = {"", ":4096:8"}
"""Values of them that change nothing; the second is the one that hnm itself sets."""

_INSTRUCTIONS = re.compile(r"(s?sse|avx|fma|amx|asimd|sve|sme(?!p))\w*|f16c|fphp|bf16|i8mm")
_CPUINFO = Path("/proc/cpuinfo")
_ABSENT = "absent"
NAMED = 3
"""Changes that a line names at most."""


def causes_of(module: str, device: str = "cpu") -> Causes:
    """Returns all that can change what `module` makes of the same inputs and params.

    Args:
        module: a stage or a step, by its dotted name.
        device: `compute.device`; elsewhere than on the CPU, torch is asked for the GPU.
    """
    libraries = libraries_of(module)
    causes = {"code": code_of(module), "libraries": libraries}
    return causes | {"machine": machine(device)} if "torch" in libraries else causes


def keys_of(module: str, device: str = "cpu") -> Callable[..., str]:
    """Returns a function that gives the key of a result of `module` in the store, by all inputs
    that it is made of.

    Inputs are JSON-ready values by name, params among them. The causes are those of the moment of
    this call.
    """
    causes = causes_of(module, device)

    def key(**inputs: Any) -> str:
        return key_of(causes=causes, inputs=inputs)

    return key


def differences(before: Causes, after: Causes) -> list[str]:
    """Returns what differs between two causes, in words: `torch 2.13.0 -> 2.14.0`, or `code of
    hnm.seeds`.
    """
    changes: list[str] = []
    for kind in sorted(before.keys() | after.keys()):
        old = before.get(kind, {})
        new = after.get(kind, {})
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) == new.get(name):
                continue
            values = f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}"
            changes.append(f"code of {name}" if kind == "code" else values)
    return changes


def in_words(changes: Sequence[str]) -> str:
    """Returns changes as one line, which names the first and counts the others."""
    more = f" and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
    return ", ".join(changes[:NAMED]) + more


def code_of(module: str) -> dict[str, str]:
    """Returns the digest of each module that `module` runs through, and of each file beside them
    that they name.
    """
    return dict(sorted(item for name in imports_of(module) for item in _digests(name).items()))


def libraries_of(module: str) -> dict[str, str]:
    """Returns the installed versions of Python and of the libraries that `module` runs through."""
    named = {name for part in imports_of(module) for name in _imported(part) if _is_library(name)}
    parts = sorted({part for name in named for part in PARTS.get(name, (name,))})
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{part: _version(part) for part in parts},
    }


def imports_of(module: str) -> frozenset[str]:
    """Returns all modules of this project that `module` imports, directly or not, itself included,
    without the plumbing.
    """
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in reached and name not in PLUMBING:
            reached.add(name)
            waiting += [other for other in _imported(name) if _is_ours(other)]
    return frozenset(reached)


def machine(device: str) -> dict[str, str]:
    """Returns what decides the last bits of arithmetic on this machine: processor, settings, and
    the GPU if `device` uses one.
    """
    causes = {"processor": processor()}
    for name in sorted(SETTINGS & os.environ.keys()):
        if os.environ[name] not in SAME_AS_NONE:
            causes[name] = os.environ[name]
    if device != "cpu" and (gpu := gpu_name()):
        causes["gpu"] = gpu
    return causes


def processor() -> str:
    """Returns architecture, maker and instruction sets of the processor, by which libraries choose
    their kernels.
    """
    try:
        first = _CPUINFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:  # no Linux
        return f"{platform.machine()} {platform.processor()}".strip()
    fields: defaultdict[str, str] = defaultdict(str)
    for line in first.splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    maker = fields["vendor_id"] or f"{fields['CPU implementer']} {fields['CPU part']}".strip()
    flags = (fields["flags"] or fields["Features"]).split()
    instructions = sorted({flag for flag in flags if _INSTRUCTIONS.fullmatch(flag)})
    return " ".join([platform.machine(), maker, *instructions])


def gpu_name() -> str:
    """Returns the GPU that torch computes on, with its libraries; "" where there is none."""
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return ""
    return (
        f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}, cuDNN"
        f" {torch.backends.cudnn.version()}"
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        pass
    # an import of another name than its distribution, which `PARTS` should name: this look takes a
    # second
    named = sorted(set(metadata.packages_distributions().get(distribution, ())))
    return ", ".join(f"{name} {metadata.version(name)}" for name in named) or _ABSENT


@cache
def _imported(module: str) -> frozenset[str]:
    """Returns what `module` imports: modules of this project with the packages that they lie in,
    and libraries by their first name.

    What only type checkers see is left out.
    """
    names: set[str] = set()
    if (file := _file_of(module)) is None:
        return frozenset()
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in _nodes(_tree(file)):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                start = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                names |= {start, *(f"{start}.{alias.name}" for alias in node.names)}
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                names.add(name)
    ours = {name for name in names if _is_ours(name) and _place_of(name) is not None} | (
        {module} if _is_ours(module) else set()
    )
    above = {name.rsplit(".", depth)[0] for name in ours for depth in range(name.count(".") + 1)}
    return frozenset(ours | above | {name.split(".")[0] for name in names if not _is_ours(name)})


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields all nodes below `tree`, without the blocks that run for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "typing.TYPE_CHECKING",
        ):
            for other in node.orelse:
                yield from (other, *_nodes(other))
        else:
            yield from (node, *_nodes(node))


@cache
def _digests(module: str) -> dict[str, str]:
    """Returns the digest of the code of `module`, comments, docstrings and layout aside, and of
    each file beside it that it names.
    """
    if (file := _file_of(module)) is None:
        return {}
    tree = _tree(file)
    named = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    beside = [
        path
        for path in file.parent.iterdir()
        if path.name in named and path.suffix != ".py" and path.is_file()
    ]
    texts = {f"{module.rpartition('.')[0]}/{path.name}": path.read_bytes() for path in beside}
    texts[module] = ast.dump(_without_docstrings(tree)).encode()
    return {name: hashlib.sha256(text).hexdigest()[:16] for name, text in texts.items()}


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _file_of(module: str) -> Path | None:
    """Returns the text of a module; None for one of a library without text, such as
    `builtins`.
    """
    path = _place_of(module)
    if path is None and _is_ours(module):
        raise ModuleNotFoundError(f"there is no module {module}", name=module)
    return path if path is not None and path.suffix == ".py" else None


@cache
def _place_of(module: str) -> Path | None:
    """Returns the file of a module without importing it; None where there is none."""
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*inner)
    places = (
        (place / "__init__.py", place.with_name(f"{place.name}.py"))
        if inner
        else (Path(spec.origin),)
    )
    return next((path for path in places if path.is_file()), None)


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in {"hnm", "pipelines"}


def _is_library(name: str) -> bool:
    return not _is_ours(name) and name not in CARRIERS and name not in sys.stdlib_module_names


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                part
                for part in node.body
                if not (
                    isinstance(part, ast.Expr)
                    and isinstance(part.value, ast.Constant)
                    and isinstance(part.value.value, str)
                )
            ]
    return tree
