//! `standpipe run`: a training container's contract.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::download::sampler;
#[cfg(all(feature = "fuse", target_os = "linux"))]
use super::flags::CacheFlags;
use super::flags::{EngineFlags, switch};
use super::progress::{self, Progress};
use super::report::{self, Report};
use super::size::Size;
use super::{Context, connect};
use crate::download::DownloadProgress;
use crate::error::{Error, Result};
use crate::input::{Channel, S3DataType};
use crate::job::{
    Cluster, ClusterFlags, FastFileAs, Job, JobConfig, JobEvent, JobSpec, Means, NOT_EXECUTABLE,
    NOT_FOUND, Resume, SpotNotices, Stream, TrainerOutput,
};
use crate::object::Scheme;

mod live;
mod relay;
mod told;

use live::Unfinished;
use relay::Relay;
use told::Teller;

const NOTES: &str = "\
Makes /opt/ml (or --base-dir) as SageMaker does: input/config/*.json, a directory, mount or FIFOs for each
channel below input/data, model, output/data; then runs COMMAND with them. SIGTERM and Ctrl-C are
passed on; COMMAND gets --stop-grace seconds, then SIGKILL. Nothing is left behind when it ends. (On a
terminal Ctrl-C goes to COMMAND alone, and the exit code is what it makes of that.)

Channels are NAME=URI, then options with commas between them: mode=pipe|fastfile|file, shuffle=SEED,
record-wrapper=recordio, compression=gzip, content-type=..., as for `standpipe pipe`.

The exit code is COMMAND's (128 + N if signal N killed it), but: 130 or 143 when this process was asked to
end, 75 on a spot notice, 124 when MaxRuntimeInSeconds is over, 127 or 126 when COMMAND is not there or
cannot be run, and the codes of `standpipe --help` when an input fails.

  standpipe run --base-dir /tmp/job --channel train=s3://bucket/train/,mode=pipe -- python3 train.py
  standpipe run --job job.json -- train           # job.json: what create-training-job takes";

/// Run a training command as SageMaker would: /opt/ml, channels, signals
#[derive(Debug, Args)]
#[command(after_help = NOTES)]
pub(super) struct Run {
    /// A CreateTrainingJob request, as the AWS CLI and boto3 take it
    #[arg(long, value_name = "FILE", env = "STANDPIPE_JOB", hide_env = true)]
    job: Option<PathBuf>,
    /// A channel, in place of the request's of this name; may be given again
    #[arg(long, value_name = "NAME=URI[,OPTION=VALUE]...")]
    channel: Vec<Channel>,
    /// A hyperparameter, before the request's; may be given again
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    hyperparameter: Vec<(String, String)>,
    /// The job's name [default: the request's, or standpipe-SECONDS]
    #[arg(long, value_name = "NAME", env = "STANDPIPE_JOB_NAME", hide_env = true)]
    name: Option<String>,
    /// What COMMAND knows as /opt/ml; also SAGEMAKER_BASE_DIR
    #[arg(
        long,
        value_name = "DIR",
        env = "SAGEMAKER_BASE_DIR",
        hide_env = true,
        default_value = "/opt/ml"
    )]
    base_dir: PathBuf,
    /// Seconds from SIGTERM to SIGKILL
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 120,
        env = "STANDPIPE_STOP_GRACE",
        hide_env = true
    )]
    stop_grace: u64,
    /// Seconds for the last sync of checkpoints and the uploads, behind --stop-grace
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 30,
        env = "STANDPIPE_SYNC_GRACE",
        hide_env = true
    )]
    sync_grace: u64,
    /// Set the training toolkit's SM_* variables, too
    #[arg(long, value_parser = switch, env = "STANDPIPE_SM_ENV", hide_env = true)]
    sm_env: bool,
    /// What inputdataconfig.json calls FastFile mode: the platform says File
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    fast_file_as: FastFileFlag,
    /// Show all channels on the terminal while COMMAND runs; what it says passes through, line by line
    #[arg(long, value_parser = switch, env = "STANDPIPE_PROGRESS", hide_env = true, conflicts_with = "quiet")]
    progress: bool,
    /// Write what COMMAND says to the end of FILE; then the channels are shown on a terminal
    #[arg(long, value_name = "FILE", env = "STANDPIPE_LOG_FILE", hide_env = true)]
    log_file: Option<PathBuf>,
    /// Permissions of the FIFOs: 0640 lets the group read
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = super::pipe::permissions, env = "STANDPIPE_FIFO_MODE", hide_env = true)]
    fifo_mode: u32,
    #[command(flatten)]
    hosts: HostFlags,
    #[command(flatten)]
    keep: KeepFlags,
    #[cfg(all(feature = "fuse", target_os = "linux"))]
    #[command(flatten)]
    cache: CacheFlags,
    #[command(flatten)]
    engine: EngineFlags,
    /// The trainer and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Which host this is; found out from torchrun, MPI, AWS Batch or Kubernetes if not given.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Hosts")]
struct HostFlags {
    /// All hosts by name
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        env = "STANDPIPE_HOSTS",
        hide_env = true
    )]
    hosts: Vec<String>,
    /// This host's name among them
    #[arg(
        long,
        value_name = "NAME",
        env = "STANDPIPE_CURRENT_HOST",
        hide_env = true
    )]
    current_host: Option<String>,
    /// How many hosts there are, in place of names
    #[arg(long, value_name = "N", env = "STANDPIPE_HOST_COUNT", hide_env = true)]
    host_count: Option<usize>,
    /// Which one this is, from 0
    #[arg(long, value_name = "N", env = "STANDPIPE_HOST_RANK", hide_env = true)]
    host_rank: Option<usize>,
    /// For resourceconfig.json [default: the one of the default route]
    #[arg(long, value_name = "NAME")]
    network_interface: Option<String>,
    /// For resourceconfig.json, such as ml.p4d.24xlarge
    #[arg(long, value_name = "TYPE")]
    instance_type: Option<String>,
}

/// What is kept in S3, and what is told while the job runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Checkpoints, output, spot")]
struct KeepFlags {
    /// Restore checkpoints from here, and keep them here
    #[arg(
        long,
        value_name = "S3URI",
        env = "STANDPIPE_CHECKPOINT",
        hide_env = true
    )]
    checkpoint: Option<String>,
    /// Where they are on this host [default: checkpoints, below --base-dir]
    #[arg(long, value_name = "DIR")]
    checkpoint_dir: Option<PathBuf>,
    /// Seconds that a file must not have changed before it is uploaded
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    checkpoint_settle: f64,
    /// Delete in S3 what the trainer deletes
    #[arg(long, value_parser = switch, env = "STANDPIPE_CHECKPOINT_DELETE", hide_env = true)]
    checkpoint_delete: bool,
    /// Upload also what was being written when the trainer was killed: it may be half a file
    #[arg(long, value_parser = switch, env = "STANDPIPE_CHECKPOINT_UNSETTLED", hide_env = true)]
    checkpoint_unsettled: bool,
    /// Go on in the data where the checkpoint was made: at that epoch, object, record or offset (byte), or not (off)
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        env = "STANDPIPE_RESUME",
        hide_env = true
    )]
    resume: ResumeFlag,
    /// What COMMAND may have read and not used when it writes a checkpoint: it is given again
    #[arg(
        long,
        value_name = "SIZE",
        default_value_t = Size(16 << 20),
        env = "STANDPIPE_RESUME_MARGIN",
        hide_env = true
    )]
    resume_margin: Size,
    /// Upload model.tar.gz and output.tar.gz to S3URI/JOB/output/ at the end
    #[arg(long, value_name = "S3URI", env = "STANDPIPE_OUTPUT", hide_env = true)]
    output: Option<String>,
    /// Upload neither, whatever the request says
    #[arg(long, conflicts_with = "output")]
    no_output: bool,
    /// Heed EC2's notices: auto (on EC2), all, termination (no rebalance recommendations) or off
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        env = "STANDPIPE_SPOT_NOTICES",
        hide_env = true
    )]
    spot_notices: SpotFlag,
    /// Answer http://HOST:PORT/metrics for Prometheus while the job runs
    #[arg(
        long,
        value_name = "PORT",
        env = "STANDPIPE_METRICS_PORT",
        hide_env = true
    )]
    metrics_port: Option<u16>,
    /// On which address: 0.0.0.0 for other hosts
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1",
        env = "STANDPIPE_METRICS_HOST",
        hide_env = true
    )]
    metrics_host: IpAddr,
}

/// `--spot-notices`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum SpotFlag {
    #[default]
    Auto,
    All,
    Termination,
    Off,
}

/// `--resume`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum ResumeFlag {
    #[default]
    Off,
    Epoch,
    Object,
    Record,
    Offset,
}

/// `--fast-file-as`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum FastFileFlag {
    #[default]
    #[value(name = "File", alias = "file")]
    File,
    #[value(name = "FastFile", alias = "fastfile")]
    FastFile,
}

fn pair(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("use NAME=VALUE")?;
    Ok((name.into(), value.into()))
}

impl Run {
    pub(super) fn run(self, context: &Context) -> Result<Report> {
        let spec = self.spec()?;
        for note in spec.notes.iter().filter(|_| !context.output.quiet) {
            report::say(&format!("standpipe: {note}\n"));
        }
        let config = self.config(spec, SystemTime::now())?;
        let bar = Arc::new(Mutex::new(None));
        let teller = Teller::start()?;
        let means = self.means(context, &config, (&bar, &teller))?;
        let result = Job::new(config, means).run();
        drop(teller);
        drop(bar.lock().unwrap_or_else(PoisonError::into_inner).take());
        let summary = result.map_err(|error| self.not_started(error));
        match summary {
            Ok(summary) => Ok(told::report(summary)),
            Err(NotStarted::Told(report)) => Ok(report),
            Err(NotStarted::Failed(error)) => Err(error),
        }
    }

    fn spec(&self) -> Result<JobSpec> {
        let mut spec = match &self.job {
            None => JobSpec::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
                JobSpec::from_request(&path.display().to_string(), &text)?
            }
        };
        let mut seen: Vec<&str> = Vec::new();
        for channel in &self.channel {
            if seen.contains(&channel.name.as_str()) {
                return Err(Error::config(
                    format!("channel {}", channel.name),
                    "is given twice: give each channel a name of its own",
                ));
            }
            seen.push(&channel.name);
            spec.set_channel(channel.clone());
        }
        spec.hyperparameters
            .extend(self.hyperparameter.iter().cloned());
        if let Some(kind) = &self.hosts.instance_type {
            spec.instance_type = Some(kind.clone());
        }
        if let Some(name) = &self.name {
            spec.name = Some(name.clone());
        }
        self.keep.put_into(&mut spec)?;
        spec.validate()?;
        Ok(spec)
    }

    fn config(&self, spec: JobSpec, now: SystemTime) -> Result<JobConfig> {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let name = spec.name.clone();
        let name = name.unwrap_or_else(|| format!("standpipe-{seconds}"));
        let flags = ClusterFlags {
            hosts: self.hosts.hosts.clone(),
            current_host: self.hosts.current_host.clone(),
            host_count: self.hosts.host_count,
            host_rank: self.hosts.host_rank,
        };
        let groups = spec.groups.iter().map(|group| group.count).sum::<usize>();
        let requested = spec.instance_count.or((groups > 0).then_some(groups));
        let cluster = Cluster::detect(&flags, &|name| std::env::var(name).ok(), requested)?;
        if cluster.hosts.len() > 1 && spec.name.is_none() && spec.output.is_some() {
            return Err(Error::unusable(
                "--name",
                "several hosts, each of which would make up a name of its own for the output's folder",
                "give the job one name on all hosts: --name, or STANDPIPE_JOB_NAME",
            ));
        }
        let mut config = JobConfig::new(spec, name, self.command.clone());
        config.cluster = cluster;
        config.base_dir = self.base_dir.clone();
        config.stop_grace = Duration::from_secs(self.stop_grace);
        config.sync_grace = Duration::from_secs(self.sync_grace);
        config.sm_env = self.sm_env;
        config.fast_file_as = match self.fast_file_as {
            FastFileFlag::File => FastFileAs::File,
            FastFileFlag::FastFile => FastFileAs::FastFile,
        };
        config.network_interface = self
            .hosts
            .network_interface
            .clone()
            .unwrap_or_else(network_interface);
        self.keep.configure(&mut config)?;
        let region = ["AWS_REGION", "AWS_DEFAULT_REGION"];
        if let Some(region) = region.iter().find_map(|name| std::env::var(name).ok()) {
            config.region = region;
        }
        Ok(config)
    }

    fn means(
        &self,
        context: &Context,
        config: &JobConfig,
        (bar, teller): (&Arc<Mutex<Option<Progress>>>, &Teller),
    ) -> Result<Means> {
        let engine = self.engine.config()?;
        let sources = config.spec.channels.iter().map(|channel| &channel.source);
        let mut schemes = connect::schemes(sources);
        if config.spec.checkpoint.is_some() {
            schemes.push(Scheme::S3);
        }
        let mut channels = config.spec.channels.iter();
        if channels.any(|channel| channel.data_type != S3DataType::S3Prefix) {
            // A manifest may name either.
            schemes.extend([Scheme::S3, Scheme::File]);
        }
        let client = context.connect(&schemes, &engine)?;
        let mut means = Means::new(client, engine, context.metrics.clone());
        #[cfg(all(feature = "fuse", target_os = "linux"))]
        if self.cache.dir().is_some() && schemes.contains(&Scheme::S3) {
            super::sse_c::refuse_cache(&context.source)?;
            // Which store it is, whoever has named it.
            let endpoint = context.s3(&means.engine)?;
            means.cache = self.cache.config(endpoint.endpoint_url());
        }
        means.fifo_mode = self.fifo_mode;
        if config.spec.checkpoint.is_some() || config.spec.output.is_some() {
            means.s3 = Some(context.s3(&means.engine)?);
        }
        if context.shows_progress() {
            let bar = bar.clone();
            means.on_download = Some(Arc::new(
                move |_: &str, progress: &Arc<DownloadProgress>| {
                    let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
                    // The one before it goes first: there is one line.
                    drop(bar.take());
                    *bar = Some(Progress::start(true, sampler(progress.clone())));
                },
            ));
        }
        let (bar, told, quiet) = (bar.clone(), teller.told(), context.output.quiet);
        let unfinished = Unfinished::default();
        means.output = self.output(context, &unfinished);
        let is_live = context.shows_progress() && !matches!(means.output, TrainerOutput::Ours);
        means.on_event = Some(Arc::new(move |event: &JobEvent| {
            if let JobEvent::Training { channels } = event {
                let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
                // The one before it goes first.
                drop(bar.take());
                if is_live {
                    let view = live::view(channels.clone(), unfinished.clone());
                    *bar = Some(Progress::frames(true, view));
                }
            } else if !quiet {
                told.tell(event);
            }
        }));
        Ok(means)
    }

    /// Where the command's output goes. A terminal that the channels are shown on is written to by one at a time.
    fn output(&self, context: &Context, unfinished: &Unfinished) -> TrainerOutput {
        if let Some(path) = &self.log_file {
            return TrainerOutput::File(path.clone());
        }
        let (output, error) = (
            std::io::stdout().is_terminal(),
            std::io::stderr().is_terminal(),
        );
        if !self.progress || !context.shows_progress() {
            return TrainerOutput::Ours;
        }
        let relays = [(); 2].map(|()| Mutex::new(Relay::new(unfinished.clone())));
        let by = Arc::new(move |stream: Stream, bytes: &[u8]| {
            let is_error = stream == Stream::Error;
            let relay = &relays[usize::from(is_error)];
            let mut relay = relay.lock().unwrap_or_else(PoisonError::into_inner);
            let whole = match bytes {
                [] => relay.end(),
                bytes => relay.take(bytes),
            };
            if !whole.is_empty() {
                progress::suspended(|| relay::write(is_error, &whole));
            }
        });
        TrainerOutput::Heard { output, error, by }
    }

    /// A command that is not there is told as a shell tells it.
    fn not_started(&self, error: Error) -> NotStarted {
        use std::io::ErrorKind::{NotFound, PermissionDenied};
        let code = match &error {
            Error::Io { path, source }
                if self.command.first().is_some_and(|program| program == path) =>
            {
                match source.kind() {
                    NotFound => Some(NOT_FOUND),
                    PermissionDenied => Some(NOT_EXECUTABLE),
                    _ => Some(NOT_EXECUTABLE)
                        .filter(|_| source.raw_os_error() == Some(libc::ENOEXEC)),
                }
            }
            _ => None,
        };
        match code {
            None => NotStarted::Failed(error),
            Some(code) => {
                report::say(&report::explain(&error));
                let message = json!({"message": report::chain(&error), "fix": error.fix()});
                NotStarted::Told(Report {
                    exit_code: code,
                    fields: serde_json::Map::from_iter([("error".into(), message)]),
                    ..Report::default()
                })
            }
        }
    }
}

impl KeepFlags {
    fn put_into(&self, spec: &mut JobSpec) -> Result<()> {
        if let Some(uri) = &self.checkpoint {
            spec.set_checkpoint("--checkpoint", uri)?;
        }
        match (&mut spec.checkpoint, &self.checkpoint_dir) {
            (Some(checkpoint), Some(directory)) => checkpoint.local_path = Some(directory.clone()),
            (None, Some(_)) => {
                return Err(Error::config(
                    "--checkpoint-dir",
                    "there are no checkpoints: add --checkpoint s3://bucket/prefix",
                ));
            }
            _ => {}
        }
        if let Some(uri) = &self.output {
            spec.set_output("--output", uri)?;
        }
        if self.no_output {
            spec.output = None;
        }
        Ok(())
    }

    fn configure(&self, config: &mut JobConfig) -> Result<()> {
        let settle = Duration::try_from_secs_f64(self.checkpoint_settle);
        config.checkpoint.settle = settle
            .map_err(|error| Error::config("--checkpoint-settle", format!("no time: {error}")))?;
        config.checkpoint.delete = self.checkpoint_delete;
        config.checkpoint.upload_unsettled = self.checkpoint_unsettled;
        config.resume = match self.resume {
            ResumeFlag::Off => Resume::Off,
            ResumeFlag::Epoch => Resume::Epoch,
            ResumeFlag::Object => Resume::Object,
            ResumeFlag::Record => Resume::Record,
            ResumeFlag::Offset => Resume::Offset,
        };
        config.resume_margin_bytes = self.resume_margin.0;
        if config.resume != Resume::Off && config.spec.checkpoint.is_none() {
            return Err(Error::config(
                "--resume",
                "where it was stands in the checkpoints: add --checkpoint s3://bucket/prefix",
            ));
        }
        config.spot_notices = match self.spot_notices {
            SpotFlag::Auto => SpotNotices::Auto,
            SpotFlag::All => SpotNotices::All,
            SpotFlag::Termination => SpotNotices::Termination,
            SpotFlag::Off => SpotNotices::Off,
        };
        let address = |port| SocketAddr::new(self.metrics_host, port);
        config.metrics_address = self.metrics_port.map(address);
        Ok(())
    }
}

enum NotStarted {
    Told(Report),
    Failed(Error),
}

/// The interface of the default route, else the first that is not loopback, as the kernel lists them by name; `eth0` where
/// there is none.
fn network_interface() -> String {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    if let Some(name) = default_route(&routes) {
        return name;
    }
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten();
    let mut names: Vec<_> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != "lo")
        .collect();
    names.sort();
    names.into_iter().next().unwrap_or_else(|| "eth0".into())
}

/// Of the kernel's table: name, destination (zeros are everything), ..., metric in the seventh column.
fn default_route(routes: &str) -> Option<String> {
    let defaults = routes.lines().skip(1).filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let is_default = columns.get(1) == Some(&"00000000") && columns.get(7) == Some(&"00000000");
        let metric: u64 = columns.get(6)?.parse().ok()?;
        is_default.then(|| (metric, columns[0].to_owned()))
    });
    defaults.min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_is_the_one_that_leads_out() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
            ens5\t00000000\t01001FAC\t0003\t0\t0\t100\t00000000\t0\t0\t0\n";
        assert_eq!(default_route(table).as_deref(), Some("ens5"));
        assert_eq!(default_route(table.lines().next().unwrap()), None);
        assert_eq!(default_route(""), None);
    }
}
