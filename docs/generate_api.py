"""Write ``docs/api.md`` from the docstrings of the packages: ``python docs/generate_api.py``."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import itertools
import pkgutil
import re
from pathlib import Path
from types import GenericAlias, ModuleType

PACKAGES = ("celosia", "celosia_sim", "celosia_hw")
TARGET = Path(__file__).with_name("api.md")

PREAMBLE = """\
# API reference

Made from the docstrings by `python docs/generate_api.py`; `tests/test_docs.py` compares. Everyday
use needs the package `celosia` alone; the command line is described in [cli.md](cli.md). A shape
such as `(..., L, E)` counts from the last dimension: L queries and S keys of the head dimension E,
values of the dimension Ev.
"""


def render() -> str:
    """The whole page."""
    parts = [PREAMBLE]
    places: dict[object, str] = {}
    for package in PACKAGES:
        root = importlib.import_module(package)
        parts.append(f"## {package}\n")
        parts.append(_text(inspect.getdoc(root) or ""))
        for module in _modules(root):
            names = list(getattr(module, "__all__", ()))
            if names and module is not root:
                parts += [f"### {module.__name__}\n", _text(inspect.getdoc(module) or "")]
            for name in names:
                path, thing = f"{module.__name__}.{name}", getattr(module, name)
                documented = _is_class(thing) or inspect.isfunction(thing)
                if not documented or places.setdefault(thing, path) == path:
                    parts.append(_member(module, name))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _modules(package: ModuleType) -> list[ModuleType]:
    """The package and its public modules, in alphabetical order."""
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    names = [name for name in names if not name.startswith("_")]
    return [package, *(importlib.import_module(f"{package.__name__}.{name}") for name in names)]


def _member(module: ModuleType, name: str) -> str:
    thing = getattr(module, name)
    title = f"#### `{module.__name__}.{name}`\n"
    if _is_class(thing):
        return title + _class(name, thing)
    if inspect.isfunction(thing):
        return f"{title}\n```\n{name}{_signature(thing)}\n```\n\n{_text(_doc(thing))}"
    value = f"`{thing!r}`\n" if isinstance(thing, (int, str)) else ""
    return f"{title}\n{value}\n{_text(_constant_docs(module).get(name, ''))}"


def _is_class(thing: object) -> bool:
    return isinstance(thing, type) and not isinstance(thing, GenericAlias)


def _class(name: str, thing: type) -> str:
    text = _text(_doc(thing))
    if issubclass(thing, enum.Enum):
        docs = _attribute_docs(thing)
        rows = [f"- `{item.name}` = {item.value}{_after(docs, item.name)}" for item in thing]
        return "\n" + text + "\n" + "\n".join(rows) + "\n"
    if not issubclass(thing, BaseException) and not getattr(thing, "_is_protocol", False):
        text = f"```\n{name}{_signature(thing)}\n```\n\n{text}"
    fields = [field for field in getattr(thing, "_fields", ()) if isinstance(field, str)]
    docs = _attribute_docs(thing) if fields else {}
    text += "".join(f"- `{field}`{_after(docs, field)}\n" for field in fields)
    for key, value in vars(thing).items():
        plain = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if key.startswith("_") or key == "elaborate" or not inspect.getdoc(value):
            continue
        if inspect.isfunction(plain):
            text += f"\n**`{key}{_signature(plain)}`**\n\n{_text(_doc(plain))}"
        elif isinstance(value, property):
            text += f"\n**`{key}`**: {_text(_doc(value))}"
    return "\n" + text


def _after(docs: dict[str, str], name: str) -> str:
    return f": {' '.join(docs[name].split())}" if name in docs else ""


def _doc(thing: object) -> str:
    """The docstring that was written, not one that was inherited or made up."""
    own = vars(thing).get("__doc__") if isinstance(thing, type) else getattr(thing, "__doc__", None)
    made_up = own and isinstance(thing, type) and own.startswith(f"{thing.__name__}(")
    return inspect.cleandoc(own) if own and not made_up else ""


def _signature(thing: object) -> str:
    """Names and defaults; the types are in the docstring."""
    signature = inspect.signature(thing)  # type: ignore[arg-type]
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.name == "self" or parameter.name == "cls":
            continue
        default = parameter.default
        if isinstance(default, type) and default is not parameter.empty:
            default = _Named(default.__name__)
        parameters.append(parameter.replace(annotation=parameter.empty, default=default))
    return str(inspect.Signature(parameters))


class _Named:
    """Shows as a bare name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


def _constant_docs(module: ModuleType) -> dict[str, str]:
    return _string_after_assignment(ast.parse(inspect.getsource(module)).body)


def _attribute_docs(thing: type) -> dict[str, str]:
    (definition,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(thing))).body
    assert isinstance(definition, ast.ClassDef)
    return _string_after_assignment(definition.body)


def _string_after_assignment(body: list[ast.stmt]) -> dict[str, str]:
    """Docstrings of variables: the string literal after an assignment."""
    found = {}
    for before, after in itertools.pairwise(body):
        if isinstance(before, ast.Assign):
            target = before.targets[0]
        elif isinstance(before, ast.AnnAssign):
            target = before.target
        else:
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = after.value.value
            if isinstance(target, ast.Name) and isinstance(text, str):
                found[target.id] = inspect.cleandoc(text)
    return found


_UNDERLINE = re.compile(r"-{3,}$")


def _text(doc: str) -> str:
    """A numpydoc docstring as Markdown."""
    lines, out, section, index = doc.split("\n"), [], "", 0
    while index < len(lines):
        line = lines[index]
        following = lines[index + 1] if index + 1 < len(lines) else ""
        if line and _UNDERLINE.match(following):
            section = line
            out += ["", f"*{section}*", ""]
            index += 2
            continue
        if line.endswith("::") or line.startswith(">>>"):
            block = [line] if line.startswith(">>>") else []
            if not block:
                out.append(_inline(line[:-1]))
            index += 1
            while index < len(lines) and (not lines[index] or lines[index][0] == " " or block):
                if block and not lines[index]:
                    break
                block.append(lines[index])
                index += 1
            code = inspect.cleandoc("\n" + "\n".join(block)).strip("\n")
            out += ["", "```", code, "```", ""]
            continue
        if section in ("", "Notes") or not line.strip():
            out.append(_inline(line))
        elif not line.startswith(" "):
            name, colon, kind = line.partition(" : ")
            names = ", ".join(f"`{part}`" for part in name.split(", "))
            if section in ("Returns", "Raises") and not colon:
                names = f"`{name}`" if re.fullmatch(r"[\w, ]+", name) else _inline(name)
            out.append(f"- {names}{': ' + _inline(kind) if colon else ''}")
        else:
            out.append("  " + _inline(line.strip()))
        index += 1
    return "\n".join(out) + "\n"


def _inline(line: str) -> str:
    return line.replace("``", "`")


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
