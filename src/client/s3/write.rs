//! Writing: whole objects, objects in parts, and taking objects away.
//!
//! Reading is what the crate is for, so [`crate::client::ObjectClient`] knows nothing of this. Uploads go through the
//! SDK over its own transport; the SDK's per-request cost does not matter beside a body of megabytes. S3 shows an
//! object when its last byte is there and not before: a PUT and the completion of an upload are atomic, so whatever
//! dies in between leaves the old object, or none. Parts of an upload that nobody completes cost storage until the
//! bucket's lifecycle rule (`AbortIncompleteMultipartUpload`) takes them away.
//!
//! Every request is repeated when its error says that this may help, with the waits of [`RetryConfig`].

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, RequestPayer};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::timeout::TimeoutConfig;
use bytes::Bytes;
use tokio::time::Instant;

use super::bucket::Bucket;
use super::refusal::Failure;
use super::{S3Client, protocol_of};
use crate::client::s3::refusal::Subject;
use crate::client::{FailureKind, ObjectClient, RetryConfig};
use crate::error::{Error, Result};
use crate::object::ObjectUri;

/// From the first byte of a request to the answer, the body's transfer included: a part of 8 MiB at 70 KB/s.
const WRITE_TIMEOUT: Duration = Duration::from_secs(120);

/// An object that is being written in parts. Nobody sees it before it is [complete](Self::complete).
#[derive(Debug, Clone)]
pub struct Upload {
    client: S3Client,
    uri: ObjectUri,
    id: Arc<str>,
}

/// A part that is there.
#[derive(Debug, Clone)]
pub struct UploadedPart {
    number: i32,
    etag: String,
}

fn sdk_override() -> aws_sdk_s3::config::Builder {
    let timeouts = TimeoutConfig::builder().read_timeout(WRITE_TIMEOUT).build();
    aws_sdk_s3::config::Builder::new().timeout_config(timeouts)
}

impl S3Client {
    /// Writes an object in one request, in place of one of its name. Gives its ETag, if the server tells it.
    pub async fn put(&self, uri: &ObjectUri, bytes: Bytes) -> Result<Option<String>> {
        self.writing(uri, move |bucket| {
            let key = self.shared.config.sse_c.as_ref();
            bucket
                .client()
                .put_object()
                .bucket(uri.bucket())
                .key(uri.key())
                .set_request_payer(self.payer())
                .set_sse_customer_algorithm(key.map(|_| "AES256".into()))
                .set_sse_customer_key(key.map(|key| key.key_base64()))
                .set_sse_customer_key_md5(key.map(|key| key.md5_base64().to_owned()))
                .body(ByteStream::from(bytes.clone()))
                .customize()
                .config_override(sdk_override())
                .send()
        })
        .await
        .map(|output| output.e_tag().map(str::to_owned))
    }

    /// Takes an object away. One that is not there is as good as deleted.
    pub async fn delete(&self, uri: &ObjectUri) -> Result<()> {
        self.writing(uri, move |bucket| {
            bucket
                .client()
                .delete_object()
                .bucket(uri.bucket())
                .key(uri.key())
                .set_request_payer(self.payer())
                .send()
        })
        .await
        .map(drop)
    }

    /// Begins an object that is written in parts.
    pub async fn start_upload(&self, uri: &ObjectUri) -> Result<Upload> {
        let output = self
            .writing(uri, move |bucket| {
                let key = self.shared.config.sse_c.as_ref();
                bucket
                    .client()
                    .create_multipart_upload()
                    .bucket(uri.bucket())
                    .key(uri.key())
                    .set_request_payer(self.payer())
                    .set_sse_customer_algorithm(key.map(|_| "AES256".into()))
                    .set_sse_customer_key(key.map(|key| key.key_base64()))
                    .set_sse_customer_key_md5(key.map(|key| key.md5_base64().to_owned()))
                    .send()
            })
            .await?;
        let id = output
            .upload_id()
            .ok_or_else(|| protocol_of(Subject::of(uri), "an upload without an id"))?;
        Ok(Upload {
            client: self.clone(),
            uri: uri.clone(),
            id: id.into(),
        })
    }

    fn payer(&self) -> Option<RequestPayer> {
        let pays = self.shared.config.request_payer;
        pays.then_some(RequestPayer::Requester)
    }

    /// Sends a request until it succeeds or there is no point in sending it again.
    async fn writing<T, E, F>(&self, uri: &ObjectUri, send: impl Fn(Arc<Bucket>) -> F) -> Result<T>
    where
        E: std::error::Error + Send + Sync + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let (retry, begun) = (RetryConfig::default(), Instant::now());
        for attempt in 1.. {
            let outcome = self.shared.heeding(uri, |bucket| {
                let sent = send(bucket);
                async move { sent.await.map_err(|error| self.failure(uri, error)) }
            });
            let error = match outcome.await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let elapsed = begun.elapsed();
            if !error.is_retryable() {
                return Err(error);
            }
            if attempt >= retry.max_attempts || elapsed >= retry.deadline {
                return Err(Error::RetriesExhausted {
                    attempts: attempt,
                    elapsed,
                    source: Box::new(error),
                });
            }
            self.shared.metrics.retries.add(1);
            let kind = FailureKind::from(&error);
            let delay = retry.backoff().delay(attempt, kind, fastrand::f64());
            tokio::time::sleep(delay).await;
        }
        unreachable!("the attempts are bounded")
    }

    fn failure<E>(&self, uri: &ObjectUri, error: SdkError<E, HttpResponse>) -> Failure
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        self.shared.sdk_failure(uri, error)
    }
}

impl Upload {
    /// The object that it will be.
    pub fn uri(&self) -> &ObjectUri {
        &self.uri
    }

    /// Writes a part: numbers count from 1 to 10,000, and every part but the last has at least 5 MiB.
    pub async fn part(&self, number: i32, bytes: Bytes) -> Result<UploadedPart> {
        let (client, uri) = (&self.client, &self.uri);
        let output = client
            .writing(uri, move |bucket| {
                let key = client.shared.config.sse_c.as_ref();
                bucket
                    .client()
                    .upload_part()
                    .bucket(uri.bucket())
                    .key(uri.key())
                    .upload_id(&*self.id)
                    .part_number(number)
                    .set_request_payer(client.payer())
                    .set_sse_customer_algorithm(key.map(|_| "AES256".into()))
                    .set_sse_customer_key(key.map(|key| key.key_base64()))
                    .set_sse_customer_key_md5(key.map(|key| key.md5_base64().to_owned()))
                    .body(ByteStream::from(bytes.clone()))
                    .customize()
                    .config_override(sdk_override())
                    .send()
            })
            .await?;
        let etag = output
            .e_tag()
            .ok_or_else(|| protocol_of(Subject::of(uri), "an uploaded part without an ETag"))?;
        Ok(UploadedPart {
            number,
            etag: etag.to_owned(),
        })
    }

    /// Makes the object of its parts, `size_bytes` together: now everybody sees it, in place of what was there. Gives its
    /// ETag, if the server tells it.
    pub async fn complete(
        &self,
        mut parts: Vec<UploadedPart>,
        size_bytes: u64,
    ) -> Result<Option<String>> {
        parts.sort_by_key(|part| part.number);
        let parts = parts.into_iter().map(|part| {
            let listed = CompletedPart::builder().part_number(part.number);
            listed.e_tag(part.etag).build()
        });
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts.collect()))
            .build();
        let (client, uri) = (&self.client, &self.uri);
        let completed = client
            .writing(uri, move |bucket| {
                bucket
                    .client()
                    .complete_multipart_upload()
                    .bucket(uri.bucket())
                    .key(uri.key())
                    .upload_id(&*self.id)
                    .set_request_payer(client.payer())
                    .multipart_upload(parts.clone())
                    .customize()
                    .config_override(sdk_override())
                    .send()
            })
            .await;
        match completed {
            Ok(output) => Ok(output.e_tag().map(str::to_owned)),
            // An attempt whose answer was lost may have done it: then the upload is gone and the object is there.
            Err(error @ Error::NotFound { .. }) => match client.head(uri).await {
                Ok(meta) if meta.size_bytes == size_bytes => {
                    Ok(meta.id.etag.as_deref().map(str::to_owned))
                }
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Gives it up: the parts are thrown away.
    pub async fn abort(&self) -> Result<()> {
        let (client, uri) = (&self.client, &self.uri);
        client
            .writing(uri, move |bucket| {
                bucket
                    .client()
                    .abort_multipart_upload()
                    .bucket(uri.bucket())
                    .key(uri.key())
                    .upload_id(&*self.id)
                    .set_request_payer(client.payer())
                    .send()
            })
            .await
            .map(drop)
    }
}
