//! Putting and deleting objects, in one piece and in parts.

use std::collections::BTreeMap;

use md5::{Digest, Md5};

use super::Answer;
use crate::auth;
use crate::checksum::{Algorithm, ChecksumKind};
use crate::connection::Exchange;
use crate::content::Content;
use crate::request::{Body, Request};
use crate::response::{Response, S3Error};
use crate::store::{Bucket, PutOptions, Upload, hex, md5_hex};
use crate::xml::{self, Xml};

pub(super) fn put(exchange: &Exchange<'_>, bucket: &Bucket, body: &mut Body<'_>) -> Answer {
    let request = exchange.request;
    let bytes = receive(request, body)?;
    if request.header("if-none-match") == Some("*") && bucket.newest(&request.key).is_some() {
        return Err(S3Error::new(
            412,
            "PreconditionFailed",
            "At least one of the pre-conditions you specified did not hold",
        ));
    }
    let version = exchange
        .server
        .store
        .put(bucket, &request.key, &bytes, options(request))?;
    let mut response = Response::empty(200)
        .header("ETag", &version.etag)
        .header("x-amz-version-id", &version.id);
    if let Some(checksum) = version.checksum() {
        response.push(version.options.algorithm.header(), checksum);
        response.push("x-amz-checksum-type", version.options.kind.name());
    }
    Ok(response)
}

/// Reads the body and checks what the client said about it.
fn receive(request: &Request<'_>, body: &mut Body<'_>) -> Result<Vec<u8>, S3Error> {
    let bytes = body.read_all(request)?;
    if !auth::payload_matches(request, &bytes) {
        let message =
            "The provided 'x-amz-content-sha256' header does not match what was computed.";
        return Err(S3Error::new(400, "XAmzContentSHA256Mismatch", message));
    }
    for algorithm in Algorithm::ALL {
        if request
            .header(algorithm.header())
            .is_some_and(|stated| stated != algorithm.of(&bytes))
        {
            let message = format!(
                "The {} you specified did not match the calculated checksum.",
                algorithm.name()
            );
            return Err(S3Error::new(400, "BadDigest", &message));
        }
    }
    Ok(bytes)
}

/// What a PUT or a CreateMultipartUpload says about the object.
fn options(request: &Request<'_>) -> PutOptions {
    let header = |name: &str| request.header(name).map(str::to_owned);
    let named = ["x-amz-sdk-checksum-algorithm", "x-amz-checksum-algorithm"];
    let by_name = named
        .iter()
        .find_map(|name| Algorithm::from_name(request.header(name)?));
    let by_value = Algorithm::ALL
        .into_iter()
        .find(|algorithm| request.header(algorithm.header()).is_some());
    let composite = request
        .header("x-amz-checksum-type")
        .is_some_and(|kind| kind.eq_ignore_ascii_case("COMPOSITE"));
    let metadata = request.headers().filter_map(|(name, value)| {
        Some((
            name.to_ascii_lowercase()
                .strip_prefix("x-amz-meta-")?
                .to_owned(),
            value.to_owned(),
        ))
    });
    PutOptions {
        algorithm: by_name.or(by_value).unwrap_or_default(),
        kind: if composite {
            ChecksumKind::Composite
        } else {
            ChecksumKind::FullObject
        },
        content_type: header("content-type"),
        // `aws-chunked` is about the way here, not about the object.
        content_encoding: header("content-encoding").filter(|encoding| encoding != "aws-chunked"),
        metadata: metadata.collect(),
        storage_class: header("x-amz-storage-class"),
        customer_key_md5: header("x-amz-server-side-encryption-customer-key-md5"),
        ..PutOptions::default()
    }
}

pub(super) fn delete(exchange: &Exchange<'_>, bucket: &Bucket) -> Answer {
    let request = exchange.request;
    if let Some(id) = request.query("versionId") {
        bucket.remove_version(&request.key, &id);
        return Ok(Response::new(204).header("x-amz-version-id", &id));
    }
    let response = Response::new(204);
    Ok(match exchange.server.store.delete(bucket, &request.key)? {
        Some(id) => response
            .header("x-amz-delete-marker", "true")
            .header("x-amz-version-id", &id),
        None => response,
    })
}

pub(super) fn create_upload(exchange: &Exchange<'_>, bucket: &Bucket) -> Answer {
    let request = exchange.request;
    let id = exchange.server.store.unique();
    let upload = Upload {
        key: request.key.to_string(),
        options: options(request),
        parts: BTreeMap::new(),
    };
    bucket.uploads().insert(id.clone(), upload);
    let mut xml = Xml::document();
    xml.root("InitiateMultipartUploadResult");
    xml.text("Bucket", &bucket.name);
    xml.text("Key", &request.key);
    xml.text("UploadId", &id);
    xml.close("InitiateMultipartUploadResult");
    Ok(Response::xml(200, xml.finish()))
}

pub(super) fn upload_part(exchange: &Exchange<'_>, bucket: &Bucket, body: &mut Body<'_>) -> Answer {
    let request = exchange.request;
    let bytes = receive(request, body)?;
    let number = request
        .query("partNumber")
        .and_then(|number| number.parse().ok())
        .unwrap_or(0u32);
    if !(1..=10_000).contains(&number) {
        return Err(S3Error::new(
            400,
            "InvalidArgument",
            "Part number must be an integer between 1 and 10000, inclusive",
        ));
    }
    let etag = md5_hex(&bytes);
    let content = exchange.server.store.memory.store(&bytes)?;
    let id = request.query("uploadId").unwrap_or_default();
    let mut uploads = bucket.uploads();
    let upload = uploads
        .get_mut(&*id)
        .filter(|upload| upload.key == request.key)
        .ok_or_else(no_such_upload)?;
    let algorithm = upload.options.algorithm;
    upload.parts.insert(number, (content, etag.clone()));
    Ok(Response::empty(200)
        .header("ETag", &format!("\"{etag}\""))
        .header(algorithm.header(), &algorithm.of(&bytes)))
}

pub(super) fn abort_upload(exchange: &Exchange<'_>, bucket: &Bucket) -> Answer {
    let id = exchange.request.query("uploadId").unwrap_or_default();
    bucket.uploads().remove(&*id).ok_or_else(no_such_upload)?;
    Ok(Response::new(204))
}

pub(super) fn complete_upload(
    exchange: &Exchange<'_>,
    bucket: &Bucket,
    body: &mut Body<'_>,
) -> Answer {
    let request = exchange.request;
    let document = body.read_all(request)?;
    let document = String::from_utf8_lossy(&document);
    let id = request.query("uploadId").unwrap_or_default();
    let mut uploads = bucket.uploads();
    let upload = uploads
        .get(&*id)
        .filter(|upload| upload.key == request.key)
        .ok_or_else(no_such_upload)?;
    let chosen = chosen_parts(&document, upload)?;
    let mut options = upload.options.clone();
    options.etag = Some(multipart_etag(&chosen));
    uploads.remove(&*id);
    drop(uploads);

    let contents: Vec<Content> = chosen.iter().map(|(content, _)| content.clone()).collect();
    let sizes = contents.iter().map(Content::len).collect();
    let store = &exchange.server.store;
    let version = store.put_parts(
        bucket,
        &request.key,
        store.memory.concat(&contents)?,
        sizes,
        options,
    );
    let mut xml = Xml::document();
    xml.root("CompleteMultipartUploadResult");
    xml.text("Location", &format!("/{}/{}", bucket.name, request.key));
    xml.text("Bucket", &bucket.name);
    xml.text("Key", &request.key);
    xml.text("ETag", &version.etag);
    if let Some(checksum) = version.checksum() {
        xml.text(
            &format!("Checksum{}", version.options.algorithm.name()),
            checksum,
        );
        xml.text("ChecksumType", version.options.kind.name());
    }
    xml.close("CompleteMultipartUploadResult");
    Ok(Response::xml(200, xml.finish()).header("x-amz-version-id", &version.id))
}

fn no_such_upload() -> S3Error {
    let message = "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed.";
    S3Error::new(404, "NoSuchUpload", message)
}

/// The parts that the document lists, in its order, which must be ascending.
fn chosen_parts(document: &str, upload: &Upload) -> Result<Vec<(Content, String)>, S3Error> {
    let first = |part: &str, name: &str| {
        xml::elements(part, name)
            .first()
            .map(|text| xml::unescape(text))
    };
    let mut chosen = Vec::new();
    let mut last = 0;
    for part in xml::elements(document, "Part") {
        let number: u32 = first(part, "PartNumber")
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or(0);
        if number <= last {
            return Err(S3Error::new(
                400,
                "InvalidPartOrder",
                "The list of parts was not in ascending order.",
            ));
        }
        last = number;
        let etag = first(part, "ETag").unwrap_or_default();
        let uploaded = upload
            .parts
            .get(&number)
            .filter(|(_, found)| found == etag.trim().trim_matches('"'));
        let message = "One or more of the specified parts could not be found.";
        chosen.push(
            uploaded
                .cloned()
                .ok_or_else(|| S3Error::new(400, "InvalidPart", message))?,
        );
    }
    if chosen.is_empty() {
        return Err(S3Error::new(
            400,
            "MalformedXML",
            "The XML you provided was not well-formed",
        ));
    }
    Ok(chosen)
}

/// The MD5 of the parts' MD5s, with their number.
fn multipart_etag(parts: &[(Content, String)]) -> String {
    let mut md5 = Md5::new();
    for (_, etag) in parts {
        let bytes = (0..etag.len() / 2)
            .filter_map(|i| u8::from_str_radix(&etag[2 * i..2 * i + 2], 16).ok());
        md5.update(bytes.collect::<Vec<u8>>());
    }
    format!("{}-{}", hex(&md5.finalize()), parts.len())
}
