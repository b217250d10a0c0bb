"""A bundle → an engine for each of its graphs, in this machine's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from affectrt.backends.tensorrt import engine_key
from affectrt.bundle import Bundle
from affectrt.engines import TIMING_BUILD, Engine, EngineBuild, EngineCache, Profile
from affectrt.errors import AffectError, require
from affectrt_export.engine.build import Options, Progress, build_engine
from affectrt_export.engine.kernels import Kernel, with_kernels


@dataclass(frozen=True)
class Built:
    """What became of one graph."""

    graph: str
    """``text``, ``audio``, ``vision`` or ``fusion``."""
    path: Path
    """Its engine."""
    bytes: int
    """The engine's size."""
    seconds: float | None
    """What building took; None when it was there already."""
    reason: str
    """Why it was built."""


def build_engines(
    bundle: Bundle,
    shapes: Mapping[str, Profile],
    options: Options,
    kernels: Mapping[int, Kernel],
    *,
    rebuild: bool,
    show: Callable[[str], AbstractContextManager[Progress | None]],
) -> Iterator[Built]:
    """Build what isn't in the cache, or all of it, one graph after the other.

    ``shapes``: as :func:`affectrt_export.engine.profile.profiles` gives them; ``kernels``: for the fusion
    model's recurrence, by state size, or none. ``show``: called with what is being built, gives a context
    with what shows the progress, or None.

    Raises ``gpu.missing``, ``engine.cache``, ``engine.kernels`` when no kernel is of use, and as
    :func:`build_engine`; what was built before stays.
    """
    cache = EngineCache()
    fusion, used = with_kernels(bundle.read(bundle.manifest.graphs["fusion"]), kernels)
    if kernels and not used:
        raise AffectError(
            "engine.kernels",
            f"model {bundle.manifest.name}: expected a recurrence of one gate with a state of "
            f"{', '.join(map(str, kernels))}, its fusion graph has none; leave out --kernels, or compile "
            f"them with --bundle for this model",
        )
    flags = _register(used)
    for graph, member in bundle.manifest.graphs.items():
        key = engine_key(bundle, graph)
        held = "+".join(kernel.sha256 for kernel in used) if graph == "fusion" else ""
        build = EngineBuild(options.precision, options.version_compatible, shapes[graph], held)
        found = cache.find(key, build)
        if isinstance(found, Engine) and not rebuild:
            yield Built(graph, cache.folder / f"{key.stem}.engine", len(found.data), None, "")
            continue
        reason = "asked for" if isinstance(found, Engine) else found.reason
        timings = cache.find(key.timing(), TIMING_BUILD)
        start = monotonic()
        with show(f"{graph}: ONNX → TensorRT on {key.gpu}") as progress:
            engine, learnt = build_engine(
                fusion if graph == "fusion" else bundle.read(member),
                f"{bundle.manifest.name}/{member}",
                shapes[graph],
                options,
                timings.data if isinstance(timings, Engine) else b"",
                progress,
                flags if graph == "fusion" else 0,
            )
        cache.store(key.timing(), TIMING_BUILD, learnt)
        path = cache.store(key, build, engine)
        yield Built(graph, path, len(engine), monotonic() - start, reason)


def _register(kernels: Iterable[Kernel]) -> int:
    """Make TensorRT know them, and return the flags of networks that hold them."""
    flags = 0
    for kernel in kernels:
        import tensorrt as trt

        if not hasattr(trt, "QuickPluginCreationRequest"):
            raise AffectError(
                "engine.kernels",
                f"--kernels: expected TensorRT 10.9 or later, got {trt.__version__}, whose plugins can't be "
                f"compiled ahead of time; leave out --kernels",
            )
        from affectrt_export.engine.plugin import NETWORK_FLAGS, register

        register(kernel)
        flags = NETWORK_FLAGS
    return flags


@contextmanager
def bars(title: str) -> Iterator[Progress]:
    """The builder's phases as bars on stderr, below a title."""
    rich: Any = require("rich.progress", "tensorrt")
    console: Any = require("rich.console", "tensorrt").Console(stderr=True)
    with rich.Progress(console=console, transient=True) as shown:
        shown.add_task(title, total=None)
        yield Progress(shown)
