"""The examples of the docstrings run, and say what they show."""

import doctest
import importlib
import pkgutil

import pytest
import standpipe
from conftest import Server

# They are tested where their frameworks are.
FRAMEWORKS = {f"standpipe.{name}" for name in ("torch", "_told", "tensorflow", "torchdata", "ray")}
MODULES = [
    "standpipe",
    *(
        found.name
        for found in pkgutil.walk_packages(standpipe.__path__, "standpipe.")
        if found.name not in {"standpipe.__main__", *FRAMEWORKS}
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, server: Server, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """They take for granted an object `uri`, an empty `folder`, and settings from the environment."""
    monkeypatch.setenv("STANDPIPE_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("STANDPIPE_NO_SIGN_REQUEST", "1")
    given = {"uri": server.put("examples/object", b"some content"), "folder": str(tmp_path)}
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs=given)
    assert result.failed == 0
    if name in ("standpipe._api", "standpipe.exceptions"):
        assert result.attempted >= 3, "the examples were not found"


def test_every_public_name_is_documented() -> None:
    for name in standpipe.__all__:
        thing = getattr(standpipe, name)
        assert name.startswith("__") or (thing.__doc__ or "").strip(), name
