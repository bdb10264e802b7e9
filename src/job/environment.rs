//! The environment of the trainer: what the platform sets for any container, and, if asked for, what the training toolkit
//! sets for its user's script.
//!
//! The platform sets `TRAINING_JOB_NAME`, `TRAINING_JOB_ARN` and the request's `Environment`, nothing else. The `SM_*`
//! variables are the toolkit's (aws/sagemaker-training-toolkit `environment.py` and `mapping.py`): a name is `SM_` and the
//! key in capitals, otherwise unchanged; text stands as it is, everything else as Python's
//! `json.dumps(sort_keys=True, separators=(",", ":"))` writes it.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value, json};

use super::cluster::Cluster;
use super::documents::{Documents, instance_groups};
use super::spec::JobSpec;
use crate::error::Result;

/// Hyperparameters of the toolkit, not of the user's script.
const FRAMEWORK_PREFIX: &str = "sagemaker_";

/// Those of them that the toolkit uses up itself (`SAGEMAKER_HYPERPARAMETERS` of its `params.py`); all others are for the
/// framework.
const TOOLKITS_OWN: [&str; 9] = [
    "sagemaker_program",
    "sagemaker_submit_directory",
    "sagemaker_enable_cloudwatch_metrics",
    "sagemaker_region",
    "sagemaker_container_log_level",
    "sagemaker_job_name",
    "default_user_module_name",
    "_tuning_objective_metric",
    "sagemaker_s3_output",
];

/// With any of these the toolkit starts processes on all hosts of the current instance group.
const DISTRIBUTED: [&str; 6] = [
    "sagemaker_mpi_enabled",
    "sagemaker_parameter_server_enabled",
    "sagemaker_distributed_dataparallel_enabled",
    "sagemaker_pytorch_ddp_enabled",
    "sagemaker_pytorch_xla_multi_worker_enabled",
    "sagemaker_multi_worker_mirrored_strategy_enabled",
];

/// What the toolkit logs at unless told otherwise: `logging.INFO`.
const DEFAULT_LOG_LEVEL: u32 = 20;

/// What the environment tells beside the request.
#[derive(Debug, Clone)]
pub(super) struct Facts<'a> {
    pub(super) job_name: &'a str,
    pub(super) region: &'a str,
    /// The base directory, `/opt/ml` on the platform.
    pub(super) base: &'a str,
    pub(super) network_interface: &'a str,
    pub(super) cpus: usize,
    pub(super) gpus: usize,
}

/// What the platform sets. The request's own variables come last: whoever names one wants it so.
pub(super) fn platform(spec: &JobSpec, facts: &Facts<'_>) -> BTreeMap<String, String> {
    let (name, region) = (facts.job_name, facts.region);
    let mut variables = BTreeMap::from([
        ("TRAINING_JOB_NAME".to_owned(), name.to_owned()),
        (
            "TRAINING_JOB_ARN".to_owned(),
            // No account: there is none that this job belongs to.
            format!("arn:aws:sagemaker:{region}:000000000000:training-job/{name}"),
        ),
    ]);
    variables.extend(spec.environment.clone());
    variables
}

/// What the toolkit sets.
pub(super) fn toolkit(
    spec: &JobSpec,
    cluster: &Cluster,
    documents: &Documents,
    facts: &Facts<'_>,
) -> Result<BTreeMap<String, String>> {
    let split = Hyperparameters::of(spec);
    let keys = keys(spec, cluster, documents, facts, &split)?;
    let mut variables = BTreeMap::new();
    let mut set = |key: &str, value: &Value| {
        variables.insert(format!("SM_{}", key.to_uppercase()), written(value));
    };
    for (key, value) in &keys {
        set(key, value);
    }
    set("training_env", &training_env(&keys, facts, &split));
    for (name, value) in &split.user {
        set(&format!("hp_{name}"), value);
    }
    Ok(variables)
}

/// The hyperparameters as the toolkit reads them: each is JSON if it can be, otherwise the text.
struct Hyperparameters {
    user: Map<String, Value>,
    framework: Map<String, Value>,
}

impl Hyperparameters {
    fn of(spec: &JobSpec) -> Self {
        let read = spec.hyperparameters.iter().map(|(name, text)| {
            let value = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
            (name.clone(), value)
        });
        let is_framework =
            |name: &str| name.starts_with(FRAMEWORK_PREFIX) || TOOLKITS_OWN.contains(&name);
        let (framework, user) = read.partition(|(name, _)| is_framework(name));
        Self { user, framework }
    }

    /// What is left of the framework's when the toolkit has taken its own.
    fn additional(&self) -> Map<String, Value> {
        let all = self.framework.clone().into_iter();
        all.filter(|(name, _)| !TOOLKITS_OWN.contains(&name.as_str()))
            .collect()
    }

    /// The instance groups that the toolkit starts processes in.
    fn distribution_groups(&self, current: Option<&str>) -> Value {
        if let Some(groups) = self.framework.get("sagemaker_distribution_instance_groups") {
            return groups.clone();
        }
        let is_set = |name: &&str| self.framework.get(*name).is_some_and(is_true);
        match DISTRIBUTED.iter().any(is_set) {
            true => json!([current.unwrap_or("homogeneousCluster")]),
            false => json!([]),
        }
    }

    fn framework_text(&self, name: &str) -> Option<&str> {
        self.framework.get(name).and_then(Value::as_str)
    }
}

/// As Python takes it.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
    }
}

fn keys(
    spec: &JobSpec,
    cluster: &Cluster,
    documents: &Documents,
    facts: &Facts<'_>,
    split: &Hyperparameters,
) -> Result<Map<String, Value>> {
    let document = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
    let resources: Value = document(&documents.resources);
    let groups = instance_groups(spec, cluster)?;
    let current = cluster.current();
    let mine = groups.iter().find(|group| group.hosts.contains(&current));
    let group_names: Vec<_> = groups
        .iter()
        .map(|group| group.instance_group_name)
        .collect();
    let by_name: Map<_, _> = groups
        .iter()
        .map(|group| (group.instance_group_name.to_owned(), json!(group)))
        .collect();
    let base = facts.base;
    let entry_point = split.framework_text("sagemaker_program");
    let log_level = split.framework.get("sagemaker_container_log_level");
    let mut channels: Vec<_> = spec.channels.iter().map(|channel| &channel.name).collect();
    channels.sort();
    let mut keys = Map::new();
    for (key, value) in [
        ("hosts", json!(cluster.hosts)),
        ("network_interface_name", json!(facts.network_interface)),
        ("hps", json!(split.user)),
        ("user_entry_point", json!(entry_point)),
        ("framework_params", json!(split.additional())),
        ("resource_config", resources),
        ("input_data_config", document(&documents.input_data)),
        ("output_data_dir", json!(format!("{base}/output/data"))),
        ("channels", json!(channels)),
        ("current_host", json!(current)),
        (
            "current_instance_type",
            json!(mine.map(|group| group.instance_type)),
        ),
        (
            "current_instance_group",
            json!(mine.map(|group| group.instance_group_name)),
        ),
        (
            "current_instance_group_hosts",
            json!(mine.map(|group| group.hosts.clone()).unwrap_or_default()),
        ),
        ("instance_groups", json!(group_names)),
        ("instance_groups_dict", Value::Object(by_name)),
        (
            "distribution_instance_groups",
            split.distribution_groups(mine.map(|group| group.instance_group_name)),
        ),
        ("is_hetero", json!(groups.len() > 1)),
        ("module_name", json!(entry_point.map(module_name))),
        (
            "log_level",
            log_level.cloned().unwrap_or(json!(DEFAULT_LOG_LEVEL)),
        ),
        ("framework_module", Value::Null),
        ("input_dir", json!(format!("{base}/input"))),
        ("input_config_dir", json!(format!("{base}/input/config"))),
        ("output_dir", json!(format!("{base}/output"))),
        ("num_cpus", json!(facts.cpus)),
        ("num_gpus", json!(facts.gpus)),
        ("num_neurons", json!(0)),
        ("model_dir", json!(format!("{base}/model"))),
        (
            "module_dir",
            json!(
                split
                    .framework_text("sagemaker_submit_directory")
                    .map_or_else(|| format!("{base}/code"), str::to_owned)
            ),
        ),
        ("user_args", json!(user_args(&split.user))),
        (
            "output_intermediate_dir",
            json!(format!("{base}/output/intermediate")),
        ),
    ] {
        keys.insert(key.into(), value);
    }
    for channel in channels {
        // In Pipe mode, too, although only `{path}_0` and so on exist there.
        let path = format!("{base}/input/data/{channel}");
        keys.insert(format!("channel_{channel}"), json!(path));
    }
    Ok(keys)
}

/// `train.py` is module `train`.
fn module_name(entry_point: &str) -> String {
    entry_point
        .strip_suffix(".py")
        .unwrap_or(entry_point)
        .to_owned()
}

/// `--name value`, sorted; as the toolkit's `to_cmd_args` has it, a name of one letter gets one dash.
fn user_args(hyperparameters: &Map<String, Value>) -> Vec<String> {
    let pair = |(name, value): (&String, &Value)| {
        let dashes = if name.chars().count() == 1 { "-" } else { "--" };
        [format!("{dashes}{name}"), argument(value)]
    };
    hyperparameters.iter().flat_map(pair).collect()
}

/// A value as the toolkit hands it to a script: Python's `str`, of a map `a=1,b=2`.
fn argument(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Object(items) => {
            let items = items
                .iter()
                .map(|(name, item)| format!("{name}={}", python_str(item)));
            items.collect::<Vec<_>>().join(",")
        }
        other => python_str(other),
    }
}

fn python_str(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => python_repr(other),
    }
}

fn python_repr(value: &Value) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) => number_text(number),
        Value::String(text) => {
            // Double quotes only where single ones would have to be escaped.
            let quote = if text.contains('\'') && !text.contains('"') {
                '"'
            } else {
                '\''
            };
            let mut quoted = String::from(quote);
            for c in text.chars() {
                match c {
                    '\\' => quoted.push_str("\\\\"),
                    '\n' => quoted.push_str("\\n"),
                    '\r' => quoted.push_str("\\r"),
                    '\t' => quoted.push_str("\\t"),
                    c if c == quote => quoted.extend(['\\', c]),
                    c => quoted.push(c),
                }
            }
            quoted.push(quote);
            quoted
        }
        Value::Array(items) => format!("[{}]", list(items.iter().map(python_repr).collect())),
        Value::Object(items) => {
            let items = items.iter().map(|(name, item)| {
                format!(
                    "{}: {}",
                    python_repr(&Value::from(name.as_str())),
                    python_repr(item)
                )
            });
            format!("{{{}}}", list(items.collect()))
        }
    }
}

/// Everything once more in one object, under the names of the toolkit's class.
fn training_env(keys: &Map<String, Value>, facts: &Facts<'_>, split: &Hyperparameters) -> Value {
    let mut env = Map::new();
    for (key, value) in keys {
        let name = match key.as_str() {
            "hps" => "hyperparameters",
            "framework_params" => "additional_framework_parameters",
            "channels" | "user_args" => continue,
            name if name.starts_with("channel_") => continue,
            name => name,
        };
        env.insert(name.into(), value.clone());
    }
    let dirs = keys.iter().filter_map(|(key, value)| {
        let channel = key.strip_prefix("channel_")?;
        Some((channel.to_owned(), value.clone()))
    });
    env.insert("channel_input_dirs".into(), Value::Object(dirs.collect()));
    env.insert("job_name".into(), json!(facts.job_name));
    let name = split.framework_text("sagemaker_job_name");
    if let Some(name) = name {
        env.insert("job_name".into(), json!(name));
    }
    let hosts = keys.get("hosts").and_then(Value::as_array);
    let master = hosts.and_then(|hosts| hosts.first()).cloned();
    let is_master = master.as_ref() == keys.get("current_host");
    env.insert("is_master".into(), json!(is_master));
    env.insert("master_hostname".into(), master.unwrap_or_default());
    Value::Object(env)
}

/// A variable's text.
fn written(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => {
            let mut text = String::new();
            dump(other, &mut text);
            text
        }
    }
}

/// `json.dumps(value, sort_keys=True, separators=(",", ":"))`: ASCII only, numbers in Python's form.
fn dump(value: &Value, to: &mut String) {
    match value {
        Value::Null => to.push_str("null"),
        Value::Bool(value) => to.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => to.push_str(&number_text(number)),
        Value::String(text) => dump_text(text, to),
        Value::Array(items) => dump_list('[', items.iter().map(|item| (None, item)), ']', to),
        Value::Object(items) => {
            let items = items.iter().map(|(name, item)| (Some(name.as_str()), item));
            dump_list('{', items, '}', to);
        }
    }
}

fn dump_list<'a>(
    open: char,
    items: impl Iterator<Item = (Option<&'a str>, &'a Value)>,
    close: char,
    to: &mut String,
) {
    to.push(open);
    for (at, (name, item)) in items.enumerate() {
        if at > 0 {
            to.push(',');
        }
        if let Some(name) = name {
            dump_text(name, to);
            to.push(':');
        }
        dump(item, to);
    }
    to.push(close);
}

fn dump_text(text: &str, to: &mut String) {
    // serde's escapes are Python's but for what is not ASCII.
    let quoted = Value::from(text).to_string();
    for c in quoted.chars() {
        match c {
            ' '..='~' => to.push(c),
            '\x7f' => to.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    to.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
}

/// As Python's `repr` writes it: `1e-05` and `1e+16`, `0.0001` and `1.0`.
fn number_text(number: &Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else {
        return number.to_string();
    };
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{float}");
        return if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::super::documents::FastFileAs;
    use super::*;

    fn facts() -> Facts<'static> {
        Facts {
            job_name: "job",
            region: "us-east-1",
            base: "/opt/ml",
            network_interface: "eth0",
            cpus: 4,
            gpus: 1,
        }
    }

    fn spec() -> JobSpec {
        let mut spec = JobSpec::default();
        spec.set_channel("my-data=s3://b/,mode=pipe".parse().unwrap());
        for (name, value) in [
            ("epochs", "3"),
            ("lr", "1e-5"),
            ("name", "\"ü\""),
            ("plain", "text"),
            ("list", "[1, 2.5, true, null, \"ü\"]"),
            ("sagemaker_program", "\"train.py\""),
            ("sagemaker_mpi_enabled", "true"),
            ("_tuning_objective_metric", "\"loss\""),
        ] {
            spec.hyperparameters.insert(name.into(), value.into());
        }
        spec
    }

    #[test]
    fn arguments_are_written_as_python_writes_them() {
        // What the toolkit's to_cmd_args gives for these.
        let given: Map<String, Value> = serde_json::from_str(
            r#"{"a": true, "bb": [1, "x", null, 0.5], "cc": {"k": 1, "l": "v"}, "dd": null, "ee": "it's", "ff": ["it's", {"z": false}], "gg": 1e-5}"#,
        )
        .unwrap();
        let expected = [
            "-a",
            "True",
            "--bb",
            "[1, 'x', None, 0.5]",
            "--cc",
            "k=1,l=v",
            "--dd",
            "",
            "--ee",
            "it's",
            "--ff",
            "[\"it's\", {'z': False}]",
            "--gg",
            "1e-05",
        ];
        assert_eq!(user_args(&given), expected);
    }

    /// J5: any container finds the job's name, its ARN and the request's variables; with `--sm-env` the toolkit's, too.
    #[test]
    fn the_environment_is_the_platforms_and_on_demand_the_toolkits() {
        let mut spec = spec();
        spec.environment.insert("MODE".into(), "x".into());
        let set = platform(&spec, &facts());
        assert_eq!(set.len(), 3);
        assert_eq!(set["TRAINING_JOB_NAME"], "job");
        assert_eq!(
            set["TRAINING_JOB_ARN"],
            "arn:aws:sagemaker:us-east-1:000000000000:training-job/job"
        );
        let cluster = Cluster::numbered(1, 2);
        let documents = Documents::new(&spec, &cluster, "eth0", FastFileAs::File).unwrap();
        let set = toolkit(&spec, &cluster, &documents, &facts()).unwrap();
        for (name, value) in [
            ("SM_HOSTS", r#"["algo-1","algo-2"]"#),
            ("SM_CURRENT_HOST", "algo-2"),
            ("SM_CHANNELS", r#"["my-data"]"#),
            ("SM_CHANNEL_MY-DATA", "/opt/ml/input/data/my-data"),
            ("SM_HP_EPOCHS", "3"),
            ("SM_HP_LR", "1e-05"),
            ("SM_HP_NAME", "ü"),
            ("SM_HP_PLAIN", "text"),
            ("SM_HP_LIST", r#"[1,2.5,true,null,"\u00fc"]"#),
            ("SM_FRAMEWORK_PARAMS", r#"{"sagemaker_mpi_enabled":true}"#),
            (
                "SM_DISTRIBUTION_INSTANCE_GROUPS",
                r#"["homogeneousCluster"]"#,
            ),
            ("SM_MODULE_DIR", "/opt/ml/code"),
            ("SM_USER_ENTRY_POINT", "train.py"),
            ("SM_MODULE_NAME", "train"),
            ("SM_FRAMEWORK_MODULE", ""),
            ("SM_MODEL_DIR", "/opt/ml/model"),
            ("SM_OUTPUT_DATA_DIR", "/opt/ml/output/data"),
            ("SM_NUM_GPUS", "1"),
            ("SM_LOG_LEVEL", "20"),
            ("SM_IS_HETERO", "false"),
            ("SM_CURRENT_INSTANCE_GROUP", "homogeneousCluster"),
        ] {
            assert_eq!(set.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!set.contains_key("SM_HP_SAGEMAKER_PROGRAM"));
        assert!(!set.contains_key("SM_HP__TUNING_OBJECTIVE_METRIC"));
        let args = &set["SM_USER_ARGS"];
        assert!(args.starts_with(r#"["--epochs","3","--list","#), "{args}");
        let env: Value = serde_json::from_str(&set["SM_TRAINING_ENV"]).unwrap();
        assert_eq!(
            env["channel_input_dirs"]["my-data"],
            "/opt/ml/input/data/my-data"
        );
        assert_eq!(
            (&env["is_master"], &env["master_hostname"]),
            (&json!(false), &json!("algo-1"))
        );
    }

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        for (text, python) in [
            ("1.0", "1.0"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("1.5e-7", "1.5e-07"),
            ("1e16", "1e+16"),
            ("1e15", "1000000000000000.0"),
            ("-2.5e100", "-2.5e+100"),
            ("7", "7"),
            ("-0.0", "-0.0"),
        ] {
            let number: Number = serde_json::from_str(text).unwrap();
            assert_eq!(number_text(&number), python);
        }
    }
}
