"""A bundle → an engine for each of its graphs, in this machine's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from affectrt.backends.tensorrt import engine_key
from affectrt.bundle import Bundle
from affectrt.engines import TIMING_BUILD, Engine, EngineBuild, EngineCache, Profile
from affectrt.errors import require
from affectrt_export.engine.build import Options, Progress, build_engine


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
    *,
    rebuild: bool,
    show: Callable[[str], AbstractContextManager[Progress | None]],
) -> Iterator[Built]:
    """Build what isn't in the cache, or all of it, one graph after the other.

    ``shapes``: as :func:`affectrt_export.engine.profile.profiles` gives them. ``show``: called with what is
    being built, gives a context with what shows the progress, or None.

    Raises ``gpu.missing``, ``engine.cache`` and as :func:`build_engine`; what was built before stays.
    """
    cache = EngineCache()
    for graph, member in bundle.manifest.graphs.items():
        key = engine_key(bundle, graph)
        build = EngineBuild(options.precision, options.version_compatible, shapes[graph])
        found = cache.find(key, build)
        if isinstance(found, Engine) and not rebuild:
            yield Built(graph, cache.folder / f"{key.stem}.engine", len(found.data), None, "")
            continue
        reason = "asked for" if isinstance(found, Engine) else found.reason
        timings = cache.find(key.timing(), TIMING_BUILD)
        start = monotonic()
        with show(f"{graph}: ONNX → TensorRT on {key.gpu}") as progress:
            engine, learnt = build_engine(
                bundle.read(member),
                f"{bundle.manifest.name}/{member}",
                shapes[graph],
                options,
                timings.data if isinstance(timings, Engine) else b"",
                progress,
            )
        cache.store(key.timing(), TIMING_BUILD, learnt)
        path = cache.store(key, build, engine)
        yield Built(graph, path, len(engine), monotonic() - start, reason)


@contextmanager
def bars(title: str) -> Iterator[Progress]:
    """The builder's phases as bars on stderr, below a title."""
    rich: Any = require("rich.progress", "tensorrt")
    console: Any = require("rich.console", "tensorrt").Console(stderr=True)
    with rich.Progress(console=console, transient=True) as shown:
        shown.add_task(title, total=None)
        yield Progress(shown)
