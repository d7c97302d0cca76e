"""The picture of the house, docs/house.svg: files on their floors, and arrows for what imports what (`make house`)."""

from collections import defaultdict

import matplotlib.pyplot as plt
from architecture import EDGES, NAMES, ROOT, floor
from matplotlib.patches import FancyBboxPatch

FLOORS = ("the ground", "methods, side by side", "on top of the methods", "the study", "pages and runs")
COLOURS = ("#E8E8E8", "#CFE3F2", "#D9EAD3", "#F6EDB5", "#F4D9CC")
CELL, LINE = 1.95, 0.17


def rooms() -> dict[str, list[str]]:
    """Names of the modules by their room: a package of the library, the pages, the workflow, or a single module."""
    found = defaultdict(list)
    for module in sorted(NAMES):
        parts = module.split(".")
        if module == "emphase":
            continue
        if parts[0] == "emphase":
            package = NAMES[module].parent.name
            found[parts[1] if package != "emphase" else "ground" if floor(module) == 0 else parts[1]].append(parts[-1])
        else:
            found[parts[0]].append(parts[-1])
    return {room: [name for name in names if name != room or len(names) == 1] for room, names in found.items()}


def room_of(module: str) -> str:
    """The room that a module stands in."""
    parts = module.split(".")
    return parts[0] if len(parts) == 1 or parts[0] != "emphase" else "ground" if floor(module) == 0 else parts[1]


def arrows() -> set[tuple[str, str]]:
    """Rooms that import from another room, and that one; what a room reaches through a further one is left out."""
    direct = {(room_of(m), room_of(o)) for m in EDGES for o in EDGES[m] if "emphase" not in (m, o)}
    direct = {(a, b) for a, b in direct if a != b}
    return {
        (a, b) for a, b in direct if not any((a, c) in direct and (c, b) in direct for c in {x for pair in direct for x in pair} - {a, b})
    }


def draw() -> plt.Figure:
    """The house as a figure."""
    held, level = rooms(), {}
    for module in NAMES:
        level.setdefault(room_of(module), floor(module))
    rows = [sorted(room for room in held if level[room] == k) for k in range(len(FLOORS))]
    heights = [0.55 + LINE * max(len(wrapped(held[room], row)) for room in row) for row in rows]
    width = CELL * max(map(len, rows))
    fig, ax = plt.subplots(figsize=(width + 0.3, sum(heights) + 0.55 * len(rows)))
    places, bottom = {}, 0.0
    for k, row in enumerate(rows):
        step = width / len(row)
        ax.text(0, bottom + heights[k] + 0.08, FLOORS[k], fontsize=8, color="0.35", style="italic")
        for i, room in enumerate(row):
            places[room] = (i * step + 0.06, bottom, step - 0.12, heights[k])
            ax.add_patch(
                FancyBboxPatch((places[room][0], bottom), step - 0.12, heights[k], boxstyle="round,pad=0,rounding_size=0.05", fc=COLOURS[k])
            )
            ax.text(i * step + step / 2, bottom + heights[k] - 0.2, title(room), ha="center", fontsize=8.5, weight="bold")
            ax.text(i * step + step / 2, bottom + heights[k] - 0.32, "\n".join(wrapped(held[room], row)), ha="center", va="top", fontsize=7)
        bottom += heights[k] + 0.55
    style = {"arrowstyle": "->", "color": "0.4", "lw": 0.8}
    for a, b in sorted(arrows()):
        (xa, ya, wa, _), (xb, yb, wb, hb) = places[a], places[b]
        curve = {"connectionstyle": "arc3,rad=-0.15"} if ya == yb else {}
        if ya > yb:
            ends = {"xy": (xb + wb / 2, yb + hb), "xytext": (xa + wa / 2, ya)}
        else:
            ends = {"xy": (xb + wb / 2, yb + hb), "xytext": (xa + wa / 2, ya + hb)}
        ax.annotate("", **ends, zorder=0, arrowprops=style | curve)
    ax.set(xlim=(-0.1, width + 0.1), ylim=(-0.1, bottom - 0.2))
    ax.set_axis_off()
    return fig


def title(room: str) -> str:
    """What stands over a room."""
    single = f"emphase.{room}" in NAMES and NAMES[f"emphase.{room}"].name != "__init__.py"
    return {"ground": "src/emphase", "helpers": "helpers.py"}.get(room, f"{room}.py" if single else f"{room}/")


def wrapped(names: list[str], row: list[str]) -> list[str]:
    """The names of a room in lines, several in one where the room is wide."""
    each = max(1, 8 // len(row))
    return [", ".join(names[k : k + each]) for k in range(0, len(names), each)] if len(names) > 1 else []


if __name__ == "__main__":
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "house", "font.family": "sans-serif"})
    path = ROOT / "docs" / "house.svg"
    draw().savefig(path, bbox_inches="tight", metadata={"Date": None})
    print(path.relative_to(ROOT))
