"""The import rules of the design: who may know whom, and which packages load when nothing heavy is asked for."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "prvr_ray"

# layer -> the layers that it may import besides itself. A layer is a module or package below prvr_ray.
KERNELS = {"config", "schema"}
STORED = KERNELS | {"storage", "collection"}
MAY_IMPORT = {
    "__init__": None,  # the public API names what users call, whatever layer it is of
    "config": set(),
    "schema": set(),
    "storage": {"schema"},
    "corpus": KERNELS,
    "encoders": KERNELS,
    "student": KERNELS | {"retrieval"},  # an epoch is judged by the metrics that an evaluation reports
    "retrieval": KERNELS,
    "tuning": KERNELS,
    "collection": {"storage", "schema"},
    "history": {"storage"},
    "maintenance": {"schema", "storage", "collection", "history"},
    "runs": KERNELS | {"storage", "student"},
    # These two share modules of `stages` that know nothing of Ray; a test below takes Ray away.
    "lookup": STORED | {"retrieval", "runs", "stages", "student"},
    "api": STORED | {"encoders", "lookup", "runs", "stages"},
    "report": STORED | {"corpus", "history", "lookup", "retrieval", "runs"},
    "stages": STORED | {"corpus", "encoders", "history", "report", "retrieval", "runs", "student", "tuning"},
    "terminal": {"report"},  # numbers read the same there and on the page
    "commands": STORED | {"api", "corpus", "maintenance", "report", "stages", "terminal"},
    "cli": {"commands", "config", "history", "storage", "terminal"},
}
# A stage does not import another one; these modules are not stages but what several of them share.
STAGES = {
    "ingest",
    "train",
    "tune",
    "index",
    "score",
    "evaluate",
    "tuning",
    "imports",
    "demo",
    "report",
    "doctor",
    "ablate",
}
ALLOWED_BETWEEN_STAGES = {("tune", "train"), ("demo", "*")}
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


def layer_of(module: str) -> str | None:
    """The layer of a module of ours: `prvr_ray.stages.train` is of `stages`."""
    parts = module.split(".")
    if parts[0] != "prvr_ray":
        return None
    known = parts[1] if len(parts) > 1 else "__init__"
    return known if known in MAY_IMPORT else "__init__"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_the_layers_below_it(path):
    layer = layer_of(name_of(path))
    assert layer != "__init__" or path == PACKAGE / "__init__.py", f"{path} is of no layer: give it one in MAY_IMPORT"
    allowed = MAY_IMPORT[layer]
    if allowed is None:
        return
    wrong = {
        module
        for module, _ in imports(path)
        if (target := layer_of(module)) not in {None, layer, "__init__"} and target not in allowed
    }
    assert not wrong, f"{layer} may import {sorted(allowed)}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_only_stages_import_ray(path):
    uses_ray = any(module.split(".")[0] == "ray" for module, _ in imports(path))
    assert not uses_ray or layer_of(name_of(path)) == "stages"


def test_stages_do_not_import_each_other():
    wrong = set()
    for path in (PACKAGE / "stages").glob("*.py"):
        for module, _ in imports(path):
            parts = module.split(".")
            if (
                parts[:2] != ["prvr_ray", "stages"]
                or len(parts) < 3
                or path.stem not in STAGES
                or parts[2] not in STAGES
            ):
                continue
            if parts[2] != path.stem and not {(path.stem, parts[2]), (path.stem, "*")} & ALLOWED_BETWEEN_STAGES:
                wrong.add((path.stem, parts[2]))
    assert not wrong


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_kernels_open_no_storage(path):
    if layer_of(name_of(path)) in {"student", "retrieval", "encoders", "corpus", "tuning"}:
        roots = {module.split(".")[0] for module, _ in imports(path)}
        assert not roots & {"boto3", "botocore", "fsspec", "s3fs", "ray"}


@pytest.mark.parametrize("name", ["cli", "commands", "config", "terminal"])
def test_the_command_line_loads_nothing_heavy_at_module_level(name):
    roots = {module.split(".")[0] for module, is_at_once in imports(PACKAGE / f"{name}.py") if is_at_once}
    assert not roots & HEAVY


@pytest.mark.parametrize(
    ("absent", "layers"),
    [
        (
            ["ray", "boto3", "matplotlib", "h5py", "optuna"],
            ["collection", "config", "corpus", "encoders", "maintenance", "retrieval", "schema", "storage", "student"],
        ),
        (["ray"], ["api", "history", "lookup", "report", "runs"]),
    ],
)
def test_all_but_the_stages_imports_where_packages_are_absent(absent, layers):
    names = [name_of(path) for path in modules() if layer_of(name_of(path)) in layers]
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
    for test in (test_a_module_imports_only_the_layers_below_it, test_only_stages_import_ray):
        with pytest.raises(AssertionError):
            test(module)
