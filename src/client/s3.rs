//! S3 and whatever speaks like it.
//!
//! Three parts of a GET cost time, and each is done where it is cheapest:
//!
//! * **who and where**: the SDK finds credentials, endpoints and regions ([`setup`], [`credentials`], [`bucket`]);
//! * **asking**: the SDK's orchestrator costs 100 us of CPU per request and milliseconds for the first, which is nothing
//!   for a part of 8 MiB and ten times everything else for one of 4 KiB. So small GETs, HEADs and listings are signed
//!   by hand ([`hand`], [`sign`], [`target`]), their answers are read by the SDK's parsers ([`decode`]), and large GETs
//!   go through the SDK ([`through`]);
//! * **receiving**: bodies come over our own HTTP/1.1 ([`crate::client::wire`]) straight into the part's own buffer,
//!   and each head is judged before a byte of its body is stored ([`answer`]). The SDK's own transport ([`stock`])
//!   remains for proxies and for comparison.
//!
//! There is no HEAD before a GET and no retry in here: an attempt that breaks leaves what it received in the part,
//! and a decorator asks again for the rest. Only two refusals are heeded on the spot, because the answer itself says
//! what to change: another region, and credentials that have expired.
//!
//! # What is counted
//! `requests`, `requests_in_flight` and `throttles` per attempt; `bytes_received` as bodies arrive and `bytes_wasted`
//! where bytes are skipped or corrupt; `first_byte` and `request_time` of GETs. A part that is a whole object and whose
//! answer told a full-object CRC is compared here and counted in `checksums_verified` or `checksums_bad`, and its
//! [`GetMeta::checksum`] says so. Objects of several parts, and objects without a checksum, are the engine's to count.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{ChecksumMode, EncodingType, RequestPayer};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::time::timeout;

use super::{Depth, GetMeta, ListEntry, ObjectClient};
use crate::buffer::PartBuf;
use crate::checksum::ChecksumPolicy;
use crate::error::{Answer, Error, Result};
use crate::metrics::Metrics;
use crate::object::{ByteRange, ObjectId, ObjectMeta, ObjectUri};
use crate::runtime;

mod answer;
mod bucket;
mod checksum_mode;
mod config;
mod credentials;
mod decode;
mod hand;
mod intake;
mod listing;
mod pages;
mod refusal;
mod session;
mod setup;
mod sign;
mod stock;
mod target;
mod through;
mod write;

pub use config::{AccessKey, S3Config, SseCustomerKey, Transport};
pub use write::{Upload, UploadedPart};

use answer::Plan;
use bucket::{Bucket, Buckets};
use credentials::CredentialCache;
use hand::{Hand, Question};
use listing::Page;
use refusal::{Failure, Hint, Subject};
use target::{Rules, Target};

/// From here on a GET goes through the SDK. Its 100 us are then less than a fifth of what receiving costs (0.5 s/GB),
/// and its reading of the endpoint rules is the one that everybody else tests.
const THROUGH_SDK_FROM_BYTES: u64 = 1 << 20;

/// What the names of directory buckets (S3 Express) end in.
const DIRECTORY_BUCKET_SUFFIX: &str = "--x-s3";

/// Keys of a listing's first page. A full page of 1,000 is 0.3 MB of XML, 6 ms of S3's time before the first object can
/// be asked for, and one of 64 is a quarter of a millisecond of ours; the second page is on its way while the first is read.
/// Fewer than the requests that are in flight: filling them would win nothing that can be measured over 2,000 objects.
const FIRST_PAGE_KEYS: i32 = 16;

/// When a first page is prepared for: behind its request, and well before any answer from S3 (20 ms and more).
const PREPARE_AFTER: Duration = Duration::from_millis(3);

/// A page that has not come after so many periods of progress, beside the time to its first byte, stalls: a full one is
/// 0.3 MB, five times what a body must bring in a period. The SDK collects the body, and limits only the first byte.
const PAGE_PERIODS: u32 = 5;

/// What errors call the endpoint when none is named.
const AWS: &str = "S3";

/// Reads objects from S3. Cheap to clone; clones share credentials, connections and what was learned of buckets.
#[derive(Debug, Clone)]
pub struct S3Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: S3Config,
    buckets: Buckets,
    credentials: Option<Arc<CredentialCache>>,
    /// For errors' texts.
    endpoint: String,
    /// Likewise.
    proxy: Option<String>,
    transport: Transport,
    rules: Rules,
    hand: Hand,
    metrics: Arc<Metrics>,
}

impl S3Client {
    /// Reads environment and profile and makes a client. No request is sent: a wrong key or endpoint shows at the first
    /// one. A connection may be opened for it meanwhile.
    pub async fn connect(config: S3Config, metrics: Arc<Metrics>) -> Result<Self> {
        let setup = setup::find(&config, &metrics).await?;
        let endpoint = setup.endpoint_url.clone().unwrap_or_else(|| AWS.to_owned());
        let shared = Shared {
            buckets: Buckets::new(setup.sdk, &setup.region),
            credentials: setup.credentials,
            endpoint,
            proxy: setup.proxy,
            transport: setup.transport,
            rules: setup.rules,
            hand: Hand::new(setup.wire, &config),
            config,
            metrics,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// How bodies are received: what was asked for, or the stock transport where a proxy is set.
    pub fn transport(&self) -> Transport {
        self.shared.transport
    }

    /// The endpoint that flags, environment or profile name; `None` is AWS.
    pub fn endpoint_url(&self) -> Option<&str> {
        let endpoint = self.shared.endpoint.as_str();
        (endpoint != AWS).then_some(endpoint)
    }
}

impl ObjectClient for S3Client {
    fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
        self.shared.head(uri).boxed()
    }

    fn get<'a>(
        &'a self,
        id: &'a ObjectId,
        range: ByteRange,
        into: &'a mut PartBuf,
    ) -> BoxFuture<'a, Result<GetMeta>> {
        self.shared.get(id, range, into).boxed()
    }

    fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
        self.pages(prefix, depth, None)
    }

    fn list_after(
        &self,
        prefix: &ObjectUri,
        after: &str,
    ) -> Option<BoxStream<'static, Result<ListEntry>>> {
        // A directory bucket has no order to begin in the middle of.
        let has_order = !prefix.bucket().ends_with(DIRECTORY_BUCKET_SUFFIX);
        has_order.then(|| self.pages(prefix, Depth::All, Some(after.into())))
    }
}

impl S3Client {
    fn pages(
        &self,
        prefix: &ObjectUri,
        depth: Depth,
        after: Option<Arc<str>>,
    ) -> BoxStream<'static, Result<ListEntry>> {
        let (shared, prefix) = (self.shared.clone(), prefix.clone());
        pages::stream(Arc::new(move |token| {
            let (shared, prefix, after) = (shared.clone(), prefix.clone(), after.clone());
            async move { shared.page(&prefix, depth, after.as_deref(), token).await }.boxed()
        }))
    }
}

/// One GET: what is asked for, and what of it is still missing.
#[derive(Debug)]
struct Want<'a> {
    id: &'a ObjectId,
    range: ByteRange,
    missing: ByteRange,
}

impl<'a> Want<'a> {
    fn new(id: &'a ObjectId, range: ByteRange, into: &PartBuf) -> Self {
        Self {
            id,
            range,
            missing: range.skip(into.filled().len() as u64),
        }
    }

    /// None for a whole object from its first byte: the answer then tells its checksum.
    fn range_header(&self) -> Option<String> {
        (!self.id.is_whole(self.missing)).then(|| self.missing.to_header())
    }

    fn subject(&self) -> Subject<'a> {
        Subject {
            uri: &self.id.uri,
            offset: Some(self.missing.start),
            etag: self.id.etag.as_deref(),
        }
    }

    /// Starts the CRC when this part will be the whole object and the answer tells what it must be.
    fn expect(&self, plan: &Plan, policy: ChecksumPolicy, into: &mut PartBuf) -> Result<()> {
        let is_whole = self.missing.start == 0
            && plan
                .size_bytes
                .is_some_and(|size| size <= self.range.end && size > 0);
        if policy == ChecksumPolicy::Off || !is_whole {
            return Ok(());
        }
        match plan.checksum {
            Some(checksum) => into.expect(checksum),
            None if policy == ChecksumPolicy::Require => {
                return Err(Error::Corrupt {
                    uri: self.id.uri.to_string(),
                    offset: 0,
                    reason: "the server tells no full-object CRC of it, and --checksums require insists on one".into(), answer: Box::default() });
            }
            None => {}
        }
        Ok(())
    }
}

fn protocol_of(subject: Subject<'_>, reason: &str) -> Error {
    Error::Protocol {
        uri: subject.uri.to_string(),
        offset: subject.start(),
        reason: reason.into(),
        answer: Box::default(),
    }
}

/// Counts a request while it is under way.
struct InFlight<'a>(&'a Metrics);

impl<'a> InFlight<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.requests.add(1);
        metrics.requests_in_flight.add(1);
        Self(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.requests_in_flight.sub(1);
    }
}

/// Each hint is heeded once: a server that sends us round in circles gets its error passed on.
#[derive(Debug, Default)]
struct Heeded {
    region: bool,
    token: bool,
}

impl Shared {
    /// Runs attempts until one succeeds or says nothing that would help the next.
    async fn heeding<'a, T, F>(
        &'a self,
        uri: &'a ObjectUri,
        mut attempt: impl FnMut(Arc<Bucket>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut heeded = Heeded::default();
        loop {
            let bucket = self.buckets.get(uri.bucket());
            let outcome = {
                let _counted = InFlight::new(&self.metrics);
                attempt(bucket.clone()).await
            };
            match outcome {
                Ok(value) => return Ok(value),
                Err(failure) if self.heed(failure.hint.as_ref(), uri, &bucket, &mut heeded) => {}
                Err(failure) => return Err(self.counted(*failure.error)),
            }
        }
    }

    fn heed(
        &self,
        hint: Option<&Hint>,
        uri: &ObjectUri,
        bucket: &Bucket,
        heeded: &mut Heeded,
    ) -> bool {
        match hint {
            Some(Hint::Region(region)) if !heeded.region => {
                heeded.region = true;
                self.buckets.moved(uri.bucket(), bucket, region)
            }
            Some(Hint::ExpiredToken) if !heeded.token => {
                heeded.token = true;
                self.credentials.iter().for_each(|held| held.forget());
                self.credentials.is_some()
            }
            _ => false,
        }
    }

    fn counted(&self, error: Error) -> Error {
        if matches!(error, Error::Throttled { .. }) {
            self.metrics.throttles.add(1);
        }
        match &self.proxy {
            Some(proxy) => refusal::through_proxy(proxy, error),
            None => error,
        }
    }

    async fn get(&self, id: &ObjectId, range: ByteRange, into: &mut PartBuf) -> Result<GetMeta> {
        if Want::new(id, range, into).missing.is_empty() {
            return self.nothing_to_get(id, range, into).await;
        }
        let got = match self.get_bytes(id, range, into).await {
            Err(Error::RangeNotSatisfiable { offset, answer, .. }) if id.size_bytes.is_none() => {
                self.behind_the_end(id, offset, answer).await
            }
            got => got,
        };
        got.and_then(|meta| self.verified(id, meta, into))
            .map_err(|error| self.left_behind(error, into))
    }

    async fn get_bytes(
        &self,
        id: &ObjectId,
        range: ByteRange,
        into: &mut PartBuf,
    ) -> Result<GetMeta> {
        let mut heeded = Heeded::default();
        loop {
            let bucket = self.buckets.get(id.uri.bucket());
            match self.attempt(&bucket, id, range, into).await {
                Ok(meta) => return Ok(meta),
                Err(failure) if self.heed(failure.hint.as_ref(), &id.uri, &bucket, &mut heeded) => {
                }
                Err(failure) => return Err(self.counted(*failure.error)),
            }
        }
    }

    async fn attempt(
        &self,
        bucket: &Bucket,
        id: &ObjectId,
        range: ByteRange,
        into: &mut PartBuf,
    ) -> Result<GetMeta, Failure> {
        let _counted = InFlight::new(&self.metrics);
        let want = Want::new(id, range, into);
        if self.transport == Transport::Direct
            && let Some(meta) = self.attempt_direct(bucket, &want, into).await?
        {
            return Ok(meta);
        }
        let (config, endpoint) = (&self.config, &self.endpoint);
        stock::get(bucket, config, endpoint, &self.metrics, &want, into).await
    }

    async fn attempt_direct(
        &self,
        bucket: &Bucket,
        want: &Want<'_>,
        into: &mut PartBuf,
    ) -> Result<Option<GetMeta>, Failure> {
        if want.missing.len() < THROUGH_SDK_FROM_BYTES
            && let Some(target) = bucket.target(&self.rules).await
        {
            let credentials = self.credentials.as_deref();
            return self.hand.get(target, credentials, want, into).await;
        }
        let (config, endpoint) = (&self.config, &self.endpoint);
        through::get(bucket, config, endpoint, &self.metrics, want, into).await
    }

    /// All bytes are there already, or none were asked for: only the facts may be missing.
    async fn nothing_to_get(
        &self,
        id: &ObjectId,
        range: ByteRange,
        into: &mut PartBuf,
    ) -> Result<GetMeta> {
        self.verify(id, id.size_bytes, into)?;
        if let (Some(size_bytes), Some(_)) = (id.size_bytes, &id.etag) {
            return Ok(GetMeta {
                etag: id.etag.clone(),
                size_bytes,
                checksum: into.expected(),
            });
        }
        let meta = self.head(&id.uri).await?;
        let offset = range.start + into.filled().len() as u64;
        same_version(id, offset, &meta)?;
        let end = range.end.min(range.start + into.filled().len() as u64);
        match meta.size_bytes >= end {
            true => Ok(meta_of(meta)),
            false => Err(Error::RangeNotSatisfiable {
                uri: id.uri.to_string(),
                offset: range.start,
                answer: Default::default(),
            }),
        }
    }

    /// A range that starts at the end of an object of unknown length holds nothing: so it is with empty objects.
    async fn behind_the_end(&self, id: &ObjectId, offset: u64, answer: Answer) -> Result<GetMeta> {
        let meta = self.head(&id.uri).await?;
        same_version(id, offset, &meta)?;
        match meta.size_bytes == offset {
            true => Ok(meta_of(meta)),
            false => Err(Error::RangeNotSatisfiable {
                uri: id.uri.to_string(),
                offset,
                answer,
            }),
        }
    }

    /// A resumed answer tells no checksum, but the one before the break did.
    fn verified(&self, id: &ObjectId, meta: GetMeta, into: &PartBuf) -> Result<GetMeta> {
        self.verify(id, Some(meta.size_bytes), into)?;
        let told = meta.checksum.or(into.expected());
        Ok(GetMeta {
            checksum: told.filter(|_| self.config.checksums != ChecksumPolicy::Off),
            ..meta
        })
    }

    /// Compares a part that is a whole object with the CRC that its answer told. The beginning of one has no CRC to be
    /// compared with, whatever the part's owner expects of the rest.
    fn verify(&self, id: &ObjectId, size_bytes: Option<u64>, into: &PartBuf) -> Result<()> {
        let is_whole = size_bytes.is_none_or(|size| size == into.filled().len() as u64);
        let (Some(expected), Some(found), true) = (into.expected(), into.digest(), is_whole) else {
            return Ok(());
        };
        if expected == found {
            self.metrics.checksums_verified.add(1);
            return Ok(());
        }
        self.metrics.checksums_bad.add(1);
        Err(Error::Corrupt {
            uri: id.uri.to_string(),
            offset: 0,
            reason: format!(
                "its {} is {}, but {} was stored with it",
                found
                    .algorithm
                    .header()
                    .trim_start_matches("x-amz-checksum-"),
                found.to_base64(),
                expected.to_base64()
            ),
            answer: Box::default(),
        })
    }

    /// Corrupt bytes must not be delivered as the good ones before an error: such a part is emptied.
    fn left_behind(&self, error: Error, into: &mut PartBuf) -> Error {
        if matches!(error, Error::Corrupt { .. }) {
            self.metrics.bytes_wasted.add(into.filled().len() as u64);
            into.clear();
        }
        error
    }

    async fn head(&self, uri: &ObjectUri) -> Result<ObjectMeta> {
        self.heeding(uri, |bucket| self.head_once(uri, bucket))
            .await
    }

    async fn head_once(&self, uri: &ObjectUri, bucket: Arc<Bucket>) -> Result<ObjectMeta, Failure> {
        let output = match self.target(&bucket).await {
            Some(target) => {
                let credentials = self.credentials.as_deref();
                let answer = self.hand.head(target, credentials, uri).await?;
                decode::head(Subject::of(uri), &answer)?
            }
            None => self.head_through_sdk(uri, &bucket).await?,
        };
        Ok(facts(uri, &output)?)
    }

    /// Where plain requests go, if they go over our own transport.
    async fn target<'a>(&self, bucket: &'a Bucket) -> Option<&'a Target> {
        match self.transport {
            Transport::Direct => bucket.target(&self.rules).await,
            Transport::Stock => None,
        }
    }

    async fn head_through_sdk(
        &self,
        uri: &ObjectUri,
        bucket: &Bucket,
    ) -> Result<HeadObjectOutput, Failure> {
        let config = &self.config;
        let wants_checksum = config.checksums != ChecksumPolicy::Off;
        let mut request = bucket
            .client()
            .head_object()
            .bucket(uri.bucket())
            .key(uri.key())
            .set_checksum_mode(wants_checksum.then_some(ChecksumMode::Enabled))
            .set_request_payer(config.request_payer.then_some(RequestPayer::Requester));
        if let Some(key) = &config.sse_c {
            request = request
                .sse_customer_algorithm("AES256")
                .sse_customer_key(key.key_base64())
                .sse_customer_key_md5(key.md5_base64());
        }
        request
            .send()
            .await
            .map_err(|error| self.sdk_failure(uri, error))
    }

    async fn page(
        &self,
        prefix: &ObjectUri,
        depth: Depth,
        after: Option<&str>,
        token: Option<String>,
    ) -> Result<Page> {
        self.heeding(prefix, |bucket| {
            self.page_once(prefix, depth, after, token.clone(), bucket)
        })
        .await
    }

    async fn page_once(
        &self,
        prefix: &ObjectUri,
        depth: Depth,
        after: Option<&str>,
        token: Option<String>,
        bucket: Arc<Bucket>,
    ) -> Result<Page, Failure> {
        let question = Question {
            prefix,
            depth,
            // What begins in the middle is in no hurry.
            max_keys: (token.is_none() && after.is_none()).then_some(FIRST_PAGE_KEYS),
            after: after.filter(|_| token.is_none()),
            token: token.as_deref(),
        };
        let output = match self.target(&bucket).await {
            Some(target) => {
                let credentials = self.credentials.as_deref();
                let asked = self.hand.list(target, credentials, &question);
                let answer = runtime::meanwhile(asked, PREPARE_AFTER, decode::prepare).await?;
                decode::listing(Subject::of(prefix), &answer)?
            }
            None => self.page_through_sdk(&question, &bucket).await?,
        };
        Ok(listing::page(prefix, question.token, &output)?)
    }

    async fn page_through_sdk(
        &self,
        question: &Question<'_>,
        bucket: &Bucket,
    ) -> Result<ListObjectsV2Output, Failure> {
        let prefix = question.prefix;
        let key = (!prefix.key().is_empty()).then(|| prefix.key().to_owned());
        if let Some(credentials) = &self.credentials {
            // Somebody may have to type a code for them: that is no stall. If there are none, the SDK says so below.
            let _ = credentials.get(SystemTime::now()).await;
        }
        let limit = self.config.first_byte_timeout + PAGE_PERIODS * self.config.progress_timeout;
        let asked = bucket
            .client()
            .list_objects_v2()
            .bucket(prefix.bucket())
            .set_prefix(key)
            .set_delimiter((question.depth == Depth::OneLevel).then(|| "/".to_owned()))
            .set_max_keys(question.max_keys)
            .set_continuation_token(question.token.map(str::to_owned))
            .set_start_after(question.after.map(str::to_owned))
            .encoding_type(EncodingType::Url)
            .set_request_payer(self.config.request_payer.then_some(RequestPayer::Requester))
            .send();
        timeout(limit, asked)
            .await
            .map_err(|_| refusal::no_progress(Subject::of(prefix), limit))?
            .map_err(|error| self.sdk_failure(prefix, error))
    }

    fn sdk_failure<E>(
        &self,
        uri: &ObjectUri,
        error: aws_sdk_s3::error::SdkError<E, aws_sdk_s3::config::http::HttpResponse>,
    ) -> Failure
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        refusal::of_sdk(Subject::of(uri), &self.config, &self.endpoint, error)
    }
}

/// What a HEAD tells.
fn facts(uri: &ObjectUri, output: &HeadObjectOutput) -> Result<ObjectMeta> {
    let size_bytes = output
        .content_length()
        .and_then(|length| u64::try_from(length).ok())
        .ok_or_else(|| protocol_of(Subject::of(uri), "a HEAD without Content-Length"))?;
    let checksum = answer::full_object_checksum(&|name: &str| match name {
        "x-amz-checksum-type" => output.checksum_type().map(|kind| kind.as_str()),
        "x-amz-checksum-crc32" => output.checksum_crc32(),
        "x-amz-checksum-crc32c" => output.checksum_crc32_c(),
        "x-amz-checksum-crc64nvme" => output.checksum_crc64_nvme(),
        _ => None,
    });
    Ok(ObjectMeta {
        id: ObjectId {
            uri: uri.clone(),
            etag: output.e_tag().map(Into::into),
            version_id: None,
            size_bytes: Some(size_bytes),
        },
        size_bytes,
        last_modified: output
            .last_modified()
            .and_then(|time| (*time).try_into().ok()),
        checksum_algorithm: checksum.map(|checksum| checksum.algorithm),
        checksum,
    })
}

fn meta_of(meta: ObjectMeta) -> GetMeta {
    GetMeta {
        etag: meta.id.etag,
        size_bytes: meta.size_bytes,
        checksum: meta.checksum,
    }
}

fn same_version(id: &ObjectId, offset: u64, meta: &ObjectMeta) -> Result<()> {
    match (id.etag.as_deref(), meta.id.etag.as_deref()) {
        (Some(expected), Some(found)) if !answer::same_etag(expected, found) => Err(
            answer::changed(id, offset, expected, found, Answer::default()),
        ),
        _ => Ok(()),
    }
}
