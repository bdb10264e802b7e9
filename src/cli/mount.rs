//! `standpipe mount` and `standpipe umount`: FastFile mode.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;

use super::daemon::{self, Readiness};
use super::flags::{CacheFlags, EngineFlags, switch};
use super::report::Report;
use super::{Context, interrupt};
use crate::error::{Error, Result};
use crate::fastfile::fuse::{
    self, Mount as Mounted, MountOptions, Opening, StrayOption, Unmounter,
};
use crate::fastfile::read::ReadConfig;
use crate::fastfile::{FastFiles, refuse_to_require};
use crate::object::ObjectUri;

/// What requests under way get to finish in after SIGTERM; files that are still open then lose their server.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

const NOTES: &str = "\
The files are there at once; bytes are fetched as they are read. The mount is read-only and a snapshot:
what is uploaded later is not seen, and an object that is replaced gives ESTALE (\"Stale file handle\").
Extended attributes user.standpipe.uri and .etag tell what a file is. Keys that can't be names are
found under names that begin with .s3key%.

-o takes what fstab takes (ro, allow_other, uid=, gid=, umask=, fmask=, dmask=, noexec, no_passthrough, open=) and the source's
flags (endpoint_url=, region=, profile=, no_sign_request, ca_bundle=) and cache=, cache_size=. As mount.fuse.standpipe in
/sbin, the program serves `mount -t fuse.standpipe s3://bucket/prefix/ DIR`.";

/// Mount a prefix as a directory of files, as SageMaker's FastFile mode does
#[derive(Debug, Args)]
#[command(after_help = NOTES)]
pub(super) struct Mount {
    /// s3://bucket/prefix/, s3://bucket, or file:///path
    uri: ObjectUri,
    /// Where to mount it; made if missing
    dir: PathBuf,
    /// Go to the background once the mount is ready
    #[arg(long)]
    daemon: bool,
    /// Where --daemon writes its log [default: nowhere]
    #[arg(long, value_name = "PATH", env = "STANDPIPE_LOG_FILE", hide_env = true)]
    log_file: Option<PathBuf>,
    /// Whether the kernel asks for each file that is opened: auto, per-file or none. What is small costs less without, what
    /// is large is read faster with [default: by the mean size of the files]
    #[arg(long, value_name = "HOW", env = "STANDPIPE_OPEN", hide_env = true)]
    open: Option<Opening>,
    /// Fetch nothing of a large file before it is read where reads are at random
    #[arg(long, value_parser = switch, env = "STANDPIPE_NO_FILL", hide_env = true)]
    no_fill: bool,
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    #[command(flatten)]
    cache: CacheFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

/// Take a mount away
#[derive(Debug, Args)]
pub(super) struct Umount {
    /// Where it is mounted
    dir: PathBuf,
    /// At once, although files are open
    #[arg(long, short = 'l')]
    lazy: bool,
}

impl Mount {
    pub(super) fn run(mut self, context: &Context) -> Result<Report> {
        let mut options = MountOptions::default();
        let mut source = context.source.clone();
        for list in std::mem::take(&mut self.options) {
            for stray in options.apply(&list)? {
                self.take(&mut source, stray)?;
            }
        }
        if let Some(open) = self.open {
            options.open = open;
        }
        daemon::take_all_descriptors();
        // Before anything starts a thread: a fork takes only its own along.
        let ready = match self.daemon {
            true => daemon::detach(self.log_file.as_deref())?,
            false => Readiness::default(),
        };
        let context = Context {
            metrics: context.metrics.clone(),
            ..context.at(source)
        };
        // Before the mount can be seen, so that no signal finds nobody listening; held while the mount is made, so that
        // none leaves half of it behind.
        let place = Arc::new(Mutex::new(None::<Unmounter>));
        let mounted = place.clone();
        interrupt::listen(move || {
            let exit = || -> ! { std::process::exit(interrupt::exit_code().map_or(1, i32::from)) };
            let unmounter = mounted.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(unmounter) = &*unmounter else {
                exit();
            };
            unmounter.detach();
            std::thread::spawn(move || {
                std::thread::sleep(LAST_REQUESTS);
                exit();
            });
        })?;
        let files = self.files(&context)?;
        let mounted = {
            let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
            let mounted = self.mount(&files, &options)?;
            *place = Some(mounted.unmounter());
            mounted
        };
        if context.shows_progress() && !self.daemon {
            eprintln!(
                "standpipe: {} is mounted at {}; Ctrl-C unmounts",
                self.uri,
                self.dir.display()
            );
        }
        ready.tell();
        mounted.wait()?;
        // What is not written by then is fetched again.
        if let Some(cache) = files.cache() {
            cache.flush(LAST_REQUESTS);
        }
        match interrupt::exit_code() {
            Some(_) => Err(Error::Cancelled),
            None => Ok(self.report()),
        }
    }

    /// For machines; the counters are added to it.
    fn report(&self) -> Report {
        let fields = [
            ("uri", self.uri.to_string()),
            ("directory", self.dir.display().to_string()),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.into()));
        Report {
            fields: fields.into_iter().collect(),
            ..Report::default()
        }
    }

    fn files(&self, context: &Context) -> Result<FastFiles> {
        let engine = self.engine.config()?;
        refuse_to_require(engine.checksums)?;
        let (client, cache) = context.connect_cached(self.uri.scheme(), &engine, &self.cache)?;
        let mut reads = ReadConfig::of(&engine);
        reads.fills = !self.no_fill;
        let mut files = FastFiles::builder(self.uri.clone())
            .client(client)
            .reads(reads)
            .metrics(context.metrics.clone());
        if let Some(cache) = cache {
            files = files.cache(cache);
        }
        files.open()
    }

    fn mount(&self, files: &FastFiles, options: &MountOptions) -> Result<Mounted> {
        make(&self.dir)?;
        let (names, source) = (files.namespace().clone(), files.source().clone());
        Mounted::start(names, source, &self.dir, options)
    }

    /// An option of `-o` that is a flag of ours.
    fn take(
        &mut self,
        source: &mut super::flags::SourceFlags,
        (name, value): StrayOption,
    ) -> Result<()> {
        match (name.replace('-', "_").as_str(), value) {
            ("endpoint_url", Some(url)) => source.endpoint_url = Some(url),
            ("region", Some(region)) => source.region = Some(region),
            ("profile", Some(profile)) => source.profile = Some(profile),
            ("no_sign_request", None) => source.no_sign_request = true,
            ("ca_bundle", Some(path)) => source.ca_bundle = Some(path.into()),
            ("cache", Some(dir)) => self.cache.cache = Some(dir.into()),
            ("cache_size", Some(size)) => self.cache.cache_size = Some(size.parse()?),
            ("no_fill", None) => self.no_fill = true,
            ("no_cache", None) => self.cache.no_cache = true,
            ("log_file", Some(path)) => self.log_file = Some(path.into()),
            _ => {
                return Err(Error::config(
                    format!("-o {name}"),
                    "no such mount option, or its value is missing: see `standpipe mount --help`",
                ));
            }
        }
        Ok(())
    }
}

/// Makes the directory. That it is there may show as an error: a mount whose server is gone.
fn make(dir: &Path) -> Result<()> {
    match std::fs::create_dir_all(dir) {
        Err(error) if !fuse::is_mounted(dir) => Err(Error::io(dir, error)),
        _ => Ok(()),
    }
}

impl Umount {
    pub(super) fn run(self) -> Result<Report> {
        // The parent may be a link; the directory itself may not answer any more.
        let dir = match (self.dir.parent(), self.dir.file_name()) {
            (Some(parent), Some(name)) => {
                let parent = if parent.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    parent
                };
                parent
                    .canonicalize()
                    .map_err(|error| Error::io(parent, error))?
                    .join(name)
            }
            _ => self
                .dir
                .canonicalize()
                .map_err(|error| Error::io(&self.dir, error))?,
        };
        if !fuse::is_mounted(&dir) {
            return Err(Error::config(
                dir.display().to_string(),
                "FastFile mode is not mounted here",
            ));
        }
        fuse::unmount(&dir, self.lazy)?;
        Ok(Report::default())
    }
}

/// How mount(8) calls its helpers, in our own words: `mount.fuse.standpipe SOURCE DIR [-sfnv] [-o ..] [-t ..]`, and
/// `standpipe SOURCE DIR [-o ..]` by way of mount.fuse.
pub(super) fn as_helper(args: Vec<OsString>) -> Vec<OsString> {
    let text = |at: usize| {
        args.get(at)
            .and_then(|arg| arg.to_str())
            .unwrap_or_default()
    };
    let program = Path::new(text(0))
        .file_name()
        .and_then(|name| name.to_str());
    let is_helper = matches!(program, Some("mount.standpipe" | "mount.fuse.standpipe"));
    if !is_helper && !text(1).contains("://") {
        return args;
    }
    let mut ours: Vec<OsString> = vec!["standpipe".into(), "mount".into(), "--daemon".into()];
    let mut rest = args.into_iter().skip(1);
    while let Some(arg) = rest.next() {
        match arg.to_str() {
            Some("-t" | "-N") => drop(rest.next()),
            Some(flags)
                if flags.len() > 1
                    && flags.starts_with('-')
                    && flags[1..].chars().all(|c| "sfnv".contains(c)) => {}
            _ => ours.push(arg),
        }
    }
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    fn helped(args: &[&str]) -> String {
        let args = as_helper(args.iter().map(OsString::from).collect());
        let args: Vec<_> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        args.join(" ")
    }

    #[test]
    fn helpers_are_called_as_mount_calls_them() {
        for (typed, meant) in [
            (
                &[
                    "/sbin/mount.fuse.standpipe",
                    "s3://b/p/",
                    "/mnt",
                    "-n",
                    "-o",
                    "ro,uid=1",
                    "-t",
                    "fuse.standpipe",
                ][..],
                "standpipe mount --daemon s3://b/p/ /mnt -o ro,uid=1",
            ),
            (
                &["standpipe", "s3://b/p/", "/mnt", "-o", "rw"],
                "standpipe mount --daemon s3://b/p/ /mnt -o rw",
            ),
            (&["standpipe", "ls", "s3://b/"], "standpipe ls s3://b/"),
            (&["standpipe"], "standpipe"),
        ] {
            assert_eq!(helped(typed), meant);
        }
    }
}
