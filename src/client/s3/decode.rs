//! Answers of requests that were signed by hand, read by the SDK's own parsers.
//!
//! An operation of the SDK is a plugin whose configuration holds the parser of its answers; it needs no client. So an
//! answer means the same whichever way it came: the same XML is understood, the same is refused.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::operation::head_object::{HeadObject, HeadObjectOutput};
use aws_sdk_s3::operation::list_objects_v2::{ListObjectsV2, ListObjectsV2Output};
use aws_smithy_runtime_api::client::interceptors::context::AfterDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::runtime_plugin::RuntimePlugin;
use aws_smithy_runtime_api::client::ser_de::{DeserializeResponse, SharedResponseDeserializer};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::FrozenLayer;

use super::listing;
use super::protocol_of;
use super::refusal::{self, Failure, Subject};
use crate::object::ObjectUri;

const BREAKS_OFF: &str = "a listing that breaks off";

static HEAD: LazyLock<Option<FrozenLayer>> = LazyLock::new(|| HeadObject::new().config());
static LIST: LazyLock<Option<FrozenLayer>> = LazyLock::new(|| ListObjectsV2::new().config());

/// Whether a listing was read in this process.
static READ_ONE: AtomicBool = AtomicBool::new(false);

/// A page that nobody sent.
const SAMPLE: &str = "<?xml version=\"1.0\"?><ListBucketResult><Name>b</Name><EncodingType>url</EncodingType>\
    <IsTruncated>false</IsTruncated><Contents><Key>k</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>\
    <ETag>&quot;e&quot;</ETag><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>\
    <Size>3</Size><StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>";

/// Has the parser ready for a first page that is still on its way: the first one that a process reads takes half a
/// millisecond longer than the next, for the operation's plugin and for code that was never run.
pub(super) fn prepare() {
    if READ_ONE.load(Ordering::Relaxed) {
        return;
    }
    let uri = ObjectUri::s3("b", "");
    if let Ok(status) = 200.try_into() {
        let answer = HttpResponse::new(status, SdkBody::from(SAMPLE));
        let page = listing(Subject::of(&uri), &answer).map(|page| listing::page(&uri, None, &page));
        debug_assert!(matches!(page, Ok(Ok(_))), "{page:?}");
    }
}

/// Reads the answer to a HEAD.
pub(super) fn head(
    subject: Subject<'_>,
    answer: &HttpResponse,
) -> Result<HeadObjectOutput, Failure> {
    read(&HEAD, subject, answer)
}

/// Reads a page of a listing.
pub(super) fn listing(
    subject: Subject<'_>,
    answer: &HttpResponse,
) -> Result<ListObjectsV2Output, Failure> {
    READ_ONE.store(true, Ordering::Relaxed);
    let page = read(&LIST, subject, answer)?;
    // The SDK's parser takes the end of the text for the end of the document: a page that was cut off would end the
    // listing in silence.
    if !is_whole(answer.body().bytes().unwrap_or_default()) {
        return Err(protocol_of(subject, BREAKS_OFF).into());
    }
    Ok(page)
}

/// The same for listings that the SDK asks for itself, over the stock transport.
#[derive(Debug)]
pub(super) struct WholeListings;

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for WholeListings {
    fn name(&self) -> &'static str {
        "WholeListings"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let is_listing = matches!(context.output_or_error(), Ok(output) if output.downcast_ref::<ListObjectsV2Output>().is_some());
        let body = context.response().body().bytes().unwrap_or_default();
        match is_listing && !is_whole(body) {
            true => Err(BREAKS_OFF.into()),
            false => Ok(()),
        }
    }
}

fn read<T: std::fmt::Debug + Send + Sync + 'static>(
    operation: &Option<FrozenLayer>,
    subject: Subject<'_>,
    answer: &HttpResponse,
) -> Result<T, Failure> {
    let refused = || {
        let body = answer.body().bytes().unwrap_or_default();
        let status = answer.status().as_u16();
        refusal::refused(subject, status, |name| answer.headers().get(name), body)
    };
    if !answer.status().is_success() {
        return Err(refused());
    }
    let parser = operation
        .as_ref()
        .and_then(|layer| layer.load::<SharedResponseDeserializer>())
        .ok_or_else(|| protocol_of(subject, "the SDK has no parser for it"))?;
    let parsed = parser
        .deserialize_nonstreaming_with_config(answer, &ConfigBag::base())
        .map_err(|_| refused())?;
    let output = parsed
        .downcast::<T>()
        .map_err(|_| protocol_of(subject, "the SDK's parser read something else"))?;
    Ok(output)
}

/// Whether the root element is closed, be it empty.
fn is_whole(document: &[u8]) -> bool {
    let document = document.trim_ascii_end();
    let is_one_empty_element =
        || document.ends_with(b"/>") && !document.windows(2).any(|pair| pair == b"</");
    document.ends_with(b"ListBucketResult>") || is_one_empty_element()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    const PAGE: &str = "<?xml version=\"1.0\"?>\n\
        <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>\
        <IsTruncated>false</IsTruncated><Contents><Key>a&amp;b</Key><Size>3</Size></Contents>\
        <Contents><Key>c</Key><Size>4</Size></Contents></ListBucketResult>\n";

    fn read_page(status: u16, body: &str) -> Result<ListObjectsV2Output, Failure> {
        let uri = ObjectUri::s3("b", "p");
        let answer = HttpResponse::new(status.try_into().unwrap(), SdkBody::from(body));
        listing(Subject::of(&uri), &answer)
    }

    #[test]
    fn the_sample_is_a_page() {
        let page = read_page(200, SAMPLE).unwrap();
        let page = listing::page(&ObjectUri::s3("b", ""), None, &page).unwrap();
        assert_eq!(page.entries.len(), 1);
        prepare();
    }

    #[test]
    fn a_page_is_read() {
        let page = read_page(200, PAGE).unwrap();
        let keys: Vec<_> = page.contents().iter().filter_map(|o| o.key()).collect();
        assert_eq!(keys, ["a&b", "c"]);
        assert!(read_page(200, "<ListBucketResult/>").is_ok());
    }

    #[test]
    fn a_page_that_breaks_off_anywhere_is_an_error() {
        for end in 0..PAGE.trim_end().len() {
            let error = read_page(200, &PAGE[..end]).unwrap_err().error;
            assert!(
                matches!(*error, Error::Protocol { .. } | Error::Refused { .. }),
                "{end}: {error}"
            );
        }
    }

    #[test]
    fn an_error_document_under_200_is_that_error() {
        let body = "<Error><Code>SlowDown</Code><RequestId>R1</RequestId></Error>";
        for status in [200, 503] {
            let error = read_page(status, body).unwrap_err().error;
            assert!(matches!(*error, Error::Throttled { .. }), "{error}");
        }
        let html = read_page(200, "<html><body>hello</body></html>").unwrap_err();
        assert!(!html.error.to_string().is_empty());
    }
}
