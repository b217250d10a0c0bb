"""One spelling for the emotion names that corpora use."""

from __future__ import annotations

from affectrt.affect import EMOTIONS
from affectrt.errors import AffectError

ALIASES: dict[str, str] = {
    "angry": "anger",
    "annoyed": "anger",
    "disgusted": "disgust",
    "afraid": "fear",
    "fearful": "fear",
    "happy": "joy",
    "happiness": "joy",
    "calm": "neutral",
    "sad": "sadness",
    "surprised": "surprise",
}
"""Other corpora's names → ours. RAVDESS' "calm" counts as neutral."""


def emotion_index(name: str) -> int:
    """Index of an emotion in :data:`affectrt.affect.EMOTIONS`, by our name or a known alias.

    Raises ``label.unknown_emotion``.
    """
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key not in EMOTIONS:
        raise AffectError(
            "label.unknown_emotion",
            f"unknown emotion '{name}'; expected one of {', '.join(EMOTIONS)} "
            f"or an alias: {', '.join(sorted(ALIASES))}",
        )
    return EMOTIONS.index(key)
