//! Listings that lie, in sound HTTP: what reads them must say so, and must neither end early in silence nor go on for
//! ever. (Listings whose HTTP breaks are in `faults.rs`.)

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use standpipe::client::{
    Depth, ListEntry, ObjectClient, RetryClient, RetryConfig, S3Client, S3Config, Transport,
};
use standpipe::error::{Error, Result};
use standpipe::object::ObjectUri;
use tokio::time::timeout;

use super::stub::{Seen, Stub};

/// Far beyond what any of these takes: whoever takes longer hangs.
const GUARD: Duration = Duration::from_secs(20);
const TRANSPORTS: [Transport; 2] = [Transport::Direct, Transport::Stock];

/// One page with one key, and what it says of the next.
fn page(key: &str, rest: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?>\n<ListBucketResult><Name>bucket</Name>{rest}<Contents><Key>{key}</Key>\
         <ETag>\"e\"</ETag><Size>3</Size></Contents></ListBucketResult>"
    )
}

fn goes_on(token: &str) -> String {
    format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>")
}

async fn client(server: &Stub, transport: Transport) -> Arc<dyn ObjectClient> {
    let config = S3Config {
        endpoint_url: Some(server.url()),
        region: Some("us-east-1".into()),
        anonymous: true,
        transport,
        ..S3Config::default()
    };
    Arc::new(S3Client::connect(config, Arc::default()).await.unwrap())
}

/// The keys of a whole listing, through retries.
async fn list(server: &Stub, transport: Transport) -> Result<Vec<String>> {
    let config = RetryConfig {
        max_attempts: 3,
        base: Duration::from_millis(1),
        ..RetryConfig::default()
    };
    let client = RetryClient::new(client(server, transport).await, config, Arc::default());
    let entries = client.list(&ObjectUri::s3("bucket", ""), Depth::All);
    let key = |entry| match entry {
        ListEntry::Object(meta) => meta.id.uri.key().to_owned(),
        ListEntry::Prefix(uri) => uri.key().to_owned(),
    };
    let keys = entries.map_ok(key).try_collect();
    timeout(GUARD, keys).await.expect("no hang")
}

fn always(body: impl Into<String>) -> Stub {
    let body = body.into();
    Stub::answering(move |_| (200, body.clone()))
}

/// The control: the pages of this server are read when they do not lie.
#[tokio::test]
async fn two_honest_pages_are_read() {
    let server = Stub::answering(|seen: &Seen| {
        let second = seen.target.contains("continuation-token=next");
        let body = match second {
            false => page("a", &goes_on("next")),
            true => page("b", "<IsTruncated>false</IsTruncated>"),
        };
        (200, body)
    });
    for transport in TRANSPORTS {
        assert_eq!(list(&server, transport).await.unwrap(), ["a", "b"]);
    }
}

#[tokio::test]
async fn what_is_no_listing_is_an_error() {
    let whole = page("a", "");
    let cut = &whole[..whole.len() - 20];
    let bodies = [
        "",
        "hello",
        "<html><body>Welcome</body></html>",
        "<ListBucketResult><Contents><Key>a</Ke></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Size>3</Size></Contents></ListBucketResult>",
        "<ListBucketResult><Contents><Key>a</Key><Size>-3</Size></Contents></ListBucketResult>",
        cut,
    ];
    for body in bodies {
        for transport in TRANSPORTS {
            let server = always(body);
            let listed = list(&server, transport).await;
            assert!(listed.is_err(), "{transport:?} {body:?}: {listed:?}");
        }
    }
}

#[tokio::test]
async fn a_listing_that_goes_on_without_saying_where_is_an_error() {
    let rests = [
        "<IsTruncated>true</IsTruncated>",
        "<IsTruncated>true</IsTruncated><NextContinuationToken></NextContinuationToken>",
    ];
    for rest in rests {
        for transport in TRANSPORTS {
            let error = list(&always(page("a", rest)), transport).await.unwrap_err();
            assert!(matches!(error.root(), Error::Protocol { .. }), "{error:?}");
        }
    }
}

/// It would be listed for ever, the same keys again and again.
#[tokio::test]
async fn a_listing_that_goes_round_in_circles_is_an_error() {
    for transport in TRANSPORTS {
        let server = always(page("a", &goes_on("again")));
        let listed = client(&server, transport).await;
        let mut entries = listed.list(&ObjectUri::s3("bucket", ""), Depth::All);
        let mut next = async || timeout(GUARD, entries.next()).await.expect("no hang");
        assert!(
            matches!(next().await, Some(Ok(_))),
            "the first page is good"
        );
        let error = next().await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
        assert!(error.to_string().contains("continuation token"), "{error}");
        let error = list(&server, transport).await.unwrap_err();
        assert!(matches!(error, Error::RetriesExhausted { .. }), "{error:?}");
    }
}
