//! What the cache's policy is worth, by simulation: `examples/cache_policy.rs` as a test.

#[expect(dead_code, reason = "an example's `main`")]
#[path = "../../examples/cache_policy.rs"]
mod simulation;

use simulation::{Order, Rule, steady, switched, validated};

/// C13: on epochs that are larger than the cache it hits about cache / dataset, cyclic and shuffled, where LRU does not hit
/// at all on cyclic ones; and it takes to a new dataset within three epochs.
#[test]
fn the_policy_beats_lru_on_epochs() {
    for ratio in [1.2, 2.0, 4.0, 10.0] {
        let rate = |rule, order| steady(rule, order, ratio);
        let [cyclic, shuffled] =
            [Order::Cyclic, Order::Shuffled].map(|order| rate(Rule::Ours, order));
        assert_eq!(rate(Rule::Lru, Order::Cyclic), 0.0, "{ratio}");
        for (order, ours) in [(Order::Cyclic, cyclic), (Order::Shuffled, shuffled)] {
            assert!(ours > 0.93 / ratio, "{order:?}, {ratio}: {ours}");
            assert!(
                ours > rate(Rule::Random, order),
                "{order:?}, {ratio}: {ours}"
            );
            assert!(ours > rate(Rule::Lru, order), "{order:?}, {ratio}: {ours}");
            assert!(ours <= rate(Rule::Optimal, order) + 1e-9);
        }
    }
    for order in [Order::Cyclic, Order::Shuffled] {
        let rate = |rule| switched(rule, order, 2.0, 2.0);
        assert!(rate(Rule::Ours) > 0.45, "{order:?}: {}", rate(Rule::Ours));
        assert!(rate(Rule::Ours) > rate(Rule::Lru), "{order:?}");
        // What fits is held whole.
        let small = switched(Rule::Ours, order, 2.0, 0.5);
        assert!(small > 0.95, "{order:?}: {small}");
        let ours = validated(Rule::Ours, order);
        assert!(ours > validated(Rule::Lru, order), "{order:?}: {ours}");
    }
}
