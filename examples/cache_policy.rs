//! Which objects should a full cache keep? Simulates epochs of training under four rules and prints their hit rates:
//! the cache's own, LRU, random eviction, and the optimum, which knows the future (Belady's).
//!
//! `cargo run --example cache_policy`. The test `cache_policy` runs the same traces and compares.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::Write;

use standpipe::cache::policy::{self, Candidate};

/// All objects are alike: what differs between them is when they are used.
const OBJECT_BYTES: u64 = 1 << 20;
/// Objects that the cache holds.
const HOLDS: u64 = 400;

/// The order of an epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Order {
    /// The same every time.
    Cyclic,
    /// Another one every time.
    Shuffled,
}

/// The rules.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rule {
    Ours,
    Lru,
    Random,
    Optimal,
}

pub(crate) const RULES: [Rule; 4] = [Rule::Ours, Rule::Lru, Rule::Random, Rule::Optimal];

/// Some epochs over some dataset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Phase {
    pub(crate) dataset: u64,
    /// Its size, as a multiple of the cache's.
    pub(crate) ratio: f64,
    pub(crate) epochs: usize,
}

/// The hit rate of every epoch.
pub(crate) fn simulate(rule: Rule, order: Order, phases: &[Phase], seed: u64) -> Vec<f64> {
    let epochs = trace(order, phases, seed);
    let mut cache: Box<dyn Cache> = match rule {
        Rule::Ours => Box::new(Ours::default()),
        Rule::Lru => Box::new(Lru::default()),
        Rule::Random => Box::new(Random::new(seed)),
        Rule::Optimal => Box::new(Optimal::new(&epochs)),
    };
    let rate = |epoch: &Vec<u64>| {
        let hits = epoch.iter().filter(|name| cache.read(**name)).count();
        hits as f64 / epoch.len() as f64
    };
    epochs.iter().map(rate).collect()
}

fn trace(order: Order, phases: &[Phase], seed: u64) -> Vec<Vec<u64>> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut epochs = Vec::new();
    for phase in phases {
        let count = (HOLDS as f64 * phase.ratio) as u64;
        let mut names: Vec<u64> = (0..count).map(|at| phase.dataset << 32 | at).collect();
        for _ in 0..phase.epochs {
            if order == Order::Shuffled {
                rng.shuffle(&mut names);
            }
            epochs.push(names.clone());
        }
    }
    epochs
}

trait Cache {
    /// Reads an object, and says whether it was there.
    fn read(&mut self, name: u64) -> bool;
}

/// What the cache does, with its own functions.
#[derive(Default)]
struct Ours {
    used_at: HashMap<u64, u64>,
    ghosts: HashMap<u64, u64>,
    clock: u64,
    reuse: u64,
    /// When it last looked in vain for something stale, and the oldest use that it saw.
    looked: Option<(u64, u64)>,
}

impl Ours {
    const CAPACITY: u64 = HOLDS * OBJECT_BYTES;

    fn learn(&mut self, before: u64) {
        let distance = self.clock - before;
        if distance >= policy::pass_gap(Self::CAPACITY, OBJECT_BYTES) {
            self.reuse = policy::learn(self.reuse, distance, OBJECT_BYTES, Self::CAPACITY);
        }
    }

    fn makes_room(&mut self) -> bool {
        if (self.used_at.len() as u64) < HOLDS {
            return true;
        }
        let after = policy::stale_after(self.reuse, Self::CAPACITY);
        if let Some((at, oldest)) = self.looked
            && policy::is_frozen(self.clock, at, oldest, after, Self::CAPACITY)
        {
            return false;
        }
        let mut names: Vec<u64> = self.used_at.keys().copied().collect();
        names.sort_unstable();
        let candidates: Vec<Candidate> = names
            .iter()
            .map(|name| Candidate {
                bytes: OBJECT_BYTES,
                used_at: self.used_at[name],
                bits: *name,
            })
            .collect();
        let wanted = OBJECT_BYTES + Self::CAPACITY / 64;
        let victims = policy::stale(&candidates, self.clock, after, wanted);
        let oldest = candidates.iter().map(|one| one.used_at).min();
        self.looked = oldest
            .filter(|_| victims.is_empty())
            .map(|oldest| (self.clock, oldest));
        for victim in &victims {
            self.used_at.remove(&names[*victim]);
        }
        !victims.is_empty()
    }
}

impl Cache for Ours {
    fn read(&mut self, name: u64) -> bool {
        self.clock += OBJECT_BYTES;
        if let Some(before) = self.used_at.insert(name, self.clock) {
            self.learn(before);
            return true;
        }
        self.used_at.remove(&name);
        if let Some(before) = self.ghosts.insert(name, self.clock) {
            self.learn(before);
        }
        if self.makes_room() {
            self.used_at.insert(name, self.clock);
        }
        false
    }
}

#[derive(Default)]
struct Lru {
    used_at: HashMap<u64, u64>,
    order: BTreeSet<(u64, u64)>,
    clock: u64,
}

impl Cache for Lru {
    fn read(&mut self, name: u64) -> bool {
        self.clock += 1;
        let before = self.used_at.insert(name, self.clock);
        if let Some(before) = before {
            self.order.remove(&(before, name));
        }
        self.order.insert((self.clock, name));
        if self.used_at.len() as u64 > HOLDS
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.used_at.remove(&oldest);
        }
        before.is_some()
    }
}

struct Random {
    names: Vec<u64>,
    places: HashMap<u64, usize>,
    rng: fastrand::Rng,
}

impl Random {
    fn new(seed: u64) -> Self {
        Self {
            names: Vec::new(),
            places: HashMap::new(),
            rng: fastrand::Rng::with_seed(!seed),
        }
    }
}

impl Cache for Random {
    fn read(&mut self, name: u64) -> bool {
        if self.places.contains_key(&name) {
            return true;
        }
        let place = match self.names.len() as u64 {
            len if len < HOLDS => {
                self.names.push(name);
                len as usize
            }
            len => self.rng.usize(..len as usize),
        };
        self.places.remove(&self.names[place]);
        self.names[place] = name;
        self.places.insert(name, place);
        false
    }
}

struct Optimal {
    /// When each object is used, from now on.
    uses: HashMap<u64, VecDeque<u64>>,
    /// What is held, by its next use.
    next: BTreeSet<(u64, u64)>,
}

impl Optimal {
    fn new(epochs: &[Vec<u64>]) -> Self {
        let mut uses: HashMap<u64, VecDeque<u64>> = HashMap::new();
        for (at, name) in (0..).zip(epochs.iter().flatten()) {
            uses.entry(*name).or_default().push_back(at);
        }
        Self {
            uses,
            next: BTreeSet::new(),
        }
    }
}

impl Cache for Optimal {
    fn read(&mut self, name: u64) -> bool {
        let uses = self.uses.entry(name).or_default();
        let now = uses.pop_front().unwrap_or(0);
        let next = uses.front().copied().unwrap_or(u64::MAX);
        let hit = self.next.remove(&(now, name));
        self.next.insert((next, name));
        if self.next.len() as u64 > HOLDS {
            self.next.pop_last();
        }
        hit
    }
}

/// The mean over the epochs from `first` on.
pub(crate) fn mean_from(rates: &[f64], first: usize) -> f64 {
    rates[first..].iter().sum::<f64>() / (rates.len() - first) as f64
}

/// One dataset of `ratio` times the cache, read eight times; the first epoch can't hit.
pub(crate) fn steady(rule: Rule, order: Order, ratio: f64) -> f64 {
    let phase = Phase {
        dataset: 0,
        ratio,
        epochs: 8,
    };
    mean_from(&simulate(rule, order, &[phase], 1), 1)
}

/// Four epochs of one dataset, then eight of another; the mean of the last five.
pub(crate) fn switched(rule: Rule, order: Order, first: f64, second: f64) -> f64 {
    let phase = |dataset, ratio, epochs| Phase {
        dataset,
        ratio,
        epochs,
    };
    let phases = [phase(0, first, 4), phase(1, second, 8)];
    mean_from(&simulate(rule, order, &phases, 2), 7)
}

/// Six rounds of an epoch of training and a small one of validation; from the second round on.
pub(crate) fn validated(rule: Rule, order: Order) -> f64 {
    let phase = |dataset, ratio| Phase {
        dataset,
        ratio,
        epochs: 1,
    };
    let phases: Vec<Phase> = (0..6)
        .flat_map(|_| [phase(0, 2.0), phase(1, 0.1)])
        .collect();
    mean_from(&simulate(rule, order, &phases, 3), 2)
}

/// A row of the table: a name, and the hit rate under a rule.
type Row = (String, Box<dyn Fn(Rule) -> f64>);

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:34}{:>8}{:>8}{:>8}{:>9}",
        "hit rate", "ours", "LRU", "random", "optimal"
    )?;
    let mut rows: Vec<Row> = Vec::new();
    for order in [Order::Cyclic, Order::Shuffled] {
        for ratio in [1.2, 2.0, 4.0, 10.0] {
            rows.push((
                format!("{order:?}, {ratio} x the cache"),
                Box::new(move |rule| steady(rule, order, ratio)),
            ));
        }
        for (first, second) in [(2.0, 2.0), (2.0, 0.5), (10.0, 2.0)] {
            rows.push((
                format!("{order:?}, {first} x, then {second} x"),
                Box::new(move |rule| switched(rule, order, first, second)),
            ));
        }
        rows.push((
            format!("{order:?}, 2 x, validation 0.1 x"),
            Box::new(move |rule| validated(rule, order)),
        ));
    }
    for (name, rate) in rows {
        write!(out, "{name:34}")?;
        for (rule, width) in RULES.into_iter().zip([7, 7, 7, 8]) {
            write!(out, "{:>width$.0}%", rate(rule) * 100.0)?;
        }
        writeln!(out)?;
    }
    Ok(())
}
