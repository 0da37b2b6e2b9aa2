//! Convolution.

use crate::plain::{Conv, dot};
use crate::support::*;
use burn::tensor::Tensor;
use ddpm_kernels::{Conv2d, Padding, conv2d, conv2d_relu};
use proptest::prelude::*;

/// Odd shapes, but no larger than plain loops can bear.
fn shapes() -> impl Strategy<Value = Conv> {
    let channels = || prop_oneof![1 => Just(1usize), 4 => 1usize..20, 1 => 30usize..40];
    let image = (1usize..=5, 1usize..10, 1usize..10);
    let kernel =
        prop_oneof![2 => Just([1, 1]), 4 => Just([3, 3]), 1 => Just([5, 5]), 1 => Just([1, 7]), 1 => Just([3, 1])];
    let padding = prop_oneof![Just(Padding::Same), Just(Padding::Valid)];
    (image, channels(), channels(), kernel, 1usize..=2, padding).prop_map(|((n, h, w), c, o, k, stride, padding)| {
        // Without padding the kernel has to fit.
        let [h, w] = if padding == Padding::Valid { [h + k[0] - 1, w + k[1] - 1] } else { [h, w] };
        Conv { n, h, w, c, o, k, stride, padding }
    })
}

struct Inputs {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// Weights of the outputs in the scalar that is differentiated.
    w: Vec<f32>,
}

fn inputs(s: Conv, seed: u64) -> Inputs {
    let mut random = Random(seed);
    let mut values = |shape: [usize; 4]| random.values(shape.iter().product());
    Inputs { x: values(s.input()), weight: values(s.weight()), bias: values([s.o, 1, 1, 1]), w: values(s.output()) }
}

fn forward(s: Conv, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let y = conv2d(tensor(x, s.input()), tensor(weight, s.weight()), tensor(bias, [s.o]), None, s.settings());
    assert_eq!(y.dims(), s.output());
    read(y)
}

/// Gradients of input, weight and bias.
fn gradients(s: Conv, i: &Inputs) -> [Vec<f32>; 3] {
    let (x, weight, bias) = (tracked(&i.x, s.input()), tracked(&i.weight, s.weight()), tracked(&i.bias, [s.o]));
    let y = conv2d(x.clone(), weight.clone(), bias.clone(), None, s.settings());
    let grads = backward(y, &i.w);
    [grad(&x, &grads), grad(&weight, &grads), grad(&bias, &grads)]
}

fn expected(s: Conv, i: &Inputs) -> Vec<f64> {
    s.forward(&doubles(&i.x), &doubles(&i.weight), &doubles(&i.bias))
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn forward_is_the_plain_loop(s in shapes(), seed: u64) {
        let i = inputs(s, seed);
        let expected = expected(s, &i);
        assert_close(&forward(s, &i.x, &i.weight, &i.bias), &expected, 2e-6 * scale(&expected));
    }

    #[test]
    fn images_do_not_depend_on_the_batch(s in shapes(), seed: u64) {
        let s = Conv { n: 5, ..s };
        let (one, i) = (Conv { n: 1, ..s }, inputs(s, seed));
        let (y, [dx, ..]) = (forward(s, &i.x, &i.weight, &i.bias), gradients(s, &i));
        let (per_x, per_y) = (i.x.len() / 5, y.len() / 5);
        for n in 0..5 {
            let x = i.x[n * per_x..][..per_x].to_vec();
            let w = i.w[n * per_y..][..per_y].to_vec();
            let alone = Inputs { x, weight: i.weight.clone(), bias: i.bias.clone(), w };
            prop_assert!(bits(&forward(one, &alone.x, &i.weight, &i.bias)) == bits(&y[n * per_y..][..per_y]), "output {}", n);
            prop_assert!(bits(&gradients(one, &alone)[0]) == bits(&dx[n * per_x..][..per_x]), "gradient {}", n);
        }
    }
}

proptest! {
    #![proptest_config(config(20))]

    #[test]
    fn gradients_are_the_slopes(s in shapes(), seed: u64) {
        let i = inputs(s, seed);
        let f = |v: &[Vec<f64>]| dot(&s.forward(&v[0], &v[1], &v[2]), &i.w);
        assert_gradients(f, &[i.x.clone(), i.weight.clone(), i.bias.clone()], &gradients(s, &i), 5e-6, 1e-6);
    }
}

/// Several tiles, several partial sums of the weights' gradient, and last tiles that are not full.
const LARGE: [Conv; 7] = [
    Conv::same([5, 17, 15], [9, 11], 3, 1),
    Conv::same([5, 31, 33], [10, 7], 3, 2),
    Conv::same([5, 17, 15], [33, 17], 1, 1),
    Conv::same([2, 5, 7], [300, 70], 3, 1),
    Conv { padding: Padding::Valid, ..Conv::same([3, 19, 16], [9, 11], 3, 1) },
    Conv { k: [1, 7], ..Conv::same([3, 17, 17], [40, 35], 1, 1) },
    Conv { k: [7, 1], ..Conv::same([3, 17, 17], [40, 35], 1, 1) },
];

#[test]
fn large_layers_are_right() {
    for s in LARGE {
        let i = inputs(s, 3);
        let expected = expected(s, &i);
        assert_close(&forward(s, &i.x, &i.weight, &i.bias), &expected, 4e-6 * scale(&expected));
        // The gradients through the adjoint: ⟨conv(x), w⟩ is linear in x and in the weight.
        let [dx, dweight, dbias] = gradients(s, &i).map(|g| doubles(&g));
        let unbiased = dot(&s.forward(&doubles(&i.x), &doubles(&i.weight), &vec![0.0; s.o]), &i.w);
        let near =
            |actual: f64, expected: f64| assert!((actual - expected).abs() < 1e-3, "{actual}, not {expected}: {s:?}");
        near(dot(&dx, &i.x), unbiased);
        near(dot(&dweight, &i.weight), unbiased);
        for (j, &sum) in dbias.iter().enumerate() {
            near(sum, i.w.iter().skip(j).step_by(s.o).map(|&v| f64::from(v)).sum());
        }
    }
}

#[test]
fn large_images_do_not_depend_on_the_batch() {
    for s in LARGE {
        let i = inputs(s, 5);
        let (y, [dx, ..]) = (forward(s, &i.x, &i.weight, &i.bias), gradients(s, &i));
        let (per_x, per_y) = (i.x.len() / s.n, y.len() / s.n);
        let last = s.n - 1;
        let x = i.x[last * per_x..].to_vec();
        let alone = Inputs { x, weight: i.weight.clone(), bias: i.bias.clone(), w: i.w[last * per_y..].to_vec() };
        let one = Conv { n: 1, ..s };
        assert!(bits(&forward(one, &alone.x, &i.weight, &i.bias)) == bits(&y[last * per_y..]), "output of {s:?}");
        assert!(bits(&gradients(one, &alone)[0]) == bits(&dx[last * per_x..]), "gradient of {s:?}");
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    for s in LARGE {
        let i = inputs(s, 11);
        assert_same_on_any_threads(|| {
            let mut all = gradients(s, &i).to_vec();
            all.push(forward(s, &i.x, &i.weight, &i.bias));
            all
        });
    }
}

#[test]
fn gradients_do_not_depend_on_which_are_wanted() {
    let s = Conv::same([2, 5, 4], [3, 6], 3, 2);
    let i = inputs(s, 17);
    let all = gradients(s, &i);
    let conv = s.settings();
    let (x, weight, bias) = (untracked(&i.x, s.input()), untracked(&i.weight, s.weight()), untracked(&i.bias, [s.o]));
    let wanted = x.clone().require_grad();
    let grads = backward(conv2d(wanted.clone(), weight.clone(), bias.clone(), None, conv), &i.w);
    assert_eq!(grad(&wanted, &grads), all[0]);
    let wanted = weight.clone().require_grad();
    let grads = backward(conv2d(x.clone(), wanted.clone(), bias.clone(), None, conv), &i.w);
    assert_eq!(grad(&wanted, &grads), all[1]);
    let wanted = bias.require_grad();
    let grads = backward(conv2d(x, weight, wanted.clone(), None, conv), &i.w);
    assert_eq!(grad(&wanted, &grads), all[2]);
}

#[test]
fn a_layer_used_twice_sums_its_gradients() {
    let s = Conv::same([1, 4, 3], [2, 2], 3, 1);
    let i = inputs(s, 19);
    let (x, weight, bias) = (tracked(&i.x, s.input()), tracked(&i.weight, s.weight()), tracked(&i.bias, [s.o]));
    let conv = s.settings();
    let y =
        conv2d(conv2d(x.clone(), weight.clone(), bias.clone(), None, conv), weight.clone(), bias.clone(), None, conv);
    let grads = backward(y, &i.w);
    let f = |v: &[Vec<f64>]| dot(&s.forward(&s.forward(&v[0], &v[1], &v[2]), &v[1], &v[2]), &i.w);
    let found = [grad(&x, &grads), grad(&weight, &grads), grad(&bias, &grads)];
    assert_gradients(f, &[i.x, i.weight, i.bias], &found, 5e-6, 1e-6);
}

#[test]
fn views_give_what_their_copies_give() {
    let s = Conv::same([2, 5, 3], [4, 6], 3, 2);
    let i = inputs(s, 23);
    let expected = forward(s, &i.x, &i.weight, &i.bias);
    // The images as the middle of a larger batch, with channels and columns stored the other way round.
    let padding = vec![9.0; i.x.len() / 2];
    let larger = tensor(&[&padding[..], &i.x, &padding].concat(), [4, s.h, s.w, s.c]);
    let stored = tensor(&read(larger.swap_dims(2, 3)), [4, s.h, s.c, s.w]);
    let x: Tensor<4> = stored.narrow(0, 1, 2).swap_dims(2, 3);
    let weight =
        tensor(&read(tensor(&i.weight, s.weight()).swap_dims(0, 3)), [s.k[1], s.c, s.k[0], s.o]).swap_dims(0, 3);
    let bias = tensor(&[&[9.0], &i.bias[..]].concat(), [s.o + 1]).narrow(0, 1, s.o);
    assert_eq!(read(conv2d(x, weight, bias, None, s.settings())), expected);
}

#[test]
fn large_values_stay_right() {
    for stride in [1, 2] {
        let s = Conv::same([2, 5, 4], [7, 9], 3, stride);
        let mut i = inputs(s, 29);
        i.x.iter_mut().chain(&mut i.weight).chain(&mut i.w).for_each(|v| *v *= 1e4);
        let expected = expected(s, &i);
        assert_close(&forward(s, &i.x, &i.weight, &i.bias), &expected, 2e-6 * scale(&expected));
        let f = |v: &[Vec<f64>]| dot(&s.forward(&v[0], &v[1], &v[2]), &i.w);
        // The bias is too small beside the rest for differences.
        assert_gradients(f, &[i.x.clone(), i.weight.clone(), i.bias.clone()], &gradients(s, &i)[..2], 5e-6, 1.0);
    }
}

/// The larger tiles of Winograd's algorithm lose little: plain sums in f32 are off by half as much (`docs/winograd.py`).
#[test]
fn large_tiles_keep_the_digits() {
    let s = Conv::same([1, 16, 16], [32, 16], 3, 1);
    let i = inputs(s, 41);
    let (expected, found) = (expected(s, &i), forward(s, &i.x, &i.weight, &i.bias));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut found.iter().zip(&expected).map(|(&f, e)| f64::from(f) - e));
    let all = norm(&mut expected.iter().copied());
    assert!(off < 1e-6 * all, "off by {} of the norm", off / all);
}

/// A NaN reaches the outputs that see it, those that are computed with them (up to three pixels further), and no others.
#[test]
fn nan_spreads_as_far_as_the_kernel_sees() {
    for stride in [1, 2] {
        let s = Conv::same([3, 17, 14], [5, 4], 3, stride);
        let mut i = inputs(s, 31);
        let clean = forward(s, &i.x, &i.weight, &i.bias);
        i.x[((s.h + 3) * s.w + 2) * s.c + 1] = f32::NAN;
        let [_, oh, ow, o] = s.output();
        let y = forward(s, &i.x, &i.weight, &i.bias);
        for (at, (&y, &clean)) in y.iter().zip(&clean).enumerate() {
            let (image, oy, ox) = (at / (oh * ow * o), at / (ow * o) % oh, at / o % ow);
            let within = |reach| image == 1 && (oy * stride).abs_diff(3) <= reach && (ox * stride).abs_diff(2) <= reach;
            assert!(!within(1) || y.is_nan(), "output {at}: {y}");
            let shared = within(if stride == 1 { 4 } else { 1 });
            assert!(shared || y == clean, "output {at}: {y}, without the NaN {clean}");
        }
        let [dx, dweight, dbias] = gradients(s, &i);
        assert!(dx.iter().chain(&dbias).all(|v| v.is_finite()));
        for (at, v) in dweight.iter().enumerate() {
            // The taps that meet the pixel: all of them, or those in step with the stride.
            let (i, ky, kx) = (at / 9 % s.c, at / 3 % 3, at % 3);
            let meets = i == 1 && (3 + 1 - ky) % stride == 0 && (2 + 1 - kx) % stride == 0;
            assert!(if meets { v.is_nan() } else { v.is_finite() }, "weight {at}: {v}");
        }
    }
}

#[test]
fn relu_is_what_remains_above_zero() {
    for s in LARGE {
        let mut i = inputs(s, 37);
        let plain = forward(s, &i.x, &i.weight, &i.bias);
        let relu = |i: &Inputs| {
            let (x, weight, bias) = (tensor(&i.x, s.input()), tensor(&i.weight, s.weight()), tensor(&i.bias, [s.o]));
            read(conv2d_relu(x, weight, bias, s.settings()))
        };
        let expected: Vec<f32> = plain.iter().map(|v| v.max(0.0)).collect();
        assert!(expected.iter().filter(|&&v| v == 0.0).count() > expected.len() / 4);
        assert_eq!(relu(&i), expected, "{s:?}");
        i.bias[0] = f32::NAN;
        assert!(relu(&i).iter().enumerate().all(|(at, v)| v.is_nan() == (at % s.o == 0)), "{s:?}");
    }
}

#[test]
fn an_empty_batch_gives_an_empty_batch() {
    for (k, stride) in [(3, 1), (3, 2), (1, 1)] {
        let s = Conv::same([0, 5, 4], [3, 2], k, stride);
        let weight = vec![0.5; 6 * k * k];
        assert!(forward(s, &[], &weight, &[0.0; 2]).is_empty());
        let [dx, dweight, dbias] = gradients(s, &Inputs { x: vec![], weight, bias: vec![0.0; 2], w: vec![] });
        assert!(dx.is_empty() && dweight == vec![0.0; 6 * k * k] && dbias == [0.0; 2]);
    }
}

#[test]
#[should_panic(expected = "for an input")]
fn a_kernel_for_other_channels_is_refused() {
    let _ = conv2d(
        tensor(&[0.0; 24], [1, 2, 3, 4]),
        tensor(&[0.0; 54], [2, 3, 3, 3]),
        tensor(&[0.0; 2], [2]),
        None,
        Conv2d::same([3, 3], 1),
    );
}
