#!/usr/bin/env python3
"""Checks what examples/ hands to orchestrators, as far as that goes without one.

    check_examples.py STANDPIPE

The definitions are held against the schemas of the services' APIs (Kubernetes' own, and for ECS and Batch botocore's
models, by which the SDK itself refuses requests), their commands against the flags of the program STANDPIPE, the times
that they give to a job against the time that its flags take, and the Dockerfile against the files that it copies.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import kubernetes_validate
import yaml
from botocore.validate import ParamValidator

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "examples" / "deploy"
CONTAINER = ROOT / "examples" / "container"
# The first with sidecars (`restartPolicy` of init containers) switched on, and the newest that is known.
KUBERNETES = ["1.29", "1.37"]
# What the services give without being told (Batch: the agent's ECS_CONTAINER_STOP_TIMEOUT).
DEFAULT_STOP_SECONDS = 30
INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "ENTRYPOINT"}


def main(program: str) -> int:
    errors = [
        *kubernetes(program),
        *ecs(program),
        *batch(program),
        *dockerfile((CONTAINER / "Dockerfile").read_text()),
        *self_check(),
    ]
    for error in errors:
        print(error)
    print("examples:", "wrong" if errors else "ok")
    return 1 if errors else 0


def kubernetes(program: str) -> Iterator[str]:
    paths = sorted(DEPLOY.glob("kubernetes-*.yaml"))
    if not paths:
        yield "no Kubernetes definitions"
    for path in paths:
        for document in yaml.safe_load_all(path.read_text()):
            for error in kubernetes_errors(document):
                yield f"{path.name}: {error}"
            pod = document["spec"]["template"]["spec"]
            left = pod.get("terminationGracePeriodSeconds", DEFAULT_STOP_SECONDS)
            for container in [*pod.get("initContainers", []), *pod["containers"]]:
                arguments = container.get("args", [])
                command = [*container.get("command", []), *arguments]
                # A trainer whose image stays as it is has none.
                if command:
                    is_run = command[0] != "standpipe"
                    words = command if is_run else command[1:]
                    yield from flags(program, f"{path.name}, {container['name']}", words, left if is_run else None)


def kubernetes_errors(document: Any) -> Iterator[str]:
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"Kubernetes {version}: {error}"


def ecs(program: str) -> Iterator[str]:
    task = json.loads((DEPLOY / "ecs-task.json").read_text())
    for error in aws_errors("ecs", "RegisterTaskDefinition", task):
        yield f"ecs-task.json: {error}"
    for container in task["containerDefinitions"]:
        left = container.get("stopTimeout", DEFAULT_STOP_SECONDS)
        yield from flags(program, "ecs-task.json", container["command"], left)


def batch(program: str) -> Iterator[str]:
    job = json.loads((DEPLOY / "batch-job-definition.json").read_text())
    for error in aws_errors("batch", "RegisterJobDefinition", job):
        yield f"batch-job-definition.json: {error}"
    for node in job["nodeProperties"]["nodeRangeProperties"]:
        yield from flags(program, "batch-job-definition.json", node["container"]["command"], DEFAULT_STOP_SECONDS)


def aws_errors(service: str, operation: str, request: Any) -> Iterator[str]:
    model = botocore.session.get_session().get_service_model(service)
    report = ParamValidator().validate(request, model.operation_model(operation).input_shape)
    if report.has_errors():
        yield report.generate_report()


def flags(program: str, where: str, words: list[str], stop_seconds: int | None) -> Iterator[str]:
    """The flags of a command that the image's entry point hands to `standpipe run`, or that is `standpipe pipe`'s."""
    subcommand = "run"
    if stop_seconds is None:
        subcommand, words = words[0], words[1:]
    known = subprocess.run([program, subcommand, "--help"], capture_output=True, text=True, check=True).stdout
    own = words[: words.index("--")] if "--" in words else words
    for word in own:
        if word.startswith("--") and not re.search(rf"{re.escape(word)}\b", known):
            yield f"{where}: `standpipe {subcommand}` knows no {word}"
    if stop_seconds is not None:
        taken = sum(int(own[own.index(flag) + 1]) if flag in own else given for flag, given in GRACES)
        if taken > stop_seconds:
            yield f"{where}: the job takes up to {taken} s to end and is given {stop_seconds} s"


GRACES = [("--stop-grace", 120), ("--sync-grace", 30)]


def dockerfile(text: str) -> Iterator[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    stages: list[str] = []
    for line in lines:
        instruction, _, rest = line.partition(" ")
        words = rest.split()
        if instruction not in INSTRUCTIONS:
            yield f"Dockerfile: {instruction} is no instruction that this check knows"
        elif instruction == "FROM":
            stages.append(words[words.index("AS") + 1] if "AS" in words else words[0])
        elif instruction == "COPY":
            yield from copied(words, stages)
        elif instruction == "ENTRYPOINT" and not isinstance(json.loads(rest), list):
            yield "Dockerfile: ENTRYPOINT in the shell's form: the shell would get the signals"
    wanted = re.search(r'^rust-version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    if not lines or not wanted or not lines[0].startswith(f"FROM rust:{wanted[1]}-"):
        yield "Dockerfile: does not begin with Cargo.toml's version of Rust"
    if not (CONTAINER / "entrypoint.sh").stat().st_mode & 0o111:
        yield "entrypoint.sh: cannot be executed"


def copied(words: list[str], stages: list[str]) -> Iterator[str]:
    if words[0].startswith("--from="):
        stage = words[0].removeprefix("--from=")
        if stage not in stages[:-1]:
            yield f"Dockerfile: COPY from {stage}, which is no stage before"
        return
    for source in words[:-1]:
        if not (ROOT / source).exists():
            yield f"Dockerfile: {source} is not there"


def self_check() -> Iterator[str]:
    """What is wrong must be found, or all of the above says nothing."""
    job = yaml.safe_load((DEPLOY / "kubernetes-indexed-job.yaml").read_text())
    job["spec"]["completionMod"] = "Indexed"
    wrong = {
        "a misspelt field of Kubernetes": kubernetes_errors(job),
        "a wrong type of ECS": aws_errors("ecs", "RegisterTaskDefinition", {"family": 7, "containerDefinitions": []}),
        "an unknown field of Batch": aws_errors(
            "batch", "RegisterJobDefinition", {"jobDefinitionName": "x", "type": "container", "x": 1}
        ),
        "a file that is not there": dockerfile("FROM rust:1-slim AS build\nCOPY absent /\n"),
        "a stage that is not there": copied(["--from=absent", "a", "b"], ["build", "python"]),
    }
    for what, errors in wrong.items():
        if not list(errors):
            yield f"this check does not find {what}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
