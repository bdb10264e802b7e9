"""Exceptions: two parents each, facts, and back from other processes."""

import multiprocessing
import pickle
import traceback

import pytest
import standpipe
from conftest import Server
from standpipe import Options, exceptions

PARENTS = {
    "NotFoundError": FileNotFoundError,
    "PermissionDeniedError": PermissionError,
    "CredentialsError": PermissionError,
    "ChangedError": OSError,
    "RangeError": OSError,
    "CorruptError": OSError,
    "RefusedError": OSError,
    "NetworkError": ConnectionError,
    "ServerError": ConnectionError,
    "ThrottledError": ConnectionError,
    "UnknownHostError": ConnectionError,
    "TlsError": ConnectionError,
    "StalledError": TimeoutError,
    "ConfigError": ValueError,
    "LocalIOError": OSError,
    "InternalError": RuntimeError,
    "ForkedError": RuntimeError,
}


@pytest.mark.parametrize("name", exceptions.__all__)
def test_each_has_two_parents_and_pickles(name: str) -> None:
    kind = getattr(standpipe, name)
    error = kind(
        "s3://b/k/x: it failed at offset 7",
        uri="s3://b/k/x",
        offset=7,
        status=500,
        code="C",
        request_id="R",
        errno=5,
        fix="do",
    )
    assert isinstance(error, standpipe.StandpipeError)
    assert isinstance(error, PARENTS.get(name, Exception))
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(error, protocol))
        assert type(back) is kind
        assert str(back) == str(error) == "s3://b/k/x: it failed at offset 7"
        facts = (back.bucket, back.key, back.offset, back.status, back.code, back.request_id, back.errno, back.fix)
        assert facts == ("b", "k/x", 7, 500, "C", "R", 5, "do")
        assert "fix: do" in "".join(traceback.format_exception(back))


def test_buckets_and_keys_of_every_address() -> None:
    arn = "arn:aws:s3:us-west-2:123456789012:accesspoint/ap"
    for uri, bucket, key in [
        ("s3://b", "b", ""),
        ("s3://b//k", "b", "/k"),
        (f"s3://{arn}/k/x", arn, "k/x"),
        ("file:///tmp/x", "", "/tmp/x"),
        ("./x", "", "./x"),
    ]:
        error = standpipe.StandpipeError("", uri=uri)
        assert (error.bucket, error.key) == (bucket, key)
    assert standpipe.StandpipeError("").bucket is None


def test_a_refusal_tells_the_request_and_the_remedy(server: Server, options: Options) -> None:
    uri = server.put("errors/denied", b"x")
    server.script({"prefix": "data/errors/denied", "effect": "status", "status": 403, "code": "AccessDenied"})
    with pytest.raises(PermissionError) as failed:
        standpipe.open(uri, **options)
    error = failed.value
    assert isinstance(error, standpipe.PermissionDeniedError)
    assert (error.uri, error.status, error.errno) == (uri, 403, 13)
    with pytest.raises(standpipe.PermissionDeniedError) as failed_stream:
        list(standpipe.stream([uri], **options))
    told = failed_stream.value
    assert told.request_id
    assert told.request_id in str(told)
    assert told.fix is not None and "no_sign_request" in told.fix and "--" not in told.fix


def test_corrupt_bytes_are_an_error_with_an_offset(server: Server, options: Options) -> None:
    uri = server.put("errors/corrupt", bytes(100_000))
    server.script({"prefix": "data/errors/corrupt", "effect": "flip_bit", "at_byte": 5000, "operations": ["get"]})
    with pytest.raises(standpipe.CorruptError) as failed:
        list(standpipe.stream(uri, **options))
    assert failed.value.offset is not None
    assert failed.value.key == "errors/corrupt"


def test_a_certificate_of_nobody_known_is_told_at_once_and_one_that_is_named_is_trusted() -> None:
    server = Server("--tls", "--synthetic", "data/x=100")
    try:
        with pytest.raises(ConnectionError) as failed:
            standpipe.open("s3://data/x", **server.options)
        assert isinstance(failed.value, standpipe.TlsError)
        assert failed.value.fix is not None and "ca_bundle" in failed.value.fix
        with standpipe.open("s3://data/x", **server.options, ca_bundle=server.ca_file) as file:
            assert len(file.read()) == 100
    finally:
        server.stop()


def test_they_come_back_from_a_worker_process(server: Server, options: Options) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(FileNotFoundError) as failed:
        pool.apply_async(standpipe.open, ("s3://data/errors/none",), dict(options)).get(timeout=30)
    assert isinstance(failed.value, standpipe.NotFoundError)
    assert failed.value.key == "errors/none"


def test_a_local_failure_keeps_its_number(server: Server, options: Options, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("x")
    uri = server.put("errors/target", b"x")
    with pytest.raises(standpipe.LocalIOError) as failed:
        standpipe.download(uri, tmp_path / "file" / "below", **options)
    assert failed.value.errno == 20
