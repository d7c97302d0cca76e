"""Tables as 09_validation.json holds them: rows as dicts, keys that are names with their unit."""

from __future__ import annotations

from typing import Any

import pandas as pd

#: Keys of columns whose names have units or signs; in others a space becomes an underscore.
_KEYS = {
    "scale given off (%)": "scale_given_off_percent",
    "scale found off (%)": "scale_found_off_percent",
    "orientation off, median (deg)": "orientation_off_deg",
    "patterns per s": "patterns_per_s",
    "clear spots, median": "clear_spots",
}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as dicts; what is missing is left out of its row.

    >>> records(pd.DataFrame({"phases right": [1.0, 0.5], "patterns per s": [700.0, None]}))
    [{'phases_right': 1.0, 'patterns_per_s': 700.0}, {'phases_right': 0.5}]
    """
    keys = {name: _KEYS.get(name, name.replace(" ", "_")) for name in table.columns}
    return [{keys[k]: v for k, v in row.items() if v == v} for row in table.to_dict("records")]
