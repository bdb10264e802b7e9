//! What is answered: a status, headers, and a body that may be a window of an object.

use std::io::Write;
use std::ops::Range;

use crate::content::Content;

/// The body of a response.
#[derive(Debug)]
pub(crate) enum Body {
    /// Bytes made for this response, usually XML.
    Bytes(Vec<u8>),
    /// A range of an object.
    Object(Content, Range<u64>),
    /// No bytes, though a length is announced: the answer to HEAD.
    Announced(u64),
    /// No bytes and no length: 204 and 304.
    None,
}

impl Body {
    /// The length to announce.
    pub(crate) fn len(&self) -> Option<u64> {
        match self {
            Body::Bytes(bytes) => Some(bytes.len() as u64),
            Body::Object(_, range) => Some(range.end - range.start),
            Body::Announced(len) => Some(*len),
            Body::None => None,
        }
    }
}

/// A response before the script has distorted it.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Formatted header lines.
    pub(crate) headers: Vec<u8>,
    pub(crate) body: Body,
}

impl Response {
    pub(crate) fn new(status: u16) -> Response {
        Response {
            status,
            headers: Vec::new(),
            body: Body::None,
        }
    }

    /// A document.
    pub(crate) fn xml(status: u16, text: String) -> Response {
        let mut response = Response::new(status).header("Content-Type", "application/xml");
        response.body = Body::Bytes(text.into_bytes());
        response
    }

    /// JSON, from the admin endpoint.
    pub(crate) fn json(value: &impl serde::Serialize) -> Response {
        let mut response = Response::new(200).header("Content-Type", "application/json");
        response.body = Body::Bytes(serde_json::to_vec(value).unwrap_or_default());
        response
    }

    /// No content but the headers; `Content-Length: 0`.
    pub(crate) fn empty(status: u16) -> Response {
        let mut response = Response::new(status);
        response.body = Body::Bytes(Vec::new());
        response
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Response {
        self.push(name, value);
        self
    }

    pub(crate) fn push(&mut self, name: &str, value: &str) {
        for piece in [name.as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            self.headers.extend_from_slice(piece);
        }
    }
}

/// An error as S3 reports it.
#[derive(Debug)]
pub(crate) struct S3Error {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
    /// Further elements of the XML.
    pub(crate) elements: Vec<(&'static str, String)>,
    pub(crate) headers: Vec<(&'static str, String)>,
}

impl S3Error {
    pub(crate) fn new(status: u16, code: &str, message: &str) -> S3Error {
        S3Error {
            status,
            code: code.to_owned(),
            message: message.to_owned(),
            elements: Vec::new(),
            headers: Vec::new(),
        }
    }

    pub(crate) fn element(mut self, name: &'static str, value: impl Into<String>) -> S3Error {
        self.elements.push((name, value.into()));
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> S3Error {
        self.headers.push((name, value.into()));
        self
    }

    /// The response, whose XML names the resource and the request.
    pub(crate) fn into_response(self, resource: &str, request_id: &str, head: bool) -> Response {
        let text = self.document(resource, request_id);
        let mut response = if head {
            Response::empty(self.status)
        } else {
            Response::xml(self.status, text)
        };
        if self.status == 304 {
            response = Response::new(304);
        }
        for (name, value) in &self.headers {
            response.push(name, value);
        }
        response
    }

    /// The XML document.
    pub(crate) fn document(&self, resource: &str, request_id: &str) -> String {
        let mut xml = crate::xml::Xml::document();
        xml.open("Error");
        xml.text("Code", &self.code);
        xml.text("Message", &self.message);
        for (name, value) in &self.elements {
            xml.text(name, value);
        }
        xml.text("Resource", resource);
        xml.text("RequestId", request_id);
        xml.text("HostId", HOST_ID);
        xml.close("Error");
        xml.finish()
    }
}

impl From<std::io::Error> for S3Error {
    fn from(error: std::io::Error) -> S3Error {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                S3Error::new(400, "IncompleteBody", "The body ended early")
            }
            std::io::ErrorKind::InvalidInput => {
                S3Error::new(400, "EntityTooLarge", "The body is too large")
            }
            std::io::ErrorKind::InvalidData => {
                S3Error::new(400, "InvalidRequest", "The body is not framed well")
            }
            _ => S3Error::new(500, "InternalError", &error.to_string()),
        }
    }
}

/// `x-amz-id-2`: opaque to clients, and ours says who answered.
pub(crate) const HOST_ID: &str = "ZmFrZS1zMyBzcGVha2luZywgbm90IEFtYXpvbiBTMw==";

/// Writes status line and the headers that every response has.
pub(crate) fn start_head(out: &mut Vec<u8>, status: u16, request_id: &str, date: &str) {
    let _ = write!(
        out,
        "HTTP/1.1 {status} {}\r\nx-amz-id-2: {HOST_ID}\r\nx-amz-request-id: {request_id}\r\nDate: {date}\r\nServer: AmazonS3\r\n",
        reason(status)
    );
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        412 => "Precondition Failed",
        416 => "Requested Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Slow Down",
        _ => "Unknown",
    }
}
