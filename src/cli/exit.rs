//! Exit codes: one table for the code, `--help`, the README and the tests.

use std::fmt::Write as _;
use std::sync::LazyLock;

use super::interrupt;
use crate::error::{Error, Result};

pub(super) const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const PERMISSION: u8 = 4;
const WRONG_BYTES: u8 = 5;
const NETWORK: u8 = 6;

/// Every code and what it means.
pub(super) const TABLE: [(u8, &str); 9] = [
    (0, "success; also when the reader of the output went away"),
    (FAILURE, "any other failure, such as a full disk"),
    (USAGE, "wrong usage or an unusable setting"),
    (NOT_FOUND, "no such object, prefix or bucket"),
    (PERMISSION, "permission denied, or no usable credentials"),
    (
        WRONG_BYTES,
        "an object changed while it was read, or is corrupt",
    ),
    (
        NETWORK,
        "network, TLS, throttling or server errors, after all retries",
    ),
    (130, "ended by Ctrl-C (SIGINT)"),
    (143, "ended by SIGTERM"),
];

/// One line for each thing that one comes for.
const EXAMPLES: &str = "\
Examples:
  standpipe demo                                # what it is about: no account, no network
  standpipe ls s3://bucket/train/
  standpipe cat 's3://bucket/shard-{000..015}.tar' | tar t
  standpipe download s3://bucket/train/ ./train
  standpipe pipe --channel train=s3://bucket/train/ --dir ./channels --epochs 3
  standpipe bench s3://bucket/train/            # which flags suit this host
";

pub(super) static TABLE_HELP: LazyLock<String> = LazyLock::new(|| {
    let mut text = format!("{EXAMPLES}\nExit codes:\n");
    for (code, meaning) in TABLE {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {code:<4}{meaning}");
    }
    text.push_str(
        "\nCredentials, region, endpoint and profile come from where the AWS CLI takes them: AWS_*\n\
         variables, ~/.aws, SSO, containers, instances. Most flags can also be set as\n\
         STANDPIPE_MEMORY, STANDPIPE_PART_SIZE, STANDPIPE_CONCURRENCY, STANDPIPE_CHECKSUMS,\n\
         STANDPIPE_TRANSPORT, STANDPIPE_ENDPOINT_URL and so on; what is typed wins.\n\
         Sizes: 64MiB, 64Mi and 64M are powers of 1024, 64MB is one of 1000.",
    );
    text
});

/// The code of a finished command.
pub(super) fn number<T>(result: &Result<T>) -> u8 {
    match result {
        Ok(_) => 0,
        Err(error) => of(error),
    }
}

fn of(error: &Error) -> u8 {
    match error.root() {
        Error::Config { .. } => USAGE,
        Error::NotFound { .. } => NOT_FOUND,
        Error::PermissionDenied { .. } | Error::Credentials { .. } => PERMISSION,
        Error::Changed { .. } | Error::Corrupt { .. } | Error::RangeNotSatisfiable { .. } => {
            WRONG_BYTES
        }
        Error::Throttled { .. }
        | Error::Server { .. }
        | Error::Network { .. }
        | Error::UnknownHost { .. }
        | Error::Protocol { .. }
        | Error::Stalled { .. }
        | Error::Tls { .. } => NETWORK,
        Error::Cancelled => interrupt::exit_code().unwrap_or(FAILURE),
        _ => FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_code_of_the_table() {
        let lost = Error::Stalled {
            uri: "s3://b/k".into(),
            offset: 0,
            idle: std::time::Duration::ZERO,
            proxy: None,
        };
        let errors = [
            (Error::config("--memory", "too small"), USAGE),
            (Error::Cancelled, FAILURE),
            (
                Error::RetriesExhausted {
                    attempts: 3,
                    elapsed: std::time::Duration::ZERO,
                    source: Box::new(lost),
                },
                NETWORK,
            ),
        ];
        for (error, code) in errors {
            assert_eq!(of(&error), code, "{error}");
            assert!(TABLE.iter().any(|(known, _)| *known == code));
        }
    }
}
