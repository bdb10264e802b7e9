//! What our own transport asks us about an answer, and what it then hands back.
//!
//! The transport calls [`Intake::on_head`] between an answer's head and its body, and [`Intake::conclude`] turns what
//! was seen there and the end of the exchange into the GET's result. Both direct paths share it: signed by hand, and
//! through the SDK.

use super::answer::{self, Head, Plan, Verdict};
use super::refusal::{self, Failure};
use super::stock::{MAX_ERROR_BYTES, judge_document};
use super::{Want, protocol_of};
use crate::buffer::PartBuf;
use crate::checksum::ChecksumPolicy;
use crate::client::GetMeta;
use crate::client::wire::{self, BodyPlan, Reply};
use crate::error::Result;

/// The headers of a refusal that matter.
const OF_REFUSALS: [&str; 3] = [
    "x-amz-request-id",
    "x-amz-bucket-region",
    "x-amz-error-code",
];

/// What has been seen of an answer.
#[derive(Debug, Default)]
pub(super) struct Intake {
    plan: Option<Plan>,
    headers: [Option<String>; OF_REFUSALS.len()],
    /// A body of unknown length, or one that ends with the connection: only the stock transport takes those in.
    pub(super) is_unmeasured: bool,
}

impl Intake {
    /// Judges the head before a byte of the body is stored.
    pub(super) fn on_head(
        &mut self,
        want: &Want<'_>,
        policy: ChecksumPolicy,
        head: &wire::Head<'_>,
        into: &mut PartBuf,
    ) -> Result<BodyPlan> {
        *self = Self::default();
        let document = BodyPlan::Buffer {
            cap: MAX_ERROR_BYTES,
        };
        if !(200..300).contains(&head.status) {
            self.note_refusal(head);
            return Ok(document);
        }
        let judged = Head::of(head.status, |name| head.get(name));
        let plan = match answer::judge(want.id, want.missing, &judged) {
            Verdict::Store(plan) => plan,
            Verdict::Fail(error) => return Err(error),
            Verdict::ErrorDocument => {
                self.note_refusal(head);
                return Ok(document);
            }
        };
        want.expect(&plan, policy, into)?;
        let is_framed = head.content_length.is_some() || head.chunked;
        let Some(take) = plan.take_bytes.filter(|_| is_framed) else {
            self.is_unmeasured = true;
            return Err(protocol_of(want.subject(), "a body of unknown length"));
        };
        let skip = plan.skip_bytes;
        self.plan = Some(plan);
        Ok(BodyPlan::Into { skip, take })
    }

    fn note_refusal(&mut self, head: &wire::Head<'_>) {
        self.headers = OF_REFUSALS.map(|name| head.get(name).map(str::to_owned));
    }

    fn header(&self, name: &str) -> Option<&str> {
        let at = OF_REFUSALS.iter().position(|known| *known == name)?;
        self.headers[at].as_deref()
    }

    /// The result of an exchange that ended well as far as HTTP goes.
    pub(super) fn conclude(&self, want: &Want<'_>, reply: &Reply) -> Result<GetMeta, Failure> {
        if let Some(plan) = &self.plan {
            return Ok(plan.meta(plan.skip_bytes + plan.take_bytes.unwrap_or(0)));
        }
        if (200..300).contains(&reply.status) {
            return Err(judge_document(
                want,
                self.header("x-amz-request-id"),
                &reply.body,
            ));
        }
        let get = |name: &str| self.header(name);
        Err(refusal::refused(
            want.subject(),
            reply.status,
            get,
            &reply.body,
        ))
    }
}
