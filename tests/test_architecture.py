"""The packages' layers: arrows point one way, and heavy libraries stay behind their own package."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"adaptmedseg": ROOT / "adaptmedseg", "adaptmedseg.preprocessing": ROOT / "preprocessing"}

# What each part may import besides itself and `errors`. Everything else is an arrow in the wrong direction.
MODEL = {"modules", "models", "adapters"}
FILES = {*MODEL, "checkpoints", "device"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "device": set(),
    "assets": set(),
    "configs": set(),
    "phantoms": set(),
    "data": set(),
    "preprocessing": {"data"},
    "modules": set(),
    "adapters": {"modules", "models", "checkpoints", "data"},
    "models": {"modules", "adapters"},
    "checkpoints": {*MODEL, "data"},
    "training": {*FILES, "data"},
    "inference": {*FILES, "data", "training"},
    "evaluation": {*FILES, "data", "training", "inference"},
    "comparison": {*FILES, "data", "training", "inference", "evaluation"},
    "bench": {*FILES, "data", "training", "inference", "evaluation", "preprocessing", "phantoms"},
    "doctor": {*FILES, "data", "training", "inference", "evaluation"},
    "launch": {"data", "training"},
    "reproduction": {*FILES, "data", "training", "inference", "evaluation"},
    "view": {*FILES, "data", "inference"},
    "train": {"cli"},  # what a launcher of several processes runs
    "cli": {
        *FILES,
        "data",
        "training",
        "inference",
        "evaluation",
        "preprocessing",
        "phantoms",
        "bench",
        "doctor",
        "comparison",
        "launch",
        "reproduction",
        "view",
    },
}
OWNERS = {
    "nibabel": {"data", "preprocessing", "phantoms"},
    "SimpleITK": {"data", "preprocessing", "phantoms"},
    "PIL": {"data", "doctor", "evaluation"},
    "tifffile": {"data"},
    "accelerate": {"training"},
    "typer": {"cli"},
    "matplotlib": {"evaluation"},
    "open_clip": {"modules"},
}


def sources() -> list[tuple[str, Path]]:
    """Every source file with its dotted name."""
    return [
        (".".join([package, *path.relative_to(folder).with_suffix("").parts]), path)
        for package, folder in FOLDERS.items()
        for path in sorted(folder.rglob("*.py"))
    ]


def imports(name: str, tree: ast.AST) -> set[str]:
    """Absolute dotted names of everything a file imports, relative imports resolved."""
    found: set[str] = set()
    package = name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def part(name: str) -> str:
    pieces = name.split(".")
    return pieces[1] if len(pieces) > 1 else ""


SOURCES = sources()


@pytest.fixture(params=SOURCES, ids=[name for name, _ in SOURCES])
def source(request: pytest.FixtureRequest) -> tuple[str, ast.AST]:
    name, path = request.param
    return name, ast.parse(path.read_text(encoding="utf-8"))


def test_arrows_point_one_way(source: tuple[str, ast.AST]) -> None:
    name, tree = source
    own = part(name)
    if own in ("__init__", "__main__"):
        return
    assert own in ALLOWED, f"{own} has no place in the layers"
    targets = {part(target) for target in imports(name, tree) if target.startswith("adaptmedseg.")}
    wrong = targets - ALLOWED[own] - {own, "errors", "__version__"}
    assert not wrong, f"{name} imports {sorted(wrong)}"


def test_libraries_stay_with_their_owners(source: tuple[str, ast.AST]) -> None:
    name, tree = source
    used = {target.split(".")[0] for target in imports(name, tree)}
    strays = sorted(library for library in used & OWNERS.keys() if part(name) not in OWNERS[library])
    assert not strays, f"{name} imports {strays}"


def test_nothing_names_a_device_or_swallows_errors(source: tuple[str, ast.AST]) -> None:
    name, tree = source
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr != "cuda", f"{name}:{node.lineno}: .cuda() instead of .to(device)"
            bare = node.func.attr == "squeeze" and not node.args and not node.keywords
            assert not bare, f"{name}:{node.lineno}: .squeeze() without an axis"
        if isinstance(node, ast.ExceptHandler):
            caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"everything"}
            raises = any(isinstance(n, ast.Raise) for n in ast.walk(node))
            assert raises or not caught & {"everything", "Exception", "BaseException"}, (
                f"{name}:{node.lineno}: bare except"
            )
            assert node.type is not None, f"{name}:{node.lineno}: except without a type"


def test_no_pickled_code_is_ever_run(source: tuple[str, ast.AST]) -> None:
    """Published checkpoints are pickles; one module reads them, and tensors alone."""
    name, tree = source
    pickling = {t for t in imports(name, tree) if t.split(".")[0] in {"pickle", "joblib", "dill"}}
    assert pickling <= {"pickle.UnpicklingError"}, f"{name} imports {sorted(pickling)}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert name == "adaptmedseg.checkpoints.foreign", f"{name} calls torch.load"
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options["weights_only"] == "True"


def test_the_whole_package_was_looked_at() -> None:
    names = {name for name, _ in SOURCES}
    assert {"adaptmedseg.models.segvol", "adaptmedseg.preprocessing.folder", "adaptmedseg.errors"} <= names
    assert len(names) > 40


def test_every_package_is_installed() -> None:
    """The list in pyproject.toml is written by hand, for two top-level folders are installed inside the package."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "adaptmedseg").rglob("*.py")} | {
        ROOT / "adaptmedseg/evaluation/templates",
        ROOT / "adaptmedseg/doctor/templates",
        ROOT / "adaptmedseg/view/page",
    }
    inside = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    for top in ("preprocessing", "configs"):
        inside |= {
            ".".join(("adaptmedseg", *path.parent.relative_to(ROOT).parts)) for path in (ROOT / top).rglob("*.py")
        }
    assert sorted(listed) == sorted(inside)
