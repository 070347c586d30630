"""The import rules of the design: who may know whom, and which packages load when nothing heavy is asked for."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "prvr_ray"

# package -> the packages that it may import besides itself. A module directly below prvr_ray counts as a package.
KERNELS = {"config", "schema"}
STORED = KERNELS | {"storage", "collection"}
MAY_IMPORT = {
    "__init__": {"notebook"},
    "config": set(),
    "schema": set(),
    "devices": set(),
    "home": set(),
    "progress": set(),
    "worker_errors": set(),
    "storage": {"home", "schema"},
    "collection": {"storage", "schema", "worker_errors"},
    "annotations": KERNELS,
    "video": KERNELS,
    "encoders": KERNELS | {"home", "storage"},  # weights may lie in an object store
    "retrieval": KERNELS,
    "student": KERNELS | {"retrieval"},  # an epoch is judged by the metrics that an evaluation reports
    "features": STORED | {"annotations", "devices", "encoders", "home", "progress", "video"},
    "runs": STORED | {"student"},
    "index": STORED | {"progress", "retrieval", "runs", "student"},
    "scores": STORED | {"annotations", "encoders", "index", "retrieval", "runs", "student"},
    "evaluation": STORED | {"devices", "index", "retrieval", "runs", "student"},
    "tuning": STORED | {"retrieval", "runs"},
    "demo": KERNELS | {"annotations"},
    "notebook": STORED | {"encoders", "runs", "scores"},
    "report": STORED | {"evaluation", "retrieval", "runs", "scores", "video"},
    "stages": STORED
    | {"annotations", "demo", "devices", "encoders", "evaluation", "features", "index", "progress", "report"}
    | {"retrieval", "runs", "scores", "student", "tuning", "video", "worker_errors"},
    "cli": STORED | {"annotations", "features", "home", "notebook", "report", "stages"},
}
RAY_FREE = sorted(set(MAY_IMPORT) - {"__init__", "cli", "stages"})
# A stage imports what several stages share, never another stage; the demo runs all of them.
STAGES = {"ingest", "train", "tune", "index", "score", "evaluate", "demo", "doctor", "ablate", "submit"}
HEAVY = {"torch", "ray", "av", "open_clip", "pyarrow"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module of a file with its absolute name, and whether it is imported when the file is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(child) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for child in ast.walk(node)}
    for node in ast.walk(tree):
        is_at_once = id(node) not in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, is_at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(path, node)
            yield base, is_at_once
            yield from ((f"{base}.{alias.name}", is_at_once) for alias in node.names)


def absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    package = package[: len(package) - (node.level - 1)]
    return ".".join([*package, *([node.module] if node.module else [])])


def package_of(module: str) -> str | None:
    """`prvr_ray.stages.train` belongs to `stages`; None for a module that is not ours."""
    parts = module.split(".")
    if parts[0] != "prvr_ray":
        return None
    known = parts[1] if len(parts) > 1 else "__init__"
    return known if known in MAY_IMPORT else "__init__"


def stages_that_reach_ray() -> set[str]:
    """Modules of stages/ that import ray, or import a module of stages/ that does."""
    wanted = {path.stem: set() for path in (PACKAGE / "stages").glob("*.py")}
    reach = set()
    for path in (PACKAGE / "stages").glob("*.py"):
        names = {module for module, _ in imports(path)}
        if any(name.split(".")[0] == "ray" for name in names):
            reach.add(path.stem)
        wanted[path.stem] = {name.split(".")[2] for name in names if name.startswith("prvr_ray.stages.")}
    while more := {name for name, used in wanted.items() if used & reach} - reach:
        reach |= more
    return reach


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_the_packages_below_its_own(path):
    package = package_of(name_of(path))
    assert package != "__init__" or path == PACKAGE / "__init__.py", f"{path} is in no package of MAY_IMPORT: add it"
    allowed = MAY_IMPORT[package]
    wrong = {
        module
        for module, _ in imports(path)
        if (target := package_of(module)) not in {None, package, "__init__"} and target not in allowed
    }
    assert not wrong, f"{package} may import {sorted(allowed)}"


def test_packages_form_no_cycle():
    remaining = {name: set(below) for name, below in MAY_IMPORT.items()}
    while leaves := {name for name, below in remaining.items() if not below & set(remaining)}:
        remaining = {name: below for name, below in remaining.items() if name not in leaves}
    assert not remaining, f"a cycle among {sorted(remaining)}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_stages_import_ray(path):
    uses_ray = any(module.split(".")[0] == "ray" for module, _ in imports(path))
    assert not uses_ray or package_of(name_of(path)) == "stages"


def test_stages_holds_nothing_that_works_without_ray():
    assert {path.stem for path in (PACKAGE / "stages").glob("*.py")} - stages_that_reach_ray() == {"__init__"}


def test_stages_do_not_import_each_other():
    wrong = {
        (path.stem, name)
        for path in (PACKAGE / "stages").glob("*.py")
        for module, _ in imports(path)
        if module.startswith("prvr_ray.stages.") and (name := module.split(".")[2]) in STAGES - {path.stem}
    }
    assert {(stage, used) for stage, used in wrong if stage in STAGES - {"demo"}} == set()


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_kernels_open_no_storage(path):
    if package_of(name_of(path)) in {"student", "retrieval", "encoders", "annotations", "video"}:
        roots = {module.split(".")[0] for module, _ in imports(path)}
        assert not roots & {"boto3", "botocore", "fsspec", "s3fs", "ray"}


@pytest.mark.parametrize("name", ["cli/main", "cli/commands", "cli/tables", "config/__init__", "config/train"])
def test_the_command_line_loads_nothing_heavy_at_module_level(name):
    roots = {module.split(".")[0] for module, is_at_once in imports(PACKAGE / f"{name}.py") if is_at_once}
    assert not roots & HEAVY


@pytest.mark.parametrize(
    ("absent", "packages"),
    [
        (
            ["ray", "boto3", "matplotlib", "h5py", "optuna"],
            [
                "annotations",
                "collection",
                "config",
                "encoders",
                "features",
                "retrieval",
                "schema",
                "storage",
                "student",
                "video",
            ],
        ),
        (["ray"], RAY_FREE),
    ],
)
def test_all_but_the_stages_imports_where_packages_are_absent(absent, packages):
    names = [name_of(path) for path in modules() if package_of(name_of(path)) in packages]
    probe = (
        "import importlib, sys\n"
        f"for name in {absent!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, check=False)
    assert names
    assert ran.returncode == 0, ran.stderr


def test_help_loads_nothing_heavy():
    probe = (
        "import sys\n"
        "from prvr_ray.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"sys.exit(str({HEAVY!r} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stderr.strip() == "set()"


def test_the_walk_sees_wrong_arrows(tmp_path, monkeypatch):
    """The rules above would be worth nothing if the walk missed an import."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "prvr_ray")
    module = tmp_path / "prvr_ray" / "student" / "model.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "from ..storage import open_store\nfrom .. import stages\nimport ray.train as t\n"
        "def later():\n    from prvr_ray.stages.train import train\n"
    )
    assert set(imports(module)) == {
        ("prvr_ray.storage", True),
        ("prvr_ray.storage.open_store", True),
        ("prvr_ray", True),
        ("prvr_ray.stages", True),
        ("ray.train", True),
        ("prvr_ray.stages.train", False),
        ("prvr_ray.stages.train.train", False),
    }
    for test in (test_a_module_imports_only_the_packages_below_its_own, test_only_stages_import_ray):
        with pytest.raises(AssertionError):
            test(module)
