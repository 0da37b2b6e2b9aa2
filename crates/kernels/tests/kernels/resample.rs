//! Doubling and halving of image sides, and channels side by side.

use crate::plain::dot;
use crate::support::*;
use ddpm_kernels::resample::{place_channels, repeat, sum, take_channels};
use ddpm_kernels::{Element, bf16};
use proptest::prelude::*;

/// Sizes of the smaller image.
type Shape = [usize; 4];

fn shapes() -> impl Strategy<Value = Shape> {
    [1usize..6, 1usize..6, 1usize..6, 1usize..20]
}

fn larger([n, h, w, c]: Shape) -> Shape {
    [n, 2 * h, 2 * w, c]
}

/// Each value of the larger image, and where its square is in the smaller one.
fn squares(s: Shape) -> impl Iterator<Item = usize> {
    let [n, h, w, c] = larger(s);
    (0..n * h * w * c).map(move |at| {
        let (image, y, x, i) = (at / (h * w * c), at / (w * c) % h, at / c % w, at % c);
        ((image * h / 2 + y / 2) * w / 2 + x / 2) * c + i
    })
}

fn plain_up(s: Shape, x: &[f64]) -> Vec<f64> {
    squares(s).map(|at| x[at]).collect()
}

fn plain_down(s: Shape, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; s.iter().product()];
    squares(s).zip(x).for_each(|(at, v)| y[at] += v / 4.0);
    y
}

fn upsample<E: Element>(s: Shape, x: &[f32], scale: f32) -> Vec<f32> {
    written(4 * x.len(), |out: &mut [E]| repeat(&rounded::<E>(x), [s[2], s[3]], scale, out))
}

fn downsample<E: Element>(s: Shape, x: &[f32], scale: f32) -> Vec<f32> {
    written(x.len() / 4, |out: &mut [E]| sum(&rounded::<E>(x), [s[2], s[3]], scale, out))
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn values_and_gradients_are_the_plain_loops(s in shapes(), seed: u64) {
        let small: usize = s.iter().product();
        let mut random = Random(seed);
        let (x, w) = (random.values(small), random.values(4 * small));
        let (up, down) = (upsample::<f32>(s, &x, 1.0), downsample::<f32>(s, &w, 0.25));
        prop_assert_eq!(doubles(&up), plain_up(s, &doubles(&x)));
        assert_close(&down, &plain_down(s, &doubles(&w)), 1e-6);
        // Each is the other's transpose, up to the factor.
        let (up_grad, down_grad) = (downsample::<f32>(s, &w, 1.0), upsample::<f32>(s, &x, 0.25));
        assert_gradients(|v| dot(&plain_up(s, &v[0]), &w), std::slice::from_ref(&x), &[up_grad], 2e-6, 1e-7);
        assert_gradients(|v| dot(&plain_down(s, &v[0]), &x), &[w], &[down_grad], 2e-6, 1e-7);
    }

    #[test]
    fn channels_find_their_place_and_come_back(
        pixels in prop_oneof![4 => 0usize..20, 1 => Just(700usize)], c in 1usize..40, before in 0usize..9, after in 0usize..9,
        seed: u64,
    ) {
        let wide = before + c + after;
        let (x, old) = (Random(seed).values(pixels * c), Random(seed ^ 1).values(pixels * wide));
        let mut out = old.clone();
        place_channels(&x, c, &mut out, wide, before);
        for at in 0..out.len() {
            let channel = at % wide;
            let own = (before..before + c).contains(&channel);
            prop_assert_eq!(out[at], if own { x[at / wide * c + channel - before] } else { old[at] });
        }
        prop_assert_eq!(&written(x.len(), |back: &mut [f32]| take_channels(&out, wide, before, c, back)), &x);
        let halves = rounded::<bf16>(&out);
        let taken = written(x.len(), |back: &mut [bf16]| take_channels(&halves, wide, before, c, back));
        prop_assert_eq!(taken, read(&rounded::<bf16>(&x)));
    }
}

#[test]
fn halves_are_moved_as_they_are_and_summed_in_f32() {
    let s = [2, 2, 3, 5];
    let x = read(&rounded::<bf16>(&Random(3).values(4 * 60)));
    assert_eq!(upsample::<bf16>(s, &x[..60], 1.0), upsample::<f32>(s, &x[..60], 1.0));
    assert_eq!(downsample::<bf16>(s, &x, 0.25), read(&rounded::<bf16>(&downsample::<f32>(s, &x, 0.25))));
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let x = Random(3).values(3 * 18 * 22 * 5);
    assert_same_on_any_threads(|| {
        let mut joined = vec![1.0; 3 * 18 * 22 * 8];
        place_channels(&x, 5, &mut joined, 8, 2);
        let taken = written(3 * 18 * 22 * 2, |out: &mut [f32]| take_channels(&x, 5, 1, 2, out));
        vec![upsample::<f32>([3, 18, 22, 5], &x, 1.0), downsample::<f32>([3, 9, 11, 5], &x, 0.25), joined, taken]
    });
}

#[test]
fn nan_stays_in_its_square() {
    let mut x = vec![1.0; 2 * 4 * 4];
    x[5] = f32::NAN;
    let y = downsample::<f32>([2, 2, 2, 1], &x, 0.25);
    assert!(y.iter().enumerate().all(|(at, v)| v.is_nan() == (at == 0)));
    let y = upsample::<f32>([2, 4, 4, 1], &x, 1.0);
    assert!(squares([2, 4, 4, 1]).zip(&y).all(|(at, v)| v.is_nan() == (at == 5)));
}

#[test]
fn nothing_gives_nothing() {
    let s = [0, 3, 4, 2];
    assert!(upsample::<f32>(s, &[], 1.0).is_empty() && downsample::<f32>(s, &[], 1.0).is_empty());
}

#[test]
#[should_panic(expected = "an image to be halved")]
fn an_odd_side_is_refused() {
    sum(&[0.0; 6], [1, 1], 1.0, &mut [0.0; 1]);
}

#[test]
#[should_panic(expected = "channels 2 to 4 of 3")]
fn a_place_beyond_the_last_channel_is_refused() {
    place_channels(&[0.0; 4], 2, &mut [0.0; 6], 3, 2);
}
