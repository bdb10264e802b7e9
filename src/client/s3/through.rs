//! GETs through the SDK's orchestrator, with bodies received by our own transport.
//!
//! The SDK does what it is good at (endpoint rules, access points, Express sessions, signing, errors); its transport
//! is ours and puts the body into the part that lies in a slot beside the call. The part is lent to the call and
//! comes back when that ends or is dropped.

use std::sync::{Arc, Mutex, PoisonError};

use super::bucket::Bucket;
use super::config::S3Config;
use super::intake::Intake;
use super::refusal::{self, Failure};
use super::{Want, stock};
use crate::buffer::PartBuf;
use crate::client::GetMeta;
use crate::client::wire::{Dest, DestSlot, with_dest};
use crate::metrics::Metrics;

/// The part, lent to a call.
struct Lent<'a> {
    slot: DestSlot,
    into: &'a mut PartBuf,
}

impl Lent<'_> {
    /// Takes the part back, and what became of it.
    fn back(&mut self) -> Option<Dest> {
        let mut dest = self.slot.take()?;
        *self.into = dest.part.take();
        Some(dest)
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.back();
    }
}

/// One attempt; `None` when the answer's length is unknown, which only the stock transport can take in.
pub(super) async fn get(
    bucket: &Bucket,
    config: &S3Config,
    endpoint: &str,
    metrics: &Metrics,
    want: &Want<'_>,
    into: &mut PartBuf,
) -> Result<Option<GetMeta>, Failure> {
    let intake = Arc::<Mutex<Intake>>::default();
    let slot = DestSlot::new(dest(config, want, into.take(), intake.clone()));
    let mut lent = Lent {
        slot: slot.clone(),
        into,
    };
    let sent = with_dest(slot, stock::request(bucket, config, want).send()).await;
    let outcome = lent.back().and_then(|dest| dest.outcome);
    drop(lent);
    let intake = std::mem::take(&mut *intake.lock().unwrap_or_else(PoisonError::into_inner));
    match (outcome, sent) {
        (Some(Err(_)), _) if intake.is_unmeasured => Ok(None),
        (Some(Err(error)), _) => Err(error.into()),
        (Some(Ok(reply)), _) if reply.status < 300 => intake.conclude(want, &reply).map(Some),
        (_, Err(error)) => Err(refusal::of_sdk(want.subject(), config, endpoint, error)),
        (_, Ok(output)) => stock::take_in(output, config, metrics, want, into)
            .await
            .map(Some),
    }
}

fn dest(config: &S3Config, want: &Want<'_>, part: PartBuf, intake: Arc<Mutex<Intake>>) -> Dest {
    let (id, range, missing) = (want.id.clone(), want.range, want.missing);
    let policy = config.checksums;
    Dest {
        part,
        uri: want.id.uri.to_string(),
        offset: want.missing.start,
        outcome: None,
        on_head: Box::new(move |head, part| {
            let want = Want {
                id: &id,
                range,
                missing,
            };
            let mut intake = intake.lock().unwrap_or_else(PoisonError::into_inner);
            intake.on_head(&want, policy, head, part)
        }),
    }
}
