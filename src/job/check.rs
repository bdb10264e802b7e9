//! What contradicts itself, told before anything is made.
//!
//! Where the service's own message is known it is used: somebody will search for it. The form `1 validation error
//! detected: Value .. at .. failed to satisfy constraint` is the one that all AWS services use for limits of their
//! models (botocore `sagemaker/2017-07-24/service-2.json`, shapes `InputDataConfig`, `ChannelName`, `S3Uri`,
//! `AttributeNames`); `Invalid compression type` is verbatim from a user's report (sagemaker-python-sdk#716).

use super::spec::{JobSpec, mode_of};
use crate::error::{Error, Result};
use crate::input::{Channel, InputMode};
use crate::pipe::ChannelName;

const MAX_CHANNELS: usize = 20;

pub(super) fn job(spec: &JobSpec) -> Result<()> {
    if spec.channels.len() > MAX_CHANNELS {
        return Err(constraint(
            &format!("[{} channels]", spec.channels.len()),
            "inputDataConfig",
            &format!("Member must have length less than or equal to {MAX_CHANNELS}"),
        ));
    }
    if let Some(name) = &spec.name {
        job_name(name)?;
    }
    for (at, channel) in spec.channels.iter().enumerate() {
        channel_name(at, &channel.name)?;
        channel.validate(mode_of(channel))?;
        groups(spec, channel)?;
    }
    paths(&spec.channels)?;
    environment(spec)
}

fn constraint(value: &str, place: &str, rule: &str) -> Error {
    Error::config(
        "ValidationException",
        format!(
            "1 validation error detected: Value '{value}' at '{place}' failed to satisfy constraint: {rule}"
        ),
    )
}

/// `[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}`.
fn job_name(name: &str) -> Result<()> {
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let allowed = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let ends = alphanumeric(name.chars().next()) && alphanumeric(name.chars().last());
    match allowed && ends && name.len() <= 63 {
        true => Ok(()),
        false => Err(constraint(
            name,
            "trainingJobName",
            "Member must satisfy regular expression pattern: ^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}",
        )),
    }
}

pub(super) fn channel_name(at: usize, name: &str) -> Result<()> {
    let place = format!("inputDataConfig.{}.member.channelName", at + 1);
    if name.len() > 64 {
        let rule = "Member must have length less than or equal to 64";
        return Err(constraint(name, &place, rule));
    }
    // Names of dots only are names of other directories; the service's pattern lets them pass.
    if name.parse::<ChannelName>().is_err() || name.chars().all(|c| c == '.') {
        return Err(constraint(
            name,
            &place,
            r"Member must satisfy regular expression pattern: [A-Za-z0-9\.\-_]+",
        ));
    }
    Ok(())
}

fn groups(spec: &JobSpec, channel: &Channel) -> Result<()> {
    let unknown = channel
        .instance_groups
        .iter()
        .find(|name| !spec.groups.iter().any(|group| group.name == **name));
    match unknown {
        Some(unknown) => Err(Error::unusable(
            format!("channel {}: InstanceGroupNames", channel.name),
            format!("{unknown:?} is no group of the job"),
            "name the groups of ResourceConfig.InstanceGroups",
        )),
        None => Ok(()),
    }
}

/// No two channels may share a path: `train` in its epoch 1 is `train_1`.
fn paths(channels: &[Channel]) -> Result<()> {
    let name = |channel: &Channel| channel.name.parse::<ChannelName>();
    for (at, channel) in channels.iter().enumerate() {
        let this = name(channel)?;
        if channels[..at]
            .iter()
            .any(|other| other.name == channel.name)
        {
            return Err(Error::unusable(
                format!("channel {this}"),
                "is given twice",
                "give each channel a name of its own",
            ));
        }
        for other in channels {
            if mode_of(other) == InputMode::Pipe && name(other)?.shadows(&this) {
                return Err(Error::unusable(
                    format!("channel {this}"),
                    format!(
                        "its path is also that of an epoch of Pipe channel {}",
                        other.name
                    ),
                    "rename one of them",
                ));
            }
        }
    }
    Ok(())
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`: others cannot be set in every shell.
fn environment(spec: &JobSpec) -> Result<()> {
    let is_name = |name: &str| {
        let mut chars = name.chars();
        chars
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    for (name, value) in &spec.environment {
        if !is_name(name) {
            return Err(constraint(
                name,
                "environment",
                "Map keys must satisfy constraint: [Member must satisfy regular expression pattern: [a-zA-Z_][a-zA-Z0-9_]*]",
            ));
        }
        if value.contains('\0') {
            return Err(Error::config(
                format!("Environment.{name}"),
                "holds a NUL, which no environment can",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job_of(channels: &[&str]) -> JobSpec {
        let mut spec = JobSpec::default();
        for channel in channels {
            let mut channel: Channel = channel.parse().unwrap();
            channel.mode.get_or_insert(InputMode::File);
            spec.channels.push(channel);
        }
        spec
    }

    fn refusal(channels: &[&str]) -> String {
        let error = job_of(channels).validate().unwrap_err();
        format!("{error} | {}", error.fix().unwrap_or_default())
    }

    /// J3: what the service refuses is refused in its words, before anything is made.
    #[test]
    fn contradictions_are_refused_in_the_services_words() {
        assert!(
            refusal(&["training=s3://b/,compression=gzip"]).contains(
                "Invalid compression type for channel training: File mode only supports NONE, got Gzip instead"
            )
        );
        for (channels, says) in [
            (
                vec!["t=s3://b/m,s3-data-type=augmented,attribute-names=x"],
                "input mode is Pipe",
            ),
            (
                vec!["t=s3://b/m,s3-data-type=augmented,mode=pipe"],
                "AttributeNames",
            ),
            (
                vec!["t=s3://b/,attribute-names=x,mode=pipe"],
                "AttributeNames",
            ),
            (
                vec!["t=s3://b/m,s3-data-type=manifest,mode=fastfile"],
                "S3Prefix",
            ),
            (
                vec!["t=s3://b/,record-wrapper=recordio"],
                "RecordWrapperType",
            ),
            (vec!["t=s3://b/,instance-groups=gpu"], "\"gpu\" is no group"),
            (vec!["t=s3://b/", "t=s3://b/"], "given twice"),
            (
                vec!["train=s3://b/,mode=pipe", "train_1=s3://b/"],
                "epoch of Pipe channel train",
            ),
            (
                vec!["train_1=s3://b/,mode=fastfile", "train=s3://b/,mode=pipe"],
                "channel train_1",
            ),
        ] {
            let said = refusal(&channels);
            assert!(said.contains(says), "{channels:?}: {said}");
        }
        let many: Vec<_> = (0..21).map(|n| format!("c{n}=s3://b/")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert!(refusal(&many).contains("length less than or equal to 20"));
        assert!(job_of(&many[..20]).validate().is_ok());
        for (at, name) in [(0, "a b"), (1, ".."), (2, "")] {
            let error = channel_name(at, name).unwrap_err().to_string();
            let place = format!("at 'inputDataConfig.{}.member.channelName'", at + 1);
            assert!(error.contains(&place), "{error}");
        }
    }

    #[test]
    fn what_does_not_collide_passes() {
        let fits = [
            "train=s3://b/,mode=pipe",
            "train_x=s3://b/",
            "train_01=s3://b/,mode=fastfile",
            "val=s3://b/,compression=gzip,mode=pipe",
        ];
        assert!(job_of(&fits).validate().is_ok());
        // Two directories.
        assert!(
            job_of(&["train=s3://b/", "train_1=s3://b/"])
                .validate()
                .is_ok()
        );
        let mut named = job_of(&[]);
        for (name, is_good) in [
            ("a", true),
            ("my-job-1", true),
            ("-a", false),
            ("a_b", false),
        ] {
            named.name = Some(name.into());
            assert_eq!(named.validate().is_ok(), is_good, "{name}");
        }
    }
}
