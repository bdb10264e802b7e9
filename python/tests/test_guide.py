"""The recipes of docs/guide.md work as they stand; those with PyTorch are run by test_torch.py."""

import pytest
from conftest import Server
from guide import SECTIONS, needs_torch, run_section


def test_the_guide_has_its_recipes() -> None:
    assert len(SECTIONS) >= 9
    assert sum(map(needs_torch, SECTIONS)) == 2


@pytest.mark.parametrize("title", [title for title in SECTIONS if not needs_torch(title)])
def test_a_recipe(title: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    run_section(title, server, monkeypatch.setenv)
