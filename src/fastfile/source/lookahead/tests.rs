use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const FILE_BYTES: u64 = 100;
const LIMITS: Limits = Limits {
    files: 112,
    bytes: 1 << 20,
};

/// So many files; every hundredth number is a directory.
struct Folder(u64);

impl Files for Folder {
    fn behind(&self, file: u64, n: u64) -> Option<u64> {
        let mut files = (file + 1..self.0).filter(|file| file % 100 != 0);
        files.nth(n as usize - 1)
    }

    fn bytes(&self, _: u64) -> u64 {
        FILE_BYTES
    }
}

impl Folder {
    fn files(&self) -> Vec<u64> {
        (0..self.0).filter(|file| file % 100 != 0).collect()
    }
}

/// What a walk did.
#[derive(Debug, Default)]
struct Outcome {
    reads: usize,
    /// Files that were on their way when they were read.
    hits: usize,
    /// Files that were fetched ahead of a read.
    fetched: usize,
}

impl Outcome {
    fn wasted(&self) -> usize {
        self.fetched - self.hits
    }
}

/// Carries out the orders, and compares what is held with what the policy believes.
struct World {
    folder: Folder,
    policy: Lookahead,
    held: HashSet<u64>,
    outcome: Outcome,
}

impl World {
    fn new(folder: Folder, limits: Limits) -> Self {
        Self {
            folder,
            policy: Lookahead::new(limits),
            held: HashSet::new(),
            outcome: Outcome::default(),
        }
    }

    fn carry_out(&mut self, orders: Orders) {
        for file in orders.release {
            assert!(self.held.remove(&file), "{file} was not held");
        }
        for file in orders.fetch {
            assert!(self.held.insert(file), "{file} is held");
            self.outcome.fetched += 1;
        }
        let limits = self.policy.limits;
        assert!(self.held.len() <= limits.files);
        assert!(self.held.len() as u64 * FILE_BYTES <= limits.bytes);
        assert_eq!(
            self.policy.pending_bytes,
            self.held.len() as u64 * FILE_BYTES
        );
        assert!(self.policy.streams.len() <= MOST_STREAMS + 2);
    }

    fn read(&mut self, file: u64) {
        self.outcome.reads += 1;
        self.outcome.hits += usize::from(self.held.contains(&file));
        let orders = self.policy.read(file, &self.folder);
        self.carry_out(orders);
        assert!(!self.held.contains(&file), "it was read");
    }

    fn tell(&mut self, order: &[u64]) {
        let orders = self.policy.tell(order.iter().copied(), &self.folder);
        self.carry_out(orders);
    }
}

fn walk(folder: Folder, order: &[u64]) -> Outcome {
    let mut world = World::new(folder, LIMITS);
    order.iter().for_each(|file| world.read(*file));
    world.outcome
}

/// How readers share the files.
#[derive(Debug, Clone, Copy)]
enum Split {
    Strided,
    Contiguous,
    Batches(usize),
}

/// What each reader reads, in order.
fn split(files: &[u64], readers: usize, how: Split) -> Vec<Vec<u64>> {
    let mut each = vec![Vec::new(); readers];
    let share = files.len().div_ceil(readers);
    for (at, file) in files.iter().enumerate() {
        let reader = match how {
            Split::Strided => at % readers,
            Split::Contiguous => at / share,
            Split::Batches(size) => at / size % readers,
        };
        each[reader].push(*file);
    }
    each
}

/// Readers side by side. One whose file was not foreseen waits while the others read four; none is more than this ahead
/// of the slowest, because a job takes its readers' batches in turn.
const MOST_LEAD: usize = 64;

fn race(folder: Folder, mut each: Vec<Vec<u64>>, random: &mut fastrand::Rng) -> Outcome {
    let mut world = World::new(folder, LIMITS);
    each.iter_mut().for_each(|files| files.reverse());
    while !each.is_empty() {
        let most_left = each.iter().map(Vec::len).max().unwrap_or(0);
        let reader = random.usize(..each.len());
        let is_ahead = each[reader].len() + MOST_LEAD < most_left;
        match each[reader].last().copied() {
            None => drop(each.swap_remove(reader)),
            Some(_) if is_ahead => {}
            Some(file) if world.held.contains(&file) || random.u8(..4) == 0 => {
                world.read(file);
                each[reader].pop();
            }
            Some(_) => {}
        }
    }
    world.outcome
}

fn split_strategy() -> impl Strategy<Value = Split> {
    prop_oneof![
        Just(Split::Strided),
        Just(Split::Contiguous),
        (1..64usize).prop_map(Split::Batches),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_in_order_is_foreseen_and_nothing_else(
        readers in 1..17usize,
        how in split_strategy(),
        seed: u64,
    ) {
        let folder = Folder(4000);
        let files = folder.files();
        let mut random = fastrand::Rng::with_seed(seed);
        let outcome = race(folder, split(&files, readers, how), &mut random);
        prop_assert!(outcome.hits * 10 >= outcome.reads * 5, "{outcome:?}");
        prop_assert!(outcome.wasted() * 20 <= outcome.reads, "{outcome:?}");
    }

    #[test]
    fn random_order_is_not_foreseen(files in 20..3000u64, epochs in 1..4, seed: u64) {
        let folder = Folder(files);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut order = Vec::new();
        for _ in 0..epochs {
            let mut epoch = folder.files();
            random.shuffle(&mut epoch);
            order.extend(epoch);
        }
        let outcome = walk(folder, &order);
        prop_assert!(outcome.wasted() * 10 <= outcome.reads + 40, "{outcome:?}");
    }

    #[test]
    fn any_reads_keep_the_limits(
        reads in prop::collection::vec((0..400u64, 1..30u64), 1..60),
        most in 1..20usize,
    ) {
        let limits = Limits { files: most, bytes: most as u64 * 70 };
        let mut world = World::new(Folder(500), limits);
        for (at, n) in reads {
            match n % 7 {
                0 => world.tell(&(at..at + n).rev().collect::<Vec<_>>()),
                step => (0..n).for_each(|i| world.read(at + i * step)),
            }
        }
    }
}

/// One rank of eight on eight hosts: the files of the others are not touched.
#[test]
fn a_stride_of_its_own_is_followed() {
    let folder = Folder(4000);
    let files: Vec<u64> = folder.files().into_iter().step_by(8).collect();
    let outcome = walk(folder, &files);
    // Numbers of directories lie between, so the beginning takes a few more.
    assert!(outcome.hits * 10 >= outcome.reads * 8, "{outcome:?}");
    assert!(outcome.wasted() * 20 <= outcome.reads, "{outcome:?}");
}

#[test]
fn each_epoch_is_foreseen() {
    let folder = Folder(1000);
    let files = folder.files();
    let outcome = walk(folder, &[files.clone(), files.clone(), files].concat());
    assert!(outcome.hits * 20 >= outcome.reads * 19, "{outcome:?}");
    assert!(outcome.wasted() < 50, "{outcome:?}");
}

#[test]
fn what_was_told_is_foreseen_in_any_order() {
    let folder = Folder(3000);
    let mut order = folder.files();
    fastrand::Rng::with_seed(1).shuffle(&mut order);
    let mut world = World::new(folder, LIMITS);
    world.tell(&order);
    assert_eq!(
        world.held.len(),
        LIMITS.files,
        "as much as there is room for"
    );
    order.iter().for_each(|file| world.read(*file));
    assert_eq!(world.outcome.hits, world.outcome.reads);
    assert_eq!(world.outcome.wasted(), 0);
}

/// What was told and is not read gives its room to what is.
#[test]
fn a_stream_that_nobody_follows_is_given_up() {
    let mut world = World::new(Folder(4000), LIMITS);
    let lie: Vec<u64> = (3001..3900).collect();
    world.tell(&lie);
    let files = world.folder.files();
    files[..2000].iter().for_each(|file| world.read(*file));
    assert!(world.outcome.hits > 1500, "{:?}", world.outcome);
    assert!(world.held.iter().all(|file| *file < 3000));
}
