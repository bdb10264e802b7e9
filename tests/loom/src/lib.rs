//! Model checks: the engine's own sources, compiled against loom's primitives and run under every interleaving.
//!
//! `src/sync.rs` of the engine names the primitives; this crate has a module of the same name with loom's in it, and
//! takes the sources by path. So what is checked is what ships, and no dependency is built a second time.

#[path = "../../../src/buffer/budget.rs"]
#[expect(unreachable_pub, reason = "it is public in the engine")]
#[cfg_attr(not(test), expect(dead_code, reason = "the models use a part of it"))]
mod budget;
#[path = "../../../src/prefetch/queue.rs"]
#[expect(dead_code, reason = "the models use a part of it")]
mod queue;

mod sync {
    pub(crate) use loom::sync::Mutex;
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}

use std::sync::{Arc, Weak};
use std::task::Poll;

use budget::{MemoryBudget, Released, Reservation};
use loom::future::block_on;
use loom::sync::Mutex;
use loom::thread;
use queue::{PartQueue, Taken};

/// Two threads never hold more than the limit together, and everything comes back.
pub fn budget_is_never_exceeded() {
    loom::model(|| {
        let budget = MemoryBudget::new(10);
        let reserve = |budget: MemoryBudget| {
            move || {
                if let Some(held) = budget.try_reserve(6, 0) {
                    assert!(budget.reserved() <= budget.limit());
                    drop(held);
                }
            }
        };
        let other = thread::spawn(reserve(budget.clone()));
        reserve(budget.clone())();
        other.join().unwrap();
        assert_eq!(budget.reserved(), 0);
    });
}

/// Two parts complete in any order on two threads; the consumer gets both in order and no wake is lost.
pub fn parts_arrive_in_order() {
    loom::model(|| {
        let queue = loom::sync::Arc::new(Mutex::new(PartQueue::new()));
        let indices = {
            let mut queue = queue.lock().unwrap();
            [queue.open(), queue.open()]
        };
        let fetchers = indices.map(|index| {
            let queue = queue.clone();
            thread::spawn(move || {
                let wake = queue.lock().unwrap().complete(index, index).unwrap();
                if let Some(waker) = wake {
                    waker.wake();
                }
            })
        });
        for index in indices {
            assert_eq!(block_on(next(&queue)), index);
        }
        for fetcher in fetchers {
            fetcher.join().unwrap();
        }
    });
}

async fn next(queue: &Mutex<PartQueue<u64>>) -> u64 {
    std::future::poll_fn(|cx| match queue.lock().unwrap().take(cx.waker()) {
        Taken::Ready(item) => Poll::Ready(item),
        Taken::Pending | Taken::Empty => Poll::Pending,
    })
    .await
}

/// The engine in small: one part, memory for it only once another holder drops its own.
struct Engine {
    state: Mutex<State>,
    budget: MemoryBudget,
}

struct State {
    queue: PartQueue<Reservation>,
    issued: bool,
}

impl Engine {
    /// As the engine's own pump: look for memory under the lock, wake outside it.
    fn pump(&self) {
        let wake = {
            let mut state = self.state.lock().unwrap();
            if state.issued {
                return;
            }
            let Some(reservation) = self.budget.try_reserve(1, 0) else {
                return;
            };
            state.issued = true;
            let index = state.queue.open();
            state.queue.complete(index, reservation).ok().flatten()
        };
        if let Some(waker) = wake {
            waker.wake();
        }
    }
}

impl Released for Engine {
    fn released(&self) {
        self.pump();
    }
}

/// A consumer that waits for memory is woken by whoever gives it back, wherever the two meet.
pub fn released_memory_reaches_the_waiting_consumer() {
    loom::model(|| {
        let budget = MemoryBudget::new(1);
        let held = budget.try_reserve(1, 0).unwrap();
        let state = State {
            queue: PartQueue::new(),
            issued: false,
        };
        let engine = Arc::new(Engine {
            state: Mutex::new(state),
            budget: budget.clone(),
        });
        let listener: Arc<dyn Released> = engine.clone();
        let listener: Weak<dyn Released> = Arc::downgrade(&listener);
        budget.subscribe(listener);
        let holder = thread::spawn(move || drop(held));
        let reservation = block_on(std::future::poll_fn(|cx| {
            let taken = engine.state.lock().unwrap().queue.take(cx.waker());
            match taken {
                Taken::Ready(reservation) => Poll::Ready(reservation),
                Taken::Pending | Taken::Empty => {
                    engine.pump();
                    Poll::Pending
                }
            }
        }));
        holder.join().unwrap();
        drop(reservation);
        assert_eq!(budget.reserved(), 0);
    });
}
