#!/usr/bin/env python3
"""The one list of checks: `make test` and CI run it, `--only` picks steps by name.

Each step prints its name, its own output and its seconds; a table closes the run. A step that fails does not stop
the later ones, but the run fails. Nothing is skipped: a step whose input is missing fails. All cargo steps share one
profile (dev) and one feature set, so that a crate is compiled once for all of them. The test runner comes late, so
that its closing lines stand near the end.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON_FILES = ["scripts", "fixtures", "examples", "tests/programs", "benches/peers"]
# Where the wheel is put; nothing of it is kept for the next run.
WHEEL_VENV = ROOT / "target" / "wheel-venv"
IN_WHEEL_VENV = [str(WHEEL_VENV / "bin" / "python"), "-P", "-m"]
PYTEST = ["-q", "-c", "python/pyproject.toml"]
# Each needs a framework that the wheel's environment lacks, and runs where it has been put.
TORCH_TESTS = ["python/tests/test_torch.py"]
FRAMEWORK_TESTS = [f"python/tests/test_{name}.py" for name in ("tensorflow", "ray", "keras_example")]
TORCHDATA_TESTS = ["python/tests/test_torchdata.py"]
WHOLE = ["--locked", "--workspace", "--all-features"]
DENY_WARNINGS = ["--", "-D", "warnings"]


def run(*command: str, **environment: str) -> bool:
    """Runs a command in the project's root with its output on ours; true if it succeeded."""
    print("$", " ".join(command), flush=True)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode == 0


def run_all(commands: list[list[str]]) -> bool:
    """Runs every command, also after a failure; true if all succeeded."""
    return all([run(*command) for command in commands])


def python_checks() -> bool:
    tools = ROOT / ".venv" / "bin"
    return run_all(
        [
            [str(tools / "ruff"), "format", "--check", "."],
            [str(tools / "ruff"), "check", "."],
            [str(tools / "mypy"), *PYTHON_FILES],
        ]
    )


def examples() -> bool:
    """Each Rust example runs without arguments and ends by itself; `build` has built them."""
    sources = sorted((ROOT / "examples").glob("*.rs"))
    binaries = [str(ROOT / "target" / "debug" / "examples" / source.stem) for source in sources]
    return bool(binaries) and run_all([[binary] for binary in binaries])


def deploy() -> bool:
    """What examples/ hands to orchestrators: schemas, flags, the Dockerfile's files; `build` has built the program."""
    program = str(ROOT / "target" / "debug" / "standpipe")
    return run(str(ROOT / ".venv" / "bin" / "python"), "tests/programs/check_examples.py", program)


def bare_root() -> bool:
    """The example image's programs in a root file system of Debian's smallest set, which is made once (a minute)."""
    root = ROOT / "target" / "bare-root"
    if not (root / "usr" / "bin" / "python3").exists():
        shutil.rmtree(root, ignore_errors=True)
        # Of this machine's release, whose C library the program is linked against.
        suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
        made = run("debootstrap", "--variant=minbase", "--include=python3", suite, str(root), debian_mirror())
        if not made:
            return False
    return nextest("test(/^bare_root::/)")


def debian_mirror() -> str:
    """Where apt has its packages from."""
    lists = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    texts = [path.read_text() for path in lists if path.is_file()]
    found = re.search(r"^(?:URIs:|deb)\s+(https?://\S+/debian)/?(?:\s|$)", "\n".join(texts), re.MULTILINE)
    return found[1] if found else "http://deb.debian.org/debian"


def demo() -> bool:
    """The demo with the dev binary; it must leave a picture."""
    with tempfile.TemporaryDirectory() as out:
        if not run(str(ROOT / "target" / "debug" / "standpipe"), "demo", "--out", out):
            return False
        made = sorted(path.name for path in Path(out).iterdir())
        print("made:", ", ".join(made))
        return any(name.endswith((".svg", ".png", ".html")) for name in made)


def wheel() -> bool:
    """Tests the wheel in a fresh environment: nothing sees the sources of the package."""
    elsewhere = [*TORCH_TESTS, *FRAMEWORK_TESTS, *TORCHDATA_TESTS]
    return install_wheel() and run_all(
        [
            # The tests, and the examples of the docstrings.
            [*IN_WHEEL_VENV, "pytest", *PYTEST, "python/tests", *(f"--ignore={path}" for path in elsewhere)],
            [*IN_WHEEL_VENV, "mypy", "-p", "standpipe"],
        ]
    )


def install_wheel() -> bool:
    """Builds the wheel and puts it into a fresh environment.

    The feature asks of shared dependencies what the workspace with its tests does, so cargo finds them compiled.
    """
    tools = ROOT / ".venv"
    with tempfile.TemporaryDirectory() as out:
        build = [
            "build",
            "--profile",
            "dev",
            "--locked",
            "--features",
            "as-tested",
            "--manifest-path",
            "python/Cargo.toml",
        ]
        if not run(
            str(tools / "bin" / "maturin"), *build, "--out", out, "--interpreter", str(tools / "bin" / "python")
        ):
            return False
        wheels = [str(path) for path in Path(out).glob("standpipe-*-cp311-abi3-*.whl")]
        print("made:", ", ".join(wheels) or "no wheel for all versions from 3.11 on")
        return len(wheels) == 1 and fresh_environment(WHEEL_VENV, tools, wheels[0])


def torch() -> bool:
    """What of the wheel needs PyTorch."""
    if not run("sh", "scripts/setup", "torch"):
        return False
    with tempfile.TemporaryDirectory() as out:
        commands = [
            [*IN_WHEEL_VENV, "pytest", *PYTEST, *TORCH_TESTS],
            # One small pass of ours: figures mean nothing here, but every byte is compared.
            [IN_WHEEL_VENV[0], "benches/peers/bench.py", "--test", "--profile", "debug", "--out", out],
        ]
        return all([run(*command, PYTHONPATH=str(ROOT / ".torch")) for command in commands])


def frameworks() -> bool:
    """What of it needs TensorFlow, Ray or torchdata, and the stubs' comparison, which imports every module."""
    if not all(run("sh", "scripts/setup", packages) for packages in ("torch", "frameworks")):
        return False
    own, both = str(ROOT / ".frameworks"), f"{ROOT / '.frameworks'}:{ROOT / '.torch'}"
    allowed = ["--mypy-config-file", "mypy.ini", "--allowlist", "python/stubtest.txt", "--ignore-unused-allowlist"]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    return all(
        [
            run(*IN_WHEEL_VENV, "pytest", *PYTEST, *FRAMEWORK_TESTS, PYTHONPATH=own, **quiet),
            run(*IN_WHEEL_VENV, "pytest", *PYTEST, *TORCHDATA_TESTS, PYTHONPATH=both, **quiet),
            run(*IN_WHEEL_VENV, "mypy.stubtest", "standpipe", *allowed, PYTHONPATH=both, **quiet),
        ]
    )


def reference() -> bool:
    """The Python package's reference, from the docstrings of the wheel that is installed: of every module."""
    if not all(run("sh", "scripts/setup", packages) for packages in ("torch", "frameworks")):
        return False
    out = str(ROOT / "target" / "doc" / "python")
    both = f"{ROOT / '.frameworks'}:{ROOT / '.torch'}"
    return run(IN_WHEEL_VENV[0], "-P", "scripts/reference.py", out, PYTHONPATH=both, TF_CPP_MIN_LOG_LEVEL="3")


def fresh_environment(where: Path, tools: Path, package: str) -> bool:
    """An environment with the package in it, and the tests' tools from the one that has them."""
    shutil.rmtree(where, ignore_errors=True)
    if not run(sys.executable, "-m", "venv", str(where)):
        return False
    for site in tools.glob("lib/python*/site-packages"):
        (where / site.relative_to(tools) / "tools.pth").write_text(f"{site}\n")
    return run(str(where / "bin" / "pip"), "install", "--quiet", "--no-deps", "--disable-pip-version-check", package)


def nextest(filter_: str) -> bool:
    return run("cargo", "nextest", "run", *WHOLE, "-E", filter_)


def cargo(*arguments: str) -> Callable[[], bool]:
    return lambda: run("cargo", *arguments)


STEPS: dict[str, Callable[[], bool]] = {
    "fmt": cargo("fmt", "--all", "--check"),
    "licences": lambda: run(sys.executable, "scripts/licences.py"),
    "python": python_checks,
    # Regenerates every fixture and compares it with what is committed, then makes the data that the steps below use.
    "fixtures": lambda: run_all(
        [[sys.executable, "fixtures/generate.py", "--check"], [sys.executable, "fixtures/generate.py"]]
    ),
    "clippy": cargo("clippy", *WHOLE, "--all-targets", *DENY_WARNINGS),
    "clippy-library": cargo("clippy", "--locked", "--no-default-features", "--lib", *DENY_WARNINGS),
    "docs": lambda: run("cargo", "doc", *WHOLE, "--no-deps", RUSTDOCFLAGS="-D warnings"),
    "build": cargo("build", *WHOLE, "--all-targets"),
    "examples": examples,
    # One pass through every benchmark: they must run, their figures mean nothing here.
    "benches": cargo("bench", *WHOLE, "--profile", "dev", "--bench", "*", "--", "--test"),
    "demo": demo,
    "doctests": cargo("test", *WHOLE, "--doc"),
    "wheel": wheel,
    # Of the wheel that the step before has installed.
    "torch": torch,
    "frameworks": frameworks,
    "reference": reference,
    # The same test as `make soak`, at the size that takes seconds.
    "soak": lambda: nextest("test(/^soak::/)"),
    "deploy": deploy,
    "bare-root": bare_root,
    "tests": lambda: nextest("not test(/^soak::/) and not test(/^bare_root::/)"),
}


# Not in a whole run: `wheel` does it.
EXTRA: dict[str, Callable[[], bool]] = {"install": install_wheel}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*STEPS, *EXTRA], default=list(STEPS), metavar="STEP")
    chosen = parser.parse_args().only

    results: list[tuple[str, bool, float]] = []
    steps = {**EXTRA, **STEPS}
    for name in (step for step in steps if step in chosen):
        print(f"\n=== {name}", flush=True)
        start = time.monotonic()
        passed = steps[name]()
        results.append((name, passed, time.monotonic() - start))
        print(f"=== {name}: {'ok' if passed else 'FAILED'} in {results[-1][2]:.1f} s", flush=True)

    print("\nstep              seconds  result")
    for name, passed, seconds in results:
        print(f"{name:<16} {seconds:>8.1f}  {'ok' if passed else 'FAILED'}")
    print(f"{'total':<16} {sum(seconds for _, _, seconds in results):>8.1f}")
    return 0 if all(passed for _, passed, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
