//! The model and the output, to S3 when the job has ended: `PREFIX/JOB/output/model.tar.gz` and `output.tar.gz`. Those of
//! other hosts than the first go to `PREFIX/JOB/output/HOST/`, or each would overwrite the others'.
//!
//! A thread packs into a pipe, and what comes out goes up in parts: nothing is stored in between. An archive that could
//! not be packed to its end is never completed. With `CompressionType` `NONE` the files go up as they are.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::cluster::Cluster;
use super::cutoff::Cutoff;
use super::spec::OutputSpec;
use super::upload::{Uploaded, upload};
use crate::client::S3Client;
use crate::error::{Error, Result};
use crate::object::ObjectUri;
use crate::runtime;

/// zlib's fastest: a model's weights hardly compress, and an upload should not wait for the processor.
const LEVEL: u32 = 1;

/// A directory and what its archive is called.
pub(super) const MODEL: (&str, &str) = ("model", "model");
/// Likewise.
pub(super) const OUTPUT: (&str, &str) = ("output/data", "output");

/// Whose artifacts they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whose<'a> {
    pub(super) job_name: &'a str,
    pub(super) cluster: &'a Cluster,
}

impl Whose<'_> {
    /// The first host's are where the platform puts a job's, the others' beneath their names.
    fn folder(self, prefix: &str) -> String {
        let prefix = prefix.trim_end_matches('/');
        let slash = if prefix.is_empty() { "" } else { "/" };
        let root = format!("{prefix}{slash}{}/output/", self.job_name);
        match self.cluster.rank {
            0 => root,
            _ => format!("{root}{}/", self.cluster.current()),
        }
    }
}

/// Uploads those of `which` that hold anything; gives where they went.
pub(super) fn upload_all(
    client: &S3Client,
    output: &OutputSpec,
    whose: Whose<'_>,
    base: &Path,
    which: &[(&str, &str)],
    cutoff: &Cutoff,
) -> Result<Vec<String>> {
    let root = whose.folder(output.uri.key());
    let mut uploaded = Vec::new();
    for (directory, name) in which {
        let directory = base.join(directory);
        let is_empty = std::fs::read_dir(&directory).map_or(true, |mut all| all.next().is_none());
        if is_empty {
            continue;
        }
        let uri = |name: String| output.uri.with_key(format!("{root}{name}"));
        if output.is_packed {
            let uri = uri(format!("{name}.tar.gz"));
            packed(client, &uri, directory, cutoff)?;
            uploaded.push(uri.to_string());
        } else {
            let folder = uri(format!("{name}/"));
            plain(client, &folder, &directory, cutoff)?;
            uploaded.push(folder.to_string());
        }
    }
    Ok(uploaded)
}

fn packed(client: &S3Client, uri: &ObjectUri, directory: PathBuf, cutoff: &Cutoff) -> Result<()> {
    let failed = |error| Error::io(&directory, error);
    let (archive, packer) = pack(directory.clone()).map_err(failed)?;
    let mut packing = Ok(());
    let sent = upload(client, uri, archive, cutoff, || {
        packing = packer
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the packing died")));
        packing.is_ok()
    });
    let sent = runtime::handle().block_on(sent)?;
    packing.map_err(failed)?;
    match sent {
        Uploaded::Whole(_) => Ok(()),
        Uploaded::CutOff => Err(out_of_time(uri)),
        Uploaded::GivenUp => Err(Error::Internal {
            what: format!("the packing of {}", directory.display()),
        }),
    }
}

/// The archive of a directory's contents, as it is packed.
fn pack(directory: PathBuf) -> io::Result<(PipeReader, JoinHandle<io::Result<()>>)> {
    let (reader, writer) = io::pipe()?;
    let packer = std::thread::Builder::new().name("pack".into());
    let packer = packer.spawn(move || write_archive(&directory, writer))?;
    Ok((reader, packer))
}

fn write_archive(directory: &Path, to: PipeWriter) -> io::Result<()> {
    let gzip = GzEncoder::new(io::BufWriter::new(to), Compression::new(LEVEL));
    let mut archive = tar::Builder::new(gzip);
    archive.follow_symlinks(false);
    // Names relative to the directory: `weights.pt`, not `model/weights.pt`.
    archive.append_dir_all("", directory)?;
    archive.into_inner()?.finish()?.flush()
}

fn out_of_time(uri: &ObjectUri) -> Error {
    Error::OutOfTime {
        what: format!("the upload of {uri}"),
    }
}

fn plain(client: &S3Client, folder: &ObjectUri, directory: &Path, cutoff: &Cutoff) -> Result<()> {
    for path in super::checkpoint::files_below(directory)? {
        let local = directory.join(&path);
        let file = std::fs::File::open(&local).map_err(|error| Error::io(&local, error))?;
        let uri = folder.with_key(format!("{}{path}", folder.key()));
        let sent = runtime::handle().block_on(upload(client, &uri, file, cutoff, || true))?;
        if sent == Uploaded::CutOff {
            return Err(out_of_time(&uri));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn hosts_do_not_overwrite_each_others_artifacts() {
        let folder = |rank, prefix| {
            let cluster = Cluster::numbered(rank, 2);
            let job_name = "job";
            let cluster = &cluster;
            Whose { job_name, cluster }.folder(prefix)
        };
        assert_eq!(folder(0, "out/"), "out/job/output/");
        assert_eq!(folder(1, "out"), "out/job/output/algo-2/");
        assert_eq!(folder(1, ""), "job/output/algo-2/");
    }

    #[test]
    fn an_archive_holds_the_directorys_contents_by_relative_names() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("weights.pt"), [7; 70_000]).unwrap();
        std::fs::write(dir.path().join("sub/config"), "x").unwrap();
        let (reader, packer) = pack(dir.path().to_owned()).unwrap();
        let mut archive = tar::Archive::new(GzDecoder::new(reader));
        let mut found = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            found.insert(path.trim_end_matches('/').to_owned(), bytes.len());
        }
        // The end of the archive is not the end of the stream.
        let mut rest = archive.into_inner();
        io::copy(&mut rest, &mut io::sink()).unwrap();
        packer.join().unwrap().unwrap();
        assert_eq!((found["weights.pt"], found["sub/config"]), (70_000, 1));
    }
}
