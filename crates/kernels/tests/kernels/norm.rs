//! Group normalisation.

use crate::plain::{Norm, dot};
use crate::run;
use crate::support::*;
use ddpm_kernels::bf16;
use proptest::prelude::*;

fn shapes() -> impl Strategy<Value = Norm> {
    let channels = (prop_oneof![Just(1usize), 1usize..6, Just(32)], prop_oneof![Just(1usize), 1usize..6]);
    let pixels = prop_oneof![1 => Just(1usize), 3 => 1usize..50];
    (1usize..=5, pixels, channels, prop_oneof![Just(1e-5f32), Just(1e-2)], any::<bool>()).prop_map(
        |(n, pixels, (groups, per_group), eps, silu)| Norm { n, pixels, c: groups * per_group, groups, eps, silu },
    )
}

/// `x`, `weight`, `bias` and `film`.
fn inputs(s: Norm, seed: u64) -> Vec<Vec<f32>> {
    let mut random = Random(seed);
    [s.n * s.pixels * s.c, s.c, s.c, s.n * 2 * s.c].map(|len| random.values(len)).to_vec()
}

fn forward(s: Norm, i: &[Vec<f32>]) -> Vec<f32> {
    run::norm::<f32>(s, None, i)
}

fn gradients(s: Norm, i: &[Vec<f32>], w: &[f32]) -> Vec<Vec<f32>> {
    run::norm_grads::<f32>(s, None, i, w, None)
}

fn expected(s: Norm, i: &[Vec<f32>]) -> Vec<f64> {
    let i: Vec<Vec<f64>> = i.iter().map(|v| doubles(v)).collect();
    s.forward(&i[0], &i[1], &i[2], &i[3])
}

/// The largest 1/√(variance + eps): how much the layer magnifies the rounding of its input.
fn magnification(s: Norm, x: &[f32]) -> f64 {
    let x = doubles(x);
    let all = (0..s.n).flat_map(|image| (0..s.groups).map(move |group| (image, group)));
    all.map(|(image, group)| s.statistics(&x, image, group).1).fold(1.0, f64::max)
}

/// One image of the batch.
fn image(s: Norm, i: &[Vec<f32>], n: usize) -> Vec<Vec<f32>> {
    let part = |values: &[f32]| values[n * values.len() / s.n..][..values.len() / s.n].to_vec();
    vec![part(&i[0]), i[1].clone(), i[2].clone(), part(&i[3])]
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn forward_is_the_plain_loop(s in shapes(), seed: u64) {
        let i = inputs(s, seed);
        assert_close(&forward(s, &i), &expected(s, &i), 1e-6 * magnification(s, &i[0]));
    }

    #[test]
    fn images_do_not_depend_on_the_batch(s in shapes(), seed: u64) {
        let s = Norm { n: 5, ..s };
        let (i, one) = (inputs(s, seed), Norm { n: 1, ..s });
        let w = Random(seed ^ 1).values(i[0].len());
        let (y, all) = (forward(s, &i), gradients(s, &i, &w));
        for n in 0..5 {
            let alone = image(s, &i, n);
            let per = alone[0].len();
            prop_assert!(bits(&forward(one, &alone)) == bits(&y[n * per..][..per]), "output {}", n);
            let found = gradients(one, &alone, &w[n * per..][..per]);
            let expected = image(s, &all, n);
            prop_assert!(bits(&found[0]) == bits(&expected[0]), "gradient {}", n);
            prop_assert!(bits(&found[3]) == bits(&expected[3]), "gradient of scale and shift {}", n);
        }
    }
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn gradients_are_the_slopes(s in shapes(), seed: u64) {
        let i = inputs(s, seed);
        let w = Random(seed ^ 1).values(i[0].len());
        let f = |v: &[Vec<f64>]| dot(&s.forward(&v[0], &v[1], &v[2], &v[3]), &w);
        // Where a group's variance is far below eps the slopes of 1/√(variance + eps) are steep.
        let floor = 2e-6 * magnification(s, &i[0]).powi(2);
        assert_gradients(f, &i, &gradients(s, &i, &w), 1e-5, floor);
    }
}

const LARGE: Norm = Norm { n: 5, pixels: 67, c: 96, groups: 32, eps: 1e-5, silu: true };

#[test]
fn results_do_not_depend_on_the_threads() {
    let i = inputs(LARGE, 3);
    let w = Random(5).values(i[0].len());
    assert_same_on_any_threads(|| {
        let mut all = gradients(LARGE, &i, &w);
        all.push(forward(LARGE, &i));
        all
    });
}

/// Without scale and shift the layer is that with zeros.
#[test]
fn a_plain_layer_is_one_that_is_not_modulated() {
    for silu in [false, true] {
        let s = Norm { n: 3, pixels: 21, c: 36, groups: 6, eps: 1e-5, silu };
        let mut i = inputs(s, 13);
        i[3].fill(0.0);
        let w = Random(14).values(i[0].len());
        let plain = &i[..3];
        assert_eq!(forward(s, plain), forward(s, &i));
        assert_eq!(gradients(s, plain, &w), gradients(s, &i, &w)[..3]);
    }
}

/// What is added to the input's gradient is added in f32 and rounded with it; the other gradients do not see it.
#[test]
fn a_second_gradient_is_added() {
    for silu in [false, true] {
        let s = Norm { n: 3, pixels: 21, c: 36, groups: 6, eps: 1e-5, silu };
        let halves = |seed, len| read(&rounded::<bf16>(&Random(seed).values(len)));
        let mut i = inputs(s, 33);
        i[0] = halves(34, i[0].len());
        let (w, second) = (halves(35, i[0].len()), halves(36, i[0].len()));
        let plain = gradients(s, &i, &w);
        let mut expected = plain.clone();
        expected[0].iter_mut().zip(&second).for_each(|(d, s)| *d += s);
        assert_eq!(run::norm_grads::<f32>(s, None, &i, &w, Some(&second)), expected);
        expected[0] = read(&rounded::<bf16>(&expected[0]));
        assert_eq!(run::norm_grads::<bf16>(s, None, &i, &w, Some(&second)), expected);
    }
}

/// The mean and 1/√(variance + eps) of every channel's group.
#[test]
fn statistics_are_those_of_the_groups() {
    let s = Norm { n: 2, pixels: 7, c: 6, groups: 3, eps: 1e-2, silu: true };
    let i = inputs(s, 37);
    let statistics = run::norm_statistics::<f32>(s, &i);
    let x = doubles(&i[0]);
    for (at, &found) in statistics.iter().enumerate() {
        let (mean, rstd) = s.statistics(&x, at / 12, at % 6 / 2);
        assert_close(&[found], &[if at / 6 % 2 == 0 { mean } else { rstd }], 2e-6);
    }
}

#[test]
fn large_values_stay_right() {
    for silu in [false, true] {
        let s = Norm { n: 2, pixels: 33, c: 12, groups: 4, eps: 1e-5, silu };
        let mut i = inputs(s, 13);
        let w = Random(1).values(i[0].len());
        i[0].iter_mut().for_each(|v| *v *= 1e4);
        assert_close(&forward(s, &i), &expected(s, &i), 4e-6);
        // Far from zero, where SiLU is all or nothing.
        i[3].iter_mut().for_each(|v| *v *= 1e4);
        let y = expected(s, &i);
        assert_close(&forward(s, &i), &y, 1e-6 * scale(&y));
        assert!(gradients(s, &i, &w).iter().flatten().all(|v| v.is_finite()));
    }
}

/// A mean far above the deviation costs the digits that the input itself has lost, and no more, even over many pixels.
#[test]
fn a_large_mean_does_not_hide_the_deviation() {
    let s = Norm { n: 1, pixels: 64 * 64, c: 4, groups: 2, eps: 1e-5, silu: false };
    let mut i = inputs(s, 17);
    i[0].iter_mut().for_each(|v| *v += 12_345.678);
    assert_close(&forward(s, &i), &expected(s, &i), 6e-3);
    i[0].fill(12_345.678);
    i[1].fill(1.0);
    i[3].fill(0.0);
    assert_close(&forward(s, &i), &expected(s, &i), 0.5);
}

#[test]
fn nan_spreads_over_its_group_alone() {
    for silu in [false, true] {
        let s = Norm { n: 3, pixels: 9, c: 20, groups: 4, eps: 1e-5, silu };
        let i = inputs(s, 19);
        let w = Random(23).values(i[0].len());
        let (y, clean_grads) = (forward(s, &i), gradients(s, &i, &w));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut i = i.clone();
            i[0][(s.pixels + 4) * s.c + 7] = bad;
            let grads = gradients(s, &i, &w);
            let (found, dx) = (forward(s, &i), &grads[0]);
            for at in 0..found.len() {
                if at / (s.pixels * s.c) == 1 && at % s.c / 5 == 1 {
                    assert!(found[at].is_nan() && dx[at].is_nan(), "value {at}: {} and {}", found[at], dx[at]);
                } else {
                    assert!(found[at] == y[at] && dx[at] == clean_grads[0][at], "value {at}");
                }
            }
            assert!((5..10).all(|channel| grads[1][channel].is_nan()));
        }
        // A NaN among the parameters spreads over its channel.
        for (input, at) in [(1, 3), (2, 3), (3, 2 * s.c + 3), (3, 3 * s.c + 3)] {
            let mut i = i.clone();
            i[input][at] = f32::NAN;
            let found = forward(s, &i);
            for (at, (&found, &clean)) in found.iter().zip(&y).enumerate() {
                let hit = at % s.c == 3 && (input != 3 || at / (s.pixels * s.c) == 1);
                assert!(if hit { found.is_nan() } else { found == clean }, "input {input}, value {at}");
            }
        }
    }
}

/// A NaN in the output's gradient is not hidden where SiLU is flat.
#[test]
fn nan_gradients_stay_nan() {
    let s = Norm { n: 2, pixels: 5, c: 4, groups: 2, eps: 1e-5, silu: true };
    let mut i = inputs(s, 29);
    i[3].iter_mut().for_each(|v| *v = -1e4);
    let mut w = Random(31).values(i[0].len());
    w[2] = f32::NAN;
    let grads = gradients(s, &i, &w);
    assert!(grads[0][2].is_nan() && grads[1][2].is_nan() && grads[2][2].is_nan() && grads[3][2].is_nan());
    assert!(grads[0][s.pixels * s.c..].iter().all(|v| v.is_finite()));
}

#[test]
fn an_empty_batch_gives_an_empty_batch() {
    let s = Norm { n: 0, pixels: 4, c: 6, groups: 3, eps: 1e-5, silu: true };
    let i = inputs(s, 1);
    assert!(forward(s, &i).is_empty());
    assert_eq!(gradients(s, &i, &[]), [vec![], vec![0.0; 6], vec![0.0; 6], vec![]]);
}

#[test]
#[should_panic(expected = "scale and shift")]
fn modulation_of_another_batch_is_refused() {
    let s = Norm { n: 2, pixels: 1, c: 3, groups: 1, eps: 1e-5, silu: false };
    forward(s, &[vec![0.0; 6], vec![1.0; 3], vec![0.0; 3], vec![0.0; 6]]);
}

#[test]
#[should_panic(expected = "4 groups do not divide 6 channels")]
fn groups_that_do_not_divide_the_channels_are_refused() {
    let s = Norm { n: 1, pixels: 1, c: 6, groups: 4, eps: 1e-5, silu: false };
    forward(s, &[vec![0.0; 6], vec![1.0; 6], vec![0.0; 6]]);
}
