//! Conditions on command: which requests go wrong, and how.
//!
//! A [`Rule`] says which requests it is about (prefix of `bucket/key`, operations), which of those it hits (`skip`,
//! `times`, `probability`) and its [`Effect`]. All rules that hit a request take effect together. A request is looked
//! at twice: when it arrives, and, if it is answered with an object, when the length of the body is known: a rule about
//! byte n does not hit a body that has no byte n, so `times: 1` means one real fault.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::content::mix;
use crate::shape::{Clock, Latency};

/// What a request does, as far as rules and the log care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// GetObject.
    Get,
    /// HeadObject.
    Head,
    /// ListObjectsV2.
    List,
    /// PutObject and all of multipart.
    Put,
    /// DeleteObject.
    Delete,
    /// About a bucket or all of them: location, existence, session.
    Bucket,
    /// `/_fake/...`; rules never hit it.
    Admin,
}

/// One scripted condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Hits requests whose `bucket/key` starts with this; a listing's key is its prefix. Empty: all.
    #[serde(default)]
    pub prefix: String,
    /// Hits these operations; empty: the ones the effect is about, of get, head and list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<Operation>,
    /// Lets so many matching requests pass first.
    #[serde(default)]
    pub skip: u32,
    /// Hits at most so many requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// Hits a matching request with this probability, by the server's seeded generator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// What happens.
    #[serde(flatten)]
    pub effect: Effect,
}

impl Rule {
    /// A rule that always hits.
    pub fn new(effect: Effect) -> Rule {
        Rule {
            prefix: String::new(),
            operations: Vec::new(),
            skip: 0,
            times: None,
            probability: None,
            effect,
        }
    }

    /// Only below this prefix of `bucket/key`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Rule {
        self.prefix = prefix.into();
        self
    }

    /// Only these operations.
    pub fn operations(mut self, operations: &[Operation]) -> Rule {
        self.operations = operations.to_vec();
        self
    }

    /// After so many matching requests.
    pub fn skip(mut self, skip: u32) -> Rule {
        self.skip = skip;
        self
    }

    /// At most so many times.
    pub fn times(mut self, times: u32) -> Rule {
        self.times = Some(times);
        self
    }

    /// With this probability.
    pub fn probability(mut self, probability: f64) -> Rule {
        self.probability = Some(probability);
        self
    }
}

/// What a rule does. Bytes are counted in the response's body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
pub enum Effect {
    /// Waits before the first byte and paces the body.
    Latency(Latency),
    /// Limits the body's pace.
    Bandwidth {
        /// Of each connection.
        bytes_per_second: u64,
    },
    /// Limits all bodies that this rule hits, together.
    TotalBandwidth {
        /// Of all connections.
        bytes_per_second: u64,
    },
    /// 503 SlowDown above a rate of requests.
    RequestRate {
        /// Requests per second that are answered.
        per_second: f64,
        /// So many at once are fine.
        #[serde(default)]
        burst: f64,
    },
    /// An error with S3's XML: 500 InternalError, 503 SlowDown, 403 AccessDenied, ...
    Status {
        /// The HTTP status.
        status: u16,
        /// S3's code; a fitting one if empty.
        #[serde(default)]
        code: String,
    },
    /// 200 with an error document as its body, as S3 does when it fails late.
    OkWithError,
    /// Bytes that are not HTTP, then the connection closes.
    Garbage,
    /// The whole object with 200, whatever range was asked for.
    IgnoreRange,
    /// The object is replaced by a new version before this request is served: synthetic bytes of the same size.
    Replace {
        /// Seed of the new bytes.
        seed: u64,
    },
    /// A TCP reset instead of this byte.
    Reset {
        /// Position in the body.
        at_byte: u64,
    },
    /// A clean close instead of this byte.
    Truncate {
        /// Position in the body.
        at_byte: u64,
    },
    /// A pause before this byte.
    Stall {
        /// Position in the body.
        at_byte: u64,
        /// For so long.
        ms: u64,
    },
    /// One bit of this byte is flipped.
    FlipBit {
        /// Position in the body.
        at_byte: u64,
    },
    /// The body comes in chunks, without a length.
    Chunked,
    /// Neither a length nor chunks: the connection closes at the end.
    NoContentLength,
    /// Bytes after the body, on a connection that stays open.
    Surplus {
        /// How many.
        bytes: u64,
    },
    /// A `Content-Range` that is off by one.
    WrongContentRange,
    /// Another ETag than the object's.
    WrongEtag,
    /// Another checksum than the object's.
    WrongChecksum,
    /// The connection closes when it was idle for so long after this response, without a word.
    CloseIdle {
        /// Idle time.
        after_ms: u64,
    },
}

/// When an effect is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// On arrival.
    Request,
    /// When the body's length is known.
    Body(u64),
}

impl Effect {
    /// The name in JSON and in the log.
    fn name(&self) -> &'static str {
        match self {
            Effect::Latency(_) => "latency",
            Effect::Bandwidth { .. } => "bandwidth",
            Effect::TotalBandwidth { .. } => "total_bandwidth",
            Effect::RequestRate { .. } => "request_rate",
            Effect::Status { .. } => "status",
            Effect::OkWithError => "ok_with_error",
            Effect::Garbage => "garbage",
            Effect::IgnoreRange => "ignore_range",
            Effect::Replace { .. } => "replace",
            Effect::Reset { .. } => "reset",
            Effect::Truncate { .. } => "truncate",
            Effect::Stall { .. } => "stall",
            Effect::FlipBit { .. } => "flip_bit",
            Effect::Chunked => "chunked",
            Effect::NoContentLength => "no_content_length",
            Effect::Surplus { .. } => "surplus",
            Effect::WrongContentRange => "wrong_content_range",
            Effect::WrongEtag => "wrong_etag",
            Effect::WrongChecksum => "wrong_checksum",
            Effect::CloseIdle { .. } => "close_idle",
        }
    }

    fn decided_in(&self, phase: Phase) -> bool {
        let about_body = match self {
            Effect::Reset { at_byte }
            | Effect::Truncate { at_byte }
            | Effect::Stall { at_byte, .. }
            | Effect::FlipBit { at_byte } => Some(*at_byte),
            Effect::Chunked
            | Effect::NoContentLength
            | Effect::Surplus { .. }
            | Effect::WrongContentRange
            | Effect::WrongEtag
            | Effect::WrongChecksum => Some(0),
            _ => None,
        };
        match (about_body, phase) {
            (None, Phase::Request) => true,
            // Headers can be wrong on an empty body, too.
            (Some(at_byte), Phase::Body(len)) => at_byte == 0 || at_byte < len,
            _ => false,
        }
    }

    /// Operations that the effect is about unless the rule names others.
    fn default_operations(&self) -> &'static [Operation] {
        match self {
            Effect::IgnoreRange | Effect::OkWithError => &[Operation::Get],
            Effect::Replace { .. } => &[Operation::Get, Operation::Head],
            _ => &[Operation::Get, Operation::Head, Operation::List],
        }
    }
}

/// All that hit one request.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) latency: Duration,
    pub(crate) bytes_per_second: Option<u64>,
    pub(crate) total: Vec<Arc<Clock>>,
    pub(crate) error: Option<(u16, String)>,
    pub(crate) ok_with_error: bool,
    pub(crate) garbage: bool,
    pub(crate) ignore_range: bool,
    pub(crate) replace: Option<u64>,
    pub(crate) reset_at: Option<u64>,
    pub(crate) truncate_at: Option<u64>,
    pub(crate) stall: Option<(u64, Duration)>,
    pub(crate) flip_at: Option<u64>,
    pub(crate) chunked: bool,
    pub(crate) no_length: bool,
    pub(crate) surplus: u64,
    pub(crate) wrong_content_range: bool,
    pub(crate) wrong_etag: bool,
    pub(crate) wrong_checksum: bool,
    pub(crate) close_idle: Option<Duration>,
    /// Names of the effects, for the log.
    pub(crate) names: Vec<&'static str>,
}

impl Faults {
    /// Whether the body must be sent piece by piece.
    pub(crate) fn touch_body(&self) -> bool {
        self.reset_at.is_some()
            || self.truncate_at.is_some()
            || self.stall.is_some()
            || self.flip_at.is_some()
            || self.chunked
            || self.no_length
            || self.surplus > 0
    }

    fn limit_pace(&mut self, bytes_per_second: u64) {
        self.bytes_per_second = Some(
            self.bytes_per_second
                .map_or(bytes_per_second, |old| old.min(bytes_per_second)),
        );
    }

    fn apply(&mut self, armed: &Armed, chance: (f64, f64)) {
        match &armed.rule.effect {
            Effect::Latency(latency) => self.slow_down(latency, chance),
            Effect::Bandwidth { bytes_per_second } => self.limit_pace(*bytes_per_second),
            Effect::TotalBandwidth { .. } => self.total.extend(armed.clock.clone()),
            Effect::RequestRate { .. } => self.error = Some((503, "SlowDown".to_owned())),
            Effect::Status { status, code } => {
                self.error = Some((*status, code_of(*status, code).to_owned()))
            }
            Effect::OkWithError => self.ok_with_error = true,
            Effect::Garbage => self.garbage = true,
            Effect::IgnoreRange => self.ignore_range = true,
            Effect::Replace { seed } => self.replace = Some(*seed),
            Effect::Reset { at_byte } => self.reset_at = Some(*at_byte),
            Effect::Truncate { at_byte } => self.truncate_at = Some(*at_byte),
            Effect::Stall { at_byte, ms } => {
                self.stall = Some((*at_byte, Duration::from_millis(*ms)))
            }
            Effect::FlipBit { at_byte } => self.flip_at = Some(*at_byte),
            Effect::Chunked => self.chunked = true,
            Effect::NoContentLength => self.no_length = true,
            Effect::Surplus { bytes } => self.surplus = *bytes,
            Effect::WrongContentRange => self.wrong_content_range = true,
            Effect::WrongEtag => self.wrong_etag = true,
            Effect::WrongChecksum => self.wrong_checksum = true,
            Effect::CloseIdle { after_ms } => {
                self.close_idle = Some(Duration::from_millis(*after_ms))
            }
        }
        self.names.push(armed.rule.effect.name());
    }

    /// Adds a latency model.
    pub(crate) fn slow_down(&mut self, latency: &Latency, chance: (f64, f64)) {
        self.latency += latency.first_byte(chance);
        if let Some(rate) = latency.bytes_per_second() {
            self.limit_pace(rate);
        }
    }

    /// Adds a connection's bandwidth.
    pub(crate) fn limit(&mut self, bytes_per_second: Option<u64>) {
        if let Some(rate) = bytes_per_second {
            self.limit_pace(rate);
        }
    }
}

/// The S3 code that goes with a status, if none was given.
fn code_of(status: u16, code: &str) -> &str {
    match (code, status) {
        ("", 400) => "BadRequest",
        ("", 403) => "AccessDenied",
        ("", 404) => "NoSuchKey",
        ("", 412) => "PreconditionFailed",
        ("", 429 | 503) => "SlowDown",
        ("", _) => "InternalError",
        (code, _) => code,
    }
}

/// A rule and how often it was met.
#[derive(Debug)]
struct Armed {
    rule: Rule,
    met: u32,
    hit: u32,
    clock: Option<Arc<Clock>>,
}

impl Armed {
    fn new(rule: Rule) -> Armed {
        let clock = match rule.effect {
            // A tenth of a second of slack: idle time is not saved up.
            Effect::TotalBandwidth { bytes_per_second } => Some(Clock::new(
                bytes_per_second as f64,
                Duration::from_millis(20),
            )),
            Effect::RequestRate { per_second, burst } => Some(Clock::new(
                per_second,
                Duration::from_secs_f64(burst.max(1.0) / per_second),
            )),
            _ => None,
        };
        Armed {
            rule,
            met: 0,
            hit: 0,
            clock: clock.map(Arc::new),
        }
    }

    fn is_about(&self, operation: Operation, bucket: &str, key: &str) -> bool {
        let operations: &[Operation] = match self.rule.operations.as_slice() {
            [] => self.rule.effect.default_operations(),
            named => named,
        };
        operations.contains(&operation) && starts_with(bucket, key, &self.rule.prefix)
    }

    /// Counts a request that the rule is about and says whether it is hit.
    fn meet(&mut self, chance: f64) -> bool {
        self.met += 1;
        let hits = self.met > self.rule.skip
            && self.rule.times.is_none_or(|times| self.hit < times)
            && self
                .rule
                .probability
                .is_none_or(|probability| chance <= probability)
            && !self.within_rate();
        self.hit += u32::from(hits);
        hits
    }

    /// A rate of requests hits only those above it.
    fn within_rate(&self) -> bool {
        match (&self.rule.effect, &self.clock) {
            (Effect::RequestRate { .. }, Some(clock)) => clock.try_take(1),
            _ => false,
        }
    }
}

/// Whether `bucket/key` starts with `prefix`, without making that string.
fn starts_with(bucket: &str, key: &str, prefix: &str) -> bool {
    match prefix.split_once('/') {
        Some((name, rest)) => name == bucket && key.starts_with(rest),
        None => bucket.starts_with(prefix),
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub(crate) struct Script {
    rules: Mutex<Vec<Armed>>,
    /// Spares requests the lock while there are no rules.
    armed: AtomicBool,
    draws: AtomicU64,
    seed: u64,
}

impl Script {
    pub(crate) fn new(seed: u64) -> Script {
        Script {
            seed,
            ..Script::default()
        }
    }

    /// Adds rules to those in force.
    pub(crate) fn add(&self, rules: Vec<Rule>) {
        let mut armed = self
            .rules
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        armed.extend(rules.into_iter().map(Armed::new));
        self.armed.store(!armed.is_empty(), Ordering::Release);
    }

    /// Forgets all rules.
    pub(crate) fn clear(&self) {
        let mut armed = self
            .rules
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        armed.clear();
        self.armed.store(false, Ordering::Release);
    }

    /// Adds to `faults` what hits this request in this phase.
    pub(crate) fn decide(
        &self,
        phase: Phase,
        operation: Operation,
        bucket: &str,
        key: &str,
        faults: &mut Faults,
    ) {
        if !self.armed.load(Ordering::Acquire) {
            return;
        }
        let mut rules = self
            .rules
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        for armed in rules.iter_mut() {
            if armed.rule.effect.decided_in(phase)
                && armed.is_about(operation, bucket, key)
                && armed.meet(self.chance())
            {
                faults.apply(armed, (self.chance(), self.chance()));
            }
        }
    }

    /// The next number of the seeded generator, in `(0, 1]`.
    pub(crate) fn chance(&self) -> f64 {
        unit(self.seed ^ mix(self.draws.fetch_add(1, Ordering::Relaxed)))
    }
}

/// A uniform number in `(0, 1]` for each input.
pub(crate) fn unit(value: u64) -> f64 {
    ((mix(value) >> 11) + 1) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(rule: Rule, requests: u32) -> Vec<bool> {
        let script = Script::new(1);
        script.add(vec![rule]);
        (0..requests)
            .map(|_| {
                let mut faults = Faults::default();
                script.decide(Phase::Body(100), Operation::Get, "b", "data/x", &mut faults);
                !faults.names.is_empty()
            })
            .collect()
    }

    #[test]
    fn skip_and_times_choose_requests() {
        let rule = Rule::new(Effect::Reset { at_byte: 5 })
            .prefix("b/data/")
            .skip(1)
            .times(2);
        assert_eq!(hits(rule, 5), [false, true, true, false, false]);
    }

    #[test]
    fn a_rule_about_a_byte_that_is_not_there_is_not_used_up() {
        assert_eq!(
            hits(Rule::new(Effect::Reset { at_byte: 100 }).times(1), 2),
            [false, false]
        );
        assert_eq!(
            hits(Rule::new(Effect::Reset { at_byte: 99 }).times(1), 2),
            [true, false]
        );
    }

    #[test]
    fn probability_is_seeded() {
        let rule = Rule::new(Effect::Truncate { at_byte: 0 }).probability(0.25);
        let first = hits(rule.clone(), 1000);
        assert_eq!(first, hits(rule, 1000));
        let count = first.iter().filter(|hit| **hit).count();
        assert!((200..300).contains(&count), "{count} of 1000");
    }

    #[test]
    fn prefixes_match_bucket_and_key() {
        assert!(starts_with("b", "data/x", "b/data"));
        assert!(starts_with("b", "data/x", ""));
        assert!(starts_with("b", "data/x", "b"));
        assert!(!starts_with("bb", "data/x", "b/data"));
        assert!(!starts_with("b", "other", "b/data"));
    }

    #[test]
    fn rules_are_json() {
        let text = r#"{"prefix": "b/x", "times": 1, "effect": "stall", "at_byte": 10, "ms": 50}"#;
        let rule: Rule = serde_json::from_str(text).unwrap();
        assert_eq!(
            rule,
            Rule::new(Effect::Stall {
                at_byte: 10,
                ms: 50
            })
            .prefix("b/x")
            .times(1)
        );
        let text = serde_json::to_string(&Rule::new(Effect::Latency(Latency::s3()))).unwrap();
        let back: Rule = serde_json::from_str(&text).unwrap();
        assert_eq!(back.effect, Effect::Latency(Latency::s3()));
    }
}
