"""The recipes of docs/guide.md work as they stand; those with PyTorch are run by test_torch.py."""

from pathlib import Path

import pytest
from conftest import Server
from guide import READMES, SECTIONS, needs_torch, put_readmes_data, run_section


def test_the_guide_has_its_recipes() -> None:
    assert len(SECTIONS) >= 9
    assert sum(map(needs_torch, SECTIONS)) == 2


@pytest.mark.parametrize("title", [title for title in SECTIONS if not needs_torch(title)])
def test_a_recipe(title: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    run_section(title, server, monkeypatch.setenv)


@pytest.mark.parametrize("name", READMES)
def test_an_example_of_a_readme(name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, where what it names is there."""
    put_readmes_data(server)
    monkeypatch.setenv("STANDPIPE_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("STANDPIPE_NO_SIGN_REQUEST", "1")
    monkeypatch.chdir(tmp_path)
    worked = []

    def work(*things: object) -> None:
        worked.append(things)

    given = {"work": work, "train": work, "order_of_the_sampler": ["train/n01440764/10026.JPEG"]}
    exec(compile(READMES[name], name, "exec"), given)
    assert len(worked) >= 2 * 147
