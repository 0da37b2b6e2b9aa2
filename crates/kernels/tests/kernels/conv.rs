//! Convolution.

use crate::plain::{Conv, dot};
use crate::run;
use crate::support::*;
use ddpm_kernels::conv::{Epilogue, Geometry, input_grad, pack, weight_grad};
use ddpm_kernels::{Conv2d, Element, Padding, bf16, profile};
use proptest::prelude::*;

/// Odd shapes, but no larger than plain loops can bear.
fn shapes() -> impl Strategy<Value = Conv> {
    let channels = || prop_oneof![1 => Just(1usize), 4 => 1usize..20, 1 => 30usize..40];
    let image = (1usize..=5, 1usize..10, 1usize..10);
    let kernel =
        prop_oneof![2 => Just([1, 1]), 4 => Just([3, 3]), 1 => Just([5, 5]), 1 => Just([1, 7]), 1 => Just([3, 1])];
    let padding = prop_oneof![2 => Just(Padding::Same), 2 => Just(Padding::Valid), 1 => Just(Padding::After)];
    (image, channels(), channels(), kernel, 1usize..=2, padding).prop_map(|((n, h, w), c, o, k, stride, padding)| {
        // With less padding the kernel has to fit.
        let [h, w] = if padding == Padding::Same { [h, w] } else { [h + k[0] - 1, w + k[1] - 1] };
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
    run::conv::<f32>(s, x, weight, bias, None, false)
}

/// Gradients of input, weight and bias.
fn gradients(s: Conv, i: &Inputs) -> [Vec<f32>; 3] {
    run::conv_grads::<f32>(s, &i.x, &i.weight, &i.w, None)
}

fn expected(s: Conv, i: &Inputs) -> Vec<f64> {
    s.forward(&doubles(&i.x), &doubles(&i.weight), &doubles(&i.bias))
}

/// The convolution with weights that were packed for other numbers of images.
fn forward_packed<E: Element>(s: Conv, i: &Inputs, residual: &[E]) -> Vec<f32> {
    let g = s.geometry();
    let mut packed = vec![E::from_f32(f32::NAN); g.packed_len::<E>()];
    pack(Geometry { n: 1, ..g }, &i.weight, &mut packed);
    let epilogue = Epilogue { bias: Some(&i.bias), residual: Some(residual), relu: true };
    written(g.output_len(), |out: &mut [E]| {
        ddpm_kernels::conv::forward_packed(g, &rounded::<E>(&i.x), &packed, epilogue, out);
    })
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn split_values_lose_little_in_tiles_and_nothing_elsewhere(s in shapes(), seed: u64) {
        let (i, g) = (inputs(s, seed), s.geometry());
        let passes = |g: Geometry| {
            let plain = Epilogue { bias: Some(&i.bias), residual: None, relu: false };
            let mut bias = vec![0.0; s.o];
            let y = written(g.output_len(), |out: &mut [f32]| ddpm_kernels::conv::forward(g, &i.x, &i.weight, plain, out));
            let dx = written(g.input_len(), |out: &mut [f32]| input_grad(g, &i.w, &i.weight, Some(&i.x), out));
            let dweight = written(g.weight_len(), |out: &mut [f32]| weight_grad(g, &i.x, &i.w, out, &mut bias));
            [y, dx, dweight, bias]
        };
        let (whole, split) = (passes(g), passes(Geometry { split: true, ..g }));
        if !profile::has_tiles() {
            prop_assert_eq!(&whole, &split);
        }
        for (whole, split) in whole.iter().zip(&split) {
            let whole = doubles(whole);
            assert_close(split, &whole, 1e-4 * scale(&whole));
        }
    }

    #[test]
    fn packed_weights_serve_any_number_of_images(s in shapes(), seed: u64) {
        let i = inputs(s, seed);
        let once = run::conv::<f32>(s, &i.x, &i.weight, &i.bias, Some(&i.w), true);
        prop_assert_eq!(forward_packed::<f32>(s, &i, &i.w), once);
        let once = run::conv::<bf16>(s, &i.x, &i.weight, &i.bias, Some(&i.w), true);
        prop_assert_eq!(forward_packed::<bf16>(s, &i, &rounded(&i.w)), once);
    }

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
const LARGE: [Conv; 9] = [
    Conv::same([5, 17, 15], [9, 11], 3, 1),
    Conv::same([5, 31, 33], [10, 7], 3, 2),
    Conv::same([5, 17, 15], [33, 17], 1, 1),
    Conv::same([2, 5, 7], [300, 70], 3, 1),
    Conv { padding: Padding::Valid, ..Conv::same([3, 19, 16], [9, 11], 3, 1) },
    Conv { padding: Padding::After, ..Conv::same([3, 18, 17], [9, 33], 3, 2) },
    Conv { padding: Padding::After, ..Conv::same([3, 18, 17], [9, 33], 3, 1) },
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
        let relu = |i: &Inputs| run::conv::<f32>(s, &i.x, &i.weight, &i.bias, None, true);
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

/// One after the last alone: ermongroup/ddim's downsampling.
#[test]
fn zeros_after_keep_the_size_over_the_stride() {
    let s = Conv { padding: Padding::After, ..Conv::same([2, 8, 6], [5, 7], 3, 2) };
    assert_eq!((s.output(), s.geometry().padding), ([2, 4, 3, 7], [[0, 1]; 2]));
}

/// Zeros on any sides, different ones too, are those of a larger image.
#[test]
fn zeros_are_a_larger_image() {
    let [n, h, w, c, o] = [2, 8, 6, 5, 7];
    for (stride, padding) in [
        (2, [[0, 1], [0, 1]]),
        (1, [[0, 1], [0, 1]]),
        (1, [[1, 1], [0, 0]]),
        (1, [[2, 2], [2, 2]]),
        (1, [[3, 3], [3, 3]]),
        (2, [[1, 0], [2, 3]]),
    ] {
        let g = Geometry { n, h, w, c, o, kernel: [3, 3], padding, stride, split: false };
        let [[top, below], [left, right]] = padding;
        let larger = Geometry { h: top + h + below, w: left + w + right, padding: [[0, 0]; 2], ..g };
        assert_eq!((g.out_h(), g.out_w()), (larger.out_h(), larger.out_w()));
        // Where a value of the image lies in the larger one.
        let place = |at: usize| {
            let (image, y, x, i) = (at / (h * w * c), at / (w * c) % h, at / c % w, at % c);
            ((image * larger.h + y + top) * larger.w + x + left) * c + i
        };
        let mut random = Random(43);
        let [x, weight, w] = [g.input_len(), g.weight_len(), g.output_len()].map(|len| random.values(len));
        let mut larger_x = vec![0.0; larger.input_len()];
        x.iter().enumerate().for_each(|(at, &v)| larger_x[place(at)] = v);
        let all = |g: Geometry, x: &[f32]| {
            let plain = Epilogue { bias: None, residual: None, relu: false };
            let mut bias = vec![0.0; o];
            let y = written(g.output_len(), |out: &mut [f32]| ddpm_kernels::conv::forward(g, x, &weight, plain, out));
            let dx = written(x.len(), |out: &mut [f32]| input_grad(g, &w, &weight, None, out));
            let dweight = written(weight.len(), |out: &mut [f32]| weight_grad(g, x, &w, out, &mut bias));
            [y, dx, dweight, bias]
        };
        let (found, mut expected) = (all(g, &x), all(larger, &larger_x));
        expected[1] = (0..x.len()).map(|at| expected[1][place(at)]).collect();
        for (found, expected) in found.iter().zip(&expected) {
            let expected = doubles(expected);
            assert_close(found, &expected, 2e-6 * scale(&expected));
        }
    }
}

#[test]
fn a_residual_and_a_second_gradient_are_added_as_they_are() {
    for s in LARGE {
        let i = inputs(s, 47);
        let (residual, second) = (Random(48).values(i.w.len()), Random(49).values(i.x.len()));
        let sum = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f32>>();
        let plain = forward(s, &i.x, &i.weight, &i.bias);
        let onto = run::conv::<f32>(s, &i.x, &i.weight, &i.bias, Some(&residual), false);
        assert_eq!(onto, sum(&plain, &residual), "{s:?}");
        let onto = run::conv::<f32>(s, &i.x, &i.weight, &i.bias, Some(&residual), true);
        assert_eq!(onto, sum(&plain, &residual).iter().map(|v| v.max(0.0)).collect::<Vec<_>>(), "{s:?}");
        let [dx, ..] = gradients(s, &i);
        assert_eq!(run::conv_grads::<f32>(s, &i.x, &i.weight, &i.w, Some(&second))[0], sum(&dx, &second), "{s:?}");
    }
}

/// 1 + 3·2⁻¹⁰ is 1 in bf16, and so is 1 + 2⁻⁹, but their sum less 1 is not.
#[test]
fn what_is_added_to_a_gradient_is_rounded_with_it() {
    let small = 2f32.powi(-10);
    for (k, stride) in [(1, 1), (3, 1), (3, 2)] {
        let s = Conv::same([1, 1, 1], [1, 2], k, stride);
        let mut weight = vec![0.0; 2 * k * k];
        (weight[k * k / 2], weight[k * k + k * k / 2]) = (1.0, 1.0);
        let dx = |add| run::conv_grads::<bf16>(s, &[0.0], &weight, &[1.0, 3.0 * small], add)[0].clone();
        assert_eq!(dx(None), [1.0], "{s:?}");
        assert_eq!(dx(Some(&[2.0 * small][..])), [1.0 + 8.0 * small], "{s:?}");
        let y = |residual| {
            let s = Conv { c: 2, o: 1, ..s };
            run::conv::<bf16>(s, &[1.0, 3.0 * small], &weight, &[0.0], residual, false)
        };
        assert_eq!(y(None), [1.0], "{s:?}");
        assert_eq!(y(Some(&[2.0 * small][..])), [1.0 + 8.0 * small], "{s:?}");
    }
}

/// An image that no window fits has no outputs, and so no gradient.
#[test]
fn an_image_smaller_than_the_kernel_has_no_outputs() {
    for (stride, k) in [(1, 3), (2, 3), (1, 5)] {
        let s = Conv { padding: Padding::Valid, ..Conv::same([2, 2, 7], [3, 4], k, stride) };
        let g = s.geometry();
        assert_eq!((g.out_h(), g.output_len()), (0, 0));
        let (x, weight) = (Random(1).values(2 * 2 * 7 * 3), Random(2).values(g.weight_len()));
        ddpm_kernels::conv::forward::<f32>(
            g,
            &x,
            &weight,
            Epilogue { bias: None, residual: None, relu: false },
            &mut [],
        );
        let dx = written(x.len(), |out: &mut [f32]| input_grad(g, &[], &weight, None, out));
        assert_eq!(dx, vec![0.0; x.len()]);
        assert_eq!(written(x.len(), |out: &mut [f32]| input_grad(g, &[], &weight, Some(&x), out)), x);
        let mut bias = [1.0; 4];
        let dweight = written(weight.len(), |out: &mut [f32]| weight_grad::<f32>(g, &x, &[], out, &mut bias));
        assert_eq!((dweight, bias), (vec![0.0; weight.len()], [0.0; 4]));
    }
}

#[test]
#[should_panic(expected = "for an input")]
fn a_kernel_for_other_channels_is_refused() {
    let g = Geometry::new(Conv2d::same([3, 3], 1), [1, 2, 3, 4], 2);
    let plain = Epilogue { bias: None, residual: None, relu: false };
    ddpm_kernels::conv::forward(g, &[0.0; 24], &[0.0; 54], plain, &mut [0.0; 12]);
}

#[test]
#[should_panic(expected = "shape of the residual")]
fn a_residual_of_another_shape_is_refused() {
    let g = Geometry::new(Conv2d::same([1, 1], 1), [1, 2, 2, 2], 3);
    let onto = Epilogue { bias: None, residual: Some(&[0.0; 8][..]), relu: false };
    ddpm_kernels::conv::forward(g, &[0.0; 8], &[0.0; 6], onto, &mut [0.0; 12]);
}

#[test]
#[should_panic(expected = "an even side")]
fn an_even_kernel_is_refused() {
    let _ = Geometry::new(Conv2d::same([2, 3], 1), [1, 2, 2, 2], 3);
}
