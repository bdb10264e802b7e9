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


def put_data(server: Server) -> None:
    """What the recipes take for granted: four shards of ten samples, 24 images, a table."""
    import pyarrow
    import pyarrow.parquet

    for shard in range(4):
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for number in range(10):
                for suffix, body in (("jpg", bytes([shard * 10 + number]) * 64), ("cls", b"%d" % number)):
                    member = tarfile.TarInfo(f"{shard:03}{number:03}.{suffix}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
        server.put(f"train-{shard:06}.tar", archive.getvalue(), "bucket")
    for number in range(24):
        server.put(f"images/{number:03}.jpg", bytes([number]) * 64, "bucket")
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"x": range(1000), "y": range(1000)}), table)
    server.put("table.parquet", table.getvalue(), "bucket")


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
