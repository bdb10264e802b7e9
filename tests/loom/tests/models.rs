//! Runs the models; loom fails one on a deadlock, a lost wake or a broken assertion in any interleaving.

#[test]
fn budget_is_never_exceeded() {
    standpipe_loom::budget_is_never_exceeded();
}

#[test]
fn parts_arrive_in_order() {
    standpipe_loom::parts_arrive_in_order();
}

#[test]
fn released_memory_reaches_the_waiting_consumer() {
    standpipe_loom::released_memory_reaches_the_waiting_consumer();
}
