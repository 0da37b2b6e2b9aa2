//! Convolutions in tiles against plain loops, with a program in place of the tiles.

use super::conv::{convolve, convolve_scratch, pack, packed_len};
use super::tiles::Emulated;
use super::weight_grad::{Packing, weight_grad, weight_grad_scratch};
use crate::buffer::{kept_bytes, with_scratch};
use crate::conv::{Epilogue, Geometry};
use crate::element::Element;
use crate::winograd::Direction;
use crate::{Conv2d, Padding};
use half::bf16;
use proptest::prelude::*;

fn values<E: Element>(n: usize, seed: &mut u64) -> Vec<E> {
    let mut next = || {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        E::from_f32((*seed >> 40) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..n).map(|_| next()).collect()
}

fn floats<E: Element>(values: &[E]) -> Vec<f32> {
    values.iter().map(|v| v.to_f32()).collect()
}

fn geometry([n, h, w, c, o]: [usize; 5], kernel: usize, zeros: usize) -> Geometry {
    let conv = Conv2d { padding: Padding::Same, ..Conv2d::same([kernel; 2], 1) };
    Geometry { padding: [[zeros; 2]; 2], ..Geometry::new(conv, [n, h, w, c], o) }
}

/// Calls `visit` with the places of input, weight and output of every product.
fn every_product(g: Geometry, mut visit: impl FnMut(usize, usize, usize)) {
    let (zeros, k) = (g.padding[0][0], g.kernel[0]);
    for n in 0..g.n {
        for y in 0..g.out_h() {
            for x in 0..g.out_w() {
                for tap in 0..k * k {
                    let (iy, ix) = ((y + tap / k).wrapping_sub(zeros), (x + tap % k).wrapping_sub(zeros));
                    if iy >= g.h || ix >= g.w {
                        continue;
                    }
                    for o in 0..g.o {
                        for c in 0..g.c {
                            let input = ((n * g.h + iy) * g.w + ix) * g.c + c;
                            visit(input, (o * g.c + c) * k * k + tap, ((n * g.out_h() + y) * g.out_w() + x) * g.o + o);
                        }
                    }
                }
            }
        }
    }
}

fn assert_near(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(found) - expected).abs();
        assert!(off <= tolerance * (1.0 + expected.abs()), "{found}, not {expected}, at {i}");
    }
}

fn convolve_with<E: Element>(
    g: Geometry,
    x: &[E],
    weight: &[f32],
    direction: Direction,
    epilogue: Epilogue<E>,
    out: &mut [E],
) {
    with_scratch(packed_len::<E>(g), |packed: &mut [E]| {
        packed.fill(E::from_f32(f32::NAN));
        pack(g, weight, direction, packed);
        // SAFETY: emulated tiles are there.
        unsafe { convolve::<Emulated, E>(g, x, packed, epilogue, out) };
    });
}

/// A convolution and its gradients, with values of a type, whose own rounding of an output is `tolerance`.
fn check<E: Element + PartialEq>(shape: [usize; 5], kernel: usize, zeros: usize, tolerance: f64, mut seed: u64) {
    let g = geometry(shape, kernel, zeros);
    let x: Vec<E> = values(g.input_len(), &mut seed);
    let grad: Vec<E> = values(g.output_len(), &mut seed);
    let weight = floats(&values::<E>(g.weight_len(), &mut seed));
    let bias = floats(&values::<E>(g.o, &mut seed));
    let none = E::from_f32(f32::NAN);
    let (mut y, mut dx, mut dw) = (vec![0.0; g.output_len()], vec![0.0; g.input_len()], vec![0.0; g.weight_len()]);
    for (y, v) in y.iter_mut().zip(&grad) {
        // As the residual.
        *y = f64::from(v.to_f32());
    }
    y.iter_mut().enumerate().for_each(|(i, y)| *y += f64::from(bias[i % g.o]));
    for (dx, v) in dx.iter_mut().zip(&x) {
        *dx = f64::from(v.to_f32());
    }
    let wide = |v: E| f64::from(v.to_f32());
    every_product(g, |i, w, o| {
        y[o] += wide(x[i]) * f64::from(weight[w]);
        dx[i] += wide(grad[o]) * f64::from(weight[w]);
        dw[w] += wide(x[i]) * wide(grad[o]);
    });
    let forward = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        let epilogue = Epilogue { bias: Some(&bias[..]), residual: Some(&grad[..]), relu: false };
        let mut out = vec![none; g.output_len()];
        pool.install(|| convolve_with(g, &x, &weight, Direction::Forward, epilogue, &mut out));
        out
    };
    let out = forward(1);
    assert_near(&floats(&out), &y, tolerance);
    assert!(forward(3) == out, "strips of another height");
    let mut out = vec![none; g.input_len()];
    let epilogue = Epilogue { bias: None, residual: Some(&x[..]), relu: false };
    convolve_with(g.turned(), &grad, &weight, Direction::Backward, epilogue, &mut out);
    assert_near(&floats(&out), &dx, tolerance);
    check_weight_grad(g, &x, &grad, &dw);
}

/// [`check`] in both types.
fn check_both(shape: [usize; 5], kernel: usize, zeros: usize, seed: u64) {
    // An output in bf16 is rounded to eight bits.
    check::<bf16>(shape, kernel, zeros, 1.0 / 250.0, seed);
    // Of f32 3·2⁻¹⁶ of each product is missing at most; a half left out would be up to 2⁻⁸.
    check::<f32>(shape, kernel, zeros, 3e-4, seed);
}

fn check_weight_grad<E: Element>(g: Geometry, x: &[E], grad: &[E], expected: &[f64]) {
    let mut out = vec![f32::NAN; g.weight_len()];
    // SAFETY: emulated tiles are there.
    unsafe { weight_grad::<Emulated, E>(g, x, grad, &mut out) };
    assert_near(&out, expected, 3e-4);
}

#[test]
fn weight_gradients_of_more_images_than_are_packed_at_a_time_are_plain_loops() {
    let g = geometry([70, 16, 16, 33, 33], 3, 1);
    assert!(Packing::new::<bf16>(g).images < g.n, "one group of images");
    // What a few pixels of each image add, elsewhere zeros.
    let (mut seed, mut dw) = (3, vec![0.0; g.weight_len()]);
    let (x, mut grad) = (values::<bf16>(g.input_len(), &mut seed), vec![bf16::ZERO; g.output_len()]);
    for n in 0..g.n {
        let pixel = n * 256 + n * 37 % 256;
        let (y, column) = (n * 37 % 256 / 16, n * 37 % 16);
        grad[pixel * 33..][..33].copy_from_slice(&values(33, &mut seed));
        for tap in 0..9 {
            let (iy, ix) = ((y + tap / 3).wrapping_sub(1), (column + tap % 3).wrapping_sub(1));
            if iy >= 16 || ix >= 16 {
                continue;
            }
            for (o, c) in (0..33).flat_map(|o| (0..33).map(move |c| (o, c))) {
                let input = x[((n * 16 + iy) * 16 + ix) * 33 + c];
                dw[(o * 33 + c) * 9 + tap] += f64::from(input.to_f32()) * f64::from(grad[pixel * 33 + o].to_f32());
            }
        }
    }
    check_weight_grad(g, &x, &grad, &dw);
}

#[test]
fn weight_gradients_of_single_pixels_are_plain_loops() {
    // Less than a tile of pixels, several rows of them with a rest, and none.
    for shape in [[5, 1, 1, 40, 33], [3, 20, 37, 17, 16], [2, 32, 32, 32, 64], [0, 4, 4, 16, 16]] {
        let (g, mut seed) = (geometry(shape, 1, 0), 11);
        let (x, grad) = (values::<bf16>(g.input_len(), &mut seed), values::<bf16>(g.output_len(), &mut seed));
        let mut dw = vec![0.0; g.weight_len()];
        every_product(g, |i, w, o| dw[w] += f64::from(x[i].to_f32()) * f64::from(grad[o].to_f32()));
        check_weight_grad(g, &x, &grad, &dw);
        check::<f32>(shape, 1, 0, 3e-4, 11);
    }
}

#[test]
fn large_layers_are_plain_loops() {
    // More steps than a group, more positions than blocks of a run and steps of a chunk, tiles that are not full.
    for shape in [[1, 4, 5, 160, 33], [2, 18, 17, 33, 16], [1, 3, 70, 16, 40], [3, 8, 8, 64, 64]] {
        check_both(shape, 3, 1, 7);
    }
    // The last block of 32 positions has 17, all of which are outputs; and 16.
    check_both([2, 1, 25, 16, 16], 3, 2, 7);
    check_both([2, 2, 10, 16, 16], 3, 2, 7);
}

fn check_scratch<E: Element>(shape: [usize; 5], kernel: usize) {
    let taken = |threads: usize, work: &(dyn Fn() + Sync)| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        pool.install(work);
        pool.broadcast(|_| kept_bytes()).into_iter().sum::<usize>()
    };
    let (g, mut seed) = (geometry(shape, kernel, kernel / 2), 5);
    let (x, grad) = (values::<E>(g.input_len(), &mut seed), values::<E>(g.output_len(), &mut seed));
    let weight = vec![1.0; g.weight_len()];
    let epilogue = Epilogue { bias: None, residual: None, relu: false };
    let convolved = || {
        let mut out = vec![E::default(); g.output_len()];
        convolve_with(g, &x, &weight, Direction::Forward, epilogue, &mut out);
    };
    // SAFETY: emulated tiles are there.
    let summed = || unsafe { weight_grad::<Emulated, E>(g, &x, &grad, &mut vec![0.0; g.weight_len()]) };
    for threads in [1, 3] {
        for (taken, bound) in [
            (taken(threads, &summed), weight_grad_scratch::<E>(g, threads)),
            (taken(threads, &convolved), convolve_scratch::<E>(g, threads)),
        ] {
            assert!(taken <= bound, "{taken} bytes, beyond {bound}: {g:?}");
            // One thread does all of the work: the bound is not idle.
            assert!(threads > 1 || 2 * taken >= bound, "{taken} bytes, far from {bound}: {g:?}");
        }
    }
}

#[test]
fn scratch_is_bounded() {
    for (shape, kernel) in [([4, 16, 16, 40, 70], 3), ([1, 5, 7, 160, 33], 3), ([3, 33, 32, 33, 130], 1)] {
        check_scratch::<bf16>(shape, kernel);
        check_scratch::<f32>(shape, kernel);
    }
}

#[test]
fn an_output_that_is_infinite_touches_no_other() {
    let g = geometry([1, 3, 3, 17, 17], 3, 1);
    let mut weight = vec![1.0; g.weight_len()];
    weight[16 * 17 * 9..].fill(f32::INFINITY);
    let (x, mut out) = (vec![bf16::ONE; g.input_len()], vec![bf16::NAN; g.output_len()]);
    let epilogue = Epilogue { bias: None, residual: None, relu: false };
    convolve_with(g, &x, &weight, Direction::Forward, epilogue, &mut out);
    assert_eq!(out[4 * 17..][..17].iter().filter(|v| v.to_f32() == 9.0 * 17.0).count(), 16);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_is_a_plain_loop(
        n in 0usize..4, h in 1usize..9, w in 1usize..12, c in 1usize..40, o in 1usize..40, zeros in 0usize..3, seed: u64,
    ) {
        let smallest = 3usize.saturating_sub(2 * zeros).max(1);
        check_both([n, h.max(smallest), w.max(smallest), c, o], 3, zeros, seed);
        check_both([n, h, w, c, o], 1, 0, seed);
    }
}
