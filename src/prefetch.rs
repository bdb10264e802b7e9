//! The engine: reads objects ahead of their consumers, in order, within a memory budget.
//!
//! A *stream* is a sequence of objects read back to back. Its objects are cut into parts on a fixed grid (`plan`).
//! Parts are issued in delivery order, never more than the stream's `ReadWindow` ahead of its consumer, never more
//! than the engine's concurrency in flight, and never before their memory is reserved. Each part is one spawned task;
//! it fills its buffer and puts it into the stream's `PartQueue`, from which the consumer takes the head.
//!
//! Every decision is made by `schedule::Core`, a plain state machine behind one mutex: events go in (a part is done,
//! a consumer waits, memory is free), parts to fetch come out. The tasks around it only act. What limits throughput is
//! the bytes in flight: 100 Gb/s at S3's latency takes 2.4 GB of them, so the budget is the first knob and the
//! concurrency the second.
//!
//! Why nothing deadlocks: a stream reserves memory only in delivery order, and while it has no part under way, a
//! *head credit* of one part stays free for it. So the part that a consumer waits for can always be fetched, whatever
//! the other streams hold. The exception is a consumer that keeps every byte it was given (collecting into a list), or
//! memory that can't be taken back at once: its next part is then fetched beyond the budget, and counted as an
//! overdraft. One part per waiting stream, never more.

mod config;
mod plan;
mod queue;
mod reader;
mod schedule;
mod stream;
mod task;
mod verify;
mod window;

pub use config::{PrefetchConfig, model_concurrency};
pub use reader::{BlockingReader, Chunk, Next, ObjectReader};
pub use task::Prefetcher;
