#!/usr/bin/env python3
"""Checks licences, sources and bans of the dependency tree against deny.toml.

It reads what `cargo metadata` says and nothing else: no compile, no network beyond the crates themselves. It
implements the settings that deny.toml uses and refuses a licence, source or ban setting that it does not know, so
that nothing written there is silently ignored.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KNOWN = {
    "licenses": {"allow"},
    "sources": {"unknown-registry", "unknown-git", "allow-registry"},
    "bans": {"multiple-versions", "deny"},
}
TOKEN = re.compile(r"\(|\)|[A-Za-z0-9.+-]+")


def packages(targets: list[str]) -> list[dict[str, Any]]:
    """Every package of the tree on any of the targets, once each."""
    found: dict[str, dict[str, Any]] = {}
    for target in targets:
        command = ["cargo", "metadata", "--format-version=1", "--locked", "--all-features", "--filter-platform", target]
        answer = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
        found.update({package["id"]: package for package in answer["packages"]})
    return sorted(found.values(), key=lambda package: (package["name"], package["version"]))


def allowed(expression: str, allow: set[str]) -> bool:
    """Whether an SPDX expression can be satisfied with licences of `allow`."""
    # Before SPDX, crates wrote a slash for OR.
    tokens = TOKEN.findall(expression.replace("/", " OR "))

    def term() -> bool:
        token = tokens.pop(0)
        if token == "(":
            value = any_of()
            tokens.pop(0)
            return value
        if tokens[:1] == ["WITH"]:
            token = f"{token} WITH {tokens[1]}"
            del tokens[:2]
        return token in allow

    def all_of() -> bool:
        value = term()
        while tokens[:1] == ["AND"]:
            tokens.pop(0)
            value = term() and value
        return value

    def any_of() -> bool:
        value = all_of()
        while tokens[:1] == ["OR"]:
            tokens.pop(0)
            value = all_of() or value
        return value

    return any_of() and not tokens


def licence_faults(tree: list[dict[str, Any]], allow: set[str]) -> list[str]:
    return [
        f"{package['name']} {package['version']}: licence {package['license']!r} is not in deny.toml's list"
        for package in tree
        if not package["license"] or not allowed(package["license"], allow)
    ]


def source_faults(tree: list[dict[str, Any]], registries: list[str]) -> list[str]:
    accepted = {f"registry+{registry}" for registry in registries}
    return [
        f"{package['name']} {package['version']}: comes from {package['source']}"
        for package in tree
        if package["source"] is not None and package["source"] not in accepted
    ]


def ban_faults(tree: list[dict[str, Any]], banned: set[str]) -> list[str]:
    return [f"{package['name']} {package['version']}: banned" for package in tree if package["name"] in banned]


def self_test() -> None:
    """The expression reader must refuse as well as accept."""
    allow = {"MIT", "ISC", "Apache-2.0 WITH LLVM-exception"}
    accepted = ["MIT", "GPL-3.0 OR MIT", "Apache-2.0/MIT", "(MIT OR GPL-2.0) AND ISC", "Apache-2.0 WITH LLVM-exception"]
    refused = ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-2.0", "Apache-2.0", "MIT AND (GPL-2.0 OR LGPL-2.1)"]
    wrong = [text for text in accepted if not allowed(text, allow)] + [text for text in refused if allowed(text, allow)]
    assert not wrong, wrong


def main() -> int:
    self_test()
    settings = tomllib.loads((ROOT / "deny.toml").read_text())
    unknown = [f"{table}.{key}" for table, known in KNOWN.items() for key in settings[table] if key not in known]
    if unknown:
        print(f"deny.toml: scripts/licences.py does not know {', '.join(unknown)}")
        return 1

    tree = packages(settings["graph"]["targets"])
    versions: dict[str, list[str]] = defaultdict(list)
    for package in tree:
        versions[package["name"]].append(package["version"])
    twice = {name: found for name, found in versions.items() if len(found) > 1}
    faults = [
        *licence_faults(tree, set(settings["licenses"]["allow"])),
        *source_faults(tree, settings["sources"]["allow-registry"]),
        *ban_faults(tree, {ban["crate"] for ban in settings["bans"]["deny"]}),
    ]
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{len(tree)} packages, {len(faults)} faults; more than one version: {', '.join(sorted(twice)) or 'none'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
