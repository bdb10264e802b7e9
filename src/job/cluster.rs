//! Which host this is of how many: from flags, or from whatever launched it.
//!
//! The first of these that says anything decides, and what it says must be complete:
//!
//! 1. flags (`--hosts a,b,c --current-host b`, or `--host-count 3 --host-rank 1`);
//! 2. torchrun: `GROUP_RANK` of `GROUP_WORLD_SIZE`, the node's own numbers. Without them (a PyTorchJob of Kubeflow) `RANK`
//!    of `WORLD_SIZE`, both divided by `LOCAL_WORLD_SIZE`;
//! 3. MPI: `OMPI_COMM_WORLD_RANK` of `OMPI_COMM_WORLD_SIZE` (Open MPI), or `PMI_RANK` of `PMI_SIZE` (MPICH, Intel MPI,
//!    srun), divided by the processes per host, `OMPI_COMM_WORLD_LOCAL_SIZE` or `MPI_LOCALNRANKS`;
//! 4. AWS Batch multi-node: `AWS_BATCH_JOB_NODE_INDEX` of `AWS_BATCH_JOB_NUM_NODES`;
//! 5. Kubernetes indexed jobs: `JOB_COMPLETION_INDEX`; how many there are Kubernetes does not tell, so `--host-count`
//!    (or `STANDPIPE_HOST_COUNT`) must;
//! 6. the request's instance count, if it is 1, or nothing: one host.
//!
//! Processes of one host are taken to be numbered one after another (torchrun and mpirun's default): rank / local size is
//! then the host's. Hosts are called `algo-1`, `algo-2`, ... as on SageMaker, unless they are named. A host's rank is its
//! place among the names in lexicographic order, as `resourceconfig.json` lists them (`algo-10` before `algo-2`).

use crate::error::{Error, Result};

/// What was typed.
#[derive(Debug, Clone, Default)]
pub struct ClusterFlags {
    /// All hosts by name.
    pub hosts: Vec<String>,
    /// This host's name.
    pub current_host: Option<String>,
    /// How many hosts there are.
    pub host_count: Option<usize>,
    /// Which one this is, from 0.
    pub host_rank: Option<usize>,
}

/// The hosts of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Their names, in lexicographic order.
    pub hosts: Vec<String>,
    /// Which of them this is.
    pub rank: usize,
}

impl Cluster {
    /// `rank` of `count` hosts that have no names of their own.
    pub fn numbered(rank: usize, count: usize) -> Self {
        let mut hosts: Vec<_> = (1..=count).map(|n| format!("algo-{n}")).collect();
        hosts.sort();
        Self { hosts, rank }
    }

    /// This host's name.
    pub fn current(&self) -> &str {
        &self.hosts[self.rank]
    }

    /// Finds out; `env` looks a variable up, `requested` is the request's instance count.
    pub fn detect(
        flags: &ClusterFlags,
        env: &dyn Fn(&str) -> Option<String>,
        requested: Option<usize>,
    ) -> Result<Self> {
        if !flags.hosts.is_empty() {
            return named(flags);
        }
        let env = Env(env);
        if let Some(rank) = flags.host_rank {
            let count = flags.host_count.ok_or_else(|| {
                missing("--host-rank", "how many hosts there are: add --host-count")
            })?;
            return checked("--host-rank", rank, count);
        }
        for launcher in [torchrun, open_mpi, pmi, batch] {
            if let Some((variable, rank, count)) = launcher(&env)? {
                let count = flags.host_count.unwrap_or(count);
                return checked(variable, rank, count);
            }
        }
        if let Some(rank) = env.number("JOB_COMPLETION_INDEX")? {
            let count = flags.host_count.or(requested).ok_or_else(|| {
                missing(
                    "JOB_COMPLETION_INDEX",
                    "how many pods there are: set --host-count to the job's `completions`",
                )
            })?;
            return checked("JOB_COMPLETION_INDEX", rank, count);
        }
        match flags.host_count.or(requested) {
            None | Some(1) => Ok(Self::numbered(0, 1)),
            Some(count) => Err(missing(
                "--host-count",
                &format!("which of the {count} hosts this is: add --host-rank"),
            )),
        }
    }
}

fn named(flags: &ClusterFlags) -> Result<Cluster> {
    let mut hosts = flags.hosts.clone();
    hosts.sort();
    hosts.dedup();
    let current = match (&flags.current_host, flags.host_rank, &hosts[..]) {
        (Some(current), _, _) => current.clone(),
        // In the order in which they were typed, which is the one that whoever typed it has in mind.
        (None, Some(rank), _) => flags.hosts.get(rank).cloned().ok_or_else(|| {
            Error::config(
                "--host-rank",
                format!("{rank} of {} hosts", flags.hosts.len()),
            )
        })?,
        (None, None, [only]) => only.clone(),
        (None, None, _) => {
            return Err(missing(
                "--hosts",
                "which of them this is: add --current-host",
            ));
        }
    };
    let rank = hosts.iter().position(|host| *host == current);
    let rank = rank.ok_or_else(|| {
        Error::config(
            "--current-host",
            format!("{current:?} is none of --hosts {}", flags.hosts.join(",")),
        )
    })?;
    Ok(Cluster { hosts, rank })
}

fn missing(key: &str, what: &str) -> Error {
    Error::config(key, format!("does not say {what}"))
}

fn checked(variable: &str, rank: usize, count: usize) -> Result<Cluster> {
    match rank < count {
        true => Ok(Cluster::numbered(rank, count)),
        false => Err(Error::config(
            variable,
            format!("rank {rank} is not below the number of hosts, {count}"),
        )),
    }
}

type Found = Option<(&'static str, usize, usize)>;

fn torchrun(env: &Env<'_>) -> Result<Found> {
    if let (Some(rank), Some(count)) = (env.number("GROUP_RANK")?, env.number("GROUP_WORLD_SIZE")?)
    {
        return Ok(Some(("GROUP_RANK", rank, count)));
    }
    let local = env.number("LOCAL_WORLD_SIZE")?;
    per_host(env, ("RANK", "WORLD_SIZE"), local)
}

fn open_mpi(env: &Env<'_>) -> Result<Found> {
    let local = env.number("OMPI_COMM_WORLD_LOCAL_SIZE")?;
    per_host(env, ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), local)
}

fn pmi(env: &Env<'_>) -> Result<Found> {
    per_host(
        env,
        ("PMI_RANK", "PMI_SIZE"),
        env.number("MPI_LOCALNRANKS")?,
    )
}

fn batch(env: &Env<'_>) -> Result<Found> {
    let names = ("AWS_BATCH_JOB_NODE_INDEX", "AWS_BATCH_JOB_NUM_NODES");
    per_host(env, names, None)
}

/// The host's numbers from its processes'.
fn per_host(
    env: &Env<'_>,
    (rank_name, count_name): (&'static str, &'static str),
    local: Option<usize>,
) -> Result<Found> {
    let (Some(rank), Some(count)) = (env.number(rank_name)?, env.number(count_name)?) else {
        return Ok(None);
    };
    let local = local.unwrap_or(1).max(1);
    Ok(Some((rank_name, rank / local, count.div_ceil(local))))
}

struct Env<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Env<'_> {
    fn number(&self, name: &str) -> Result<Option<usize>> {
        let text = (self.0)(name).filter(|text| !text.is_empty());
        let number = text.map(|text| {
            let parsed = text.trim().parse();
            parsed.map_err(|_| Error::config(name, format!("{text:?} is no number")))
        });
        number.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(flags: &ClusterFlags, env: &[(&str, &str)]) -> Result<Cluster> {
        let look = |name: &str| {
            let found = env.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Cluster::detect(flags, &look, None)
    }

    /// J6: rank and count come from flags, then torchrun, MPI, AWS Batch, Kubernetes; the first that speaks decides.
    #[test]
    fn the_first_launcher_that_speaks_decides() {
        let batch = [
            ("AWS_BATCH_JOB_NODE_INDEX", "1"),
            ("AWS_BATCH_JOB_NUM_NODES", "3"),
        ];
        let pmi = [
            ("PMI_RANK", "5"),
            ("PMI_SIZE", "8"),
            ("MPI_LOCALNRANKS", "4"),
        ];
        let ompi = [
            ("OMPI_COMM_WORLD_RANK", "9"),
            ("OMPI_COMM_WORLD_SIZE", "16"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "8"),
        ];
        let torch = [
            ("GROUP_RANK", "3"),
            ("GROUP_WORLD_SIZE", "4"),
            ("RANK", "30"),
            ("WORLD_SIZE", "32"),
        ];
        let kubeflow = [("RANK", "1"), ("WORLD_SIZE", "2")];
        let kubernetes = [("JOB_COMPLETION_INDEX", "2")];
        let counted = ClusterFlags {
            host_count: Some(5),
            ..ClusterFlags::default()
        };
        let none = ClusterFlags::default();
        let mut env = Vec::new();
        for (flags, more, rank, count) in [
            (&none, &[][..], 0, 1),
            (&counted, &kubernetes[..], 2, 5),
            (&none, &batch, 1, 3),
            (&none, &pmi, 1, 2),
            (&none, &ompi, 1, 2),
            (&none, &kubeflow, 1, 2),
            (&none, &torch[..2], 3, 4),
        ] {
            // Each stands before all that came before it.
            env.extend_from_slice(more);
            assert_eq!(
                detect(flags, &env).unwrap(),
                Cluster::numbered(rank, count),
                "{env:?}"
            );
        }
        let flags = ClusterFlags {
            hosts: vec!["b".into(), "a".into()],
            current_host: Some("b".into()),
            ..ClusterFlags::default()
        };
        let cluster = detect(&flags, &env).unwrap();
        assert_eq!((cluster.hosts.join(","), cluster.rank), ("a,b".into(), 1));
        let torch = detect(&none, &torch).unwrap();
        assert_eq!(torch, Cluster::numbered(3, 4));
    }

    #[test]
    fn half_an_answer_is_an_error_that_says_what_is_missing() {
        let flags = |host_count, host_rank| ClusterFlags {
            host_count,
            host_rank,
            ..ClusterFlags::default()
        };
        for (flags, env, says) in [
            (
                flags(None, None),
                vec![("JOB_COMPLETION_INDEX", "1")],
                "completions",
            ),
            (
                flags(Some(1), None),
                vec![("JOB_COMPLETION_INDEX", "1")],
                "not below",
            ),
            (flags(Some(2), None), vec![], "--host-rank"),
            (flags(None, Some(1)), vec![], "--host-count"),
            (
                flags(None, None),
                vec![("PMI_RANK", "x"), ("PMI_SIZE", "2")],
                "no number",
            ),
        ] {
            let error = detect(&flags, &env).unwrap_err().to_string();
            assert!(error.contains(says), "{env:?}: {error}");
        }
    }

    #[test]
    fn names_are_sorted_as_text_and_the_rank_is_the_place_among_them() {
        let cluster = Cluster::numbered(1, 10);
        assert_eq!(cluster.hosts[..3], ["algo-1", "algo-10", "algo-2"]);
        assert_eq!(cluster.current(), "algo-10");
    }
}
