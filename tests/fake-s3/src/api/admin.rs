//! `/_fake/...`: what the library's methods do, for a server in another process. JSON in and out, never signed.

use serde::{Deserialize, Serialize};

use super::Answer;
use crate::connection::Exchange;
use crate::request::Body;
use crate::response::{Response, S3Error};
use crate::script::Rule;
use crate::shape::Shape;
use crate::store::PutOptions;

/// The body of `POST /_fake/synthetic`.
#[derive(Debug, Deserialize)]
struct Synthetic {
    bucket: String,
    key: String,
    size_bytes: u64,
    #[serde(default)]
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Done {
    ok: bool,
}

pub(super) fn handle(exchange: &Exchange<'_>, body: &mut Body<'_>) -> Answer {
    let server = exchange.server;
    let bytes = body.read_all(exchange.request)?;
    match (exchange.request.method, &*exchange.request.key) {
        ("GET", "log") => return Ok(Response::json(&server.log.entries())),
        ("GET", "stats") => return Ok(Response::json(&server.log.stats())),
        ("POST", "log/clear") => server.log.clear(),
        ("POST", "script/clear") => server.script.clear(),
        ("POST", "script") => {
            let rules = parse::<Vec<Rule>>(&bytes)?;
            server.script.clear();
            server.script.add(rules);
        }
        ("POST", "shape") => server.set_shape(parse::<Shape>(&bytes)?),
        ("POST", "synthetic") => {
            let Synthetic {
                bucket,
                key,
                size_bytes,
                seed,
            } = parse(&bytes)?;
            let bucket = server.store.ensure_bucket(&bucket);
            server
                .store
                .put_synthetic(&bucket, &key, size_bytes, seed, PutOptions::default())?;
        }
        _ => return Err(S3Error::new(404, "NoSuchKey", "No such admin command")),
    }
    Ok(Response::json(&Done { ok: true }))
}

fn parse<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, S3Error> {
    serde_json::from_slice(bytes)
        .map_err(|error| S3Error::new(400, "InvalidRequest", &error.to_string()))
}
