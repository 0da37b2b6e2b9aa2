//! What is done value by value, and sums over pixels.

use crate::plain::dot;
use crate::support::*;
use ddpm_kernels::elementwise::*;
use ddpm_kernels::{Element, bf16};
use proptest::prelude::*;

/// Longer than a task's share, and no multiple of it or of a vector.
const LONG: usize = 2 * 16_384 + 77;

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0usize..90, 1 => Just(LONG)]
}

type Unary<E> = fn(&[E], &mut [E]);
type Binary<E> = fn(&[E], &[E], &mut [E]);

fn unary<E: Element>(f: Unary<E>, x: &[f32]) -> Vec<f32> {
    written(x.len(), |out: &mut [E]| f(&rounded::<E>(x), out))
}

fn binary<E: Element>(f: Binary<E>, a: &[f32], b: &[f32]) -> Vec<f32> {
    written(a.len(), |out: &mut [E]| f(&rounded::<E>(a), &rounded::<E>(b), out))
}

fn plain_silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Values on both sides of zero, small and large.
fn values(seed: u64, len: usize) -> Vec<f32> {
    Random(seed).values(len).iter().map(|v| v * v * v * 20.0).collect()
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn sums_are_rounded_once(len in lengths(), seed: u64) {
        let (a, b) = (values(seed, len), values(seed ^ 1, len));
        let sums: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        prop_assert_eq!(binary::<f32>(add, &a, &b), sums);
        let [a, b] = [a, b].map(|v| read(&rounded::<bf16>(&v)));
        let sums: Vec<f32> = a.iter().zip(&b).map(|(a, b)| bf16::from_f32(a + b).to_f32()).collect();
        prop_assert_eq!(binary::<bf16>(add, &a, &b), sums);
    }

    #[test]
    fn silu_and_its_slope_are_the_plain_ones(len in lengths(), seed: u64) {
        let (x, grad) = (values(seed, len), Random(seed ^ 1).values(len));
        let plain: Vec<f64> = doubles(&x).into_iter().map(plain_silu).collect();
        let found = unary::<f32>(silu, &x);
        assert_close(&found, &plain, 2e-6 * scale(&plain));
        let slopes = binary::<f32>(silu_grad, &grad, &x);
        let step = 1e-5;
        let slope = |x: f64| (plain_silu(x + step) - plain_silu(x - step)) / (2.0 * step);
        let expected: Vec<f64> = x.iter().zip(&grad).map(|(&x, &g)| f64::from(g) * slope(f64::from(x))).collect();
        assert_close(&slopes, &expected, 2e-6);
        // In bf16 the same on what it holds, rounded; the rounding of numbers too small for it may differ.
        let [x, grad] = [x, grad].map(|v| read(&rounded::<bf16>(&v)));
        let halves = |v: Vec<f32>| doubles(&read(&rounded::<bf16>(&v)));
        assert_close(&unary::<bf16>(silu, &x), &halves(unary::<f32>(silu, &x)), 1e-37);
        assert_close(&binary::<bf16>(silu_grad, &grad, &x), &halves(binary::<f32>(silu_grad, &grad, &x)), 1e-37);
    }

    #[test]
    fn relu_is_what_remains_above_zero(len in lengths(), seed: u64) {
        let (mut x, grad) = (values(seed, len), Random(seed ^ 1).values(len));
        x.iter_mut().step_by(5).for_each(|x| *x = 0.0);
        let [x, grad] = [x, grad].map(|v| read(&rounded::<bf16>(&v)));
        let above: Vec<f32> = x.iter().map(|x| x.max(0.0)).collect();
        prop_assert_eq!(unary::<f32>(relu, &x), &above[..]);
        prop_assert_eq!(unary::<bf16>(relu, &x), above);
        let grads: Vec<f32> = grad.iter().zip(&x).map(|(&g, &x)| if x > 0.0 { g } else { 0.0 }).collect();
        prop_assert_eq!(binary::<f32>(relu_grad, &grad, &x), &grads[..]);
        prop_assert_eq!(binary::<bf16>(relu_grad, &grad, &x), grads);
    }

    #[test]
    fn rows_are_added_summed_and_spread(n in 0usize..5, pixels in 1usize..40, c in 1usize..40, seed: u64) {
        let x = read(&rounded::<bf16>(&Random(seed).values(n * pixels * c)));
        let rows = Random(seed ^ 1).values(n * c);
        let row = |at: usize| at / (pixels * c) * c + at % c;
        let sums: Vec<f32> = x.iter().enumerate().map(|(at, x)| x + rows[row(at)]).collect();
        let added = |out: &mut [f32]| add_rows(&x, &rows, pixels, c, out);
        prop_assert_eq!(written(x.len(), added), &sums[..]);
        let added = |out: &mut [bf16]| add_rows(&rounded::<bf16>(&x), &rows, pixels, c, out);
        prop_assert_eq!(written(x.len(), added), read(&rounded::<bf16>(&sums)));

        let factor = 0.375;
        let plain_sums = |x: &[f64]| {
            let mut sums = vec![0.0; n * c];
            x.iter().enumerate().for_each(|(at, x)| sums[row(at)] += f64::from(factor) * x);
            sums
        };
        let summed = written(n * c, |out: &mut [f32]| sum_pixels(&x, pixels, c, factor, out));
        assert_close(&summed, &plain_sums(&doubles(&x)), 4e-6);
        let halves = written(n * c, |out: &mut [f32]| sum_pixels(&rounded::<bf16>(&x), pixels, c, factor, out));
        prop_assert_eq!(halves, &summed[..]);

        let spread: Vec<f32> = (0..x.len()).map(|at| rows[row(at)] * factor).collect();
        let found = written(x.len(), |out: &mut [f32]| spread_rows(&rows, pixels, c, factor, out));
        prop_assert_eq!(&found, &spread);
        let halves = written(x.len(), |out: &mut [bf16]| spread_rows(&rows, pixels, c, factor, out));
        prop_assert_eq!(halves, read(&rounded::<bf16>(&spread)));
        // One is the other's transpose: the gradient of the sums is the spread one of the rows.
        if n > 0 {
            assert_gradients(|v| dot(&plain_sums(&v[0]), &rows), &[x], &[found], 2e-6, 1e-7);
        }
    }

    #[test]
    fn planes_become_pixels_and_come_back(
        n in 0usize..4, pixels in 1usize..50, c in 1usize..9, before in 0usize..4, after in 0usize..4, seed: u64,
    ) {
        let wide = before + c + after;
        let planes = read(&rounded::<bf16>(&Random(seed).values(n * c * pixels)));
        let old = read(&rounded::<bf16>(&Random(seed ^ 1).values(n * pixels * wide)));
        let (mut out, mut halves) = (old.clone(), rounded::<bf16>(&old));
        planes_to_pixels(&planes, c, pixels, &mut out, wide, before);
        planes_to_pixels(&planes, c, pixels, &mut halves, wide, before);
        for at in 0..out.len() {
            let (pixel, channel) = (at / wide, at % wide);
            let own = (before..before + c).contains(&channel);
            let plane = || (pixel / pixels * c + channel - before) * pixels + pixel % pixels;
            prop_assert_eq!(out[at], if own { planes[plane()] } else { old[at] }, "value {}", at);
        }
        prop_assert_eq!(read(&halves), &out[..]);
        let back = written(planes.len(), |back: &mut [f32]| pixels_to_planes(&out, wide, before, c, pixels, back));
        prop_assert_eq!(back, &planes[..]);
        let back = written(planes.len(), |back: &mut [f32]| pixels_to_planes(&halves, wide, before, c, pixels, back));
        prop_assert_eq!(back, planes);
    }
}

#[test]
fn images_are_summed_alone_and_whatever_the_threads() {
    let (n, pixels, c) = (5, 1000, 37);
    let (x, rows) = (Random(3).values(n * pixels * c), Random(5).values(n * c));
    let sums = |x: &[f32]| written(x.len() / pixels, |out: &mut [f32]| sum_pixels(x, pixels, c, 1.0, out));
    assert_eq!(bits(&sums(&x)[c..2 * c]), bits(&sums(&x[pixels * c..2 * pixels * c])));
    assert_same_on_any_threads(|| {
        vec![
            sums(&x),
            written(x.len(), |out: &mut [f32]| add_rows(&x, &rows, pixels, c, out)),
            written(x.len(), |out: &mut [f32]| spread_rows(&rows, pixels, c, 1.0, out)),
            written(x.len(), |out: &mut [f32]| planes_to_pixels(&x, c, pixels, out, c, 0)),
            written(x.len(), |out: &mut [f32]| pixels_to_planes(&x, c, 0, c, pixels, out)),
            unary::<f32>(silu, &x),
            binary::<f32>(silu_grad, &x, &x),
            unary::<f32>(relu, &x),
            binary::<f32>(relu_grad, &x, &x),
            binary::<f32>(add, &x, &x),
        ]
    });
}

#[test]
fn nan_stays_where_it_is() {
    fn check<E: Element>() {
        for at in [0, 13, 39] {
            let (ones, mut bad) = (vec![1.0; 40], vec![1.0; 40]);
            bad[at] = f32::NAN;
            let alone = |y: Vec<f32>| assert!(y.iter().enumerate().all(|(i, v)| v.is_nan() == (i == at)), "{y:?}");
            alone(unary::<E>(silu, &bad));
            alone(unary::<E>(relu, &bad));
            for (a, b) in [(&ones, &bad), (&bad, &ones)] {
                alone(binary::<E>(add, a, b));
                alone(binary::<E>(silu_grad, a, b));
            }
            alone(binary::<E>(relu_grad, &bad, &ones));
            // Where the input is NaN its gradient is that of the output; where it is cut off it is zero, whatever comes.
            assert_eq!(binary::<E>(relu_grad, &ones, &bad), ones);
            assert_eq!(binary::<E>(relu_grad, &bad, &[-1.0; 40]), [0.0; 40]);
            let sums = |x: &[f32]| written(8, |out: &mut [f32]| sum_pixels(&rounded::<E>(x), 5, 4, 1.0, out));
            let hit = at / 20 * 4 + at % 4;
            assert!(sums(&bad).iter().enumerate().all(|(i, v)| v.is_nan() == (i == hit)));
        }
    }
    check::<f32>();
    check::<bf16>();
}

#[test]
fn large_values_saturate() {
    assert_close(&unary::<f32>(silu, &[1e4, -1e4, 88.0, -88.0]), &[1e4, 0.0, 88.0, 0.0], 1e-30);
    assert_close(&binary::<f32>(silu_grad, &[2.0; 2], &[1e4, -1e4]), &[2.0, 0.0], 1e-30);
}

#[test]
#[should_panic(expected = "lengths of inputs and output")]
fn other_lengths_are_refused() {
    add(&[0.0f32; 3], &[0.0; 2], &mut [0.0; 3]);
}

#[test]
#[should_panic(expected = "rows of 2 channels")]
fn rows_of_another_batch_are_refused() {
    add_rows(&[0.0f32; 12], &[0.0; 2], 3, 2, &mut [0.0; 12]);
}

#[test]
#[should_panic(expected = "channels 1 to 4 of 3")]
fn planes_beyond_the_last_channel_are_refused() {
    planes_to_pixels(&[0.0; 6], 3, 2, &mut [0.0f32; 6], 3, 1);
}
