//! `standpipe cache`: what is in a block cache, and what should be.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use futures::StreamExt;
use futures::stream;
use serde_json::{Map, Value, json};

use super::flags::EngineFlags;
use super::report::{Report, Traffic, moved};
use super::size::human;
use super::stdout::settle;
use super::{Context, Size, cat, connect, sse_c};
use crate::cache::{BlockCache, CacheConfig, CachedClient};
use crate::error::{Error, Result};
use crate::input::{Lookup, Source};
use crate::metrics::Sink;
use crate::prefetch::Prefetcher;

/// A disk that takes longer for the 336 MiB that may be under way is broken.
const FLUSH_PATIENCE: Duration = Duration::from_secs(300);

/// Look into, fill and empty a block cache
#[derive(Debug, Args)]
pub(super) struct Cache {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Stat(Stat),
    Verify(Verify),
    Warm(Warm),
    Clear(Clear),
    Evict(Evict),
}

/// Show how much is stored
#[derive(Debug, Args)]
struct Stat {
    #[command(flatten)]
    at: At,
}

/// Compare everything stored with its checksums; what is wrong is taken out
#[derive(Debug, Args)]
struct Verify {
    #[command(flatten)]
    at: At,
}

/// Fetch objects into the cache before they are needed
#[derive(Debug, Args)]
struct Warm {
    /// s3://bucket/key, s3://bucket/prefix/, file:///path or a path; braces expand
    #[arg(required = true, value_name = "URI")]
    uris: Vec<Source>,
    #[command(flatten)]
    cache: CacheFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

/// Remove everything that nobody holds open
#[derive(Debug, Args)]
struct Clear {
    #[command(flatten)]
    at: At,
}

/// Remove objects until the rest fits: first those not used for long, then any
#[derive(Debug, Args)]
struct Evict {
    #[command(flatten)]
    at: At,
    /// What may stay
    #[arg(long, value_name = "SIZE")]
    to: Size,
}

/// Which cache.
#[derive(Debug, Clone, Args)]
struct At {
    /// The cache's directory
    #[arg(long, value_name = "DIR", env = "STANDPIPE_CACHE", hide_env = true)]
    cache: PathBuf,
}

/// The flags of commands that read through a cache.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cache")]
pub(super) struct CacheFlags {
    /// Keep what is read in this directory, in plain (so not with --sse-c-key); made if missing. One that its group may write to is shared
    #[arg(long, value_name = "DIR", env = "STANDPIPE_CACHE", hide_env = true)]
    cache: PathBuf,
    /// What the cache may take [default: all but 5% of the disk]
    #[arg(
        long,
        value_name = "SIZE",
        env = "STANDPIPE_CACHE_SIZE",
        hide_env = true
    )]
    cache_size: Option<Size>,
}

impl CacheFlags {
    /// The settings that they mean, for a store at this endpoint; `None` is AWS.
    pub(super) fn config(&self, endpoint_url: Option<String>) -> CacheConfig {
        let mut config = CacheConfig::new(&self.cache);
        config.max_bytes = self.cache_size.map(|size| size.0);
        config.namespace = endpoint_url.unwrap_or_default();
        config
    }
}

impl At {
    /// The cache; unlike a command that fills one, this makes none.
    fn open(&self, context: &Context) -> Result<BlockCache> {
        if !self.cache.join("FORMAT").exists() {
            return Err(Error::config(
                "--cache",
                format!("{} holds no cache: check the path", self.cache.display()),
            ));
        }
        BlockCache::open(CacheConfig::new(&self.cache), context.metrics.clone())
    }
}

impl Cache {
    pub(super) fn run(self, context: &Context) -> Result<Report> {
        match self.action {
            Action::Stat(stat) => stat.run(context),
            Action::Verify(verify) => verify.run(context),
            Action::Warm(warm) => warm.run(context),
            Action::Clear(clear) => removed(context, "cleared", clear.at.open(context)?.clear()?),
            Action::Evict(evict) => removed(
                context,
                "evicted",
                evict.at.open(context)?.evict(evict.to.0)?,
            ),
        }
    }
}

impl Stat {
    fn run(self, context: &Context) -> Result<Report> {
        let stat = self.at.open(context)?.stat()?;
        say(
            context,
            &format!(
                "{} objects ({} of them whole), {} of data in {} on disk; it may take {}; blocks of {}\n",
                stat.entries,
                stat.complete_entries,
                human(stat.stored_bytes as f64),
                human(stat.disk_bytes as f64),
                human(stat.capacity_bytes as f64),
                Size(stat.block_bytes),
            ),
        )?;
        if stat.damaged_entries > 0 {
            say(
                context,
                &format!(
                    "{} entries are damaged: `standpipe cache verify` removes them\n",
                    stat.damaged_entries
                ),
            )?;
        }
        report("stat", None, &stat)
    }
}

impl Verify {
    fn run(self, context: &Context) -> Result<Report> {
        let audit = self.at.open(context)?.verify()?;
        let bad = match audit.bad_blocks + audit.damaged_entries {
            0 => "nothing is wrong".to_owned(),
            _ => format!(
                "{} blocks and {} whole entries were wrong and are taken out",
                audit.bad_blocks, audit.damaged_entries
            ),
        };
        say(
            context,
            &format!(
                "{} objects, {} blocks are sound; {bad}\n",
                audit.entries, audit.sound_blocks
            ),
        )?;
        report("verify", None, &audit)
    }
}

impl Warm {
    fn run(self, context: &Context) -> Result<Report> {
        sse_c::refuse_cache(&context.source)?;
        let engine = self.engine.config()?;
        let (client, endpoint_url) = context.connect_to(&connect::schemes(&self.uris), &engine)?;
        let mut config = self.cache.config(endpoint_url);
        // All that the engine may have read ahead of the disk: here the disk is waited for, nothing is dropped.
        config.write_behind_bytes = engine.memory_bytes.max(config.write_behind_bytes);
        let cache = BlockCache::open(config, context.metrics.clone())?;
        let client = CachedClient::new(client, cache.clone());
        let engine = Prefetcher::new(Arc::new(client), engine, context.metrics.clone())?;
        let (objects, bytes) = read_all(&engine, self.uris, &cache)?;
        let fetched = context.metrics.cache_miss_bytes.get();
        let missing = context.metrics.cache_bypass_bytes.get()
            + context.metrics.cache_declined_bytes.get()
            + context.metrics.cache_dropped_bytes.get();
        let elapsed = context.started.elapsed();
        let mut line = moved(&format!("{objects} objects, "), bytes, elapsed);
        line.push_str(&format!("; {} were fetched", human(fetched as f64)));
        if missing > 0 {
            line.push_str(&format!(
                ", and {} could not be kept: the cache is full, or its disk failed",
                human(missing as f64)
            ));
        }
        let traffic = Traffic {
            bytes,
            first_byte: None,
            taken_in: elapsed,
            presence: cat::presence(&context.metrics, elapsed),
            sink: Sink::Disk,
        };
        let fields =
            json!({"objects": objects, "fetched_bytes": fetched, "not_kept_bytes": missing});
        let mut report = report("warm", Some(line), &fields)?;
        report.traffic = Some(traffic);
        Ok(report)
    }
}

/// Reads everything once; gives how many objects and bytes that were.
fn read_all(engine: &Prefetcher, sources: Vec<Source>, cache: &BlockCache) -> Result<(u64, u64)> {
    let client = engine.client().clone();
    // Listed, because only what is pinned to a version is kept.
    let objects =
        stream::iter(sources).flat_map(move |source| source.objects(&client, Lookup::ListFirst));
    let mut reader = engine.read_each(objects.boxed())?.blocking();
    let (mut count, mut bytes) = (0, 0);
    while let Some(chunk) = reader.next_chunk()? {
        bytes += chunk.bytes.len() as u64;
        count += u64::from(chunk.ends_object);
        // Before its memory is given back: what is under way stays within the queue.
        flush(cache)?;
    }
    flush(cache)?;
    Ok((count, bytes))
}

fn flush(cache: &BlockCache) -> Result<()> {
    if cache.flush(FLUSH_PATIENCE) {
        return Ok(());
    }
    let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
    Err(Error::io(&cache.config().dir, error))
}

fn removed(context: &Context, what: &str, removed: crate::cache::Removed) -> Result<Report> {
    let kept = match removed.kept_entries {
        0 => String::new(),
        kept => format!("; {kept} are in use and stay"),
    };
    say(
        context,
        &format!(
            "{} objects, {} {what}{kept}\n",
            removed.entries,
            human(removed.bytes as f64)
        ),
    )?;
    report(
        if what == "cleared" { "clear" } else { "evict" },
        None,
        &removed,
    )
}

/// To standard output, which is what these commands are for; JSON is printed at the end.
fn say(context: &Context, text: &str) -> Result<()> {
    if !context.output.json && !context.output.quiet {
        settle(std::io::stdout().write_all(text.as_bytes()))?;
    }
    Ok(())
}

fn report(action: &str, line: Option<String>, fields: &impl serde::Serialize) -> Result<Report> {
    let mut all = Map::new();
    all.insert("action".into(), action.into());
    if let Ok(Value::Object(fields)) = serde_json::to_value(fields) {
        all.extend(fields);
    }
    Ok(Report {
        line,
        fields: all,
        ..Report::default()
    })
}
