//! Errors become exceptions: one table. The classes are Python's (`standpipe/exceptions.py`), where they pickle.

use std::error::Error as _;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use standpipe::error::{Answer, Error};

/// The exception for an error.
pub(crate) fn to_py(py: Python<'_>, error: &Error) -> PyErr {
    let facts = Facts::of(error);
    let message = chain(error);
    raised(py, class(error.root()), &message, |given| {
        given.set_item("uri", facts.uri)?;
        given.set_item("offset", facts.offset)?;
        if let Some(answer) = facts.answer {
            let status = Some(answer.status).filter(|status| *status != 0);
            given.set_item("status", status)?;
            given.set_item("code", &answer.code)?;
            given.set_item("request_id", &answer.request_id)?;
        }
        given.set_item("errno", errno(error.root()))?;
        given.set_item("fix", error.fix())
    })
}

/// For what a forked child must not use.
pub(crate) fn forked(py: Python<'_>, what: &str, pid: u32) -> PyErr {
    let message = format!(
        "{what} was opened in process {pid} and is used in its forked child {}",
        std::process::id()
    );
    raised(py, "ForkedError", &message, |given| {
        let fix = "open it in the process that reads it; datasets, FastFiles and configurations may cross a fork";
        given.set_item("fix", fix)
    })
}

/// A setting that can't be used.
pub(crate) fn config(py: Python<'_>, key: &str, reason: &str) -> PyErr {
    to_py(py, &Error::config(key, reason))
}

fn raised(
    py: Python<'_>,
    class: &str,
    message: &str,
    fill: impl FnOnce(&Bound<'_, PyDict>) -> PyResult<()>,
) -> PyErr {
    let made = || {
        let given = PyDict::new(py);
        fill(&given)?;
        let class = py.import("standpipe.exceptions")?.getattr(class)?;
        class.call((message,), Some(&given))
    };
    made().map_or_else(|error| error, PyErr::from_value)
}

/// The name of an error's class.
fn class(error: &Error) -> &'static str {
    match error {
        Error::NotFound { .. } => "NotFoundError",
        Error::PermissionDenied { .. } => "PermissionDeniedError",
        Error::Credentials { .. } => "CredentialsError",
        Error::Changed { .. } => "ChangedError",
        Error::RangeNotSatisfiable { .. } => "RangeError",
        Error::Corrupt { .. } => "CorruptError",
        Error::Throttled { .. } => "ThrottledError",
        Error::Server { .. } => "ServerError",
        Error::Refused { .. } => "RefusedError",
        Error::Network { .. } | Error::Protocol { .. } => "NetworkError",
        Error::UnknownHost { .. } => "UnknownHostError",
        Error::Stalled { .. } => "StalledError",
        Error::Tls { .. } => "TlsError",
        Error::Config { .. } => "ConfigError",
        Error::Io { .. } => "LocalIOError",
        Error::Cancelled => "CancelledError",
        Error::Internal { .. } => "InternalError",
        _ => "StandpipeError",
    }
}

/// What `OSError.errno` is: the system's where it is the system's error, else the one that the class stands for.
fn errno(error: &Error) -> Option<i32> {
    use rustix::io::Errno;
    let errno = match error {
        Error::Io { source, .. } => return source.raw_os_error(),
        Error::NotFound { .. } => Errno::NOENT,
        Error::PermissionDenied { .. } | Error::Credentials { .. } => Errno::ACCESS,
        Error::Stalled { .. } => Errno::TIMEDOUT,
        Error::Changed { .. } => Errno::STALE,
        Error::Config { .. } | Error::Cancelled | Error::Internal { .. } => return None,
        _ => Errno::IO,
    };
    Some(errno.raw_os_error())
}

/// What an error tells of the object and the answer.
#[derive(Debug, Default)]
struct Facts<'a> {
    uri: Option<&'a str>,
    offset: Option<u64>,
    answer: Option<&'a Answer>,
}

impl<'a> Facts<'a> {
    fn of(error: &'a Error) -> Self {
        let known = |uri: &'a str, offset: Option<u64>, answer: Option<&'a Answer>| Self {
            uri: Some(uri),
            offset,
            answer,
        };
        match error.root() {
            Error::NotFound {
                uri,
                offset,
                answer,
            }
            | Error::PermissionDenied {
                uri,
                offset,
                answer,
            }
            | Error::Throttled {
                uri,
                offset,
                answer,
            }
            | Error::Refused {
                uri,
                offset,
                answer,
            } => known(uri, *offset, Some(answer)),
            Error::Changed {
                uri,
                offset,
                answer,
                ..
            }
            | Error::Corrupt {
                uri,
                offset,
                answer,
                ..
            }
            | Error::Protocol {
                uri,
                offset,
                answer,
                ..
            } => known(uri, Some(*offset), Some(answer)),
            Error::RangeNotSatisfiable {
                uri,
                offset,
                answer,
            }
            | Error::Server {
                uri,
                offset,
                answer,
            } => known(uri, Some(*offset), Some(answer)),
            Error::Network { uri, offset, .. } | Error::Stalled { uri, offset, .. } => {
                known(uri, Some(*offset), None)
            }
            Error::UnknownHost { uri, .. } => known(uri, None, None),
            _ => Self::default(),
        }
    }
}

/// The error and its causes, each once: some libraries repeat their cause in their own text.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = next.source();
    }
    text
}
