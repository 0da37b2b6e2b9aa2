//! Activations in bf16: each kernel against its f32 self, which the other tests hold against plain loops.

use crate::plain::{Attention, Conv, Norm};
use crate::run;
use crate::support::*;
use ddpm_kernels::{Element, HeadOrder, Padding, bf16};

/// Values that bf16 holds exactly.
fn halves(seed: u64, count: usize) -> Vec<f32> {
    read(&rounded::<bf16>(&Random(seed).values(count)))
}

/// Every result is as near to f32's as the bits of bf16 allow: the root of the squares' sum.
fn check(name: &str, exact: &[Vec<f32>], run: impl Fn() -> Vec<Vec<f32>> + Sync) {
    let found = run();
    for (i, (exact, found)) in exact.iter().zip(&found).enumerate() {
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
        let off = norm(&mut exact.iter().zip(found).map(|(e, f)| f64::from(e - f)));
        let all = norm(&mut exact.iter().map(|&e| f64::from(e)));
        assert!(off <= 1.2e-2 * all, "{name}: result {i} is off by {} of its norm", off / all);
        // Rounding is there: the result is not that of another path.
        assert!(i > 0 || off > 0.0, "{name}: the same as in f32");
    }
    assert_same_on_any_threads(run);
}

/// Odd sizes everywhere: the last cell of two values, tile, panel and block are not full.
#[test]
fn convolutions() {
    fn all<E: Element>(s: Conv, residual: bool) -> Vec<Vec<f32>> {
        let g = s.geometry();
        let (x, weight, bias) = (halves(1, g.input_len()), halves(2, g.weight_len()), halves(3, g.o));
        let (onto, second, w) = (halves(4, g.output_len()), halves(5, g.input_len()), halves(99, g.output_len()));
        let y = run::conv::<E>(s, &x, &weight, &bias, residual.then_some(&onto), false);
        let grads = run::conv_grads::<E>(s, &x, &weight, &w, residual.then_some(&second));
        [vec![y], grads.to_vec()].concat()
    }
    let cases = [
        (Conv::same([3, 7, 9], [37, 41], 3, 1), false),
        (Conv::same([1, 1, 1], [1, 1], 3, 1), false),
        (Conv::same([3, 7, 9], [37, 41], 1, 1), false),
        (Conv::same([3, 7, 9], [37, 41], 3, 2), false),
        (Conv { padding: Padding::After, ..Conv::same([3, 8, 9], [37, 41], 3, 2) }, false),
        (Conv::same([2, 6, 5], [12, 12], 5, 1), true),
        (Conv::same([2, 6, 5], [12, 13], 3, 1), true),
        (Conv::same([2, 6, 5], [12, 13], 1, 1), true),
    ];
    for (s, residual) in cases {
        check(&format!("{s:?}"), &all::<f32>(s, residual), || all::<bf16>(s, residual));
    }
}

#[test]
fn group_norms() {
    fn all<E: Element>(s: Norm) -> Vec<Vec<f32>> {
        let i = [halves(1, s.n * s.pixels * s.c), halves(2, s.c), halves(3, s.c), halves(4, s.n * 2 * s.c)];
        let w = halves(99, i[0].len());
        [vec![run::norm::<E>(s, None, &i)], run::norm_grads::<E>(s, None, &i, &w, None)].concat()
    }
    for silu in [false, true] {
        let s = Norm { n: 3, pixels: 35, c: 36, groups: 6, eps: 1e-5, silu };
        check("group norm", &all::<f32>(s), || all::<bf16>(s));
    }
}

/// With an odd number of channels and positions, and without.
#[test]
fn attentions() {
    fn all<E: Element>(s: Attention) -> Vec<Vec<f32>> {
        let len = s.n * s.t * s.c();
        let qkv: Vec<f32> = halves(1, 3 * len).iter().map(|v| v * 2.0).collect();
        vec![run::attention::<E>(s, &qkv), run::attention_grad::<E>(s, &halves(99, len), &qkv)]
    }
    let even = Attention { n: 2, t: 34, heads: 2, ch: 16, order: HeadOrder::HeadsFirst };
    for s in [Attention { t: 65, ch: 13, order: HeadOrder::QkvFirst, ..even }, even] {
        check(&format!("{s:?}"), &all::<f32>(s), || all::<bf16>(s));
    }
}

/// Rounding must not turn what is not a number, or too large, into a number.
#[test]
fn nan_and_infinity_survive() {
    let s = Conv::same([1, 1, 1], [2, 2], 1, 1);
    for bad in [f32::NAN, f32::from_bits(0x7fff_ffff), f32::from_bits(0xffff_8001), f32::INFINITY] {
        let y = run::conv::<bf16>(s, &[1.0, bad], &[1.0; 4], &[0.0; 2], None, false);
        assert!(y.iter().all(|v| !v.is_finite()), "{bad}: {y:?}");
        let y = run::conv::<bf16>(s, &[1.0, 1.0], &[1.0; 4], &[bad; 2], None, false);
        assert!(y.iter().all(|v| v.is_nan() == bad.is_nan() && !v.is_finite()), "bias {bad}: {y:?}");
    }
}

/// Threads keep memory for their next task, which must not see what is in it.
#[test]
fn nothing_left_by_an_earlier_call_enters() {
    type Run = fn(Conv, f32) -> Vec<Vec<f32>>;
    fn all<E: Element>(s: Conv, value: f32) -> Vec<Vec<f32>> {
        let g = s.geometry();
        let (x, weight, w) = (vec![value; g.input_len()], vec![0.5; g.weight_len()], vec![value; g.output_len()]);
        let y = run::conv::<E>(s, &x, &weight, &vec![0.0; g.o], None, false);
        let [dx, dweight, _] = run::conv_grads::<E>(s, &x, &weight, &w, None);
        vec![y, dx, dweight]
    }
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread pool").install(|| {
        for (k, stride) in [(3, 1), (3, 2), (1, 1), (5, 1)] {
            let (large, odd) = (Conv::same([2, 7, 7], [64, 64], k, stride), Conv::same([2, 7, 7], [5, 5], k, stride));
            let (single, half): (Run, Run) = (all::<f32>, all::<bf16>);
            for [first, second] in [[single, single], [half, half], [single, half], [half, single]] {
                assert!(first(large, f32::NAN).iter().flatten().any(|v| v.is_nan()));
                assert!(second(odd, 1.0).iter().flatten().all(|v| v.is_finite()), "{odd:?}");
            }
        }
    });
}
