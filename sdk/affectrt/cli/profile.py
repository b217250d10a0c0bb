"""``--profile``: where the time went, for people."""

from __future__ import annotations

from affectrt.machine import machine
from affectrt.profiling import StageTimer

LOADING = "load model"
"""The stage that happens once, however long the media: not part of the real-time factor."""

_BAR_WIDTH = 30


def profile_text(timer: StageTimer, elapsed_s: float, media_s: float, backend: str) -> str:
    """Stages with their time and share of ``elapsed_s``, the real-time factor, what it holds for."""
    stages = {name: seconds for name, seconds in timer.seconds.items() if name != LOADING}
    stages["everything else"] = max(0.0, elapsed_s - sum(stages.values()))
    lines = ["", "where the time goes"]
    for name, seconds in sorted(stages.items(), key=lambda item: -item[1]):
        share = seconds / elapsed_s if elapsed_s else 0.0
        bar = "█" * round(share * _BAR_WIDTH)
        lines.append(f"  {name:<20} {seconds:>8.3f} s  {share:>4.0%}  {bar}".rstrip())
    factor = f"{elapsed_s / media_s:.3f}" if media_s else "undefined"
    loading_s = timer.seconds.get(LOADING, 0.0)
    lines += [
        f"  {'total':<20} {elapsed_s:>8.3f} s  for {media_s:.1f} s of input",
        f"real-time factor {factor} (loading the model took {loading_s:.2f} s, not counted)",
        f"fusion on {backend}",
        f"machine: {machine()}",
    ]
    return "\n".join(lines)
