//! The same connections under the AWS SDK.
//!
//! The SDK resolves endpoints, signs, and parses errors; only the transport is replaced. A caller that wants a GET's
//! body in its own memory puts a [`Dest`] into a [`DestSlot`] and runs the SDK's call inside [`with_dest`]. The
//! connector finds the slot (the orchestrator calls it in the caller's own task), receives the body into the part and
//! gives the SDK the answer's head with an empty body. Everything else goes to the SDK's own client: what is not marked,
//! requests through a proxy, and all of the SDK's credential calls.
//!
//! The SDK's retries must be off for such a call: the second attempt would ask for bytes that the part already has.
//! The connector refuses it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;

use super::proxy::is_proxied;
use super::{BodyPlan, Endpoint, Head, Method, Reply, Wire, WireRequest, request_head};
use crate::buffer::PartBuf;
use crate::error::{Error, Result};

/// S3's error documents are below 1 KiB; a proxy's page may be longer.
const MAX_ERROR_BYTES: usize = 1 << 20;

tokio::task_local! {
    static DEST: DestSlot;
}

/// Judges the head of a successful answer; see [`super::OnHead`].
pub type JudgeHead = Box<dyn FnMut(&Head<'_>, &mut PartBuf) -> Result<BodyPlan> + Send>;

/// Where the body of one GET goes.
pub struct Dest {
    /// Is filled.
    pub part: PartBuf,
    /// Is asked about answers with a 2xx status; the bodies of others go to the SDK.
    pub on_head: JudgeHead,
    /// For errors.
    pub uri: String,
    /// The object's offset of the first byte that will be stored, for errors.
    pub offset: u64,
    /// What became of it. `None` means that the request did not come here (a proxy is in force, or it was refused
    /// before it was sent): the body, if any, is in the SDK's answer.
    pub outcome: Option<Result<Reply>>,
}

impl fmt::Debug for Dest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dest")
            .field("part", &self.part)
            .field("uri", &self.uri)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}

/// Lends a [`Dest`] to the connector; it is back when the call has ended, however it ended.
#[derive(Debug, Clone)]
pub struct DestSlot(Arc<Mutex<Option<Dest>>>);

impl DestSlot {
    /// A slot with a destination in it.
    pub fn new(dest: Dest) -> Self {
        Self(Arc::new(Mutex::new(Some(dest))))
    }

    /// Takes the destination out; `None` while a request is filling it.
    pub fn take(&self) -> Option<Dest> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Dest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs an SDK call whose GET fills the slot's destination.
pub async fn with_dest<F: Future>(slot: DestSlot, call: F) -> F::Output {
    DEST.scope(slot, call).await
}

/// Puts the destination back, also when the request is dropped half-way.
struct Borrowed {
    slot: DestSlot,
    dest: Option<Dest>,
}

impl Borrowed {
    fn from(slot: DestSlot) -> Option<Self> {
        let dest = Some(slot.take()?);
        Some(Self { slot, dest })
    }

    fn dest(&mut self) -> &mut Dest {
        self.dest.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        *self.slot.lock() = self.dest.take();
    }
}

/// The client for `aws_sdk_s3::config::Builder::http_client`.
#[derive(Debug, Clone)]
pub struct WireHttpClient {
    wire: Wire,
    inner: SharedHttpClient,
}

impl WireHttpClient {
    /// Bodies of marked GETs come over `wire`, everything else over `inner`.
    pub fn new(wire: Wire, inner: SharedHttpClient) -> Self {
        Self { wire, inner }
    }
}

impl HttpClient for WireHttpClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(WireConnector {
            wire: self.wire.clone(),
            inner: self.inner.http_connector(settings, components),
        })
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.inner.connector_metadata()
    }
}

#[derive(Debug)]
struct WireConnector {
    wire: Wire,
    inner: SharedHttpConnector,
}

impl HttpConnector for WireConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let marked = DEST.try_with(DestSlot::clone).ok();
        let target = is_object_get(&request).then(|| Target::of(&request));
        match (marked, target) {
            (Some(slot), Some(Ok(target))) if !is_proxied(&target.endpoint, env) => {
                let wire = self.wire.clone();
                HttpConnectorFuture::new(async move { fetch(wire, target, slot).await })
            }
            (Some(_), Some(Err(error))) => {
                HttpConnectorFuture::ready(Err(ConnectorError::user(error.into())))
            }
            _ => self.inner.call(request),
        }
    }
}

/// A call for an object may need another GET first, in the same task: CreateSession of S3 Express. That answer is for
/// the SDK alone, and not to be judged as the object's. The SDK names the operation in every request's query.
fn is_object_get(request: &HttpRequest) -> bool {
    request.method() == "GET" && request.uri().contains("x-id=GetObject")
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A request in our own terms.
#[derive(Debug)]
struct Target {
    endpoint: Endpoint,
    head: Vec<u8>,
}

impl Target {
    fn of(request: &HttpRequest) -> Result<Self> {
        let uri: http::Uri = request.uri().parse().map_err(|error| {
            Error::config("endpoint URL", format!("{}: {error}", request.uri()))
        })?;
        let endpoint = Endpoint::of(&uri)?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let host = (!request.headers().contains_key("host")).then(|| endpoint.host_header());
        let headers = host
            .iter()
            .map(|host| ("host", host.as_str()))
            .chain(request.headers().iter());
        Ok(Self {
            head: request_head(Method::Get, path, headers),
            endpoint,
        })
    }
}

async fn fetch(wire: Wire, target: Target, slot: DestSlot) -> Result<HttpResponse, ConnectorError> {
    let Some(mut borrowed) = Borrowed::from(slot) else {
        return Err(refused("another request is filling the same destination"));
    };
    let dest = borrowed.dest();
    if matches!(dest.outcome, Some(Err(_))) {
        return Err(refused(
            "the SDK's retries must be off when it fills a part",
        ));
    }
    let request = WireRequest {
        endpoint: &target.endpoint,
        method: Method::Get,
        head: &target.head,
        uri: &dest.uri,
        offset: dest.offset,
    };
    let mut headers = Vec::new();
    let on_head = &mut dest.on_head;
    let outcome = wire
        .send(request, &mut dest.part, &mut |head, part| {
            headers = owned(head);
            if (200..300).contains(&head.status) {
                on_head(head, part)
            } else {
                Ok(BodyPlan::Buffer {
                    cap: MAX_ERROR_BYTES,
                })
            }
        })
        .await;
    dest.outcome = Some(outcome.clone());
    match outcome {
        Ok(reply) => response(reply, headers),
        Err(error) => Err(classified(error)),
    }
}

/// Sends a request whose answer is small, and returns the whole of it as the SDK's parsers want it.
pub(crate) async fn collect(
    wire: &Wire,
    request: WireRequest<'_>,
    cap: usize,
) -> Result<HttpResponse> {
    let mut headers = Vec::new();
    let mut nothing = PartBuf::heap(0);
    let reply = wire
        .send(request, &mut nothing, &mut |head, _| {
            headers = owned(head);
            Ok(BodyPlan::Buffer { cap })
        })
        .await?;
    response(reply, headers).map_err(|error| Error::Protocol {
        uri: request.uri.to_owned(),
        offset: request.offset,
        reason: error.to_string(),
        answer: Box::default(),
    })
}

fn owned(head: &Head<'_>) -> Vec<(String, Vec<u8>)> {
    head.iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec()))
        .collect()
}

fn response(reply: Reply, headers: Vec<(String, Vec<u8>)>) -> Result<HttpResponse, ConnectorError> {
    let status = reply
        .status
        .try_into()
        .map_err(|error| ConnectorError::other(Box::new(error), None))?;
    let mut response = HttpResponse::new(status, SdkBody::from(reply.body));
    for (name, value) in headers {
        // S3 sends user metadata in UTF-8; what is not is of no use to the SDK.
        if let Ok(value) = String::from_utf8(value) {
            let _ = response.headers_mut().try_append(name, value);
        }
    }
    Ok(response)
}

fn refused(why: &str) -> ConnectorError {
    ConnectorError::user(why.into())
}

fn classified(error: Error) -> ConnectorError {
    match error {
        Error::Stalled { .. } => ConnectorError::timeout(error.into()),
        Error::Network { .. } | Error::Protocol { .. } | Error::UnknownHost { .. } => {
            ConnectorError::io(error.into())
        }
        _ => ConnectorError::user(error.into()),
    }
}
