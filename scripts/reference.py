#!/usr/bin/env python3
"""The API reference of the Python package, from its docstrings: `reference.py OUT`, where the package is installed.

Fails where a public name has no docstring, or a docstring refers to a name that is not there. The docstrings are
Google's form with Sphinx's roles, which pdoc does not know: they become its links.
"""

import builtins
import importlib
import pkgutil
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pdoc
import pdoc.docstrings
import standpipe

ROLE = re.compile(r":(?:func|class|meth|mod|attr|exc|data):`~?([\w.]+)`")
# They need what only some have; where it is missing, the reference is not whole.
MODULES = [
    name
    for name in ["standpipe", *(found.name for found in pkgutil.walk_packages(standpipe.__path__, "standpipe."))]
    if not any(part.startswith("_") for part in name.split("."))
]


def resolves(name: str, module: Any, owner: Any) -> bool:
    """Whether a role's name is one: seen from the class, the module, the package, or everything."""
    for start in (owner, module, standpipe, builtins):
        found = start
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is not None:
            return True
    for at in range(name.count(".") + 1, 0, -1):
        parts = name.split(".")
        try:
            found = importlib.import_module(".".join(parts[:at]))
        except ImportError:
            continue
        for part in parts[at:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def faults(module_name: str) -> list[str]:
    """What a reader of a module's reference would trip over."""
    module = importlib.import_module(module_name)
    found = []
    for name in getattr(module, "__all__", []):
        thing = getattr(module, name)
        doc = getattr(thing, "__doc__", None) or ""
        if callable(thing) and not doc.strip():
            found.append(f"{module_name}.{name} has no docstring")
        members = vars(thing).items() if isinstance(thing, type) else ()
        texts = [
            (name, doc),
            *((f"{name}.{member}", getattr(value, "__doc__", None) or "") for member, value in members),
        ]
        for where, text in texts:
            for target in ROLE.findall(text):
                if not resolves(target, module, thing):
                    found.append(f"{module_name}.{where}: {target} is nothing")
    for target in ROLE.findall(module.__doc__ or ""):
        if not resolves(target, module, module):
            found.append(f"{module_name}: {target} is nothing")
    return found


def main() -> int:
    out = Path(sys.argv[1])
    # What frameworks warn of when they are imported is theirs.
    for name in MODULES:
        importlib.import_module(name)
    warnings.simplefilter("error")
    # Types of the standard library's stubs are there for checkers only: they are shown as they are written.
    for harmless in ("Failed to run TYPE_CHECKING code", "Error parsing type annotation"):
        warnings.filterwarnings("ignore", harmless)
    wrong = [fault for name in MODULES for fault in faults(name)]
    convert = pdoc.docstrings.convert

    def links(docstring: str, *rest: Any) -> str:
        plain = ROLE.sub(r"`\1`", docstring)
        return str(convert(re.sub(r"\s*::(\n\n)", r":\1", plain), *rest))

    vars(pdoc.docstrings)["convert"] = links
    pdoc.render.configure(docformat="google", footer_text=f"standpipe {standpipe.__version__}")
    # The package names some of its modules by itself; those are not wanted twice.
    warnings.filterwarnings("ignore", "The module specification")
    pdoc.pdoc(*MODULES, output_directory=out)
    pages = [out / (name.replace(".", "/") + ".html") for name in MODULES]
    wrong += [f"{page} was not made" for page in pages if not page.is_file()]
    for fault in wrong:
        print("reference:", fault, file=sys.stderr)
    print(f"{len(pages)} modules: {out}/standpipe.html")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
