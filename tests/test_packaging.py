"""What a wheel built from a clean copy of the checkout holds, and that it works in a fresh environment elsewhere."""

import ast
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import fusegraph

ROOT = Path(__file__).resolve().parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCE_FOLDERS = {"fusegraph": "fusegraph", "fusegraph.passes": "passes", "fusegraph.codegen": "codegen"}


def modules_of_checkout() -> set[str]:
    """Paths that the modules of the checkout must have inside the wheel."""
    members = set()
    for package, folder in SOURCE_FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            members.add(str(Path(*package.split("."), path.relative_to(ROOT / folder)).as_posix()))
    return members


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built by setuptools alone, without a network, from a copy without caches or build folders."""
    setuptools = importlib.util.find_spec("setuptools")
    if setuptools is None:
        pytest.skip("setuptools is not installed")
    version = tuple(int(part) for part in importlib.metadata.version("setuptools").split(".")[:1])
    if version < (77,):
        pytest.skip("setuptools 77 or newer is needed to build")
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    ignored = shutil.ignore_patterns(
        "__pycache__", ".*", "*.egg-info", "build", "dist", "out", "tests", "docs", "shared"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    command = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", command], cwd=source, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel and this one's libraries, without its fusegraph."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", query], check=True, capture_output=True, text=True).stdout.strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # A path added by a .pth file is searched last and its own .pth files (an editable fusegraph) are not read.
    (site / "libraries.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return python


def run_outside(python: Path, folder: Path, code: str) -> str:
    """Run `code` far away from the checkout, as a user's script would run, and return what it printed."""
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["FUSEGRAPH_CACHE_DIR"] = str(folder / "cache")
    done = subprocess.run(
        [python, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_package_of_the_checkout_is_listed() -> None:
    found = {".".join(Path(member).parent.parts) for member in modules_of_checkout()}
    assert set(CONFIG["tool"]["setuptools"]["packages"]) == found


def test_version_is_the_same_everywhere() -> None:
    assert fusegraph.__version__ == CONFIG["project"]["version"]


def test_every_package_has_an_init_file() -> None:
    for package, folder in SOURCE_FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} of {package} lacks __init__.py"


def test_modules_are_imported_by_their_installed_names() -> None:
    """`import passes` would work in the checkout and nowhere else."""
    for folder in SOURCE_FOLDERS.values():
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names.append(node.module or "")
                wrong = {name for name in names if name.split(".")[0] in ("passes", "codegen", "tests", "examples")}
                assert not wrong, f"{path}:{node.lineno} imports {wrong}"


def test_wheel_holds_fusegraph_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = set(archive.namelist())
    info = f"fusegraph-{CONFIG['project']['version']}.dist-info/"
    package = {member for member in members if not member.startswith(info)}
    assert {member.split("/")[0] for member in package} == {"fusegraph"}
    assert {member for member in package if member.endswith(".py")} == modules_of_checkout()
    assert "fusegraph/py.typed" in package
    assert f"{info}licenses/LICENSE" in members


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (member for member in archive.namelist() if member.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    core = {
        requirement.split(">")[0] for requirement in metadata.get_all("Requires-Dist") if "extra ==" not in requirement
    }
    assert core == {"numpy", "llvmlite", "numba", "networkx"}
    assert set(metadata.get_all("Provides-Extra")) >= {"examples", "dev", "cuda", "mpi"}


def test_wheel_imports_outside_of_the_checkout(fresh_python: Path, tmp_path: Path) -> None:
    code = """
import importlib.util, sys
import fusegraph, fusegraph.passes, fusegraph.codegen.cpu
for module in (fusegraph, fusegraph.passes, fusegraph.codegen.cpu):
    print(module.__file__)
print(importlib.util.find_spec("passes"), importlib.util.find_spec("codegen"))
print(sorted({"numba", "networkx", "torch", "rich", "scipy", "matplotlib"} & set(sys.modules)))
"""
    lines = run_outside(fresh_python, tmp_path, code).splitlines()
    assert all(line.startswith(str(fresh_python.parents[1])) for line in lines[:3])
    assert lines[3:] == ["None None", "[]"]  # and the import loads no heavy library


def test_wheel_compiles_and_trains_a_model_outside_of_the_checkout(fresh_python: Path, tmp_path: Path) -> None:
    code = """
import numpy as np
import fusegraph as fg
import fusegraph.functional as F
from fusegraph import nn, optim

fg.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
opt = optim.SGD(model.parameters(), lr=0.5)

@fg.compile
def step(x, y):
    opt.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    return loss

rng = np.random.default_rng(0)
x = rng.standard_normal((32, 4)).astype(np.float32)
y = (x[:, 0] > 0).astype(np.int64)
losses = [step(fg.tensor(x), fg.tensor(y)).item() for _ in range(50)]
print(losses[0], losses[-1])
"""
    first, last = map(float, run_outside(fresh_python, tmp_path, code).split())
    assert 0.3 < first < 1.5
    assert last < first / 2
