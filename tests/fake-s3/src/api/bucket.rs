//! Operations on buckets themselves.

use std::sync::Arc;

use super::Answer;
use crate::connection::Exchange;
use crate::date;
use crate::request::Body;
use crate::response::{Response, S3Error};
use crate::store::{Bucket, BucketOptions};
use crate::xml::{self, Xml};

/// The owner of everything.
pub(super) const OWNER: &str = "75aa57f09aa0c8caeab4f8c24e99d10f8e7faeebf76c078efc7c6caea54ba06a";

fn region<'a>(exchange: &'a Exchange<'_>, bucket: &'a Bucket) -> &'a str {
    bucket
        .options
        .region
        .as_deref()
        .unwrap_or(&exchange.server.region)
}

pub(super) fn list_all(exchange: &Exchange<'_>) -> Answer {
    if exchange.request.method != "GET" {
        return Err(S3Error::new(
            405,
            "MethodNotAllowed",
            "The specified method is not allowed against this resource.",
        ));
    }
    let mut xml = Xml::document();
    xml.root("ListAllMyBucketsResult");
    xml.open("Owner");
    xml.text("ID", OWNER);
    xml.close("Owner");
    xml.open("Buckets");
    for bucket in exchange.server.store.buckets() {
        xml.open("Bucket");
        xml.text("Name", &bucket.name);
        xml.text("CreationDate", &date::xml(bucket.created));
        xml.text("BucketRegion", region(exchange, &bucket));
        xml.close("Bucket");
    }
    xml.close("Buckets");
    xml.close("ListAllMyBucketsResult");
    Ok(Response::xml(200, xml.finish()))
}

/// us-east-1 is the empty string here, as in S3 since 2006.
pub(super) fn location(exchange: &Exchange<'_>, bucket: &Bucket) -> Answer {
    let region = region(exchange, bucket);
    let mut xml = Xml::document();
    xml.root("LocationConstraint");
    let mut text = xml.finish();
    text.push_str(if region == "us-east-1" { "" } else { region });
    text.push_str("</LocationConstraint>");
    Ok(Response::xml(200, text))
}

pub(super) fn versioning() -> Answer {
    let mut xml = Xml::document();
    xml.root("VersioningConfiguration");
    xml.text("Status", "Enabled");
    xml.close("VersioningConfiguration");
    Ok(Response::xml(200, xml.finish()))
}

pub(super) fn head(exchange: &Exchange<'_>, bucket: &Bucket) -> Answer {
    Ok(Response::empty(200)
        .header("x-amz-bucket-region", region(exchange, bucket))
        .header("x-amz-access-point-alias", "false"))
}

pub(super) fn create(exchange: &Exchange<'_>, body: &mut Body<'_>) -> Answer {
    let configuration = body.read_all(exchange.request)?;
    let configuration = String::from_utf8_lossy(&configuration);
    let region = xml::elements(&configuration, "LocationConstraint")
        .first()
        .map(|region| (*region).to_owned());
    let options = BucketOptions {
        region,
        ..BucketOptions::default()
    };
    if exchange
        .server
        .store
        .bucket(&exchange.request.bucket)
        .is_none()
    {
        exchange
            .server
            .store
            .create_bucket(&exchange.request.bucket, options);
    }
    Ok(Response::empty(200).header("Location", &format!("/{}", exchange.request.bucket)))
}

pub(super) fn delete(exchange: &Exchange<'_>, bucket: &Arc<Bucket>) -> Answer {
    if !bucket.is_empty() {
        return Err(S3Error::new(
            409,
            "BucketNotEmpty",
            "The bucket you tried to delete is not empty",
        ));
    }
    exchange.server.store.delete_bucket(&bucket.name);
    Ok(Response::new(204))
}

/// CreateSession of S3 Express: credentials for five minutes, which we never end ourselves.
pub(super) fn session(exchange: &Exchange<'_>, bucket: &Bucket) -> Answer {
    if !bucket.is_express() {
        return Err(S3Error::new(
            400,
            "InvalidRequest",
            "Sessions are for directory buckets",
        ));
    }
    let unique = exchange.server.store.unique();
    let credentials = exchange.server.auth.open_session(&bucket.name, &unique);
    let mut xml = Xml::document();
    xml.root("CreateSessionResult");
    xml.open("Credentials");
    xml.text(
        "SessionToken",
        credentials.session_token.as_deref().unwrap_or(""),
    );
    xml.text("SecretAccessKey", &credentials.secret_key);
    xml.text("AccessKeyId", &credentials.access_key);
    xml.text(
        "Expiration",
        &date::xml(date::now() + exchange.server.clock_offset_s + exchange.server.session_s),
    );
    xml.close("Credentials");
    xml.close("CreateSessionResult");
    Ok(Response::xml(200, xml.finish()))
}
