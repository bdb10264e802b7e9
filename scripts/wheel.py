#!/usr/bin/env python3
"""Builds and checks what is published: the release workflow calls this, and so can anybody.

    scripts/wheel.py build                                     a wheel for this machine into dist/
    scripts/wheel.py build --target aarch64-unknown-linux-gnu --compatibility manylinux_2_28 --zig
    scripts/wheel.py sdist                                     the sources, and a wheel built from nothing but them
    scripts/wheel.py check dist/standpipe-*.whl                installs one in a fresh environment and reads with it

Needs maturin (`scripts/setup` puts it into .venv); `--zig` also cargo-zigbuild and ziglang, from PyPI, which link for
older C libraries and other processors than the machine's.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "python" / "Cargo.toml"

# What a wheel must do where it was installed, without a network: the engine, a dataset, the command.
TRIAL = """
import pathlib, subprocess, sys, tempfile
import standpipe
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "lines.txt")
    path.write_text("one\\ntwo\\n")
    assert b"".join(bytes(chunk) for chunk in standpipe.stream(str(path))) == b"one\\ntwo\\n"
    assert list(standpipe.Dataset(str(path))) == [b"one", b"two"]
    with standpipe.open(str(path)) as file:
        assert file.read() == b"one\\ntwo\\n"
command = pathlib.Path(sys.executable).with_name("standpipe")
said = subprocess.run([command, "--version"], check=True, capture_output=True, text=True).stdout
assert standpipe.__version__ in said, said
print("works:", standpipe.__file__)
"""


def maturin() -> str:
    ours = ROOT / ".venv" / "bin" / "maturin"
    found = str(ours) if ours.exists() else shutil.which("maturin")
    if found is None:
        sys.exit("wheel: maturin is missing: scripts/setup puts it into .venv, or pip install maturin")
    return found


def run(*command: str, cwd: Path = ROOT, **environment: str) -> None:
    print("$", " ".join(command), flush=True)
    subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, check=True)


def build(arguments: argparse.Namespace) -> None:
    out = arguments.out.resolve()
    command = [maturin(), "build", "--locked", "--manifest-path", str(MANIFEST), "--out", str(out)]
    command += ["--profile", arguments.profile]
    if arguments.target:
        command += ["--target", arguments.target]
    if arguments.compatibility:
        command += ["--compatibility", arguments.compatibility]
    if arguments.zig:
        command.append("--zig")
    if arguments.interpreter:
        command += ["--interpreter", arguments.interpreter]
    if arguments.features:
        command += ["--features", arguments.features]
    run(*command)
    for made in sorted(out.glob("*.whl")):
        inspect(made)


def inspect(wheel: Path) -> None:
    """What a name promises, and what must be inside."""
    tag = re.fullmatch(r"standpipe-[^-]+-(cp311-abi3|cp3\d\d-cp3\d\dt)-(\S+)\.whl", wheel.name)
    if tag is None:
        sys.exit(f"wheel: {wheel.name} is not named as a wheel for all versions from 3.11 on")
    if tag[2].startswith("linux_"):
        sys.exit(f"wheel: {wheel.name} is for this distribution only: no registry takes it")
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = [name for name in ("standpipe/py.typed", "standpipe/_standpipe.pyi") if name not in names]
    if missing or not any(name.startswith("standpipe/_standpipe.") and name.endswith(".so") for name in names):
        sys.exit(f"wheel: {wheel.name} lacks {missing or 'the compiled module'}")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")


def sdist(arguments: argparse.Namespace) -> None:
    out = arguments.out.resolve()
    run(maturin(), "sdist", "--manifest-path", str(MANIFEST), "--out", str(out))
    (made,) = out.glob("standpipe-*.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(made) as archive:
            archive.extractall(folder, filter="data")
        (sources,) = Path(folder).iterdir()
        # As `pip install` of it would; the crates that are compiled already are shared.
        flags = f"--locked --profile {arguments.profile}"
        if arguments.features:
            flags += f" --features {arguments.features}"
        run(
            *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"),
            *("--wheel-dir", str(Path(folder) / "wheel"), str(sources)),
            CARGO_TARGET_DIR=os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target")),
            MATURIN_PEP517_ARGS=flags,
            PATH=f"{Path(maturin()).parent}{os.pathsep}{os.environ['PATH']}",
            PYTHONPATH=os.pathsep.join(map(str, ROOT.glob(".venv/lib/python3*/site-packages"))),
        )
        (wheel,) = (Path(folder) / "wheel").glob("*.whl")
        check(argparse.Namespace(wheel=wheel))


def check(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "venv", folder)
        python = str(Path(folder) / "bin" / "python")
        quiet = ("--quiet", "--disable-pip-version-check")
        run(python, "-m", "pip", "install", *quiet, "--no-index", str(Path(arguments.wheel).resolve()))
        # Elsewhere than in the sources, which would be imported.
        run(python, "-P", "-c", TRIAL, cwd=Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_subparsers(required=True)
    for name, does in (("build", build), ("sdist", sdist)):
        command = what.add_parser(name)
        command.set_defaults(does=does)
        command.add_argument("--out", type=Path, default=ROOT / "dist")
        command.add_argument("--profile", default="release")
        command.add_argument("--features", help="as-tested: share what the checks have compiled")
        if name == "build":
            command.add_argument("--target", help="a Rust target, such as aarch64-unknown-linux-musl")
            command.add_argument("--compatibility", help="such as manylinux_2_28 or musllinux_1_2")
            command.add_argument("--zig", action="store_true")
            # Free-threaded ones have no stable ABI before 3.15: PyO3 then makes a wheel for that version alone.
            command.add_argument("--interpreter", help="such as python3.14t")
    trial = what.add_parser("check")
    trial.set_defaults(does=check)
    trial.add_argument("wheel")
    arguments = parser.parse_args()
    arguments.does(arguments)


if __name__ == "__main__":
    main()
