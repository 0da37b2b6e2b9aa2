//! AdamW, the moving average and the sum of squares.

use crate::support::*;
use ddpm_kernels::AdamW;
use ddpm_kernels::optim::{adamw, sum_squares};
use proptest::prelude::*;

const SETTINGS: AdamW = AdamW { lr: 1e-4, weight_decay: 0.0, betas: [0.9, 0.999], eps: 1e-8, step: 1, grad_scale: 1.0 };

/// Longer than the pieces that the updates are split into.
const LONG: usize = 2 * 65_536 + 13;

/// Parameter and moments.
type State = [Vec<f32>; 3];

fn step(mut state: State, grad: &[f32], settings: AdamW) -> State {
    let [param, m, v] = &mut state;
    adamw(&settings, param, grad, m, v, &mut []);
    state
}

/// The average of a parameter, as it comes out of a step that leaves the parameter where it is.
fn ema(mut target: Vec<f32>, source: &[f32], rate: f64) -> Vec<f32> {
    let (mut param, zeros) = (source.to_vec(), vec![0.0; source.len()]);
    let (mut m, mut v) = (zeros.clone(), zeros.clone());
    adamw(&SETTINGS, &mut param, &zeros, &mut m, &mut v, &mut [(rate, &mut target)]);
    assert_eq!(param, source);
    target
}

/// The update in torch.optim.AdamW's documentation, each tensor operation rounded to f32.
fn plain_step([param, m, v]: &mut State, grad: &[f32], h: AdamW) {
    let [beta1, beta2] = h.betas;
    let bias_correction1 = 1.0 - beta1.powi(h.step as i32);
    let bias_correction2 = 1.0 - beta2.powi(h.step as i32);
    for i in 0..param.len() {
        let g = grad[i] * h.grad_scale as f32;
        param[i] *= (1.0 - h.lr * h.weight_decay) as f32;
        m[i] += (1.0 - beta1) as f32 * (g - m[i]);
        v[i] *= beta2 as f32;
        v[i] += (1.0 - beta2) as f32 * g * g;
        let denominator = v[i].sqrt() / bias_correction2.sqrt() as f32 + h.eps as f32;
        param[i] += -(h.lr / bias_correction1) as f32 * m[i] / denominator;
    }
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn adamw_is_pytorchs_update(
        len in 1usize..70,
        (lr, weight_decay, grad_scale) in (
            prop_oneof![Just(1e-4), Just(0.1)],
            prop_oneof![Just(0.0), Just(0.01), Just(1.0)],
            prop_oneof![Just(1.0), Just(0.37)],
        ),
        betas in prop_oneof![Just([0.9, 0.999]), Just([0.5, 0.9])],
        first in prop_oneof![Just(1u64), Just(1000)],
        magnitude in prop_oneof![Just(1.0f32), Just(1e-6), Just(1e4)],
        seed: u64,
    ) {
        let mut random = Random(seed);
        let mut state = [random.values(len), vec![0.0; len], vec![0.0; len]];
        let mut plain = state.clone();
        for step_index in first..first + 6 {
            let grad: Vec<f32> = random.values(len).iter().map(|v| v * magnitude).collect();
            let settings = AdamW { lr, weight_decay, betas, eps: 1e-8, step: step_index, grad_scale };
            state = step(state, &grad, settings);
            plain_step(&mut plain, &grad, settings);
            for (found, expected) in state.iter().zip(&plain) {
                prop_assert_eq!(bits(found), bits(expected), "step {}", step_index);
            }
        }
    }

    #[test]
    fn ema_is_the_weighted_mean(len in 1usize..70, rate in 0.0..1.0, seed: u64) {
        let mut random = Random(seed);
        let (target, source) = (random.values(len), random.values(len));
        let plain: Vec<f64> =
            target.iter().zip(&source).map(|(&t, &s)| f64::from(t) * rate + f64::from(s) * (1.0 - rate)).collect();
        assert_close(&ema(target, &source, rate), &plain, 2e-7);
    }

    #[test]
    fn sum_squares_is_the_sum(len in 1usize..70, magnitude in prop_oneof![Just(1.0f32), Just(1e4), Just(1e-4)], seed: u64) {
        let x: Vec<f32> = Random(seed).values(len).iter().map(|v| v * magnitude).collect();
        let plain: f64 = doubles(&x).iter().map(|v| v * v).sum();
        prop_assert!((sum_squares(&x) - plain).abs() <= 1e-13 * plain);
    }
}

/// The first step moves every parameter by the learning rate against its gradient, and decay is apart from the moments.
#[test]
fn the_first_step_is_known() {
    let state = [vec![1.0, -2.0, 3.0], vec![0.0; 3], vec![0.0; 3]];
    let h = AdamW { lr: 0.125, weight_decay: 0.5, ..SETTINGS };
    let [param, m, v] = step(state, &[4.0, -1e-3, 0.0], h);
    assert_close(&param, &[0.9375 - 0.125, -1.875 + 0.125, 2.8125], 2e-6);
    assert_close(&m, &[0.4, -1e-4, 0.0], 1e-7);
    assert_close(&v, &[0.016, 1e-9, 0.0], 1e-8);
}

#[test]
fn the_gradients_scale_comes_first() {
    let mut random = Random(3);
    let state: State = [random.values(40), vec![0.0; 40], vec![0.0; 40]];
    let grad = random.values(40);
    let halved: Vec<f32> = grad.iter().map(|v| v * 0.5).collect();
    let scaled = step(state.clone(), &grad, AdamW { grad_scale: 0.5, ..SETTINGS });
    assert_eq!(scaled, step(state, &halved, SETTINGS));
}

#[test]
fn every_piece_of_a_long_parameter_is_updated_whatever_the_threads() {
    let mut random = Random(5);
    let state: State =
        [random.values(LONG), random.values(LONG), random.values(LONG).iter().map(|v| v.abs()).collect()];
    let grad = random.values(LONG);
    let settings = AdamW { weight_decay: 0.01, step: 10, ..SETTINGS };
    let mut plain = state.clone();
    plain_step(&mut plain, &grad, settings);
    assert!(step(state.clone(), &grad, settings).iter().zip(&plain).all(|(a, b)| bits(a) == bits(b)));
    let averaged = |rate| ema(state[0].clone(), &grad, rate);
    assert_eq!((averaged(1.0), averaged(0.0)), (state[0].clone(), grad.clone()));
    let total: f64 = doubles(&grad).iter().map(|v| v * v).sum();
    assert!((sum_squares(&grad) - total).abs() <= 1e-11 * total);
    assert_same_on_any_threads(|| {
        let mut all = step(state.clone(), &grad, settings).to_vec();
        let sum = sum_squares(&grad).to_bits();
        all.extend([averaged(0.999), vec![f32::from_bits((sum >> 32) as u32), f32::from_bits(sum as u32)]]);
        all
    });
}

/// One pass is the step and then every average, each operation rounded to f32.
#[test]
fn averages_follow_the_new_parameter() {
    let mut random = Random(7);
    let state: State =
        [random.values(LONG), random.values(LONG), random.values(LONG).iter().map(|v| v.abs()).collect()];
    let (grad, old) = (random.values(LONG), [random.values(LONG), random.values(LONG)]);
    let settings = AdamW { lr: 1e-2, weight_decay: 0.1, step: 4, ..SETTINGS };
    let run = || {
        let ([mut param, mut m, mut v], [mut first, mut second]) = (state.clone(), old.clone());
        let mut averages = [(0.9999, &mut first[..]), (0.5, &mut second[..])];
        adamw(&settings, &mut param, &grad, &mut m, &mut v, &mut averages);
        vec![param, m, v, first, second]
    };
    let found = run();
    let expected = step(state.clone(), &grad, settings);
    assert!(found[..3].iter().zip(&expected).all(|(a, b)| bits(a) == bits(b)));
    for ((found, old), rate) in found[3..].iter().zip(&old).zip([0.9999f64, 0.5]) {
        let (rate, rest) = (rate as f32, (1.0 - rate) as f32);
        let expected: Vec<f32> = old.iter().zip(&expected[0]).map(|(old, new)| old * rate + new * rest).collect();
        assert!(bits(found) == bits(&expected), "rate {rate}");
    }
    assert_same_on_any_threads(run);
}

#[test]
fn nan_stays_where_it_is() {
    let ones = || vec![1.0f32; 20];
    for input in 0..4 {
        let mut inputs = [ones(), ones(), ones(), ones()];
        inputs[input][13] = f32::NAN;
        let [param, m, v, g] = inputs;
        let [param, ..] = step([param, m, v], &g, SETTINGS);
        assert!(param.iter().enumerate().all(|(i, v)| v.is_nan() == (i == 13)));
    }
    let mut x = ones();
    x[13] = f32::NAN;
    for (target, source) in [(&x, &ones()), (&ones(), &x)] {
        let (mut y, mut param) = (target.clone(), source.clone());
        adamw(&SETTINGS, &mut param, &[0.0; 20], &mut [0.0; 20], &mut [0.0; 20], &mut [(0.5, &mut y)]);
        assert!(y.iter().enumerate().all(|(i, v)| v.is_nan() == (i == 13)));
    }
    assert!(sum_squares(&x).is_nan());
    x[13] = f32::INFINITY;
    assert!(sum_squares(&x) == f64::INFINITY);
}

#[test]
#[should_panic(expected = "lengths")]
fn other_lengths_are_refused() {
    let [param, m, v] = &mut [[0.0; 3]; 3];
    adamw(&SETTINGS, param, &[0.0; 3], m, v, &mut [(0.5, &mut [0.0; 2])]);
}

#[test]
fn an_empty_parameter_stays_empty() {
    adamw(&SETTINGS, &mut [], &[], &mut [], &mut [], &mut [(0.5, &mut [])]);
    assert_eq!(sum_squares(&[]), 0.0);
}
