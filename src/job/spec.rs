//! The job: a request and what was typed beside it, as one set of values that fit together.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::check;
use super::request::{self, Request};
use crate::error::{Error, Result};
use crate::input::{Channel, InputMode, ShuffleConfig, Source};
use crate::object::ObjectUri;

/// Where the platform mounts everything; paths of a request below it follow the base directory.
pub(super) const PLATFORM_BASE: &str = "/opt/ml";

/// Where checkpoints go in S3, and where they are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointSpec {
    /// `s3://bucket/prefix`.
    pub uri: ObjectUri,
    /// The directory; none for `checkpoints` below the base directory.
    pub local_path: Option<PathBuf>,
}

/// Where the model and the output go when the job has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputSpec {
    /// `s3://bucket/prefix`; the job's name and `output/` follow.
    pub uri: ObjectUri,
    /// As `model.tar.gz` and `output.tar.gz`; otherwise as the files that they are.
    pub is_packed: bool,
}

/// Instances of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceGroup {
    /// Its name.
    pub name: String,
    /// `ml.p4d.24xlarge` and the like.
    pub instance_type: String,
    /// How many.
    pub count: usize,
}

/// A training job.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct JobSpec {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What `hyperparameters.json` holds.
    pub hyperparameters: BTreeMap<String, String>,
    /// Its inputs; each has a mode.
    pub channels: Vec<Channel>,
    /// Variables of the request.
    pub environment: BTreeMap<String, String>,
    /// Where checkpoints are kept.
    pub checkpoint: Option<CheckpointSpec>,
    /// Where model and output go.
    pub output: Option<OutputSpec>,
    /// When the job is stopped at the latest.
    pub max_runtime: Option<Duration>,
    /// The type of all instances, where there are no groups.
    pub instance_type: Option<String>,
    /// How many instances there are, if the request says so.
    pub instance_count: Option<usize>,
    /// The instances by group.
    pub groups: Vec<InstanceGroup>,
    /// What of the request has no effect.
    pub notes: Vec<String>,
}

impl JobSpec {
    /// Reads a CreateTrainingJob request; `name` is what errors call it. Nothing of it is checked against the rest yet:
    /// [`validate`](Self::validate) does, when what was typed is in.
    pub fn from_request(name: &str, text: &str) -> Result<Self> {
        let request = Request::parse(name, text)?;
        let notes = request.notes();
        let mode = match &request.algorithm_specification.training_input_mode {
            Some(mode) => word("AlgorithmSpecification.TrainingInputMode", mode)?,
            // The service's default.
            None => InputMode::File,
        };
        let channels = request.input_data_config.into_iter().enumerate();
        Ok(Self {
            name: request.training_job_name,
            hyperparameters: request.hyper_parameters,
            channels: channels
                .map(|(at, channel)| channel_of(at, channel, mode))
                .collect::<Result<_>>()?,
            environment: request.environment,
            checkpoint: request.checkpoint_config.map(checkpoint_of).transpose()?,
            output: request.output_data_config.map(output_of).transpose()?,
            max_runtime: request
                .stopping_condition
                .max_runtime_in_seconds
                .map(Duration::from_secs),
            instance_type: request.resource_config.instance_type,
            instance_count: request.resource_config.instance_count,
            groups: request
                .resource_config
                .instance_groups
                .into_iter()
                .map(|group| InstanceGroup {
                    name: group.instance_group_name,
                    instance_type: group.instance_type,
                    count: group.instance_count,
                })
                .collect(),
            notes,
        })
    }

    /// Puts a channel in, in place of one of its name. Without a mode it is a File channel, the service's default.
    pub fn set_channel(&mut self, mut channel: Channel) {
        channel.mode.get_or_insert(InputMode::File);
        match self.channels.iter_mut().find(|c| c.name == channel.name) {
            Some(known) => *known = channel,
            None => self.channels.push(channel),
        }
    }

    /// Keeps checkpoints at `uri`; `field` is what errors name.
    pub fn set_checkpoint(&mut self, field: &str, uri: &str) -> Result<()> {
        let local_path = self.checkpoint.take().and_then(|before| before.local_path);
        let uri = s3(field, uri)?;
        self.checkpoint = Some(CheckpointSpec { uri, local_path });
        Ok(())
    }

    /// Uploads model and output below `uri`; `field` is what errors name.
    pub fn set_output(&mut self, field: &str, uri: &str) -> Result<()> {
        let is_packed = self.output.as_ref().is_none_or(|before| before.is_packed);
        let uri = s3(field, uri)?;
        self.output = Some(OutputSpec { uri, is_packed });
        Ok(())
    }

    /// Refuses what the service would refuse, in its words where they are known, and what cannot work.
    pub fn validate(&self) -> Result<()> {
        check::job(self)
    }
}

/// How a channel is delivered.
pub(super) fn mode_of(channel: &Channel) -> InputMode {
    channel.mode.unwrap_or(InputMode::File)
}

fn channel_of(at: usize, channel: request::Channel, default_mode: InputMode) -> Result<Channel> {
    let name = channel.channel_name;
    check::channel_name(at, &name)?;
    let field = |member: &str| format!("InputDataConfig.{name}.{member}");
    if channel.data_source.file_system_data_source.is_some() {
        return Err(Error::unusable(
            field("DataSource.FileSystemDataSource"),
            "EFS and FSx are not mounted here",
            "mount the file system, and give the channel an S3Uri such as file:///mnt/data/",
        ));
    }
    let source = channel.data_source.s3_data_source.ok_or_else(|| {
        Error::config(
            field("DataSource"),
            "has no S3DataSource: give one with an S3Uri",
        )
    })?;
    let of_source = |member: &str| field(&format!("DataSource.S3DataSource.{member}"));
    let uri = Source::literal(&source.s3_uri);
    let uri = uri.map_err(|error: Error| Error::config(of_source("S3Uri"), error.to_string()))?;
    let mut spec = Channel::new(name.clone(), uri)?;
    spec.mode = Some(default_mode);
    if let Some(mode) = given(&channel.input_mode) {
        spec.mode = Some(word(&field("InputMode"), mode)?);
    }
    if let Some(text) = given(&source.s3_data_type) {
        spec.data_type = word(&of_source("S3DataType"), text)?;
    }
    if let Some(text) = given(&source.s3_data_distribution_type) {
        spec.distribution = word(&of_source("S3DataDistributionType"), text)?;
    }
    if let Some(text) = given(&channel.compression_type) {
        spec.compression = word(&field("CompressionType"), text)?;
    }
    if let Some(text) = given(&channel.record_wrapper_type) {
        spec.record_wrapper = word(&field("RecordWrapperType"), text)?;
    }
    spec.content_type = given(&channel.content_type).map(str::to_owned);
    spec.shuffle = channel
        .shuffle_config
        .map(|shuffle| ShuffleConfig { seed: shuffle.seed });
    spec.attribute_names = source.attribute_names;
    spec.instance_groups = source.instance_group_names;
    Ok(spec)
}

/// boto3 takes an empty word for a missing one.
fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// One of a type's words; an error names the field of the request.
fn word<T: std::str::FromStr<Err = Error>>(field: &str, text: &str) -> Result<T> {
    text.parse().map_err(|error| match error {
        Error::Config { reason, .. } => Error::config(field, reason),
        other => other,
    })
}

fn checkpoint_of(checkpoint: request::Checkpoint) -> Result<CheckpointSpec> {
    Ok(CheckpointSpec {
        uri: s3("CheckpointConfig.S3Uri", &checkpoint.s3_uri)?,
        local_path: checkpoint.local_path.map(PathBuf::from),
    })
}

fn output_of(output: request::Output) -> Result<OutputSpec> {
    let field = "OutputDataConfig.CompressionType";
    Ok(OutputSpec {
        uri: s3("OutputDataConfig.S3OutputPath", &output.s3_output_path)?,
        is_packed: match output.compression_type.as_deref() {
            None | Some("" | "GZIP") => true,
            Some("NONE") => false,
            Some(other) => {
                return Err(Error::config(
                    field,
                    format!("{other:?} is none of its values: use GZIP or NONE"),
                ));
            }
        },
    })
}

/// A place in S3 that is written to; `field` is what errors name.
pub(super) fn s3(field: &str, text: &str) -> Result<ObjectUri> {
    let uri: Result<ObjectUri> = text.parse();
    match uri {
        Ok(uri) if text.starts_with("s3://") => Ok(uri),
        _ => Err(Error::config(
            field,
            format!("{text:?} is no place in S3: use s3://bucket/prefix"),
        )),
    }
}
