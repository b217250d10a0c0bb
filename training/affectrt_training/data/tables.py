"""CSV tables of data sets."""

from __future__ import annotations

import csv
from pathlib import Path

from affectrt.errors import AffectError


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column name. Raises ``data.not_found``."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise AffectError("data.not_found", f"expected the data set's table {path.name} at {path}") from None
