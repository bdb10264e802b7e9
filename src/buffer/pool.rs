//! Warm memory in size classes.
//!
//! Classes are powers of two from 64 KiB to 1 MiB and multiples of 2 MiB above, so that every slab is a whole number
//! of huge pages. Small classes are cut from 2 MiB slabs; a large buffer is a slab of its own. Free buffers are
//! reused last in, first out, while they are still in the cache. The pool maps no more than its limit: when another
//! class needs room, slabs that are wholly free are unmapped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::{Advice, MmapMut};

use super::budget::Reservation;
use super::part::PartBuf;
use crate::metrics::Metrics;

const SMALLEST_BYTES: u64 = 64 << 10;
/// The huge page of x86-64 and aarch64 with 4 KiB base pages.
const SLAB_BYTES: u64 = 2 << 20;

/// What a buffer for `len` bytes takes from the budget.
pub fn class_bytes(len: u64) -> u64 {
    if len <= SLAB_BYTES / 2 {
        len.next_power_of_two().max(SMALLEST_BYTES)
    } else {
        len.next_multiple_of(SLAB_BYTES)
    }
}

/// Keeps buffers mapped and warm between parts. Clones share the memory.
#[derive(Clone)]
pub struct BufferPool(Arc<Shared>);

struct Shared {
    limit_bytes: u64,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    mapped_bytes: u64,
    free: HashMap<u64, Vec<Slot>>,
}

impl BufferPool {
    /// A pool that keeps at most `limit_bytes` mapped, as far as the buffers in use allow.
    pub fn new(limit_bytes: u64, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared {
            limit_bytes,
            state: Mutex::default(),
            metrics,
        }))
    }

    /// A buffer for `len` bytes, paid for by `reservation`.
    pub fn part(&self, reservation: Reservation, len: usize) -> PartBuf {
        let slot = self.0.take(class_bytes(len as u64));
        PartBuf::pooled(
            Lease {
                slot: Some(slot),
                pool: self.0.clone(),
            },
            reservation,
            len,
        )
    }

    /// Has memory for a first part of at most `len` bytes mapped, and its pages there, before it is asked for: the
    /// system takes a fifth of a millisecond to clear a huge page. Does nothing once anything is mapped.
    pub fn prepare(&self, len: usize) {
        let class = class_bytes(len as u64);
        let mut state = self.0.lock();
        if state.mapped_bytes > 0 || class.max(SLAB_BYTES) > self.0.limit_bytes {
            return;
        }
        let slot = self.0.map(&mut state, class);
        let mut lease = Lease {
            slot: Some(slot),
            pool: self.0.clone(),
        };
        lease.bytes_mut().fill(0);
        // Its `Drop` would take the lock.
        let slot = lease.slot.take();
        state.free.entry(class).or_default().extend(slot);
    }

    /// Bytes mapped now.
    pub fn mapped_bytes(&self) -> u64 {
        self.0.lock().mapped_bytes
    }
}

impl std::fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferPool")
            .field("limit_bytes", &self.0.limit_bytes)
            .field("mapped_bytes", &self.mapped_bytes())
            .finish()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, class: u64) -> Slot {
        let mut state = self.lock();
        if let Some(slot) = state.free.get_mut(&class).and_then(Vec::pop) {
            self.metrics.pool_hits.add(1);
            return slot;
        }
        self.metrics.pool_misses.add(1);
        self.map(&mut state, class)
    }

    /// Maps a slab, and takes its first buffer.
    fn map(&self, state: &mut State, class: u64) -> Slot {
        let slab_bytes = class.max(SLAB_BYTES);
        if state.mapped_bytes + slab_bytes > self.limit_bytes {
            state.unmap_free_slabs();
        }
        let slab = Arc::new(Slab::map(slab_bytes as usize));
        state.mapped_bytes += slab_bytes;
        let mut slots = (0..slab_bytes / class).rev().map(|index| Slot {
            slab: slab.clone(),
            offset: (index * class) as usize,
            class,
        });
        let last = slots.next_back().expect("a slab holds at least one buffer");
        state.free.entry(class).or_default().extend(slots);
        self.metrics.pool_mapped_bytes.set(state.mapped_bytes);
        last
    }

    fn put(&self, slot: Slot) {
        let mut state = self.lock();
        state.free.entry(slot.class).or_default().push(slot);
        if state.mapped_bytes > self.limit_bytes {
            state.unmap_free_slabs();
            self.metrics.pool_mapped_bytes.set(state.mapped_bytes);
        }
    }
}

impl State {
    /// Drops the slabs of which every buffer is free.
    fn unmap_free_slabs(&mut self) {
        for (class, slots) in &mut self.free {
            let per_slab = (SLAB_BYTES / class).max(1) as usize;
            let mut free_of: HashMap<usize, usize> = HashMap::new();
            for slot in slots.iter() {
                *free_of.entry(slot.slab.address()).or_default() += 1;
            }
            let whole = free_of.values().filter(|free| **free == per_slab).count() as u64;
            slots.retain(|slot| free_of[&slot.slab.address()] != per_slab);
            self.mapped_bytes -= whole * (*class).max(SLAB_BYTES);
        }
    }
}

/// One mapping; unmapped when its last buffer is gone.
struct Slab {
    map: MmapMut,
    aligned: usize,
}

impl Slab {
    /// Maps `bytes` at a huge-page boundary: one slab more is mapped than used, and never touched.
    fn map(bytes: usize) -> Self {
        let map = MmapMut::map_anon(bytes + SLAB_BYTES as usize)
            .expect("the system maps the memory that the budget allows");
        let address = map.as_ptr() as usize;
        let aligned = address.next_multiple_of(SLAB_BYTES as usize);
        // A kernel without huge pages serves small ones: slower, not wrong.
        let _ = map.advise_range(Advice::HugePage, aligned - address, bytes);
        Self { map, aligned }
    }

    fn address(&self) -> usize {
        self.map.as_ptr() as usize
    }
}

/// One buffer's place in a slab.
struct Slot {
    slab: Arc<Slab>,
    offset: usize,
    class: u64,
}

/// A buffer out of the pool; dropping it puts it back.
pub(super) struct Lease {
    slot: Option<Slot>,
    pool: Arc<Shared>,
}

impl Lease {
    fn slot(&self) -> &Slot {
        self.slot
            .as_ref()
            .expect("a lease holds its slot until it is dropped")
    }

    fn pointer(&self) -> *mut u8 {
        let slot = self.slot();
        (slot.slab.aligned + slot.offset) as *mut u8
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the slot is a range of a live mapping (held through `slab`), handed to this lease alone: `take`
        // moves it out of the free list and only `drop` moves it back. Anonymous memory is initialised (zeroed).
        #[expect(unsafe_code, reason = "a slab is shared by buffers that never overlap")]
        unsafe {
            std::slice::from_raw_parts(self.pointer(), self.slot().class as usize)
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes this the only slice of the slot.
        #[expect(unsafe_code, reason = "a slab is shared by buffers that never overlap")]
        unsafe {
            std::slice::from_raw_parts_mut(self.pointer(), self.slot().class as usize)
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.pool.put(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::MemoryBudget;
    use proptest::prelude::*;

    fn pool(limit: u64) -> (BufferPool, MemoryBudget) {
        (
            BufferPool::new(limit, Arc::default()),
            MemoryBudget::new(limit),
        )
    }

    #[test]
    fn classes_waste_less_than_half_and_align() {
        for (len, class) in [
            (0, 64 << 10),
            (100_000, 128 << 10),
            (1 << 20, 1 << 20),
            ((1 << 20) + 1, 2 << 20),
            (8 << 20, 8 << 20),
            ((8 << 20) + 1, 10 << 20),
        ] {
            assert_eq!(class_bytes(len), class, "{len}");
        }
    }

    #[test]
    fn what_is_prepared_is_taken_first_and_nothing_is_mapped_twice() {
        let (pool, budget) = pool(4 << 20);
        pool.prepare(4096);
        pool.prepare(4096);
        assert_eq!(pool.mapped_bytes(), 2 << 20);
        let parts: Vec<_> = (0..32)
            .map(|_| pool.part(budget.try_reserve(64 << 10, 0).unwrap(), 4096))
            .collect();
        assert_eq!(pool.mapped_bytes(), 2 << 20);
        assert_eq!(pool.0.metrics.pool_misses.get(), 0);
        drop(parts);
        let (small, _) = self::pool(1 << 20);
        small.prepare(4096);
        assert_eq!(small.mapped_bytes(), 0, "no more than the limit");
    }

    #[test]
    fn the_last_buffer_back_is_the_first_out() {
        let (pool, budget) = pool(64 << 20);
        let reserve = || budget.try_reserve(8 << 20, 0).unwrap();
        let first = pool.part(reserve(), 8 << 20);
        let address = first.filled().as_ptr();
        drop(first);
        assert_eq!(pool.part(reserve(), 8 << 20).filled().as_ptr(), address);
        assert_eq!(
            (
                pool.0.metrics.pool_hits.get(),
                pool.0.metrics.pool_misses.get()
            ),
            (1, 1)
        );
    }

    #[test]
    fn another_class_gets_the_room_of_free_slabs() {
        let (pool, budget) = pool(8 << 20);
        drop(pool.part(budget.try_reserve(8 << 20, 0).unwrap(), 8 << 20));
        let small: Vec<_> = (0..64)
            .map(|_| pool.part(budget.try_reserve(128 << 10, 0).unwrap(), 100_000))
            .collect();
        assert_eq!(pool.mapped_bytes(), 8 << 20);
        drop(small);
        drop(pool.part(budget.try_reserve(8 << 20, 0).unwrap(), 8 << 20));
        assert_eq!(pool.mapped_bytes(), 8 << 20);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// No two buffers in use share a byte, whatever the order of takes and drops.
        #[test]
        fn buffers_never_overlap(steps in proptest::collection::vec((1..3_000_000usize, any::<bool>()), 1..40)) {
            let (pool, budget) = pool(64 << 20);
            let mut held: Vec<(u8, PartBuf)> = Vec::new();
            for (mark, (len, drop_one)) in steps.into_iter().enumerate() {
                if drop_one && !held.is_empty() {
                    held.swap_remove(mark % held.len());
                } else if let Some(reservation) = budget.try_reserve(class_bytes(len as u64), 0) {
                    let mut part = pool.part(reservation, len);
                    part.unfilled_mut().fill(mark as u8);
                    part.advance(len);
                    held.push((mark as u8, part));
                }
            }
            for (mark, part) in &held {
                prop_assert!(part.filled().iter().all(|byte| byte == mark));
            }
        }
    }
}
