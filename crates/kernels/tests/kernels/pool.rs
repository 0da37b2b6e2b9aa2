//! Pooling.

use crate::support::*;
use ddpm_kernels::pool::{forward, output_size};
use ddpm_kernels::{Element, Padding, Pool2d, PoolKind, bf16};
use proptest::prelude::*;

/// The pooling as plain loops in f64.
fn plain(p: Pool2d, x: &[f32], [n, h, w, c]: [usize; 4]) -> (Vec<f64>, [usize; 4]) {
    let pad = usize::from(p.padding == Padding::Same);
    let zeros = match p.padding {
        Padding::Valid => 0,
        Padding::After => 1,
        Padding::Same => 2,
    };
    let places = |size: usize| (size + zeros - 3) / p.stride + 1;
    let shape = [n, places(h), places(w), c];
    let mut y = Vec::new();
    for (image, oy, ox, j) in indices(shape) {
        let mut seen = Vec::new();
        for (ky, kx) in (0..3).flat_map(|ky| (0..3).map(move |kx| (ky, kx))) {
            let (iy, ix) = (oy * p.stride + ky, ox * p.stride + kx);
            if iy >= pad && iy < h + pad && ix >= pad && ix < w + pad {
                seen.push(f64::from(x[((image * h + iy - pad) * w + ix - pad) * c + j]));
            }
        }
        y.push(match p.kind {
            PoolKind::Max => seen.into_iter().fold(f64::NEG_INFINITY, f64::max),
            PoolKind::Average => seen.iter().sum::<f64>() / seen.len() as f64,
        });
    }
    (y, shape)
}

fn pool<E: Element>(p: Pool2d, x: &[f32], shape: [usize; 4]) -> Vec<f32> {
    let [n, h, w, c] = shape;
    let [oh, ow] = output_size(p, [h, w]);
    written(n * oh * ow * c, |out: &mut [E]| forward(p, &rounded::<E>(x), shape, [oh, ow], out))
}

fn indices([n, h, w, c]: [usize; 4]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..n * h * w * c).map(move |at| (at / (h * w * c), at / (w * c) % h, at / c % w, at % c))
}

fn kinds() -> impl Strategy<Value = Pool2d> {
    let kind = prop_oneof![Just(PoolKind::Max), Just(PoolKind::Average)];
    let padding = prop_oneof![Just(Padding::Same), Just(Padding::Valid), Just(Padding::After)];
    (kind, 1usize..=2, padding).prop_map(|(kind, stride, padding)| Pool2d { kind, stride, padding })
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn pooling_is_the_plain_loop(p in kinds(), n in 0usize..4, h in 3usize..10, w in 3usize..10, c in 1usize..40, seed: u64) {
        let x = Random(seed).values(n * h * w * c);
        let (expected, shape) = plain(p, &x, [n, h, w, c]);
        prop_assert_eq!(output_size(p, [h, w]), [shape[1], shape[2]]);
        assert_close(&pool::<f32>(p, &x, [n, h, w, c]), &expected, 1e-6);
    }
}

#[test]
fn a_small_image_has_the_windows_that_reach_it() {
    let p = Pool2d { kind: PoolKind::Average, stride: 1, padding: Padding::Same };
    assert_eq!(pool::<f32>(p, &[2.0, 4.0], [1, 1, 2, 1]), [3.0, 3.0]);
    let p = Pool2d { padding: Padding::Valid, ..p };
    assert_eq!(output_size(p, [1, 2]), [0, 0]);
    assert!(pool::<f32>(p, &[2.0, 4.0], [1, 1, 2, 1]).is_empty());
}

#[test]
fn nan_stays_in_its_windows() {
    let mut x = vec![1.0; 25];
    x[12] = f32::NAN;
    for kind in [PoolKind::Max, PoolKind::Average] {
        let y = pool::<f32>(Pool2d { kind, stride: 1, padding: Padding::Same }, &x, [1, 5, 5, 1]);
        for (at, v) in y.iter().enumerate() {
            let sees = (at / 5).abs_diff(2) <= 1 && (at % 5).abs_diff(2) <= 1;
            assert_eq!(v.is_nan(), sees, "{at}: {v}");
        }
    }
}

#[test]
fn bf16_is_pooled_in_f32() {
    let p = Pool2d { kind: PoolKind::Average, stride: 1, padding: Padding::Same };
    assert_eq!(pool::<bf16>(p, &[1.0, 2.0, 4.0, 1.5], [1, 2, 2, 1]), [2.125; 4]);
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let x = Random(3).values(3 * 18 * 22 * 5);
    let p = Pool2d { kind: PoolKind::Average, stride: 2, padding: Padding::Same };
    assert_same_on_any_threads(|| vec![pool::<f32>(p, &x, [3, 18, 22, 5])]);
}
