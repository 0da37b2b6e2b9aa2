//! Self-attention.

use crate::plain::{Attention, dot};
use crate::run;
use crate::support::*;
use ddpm_kernels::HeadOrder;
use proptest::prelude::*;

const ORDERS: [HeadOrder; 2] = [HeadOrder::HeadsFirst, HeadOrder::QkvFirst];

fn shapes() -> impl Strategy<Value = Attention> {
    let t = prop_oneof![1 => Just(1usize), 4 => 1usize..30];
    let ch = prop_oneof![1 => Just(1usize), 3 => 1usize..20];
    (1usize..=5, t, 1usize..=4, ch, prop_oneof![Just(ORDERS[0]), Just(ORDERS[1])])
        .prop_map(|(n, t, heads, ch, order)| Attention { n, t, heads, ch, order })
}

fn inputs(s: Attention, seed: u64) -> Vec<f32> {
    Random(seed).values(s.n * s.t * 3 * s.c()).iter().map(|v| v * 2.0).collect()
}

fn forward(s: Attention, qkv: &[f32]) -> Vec<f32> {
    run::attention::<f32>(s, qkv)
}

fn gradient(s: Attention, qkv: &[f32], w: &[f32]) -> Vec<f32> {
    run::attention_grad::<f32>(s, w, qkv)
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn forward_is_the_plain_loop(s in shapes(), seed: u64) {
        let qkv = inputs(s, seed);
        assert_close(&forward(s, &qkv), &s.forward(&doubles(&qkv)), 4e-6);
    }

    #[test]
    fn images_do_not_depend_on_the_batch(s in shapes(), seed: u64) {
        let s = Attention { n: 5, ..s };
        let (qkv, one) = (inputs(s, seed), Attention { n: 1, ..s });
        let w = Random(seed ^ 1).values(qkv.len() / 3);
        let (y, dqkv) = (forward(s, &qkv), gradient(s, &qkv, &w));
        let per = s.t * s.c();
        for n in 0..5 {
            let alone = &qkv[n * 3 * per..][..3 * per];
            prop_assert!(bits(&forward(one, alone)) == bits(&y[n * per..][..per]), "output {}", n);
            let found = gradient(one, alone, &w[n * per..][..per]);
            prop_assert!(bits(&found) == bits(&dqkv[n * 3 * per..][..3 * per]), "gradient {}", n);
        }
    }
}

proptest! {
    #![proptest_config(config(32))]

    #[test]
    fn gradients_are_the_slopes(s in shapes(), seed: u64) {
        let qkv = inputs(s, seed);
        let w = Random(seed ^ 1).values(qkv.len() / 3);
        let f = |v: &[Vec<f64>]| dot(&s.forward(&v[0]), &w);
        assert_gradients(f, std::slice::from_ref(&qkv), &[gradient(s, &qkv, &w)], 5e-6, 1e-6);
    }
}

/// Long enough for the products to be split.
const LARGE: [Attention; 2] = [
    Attention { n: 3, t: 143, heads: 2, ch: 35, order: ORDERS[0] },
    Attention { n: 2, t: 65, heads: 3, ch: 70, order: ORDERS[1] },
];

#[test]
fn long_sequences_are_right() {
    for s in LARGE {
        let qkv = inputs(s, 3);
        let w = Random(5).values(qkv.len() / 3);
        assert_close(&forward(s, &qkv), &s.forward(&doubles(&qkv)), 1e-5);
        let s = Attention { n: 1, ..s };
        let (qkv, w) = (&qkv[..s.t * 3 * s.c()], &w[..s.t * s.c()]);
        let f = |v: &[Vec<f64>]| dot(&s.forward(&v[0]), w);
        assert_gradients(f, &[qkv.to_vec()], &[gradient(s, qkv, w)], 1e-5, 1e-6);
    }
}

#[test]
fn results_do_not_depend_on_the_threads_or_the_batch() {
    for s in LARGE {
        let qkv = inputs(s, 7);
        let w = Random(11).values(qkv.len() / 3);
        assert_same_on_any_threads(|| vec![forward(s, &qkv), gradient(s, &qkv, &w)]);
        let (one, per) = (Attention { n: 1, ..s }, s.t * s.c());
        assert_eq!(bits(&forward(one, &qkv[3 * per..][..3 * per])), bits(&forward(s, &qkv)[per..][..per]));
        let alone = gradient(one, &qkv[3 * per..][..3 * per], &w[per..][..per]);
        assert_eq!(bits(&alone), bits(&gradient(s, &qkv, &w)[3 * per..][..3 * per]));
    }
}

/// Scores up to 1e9 whose products are exact in f32, so that ties and gaps are those of the plain loop.
#[test]
fn large_values_stay_right() {
    for order in ORDERS {
        let s = Attention { n: 2, t: 13, heads: 2, ch: 8, order };
        let mut random = Random(17);
        let qkv: Vec<f32> = (0..s.n * s.t * 3 * s.c()).map(|_| (random.value() * 10.0).round() * 1000.0).collect();
        assert_close(&forward(s, &qkv), &s.forward(&doubles(&qkv)), 1e-2);
        let w = random.values(qkv.len() / 3);
        assert!(gradient(s, &qkv, &w).iter().all(|v| v.is_finite()));
    }
}

/// Equal scores however large give the mean of the values.
#[test]
fn equal_scores_share_equally() {
    let s = Attention { n: 1, t: 7, heads: 1, ch: 4, order: ORDERS[1] };
    let mut qkv = inputs(s, 19);
    for position in 0..s.t {
        for i in 0..s.ch {
            qkv[s.at(0, 0, position, 0, i)] = 1e4;
            qkv[s.at(1, 0, position, 0, i)] = -1e4;
        }
    }
    assert_close(&forward(s, &qkv), &s.forward(&doubles(&qkv)), 1e-6);
}

#[test]
fn nan_spreads_as_far_as_it_is_seen() {
    for order in ORDERS {
        let s = Attention { n: 3, t: 6, heads: 3, ch: 5, order };
        let qkv = inputs(s, 23);
        let w = Random(29).values(qkv.len() / 3);
        let (clean, clean_grad) = (forward(s, &qkv), gradient(s, &qkv, &w));
        for part in 0..3 {
            let mut qkv = qkv.clone();
            qkv[s.at(part, 1, 2, 1, 3)] = f32::NAN;
            let (y, dqkv) = (forward(s, &qkv), gradient(s, &qkv, &w));
            for (at, (&y, &clean)) in y.iter().zip(&clean).enumerate() {
                let (image, position, head, i) = (at / (s.t * s.c()), at / s.c() % s.t, at / s.ch % s.heads, at % s.ch);
                // A query is seen by its own position, a key by all, a value by its own channel.
                let sees = image == 1 && head == 1 && [position == 2, true, i == 3][part];
                assert!(if sees { y.is_nan() } else { y == clean }, "part {part}, output {at}: {y} from {clean}");
            }
            for image in 0..s.n {
                for head in 0..s.heads {
                    let all = (0..s.t).flat_map(|t| (0..3 * s.ch).map(move |i| (t, i)));
                    let found: Vec<usize> = all.map(|(t, i)| s.at(i / s.ch, image, t, head, i % s.ch)).collect();
                    if (image, head) == (1, 1) {
                        assert!(found.iter().any(|&at| dqkv[at].is_nan()));
                    } else {
                        assert!(found.iter().all(|&at| dqkv[at] == clean_grad[at]));
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_gives_nothing() {
    for (n, t) in [(0, 4), (3, 0)] {
        let s = Attention { n, t, heads: 2, ch: 3, order: ORDERS[0] };
        assert!(forward(s, &[]).is_empty() && gradient(s, &[], &[]).is_empty());
    }
}

#[test]
#[should_panic(expected = "queries, keys and values")]
fn channels_of_other_heads_are_refused() {
    forward(Attention { n: 1, t: 1, heads: 2, ch: 2, order: ORDERS[0] }, &[0.0; 9]);
}
