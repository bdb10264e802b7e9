//! What goes wrong, and when: plain values, so that a property test can print and shrink them.

use std::time::Duration;

use fastrand::Rng;

/// What the requests of a [`FaultClient`](super::FaultClient) meet.
///
/// Requests are numbered from 0 in the order in which they are first polled: GETs, HEADs and listings alike. Number
/// `i` meets `script[i]`; behind the script's end it meets what [`Chaos`] draws for it; and where there is none, or
/// where it has ended, it meets [`rest`](Self::rest). [`unreadable`](Self::unreadable) holds for all of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Schedule {
    /// What the first requests meet, one by one.
    pub script: Vec<Behaviour>,
    /// Faults drawn by chance.
    pub chaos: Option<Chaos>,
    /// What every other request meets; the default is an instant, faultless answer.
    pub rest: Behaviour,
    /// Bytes that no request can read, however often it is sent.
    pub unreadable: Vec<Unreadable>,
}

/// What one request meets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Behaviour {
    /// Time before the first byte, or before the error if no byte comes.
    pub first_byte: Duration,
    /// The body's pace; `None` is all at once.
    pub bytes_per_second: Option<u64>,
    /// How the request fails; `None` is not at all.
    pub fault: Option<Fault>,
    /// The lowest bit of this byte of the body is flipped, and nothing else tells of it.
    pub flipped: Option<u64>,
}

/// A request's end before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// How much arrives first: bytes of a GET, entries of a listing. A longer answer breaks there; a shorter one
    /// arrives whole and is not touched. A HEAD has no body and always fails.
    pub after: u64,
    /// What the caller sees then.
    pub kind: FaultKind,
}

/// What a failing request ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// [`Error::Network`](crate::error::Error::Network): the connection is reset.
    Network,
    /// [`Error::Stalled`](crate::error::Error::Stalled), once [`FaultClient::STALL`](super::FaultClient::STALL) has
    /// passed.
    Stalled,
    /// [`Error::Throttled`](crate::error::Error::Throttled): 503 `SlowDown`.
    Throttled,
    /// [`Error::Server`](crate::error::Error::Server): 500 `InternalError`.
    Server,
    /// [`Error::Protocol`](crate::error::Error::Protocol).
    Protocol,
    /// [`Error::Changed`](crate::error::Error::Changed).
    Changed,
    /// [`Error::Corrupt`](crate::error::Error::Corrupt).
    Corrupt,
    /// [`Error::NotFound`](crate::error::Error::NotFound).
    NotFound,
    /// [`Error::PermissionDenied`](crate::error::Error::PermissionDenied).
    PermissionDenied,
    /// No answer, ever: only dropping the request ends it.
    Silence,
}

impl FaultKind {
    /// Those that a retry can heal.
    pub const TRANSIENT: [Self; 5] = [
        Self::Network,
        Self::Stalled,
        Self::Throttled,
        Self::Server,
        Self::Protocol,
    ];
}

/// A byte that cannot be read: every GET whose range covers it ends right before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// In this object; `None` is in all of them.
    pub key: Option<String>,
    /// Its offset in the object.
    pub offset: u64,
    /// What the request ends with.
    pub kind: FaultKind,
}

/// Faults by chance, a pure function of the seed and the request's number.
///
/// A run repeats as long as the requests are sent in the same order, as they are on a single-threaded runtime.
#[derive(Debug, Clone, PartialEq)]
pub struct Chaos {
    /// Start of the random sequence.
    pub seed: u64,
    /// The share of requests that fail, 0 to 1.
    pub share: f64,
    /// Requests from this number on are spared, so that what retries also ends.
    pub heals_after: u64,
    /// [`Fault::after`] is drawn from 0 up to this, and is 0 in half of the cases.
    pub most_after: u64,
    /// [`Behaviour::first_byte`] is drawn from zero up to this.
    pub slowest_first_byte: Duration,
    /// What a failing request ends with, each as likely as the others; none fails if there are none.
    pub kinds: Vec<FaultKind>,
}

impl Default for Chaos {
    /// 5 % of the first thousand requests fail in some way that a retry heals.
    fn default() -> Self {
        Self {
            seed: 0,
            share: 0.05,
            heals_after: 1000,
            most_after: 1 << 20,
            slowest_first_byte: Duration::from_millis(200),
            kinds: FaultKind::TRANSIENT.to_vec(),
        }
    }
}

impl Schedule {
    /// One behaviour after the other, and no fault afterwards.
    pub fn script(script: impl Into<Vec<Behaviour>>) -> Self {
        Self {
            script: script.into(),
            ..Self::default()
        }
    }

    /// Faults by chance.
    pub fn chaos(chaos: Chaos) -> Self {
        Self {
            chaos: Some(chaos),
            ..Self::default()
        }
    }

    /// What request number `index` meets.
    pub fn behaviour(&self, index: u64) -> Behaviour {
        let scripted = usize::try_from(index)
            .ok()
            .and_then(|index| self.script.get(index));
        match (scripted, &self.chaos) {
            (Some(behaviour), _) => behaviour.clone(),
            (None, Some(chaos)) if index < chaos.heals_after => chaos.draw(index, &self.rest),
            (None, _) => self.rest.clone(),
        }
    }

    /// The fault that strikes a GET of `range` of `key`, as an offset in the object: the first of the request's own
    /// and of the unreadable bytes.
    pub(super) fn strikes(
        &self,
        own: Option<Fault>,
        key: &str,
        range: crate::object::ByteRange,
    ) -> Option<(u64, FaultKind)> {
        let own = own.map(|fault| (range.start.saturating_add(fault.after), fault.kind));
        self.unreadable
            .iter()
            .filter(|byte| byte.key.as_deref().is_none_or(|of| of == key))
            .filter(|byte| (range.start..range.end).contains(&byte.offset))
            .map(|byte| (byte.offset, byte.kind))
            .chain(own)
            .min_by_key(|(offset, _)| *offset)
    }
}

impl Behaviour {
    /// An instant answer that ends with `kind` once `after` bytes have arrived.
    pub fn failing(after: u64, kind: FaultKind) -> Self {
        Self {
            fault: Some(Fault { after, kind }),
            ..Self::default()
        }
    }
}

impl Chaos {
    fn draw(&self, index: u64, rest: &Behaviour) -> Behaviour {
        // Seeds of neighbouring requests differ in one bit; the multiplier (2^64 / golden ratio) spreads them.
        let mut random = Rng::with_seed(self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let first_byte = self.slowest_first_byte.mul_f64(random.f64());
        let fails = random.f64() < self.share;
        let after = if random.bool() {
            0
        } else {
            random.u64(0..=self.most_after)
        };
        let kind = random.choice(&self.kinds).copied();
        Behaviour {
            first_byte,
            fault: kind
                .filter(|_| fails)
                .map(|kind| Fault { after, kind })
                .or(rest.fault),
            ..rest.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ByteRange;
    use proptest::prelude::*;

    #[test]
    fn the_script_comes_first_then_chance_until_it_heals() {
        let schedule = Schedule {
            script: vec![Behaviour::failing(7, FaultKind::Network)],
            ..Schedule::chaos(Chaos {
                share: 1.0,
                heals_after: 2,
                ..Chaos::default()
            })
        };
        assert_eq!(
            schedule.behaviour(0),
            Behaviour::failing(7, FaultKind::Network)
        );
        assert!(schedule.behaviour(1).fault.is_some());
        assert_eq!(schedule.behaviour(2), Behaviour::default());
    }

    #[test]
    fn the_first_of_two_faults_strikes() {
        let schedule = Schedule {
            unreadable: vec![
                Unreadable {
                    key: None,
                    offset: 50,
                    kind: FaultKind::NotFound,
                },
                Unreadable {
                    key: Some("other".into()),
                    offset: 1,
                    kind: FaultKind::NotFound,
                },
            ],
            ..Schedule::default()
        };
        let own = |after| {
            Some(Fault {
                after,
                kind: FaultKind::Network,
            })
        };
        let range = ByteRange::new(10, 100);
        assert_eq!(
            schedule.strikes(own(39), "k", range),
            Some((49, FaultKind::Network))
        );
        assert_eq!(
            schedule.strikes(own(41), "k", range),
            Some((50, FaultKind::NotFound))
        );
        assert_eq!(schedule.strikes(None, "k", ByteRange::new(51, 100)), None);
    }

    proptest! {
        #[test]
        fn chance_repeats_and_fails_about_its_share(seed: u64) {
            let schedule = Schedule::chaos(Chaos { seed, share: 0.3, ..Chaos::default() });
            let failing = (0..1000).filter(|index| {
                let behaviour = schedule.behaviour(*index);
                assert_eq!(behaviour, schedule.behaviour(*index));
                behaviour.fault.is_some()
            }).count();
            // 300 expected, standard deviation 14.5: seven of them, so that no seed ever fails by chance.
            prop_assert!((200..400).contains(&failing), "{failing} of 1000");
        }
    }
}
