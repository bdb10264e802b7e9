//! The client as programs use it: S3 behind a limit and retries.

use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt};
use standpipe::client::{
    Depth, LimitClient, LimitConfig, ListEntry, ObjectClient, RetryClient, RetryConfig, S3Client,
    S3Config, Transport,
};
use standpipe::error::Result;
use standpipe::metrics::Metrics;
use standpipe::object::{ObjectMeta, ObjectUri};

use crate::Outcome;
use crate::server::{BUCKET, Endpoint};

/// Above all concurrencies that are measured: the engine is what limits.
const MOST_REQUESTS: u32 = 256;

pub(crate) fn connect(
    endpoint: &Endpoint,
    transport: Transport,
    signed: bool,
    metrics: &Arc<Metrics>,
) -> Outcome<Arc<dyn ObjectClient>> {
    let config = S3Config {
        endpoint_url: Some(endpoint.url.clone()),
        region: Some("us-east-1".into()),
        anonymous: !signed,
        ca_bundle: endpoint.ca_file.clone(),
        force_path_style: Some(true),
        transport,
        ..S3Config::default()
    };
    let connecting = S3Client::connect(config, metrics.clone());
    let s3 = standpipe::runtime::handle().block_on(connecting)?;
    if s3.transport() != transport {
        return Err(format!(
            "{:?} was asked for, {:?} is used",
            transport,
            s3.transport()
        )
        .into());
    }
    let limit = LimitConfig {
        most_requests: MOST_REQUESTS,
    };
    let limited = LimitClient::new(Arc::new(s3), limit, metrics.clone());
    Ok(Arc::new(RetryClient::new(
        Arc::new(limited),
        RetryConfig::default(),
        metrics.clone(),
    )))
}

/// The objects below a prefix, listed as they are read.
pub(crate) fn list(
    client: &Arc<dyn ObjectClient>,
    prefix: &str,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let entries = client.list(&ObjectUri::s3(BUCKET, prefix), Depth::All);
    let object = |entry| async {
        match entry {
            Ok(ListEntry::Object(meta)) => Some(Ok(meta)),
            Ok(ListEntry::Prefix(_)) => None,
            Err(error) => Some(Err(error)),
        }
    };
    entries.filter_map(object).boxed()
}
