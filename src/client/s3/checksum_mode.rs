//! Asks for checksums without asking the SDK to compare them.

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;

/// The header with which S3 is asked to tell an object's checksum.
pub(super) const CHECKSUM_MODE: &str = "x-amz-checksum-mode";

/// Adds the header to GETs of objects. Set through the SDK's own input, it would wrap the body in a second check.
#[derive(Debug)]
pub(super) struct ChecksumMode;

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for ChecksumMode {
    fn name(&self) -> &'static str {
        "ChecksumMode"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request_mut();
        if request.uri().contains("x-id=GetObject") {
            request.headers_mut().insert(CHECKSUM_MODE, "ENABLED");
        }
        Ok(())
    }
}
