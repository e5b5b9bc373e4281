"""Draws the packages of tfloss and their imports, for docs/architecture.md.

    python docs/package_picture.py          # writes docs/packages.svg

The floors are those of `tests/test_architecture.py`, and the arrows are the imports in the code. An
arrow is left out if a longer path of arrows implies it.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.test_architecture import FLOORS, package_imports  # noqa: E402

PICTURE = ROOT / "docs" / "packages.svg"

# Each room: its column, and what a reader finds there.
ROOMS = {
    "app": (3.0, "scripts, command line"),
    "trainer": (3.0, "Trainer: loop, resume, logs"),
    "engine": (2.0, "K steps in one call"),
    "hooks": (4.0, "one file per hook"),
    "evaluation": (0.0, "metrics, validation losses"),
    "step": (2.0, "TrainStep: one update"),
    "replay": (5.0, "a failed step, again"),
    "balancing": (0.0, "weights from training"),
    "optimizers": (1.0, "groups, EMA, precision"),
    "data": (2.0, "batches for the replicas"),
    "saved_model": (3.0, "export"),
    "forward": (0.0, "named losses, summaries"),
    "inspect": (1.0, "ops of a traced step"),
    "distribute": (2.5, "strategies, workers"),
    "checkpoint": (4.0, "files, restoring"),
    "common, errors, _upstream": (1.25, "shared by all packages above"),
    "detection, datasets": (4.25, "for models and examples"),
}
JOINED = {
    "cli": "app",
    "__main__": "app",
    "summary": "forward",
}  # modules that are drawn in the room of a package
UNDRAWN = {"version", "adapters"}  # nothing imports them, and adapters import many others
SHARED = {"version", "common", "errors", "_upstream"}  # everything may import them: no arrows

WIDTH, HEIGHT, PITCH, STOREY, MARGIN = 158, 46, 176, 92, 14
WIDE = {"common, errors, _upstream": 480, "detection, datasets": 400}


def arrows() -> set[tuple[str, str]]:
    """The imports between rooms, without those that a longer path implies."""
    found: dict[str, set[str]] = {}
    for importer, imported in package_imports():
        if (SHARED | UNDRAWN) & {importer, imported}:
            continue
        above, below = JOINED.get(importer, importer), JOINED.get(imported, imported)
        if above != below:
            found.setdefault(above, set()).add(below)

    def below(room: str) -> set[str]:
        return found.get(room, set()).union(*map(below, found.get(room, ())))

    return {
        (above, room)
        for above, rooms in found.items()
        for room in rooms
        if not any(room in below(other) for other in rooms)
    }


def storey(room: str) -> int:
    """The number of the floor that a room is on, from the bottom."""
    return next(n for n, floor in enumerate(FLOORS) if room.split(",")[0] in floor)


def box(room: str) -> tuple[float, float, float, float]:
    """The left, top, right and bottom edge of a room."""
    width = WIDE.get(room, WIDTH)
    middle = MARGIN + WIDTH / 2 + PITCH * ROOMS[room][0]
    top = MARGIN + STOREY * (len(FLOORS) - 1 - storey(room))
    return middle - width / 2, top, middle + width / 2, top + HEIGHT


def line(above: str, below: str) -> str:
    """The path of an arrow: straight to the next floor, around a corner to those below it."""
    left, top, right, bottom = box(above)
    left_, top_, right_, bottom_ = box(below)
    x, x_, y = (left + right) / 2, (left_ + right_) / 2, (top + bottom) / 2
    floors = storey(above) - storey(below)
    if floors == 0:
        middles = [sum(box(room)[::2]) / 2 for room in ROOMS if storey(room) == storey(above)]
        if any(min(x, x_) < middle < max(x, x_) for middle in middles):  # below those in between
            return f"M {x} {bottom} V {bottom + 16} H {x_} V {bottom_}"
        return f"M {left if x_ < x else right} {y} H {right_ if x_ < x else left_}"
    if floors == 1:
        shift = max(-WIDTH / 3, min(WIDTH / 3, (x_ - x) / 6))
        return f"M {x + shift:g} {bottom} L {x_ - shift:g} {top_}"
    if x == x_:
        return f"M {x} {bottom} V {top_}"
    if storey(below) == 1 and storey(above) == 3:  # down, then in from the side
        return f"M {x} {bottom} V {(top_ + bottom_) / 2} H {right_ if x_ < x else left_}"
    return f"M {left if x_ < x else right} {y} H {x_} V {top_}"


def picture() -> str:
    """The whole picture, as SVG."""
    width = 2 * MARGIN + WIDTH + PITCH * max(column for column, _ in ROOMS.values())
    height = 2 * MARGIN + HEIGHT + STOREY * (len(FLOORS) - 1)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        'font-family="sans-serif" text-anchor="middle">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" fill="#57606a"/></marker>'
        "</defs>",
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
    ]
    lines += [
        f'<path d="{line(*arrow)}" fill="none" stroke="#57606a" stroke-width="1.4" '
        'marker-end="url(#tip)"/>'
        for arrow in sorted(arrows())
    ]
    for room, (_, what) in ROOMS.items():
        left, top, right, _ = box(room)
        middle = (left + right) / 2
        names = ", ".join([room, *(name for name, into in JOINED.items() if into == room)])
        fill = "#f0f1f3" if storey(room) == 0 else "#ddf0ff"
        lines += [
            f'<rect x="{left:g}" y="{top:g}" width="{right - left:g}" height="{HEIGHT}" rx="6" '
            f'fill="{fill}" stroke="#8c959f"/>',
            f'<text x="{middle:g}" y="{top + 19:g}" font-size="15" font-weight="bold">'
            f"{names}</text>",
            f'<text x="{middle:g}" y="{top + 36:g}" font-size="11.5" fill="#424a53">{what}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def missing() -> set[str]:
    """The packages and modules that have no room in the picture."""
    drawn = {name for room in ROOMS for name in room.split(", ")} | set(JOINED)
    return {name for floor in FLOORS for name in floor} - drawn - UNDRAWN


if __name__ == "__main__":
    PICTURE.write_text(picture())
