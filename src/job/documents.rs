//! The three files below `input/config`, in the shape that containers were written for.
//!
//! Sources: the developer guide's page "How Amazon SageMaker provides training information", and the files that a real
//! job logged in 2022 (XGBoost 1.5-1). Where the two differ, the job's files win: `current_group_name`, for one.

use std::collections::BTreeMap;

use serde::Serialize;

use super::cluster::Cluster;
use super::spec::{InstanceGroup, JobSpec, mode_of};
use crate::error::{Error, Result};
use crate::input::{Channel, InputMode};

/// What a host is called whose type nobody named: SageMaker's local mode says so, too.
const UNKNOWN_INSTANCE: &str = "local";

/// The group of jobs without groups.
const ONE_GROUP: &str = "homogeneousCluster";

/// What `inputdataconfig.json` calls FastFile mode. The guide says `File`, "for backward compatibility"; an older
/// edition of it said `FastFile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FastFileAs {
    /// `File`.
    #[default]
    File,
    /// `FastFile`.
    FastFile,
}

/// The texts of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// `hyperparameters.json`.
    pub hyperparameters: String,
    /// `inputdataconfig.json`.
    pub input_data: String,
    /// `resourceconfig.json`.
    pub resources: String,
}

impl Documents {
    /// Writes them for one host.
    pub fn new(
        spec: &JobSpec,
        cluster: &Cluster,
        network_interface: &str,
        fast_file: FastFileAs,
    ) -> Result<Self> {
        let channels: BTreeMap<_, _> = spec
            .channels
            .iter()
            .map(|channel| (channel.name.as_str(), InputData::of(channel, fast_file)))
            .collect();
        Ok(Self {
            hyperparameters: text(&spec.hyperparameters)?,
            input_data: text(&channels)?,
            resources: text(&Resources::new(spec, cluster, network_interface)?)?,
        })
    }
}

fn text(document: &impl Serialize) -> Result<String> {
    serde_json::to_string(document).map_err(|error| Error::Internal {
        what: format!("a document of the job ({error})"),
    })
}

/// A channel of `inputdataconfig.json`. No URI, no compression, no attributes, no seed: the platform tells none.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct InputData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    training_input_mode: &'static str,
    s3_distribution_type: &'static str,
    record_wrapper_type: &'static str,
}

impl<'a> InputData<'a> {
    fn of(channel: &'a Channel, fast_file: FastFileAs) -> Self {
        Self {
            content_type: channel.content_type.as_deref(),
            training_input_mode: match (mode_of(channel), fast_file) {
                (InputMode::Pipe, _) => "Pipe",
                (InputMode::FastFile, FastFileAs::FastFile) => "FastFile",
                (InputMode::File | InputMode::FastFile, _) => "File",
            },
            s3_distribution_type: channel.distribution.as_str(),
            record_wrapper_type: channel.record_wrapper.as_str(),
        }
    }
}

/// `resourceconfig.json`.
#[derive(Debug, Serialize)]
struct Resources<'a> {
    current_host: &'a str,
    current_instance_type: &'a str,
    current_group_name: &'a str,
    hosts: &'a [String],
    instance_groups: Vec<Group<'a>>,
    network_interface_name: &'a str,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Group<'a> {
    pub(super) instance_group_name: &'a str,
    pub(super) instance_type: &'a str,
    pub(super) hosts: Vec<&'a str>,
}

impl<'a> Resources<'a> {
    fn new(spec: &'a JobSpec, cluster: &'a Cluster, network_interface: &'a str) -> Result<Self> {
        let groups = instance_groups(spec, cluster)?;
        let current = cluster.current();
        let mine = groups.iter().find(|group| group.hosts.contains(&current));
        let (group, kind) = mine.map_or((ONE_GROUP, UNKNOWN_INSTANCE), |group| {
            (group.instance_group_name, group.instance_type)
        });
        Ok(Self {
            current_host: current,
            current_instance_type: kind,
            current_group_name: group,
            hosts: &cluster.hosts,
            instance_groups: groups,
            network_interface_name: network_interface,
        })
    }
}

/// The groups with their hosts: `algo-1` and the next ones belong to the first, as they are numbered.
pub(super) fn instance_groups<'a>(
    spec: &'a JobSpec,
    cluster: &'a Cluster,
) -> Result<Vec<Group<'a>>> {
    if spec.groups.is_empty() {
        return Ok(vec![Group {
            instance_group_name: ONE_GROUP,
            instance_type: spec.instance_type.as_deref().unwrap_or(UNKNOWN_INSTANCE),
            hosts: cluster.hosts.iter().map(String::as_str).collect(),
        }]);
    }
    let wanted: usize = spec.groups.iter().map(|group| group.count).sum();
    if wanted != cluster.hosts.len() {
        return Err(Error::config(
            "ResourceConfig.InstanceGroups",
            format!(
                "count {wanted} hosts together, and the job has {}",
                cluster.hosts.len()
            ),
        ));
    }
    let mut hosts: Vec<&str> = cluster.hosts.iter().map(String::as_str).collect();
    hosts.sort_by_key(|host| (host.len(), *host));
    let mut hosts = hosts.into_iter();
    let take = |group: &'a InstanceGroup| Group {
        instance_group_name: &group.name,
        instance_type: &group.instance_type,
        hosts: hosts.by_ref().take(group.count).collect(),
    };
    Ok(spec.groups.iter().map(take).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn documents(request: &str, cluster: &Cluster) -> Documents {
        let spec = JobSpec::from_request("job.json", request).unwrap();
        spec.validate().unwrap();
        Documents::new(&spec, cluster, "eth0", FastFileAs::File).unwrap()
    }

    fn json_of(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    /// A request as boto3 sends it for the developer guide's example.
    const GUIDE: &str = r#"{
        "TrainingJobName": "guide",
        "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
        "RoleArn": "arn:aws:iam::1:role/r",
        "HyperParameters": {"num_round": "128", "eta": "0.001"},
        "InputDataConfig": [
            {"ChannelName": "train", "ContentType": "text/libsvm", "CompressionType": "None",
             "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/train",
              "S3DataDistributionType": "FullyReplicated"}}, "EnableFFM": false},
            {"ChannelName": "validation", "InputMode": "FastFile",
             "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/val/"}}}],
        "OutputDataConfig": {"S3OutputPath": "s3://b/out"},
        "ResourceConfig": {"InstanceType": "ml.c5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
        "Enviroment": {}
    }"#;

    /// J2: the three files are those of the developer guide and of a job that ran, field by field.
    #[test]
    fn the_documents_are_those_of_the_platform() {
        let documents = documents(GUIDE, &Cluster::numbered(0, 1));
        assert_eq!(
            documents.hyperparameters,
            r#"{"eta":"0.001","num_round":"128"}"#
        );
        assert_eq!(
            documents.input_data,
            r#"{"train":{"ContentType":"text/libsvm","TrainingInputMode":"File","S3DistributionType":"FullyReplicated","RecordWrapperType":"None"},"validation":{"TrainingInputMode":"File","S3DistributionType":"FullyReplicated","RecordWrapperType":"None"}}"#
        );
        assert_eq!(
            documents.resources,
            r#"{"current_host":"algo-1","current_instance_type":"ml.c5.xlarge","current_group_name":"homogeneousCluster","hosts":["algo-1"],"instance_groups":[{"instance_group_name":"homogeneousCluster","instance_type":"ml.c5.xlarge","hosts":["algo-1"]}],"network_interface_name":"eth0"}"#
        );
    }

    #[test]
    fn pipe_and_sharding_are_told_and_fast_file_is_called_as_one_wants() {
        let mut spec = JobSpec::default();
        for text in [
            "a=s3://b/,mode=pipe,record-wrapper=recordio,distribution=sharded",
            "b=s3://b/,mode=fastfile",
        ] {
            spec.set_channel(text.parse().unwrap());
        }
        let cluster = Cluster::numbered(0, 1);
        let documents = Documents::new(&spec, &cluster, "eth0", FastFileAs::FastFile).unwrap();
        let told = json_of(&documents.input_data);
        assert_eq!(
            told["a"],
            json!({"TrainingInputMode": "Pipe", "S3DistributionType": "ShardedByS3Key", "RecordWrapperType": "RecordIO"})
        );
        assert_eq!(told["b"]["TrainingInputMode"], "FastFile");
        assert_eq!(documents.hyperparameters, "{}");
    }

    #[test]
    fn hosts_are_given_to_groups_in_the_order_of_their_numbers() {
        let request = r#"{"ResourceConfig": {"InstanceGroups": [
            {"InstanceType": "ml.p4d", "InstanceCount": 2, "InstanceGroupName": "gpu"},
            {"InstanceType": "ml.c5", "InstanceCount": 9, "InstanceGroupName": "cpu"}]}}"#;
        let told = json_of(&documents(request, &Cluster::numbered(2, 11)).resources);
        // `algo-11` stands third among the names, and is the last of the hosts.
        assert_eq!(told["current_host"], "algo-11");
        assert_eq!(told["current_group_name"], "cpu");
        assert_eq!(told["current_instance_type"], "ml.c5");
        assert_eq!(
            told["instance_groups"][0]["hosts"],
            json!(["algo-1", "algo-2"])
        );
        let spec = JobSpec::from_request("job.json", request).unwrap();
        let two = Cluster::numbered(0, 2);
        assert!(Documents::new(&spec, &two, "eth0", FastFileAs::File).is_err());
    }

    /// J4: what of a request has no effect is accepted, and named.
    #[test]
    fn what_has_no_effect_is_noted_and_a_misspelt_field_too() {
        let notes = JobSpec::from_request("job.json", GUIDE).unwrap().notes;
        assert_eq!(notes.len(), 2, "{notes:?}");
        for name in [
            "RoleArn",
            "AlgorithmSpecification.TrainingImage",
            "ResourceConfig.VolumeSizeInGB",
        ] {
            assert!(notes[0].contains(name), "{notes:?}");
        }
        assert!(notes[1].contains("Enviroment"), "{notes:?}");
        let error = JobSpec::from_request("job.json", r#"{"HyperParameters": {"a": 1}}"#);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("job.json") && error.contains("expected a string"),
            "{error}"
        );
    }
}
