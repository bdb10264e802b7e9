//! What can go wrong, said so that the reader can act: every error names its object and offset.
//!
//! `Display` is one line without the cause; causes are on the [`source`](std::error::Error::source) chain. The
//! remedy, where there is one, is [`Error::fix`]. Each edge (exit code, errno, exception) keeps its own table.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A cause from another library, shared so that [`Error`] is `Clone`.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// What the server said: enough for a support case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status; 0 when no HTTP answer exists (a local file, say).
    pub status: u16,
    /// The service's error code, such as `NoSuchKey`.
    pub code: Option<String>,
    /// The service's own sentence.
    pub message: Option<String>,
    /// `x-amz-request-id`.
    pub request_id: Option<String>,
}

impl Answer {
    fn mentions(&self, words: &str) -> bool {
        self.message
            .as_ref()
            .is_some_and(|message| message.contains(words))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.status == 0 {
            return f.write_str(self.message.as_deref().unwrap_or("no answer"));
        }
        write!(f, "HTTP {}", self.status)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        if let Some(id) = &self.request_id {
            write!(f, " (request id {id})")?;
        }
        Ok(())
    }
}

/// What the server said, in parentheses, if it said anything.
fn told(answer: &Answer) -> String {
    match *answer == Answer::default() {
        true => String::new(),
        false => format!(" ({answer})"),
    }
}

/// The offset, of a request that was for bytes.
fn at(offset: &Option<u64>) -> String {
    offset.map_or_else(String::new, |offset| format!(" at offset {offset}"))
}

/// Everything this crate can fail with.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bucket, key or version does not exist.
    #[error("{uri}: not found{} ({answer})", at(offset))]
    NotFound {
        /// The object or prefix.
        uri: String,
        /// First byte not yet received; none of a request that is not for bytes, such as a listing.
        offset: Option<u64>,
        /// What the server said.
        answer: Box<Answer>,
    },
    /// The credentials, or their absence, do not allow the read.
    #[error("{uri}: permission denied{} ({answer})", at(offset))]
    PermissionDenied {
        /// The object or prefix.
        uri: String,
        /// First byte not yet received; none of a request that is not for bytes, such as a listing.
        offset: Option<u64>,
        /// What the server said.
        answer: Box<Answer>,
    },
    /// The object was replaced while it was being read; no byte of the new version was delivered.
    #[error(
        "{uri}: the object changed while it was read, at offset {offset}: expected {expected}, found {found}{}",
        told(answer)
    )]
    Changed {
        /// The object.
        uri: String,
        /// First byte not yet received.
        offset: u64,
        /// The ETag that the read began with.
        expected: String,
        /// What is there now.
        found: String,
        /// The answer that showed it, as far as it is known. Boxed: no other variant is as large.
        answer: Box<Answer>,
    },
    /// The range lies beyond the object's end.
    #[error("{uri}: no byte at offset {offset} ({answer})")]
    RangeNotSatisfiable {
        /// The object.
        uri: String,
        /// First byte asked for.
        offset: u64,
        /// What the server said.
        answer: Answer,
    },
    /// The bytes are not what they claim to be: a checksum, a length or a header lies.
    #[error("{uri}: corrupt at offset {offset}: {reason}{}", told(answer))]
    Corrupt {
        /// The object.
        uri: String,
        /// Where the bad bytes start.
        offset: u64,
        /// What was found and what was expected.
        reason: String,
        /// The answer that it came in, as far as it is known.
        answer: Box<Answer>,
    },
    /// The service asked for fewer requests (503 `SlowDown`, 429).
    #[error("{uri}: throttled{} ({answer})", at(offset))]
    Throttled {
        /// The object or prefix.
        uri: String,
        /// First byte not yet received; none of a request that is not for bytes, such as a listing.
        offset: Option<u64>,
        /// What the server said.
        answer: Box<Answer>,
    },
    /// The service failed (5xx, `RequestTimeout`): asking again may help.
    #[error("{uri}: server error at offset {offset} ({answer})")]
    Server {
        /// The object or prefix.
        uri: String,
        /// First byte not yet received.
        offset: u64,
        /// What the server said.
        answer: Answer,
    },
    /// The service refused the request for a reason that asking again does not change.
    #[error("{uri}: refused{} ({answer})", at(offset))]
    Refused {
        /// The object or prefix.
        uri: String,
        /// First byte not yet received; none of a request that is not for bytes, such as a listing.
        offset: Option<u64>,
        /// What the server said.
        answer: Box<Answer>,
    },
    /// The connection failed or broke.
    #[error("{uri}: connection failed at offset {offset}")]
    Network {
        /// The object or prefix.
        uri: String,
        /// First byte not yet received.
        offset: u64,
        /// The transport's error.
        source: Cause,
    },
    /// The endpoint's name has no address. A resolver that has no answer for the moment is [`Error::Network`].
    #[error("{uri}: the host {host} is not known")]
    UnknownHost {
        /// The object or prefix.
        uri: String,
        /// The name that was looked up.
        host: String,
        /// What the resolver said.
        source: Cause,
    },
    /// The answer was not the HTTP that was asked for; its connection was closed.
    #[error("{uri}: bad HTTP answer at offset {offset}: {reason}{}", told(answer))]
    Protocol {
        /// The object or prefix.
        uri: String,
        /// First byte not yet received.
        offset: u64,
        /// What was wrong.
        reason: String,
        /// What can be told of the answer.
        answer: Box<Answer>,
    },
    /// No progress for the time allowed.
    #[error("{uri}: no progress for {idle:?} at offset {offset}{}", through(proxy.as_deref()))]
    Stalled {
        /// The object or prefix.
        uri: String,
        /// First byte not yet received.
        offset: u64,
        /// How long nothing came.
        idle: Duration,
        /// The proxy that stands before the endpoint, and the variable that names it.
        proxy: Option<Box<str>>,
    },
    /// The server's certificate was not accepted, or TLS failed.
    #[error("{endpoint}: TLS failed: {reason}")]
    Tls {
        /// Host and port.
        endpoint: String,
        /// Which certificate failed and why.
        reason: String,
    },
    /// No usable credentials were found.
    #[error("no usable AWS credentials: {reason}")]
    Credentials {
        /// What each provider said.
        reason: String,
    },
    /// A setting or an argument is not usable.
    #[error("{key}: {reason}")]
    Config {
        /// The setting, flag or argument.
        key: String,
        /// Why not, and what would do unless `fix` says it.
        reason: String,
        /// What to do about it.
        fix: Option<&'static str>,
    },
    /// A local file, pipe or directory failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The local path.
        path: PathBuf,
        /// The system's error.
        source: Arc<std::io::Error>,
    },
    /// Retries were used up; the source is the last error.
    #[error("gave up after {attempts} attempts in {elapsed:.1?}")]
    RetriesExhausted {
        /// Attempts without progress, the first included.
        attempts: u32,
        /// Time since the last progress.
        elapsed: Duration,
        /// The last attempt's error.
        source: Box<Error>,
    },
    /// What an entry of a manifest names could not be had; the source is why.
    #[error("{place}")]
    Entry {
        /// The manifest, and the line and attribute where there are some.
        place: String,
        /// The error of the object.
        source: Box<Error>,
    },
    /// There was no more time for it.
    #[error("{what}: the time is over, and it is not done")]
    OutOfTime {
        /// What was to be done.
        what: String,
    },
    /// The reader was closed, or the process is shutting down.
    #[error("cancelled")]
    Cancelled,
    /// A task of ours died: a bug, and never taken for the end of the data or for a cancellation.
    #[error("{what} ended without a result")]
    Internal {
        /// Which task, and of which object where there is one.
        what: String,
    },
}

fn through(proxy: Option<&str>) -> String {
    proxy.map_or_else(String::new, |proxy| format!(" (through the proxy {proxy})"))
}

impl Error {
    /// An unusable setting.
    pub fn config(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config {
            key: key.into(),
            reason: reason.into(),
            fix: None,
        }
    }

    /// An unusable setting, and what to do about it, said apart: for machines, too.
    pub fn unusable(key: impl Into<String>, reason: impl Into<String>, fix: &'static str) -> Self {
        Self::Config {
            key: key.into(),
            reason: reason.into(),
            fix: Some(fix),
        }
    }

    /// A local file's failure.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source: Arc::new(source),
        }
    }

    /// Whether the same request may succeed when sent again.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Throttled { .. }
                | Self::Server { .. }
                | Self::Network { .. }
                | Self::UnknownHost { .. }
                | Self::Protocol { .. }
                | Self::Stalled { .. }
        )
    }

    /// The error without what is around it: retries, and the place in a manifest.
    pub fn root(&self) -> &Error {
        match self {
            Self::RetriesExhausted { source, .. } | Self::Entry { source, .. } => source.root(),
            other => other,
        }
    }

    /// What the reader of this error can do about it, in one sentence.
    pub fn fix(&self) -> Option<&'static str> {
        Some(match self.root() {
            Self::NotFound { uri, .. } if uri.starts_with("file:") => {
                "check the path; what is in S3 is named s3://bucket/key"
            }
            Self::NotFound { .. } => {
                "check the bucket, the key and the region; `standpipe ls` shows what is there"
            }
            Self::PermissionDenied { answer, .. } => match answer.code.as_deref() {
                Some("RequestTimeTooSkewed") => {
                    "set this host's clock: it differs from the server's by more than 15 minutes"
                }
                Some("SignatureDoesNotMatch" | "InvalidAccessKeyId") => {
                    "check the access key and secret (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or --profile)"
                }
                Some("ExpiredToken") => {
                    "the session token has expired: sign in again (`aws sso login`) or renew the credentials"
                }
                _ => {
                    "the caller needs s3:GetObject on the objects and s3:ListBucket on the bucket; public data needs --no-sign-request, requester-pays buckets --request-payer requester, and objects under SSE-C the very key they were written with"
                }
            },
            Self::Changed { .. } => {
                "write new data under new keys, or restart the epoch once the writer is done"
            }
            Self::Corrupt { .. } => {
                "read the object again with another tool; if it is sound there, report this as a bug"
            }
            Self::Throttled { .. } => {
                "lower --concurrency, or spread the data over more key prefixes"
            }
            Self::Network { .. } | Self::Stalled { .. } => {
                "check the network, the endpoint (--endpoint-url) and the proxy settings"
            }
            Self::UnknownHost { .. } => {
                "check the spelling of the endpoint (--endpoint-url) and the region, and that this host can ask a name server"
            }
            Self::Tls { .. } => {
                "name the CA that signed the endpoint's certificate with --ca-bundle or AWS_CA_BUNDLE"
            }
            Self::Credentials { .. } => {
                "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, run `aws sso login`, or pass --no-sign-request for public data"
            }
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "make space on the disk, or use Pipe mode, which needs none"
            }
            Self::Io { .. } => {
                "check that the path exists, is of the right kind and may be used by this user"
            }
            Self::Server { .. } => {
                "the service failed on its side: try again later, and give its support the request id"
            }
            Self::Refused { answer, .. } if answer.mentions("Server Side Encryption") => {
                "the object is encrypted with its owner's own key (SSE-C): name the file with the key by --sse-c-key"
            }
            Self::Refused { answer, .. } if answer.mentions("encryption parameters") => {
                "the object is not encrypted with a key of yours: leave out --sse-c-key"
            }
            Self::Refused { .. } => {
                "check the endpoint, the region and the flags against what the service says; it does not take this request"
            }
            Self::Protocol { .. } => {
                "check that the endpoint speaks S3 over HTTP/1.1; behind a proxy, try --transport stock"
            }
            Self::RangeNotSatisfiable { .. } => {
                "the object is shorter than expected: list it again, it was probably replaced"
            }
            Self::OutOfTime { .. } => {
                "leave more time: a larger --sync-grace, a smaller --stop-grace, and what the orchestrator allows in all (stopTimeout, terminationGracePeriodSeconds)"
            }
            Self::Internal { .. } => {
                "this is a bug in Standpipe: please report it, with the log of a run with -vv"
            }
            Self::Config { fix: Some(fix), .. } => fix,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_shows_status_code_message_and_request_id() {
        let answer = Answer {
            status: 404,
            code: Some("NoSuchKey".into()),
            message: Some("The specified key does not exist.".into()),
            request_id: Some("R1".into()),
        };
        let error = Error::NotFound {
            uri: "s3://b/k".into(),
            offset: Some(0),
            answer: Box::new(answer),
        };
        assert_eq!(
            error.to_string(),
            "s3://b/k: not found at offset 0 (HTTP 404 NoSuchKey: The specified key does not exist. (request id R1))"
        );
        assert!(error.fix().is_some() && !error.is_retryable());
    }

    /// The support case needs all of it, whatever failed.
    #[test]
    fn every_error_of_a_request_names_uri_offset_status_request_id_and_a_fix() {
        let uri = || "s3://b/k".to_owned();
        let answer = || Answer {
            status: 418,
            request_id: Some("R1".into()),
            ..Answer::default()
        };
        let (boxed, offset, text) = (|| Box::new(answer()), 77, || "why".to_owned());
        for error in [
            Error::NotFound {
                uri: uri(),
                offset: Some(offset),
                answer: boxed(),
            },
            Error::PermissionDenied {
                uri: uri(),
                offset: Some(offset),
                answer: boxed(),
            },
            Error::Throttled {
                uri: uri(),
                offset: Some(offset),
                answer: boxed(),
            },
            Error::Refused {
                uri: uri(),
                offset: Some(offset),
                answer: boxed(),
            },
            Error::Changed {
                uri: uri(),
                offset,
                expected: text(),
                found: text(),
                answer: boxed(),
            },
            Error::Corrupt {
                uri: uri(),
                offset,
                reason: text(),
                answer: boxed(),
            },
            Error::Protocol {
                uri: uri(),
                offset,
                reason: text(),
                answer: boxed(),
            },
            Error::RangeNotSatisfiable {
                uri: uri(),
                offset,
                answer: answer(),
            },
            Error::Server {
                uri: uri(),
                offset,
                answer: answer(),
            },
        ] {
            let said = error.to_string();
            for part in ["s3://b/k: ", "offset 77", "HTTP 418", "request id R1"] {
                assert!(said.contains(part), "{part:?} is not in {said:?}");
            }
            assert!(error.fix().is_some(), "{said}");
        }
        let listing = Error::NotFound {
            uri: uri(),
            offset: None,
            answer: boxed(),
        };
        assert!(!listing.to_string().contains("offset"), "{listing}");
        // Every good result is moved about with its size.
        assert!(size_of::<Error>() <= 120, "{}", size_of::<Error>());
    }

    #[test]
    fn a_change_says_where_and_in_which_answer() {
        let changed = |answer| Error::Changed {
            uri: "s3://b/k".into(),
            offset: 7,
            expected: "\"a\"".into(),
            found: "\"b\"".into(),
            answer: Box::new(answer),
        };
        let text = "s3://b/k: the object changed while it was read, at offset 7: expected \"a\", found \"b\"";
        assert_eq!(changed(Answer::default()).to_string(), text);
        let answer = Answer {
            status: 412,
            request_id: Some("R1".into()),
            ..Answer::default()
        };
        let text = format!("{text} (HTTP 412 (request id R1))");
        assert_eq!(changed(answer).to_string(), text);
    }

    #[test]
    fn exhausted_retries_keep_the_last_error_as_source_and_its_fix() {
        let last = Error::Stalled {
            uri: "s3://b/k".into(),
            offset: 7,
            idle: Duration::from_secs(5),
            proxy: None,
        };
        let error = Error::RetriesExhausted {
            attempts: 8,
            elapsed: Duration::from_secs(12),
            source: Box::new(last),
        };
        assert!(!error.is_retryable());
        assert!(
            std::error::Error::source(&error)
                .unwrap()
                .to_string()
                .contains("offset 7")
        );
        assert_eq!(error.fix(), error.root().fix());
    }
}
