//! Pooling.

use crate::support::*;
use burn::tensor::DType;
use ddpm_kernels::{Padding, Pool2d, PoolKind, pool};
use proptest::prelude::*;

/// The pooling as plain loops in f64.
fn plain(p: Pool2d, x: &[f32], [n, h, w, c]: [usize; 4]) -> (Vec<f64>, [usize; 4]) {
    let pad = usize::from(p.padding == Padding::Same);
    let places = |size: usize| (size + 2 * pad - 3) / p.stride + 1;
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

fn indices([n, h, w, c]: [usize; 4]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..n * h * w * c).map(move |at| (at / (h * w * c), at / (w * c) % h, at / c % w, at % c))
}

fn kinds() -> impl Strategy<Value = Pool2d> {
    let kind = prop_oneof![Just(PoolKind::Max), Just(PoolKind::Average)];
    let padding = prop_oneof![Just(Padding::Same), Just(Padding::Valid)];
    (kind, 1usize..=2, padding).prop_map(|(kind, stride, padding)| Pool2d { kind, stride, padding })
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn pooling_is_the_plain_loop(p in kinds(), n in 0usize..4, h in 3usize..10, w in 3usize..10, c in 1usize..40, seed: u64) {
        let x = Random(seed).values(n * h * w * c);
        let (expected, shape) = plain(p, &x, [n, h, w, c]);
        let y = pool(tensor(&x, [n, h, w, c]), p);
        prop_assert_eq!(y.dims(), shape);
        assert_close(&read(y), &expected, 1e-6);
    }
}

#[test]
fn a_small_image_has_the_windows_that_reach_it() {
    let p = Pool2d { kind: PoolKind::Average, stride: 1, padding: Padding::Same };
    assert_eq!(read(pool(tensor(&[2.0, 4.0], [1, 1, 2, 1]), p)), [3.0, 3.0]);
    let p = Pool2d { padding: Padding::Valid, ..p };
    assert_eq!(pool(tensor(&[2.0, 4.0], [1, 1, 2, 1]), p).dims(), [1, 0, 0, 1]);
}

#[test]
fn nan_stays_in_its_windows() {
    let mut x = vec![1.0; 25];
    x[12] = f32::NAN;
    for kind in [PoolKind::Max, PoolKind::Average] {
        let y = read(pool(tensor(&x, [1, 5, 5, 1]), Pool2d { kind, stride: 1, padding: Padding::Same }));
        for (at, v) in y.iter().enumerate() {
            let sees = (at / 5).abs_diff(2) <= 1 && (at % 5).abs_diff(2) <= 1;
            assert_eq!(v.is_nan(), sees, "{at}: {v}");
        }
    }
}

#[test]
fn bf16_is_pooled_in_f32() {
    let x = tensor(&[1.0, 2.0, 4.0, 1.5], [1, 2, 2, 1]).cast(DType::BF16);
    let y = pool(x, Pool2d { kind: PoolKind::Average, stride: 1, padding: Padding::Same });
    assert_eq!(y.dtype(), DType::BF16);
    assert_eq!(read(y.cast(DType::F32)), [2.125; 4]);
}
