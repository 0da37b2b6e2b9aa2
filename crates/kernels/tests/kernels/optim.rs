//! AdamW, the moving average and the sum of squares.

use crate::support::*;
use burn::tensor::{Tensor, TensorData};
use ddpm_kernels::{AdamW, adamw, ema, sum_squares};
use proptest::prelude::*;

const SETTINGS: AdamW = AdamW { lr: 1e-4, weight_decay: 0.0, betas: [0.9, 0.999], eps: 1e-8, step: 1, grad_scale: 1.0 };

/// Longer than the pieces that the updates are split into.
const LONG: usize = 2 * 65_536 + 13;

/// Parameter and moments.
type State = [Vec<f32>; 3];

fn step(state: State, grad: &[f32], settings: AdamW) -> State {
    let [param, m, v] = state.map(|values| tensor(&values, [values.len()]));
    let (param, m, v) = adamw(param, tensor(grad, [grad.len()]), m, v, settings);
    [read(param), read(m), read(v)]
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
        assert_close(&read(ema(tensor(&target, [len]), tensor(&source, [len]), rate)), &plain, 2e-7);
    }

    #[test]
    fn sum_squares_is_the_sum(len in 1usize..70, magnitude in prop_oneof![Just(1.0f32), Just(1e4), Just(1e-4)], seed: u64) {
        let x: Vec<f32> = Random(seed).values(len).iter().map(|v| v * magnitude).collect();
        let plain: f64 = doubles(&x).iter().map(|v| v * v).sum();
        assert_close(&read(sum_squares(tensor(&x, [len]))), &[plain], 1e-7 * plain);
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
    let averaged = |rate| read(ema(tensor(&state[0], [LONG]), tensor(&grad, [LONG]), rate));
    assert_eq!((averaged(1.0), averaged(0.0)), (state[0].clone(), grad.clone()));
    let total: f64 = doubles(&grad).iter().map(|v| v * v).sum();
    assert_close(&read(sum_squares(tensor(&grad, [LONG]))), &[total], 1e-7 * total);
    assert_same_on_any_threads(|| {
        let mut all = step(state.clone(), &grad, settings).to_vec();
        all.extend([averaged(0.999), read(sum_squares(tensor(&grad, [LONG])))]);
        all
    });
}

/// Other owners of a tensor keep its values, and a view's neighbours are left alone.
#[test]
fn shared_tensors_are_not_written_to() {
    let mut random = Random(7);
    let [param, m, v, g] = [0; 4].map(|_| random.values(30).iter().map(|v| v.abs()).collect::<Vec<f32>>());
    let whole = [&param, &m, &v, &g].map(|values| tensor(values, [30]));
    let part = whole.clone().map(|t| t.narrow(0, 7, 11));
    let [p1, m1, v1, g1] = part;
    let (p1, m1, v1) = adamw(p1, g1, m1, v1, SETTINGS);
    let cut = |values: &[f32]| values[7..18].to_vec();
    assert_eq!([read(p1), read(m1), read(v1)], step([cut(&param), cut(&m), cut(&v)], &cut(&g), SETTINGS));
    let averaged = ema(whole[0].clone().narrow(0, 7, 11), whole[1].clone().narrow(0, 7, 11), 0.5);
    assert_eq!(read(averaged), read(ema(tensor(&cut(&param), [11]), tensor(&cut(&m), [11]), 0.5)));
    let squares = sum_squares(whole[0].clone().narrow(0, 7, 11));
    assert_eq!(read(squares), read(sum_squares(tensor(&cut(&param), [11]))));
    let _ = ema(whole[0].clone(), whole[1].clone(), 0.5);
    assert_eq!(whole.map(read), [param, m, v, g]);
}

/// Moves the values into a tensor and says where they lie.
fn placed(values: Vec<f32>) -> (Tensor<1>, *const u8) {
    let shape = [values.len()];
    let data = TensorData::new(values, shape);
    let place = data.as_bytes().as_ptr();
    (Tensor::from_data(data, &burn::tensor::Device::flex()), place)
}

fn place(x: Tensor<1>) -> *const u8 {
    x.into_data().as_bytes().as_ptr()
}

#[test]
fn tensors_with_one_owner_are_updated_in_place() {
    let mut random = Random(11);
    let [(param, at_param), (m, at_m), (v, at_v), (g, _)] = [0; 4].map(|_| placed(random.values(1000)));
    let (param, m, v) = adamw(param, g.clone(), m, v, SETTINGS);
    assert_eq!([place(param), place(m), place(v)], [at_param, at_m, at_v]);
    let (target, at_target) = placed(random.values(1000));
    assert_eq!(place(ema(target, g, 0.9)), at_target);
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
        let y = read(ema(tensor(target, [20]), tensor(source, [20]), 0.5));
        assert!(y.iter().enumerate().all(|(i, v)| v.is_nan() == (i == 13)));
    }
    assert!(read(sum_squares(tensor(&x, [20])))[0].is_nan());
    x[13] = f32::INFINITY;
    assert!(read(sum_squares(tensor(&x, [20])))[0] == f32::INFINITY);
}

#[test]
#[should_panic(expected = "lengths")]
fn other_lengths_are_refused() {
    let _ = ema(tensor(&[0.0; 3], [3]), tensor(&[0.0; 2], [2]), 0.5);
}
