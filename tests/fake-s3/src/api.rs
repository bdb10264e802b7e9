//! S3's operations.
//!
//! [`handle`] takes a request through the gates in S3's order: script, signature, bucket, region, payer. Behind them
//! each operation is a function from an exchange to a response.

mod admin;
mod bucket;
mod list;
mod read;
mod write;

use std::borrow::Cow;
use std::sync::Arc;

use crate::auth::{self, KeyCache};
use crate::connection::Exchange;
use crate::date;
use crate::log::CredentialKind;
use crate::request::{Body, Request};
use crate::response::{Body as Answered, Response, S3Error};
use crate::script::{Operation, Phase};
use crate::store::{Bucket, PutOptions};

type Answer = Result<Response, S3Error>;

/// What a request asks for.
pub(crate) fn operation(request: &Request<'_>) -> Operation {
    if request.bucket == "_fake" {
        return Operation::Admin;
    }
    match (request.method, request.key.is_empty()) {
        ("GET", true) if is_listing(request) => Operation::List,
        ("PUT" | "POST", false) => Operation::Put,
        ("DELETE", false) => Operation::Delete,
        ("GET", false) => Operation::Get,
        ("HEAD", false) => Operation::Head,
        _ => Operation::Bucket,
    }
}

fn is_listing(request: &Request<'_>) -> bool {
    let names_a_subresource = ["location", "session", "versioning", "uploads", "versions"];
    !request.bucket.is_empty()
        && !names_a_subresource
            .iter()
            .any(|name| request.query(name).is_some())
}

/// The key that rules and the log see: of a listing, its prefix.
pub(crate) fn scripted_key<'a>(operation: Operation, request: &'a Request<'_>) -> Cow<'a, str> {
    match operation {
        Operation::List => Cow::Owned(request.query("prefix").unwrap_or_default().into_owned()),
        _ => Cow::Borrowed(&request.key),
    }
}

/// Answers a request; errors become S3's XML here.
pub(crate) fn handle(
    exchange: &mut Exchange<'_>,
    body: &mut Body<'_>,
    keys: &mut KeyCache,
) -> Response {
    let answer = match exchange.operation {
        Operation::Admin => admin::handle(exchange, body),
        _ => scripted(exchange).and_then(|()| gated(exchange, body, keys)),
    };
    let response = answer.unwrap_or_else(|error| exchange.fail(error));
    if exchange.faults.ok_with_error && response.status < 300 {
        let error = S3Error::new(
            200,
            "InternalError",
            "We encountered an internal error. Please try again.",
        );
        return exchange.fail(error);
    }
    let is_document = matches!(exchange.operation, Operation::List | Operation::Bucket);
    if is_document && response.status == 200 {
        return break_document(exchange, response);
    }
    response
}

/// A listing or a session can break at a byte like an object: then it is sent like one.
fn break_document(exchange: &mut Exchange<'_>, mut response: Response) -> Response {
    let Answered::Bytes(document) = &response.body else {
        return response;
    };
    exchange.decide_body(document.len() as u64);
    if exchange.faults.touch_body()
        && let Ok(content) = exchange.server.store.memory.store(document)
    {
        let range = 0..content.len();
        response.body = Answered::Object(content, range);
    }
    response
}

/// Lets the script have its first say.
fn scripted(exchange: &mut Exchange<'_>) -> Result<(), S3Error> {
    let (server, request, operation) = (exchange.server, exchange.request, exchange.operation);
    let shape = server.shape().0;
    let faults = &mut exchange.faults;
    if shape.latency.first_byte_ms > 0.0 || shape.latency.per_mib_ms > 0.0 {
        let chance = (server.script.chance(), server.script.chance());
        faults.slow_down(&shape.latency, chance);
    }
    faults.limit(shape.connection_bytes_per_second);
    server.script.decide(
        Phase::Request,
        operation,
        &request.bucket,
        &scripted_key(operation, request),
        faults,
    );
    if let Some(seed) = faults.replace {
        replace(exchange, seed)?;
    }
    match exchange.faults.error.take() {
        Some((status, code)) => Err(S3Error::new(status, &code, message_of(&code))),
        None => Ok(()),
    }
}

fn message_of(code: &str) -> &'static str {
    match code {
        "SlowDown" => "Please reduce your request rate.",
        "InternalError" => "We encountered an internal error. Please try again.",
        "AccessDenied" => "Access Denied",
        _ => "Scripted error",
    }
}

/// A new version of the same size and other bytes.
fn replace(exchange: &Exchange<'_>, seed: u64) -> Result<(), S3Error> {
    let store = &exchange.server.store;
    let Some(bucket) = store.bucket(&exchange.request.bucket) else {
        return Ok(());
    };
    if let Some(old) = bucket.newest(&exchange.request.key) {
        let options = PutOptions {
            etag: None,
            ..old.options.clone()
        };
        store.put_synthetic(
            &bucket,
            &exchange.request.key,
            old.content.len(),
            seed,
            options,
        )?;
    }
    Ok(())
}

fn gated(exchange: &mut Exchange<'_>, body: &mut Body<'_>, keys: &mut KeyCache) -> Answer {
    let bucket = exchange.server.store.bucket(&exchange.request.bucket);
    authenticate(exchange, bucket.as_deref(), keys)?;
    if exchange.request.bucket.is_empty() {
        return bucket::list_all(exchange);
    }
    let Some(bucket) = bucket else {
        return if exchange.request.method == "PUT" && exchange.request.key.is_empty() {
            bucket::create(exchange, body)
        } else {
            Err(
                S3Error::new(404, "NoSuchBucket", "The specified bucket does not exist")
                    .element("BucketName", &*exchange.request.bucket),
            )
        };
    };
    check_region(exchange, &bucket)?;
    if bucket.options.requester_pays
        && exchange.request.header("x-amz-request-payer") != Some("requester")
    {
        return Err(access_denied());
    }
    dispatch(exchange, &bucket, body)
}

fn access_denied() -> S3Error {
    S3Error::new(403, "AccessDenied", "Access Denied")
}

fn authenticate(
    exchange: &mut Exchange<'_>,
    bucket: Option<&Bucket>,
    keys: &mut KeyCache,
) -> Result<(), S3Error> {
    let server = exchange.server;
    if !server.auth.is_on() {
        return Ok(());
    }
    if auth::kind(exchange.request) == CredentialKind::None {
        return if bucket.is_some_and(|bucket| bucket.options.public) {
            Ok(())
        } else {
            Err(access_denied())
        };
    }
    server
        .auth
        .verify(exchange.request, date::now() + server.clock_offset_s, keys)?;
    let express =
        bucket.is_some_and(Bucket::is_express) && exchange.request.query("session").is_none();
    if express && auth::kind(exchange.request) != CredentialKind::Session {
        return Err(access_denied());
    }
    exchange.authenticated = true;
    Ok(())
}

/// A bucket elsewhere is redirected to; a bucket here that was signed for elsewhere is a malformed signature. Both
/// tell the region, in a header because HEAD has no body.
fn check_region(exchange: &Exchange<'_>, bucket: &Bucket) -> Result<(), S3Error> {
    let server = exchange.server;
    let home = bucket.options.region.as_deref().unwrap_or(&server.region);
    if !server.auth.is_on() && home == server.region {
        return Ok(());
    }
    let signed = auth::signed_region(exchange.request);
    let error = match signed.as_deref() {
        Some(region) if region == home => return Ok(()),
        None if home == server.region => return Ok(()),
        Some(region) if home == server.region => {
            let message = format!(
                "The authorization header is malformed; the region '{region}' is wrong; expecting '{home}'"
            );
            S3Error::new(400, "AuthorizationHeaderMalformed", &message).element("Region", home)
        }
        _ => {
            let message = "The bucket you are attempting to access must be addressed using the specified endpoint. Please send all future requests to this endpoint.";
            S3Error::new(301, "PermanentRedirect", message)
                .element(
                    "Endpoint",
                    format!("{}.s3.{home}.amazonaws.com", bucket.name),
                )
                .element("Bucket", &bucket.name)
        }
    };
    Err(error.header("x-amz-bucket-region", home))
}

fn dispatch(exchange: &mut Exchange<'_>, bucket: &Arc<Bucket>, body: &mut Body<'_>) -> Answer {
    let request = exchange.request;
    let has = |name: &str| request.query(name).is_some();
    match (request.method, request.key.is_empty()) {
        ("GET", true) if has("location") => bucket::location(exchange, bucket),
        ("GET", true) if has("session") => bucket::session(exchange, bucket),
        ("GET", true) if has("versioning") => bucket::versioning(),
        ("GET", true) if is_listing(request) => list::list(exchange, bucket),
        ("HEAD", true) => bucket::head(exchange, bucket),
        ("PUT", true) => bucket::create(exchange, body),
        ("DELETE", true) => bucket::delete(exchange, bucket),
        ("GET" | "HEAD", false)
            if !["acl", "tagging", "attributes", "uploadId"]
                .iter()
                .any(|name| has(name)) =>
        {
            read::read(exchange, bucket)
        }
        ("PUT", false) if has("uploadId") => write::upload_part(exchange, bucket, body),
        ("PUT", false) if request.header("x-amz-copy-source").is_none() => {
            write::put(exchange, bucket, body)
        }
        ("POST", false) if has("uploads") => write::create_upload(exchange, bucket),
        ("POST", false) if has("uploadId") => write::complete_upload(exchange, bucket, body),
        ("DELETE", false) if has("uploadId") => write::abort_upload(exchange, bucket),
        ("DELETE", false) => write::delete(exchange, bucket),
        _ => Err(S3Error::new(
            501,
            "NotImplemented",
            "A header or query you provided implies functionality that is not implemented",
        )),
    }
}
