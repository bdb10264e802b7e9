//! A CreateTrainingJob request as the AWS CLI and boto3 take it, read and not judged.
//!
//! Only what a job outside SageMaker can act on has a field. Members of the API that have no meaning here, and members
//! that are not of the API, are kept by name, so that a note can say so: a misspelt `InputDataConfg` must not pass in
//! silence. Names and shapes are those of botocore's `sagemaker/2017-07-24/service-2.json`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// Members of the API that change nothing outside SageMaker.
const WITHOUT_EFFECT: [&str; 21] = [
    "RoleArn",
    "Tags",
    "VpcConfig",
    "EnableNetworkIsolation",
    "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining",
    "DebugHookConfig",
    "DebugRuleConfigurations",
    "TensorBoardOutputConfig",
    "ExperimentConfig",
    "ProfilerConfig",
    "ProfilerRuleConfigurations",
    "RetryStrategy",
    "RemoteDebugConfig",
    "InfraCheckConfig",
    "SessionChainingConfig",
    "ServerlessJobConfig",
    "MlflowConfig",
    "ModelPackageConfig",
    "TrainingJobArn",
    "TrainingJobStatus",
];

type Rest = BTreeMap<String, Value>;

/// The request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Request {
    pub(super) training_job_name: Option<String>,
    pub(super) hyper_parameters: BTreeMap<String, String>,
    pub(super) algorithm_specification: Algorithm,
    pub(super) input_data_config: Vec<Channel>,
    pub(super) output_data_config: Option<Output>,
    pub(super) resource_config: Resources,
    pub(super) stopping_condition: Stopping,
    pub(super) checkpoint_config: Option<Checkpoint>,
    pub(super) environment: BTreeMap<String, String>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Algorithm {
    pub(super) training_input_mode: Option<String>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Channel {
    pub(super) channel_name: String,
    pub(super) data_source: DataSource,
    pub(super) content_type: Option<String>,
    pub(super) compression_type: Option<String>,
    pub(super) record_wrapper_type: Option<String>,
    pub(super) input_mode: Option<String>,
    pub(super) shuffle_config: Option<Shuffle>,
    /// Not of the public API; seen in echoes of requests. Without effect.
    #[serde(rename = "EnableFFM", alias = "enableFFM")]
    _enable_ffm: Option<Value>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct DataSource {
    pub(super) s3_data_source: Option<S3DataSource>,
    pub(super) file_system_data_source: Option<Value>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct S3DataSource {
    pub(super) s3_data_type: Option<String>,
    pub(super) s3_uri: String,
    pub(super) s3_data_distribution_type: Option<String>,
    pub(super) attribute_names: Vec<String>,
    pub(super) instance_group_names: Vec<String>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Shuffle {
    pub(super) seed: i64,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Output {
    pub(super) s3_output_path: String,
    pub(super) compression_type: Option<String>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Resources {
    pub(super) instance_type: Option<String>,
    pub(super) instance_count: Option<usize>,
    pub(super) instance_groups: Vec<Group>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Group {
    pub(super) instance_type: String,
    pub(super) instance_count: usize,
    pub(super) instance_group_name: String,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Stopping {
    pub(super) max_runtime_in_seconds: Option<u64>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Checkpoint {
    pub(super) s3_uri: String,
    pub(super) local_path: Option<String>,
    #[serde(flatten)]
    rest: Rest,
}

/// Takes out members that are null, which SDKs write for absent ones; whether there were any.
fn drop_nulls(value: &mut Value) -> bool {
    match value {
        Value::Object(members) => {
            let before = members.len();
            members.retain(|_, member| !member.is_null());
            let had_some = members.len() < before;
            let inner = members.values_mut().map(drop_nulls);
            inner.fold(had_some, |any, found| any | found)
        }
        Value::Array(items) => items
            .iter_mut()
            .map(drop_nulls)
            .fold(false, |any, found| any | found),
        _ => false,
    }
}

impl Request {
    /// Reads a request; `name` is what errors call it.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self> {
        let read = || -> serde_json::Result<Self> {
            let mut value: Value = serde_json::from_str(text)?;
            match drop_nulls(&mut value) {
                true => serde_json::from_value(value),
                // From the text, so that an error tells the line.
                false => serde_json::from_str(text),
            }
        };
        read().map_err(|error| {
            Error::unusable(
                name,
                format!("not a CreateTrainingJob request: {error}"),
                "give the JSON that `aws sagemaker create-training-job --cli-input-json` takes",
            )
        })
    }

    /// What is there and changes nothing, one sentence per kind.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut unused = Vec::new();
        let mut unknown = Vec::new();
        for name in self.rest.keys() {
            match WITHOUT_EFFECT.contains(&name.as_str()) {
                true => unused.push(name.clone()),
                false => unknown.push(name.clone()),
            }
        }
        let mut inner = |of: &str, rest: &Rest| {
            unused.extend(rest.keys().map(|name| format!("{of}.{name}")));
        };
        inner("AlgorithmSpecification", &self.algorithm_specification.rest);
        inner("ResourceConfig", &self.resource_config.rest);
        inner("StoppingCondition", &self.stopping_condition.rest);
        if let Some(output) = &self.output_data_config {
            inner("OutputDataConfig", &output.rest);
        }
        if let Some(checkpoint) = &self.checkpoint_config {
            inner("CheckpointConfig", &checkpoint.rest);
        }
        for (at, group) in self.resource_config.instance_groups.iter().enumerate() {
            inner(&format!("ResourceConfig.InstanceGroups.{at}"), &group.rest);
        }
        for channel in &self.input_data_config {
            let of = format!("InputDataConfig.{}", channel.channel_name);
            inner(&of, &channel.rest);
            if let Some(shuffle) = &channel.shuffle_config {
                inner(&format!("{of}.ShuffleConfig"), &shuffle.rest);
            }
            inner(&format!("{of}.DataSource"), &channel.data_source.rest);
            if let Some(source) = &channel.data_source.s3_data_source {
                inner(&format!("{of}.DataSource.S3DataSource"), &source.rest);
            }
        }
        let mut notes = Vec::new();
        if !unused.is_empty() {
            notes.push(format!("without effect here: {}", unused.join(", ")));
        }
        if !unknown.is_empty() {
            let unknown = unknown.join(", ");
            notes.push(format!(
                "not fields of CreateTrainingJob, ignored: {unknown}"
            ));
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_absent_and_what_is_unknown_is_named_at_any_depth() {
        let text = r#"{"TrainingJobName": null, "HyperParameters": null, "VpcConfig": null,
            "CheckpointConfig": {"S3Uri": "s3://b/c", "LocalPth": "/x", "LocalPath": null},
            "ResourceConfig": {"InstanceGroups": [{"InstanceGroupName": "g", "InstanceCont": 2}]},
            "InputDataConfig": [{"ChannelName": "t", "InputMode": null,
              "ShuffleConfig": {"Seed": 1, "Sed": 2}}]}"#;
        let request = Request::parse("job.json", text).unwrap();
        assert_eq!(request.training_job_name, None);
        let note = request.notes().join("; ");
        for name in [
            "CheckpointConfig.LocalPth",
            "ResourceConfig.InstanceGroups.0.InstanceCont",
            "InputDataConfig.t.ShuffleConfig.Sed",
        ] {
            assert!(note.contains(name), "{note}");
        }
        assert!(!note.contains("VpcConfig"), "{note}");
        let error = Request::parse("job.json", "{\n\"Environment\": 3}").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
