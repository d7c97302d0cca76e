"""What imports what, read from the sources: for the tests of the architecture, and for its picture."""

import ast
from pathlib import Path

import helpers

ROOT = helpers.PROJECT_ROOT
LIBRARY = sorted((ROOT / "src" / "emphase").rglob("*.py"))
PAGES = sorted((ROOT / "pages").glob("*.py"))
FILES = [*LIBRARY, *PAGES, ROOT / "helpers.py", *sorted((ROOT / "workflow").glob("*.py"))]
PACKAGES = sorted(path.parent for path in LIBRARY if path.name == "__init__.py" and path.parent.name != "emphase")

#: The floors of the library, from the ground up: a module imports those of its own floor or of one below.
GROUND = (
    "choices", "errors", "files", "crystals", "frames", "spot_lists", "chunks", "sources", "staging", "kernels", "drawing", "settings",
)  # fmt: skip
METHODS = ("drift", "haadf", "interface", "ped")
ABOVE = ("fractions", "simulate", "explore", "orientations", "lamella", "fib_images", "milling")


def module_of(path: Path) -> str:
    """The name by which a file is imported."""
    base = ROOT / "src" if "src" in path.relative_to(ROOT).parts else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_of(path): path for path in FILES}


def imports_of(module: str) -> set[str]:
    """Modules of ours that a module imports, anywhere in it."""
    path, found = NAMES[module], set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*(package[: len(package) - node.level + 1] if node.level else []), *([node.module] if node.module else [])])
            inner = {f"{base}.{alias.name}" for alias in node.names} & set(NAMES)
            found |= inner or {base}
    return {name for name in found if name in NAMES and name != module}


EDGES = {module: imports_of(module) for module in NAMES}


def floor(module: str) -> int:
    """How high a module stands: ground, methods, what is above them, the study, its pages."""
    first, *rest = module.split(".")
    if first != "emphase" or not rest:
        return {"emphase": 2, "helpers": 3, "pages": 4, "workflow": 4}[first]
    return next(level for level, names in enumerate((GROUND, METHODS, ABOVE)) if rest[0] in names)
