//! Flags that several subcommands share. Those that the AWS CLI has carry its names.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Size;
use crate::checksum::ChecksumPolicy;
use crate::prefetch::PrefetchConfig;

/// Where the data is and how to get there.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Source")]
pub(super) struct SourceFlags {
    /// Talk to this endpoint instead of AWS (MinIO, Ceph, R2, a proxy); also AWS_ENDPOINT_URL
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "STANDPIPE_ENDPOINT_URL"
    )]
    pub(super) endpoint_url: Option<String>,
    /// The bucket's region; found out if not given
    #[arg(long, global = true, env = "STANDPIPE_REGION")]
    pub(super) region: Option<String>,
    /// The profile of ~/.aws to take credentials and settings from; also AWS_PROFILE
    #[arg(long, global = true, env = "STANDPIPE_PROFILE")]
    pub(super) profile: Option<String>,
    /// Don't sign requests: for public data, without credentials
    #[arg(long, global = true, env = "STANDPIPE_NO_SIGN_REQUEST")]
    pub(super) no_sign_request: bool,
    /// Confirm that you pay for the requests (requester-pays buckets)
    #[arg(
        long,
        global = true,
        value_name = "requester",
        value_parser = ["requester"],
        num_args = 0..=1,
        default_missing_value = "requester",
        env = "STANDPIPE_REQUEST_PAYER"
    )]
    pub(super) request_payer: Option<String>,
    /// Certificates (PEM) to trust beside the system's; also AWS_CA_BUNDLE
    #[arg(long, global = true, value_name = "PATH", env = "STANDPIPE_CA_BUNDLE")]
    pub(super) ca_bundle: Option<PathBuf>,
    /// How bodies are read: straight into the buffers, or by the AWS SDK's own HTTP client (needed for proxies)
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "STANDPIPE_TRANSPORT"
    )]
    pub(super) transport: TransportFlag,
}

/// `--transport`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum TransportFlag {
    /// Straight into the buffers.
    #[default]
    Direct,
    /// The SDK's own.
    Stock,
}

/// What is said, and how.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputFlags {
    /// Print one JSON object at the end (`cat`: to standard error) instead of text
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// No progress bar and no summary; errors only
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,
    /// Log more: -v decisions, -vv requests, -vvv everything; STANDPIPE_LOG takes a filter such as standpipe=debug
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
}

/// How the engine reads ahead.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub(super) struct EngineFlags {
    /// Memory for data in flight and waiting, at most
    #[arg(long, value_name = "SIZE", default_value_t = Size(PrefetchConfig::default().memory_bytes), env = "STANDPIPE_MEMORY")]
    memory: Size,
    /// Size of a ranged request
    #[arg(long, value_name = "SIZE", default_value_t = Size(PrefetchConfig::default().part_bytes), env = "STANDPIPE_PART_SIZE")]
    part_size: Size,
    /// Requests in flight, at most
    #[arg(long, value_name = "N", default_value_t = PrefetchConfig::default().concurrency, env = "STANDPIPE_CONCURRENCY")]
    concurrency: usize,
    /// Compare checksums: never, where the server offers one, or fail without one
    #[arg(long, value_enum, default_value_t, env = "STANDPIPE_CHECKSUMS")]
    checksums: ChecksumFlag,
}

/// `--checksums`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum ChecksumFlag {
    Off,
    #[default]
    WhenPossible,
    Require,
}

impl EngineFlags {
    pub(super) fn config(&self) -> PrefetchConfig {
        PrefetchConfig {
            memory_bytes: self.memory.0,
            part_bytes: self.part_size.0,
            concurrency: self.concurrency,
            checksums: match self.checksums {
                ChecksumFlag::Off => ChecksumPolicy::Off,
                ChecksumFlag::WhenPossible => ChecksumPolicy::WhenPossible,
                ChecksumFlag::Require => ChecksumPolicy::Require,
            },
        }
    }
}
