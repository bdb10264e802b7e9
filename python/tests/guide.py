"""The guide's recipes, to be run."""

import io
import re
import tarfile
from collections.abc import Callable
from typing import Any

from conftest import ROOT, Server

GUIDE = ROOT / "docs" / "guide.md"

SECTIONS: dict[str, str] = {
    title: "\n".join(re.findall(r"^```python\n(.*?)^```$", body, re.MULTILINE | re.DOTALL))
    for title, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
}


READMES = {
    f"{path} {number}": block
    for path in ("README.md", "python/README.md")
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```$", (ROOT / path).read_text(), re.M | re.S))
}


def put_readmes_data(server: Server) -> None:
    """What the READMEs' examples name: shards by the hundred, a table, a file of ImageNet's."""
    put_data(server)
    for number in range(147):
        for key in (f"shards/train-{number:06}.tar", f"train-{number:06}.tar", f"train-{number:03}.tar"):
            server.put(key, shard(number, 1), "bucket")
    server.put("data.parquet", parquet(), "bucket")
    for key in ("imagenet/val/1.JPEG", "imagenet/train/n01440764/10026.JPEG"):
        server.put(key, bytes(100), "bucket")


def shard(number: int, samples: int) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for sample in range(samples):
            for suffix, body in (("jpg", bytes([number * samples + sample]) * 64), ("cls", b"%d" % sample)):
                member = tarfile.TarInfo(f"{number:03}{sample:03}.{suffix}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    return archive.getvalue()


def parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"x": range(1000), "y": range(1000)}), table)
    return table.getvalue()


def put_data(server: Server) -> None:
    """What the recipes take for granted: four shards of ten samples, 24 images, a table."""
    for number in range(4):
        server.put(f"train-{number:06}.tar", shard(number, 10), "bucket")
    for number in range(24):
        server.put(f"images/{number:03}.jpg", bytes([number]) * 64, "bucket")
    server.put("table.parquet", parquet(), "bucket")


def run_section(title: str, server: Server, setenv: Callable[[str, str], None], **given: Any) -> None:
    """Runs a section's blocks one after another, as one program."""
    setenv("STANDPIPE_ENDPOINT_URL", server.endpoint)
    setenv("STANDPIPE_NO_SIGN_REQUEST", "1")
    put_data(server)
    code = SECTIONS[title]
    assert code, f"{title} has no block that could be run"
    trained: list[Any] = []
    exec(compile(code, f"{GUIDE.name}: {title}", "exec"), {"train": lambda *sample: trained.append(sample), **given})
    assert bool(trained) == ("train(" in code)


def needs_torch(title: str) -> bool:
    return "torch" in SECTIONS[title].replace("s3torchconnector", "")
