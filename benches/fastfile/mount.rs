//! What is mounted: ours, and the peers that Debian has.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::server::{BUCKET, Endpoint};
use crate::{Outcome, Scale};

/// How long a mount may take to answer: a listing of a million keys is waited for by those who need it whole.
const READY_WITHIN: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(1);

/// Whose mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mounter {
    /// Ours, every read from the network.
    Standpipe,
    /// Ours, with a block cache.
    Cached,
    /// The same, where the kernel does not read what is whole by itself.
    CachedThroughUs,
    /// The same, where the kernel asks for each open, however small the files.
    CachedPerFile,
    /// `rclone mount`, its cache off.
    Rclone,
    /// `s3fs`.
    S3fs,
}

/// The peers that are measured. What is not there is said.
pub(crate) fn peers(scale: Scale) -> Vec<(&'static str, Mounter)> {
    if scale == Scale::Smoke {
        return Vec::new();
    }
    let mut peers = vec![("rclone", Mounter::Rclone), ("s3fs", Mounter::S3fs)];
    peers.retain(|(program, _)| {
        let found = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok();
        if !found {
            let _ = writeln!(
                std::io::stderr(),
                "fastfile: {program} is not installed: not measured"
            );
        }
        found
    });
    peers
}

/// A mounted bucket; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Mount {
    daemon: Child,
    dir: PathBuf,
    pub(crate) ready: Duration,
}

impl Mount {
    /// Mounts what lies under `prefix` (ending in `/`) and waits until the mount answers.
    pub(crate) fn start(
        mounter: Mounter,
        endpoint: &Endpoint,
        prefix: &str,
        dir: &Path,
        cache: &Path,
    ) -> Outcome<Self> {
        std::fs::create_dir_all(dir)?;
        let device = device_of(dir)?;
        let mut command = match mounter {
            Mounter::Standpipe => ours(endpoint, prefix, dir, None),
            Mounter::Cached => ours(endpoint, prefix, dir, Some(cache)),
            Mounter::CachedThroughUs => {
                let mut command = ours(endpoint, prefix, dir, Some(cache));
                command.args(["-o", "no_passthrough"]);
                command
            }
            Mounter::CachedPerFile => {
                let mut command = ours(endpoint, prefix, dir, Some(cache));
                command.args(["--open", "per-file"]);
                command
            }
            Mounter::Rclone => rclone(endpoint, prefix, dir),
            Mounter::S3fs => s3fs(endpoint, prefix, dir),
        };
        let start = Instant::now();
        let daemon = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("{:?}: {error}", command.get_program()))?;
        let mut mount = Self {
            daemon,
            dir: dir.to_owned(),
            ready: Duration::ZERO,
        };
        while device_of(dir)? == device {
            if let Some(status) = mount.daemon.try_wait()? {
                return Err(format!("{mounter:?} ended before it mounted: {status}").into());
            }
            if start.elapsed() > READY_WITHIN {
                return Err(format!("{mounter:?} has not mounted in {READY_WITHIN:?}").into());
            }
            std::thread::sleep(POLL);
        }
        mount.ready = start.elapsed();
        Ok(mount)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.daemon.id()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a reader that failed may still hold a file.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        let _ = self.daemon.wait();
    }
}

fn device_of(dir: &Path) -> Outcome<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(dir)?.dev())
}

fn ours(endpoint: &Endpoint, prefix: &str, dir: &Path, cache: Option<&Path>) -> Command {
    let uri = format!("s3://{BUCKET}/{prefix}");
    let mut command = standpipe(&["mount", &uri], endpoint);
    command.arg(dir);
    match cache {
        None => command.arg("--no-cache"),
        Some(cache) => command.arg("--cache").arg(cache),
    };
    command
}

/// A subcommand on the bench's server.
pub(crate) fn standpipe(words: &[&str], endpoint: &Endpoint) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_standpipe"));
    command
        .args(words)
        .args(["--endpoint-url", &endpoint.url, "--region", "us-east-1"])
        .args(["--no-sign-request", "--quiet"]);
    command
}

fn rclone(endpoint: &Endpoint, prefix: &str, dir: &Path) -> Command {
    let mut command = Command::new("rclone");
    command
        // It can't use the one that the SDKs take from here.
        .env_remove("AWS_CA_BUNDLE")
        .arg("mount")
        .arg(format!(
            ":s3,provider=Other,env_auth=false,endpoint='{}':{BUCKET}/{prefix}",
            endpoint.url
        ))
        .arg(dir)
        // What its manual advises for large sequential reads and immutable data.
        .args([
            "--read-only",
            "--vfs-cache-mode",
            "off",
            "--dir-cache-time",
            "1h",
            "--attr-timeout",
            "1h",
            "--no-modtime",
            "--no-checksum",
            "--config",
            "/dev/null",
        ]);
    command
}

fn s3fs(endpoint: &Endpoint, prefix: &str, dir: &Path) -> Command {
    let mut command = Command::new("s3fs");
    command
        .arg(format!("{BUCKET}:/{}", prefix.trim_end_matches('/')))
        .arg(dir)
        .args(["-f", "-o"])
        .arg(format!(
            "ro,public_bucket=1,use_path_request_style,url={},multireq_max=20,parallel_count=16,stat_cache_expire=3600",
            endpoint.url
        ));
    command
}
