//! EC2's word that it wants the instance back: the spot interruption notice, two minutes ahead, and the rebalance
//! recommendation, which may come sooner.
//!
//! Both stand in the instance metadata service (IMDSv2: a token by PUT, then GETs with it), and are asked for every five
//! seconds, as the EC2 guide recommends. 404 means that there is none. On ECS and Batch nothing is asked: their agent
//! sends SIGTERM. A service that does not answer is no notice.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use serde::Deserialize;

use super::inbox::{Event, Post};
use super::stop::Cause;
use crate::error::{Error, Result};

/// Where the service is on every instance.
const LINK_LOCAL: &str = "http://169.254.169.254";

const POLL: Duration = Duration::from_secs(5);

/// The service is on this host; what takes longer is no answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Half of the longest that a token may live.
const TOKEN_LIFE: Duration = Duration::from_secs(3 * 3600);

/// An answer is a few hundred bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// Which notices are heeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpotNotices {
    /// Both, if this is an EC2 instance.
    #[default]
    Auto,
    /// None.
    Off,
    /// Both, wherever this is.
    All,
    /// Interruptions only: a rebalance recommendation is no promise that one comes.
    Termination,
}

/// Watches for notices, if they are wanted here. `reserve` of the time until the instance is taken belongs to the last
/// sync, not to the trainer.
pub(super) fn watch(wanted: SpotNotices, reserve: Duration, post: Post) -> Result<()> {
    let heeds_rebalance = match wanted {
        SpotNotices::Off => return Ok(()),
        SpotNotices::Auto if !is_ec2() => return Ok(()),
        SpotNotices::Auto | SpotNotices::All => true,
        SpotNotices::Termination => false,
    };
    let endpoint = std::env::var("AWS_EC2_METADATA_SERVICE_ENDPOINT")
        .ok()
        .filter(|url| !url.is_empty())
        .unwrap_or_else(|| LINK_LOCAL.into());
    let service = Service::new(&endpoint)?;
    let thread = std::thread::Builder::new().name("spot notices".into());
    // It ends with the process: it holds nothing that anybody waits for.
    let started = thread.spawn(move || poll(service, heeds_rebalance, reserve, &post));
    started
        .map(drop)
        .map_err(|error| Error::io("spot notices", error))
}

/// Whether the firmware says so, and nobody has switched the service off.
fn is_ec2() -> bool {
    let disabled = std::env::var("AWS_EC2_METADATA_DISABLED");
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    !disabled.is_ok_and(|text| text.eq_ignore_ascii_case("true"))
        && is_amazons(
            &read("/sys/devices/virtual/dmi/id/sys_vendor"),
            &read("/sys/devices/virtual/dmi/id/bios_version"),
            &read("/sys/hypervisor/uuid"),
        )
}

/// Nitro's firmware names its vendor; under Xen (p3, g3, m4, c4) only the version of its BIOS does, and the number of the
/// guest begins with `ec2` (EC2 guide, "Determine whether your instance is an EC2 instance").
fn is_amazons(vendor: &str, bios: &str, uuid: &str) -> bool {
    vendor.trim() == "Amazon EC2"
        || bios.trim().to_ascii_lowercase().ends_with("amazon")
        || uuid.trim().to_ascii_lowercase().starts_with("ec2")
}

fn poll(mut service: Service, heeds_rebalance: bool, reserve: Duration, post: &Post) {
    let mut recommended = false;
    loop {
        if let Some(body) = service.get("/latest/meta-data/spot/instance-action")
            && let Some(left) = interruption(&body, SystemTime::now(), reserve)
        {
            post.send(Event::Stop(Cause::SpotTermination, left));
            return;
        }
        if heeds_rebalance && !recommended {
            let path = "/latest/meta-data/events/recommendations/rebalance";
            if service.get(path).is_some() {
                recommended = true;
                post.send(Event::Stop(Cause::SpotRebalance, None));
            }
        }
        std::thread::sleep(POLL);
    }
}

/// Time for the trainer, if the notice is one; none inside if it does not say when.
fn interruption(body: &str, now: SystemTime, reserve: Duration) -> Option<Option<Duration>> {
    #[derive(Deserialize)]
    struct Action {
        action: String,
        time: Option<String>,
    }
    let action: Action = serde_json::from_str(body).ok()?;
    if !matches!(action.action.as_str(), "terminate" | "stop" | "hibernate") {
        return None;
    }
    let at = action
        .time
        .and_then(|time| DateTime::from_str(&time, Format::DateTime).ok());
    Some(at.map(|at| {
        let at = UNIX_EPOCH + Duration::from_secs(at.secs().try_into().unwrap_or_default());
        let left = at.duration_since(now).unwrap_or_default();
        left.saturating_sub(reserve)
    }))
}

/// The metadata service.
#[derive(Debug)]
struct Service {
    host: String,
    address: String,
    token: Option<(String, SystemTime)>,
}

impl Service {
    fn new(endpoint: &str) -> Result<Self> {
        let host = endpoint
            .strip_prefix("http://")
            .map(|rest| rest.trim_end_matches('/').to_owned())
            .filter(|host| !host.is_empty() && !host.contains('/'));
        let host = host.ok_or_else(|| {
            Error::config(
                "AWS_EC2_METADATA_SERVICE_ENDPOINT",
                format!("{endpoint:?} is no endpoint: use http://HOST or http://HOST:PORT"),
            )
        })?;
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let address = if has_port {
            host.clone()
        } else {
            format!("{host}:80")
        };
        Ok(Self {
            host,
            address,
            token: None,
        })
    }

    /// The body of a 200; anything else is none.
    fn get(&mut self, path: &str) -> Option<String> {
        let token = self.token()?;
        let header = format!("X-aws-ec2-metadata-token: {token}");
        match self.ask("GET", path, &header) {
            Some((200, body)) => Some(body),
            Some((401, _)) => {
                self.token = None;
                None
            }
            _ => None,
        }
    }

    fn token(&mut self) -> Option<String> {
        let now = SystemTime::now();
        if let Some((token, until)) = &self.token
            && now < *until
        {
            return Some(token.clone());
        }
        let seconds = 2 * TOKEN_LIFE.as_secs();
        let header = format!("X-aws-ec2-metadata-token-ttl-seconds: {seconds}");
        let (status, token) = self.ask("PUT", "/latest/api/token", &header)?;
        let token = (status == 200).then_some(token)?;
        self.token = Some((token.clone(), now + TOKEN_LIFE));
        Some(token)
    }

    fn ask(&self, method: &str, path: &str, header: &str) -> Option<(u16, String)> {
        let address = self.address.to_socket_addrs().ok()?.next()?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        let host = &self.host;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{header}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = Vec::new();
        // A connection that is cut after the body is complete is no failure.
        let _ = stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer);
        parse(&answer)
    }
}

/// Status and body of an answer; the service sends a Content-Length.
fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(start) = head.parse(answer).ok()? else {
        return None;
    };
    let length = head
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| str::from_utf8(header.value).ok()?.trim().parse().ok());
    let body = &answer[start..];
    let body = match length {
        Some(length) => body.get(..length)?,
        None => body,
    };
    Some((head.code?, String::from_utf8_lossy(body).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_tells_how_much_time_the_trainer_has() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let body = r#"{"action": "terminate", "time": "2017-09-18T08:22:00Z"}"#;
        let (when, reserve) = (1_505_722_920, Duration::from_secs(30));
        for (now, left) in [
            (when - 120, 90),
            (when - 40, 10),
            (when - 10, 0),
            (when + 9, 0),
        ] {
            let left = Some(Some(Duration::from_secs(left)));
            assert_eq!(interruption(body, at(now), reserve), left);
        }
        let told = |body| interruption(body, at(0), reserve);
        assert_eq!(told(r#"{"action": "stop"}"#), Some(None));
        assert_eq!(told("<html>"), None);
        assert_eq!(told(r#"{"action": "noop"}"#), None);
    }

    #[test]
    fn an_instance_is_known_by_its_firmware() {
        assert!(is_amazons("Amazon EC2\n", "1.0\n", ""));
        assert!(is_amazons("Xen\n", "4.11.amazon\n", ""));
        assert!(is_amazons("", "", "ec2e1916-9099-7caf-fd21-012345abcdef\n"));
        assert!(!is_amazons("QEMU\n", "1.16.3\n", "4c4c4544-0042\n") && !is_amazons("", "", ""));
    }

    #[test]
    fn answers_are_read_only_when_they_are_whole() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd";
        assert_eq!(parse(whole), Some((200, "abc".into())));
        assert_eq!(
            parse(b"HTTP/1.1 404 Not Found\r\n\r\n"),
            Some((404, String::new()))
        );
        assert_eq!(
            parse(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),
            None
        );
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nCont"), None);
    }

    #[test]
    fn endpoints_are_hosts_and_ports() {
        let address = |url| Service::new(url).map(|service| service.address);
        assert_eq!(
            address("http://169.254.169.254").unwrap(),
            "169.254.169.254:80"
        );
        assert_eq!(address("http://127.0.0.1:99/").unwrap(), "127.0.0.1:99");
        assert_eq!(
            address("http://[fd00:ec2::254]").unwrap(),
            "[fd00:ec2::254]:80"
        );
        for bad in ["https://x", "x", "http://", "http://x/y"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
