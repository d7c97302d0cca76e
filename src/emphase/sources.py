"""Which source files a result depends on, and their hash.

A method's result changes with the module that it stands in and with all that this imports from the library, and with nothing else of
it. Finished chunks of long work are kept under that hash, so that an edit of one method leaves the chunks of the others as they are.
Imports are read from the source, anywhere in a file, not from what happens to be loaded; an import of a whole package, or of a name from
it, stands for all modules that its ``__init__`` imports.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_PACKAGE = Path(__file__).resolve().parent
_NAME = _PACKAGE.name


def _file_of(module: str) -> Path | None:
    """The file of a module of this library; None for any other."""
    parts = module.split(".")
    if parts[0] != _NAME:
        return None
    path = _PACKAGE.joinpath(*parts[1:])
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.is_file() else None


@functools.cache
def _source(path: Path) -> bytes:
    """A file's content at the time when it was first asked for: what this process has loaded is not newer than that."""
    return path.read_bytes()


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements of a syntax tree, at every depth, without their expressions, which are most of it."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            todo += getattr(node, block, [])


def _imports(tree: ast.AST, package: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Of every import in a source of a package: the module, and what is imported from it, named as modules of it would be."""
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base, [f"{base}.{alias.name}" for alias in node.names]


@functools.cache
def _imported(module: str, path: Path) -> tuple[str, ...]:
    """Modules of this library that a file imports, anywhere in it."""
    found: list[str] = []
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for base, names in _imports(ast.parse(_source(path)), package):
        modules = [name for name in names if _file_of(name)]
        found += modules if modules and len(modules) == len(names) else [base, *modules]
    return tuple(name for name in found if name.split(".")[0] == _NAME)


def modules_behind(*modules: str) -> dict[str, Path]:
    """The files of modules of this library and of all that they import from it, by module, sorted.

    Parameters
    ----------
    *modules
        Names like ``emphase.drift`` or ``emphase.ped.index``; a package stands for all modules that its ``__init__`` imports.

    Returns
    -------
    Every module once, also where two import each other.

    Raises
    ------
    KeyError
        For a name that is no module of this library.

    Examples
    --------
    >>> sorted(modules_behind("emphase.files"))
    ['emphase.files']
    """
    found: dict[str, Path] = {}
    todo = list(modules)
    while todo:
        module = todo.pop()
        path = _file_of(module)
        if path is None and module in modules:
            raise KeyError(f"{module}: no module of {_NAME}")
        if path is None or module in found:
            continue
        found[module] = path
        todo += _imported(module, path)
    return dict(sorted(found.items()))


@functools.cache
def source_sha256(*modules: str) -> str:
    """The SHA-256 of the source of modules of this library and of all that they import from it (`modules_behind`), in hexadecimal.

    It is read once in a process: what is loaded is the source of that time.
    """
    digest = hashlib.sha256()
    for module, path in modules_behind(*modules).items():
        digest.update(f"{module}\n".encode())
        digest.update(_source(path))
    return digest.hexdigest()


def definitions_behind(path: Path, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """What some names of a module that uses this library stand for: source and modules of the library.

    Parameters
    ----------
    path
        The module's file.
    names
        Of what is defined or imported at its top level; other names are left out.

    Returns
    -------
    sources
        The source of each definition that the names stand for or that one of these uses, in order of their names.
    modules
        The modules of this library from which such a definition imports a name, at the top of the file or inside itself.
    """
    known, found = _definitions(path), set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in known and name not in found:
            found.add(name)
            todo += known[name].uses
    return [known[name].source for name in sorted(found) if known[name].source], sorted({m for n in found for m in known[n].modules})


class _Definition(NamedTuple):
    """Something that a module defines or imports from this library: its source, the names it uses, and the modules it imports from."""

    source: str = ""
    uses: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()


def _modules_in(node: ast.AST) -> frozenset[str]:
    """Modules of this library that a statement imports, or names in full."""
    found = [name for base, names in _imports(node, []) for name in (base, *names)]  # a name may be a module too
    found += [ast.unparse(part) for part in ast.walk(node) if isinstance(part, ast.Attribute)]
    return frozenset(name for name in found if name.split(".")[0] == _NAME and name != _NAME and _file_of(name))


@functools.cache
def _definitions(path: Path) -> dict[str, _Definition]:
    """What stands at the top level of a file, by name."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    found: dict[str, _Definition] = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                found[name] = _Definition(modules=_modules_in(node) | found.get(name, _Definition()).modules)
            continue
        uses = frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        defined = _Definition("".join(lines[first - 1 : node.end_lineno]), uses, _modules_in(node))
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        found |= dict.fromkeys(names, defined)
    return found
