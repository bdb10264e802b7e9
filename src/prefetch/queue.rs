//! The slots between the tasks that fetch and the consumer that reads in order.
//!
//! A slot is opened for each part in delivery order, completed in any order, and taken only at the head. The waker is
//! kept here and handed out only by the completion that makes the head ready: one wake per part that was waited for.

use std::collections::VecDeque;
use std::task::Waker;

/// Parts of one stream between issue and delivery. Bounded by its user: the window limits what is opened.
#[derive(Debug)]
pub(crate) struct PartQueue<T> {
    slots: VecDeque<Option<T>>,
    /// Index of the slot at the front.
    head: u64,
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
    /// An empty queue whose first slot has index 0.
    pub(crate) fn new() -> Self {
        Self {
            slots: VecDeque::new(),
            head: 0,
            waker: None,
        }
    }

    /// Opens the next slot and returns its index.
    pub(crate) fn open(&mut self) -> u64 {
        self.slots.push_back(None);
        self.head + self.slots.len() as u64 - 1
    }

    /// The index of the next slot to be taken.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// How many slots are open.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Fills slot `index`; returns the waker to wake when the consumer waits for just this slot. Gives the item back
    /// when the slot was closed meanwhile.
    pub(crate) fn complete(&mut self, index: u64, item: T) -> Result<Option<Waker>, T> {
        let slot = index
            .checked_sub(self.head)
            .and_then(|at| self.slots.get_mut(at as usize));
        match slot {
            Some(slot) if slot.is_none() => *slot = Some(item),
            _ => return Err(item),
        }
        Ok(if index == self.head {
            self.waker.take()
        } else {
            None
        })
    }

    /// Takes the head if it is ready, else keeps `waker` for the completion that makes it so.
    pub(crate) fn take(&mut self, waker: &Waker) -> Taken<T> {
        match self.slots.front_mut().map(Option::take) {
            Some(Some(item)) => {
                self.slots.pop_front();
                self.head += 1;
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
        self.slots.front()?.as_ref()
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

    /// Closes every slot and returns what was ready, for the caller to drop without its lock.
    pub(crate) fn close(&mut self) -> Vec<T> {
        self.head += self.slots.len() as u64;
        self.slots.drain(..).flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
    fn a_part_that_comes_after_the_close_is_given_back() {
        let mut queue = PartQueue::new();
        let (first, second) = (queue.open(), queue.open());
        queue.complete(second, "b").unwrap();
        assert_eq!(queue.close(), ["b"]);
        assert_eq!(queue.complete(first, "a").unwrap_err(), "a");
        assert_eq!(queue.open(), 2);
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
