//! One typed URI or pattern, and the objects it stands for.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};

use super::{Braces, listing};
use crate::client::ObjectClient;
use crate::error::{Answer, Error, Result};
use crate::object::{ObjectMeta, ObjectUri, Scheme};

/// HEAD requests under way at once for the members of a pattern: a page of answers is there before the first object
/// is read, and no service throttles 16 requests.
pub const HEADS_AHEAD: usize = 16;

/// How a lone URI that may be an object or a prefix is told apart; see the module's notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// Everything whose key starts with the URI's.
    Prefix,
    /// The object of this key, else everything that starts with it; sizes and dates are told.
    ListFirst,
    /// The object of this key, unseen: its size is unknown until it is read.
    GetFirst,
    /// The object of this key, which must be there: a HEAD tells its size and date.
    Object,
}

/// What was typed: a URI, or a pattern with braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    text: String,
    pattern: Braces,
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let pattern = Braces::parse(text)?;
        for member in pattern.members() {
            member.parse::<ObjectUri>()?;
        }
        Ok(Self {
            text: text.into(),
            pattern,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

type Objects = BoxStream<'static, Result<ObjectMeta>>;

impl Source {
    /// One URI, whose braces are text: as a service takes it.
    ///
    /// # Errors
    /// As parsing a URI.
    pub fn literal(uri: &str) -> Result<Self> {
        uri.parse::<ObjectUri>()?;
        let mut escaped = String::new();
        for c in uri.chars() {
            if matches!(c, '\\' | '{' | '}') {
                escaped.push('\\');
            }
            escaped.push(c);
        }
        Ok(Self {
            text: uri.into(),
            pattern: Braces::parse(&escaped)?,
        })
    }

    /// Whether it lies in a directory bucket (S3 Express), which is listed in no order that is promised to be the same again.
    pub(super) fn is_unordered(&self) -> bool {
        self.root()
            .is_ok_and(|root| root.bucket().ends_with("--x-s3"))
    }

    /// The URIs it stands for.
    pub fn uris(&self) -> impl Iterator<Item = Result<ObjectUri>> + Send + use<> {
        let pattern = self.pattern.clone();
        (0..pattern.count()).map(move |index| pattern.member(index).parse())
    }

    /// The URI, when it is one and not a pattern.
    pub fn lone_uri(&self) -> Option<ObjectUri> {
        match self.pattern.is_pattern() {
            true => None,
            false => self.pattern.member(0).parse().ok(),
        }
    }

    /// How many URIs it stands for.
    pub fn uri_count(&self) -> u64 {
        self.pattern.count()
    }

    /// The address up to the last `/` before anything varies: names on disk are relative to it.
    pub fn root(&self) -> Result<ObjectUri> {
        let first: ObjectUri = self.pattern.member(0).parse()?;
        let fixed = match self.pattern.is_pattern() {
            false => first.key().len(),
            true => common_key_bytes(&first, self.pattern.literal()).ok_or_else(|| {
                Error::config(
                    &self.text,
                    "the braces reach into the bucket's name: name one bucket at a time",
                )
            })?,
        };
        let end = first.key()[..fixed].rfind('/').map_or(0, |at| at + 1);
        Ok(first.with_key(&first.key()[..end]))
    }

    /// The objects of several sources, in order, sizes and dates told; [`HEADS_AHEAD`] are looked for at a time. What
    /// stands in a list and has no `/` at its end is an object: were it taken for the beginning of many keys, as a lone
    /// URI is, a list with a missing `part-1` would give `part-10` twice.
    pub fn objects_of(sources: Vec<Self>, client: &Arc<dyn ObjectClient>) -> Objects {
        let lookup = match sources.len() {
            0 | 1 => Lookup::ListFirst,
            _ => Lookup::Object,
        };
        let client = client.clone();
        stream::iter(sources)
            .map(move |source| {
                let mut objects = source.objects(&client, lookup);
                async move {
                    let first = objects.next().await;
                    stream::iter(first).chain(objects)
                }
            })
            .buffered(HEADS_AHEAD)
            .flatten()
            .boxed()
    }

    /// Its objects, in order, found while they are read.
    pub fn objects(&self, client: &Arc<dyn ObjectClient>, lookup: Lookup) -> Objects {
        let client = client.clone();
        if let Some(uri) = self.lone_uri() {
            return lone(client, uri, lookup);
        }
        stream::iter(self.uris())
            .map(move |uri| {
                let client = client.clone();
                async move {
                    let uri = uri?;
                    Ok(match (is_prefix(&uri), lookup) {
                        (true, _) => listed(&client, &uri),
                        (false, Lookup::ListFirst | Lookup::Object) => {
                            let meta = client.head(&uri).await?;
                            stream::once(std::future::ready(Ok(meta))).boxed()
                        }
                        (false, _) => unseen(uri),
                    })
                }
            })
            .buffered(HEADS_AHEAD)
            .try_flatten()
            .boxed()
    }

    /// The objects of a lone URI whose object turned out not to exist; `missing` is the error if no key starts with
    /// it either. `None` if the URI cannot be a prefix: it came out of braces, or was listed as one already.
    pub fn as_prefix(&self, client: &Arc<dyn ObjectClient>, missing: Error) -> Option<Objects> {
        let uri = self.lone_uri().filter(|uri| !is_prefix(uri))?;
        Some(or_else_empty(everything(client, &uri), missing))
    }
}

/// All of them by their keys: what several hosts, or several runs, must agree on.
pub(super) fn in_key_order(objects: Objects) -> Objects {
    async move {
        let mut all: Vec<ObjectMeta> = objects.try_collect().await?;
        all.sort_by(|a, b| a.id.uri.key().cmp(b.id.uri.key()));
        Ok::<_, Error>(stream::iter(all.into_iter().map(Ok)))
    }
    .into_stream()
    .try_flatten()
    .boxed()
}

/// How much of `first`'s key belongs to the pattern's fixed text; `None` when that ends inside the bucket's name.
fn common_key_bytes(first: &ObjectUri, literal: &str) -> Option<usize> {
    let whole = first.to_string();
    match first.scheme() {
        // Typed with or without `file://`: the key is the path.
        Scheme::File => Some(literal.strip_prefix("file://").unwrap_or(literal).len()),
        _ => literal.len().checked_sub(whole.len() - first.key().len()),
    }
}

fn is_prefix(uri: &ObjectUri) -> bool {
    uri.key().is_empty() || uri.key().ends_with('/')
}

fn lone(client: Arc<dyn ObjectClient>, uri: ObjectUri, lookup: Lookup) -> Objects {
    match lookup {
        _ if is_prefix(&uri) => listed(&client, &uri),
        _ if uri.scheme() == Scheme::File => local(client, uri),
        Lookup::Object => told(client, uri),
        Lookup::GetFirst => unseen(uri),
        Lookup::ListFirst => first_entry_decides(client, uri),
        Lookup::Prefix => {
            let object = uri.clone();
            or_else_denied(listed(&client, &uri), move || unseen(object))
        }
    }
}

/// A file, or everything in a directory: a look at the disk costs nothing.
fn local(client: Arc<dyn ObjectClient>, uri: ObjectUri) -> Objects {
    async move {
        let inside = uri.with_key(format!("{}/", uri.key()));
        let missing = match client.head(&uri).await {
            Ok(meta) => return Ok(stream::once(std::future::ready(Ok(meta))).boxed()),
            Err(error) => error,
        };
        Ok(or_else_empty(everything(&client, &inside), missing))
    }
    .into_stream()
    .try_flatten()
    .boxed()
}

fn told(client: Arc<dyn ObjectClient>, uri: ObjectUri) -> Objects {
    async move { client.head(&uri).await }.into_stream().boxed()
}

fn unseen(uri: ObjectUri) -> Objects {
    let meta = super::manifest::unseen(uri);
    stream::once(std::future::ready(Ok(meta))).boxed()
}

/// All objects whose key starts with the URI's, without directory markers.
fn everything(client: &Arc<dyn ObjectClient>, uri: &ObjectUri) -> Objects {
    listing::every_object(client, uri)
        .try_filter(|meta| std::future::ready(!is_marker(meta)))
        .boxed()
}

pub(super) fn is_marker(meta: &ObjectMeta) -> bool {
    meta.size_bytes == 0 && meta.id.uri.key().ends_with('/')
}

/// [`everything`], which must be something.
fn listed(client: &Arc<dyn ObjectClient>, uri: &ObjectUri) -> Objects {
    let missing = Error::NotFound {
        uri: uri.to_string(),
        offset: None,
        answer: Box::new(Answer {
            message: Some("no object's key starts with this".into()),
            ..Answer::default()
        }),
    };
    or_else_empty(everything(client, uri), missing)
}

fn or_else_empty(mut objects: Objects, missing: Error) -> Objects {
    async move {
        let first = objects.next().await.unwrap_or(Err(missing))?;
        Ok(stream::once(std::future::ready(Ok(first)))
            .chain(objects)
            .boxed())
    }
    .into_stream()
    .try_flatten()
    .boxed()
}

fn or_else_denied(
    mut objects: Objects,
    instead: impl FnOnce() -> Objects + Send + 'static,
) -> Objects {
    async move {
        match objects.next().await {
            Some(Err(error)) if is_denied(&error) => instead(),
            first => stream::iter(first).chain(objects).boxed(),
        }
    }
    .into_stream()
    .flatten()
    .boxed()
}

/// Whether a listing was refused in a way that leaves the object readable; directory buckets refuse (400) to list a
/// prefix without a `/` at its end.
fn is_denied(error: &Error) -> bool {
    matches!(
        error.root(),
        Error::PermissionDenied { .. } | Error::Refused { .. }
    )
}

fn first_entry_decides(client: Arc<dyn ObjectClient>, uri: ObjectUri) -> Objects {
    async move {
        let mut objects = listed(&client, &uri);
        let first = match objects.next().await {
            Some(Err(error)) if is_denied(&error) => client.head(&uri).await.map(Some),
            first => first.transpose(),
        }?;
        let is_object = first.as_ref().is_some_and(|meta| meta.id.uri == uri);
        let first = stream::iter(first.map(Ok));
        Ok(match is_object {
            true => first.boxed(),
            false => first.chain(objects).boxed(),
        })
    }
    .into_stream()
    .try_flatten()
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::PartBuf;
    use crate::client::{Depth, GetMeta, ListEntry, MemoryClient};
    use crate::object::{ByteRange, ObjectId};
    use futures::future::BoxFuture;
    use std::sync::Mutex;

    /// Notes every request; refuses to list when told so.
    #[derive(Debug, Default)]
    struct Noted {
        inner: MemoryClient,
        no_list: bool,
        requests: Mutex<Vec<String>>,
    }

    impl Noted {
        fn note(&self, what: &str, uri: &ObjectUri) {
            self.requests.lock().unwrap().push(format!("{what} {uri}"));
        }
    }

    impl ObjectClient for Noted {
        fn head<'a>(&'a self, uri: &'a ObjectUri) -> BoxFuture<'a, Result<ObjectMeta>> {
            self.note("HEAD", uri);
            self.inner.head(uri)
        }

        fn get<'a>(
            &'a self,
            id: &'a ObjectId,
            range: ByteRange,
            into: &'a mut PartBuf,
        ) -> BoxFuture<'a, Result<GetMeta>> {
            self.note("GET", &id.uri);
            self.inner.get(id, range, into)
        }

        fn list(&self, prefix: &ObjectUri, depth: Depth) -> BoxStream<'static, Result<ListEntry>> {
            self.note("LIST", prefix);
            match self.no_list {
                false => self.inner.list(prefix, depth),
                true => stream::once(std::future::ready(Err(Error::PermissionDenied {
                    uri: prefix.to_string(),
                    offset: None,
                    answer: Box::default(),
                })))
                .boxed(),
            }
        }
    }

    fn bucket(no_list: bool) -> Arc<Noted> {
        let noted = Noted {
            no_list,
            ..Noted::default()
        };
        for key in [
            "dir/",
            "dir/a",
            "dir/b",
            "train",
            "train-old/x",
            "train/1",
            "s0",
            "s1",
        ] {
            let bytes = if key.ends_with('/') { "" } else { key };
            noted.inner.put(ObjectUri::s3("m", key), bytes);
        }
        Arc::new(noted)
    }

    /// The keys that come out, or the error; and the requests that it took.
    fn found(no_list: bool, text: &str, lookup: Lookup) -> (String, String) {
        let noted = bucket(no_list);
        let client: Arc<dyn ObjectClient> = noted.clone();
        let source: Source = text.parse().unwrap();
        let objects =
            futures::executor::block_on(source.objects(&client, lookup).try_collect::<Vec<_>>());
        let keys = match objects {
            Ok(metas) => metas
                .iter()
                .map(|meta| meta.id.uri.key().to_owned())
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error.to_string(),
        };
        let requests = noted.requests.lock().unwrap().join(", ");
        (keys, requests)
    }

    #[test]
    fn each_lookup_finds_its_objects_with_the_fewest_requests() {
        use Lookup::{GetFirst, ListFirst, Prefix};
        for (text, lookup, keys, requests) in [
            ("s3://m/dir/", GetFirst, "dir/a dir/b", "LIST s3://m/dir/"),
            ("s3://m/train", GetFirst, "train", ""),
            ("s3://m/train", ListFirst, "train", "LIST s3://m/train"),
            (
                "s3://m/train",
                Prefix,
                "train train-old/x train/1",
                "LIST s3://m/train",
            ),
            (
                "s3://m/tra",
                ListFirst,
                "train train-old/x train/1",
                "LIST s3://m/tra",
            ),
            ("s3://m/s{0..1}", GetFirst, "s0 s1", ""),
            ("s3://m/s{0..1}", Prefix, "s0 s1", ""),
            (
                "s3://m/s{0..1}",
                ListFirst,
                "s0 s1",
                "HEAD s3://m/s0, HEAD s3://m/s1",
            ),
            (
                "s3://m/{dir,train}/",
                GetFirst,
                "dir/a dir/b train/1",
                "LIST s3://m/dir/, LIST s3://m/train/",
            ),
        ] {
            let found = found(false, text, lookup);
            assert_eq!(found, (keys.into(), requests.into()), "{text} {lookup:?}");
        }
    }

    #[test]
    fn what_stands_in_a_list_is_an_object() {
        let of = |texts: &[&str]| {
            let noted = bucket(false);
            let client: Arc<dyn ObjectClient> = noted.clone();
            let sources = texts.iter().map(|text| text.parse().unwrap()).collect();
            let objects = Source::objects_of(sources, &client).try_collect::<Vec<_>>();
            let keys = futures::executor::block_on(objects).map(|metas| {
                let keys = metas.iter().map(|meta| meta.id.uri.key().to_owned());
                keys.collect::<Vec<_>>().join(" ")
            });
            let requests = noted.requests.lock().unwrap().join(", ");
            (keys.unwrap_or_else(|error| error.to_string()), requests)
        };
        assert_eq!(
            of(&["s3://m/tra"]),
            ("train train-old/x train/1".into(), "LIST s3://m/tra".into()),
            "alone it may be the beginning of many"
        );
        assert_eq!(
            of(&["s3://m/train", "s3://m/dir/", "s3://m/s{0..1}"]).0,
            "train dir/a dir/b s0 s1"
        );
        let (error, _) = of(&["s3://m/train", "s3://m/di", "s3://m/dir/a"]);
        assert!(error.starts_with("s3://m/di: not found"), "{error}");
        assert_eq!(
            of(&["s3://m/s1", "s3://m/s0"]).1,
            "HEAD s3://m/s1, HEAD s3://m/s0"
        );
    }

    #[test]
    fn one_object_needs_no_permission_to_list() {
        use Lookup::{GetFirst, ListFirst, Prefix};
        let cases = [
            (GetFirst, ""),
            (ListFirst, "LIST s3://m/train, HEAD s3://m/train"),
            (Prefix, "LIST s3://m/train"),
        ];
        for (lookup, requests) in cases {
            let found = found(true, "s3://m/train", lookup);
            assert_eq!(found, ("train".into(), requests.into()), "{lookup:?}");
        }
        let (error, _) = found(true, "s3://m/dir/", Prefix);
        assert!(error.contains("permission denied"), "{error}");
    }

    #[test]
    fn a_prefix_without_objects_is_not_found() {
        for lookup in [Lookup::Prefix, Lookup::ListFirst] {
            let (error, _) = found(false, "s3://m/none", lookup);
            assert!(error.starts_with("s3://m/none: not found"), "{error}");
        }
    }

    #[test]
    fn what_was_read_as_an_object_can_turn_out_to_be_a_prefix() {
        let client: Arc<dyn ObjectClient> = bucket(false);
        let keys = |text: &str| {
            let source: Source = text.parse().unwrap();
            let objects = source.as_prefix(&client, Error::Cancelled)?;
            Some(futures::executor::block_on(objects.try_collect::<Vec<_>>()).map(|all| all.len()))
        };
        assert_eq!(keys("s3://m/di").unwrap().unwrap(), 2);
        assert!(matches!(keys("s3://m/none"), Some(Err(Error::Cancelled))));
        assert!(keys("s3://m/dir/").is_none() && keys("s3://m/d{i,o}").is_none());
    }

    #[test]
    fn roots_end_at_the_last_slash_before_anything_varies() {
        for (text, root) in [
            ("s3://b/p/", "s3://b/p/"),
            ("s3://b/p/tr", "s3://b/p/"),
            ("s3://b", "s3://b/"),
            ("s3://b/p/s-{0..3}.tar", "s3://b/p/"),
            ("s3://b/{x,y}/data.tar", "s3://b/"),
            ("data/{x,y}/", "file://data/"),
            ("/data/set", "file:///data/"),
        ] {
            let source: Source = text.parse().unwrap();
            assert_eq!(source.root().unwrap().to_string(), root, "{text}");
        }
        assert!("s3://b{0..1}/x".parse::<Source>().unwrap().root().is_err());
        assert!("s3://b/{x,y}".parse::<Source>().unwrap().root().is_ok());
    }

    #[test]
    fn a_literal_uri_is_no_pattern() {
        for uri in ["s3://b/{0..9}/x", "s3://b/a,b\\", "s3://b/{a,b}"] {
            let source = Source::literal(uri).unwrap();
            let lone = source.lone_uri().unwrap().to_string();
            assert_eq!((lone.as_str(), source.to_string().as_str()), (uri, uri));
        }
        assert!(Source::literal("ftp://b/x").is_err());
    }

    #[tokio::test]
    async fn what_a_directory_bucket_lists_is_sorted_for_whoever_must_agree() {
        let is_unordered = |uri: &str| uri.parse::<Source>().unwrap().is_unordered();
        assert!(is_unordered("s3://data--use1-az4--x-s3/train/") && !is_unordered("s3://data/x"));
        let meta = |key: &str| Ok(super::super::manifest::unseen(ObjectUri::s3("b", key)));
        let listed = stream::iter([meta("b"), meta("a/2"), meta("a/10")]).boxed();
        let sorted: Vec<ObjectMeta> = in_key_order(listed).try_collect().await.unwrap();
        let keys: Vec<_> = sorted.iter().map(|meta| meta.id.uri.key()).collect();
        assert_eq!(keys, ["a/10", "a/2", "b"]);
    }
}
