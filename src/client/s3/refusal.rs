//! One table from what can go wrong (a status with its XML, an SDK error, a broken transport) to [`Error`].

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::create_session::CreateSessionError;

use super::config::S3Config;
use crate::client::wire::is_unknown_host;
use crate::error::{Answer, Error};
use crate::object::ObjectUri;

/// How hyper puts HTTP 407 in answer to `CONNECT`.
const PROXY_WANTS_PASSWORD: &str = "proxy authorization required";

/// A request that failed, and what could make the next attempt succeed.
#[derive(Debug)]
pub(super) struct Failure {
    /// Boxed, because every good result would otherwise be moved about with its size.
    pub(super) error: Box<Error>,
    pub(super) hint: Option<Hint>,
}

/// What the answer itself says would help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hint {
    /// The bucket lives in this region.
    Region(String),
    /// The credentials were good once: load them anew.
    ExpiredToken,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error: Box::new(error),
            hint: None,
        }
    }
}

/// What a request was about, for the error's text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) uri: &'a ObjectUri,
    /// The first byte not yet received; none if it is not about bytes.
    pub(super) offset: Option<u64>,
    /// The ETag that the request insisted on.
    pub(super) etag: Option<&'a str>,
}

impl<'a> Subject<'a> {
    /// A request that is not about bytes: HEAD, LIST.
    pub(super) fn of(uri: &'a ObjectUri) -> Self {
        Self {
            uri,
            offset: None,
            etag: None,
        }
    }

    /// The offset, for errors that always have one.
    pub(super) fn start(&self) -> u64 {
        self.offset.unwrap_or(0)
    }
}

/// Reads an answer that is not the success it should be: its status, headers and XML.
pub(super) fn refused<'a>(
    subject: Subject<'_>,
    status: u16,
    get: impl Fn(&str) -> Option<&'a str>,
    body: &[u8],
) -> Failure {
    let body = String::from_utf8_lossy(body);
    let answer = Answer {
        status,
        code: element(&body, "Code").or_else(|| get("x-amz-error-code").map(str::to_owned)),
        message: element(&body, "Message"),
        request_id: get("x-amz-request-id")
            .map(str::to_owned)
            .or_else(|| element(&body, "RequestId")),
    };
    let region = get("x-amz-bucket-region")
        .map(str::to_owned)
        .or_else(|| element(&body, "Region"));
    Failure {
        hint: hint(&answer, region),
        error: Box::new(classify(subject, answer)),
    }
}

/// Whether the body of a 200 is S3's way of saying "after all, no".
pub(super) fn is_error_document(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start();
    let text = match text.strip_prefix("<?xml") {
        Some(rest) => rest.split_once("?>").map_or("", |(_, rest)| rest),
        None => text,
    };
    text.trim_start().starts_with("<Error") && element(text, "Code").is_some()
}

fn hint(answer: &Answer, region: Option<String>) -> Option<Hint> {
    let code = answer.code.as_deref().unwrap_or_default();
    if code.starts_with("ExpiredToken") || code == "TokenRefreshRequired" {
        return Some(Hint::ExpiredToken);
    }
    let elsewhere = matches!(answer.status, 301 | 307)
        || matches!(
            code,
            "PermanentRedirect"
                | "TemporaryRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException"
        )
        || (answer.status == 400 && code.is_empty());
    region.filter(|_| elsewhere).map(Hint::Region)
}

/// The table.
pub(super) fn classify(subject: Subject<'_>, answer: Answer) -> Error {
    let uri = subject.uri.to_string();
    let offset = subject.start();
    let code = answer.code.as_deref().unwrap_or_default();
    if is_throttle(answer.status, code) {
        return Error::Throttled {
            uri,
            offset: subject.offset,
            answer: Box::new(answer),
        };
    }
    if is_server_fault(answer.status, code) {
        return Error::Server {
            uri,
            offset,
            answer,
        };
    }
    match (answer.status, code) {
        (404, _) | (_, "NoSuchKey" | "NoSuchBucket" | "NoSuchVersion") => Error::NotFound {
            uri,
            offset: subject.offset,
            answer: Box::new(answer),
        },
        (401 | 403, _)
        | (_, "AccessDenied" | "ExpiredToken" | "ExpiredTokenException" | "InvalidToken")
        | (_, "TokenRefreshRequired" | "RequestTimeTooSkewed") => Error::PermissionDenied {
            uri,
            offset: subject.offset,
            answer: Box::new(answer),
        },
        (412, _) if subject.etag.is_some() => Error::Changed {
            uri,
            offset,
            expected: subject.etag.unwrap_or_default().into(),
            found: "another version".into(),
            answer: Box::new(answer),
        },
        (416, _) => Error::RangeNotSatisfiable {
            uri,
            offset,
            answer,
        },
        _ => Error::Refused {
            uri,
            offset: subject.offset,
            answer: Box::new(answer),
        },
    }
}

/// A 503 without a code is the answer to a HEAD, which has no body to say it in: it is S3's `SlowDown` far more often
/// than anything else, and slowing down is right for the rest too.
fn is_throttle(status: u16, code: &str) -> bool {
    status == 429
        || (status == 503 && code.is_empty())
        || matches!(
            code,
            "SlowDown"
                | "Throttling"
                | "ThrottlingException"
                | "ThrottledException"
                | "RequestThrottled"
                | "RequestThrottledException"
                | "RequestLimitExceeded"
                | "TooManyRequests"
                | "TooManyRequestsException"
                | "BandwidthLimitExceeded"
        )
}

fn is_server_fault(status: u16, code: &str) -> bool {
    matches!(status, 408 | 500 | 502 | 503 | 504)
        || matches!(
            code,
            "RequestTimeout" | "InternalError" | "ServiceUnavailable" | "OperationAborted"
        )
}

/// The text of the first `<name>` of an error document. S3's are flat, so no XML parser is needed.
fn element(body: &str, name: &str) -> Option<String> {
    let start = body.find(&format!("<{name}>"))? + name.len() + 2;
    let len = body[start..].find(&format!("</{name}>"))?;
    let text = body[start..start + len].trim();
    (!text.is_empty()).then(|| unescape(text))
}

fn unescape(text: &str) -> String {
    let mut plain = text.to_owned();
    for (escape, character) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&apos;", "'"),
        ("&#39;", "'"),
        ("&amp;", "&"),
    ] {
        plain = plain.replace(escape, character);
    }
    plain
}

/// An SDK error, whichever operation it comes from.
///
/// A request to a directory bucket may have to open a session first. What happened to that is as good a reason to ask
/// again, or not to, as if it had happened to the request itself; the SDK hides it in a cause.
pub(super) fn of_sdk<E>(
    subject: Subject<'_>,
    config: &S3Config,
    endpoint: &str,
    error: SdkError<E, HttpResponse>,
) -> Failure
where
    E: StdError + Send + Sync + 'static,
{
    match find::<SdkError<CreateSessionError, HttpResponse>>(&error) {
        Some(session) => of_operation(subject, config, endpoint, session),
        None => of_operation(subject, config, endpoint, &error),
    }
}

fn of_operation<E>(
    subject: Subject<'_>,
    config: &S3Config,
    endpoint: &str,
    error: &SdkError<E, HttpResponse>,
) -> Failure
where
    E: StdError + Send + Sync + 'static,
{
    if let SdkError::ServiceError(service) = error {
        let raw = service.raw();
        let body = raw.body().bytes().unwrap_or_default();
        return refused(
            subject,
            raw.status().as_u16(),
            |name| raw.headers().get(name),
            body,
        );
    }
    if let SdkError::ResponseError(answer) = error
        && let raw = answer.raw()
        && let Some(body) = raw.body().bytes()
        && is_error_document(body)
    {
        let get = |name: &str| raw.headers().get(name);
        return refused(subject, raw.status().as_u16(), get, body);
    }
    let uri = subject.uri.to_string();
    let offset = subject.start();
    if let Some(credentials) = find::<CredentialsError>(error) {
        return Error::Credentials {
            reason: with_causes(credentials),
        }
        .into();
    }
    if let Some(tls) = find::<rustls::Error>(error) {
        if matches!(tls, rustls::Error::InvalidMessage(_)) {
            return Error::unusable(
                endpoint,
                "the endpoint's answer is not TLS: it speaks plain HTTP",
                "use http:// in --endpoint-url",
            )
            .into();
        }
        return tls_failed(endpoint, tls).into();
    }
    if let Some(lookup) = find::<LookupFailed>(error) {
        return lookup.to_error(subject).into();
    }
    if let Some(stopped) = find::<Stopped>(error) {
        return no_progress(subject, stopped.idle).into();
    }
    let timeout = matches!(error, SdkError::TimeoutError(_));
    match error {
        SdkError::ResponseError(_) if is_broken_off(error) => Error::Network {
            uri,
            offset,
            source: root_cause(error),
        },
        SdkError::ResponseError(answer) => Error::Protocol {
            uri,
            offset,
            reason: with_causes(error),
            answer: Box::new(answer_of(answer.raw())),
        },
        SdkError::DispatchFailure(dispatch) if dispatch.is_timeout() || timeout => {
            stalled(subject, config, error)
        }
        // Asking again does not make a password right. (Other refusals of a tunnel may pass: hyper hides their status.)
        SdkError::DispatchFailure(_) if with_causes(error).contains(PROXY_WANTS_PASSWORD) => {
            Error::Refused {
                uri,
                offset: subject.offset,
                answer: Box::new(Answer {
                    message: Some(PROXY_WANTS_PASSWORD.into()),
                    ..Answer::default()
                }),
            }
        }
        SdkError::DispatchFailure(dispatch) if dispatch.is_io() || is_transient(error) => {
            Error::Network {
                uri,
                offset,
                source: root_cause(error),
            }
        }
        // Sent, and answered with something that hyper could not read.
        SdkError::DispatchFailure(_) if with_causes(error).contains("(SendRequest)") => {
            Error::Protocol {
                uri,
                offset,
                reason: with_causes(error),
                answer: Box::default(),
            }
        }
        _ if timeout => stalled(subject, config, error),
        _ => Error::Refused {
            uri,
            offset: subject.offset,
            answer: Box::new(Answer {
                message: Some(with_causes(error)),
                ..Answer::default()
            }),
        },
    }
    .into()
}

/// What an answer that makes no sense still tells.
fn answer_of(raw: &HttpResponse) -> Answer {
    Answer {
        status: raw.status().as_u16(),
        request_id: raw.headers().get("x-amz-request-id").map(str::to_owned),
        ..Answer::default()
    }
}

/// The stock transport could not find an address.
#[derive(Debug, thiserror::Error)]
#[error("looking up {host}: {said}")]
pub(super) struct LookupFailed {
    pub(super) host: String,
    pub(super) said: String,
}

impl LookupFailed {
    fn to_error(&self, subject: Subject<'_>) -> Error {
        let uri = subject.uri.to_string();
        let source = Arc::new(std::io::Error::other(self.to_string()));
        match is_unknown_host(&self.said) {
            true => Error::UnknownHost {
                uri,
                host: self.host.clone(),
                source,
            },
            false => Error::Network {
                uri,
                offset: subject.start(),
                source,
            },
        }
    }
}

/// An answer that had begun did not go on.
#[derive(Debug, thiserror::Error)]
#[error("nothing more came for {idle:?}")]
pub(super) struct Stopped {
    pub(super) idle: Duration,
}

/// A connection that was closed before an answer came is a transport's failure, whatever hyper calls it.
fn is_transient(error: &(dyn StdError + 'static)) -> bool {
    find::<std::io::Error>(error).is_some()
        || with_causes(error).contains("connection closed before message completed")
}

/// A body that the SDK collects (a listing's) and that ended early.
fn is_broken_off(error: &(dyn StdError + 'static)) -> bool {
    is_transient(error) || with_causes(error).contains("end of file before message length reached")
}

fn stalled(subject: Subject<'_>, config: &S3Config, error: &(dyn StdError + 'static)) -> Error {
    let connecting = with_causes(error).contains("connect");
    let idle = match connecting {
        true => config.connect_timeout,
        false => config.first_byte_timeout,
    };
    no_progress(subject, idle)
}

/// A body that broke while it was read.
pub(super) fn broken_body(subject: Subject<'_>, error: &(dyn StdError + 'static)) -> Error {
    Error::Network {
        uri: subject.uri.to_string(),
        offset: subject.start(),
        source: root_cause(error),
    }
}

/// A body without progress.
pub(super) fn no_progress(subject: Subject<'_>, idle: Duration) -> Error {
    Error::Stalled {
        uri: subject.uri.to_string(),
        offset: subject.start(),
        idle,
        proxy: None,
    }
}

/// Names the proxy in an error that may be its doing: whatever does not bear the request id that S3 gives its answers.
pub(super) fn through_proxy(proxy: &str, mut error: Error) -> Error {
    let note = format!("through the proxy {proxy}");
    match &mut error {
        Error::Network { source, .. } => {
            let kind = source.downcast_ref::<std::io::Error>();
            let kind = kind.map_or(std::io::ErrorKind::Other, std::io::Error::kind);
            *source = Arc::new(std::io::Error::new(kind, format!("{source} ({note})")));
        }
        Error::Protocol { reason, .. } | Error::Tls { reason, .. } => {
            *reason = format!("{reason} ({note})");
        }
        Error::Stalled { proxy: named, .. } => *named = Some(proxy.into()),
        Error::NotFound { answer, .. }
        | Error::PermissionDenied { answer, .. }
        | Error::Throttled { answer, .. }
        | Error::Refused { answer, .. } => name_proxy(answer, &note),
        Error::Server { answer, .. } => name_proxy(answer, &note),
        _ => {}
    }
    error
}

fn name_proxy(answer: &mut Answer, note: &str) {
    if answer.request_id.is_none() {
        answer.message = Some(match answer.message.take() {
            Some(message) => format!("{message} ({note})"),
            None => format!("not S3's answer, it came {note}"),
        });
    }
}

/// Which certificate failed and why.
pub(super) fn tls_failed(endpoint: &str, error: &rustls::Error) -> Error {
    use rustls::CertificateError as C;
    let why = match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            C::UnknownIssuer => {
                "its certificate is signed by an authority that is not trusted here".into()
            }
            C::Expired | C::ExpiredContext { .. } => "its certificate has expired".into(),
            C::NotValidForName | C::NotValidForNameContext { .. } => {
                "its certificate is for another host name".into()
            }
            other => format!("its certificate is not accepted: {other:?}"),
        },
        other => other.to_string(),
    };
    Error::Tls {
        endpoint: endpoint.into(),
        reason: format!("{why} (trusted: --ca-bundle or AWS_CA_BUNDLE, or else the system's)"),
    }
}

/// The errors below `error`, itself included. An [`std::io::Error`] hides its payload from `source`.
fn chain<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        match error.downcast_ref::<std::io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
            None => error.source(),
        }
    })
}

fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// The whole chain in one line, without the sentences that say nothing.
pub(super) fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in chain(error).map(ToString::to_string) {
        if parts.last() != Some(&part) {
            parts.push(part);
        }
    }
    parts.join(": ")
}

/// The deepest error as a cause: its `io::ErrorKind` if there is one, and its text.
fn root_cause(error: &(dyn StdError + 'static)) -> Arc<dyn StdError + Send + Sync> {
    let text = with_causes(error);
    let kind = find::<std::io::Error>(error).map_or(std::io::ErrorKind::Other, |io| io.kind());
    Arc::new(std::io::Error::new(kind, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri() -> ObjectUri {
        ObjectUri::s3("b", "k")
    }

    fn error(status: u16, code: &str) -> Error {
        let uri = uri();
        let subject = Subject {
            uri: &uri,
            offset: Some(7),
            etag: Some("\"e\""),
        };
        let body = match code {
            "" => String::new(),
            code => format!(
                "<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>a &lt; b</Message><RequestId>R1</RequestId></Error>"
            ),
        };
        *refused(subject, status, |_| None, body.as_bytes()).error
    }

    #[test]
    fn the_table() {
        type Case = (u16, &'static str, fn(&Error) -> bool);
        let cases: [Case; 23] = [
            (404, "NoSuchKey", |e| matches!(e, Error::NotFound { .. })),
            (404, "", |e| matches!(e, Error::NotFound { .. })),
            (404, "NoSuchBucket", |e| matches!(e, Error::NotFound { .. })),
            (403, "AccessDenied", |e| {
                matches!(e, Error::PermissionDenied { .. })
            }),
            (403, "", |e| matches!(e, Error::PermissionDenied { .. })),
            (403, "RequestTimeTooSkewed", |e| {
                matches!(e, Error::PermissionDenied { .. })
            }),
            (400, "ExpiredToken", |e| {
                matches!(e, Error::PermissionDenied { .. })
            }),
            (
                412,
                "PreconditionFailed",
                |e| matches!(e, Error::Changed { offset: 7, answer, .. } if answer.request_id.as_deref() == Some("R1")),
            ),
            (416, "InvalidRange", |e| {
                matches!(e, Error::RangeNotSatisfiable { offset: 7, .. })
            }),
            (503, "SlowDown", |e| matches!(e, Error::Throttled { .. })),
            (429, "", |e| matches!(e, Error::Throttled { .. })),
            (503, "", |e| matches!(e, Error::Throttled { .. })),
            (400, "ThrottlingException", |e| {
                matches!(e, Error::Throttled { .. })
            }),
            (200, "SlowDown", |e| matches!(e, Error::Throttled { .. })),
            (200, "InternalError", |e| matches!(e, Error::Server { .. })),
            (500, "InternalError", |e| {
                matches!(e, Error::Server { offset: 7, .. })
            }),
            (502, "", |e| matches!(e, Error::Server { .. })),
            (503, "ServiceUnavailable", |e| {
                matches!(e, Error::Server { .. })
            }),
            (504, "", |e| matches!(e, Error::Server { .. })),
            (400, "RequestTimeout", |e| matches!(e, Error::Server { .. })),
            (400, "InvalidRequest", |e| {
                matches!(e, Error::Refused { .. })
            }),
            (301, "PermanentRedirect", |e| {
                matches!(e, Error::Refused { .. })
            }),
            (405, "MethodNotAllowed", |e| {
                matches!(e, Error::Refused { .. })
            }),
        ];
        for (status, code, is_right) in cases {
            let error = error(status, code);
            assert!(is_right(&error), "{status} {code}: {error}");
        }
    }

    #[test]
    fn an_answer_keeps_code_message_and_request_id() {
        let Error::Refused { answer, .. } = error(400, "Odd") else {
            panic!("not refused");
        };
        assert_eq!(
            *answer,
            Answer {
                status: 400,
                code: Some("Odd".into()),
                message: Some("a < b".into()),
                request_id: Some("R1".into()),
            }
        );
    }

    #[test]
    fn what_would_help_is_heard() {
        let uri = uri();
        let hint = |status, code: &str, header: Option<&'static str>| {
            let body = format!("<Error><Code>{code}</Code><Region>eu-west-1</Region></Error>");
            let get = move |name: &str| header.filter(|_| name == "x-amz-bucket-region");
            refused(Subject::of(&uri), status, get, body.as_bytes()).hint
        };
        let region = |name: &str| Some(Hint::Region(name.into()));
        assert_eq!(hint(301, "PermanentRedirect", Some("ap-x")), region("ap-x"));
        assert_eq!(
            hint(400, "AuthorizationHeaderMalformed", None),
            region("eu-west-1")
        );
        assert_eq!(hint(403, "AccessDenied", Some("ap-x")), None);
        assert_eq!(hint(400, "ExpiredToken", None), Some(Hint::ExpiredToken));
    }

    #[test]
    fn error_documents_are_recognised_by_their_root() {
        assert!(is_error_document(
            b"<?xml version=\"1.0\"?>\n<Error><Code>X</Code></Error>"
        ));
        assert!(is_error_document(b" <Error><Code>X</Code></Error>"));
        assert!(!is_error_document(
            b"<Data><Error><Code>X</Code></Error></Data>"
        ));
        assert!(!is_error_document(b"plain text"));
        assert!(!is_error_document(b""));
    }

    #[test]
    fn a_proxy_is_named_where_it_may_be_to_blame() {
        let named = |error| through_proxy("http://p:1 of HTTPS_PROXY", error);
        let network = Error::Network {
            uri: "u".into(),
            offset: 1,
            source: Arc::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
        };
        let Error::Network { source, offset, .. } = named(network) else {
            panic!("another error");
        };
        let io = source.downcast_ref::<std::io::Error>().unwrap();
        assert_eq!(
            (io.kind(), offset),
            (std::io::ErrorKind::ConnectionRefused, 1)
        );
        assert!(
            io.to_string()
                .ends_with("(through the proxy http://p:1 of HTTPS_PROXY)")
        );
        let of_s3 = error(403, "AccessDenied");
        assert_eq!(named(of_s3.clone()).to_string(), of_s3.to_string());
        let text = named(no_progress(Subject::of(&uri()), Duration::from_secs(5))).to_string();
        assert!(text.contains("no progress for 5s"), "{text}");
        assert!(
            text.contains("the proxy http://p:1 of HTTPS_PROXY"),
            "{text}"
        );
        let uri = uri();
        let of_proxy = refused(Subject::of(&uri), 502, |_| None, b"<html>");
        let text = named(*of_proxy.error).to_string();
        assert!(
            text.contains("HTTP 502") && text.contains("http://p:1"),
            "{text}"
        );
    }

    #[test]
    fn a_certificate_problem_is_found_inside_an_io_error() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let io = std::io::Error::other(std::io::Error::other(tls));
        let found = find::<rustls::Error>(&io).expect("found");
        let text = tls_failed("host:443", found).to_string();
        assert!(
            text.contains("not trusted") && text.contains("--ca-bundle"),
            "{text}"
        );
    }
}
