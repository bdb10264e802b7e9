//! Which channels a host gets, and which share of them.
//!
//! A channel with `InstanceGroupNames` is for the hosts of these groups alone, and is shared out among them. What other
//! hosts see of it on SageMaker is not documented; here they see nothing: no directory, no FIFO, no entry in
//! `inputdataconfig.json`.

use super::cluster::Cluster;
use super::documents::instance_groups;
use super::spec::JobSpec;
use crate::error::Result;
use crate::input::{Channel, Shard};

/// This host's share of a channel if it is shared out; none if the channel is not for this host.
pub(super) fn share(spec: &JobSpec, cluster: &Cluster, channel: &Channel) -> Result<Option<Shard>> {
    let groups = instance_groups(spec, cluster)?;
    let is_asked = |name: &str| {
        let wanted = &channel.instance_groups;
        wanted.is_empty() || wanted.iter().any(|group| group == name)
    };
    let asked = groups
        .iter()
        .filter(|group| is_asked(group.instance_group_name));
    let mut hosts: Vec<&str> = asked
        .flat_map(|group| group.hosts.iter().copied())
        .collect();
    hosts.sort_unstable();
    let rank = hosts.iter().position(|host| *host == cluster.current());
    rank.map(|rank| Shard::new(rank as u64, hosts.len() as u64))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// J27: a channel is for the hosts of its instance groups and is shared out among them; others see nothing of it.
    #[test]
    fn a_channel_is_shared_out_among_the_hosts_of_its_groups() {
        let request = r#"{"ResourceConfig": {"InstanceGroups": [
            {"InstanceType": "a", "InstanceCount": 1, "InstanceGroupName": "g"},
            {"InstanceType": "b", "InstanceCount": 2, "InstanceGroupName": "h"}]}}"#;
        let spec = JobSpec::from_request("job.json", request).unwrap();
        let of = |rank, text: &str| {
            let cluster = Cluster::numbered(rank, 3);
            share(&spec, &cluster, &text.parse().unwrap()).unwrap()
        };
        let shard = |rank, count| Some(Shard::new(rank, count).unwrap());
        for rank in 0..3 {
            assert_eq!(of(rank as usize, "t=s3://b/"), shard(rank, 3));
        }
        let of_h = |rank| of(rank, "t=s3://b/,instance-groups=h");
        assert_eq!(
            [of_h(0), of_h(1), of_h(2)],
            [None, shard(0, 2), shard(1, 2)]
        );
        assert_eq!(of(0, "t=s3://b/,instance-groups=g:h"), shard(0, 3));
    }
}
