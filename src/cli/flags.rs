//! Flags that several subcommands share. Those that the AWS CLI has carry its names.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Size;
#[cfg(all(feature = "fuse", target_os = "linux"))]
use crate::cache::CacheConfig;
use crate::checksum::ChecksumPolicy;
use crate::error::Result;
use crate::prefetch::PrefetchConfig;

/// Where the data is and how to get there.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Source")]
pub(super) struct SourceFlags {
    /// Talk to this server instead of AWS; also AWS_ENDPOINT_URL
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "STANDPIPE_ENDPOINT_URL",
        hide_env = true
    )]
    pub(super) endpoint_url: Option<String>,
    /// The bucket's region; found out if not given
    #[arg(long, global = true, env = "STANDPIPE_REGION", hide_env = true)]
    pub(super) region: Option<String>,
    /// The profile of ~/.aws to use; also AWS_PROFILE
    #[arg(long, global = true, env = "STANDPIPE_PROFILE", hide_env = true)]
    pub(super) profile: Option<String>,
    /// Don't sign requests: for public data, without credentials
    #[arg(
        long,
        global = true,
        value_parser = switch,
        env = "STANDPIPE_NO_SIGN_REQUEST",
        hide_env = true
    )]
    pub(super) no_sign_request: bool,
    /// Agree to pay for requests (requester-pays buckets)
    #[arg(
        long,
        global = true,
        value_name = "requester",
        value_parser = ["requester"],
        hide_possible_values = true,
        num_args = 0..=1,
        default_missing_value = "requester",
        env = "STANDPIPE_REQUEST_PAYER", hide_env = true
    )]
    pub(super) request_payer: Option<String>,
    /// The objects are encrypted with a key of yours (SSE-C)
    #[arg(
        long,
        global = true,
        value_name = "AES256",
        value_parser = ["AES256"],
        hide_possible_values = true,
        num_args = 0..=1,
        default_missing_value = "AES256",
        env = "STANDPIPE_SSE_C",
        hide_env = true
    )]
    pub(super) sse_c: Option<String>,
    /// File with that key, 32 bytes or their base64; also as fileb://PATH
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "STANDPIPE_SSE_C_KEY",
        hide_env = true
    )]
    pub(super) sse_c_key: Option<PathBuf>,
    /// PEM file to trust, not the system's; also AWS_CA_BUNDLE
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "STANDPIPE_CA_BUNDLE",
        hide_env = true
    )]
    pub(super) ca_bundle: Option<PathBuf>,
    /// How bodies are read: direct, or stock (the SDK's)
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        env = "STANDPIPE_TRANSPORT",
        hide_env = true
    )]
    pub(super) transport: TransportFlag,
}

impl SourceFlags {
    /// For a server of our own in this process: of what was typed, the transport only.
    pub(super) fn built_in(&self, endpoint_url: String) -> Self {
        Self {
            endpoint_url: Some(endpoint_url),
            region: Some("us-east-1".into()),
            profile: None,
            no_sign_request: true,
            request_payer: None,
            sse_c: None,
            sse_c_key: None,
            ca_bundle: None,
            transport: self.transport,
        }
    }
}

/// A flag's variable: whatever people write for yes and no. Empty is as good as unset.
pub(super) fn switch(text: &str) -> std::result::Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("use 1 or 0, true or false, yes or no, on or off".into()),
    }
}

/// `--transport`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum TransportFlag {
    // Without docs: clap would print them as a paragraph each.
    #[default]
    Direct,
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
    /// Log more, up to -vvv; STANDPIPE_LOG takes a filter (standpipe=debug)
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
}

/// How the engine reads ahead.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub(super) struct EngineFlags {
    /// Memory for data, at most [default: 336MiB, or 1/4 of the RAM]
    #[arg(long, value_name = "SIZE", env = "STANDPIPE_MEMORY", hide_env = true)]
    memory: Option<Size>,
    /// Size of a ranged request
    #[arg(long, value_name = "SIZE", default_value_t = Size(PrefetchConfig::default().part_bytes), env = "STANDPIPE_PART_SIZE", hide_env = true)]
    part_size: Size,
    /// Requests in flight, at most [default: enough for 10 Gb/s]
    #[arg(long, value_name = "N", env = "STANDPIPE_CONCURRENCY", hide_env = true)]
    concurrency: Option<usize>,
    /// Compare checksums: off, when-possible or require
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        env = "STANDPIPE_CHECKSUMS",
        hide_env = true
    )]
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
    /// What was typed, and for the rest what fits to it.
    pub(super) fn config(&self) -> Result<PrefetchConfig> {
        let mut config = PrefetchConfig::fitting(
            self.memory.map(|size| size.0),
            Some(self.part_size.0),
            self.concurrency,
        );
        config.checksums = match self.checksums {
            ChecksumFlag::Off => ChecksumPolicy::Off,
            ChecksumFlag::WhenPossible => ChecksumPolicy::WhenPossible,
            ChecksumFlag::Require => ChecksumPolicy::Require,
        };
        config.validate()?;
        Ok(config)
    }
}

/// What is kept on disk of what was read.
#[cfg(all(feature = "fuse", target_os = "linux"))]
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cache")]
pub(super) struct CacheFlags {
    /// Keep what is read in this directory, for the next epoch, other processes and the next start. It is stored in
    /// plain, so not with --sse-c-key
    #[arg(long, value_name = "DIR", env = "STANDPIPE_CACHE", hide_env = true)]
    pub(super) cache: Option<PathBuf>,
    /// Disk that the cache may take [default: all but 5 % of it]
    #[arg(
        long,
        value_name = "SIZE",
        env = "STANDPIPE_CACHE_SIZE",
        hide_env = true
    )]
    pub(super) cache_size: Option<Size>,
    /// No cache, whatever STANDPIPE_CACHE says
    #[arg(long)]
    pub(super) no_cache: bool,
}

#[cfg(all(feature = "fuse", target_os = "linux"))]
impl CacheFlags {
    /// The cache that is wanted, for a store at this endpoint; `None` is AWS.
    pub(super) fn config(&self, endpoint_url: Option<&str>) -> Option<CacheConfig> {
        let dir = self.dir()?;
        let mut config = CacheConfig::new(dir);
        config.namespace = endpoint_url.unwrap_or_default().to_owned();
        config.max_bytes = self.cache_size.map(|size| size.0);
        Some(config)
    }

    /// A variable that is set to nothing is one that is not set.
    pub(super) fn dir(&self) -> Option<&PathBuf> {
        let dir = self.cache.as_ref().filter(|_| !self.no_cache)?;
        (!dir.as_os_str().is_empty()).then_some(dir)
    }
}
