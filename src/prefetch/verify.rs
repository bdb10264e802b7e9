//! Checks an object that was fetched in several parts against the CRC of the whole.
//!
//! Each part's CRC is computed while it arrives; the CRC of the whole is combined from them in delivery order and
//! compared with what a HEAD said, before the last part is delivered. So a consumer may have seen the bytes of a
//! corrupt object, but never its end.

use crate::checksum::{Checksum, ChecksumPolicy};
use crate::error::{Error, Result};
use crate::object::{ObjectId, ObjectMeta};

/// The CRC of what was delivered of one object.
#[derive(Debug, Default)]
pub(super) struct Verifier {
    so_far: Option<Checksum>,
    incomplete: bool,
}

/// What became of an object's verification.
#[derive(Debug)]
pub(super) enum Verdict {
    Verified,
    Unverified,
    Bad(Error),
}

impl Verifier {
    /// What comes next stands behind bytes with this CRC; without it the whole can't be judged.
    pub(super) fn after(before: Option<Checksum>) -> Self {
        Self {
            so_far: before,
            incomplete: before.is_none(),
        }
    }

    /// The next part, `len` bytes long, has this CRC.
    pub(super) fn add(&mut self, part: Option<Checksum>, len: u64) {
        match (self.so_far, part) {
            (None, Some(part)) => self.so_far = Some(part),
            (Some(so_far), Some(part)) if so_far.algorithm == part.algorithm => {
                self.so_far = Some(so_far.then(part, len))
            }
            _ => self.incomplete = true,
        }
    }

    /// Judges the whole object; `answer` is what a HEAD said of it, if one was sent.
    pub(super) fn judge(
        self,
        object: &ObjectId,
        answer: Option<Result<ObjectMeta>>,
        policy: ChecksumPolicy,
    ) -> Verdict {
        let computed = self.so_far.filter(|_| !self.incomplete);
        let expected = match answer {
            None => None,
            Some(Ok(meta)) if is_replaced(object, &meta.id) => {
                return not_compared(policy, || changed(object, &meta.id));
            }
            Some(Ok(meta)) => meta.checksum,
            // It may be forbidden where GET is not.
            Some(Err(error)) => return not_compared(policy, || error),
        };
        match (computed, expected) {
            (Some(computed), Some(expected)) if computed.algorithm == expected.algorithm => {
                if computed == expected {
                    Verdict::Verified
                } else {
                    Verdict::Bad(mismatch(object, expected, computed))
                }
            }
            _ => unverifiable(object, policy),
        }
    }
}

/// An object without a checksum that can be compared: an error only where one is required.
pub(super) fn unverifiable(object: &ObjectId, policy: ChecksumPolicy) -> Verdict {
    not_compared(policy, || Error::Corrupt {
        uri: object.uri.to_string(),
        offset: 0,
        reason: "the server keeps no full-object CRC that could be compared, and one is required: \
                 use --checksums when-possible"
            .into(),
        answer: Box::default(),
    })
}

fn not_compared(policy: ChecksumPolicy, why: impl FnOnce() -> Error) -> Verdict {
    match policy {
        ChecksumPolicy::Require => Verdict::Bad(why()),
        _ => Verdict::Unverified,
    }
}

/// Whether the HEAD met another version than the parts: its CRC says nothing of them.
fn is_replaced(read: &ObjectId, met: &ObjectId) -> bool {
    matches!((&read.etag, &met.etag), (Some(read), Some(met)) if read != met)
}

fn changed(read: &ObjectId, met: &ObjectId) -> Error {
    let tag = |id: &ObjectId| id.etag.as_deref().unwrap_or_default().to_owned();
    Error::Changed {
        uri: read.uri.to_string(),
        offset: read.size_bytes.unwrap_or(0),
        expected: tag(read),
        found: tag(met),
        answer: Box::default(),
    }
}

fn mismatch(object: &ObjectId, expected: Checksum, computed: Checksum) -> Error {
    let (header, expected, computed) = (
        expected.algorithm.header(),
        expected.to_base64(),
        computed.to_base64(),
    );
    Error::Corrupt {
        uri: object.uri.to_string(),
        offset: 0,
        reason: format!(
            "{header} of the whole object is {expected}, but the bytes received have {computed}"
        ),
        answer: Box::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::ChecksumAlgorithm;
    use proptest::prelude::*;

    fn object() -> ObjectId {
        ObjectId {
            etag: Some("\"1\"".into()),
            ..ObjectId::unpinned("memory://b/k".parse().unwrap())
        }
    }

    /// What a HEAD says of the version with this ETag.
    fn told(etag: &str, checksum: Option<Checksum>) -> Result<ObjectMeta> {
        Ok(ObjectMeta {
            id: ObjectId {
                etag: Some(etag.into()),
                ..object()
            },
            size_bytes: 3,
            last_modified: None,
            checksum_algorithm: checksum.map(|sum| sum.algorithm),
            checksum,
        })
    }

    proptest! {
        #[test]
        fn any_cut_verifies_and_any_flip_does_not(bytes in proptest::collection::vec(any::<u8>(), 1..500), cuts: Vec<proptest::sample::Index>, flip: Option<proptest::sample::Index>) {
            let algorithm = ChecksumAlgorithm::Crc64Nvme;
            let expected = Checksum::of(algorithm, &bytes);
            let mut received = bytes.clone();
            if let Some(flip) = &flip { let at = flip.index(received.len()); received[at] ^= 0x10; }
            let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).chain([bytes.len()]).collect();
            ends.sort_unstable();
            let (mut verifier, mut start) = (Verifier::default(), 0);
            for end in ends {
                verifier.add(Some(Checksum::of(algorithm, &received[start..end])), (end - start) as u64);
                start = end;
            }
            let verdict = verifier.judge(&object(), Some(told("\"1\"", Some(expected))), ChecksumPolicy::WhenPossible);
            prop_assert_eq!(matches!(verdict, Verdict::Verified), flip.is_none());
            prop_assert_eq!(matches!(verdict, Verdict::Bad(Error::Corrupt { .. })), flip.is_some());
        }
    }

    #[test]
    fn what_cannot_be_compared_is_an_error_only_when_required() {
        let judge = |policy| Verifier::default().judge(&object(), None, policy);
        assert!(matches!(
            judge(ChecksumPolicy::WhenPossible),
            Verdict::Unverified
        ));
        assert!(matches!(
            judge(ChecksumPolicy::Require),
            Verdict::Bad(Error::Corrupt { .. })
        ));
    }

    /// A HEAD behind the last part may meet the next version: that is no corruption of the one that was read.
    #[test]
    fn the_crc_of_another_version_condemns_nothing() {
        let judge = |answer, policy| {
            let mut verifier = Verifier::default();
            verifier.add(Some(Checksum::of(ChecksumAlgorithm::Crc64Nvme, b"old")), 3);
            verifier.judge(&object(), Some(answer), policy)
        };
        let newer = || {
            told(
                "\"2\"",
                Some(Checksum::of(ChecksumAlgorithm::Crc64Nvme, b"new")),
            )
        };
        assert!(matches!(
            judge(newer(), ChecksumPolicy::WhenPossible),
            Verdict::Unverified
        ));
        assert!(matches!(
            judge(newer(), ChecksumPolicy::Require),
            Verdict::Bad(Error::Changed { expected, found, .. }) if expected == "\"1\"" && found == "\"2\""
        ));
    }

    #[test]
    fn a_head_that_failed_is_an_error_of_its_own_where_a_checksum_is_required() {
        let judge =
            |policy| Verifier::default().judge(&object(), Some(Err(Error::Cancelled)), policy);
        assert!(matches!(
            judge(ChecksumPolicy::WhenPossible),
            Verdict::Unverified
        ));
        assert!(matches!(
            judge(ChecksumPolicy::Require),
            Verdict::Bad(Error::Cancelled)
        ));
    }
}
