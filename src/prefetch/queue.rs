//! The slots between the tasks that fetch and the consumer that reads in order.
//!
//! A slot is opened for each part in delivery order, completed in any order, and taken only at the head. The waker is
//! kept here and handed out only by the completion that makes the head ready: one wake per part that was waited for.

use std::collections::VecDeque;
use std::task::Waker;

/// Parts of one stream between issue and delivery. Bounded by its user: the window limits what is opened.
#[derive(Debug)]
pub(crate) struct PartQueue<T> {
    /// Slots by growing id; an id is never used twice, so a late part can't fill another's slot.
    slots: VecDeque<(u64, Option<T>)>,
    next_id: u64,
    waker: Option<Waker>,
}

/// What the consumer finds at the head.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken<T> {
    /// The next part.
    Ready(T),
    /// It is under way; the waker will be woken when it is there.
    Pending,
    /// No slot is open.
    Empty,
}

impl<T> PartQueue<T> {
    /// An empty queue.
    pub(crate) fn new() -> Self {
        Self {
            slots: VecDeque::new(),
            next_id: 0,
            waker: None,
        }
    }

    /// Opens a slot behind the others and returns its id.
    pub(crate) fn open(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.slots.push_back((id, None));
        id
    }

    /// How many slots are open.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The id of the slot at the head, or of the next one to be opened.
    pub(crate) fn head(&self) -> u64 {
        self.slots.front().map_or(self.next_id, |slot| slot.0)
    }

    /// The id of the last slot that was opened and not revoked.
    pub(crate) fn tail(&self) -> Option<u64> {
        self.slots.back().map(|slot| slot.0)
    }

    /// Fills slot `id`; returns the waker to wake when the consumer waits for just this slot. Gives the item back
    /// when the slot was closed meanwhile.
    pub(crate) fn complete(&mut self, id: u64, item: T) -> Result<Option<Waker>, T> {
        let found = self.slots.binary_search_by_key(&id, |slot| slot.0).ok();
        match found.map(|at| (at, &mut self.slots[at].1)) {
            Some((at, slot @ None)) => {
                *slot = Some(item);
                Ok(if at == 0 { self.waker.take() } else { None })
            }
            _ => Err(item),
        }
    }

    /// Takes the head if it is ready, else keeps `waker` for the completion that makes it so.
    pub(crate) fn take(&mut self, waker: &Waker) -> Taken<T> {
        match self.slots.front_mut().map(|slot| slot.1.take()) {
            Some(Some(item)) => {
                self.slots.pop_front();
                self.waker = None;
                Taken::Ready(item)
            }
            state => {
                self.wait(waker);
                if state.is_some() {
                    Taken::Pending
                } else {
                    Taken::Empty
                }
            }
        }
    }

    /// Looks at the head without taking it.
    pub(crate) fn peek(&self) -> Option<&T> {
        self.slots.front()?.1.as_ref()
    }

    /// Keeps `waker` until the head is ready or [`wake`](Self::wake) is called.
    pub(crate) fn wait(&mut self, waker: &Waker) {
        match &mut self.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// The waker of a waiting consumer, for an event other than a part.
    pub(crate) fn wake(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    /// Closes the last slot if it is slot `id`; returns what was ready in it.
    pub(crate) fn revoke(&mut self, id: u64) -> Option<Option<T>> {
        self.slots
            .pop_back_if(|slot| slot.0 == id)
            .map(|slot| slot.1)
    }

    /// Closes every slot and returns what was ready, for the caller to drop without its lock.
    pub(crate) fn close(&mut self) -> Vec<T> {
        self.slots.drain(..).filter_map(|slot| slot.1).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Wake;

    use super::*;
    use proptest::prelude::*;

    struct Ignored;

    impl Wake for Ignored {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn only_the_head_wakes() {
        let mut queue = PartQueue::new();
        let (first, second) = (queue.open(), queue.open());
        assert_eq!(queue.take(Waker::noop()), Taken::Pending);
        assert!(queue.complete(second, "b").unwrap().is_none());
        assert!(queue.complete(first, "a").unwrap().is_some());
        assert_eq!(queue.take(Waker::noop()), Taken::Ready("a"));
        assert_eq!(queue.take(Waker::noop()), Taken::Ready("b"));
        assert_eq!(queue.take(Waker::noop()), Taken::Empty);
    }

    #[test]
    fn whoever_asked_last_is_woken() {
        let [first, second] = [(); 2].map(|()| Waker::from(Arc::new(Ignored)));
        let mut queue = PartQueue::new();
        let slot = queue.open();
        assert_eq!(queue.take(&first), Taken::Pending);
        assert_eq!(queue.take(&second), Taken::Pending);
        let woken = queue.complete(slot, "a").unwrap().unwrap();
        assert!(woken.will_wake(&second) && !woken.will_wake(&first));
    }

    #[test]
    fn a_part_that_comes_after_the_close_is_given_back() {
        let mut queue = PartQueue::new();
        let (first, second) = (queue.open(), queue.open());
        queue.complete(second, "b").unwrap();
        assert_eq!(queue.close(), ["b"]);
        assert_eq!(queue.complete(first, "a").unwrap_err(), "a");
        assert_eq!(queue.open(), 2);
    }

    #[test]
    fn a_revoked_slot_takes_no_part_even_when_another_stands_in_its_place() {
        let mut queue = PartQueue::new();
        let (first, second) = (queue.open(), queue.open());
        assert_eq!(
            queue.revoke(first),
            None,
            "only the last slot can be revoked"
        );
        assert_eq!(queue.revoke(second), Some(None));
        let again = queue.open();
        assert_eq!(queue.complete(second, "late").unwrap_err(), "late");
        queue.complete(first, "a").unwrap();
        queue.complete(again, "b").unwrap();
        assert_eq!(queue.take(Waker::noop()), Taken::Ready("a"));
        assert_eq!(queue.take(Waker::noop()), Taken::Ready("b"));
    }

    proptest! {
        /// Whatever the order of completion, the order of delivery is the order of opening, and nothing is lost.
        #[test]
        fn delivery_is_in_order(order in Just((0..20u64).collect::<Vec<_>>()).prop_shuffle(), takes in proptest::collection::vec(0..4usize, 20)) {
            let mut queue = PartQueue::new();
            for _ in 0..20 { queue.open(); }
            let mut delivered = Vec::new();
            for (index, takes) in order.into_iter().zip(takes) {
                prop_assert!(queue.complete(index, index).is_ok());
                for _ in 0..takes {
                    if let Taken::Ready(item) = queue.take(Waker::noop()) { delivered.push(item); }
                }
            }
            while let Taken::Ready(item) = queue.take(Waker::noop()) { delivered.push(item); }
            prop_assert_eq!(delivered, (0..20).collect::<Vec<_>>());
        }
    }
}
