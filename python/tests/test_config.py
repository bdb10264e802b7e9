"""Settings: keywords, sizes, variables."""

import pickle

import pytest
import standpipe
from conftest import Server, content
from standpipe import Options, _standpipe


def test_unusable_settings_are_told_at_once_and_by_name() -> None:
    for name, value in {
        "memory": "64 parsecs",
        "part_size": 1,
        "concurrency": 0,
        "checksums": "sometimes",
        "transport": "pigeon",
        "endpoint_url": "not a url",
        "sse_c_key": b"short",
    }.items():
        with pytest.raises(standpipe.ConfigError) as failed:
            standpipe.stream("s3://bucket/key", **{name: value})  # type: ignore[arg-type, misc]
        assert isinstance(failed.value, ValueError)
        told = str(failed.value)
        assert name.split("_")[0] in told.replace("-", "_") or "such as 64MiB" in told, told


def test_unknown_keywords_are_refused() -> None:
    with pytest.raises(TypeError, match="endpoint"):
        standpipe.stream("s3://bucket/key", endpoint="http://x")  # type: ignore[call-arg]


def test_sizes_are_numbers_or_text() -> None:
    config = _standpipe.Config
    assert config(memory="64MiB") == config(memory=64 << 20) == config(memory="64M")
    assert config(memory="64MB") == config(memory=64_000_000) != config(memory="64MiB")
    assert hash(config(memory="64MiB")) == hash(config(memory=64 << 20))


def test_variables_fill_in_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    config = _standpipe.Config
    monkeypatch.setenv("STANDPIPE_MEMORY", "64MiB")
    monkeypatch.setenv("STANDPIPE_CONCURRENCY", "7")
    monkeypatch.setenv("STANDPIPE_NO_SIGN_REQUEST", "yes")
    monkeypatch.setenv("STANDPIPE_REGION", "")
    assert config() == config(memory="64MiB", concurrency=7, no_sign_request=True)
    assert config(memory="128MiB", concurrency=3) != config()
    assert "memory=67108864" in repr(config()) and "region" not in repr(config())
    monkeypatch.setenv("STANDPIPE_NO_SIGN_REQUEST", "perhaps")
    with pytest.raises(standpipe.ConfigError, match="STANDPIPE_NO_SIGN_REQUEST"):
        config()
    monkeypatch.delenv("STANDPIPE_NO_SIGN_REQUEST")
    for text, pays in {"0": False, "no": False, "1": True, "requester": True}.items():
        monkeypatch.setenv("STANDPIPE_REQUEST_PAYER", text)
        assert config() == config(request_payer=pays)
    monkeypatch.delenv("STANDPIPE_REQUEST_PAYER")
    monkeypatch.setenv("STANDPIPE_CONCURRENCY", "many")
    with pytest.raises(standpipe.ConfigError, match="STANDPIPE_CONCURRENCY"):
        config()


def test_the_aws_variables_count(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = server.put("config/aws", b"by variables")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert standpipe.open(uri, no_sign_request=True).read() == b"by variables"


def test_settings_pickle_and_keys_are_not_shown() -> None:
    config = _standpipe.Config(memory="64MiB", region="eu-west-1", sse_c_key=bytes(range(32)), ca_bundle="/tmp/ca.pem")
    assert pickle.loads(pickle.dumps(config)) == config
    assert "sse_c_key" not in repr(config)


def test_a_cache_of_what_is_encrypted_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(standpipe.ConfigError, match="in plain"):
        _standpipe.Config(sse_c_key=bytes(32), cache=tmp_path)


def test_the_same_settings_share_one_engine(server: Server, options: Options) -> None:
    server.put("config/shared", content(1000))
    for _ in range(20):
        list(standpipe.stream("s3://data/config/shared", **options, memory="65MiB"))
    stream = standpipe.stream("s3://data/config/shared", **options, memory="65MiB")
    list(stream)
    assert standpipe.stats(stream)["engine"]["connections_opened"] == 0


def test_what_was_read_is_kept_in_a_cache(server: Server, options: Options, tmp_path) -> None:  # type: ignore[no-untyped-def]
    body = content(3 << 20)
    uri = server.put("config/cached", body)
    mine: Options = {**options, "cache": tmp_path, "cache_size": "64MiB", "part_size": "1MiB"}
    with standpipe.open(uri, **mine) as file:
        assert file.read() == body
    first = standpipe.stream(uri, **mine)
    assert b"".join(map(bytes, first)) == body
    assert standpipe.stats(first)["engine"]["cache_hit_bytes"] == len(body)
    fetched = sum(entry["bytes_sent"] for entry in server.log() if entry["operation"] == "get")
    assert fetched == len(body)


def test_small_objects_get_more_requests_in_flight() -> None:
    """As many as fill a link with those, unless the user said how many."""
    from standpipe import _standpipe

    assert "concurrency=256" in repr(_standpipe.Config().for_objects(100_000))
    assert "concurrency=60" in repr(_standpipe.Config().for_objects(1 << 20).for_objects(5))
    assert "concurrency=7" in repr(_standpipe.Config(concurrency=7).for_objects(100_000))
    assert _standpipe.Config().for_objects(1 << 30) == _standpipe.Config()
