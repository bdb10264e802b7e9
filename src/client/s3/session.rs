//! A time limit on CreateSession, the request that opens a session with a directory bucket of S3 Express.
//!
//! The SDK sends it by itself, inside the first request that needs the session, and collects its answer; it limits
//! only the time to the first byte. An answer that stopped half-way would hold up every request to the bucket for good.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use tokio::time::timeout;

use super::refusal::Stopped;

/// An HTTP client, and below it its connectors, whose answers to CreateSession come whole within the period or not at
/// all. They are a kilobyte, so one period of progress is enough for the rest of the body.
#[derive(Debug)]
pub(super) struct TimedSessions<C> {
    inner: C,
    period: Duration,
}

impl<C> TimedSessions<C> {
    pub(super) fn new(inner: C, period: Duration) -> Self {
        Self { inner, period }
    }
}

impl HttpClient for TimedSessions<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let inner = self.inner.http_connector(settings, components);
        SharedHttpConnector::new(TimedSessions::new(inner, self.period))
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.inner.connector_metadata()
    }
}

impl HttpConnector for TimedSessions<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let opens_session = opens_session(request.uri());
        let (answer, period) = (self.inner.call(request), self.period);
        match opens_session {
            true => HttpConnectorFuture::new(async move { whole(answer.await?, period).await }),
            false => answer,
        }
    }
}

/// Only CreateSession has the subresource `session`.
fn opens_session(uri: &str) -> bool {
    let query = uri.split_once('?').map_or("", |(_, query)| query);
    let mut names = query.split('&').map(|pair| pair.split('=').next());
    names.any(|name| name == Some("session"))
}

async fn whole(mut answer: HttpResponse, period: Duration) -> Result<HttpResponse, ConnectorError> {
    let body = std::mem::replace(answer.body_mut(), SdkBody::taken());
    match timeout(period, ByteStream::new(body).collect()).await {
        Ok(Ok(body)) => {
            *answer.body_mut() = SdkBody::from(body.into_bytes());
            Ok(answer)
        }
        Ok(Err(error)) => Err(ConnectorError::io(error.into())),
        Err(_) => Err(ConnectorError::timeout(Stopped { idle: period }.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_subresource_is_a_session() {
        let host = "https://b.example/k";
        for (query, expected) in [
            ("", false),
            ("?session", true),
            ("?session=", true),
            ("?a=session&x-id=GetObject", false),
            ("?sessions", false),
            ("?x-id=CreateSession&session", true),
        ] {
            assert_eq!(
                opens_session(&format!("{host}{query}")),
                expected,
                "{query}"
            );
        }
    }
}
