//! What is done inside other kernels: residuals, dropout, concatenation.

use crate::support::*;
use ddpm_kernels::{Conv2d, Dropout, GroupNorm, concat, conv2d, group_norm};
use ddpm_math::{Domain, Stream};

#[test]
fn a_residual_is_added_and_takes_the_whole_gradient() {
    for (kernel, stride) in [(1, 1), (3, 1), (3, 2)] {
        let (shape, conv) = ([2, 5, 7, 6], Conv2d::same([kernel; 2], stride));
        let [h, w] = conv.output_size([5, 7]);
        let out = [2, h, w, 35];
        let (count, weight_shape) = (out.iter().product(), [35, 6, kernel, kernel]);
        let mut random = Random(7);
        let (x, residual, weights) = (random.values(2 * 5 * 7 * 6), random.values(count), random.values(count));
        let (weight, bias) = (random.values(weight_shape.iter().product()), random.values(35));
        let (weight, bias) = (tracked(&weight, weight_shape), tracked(&bias, [35]));
        let (plain_x, x) = (tracked(&x, shape), tracked(&x, shape));
        let plain = conv2d(plain_x.clone(), weight.clone(), bias.clone(), None, conv);
        let onto = tracked(&residual, out);
        let y = conv2d(x.clone(), weight.clone(), bias, Some(onto.clone()), conv);
        let sums: Vec<f64> = read(plain.clone()).iter().zip(&residual).map(|(a, b)| f64::from(a + b)).collect();
        assert_close(&read(y.clone()), &sums, 1e-6);
        let (grads, plain_grads) = (backward(y, &weights), backward(plain, &weights));
        assert_eq!(grad(&onto, &grads), weights);
        assert_eq!(grad(&x, &grads), grad(&plain_x, &plain_grads));
    }
}

#[test]
#[should_panic(expected = "shape of the residual")]
fn a_residual_of_another_shape_is_refused() {
    let x = || tensor(&[0.0; 8], [1, 2, 2, 2]);
    let _ = conv2d(x(), tensor(&[0.0; 6], [3, 2, 1, 1]), tensor(&[0.0; 3], [3]), Some(x()), Conv2d::same([1, 1], 1));
}

#[test]
fn concatenation_joins_channels_and_splits_gradients() {
    let (a, b) = (Random(1).values(2 * 3 * 4 * 5), Random(2).values(2 * 3 * 4 * 2));
    let joined: Vec<f32> = a.chunks(5).zip(b.chunks(2)).flat_map(|(a, b)| [a, b].concat()).collect();
    let (a, b) = (tracked(&a, [2, 3, 4, 5]), tracked(&b, [2, 3, 4, 2]));
    let y = concat(a.clone(), b.clone());
    assert_eq!(read(y.clone()), joined);
    let w = Random(3).values(joined.len());
    let grads = backward(y, &w);
    assert_eq!(grad(&a, &grads), w.chunks(7).flat_map(|w| &w[..5]).copied().collect::<Vec<_>>());
    assert_eq!(grad(&b, &grads), w.chunks(7).flat_map(|w| &w[5..]).copied().collect::<Vec<_>>());
}

/// Sizes for which neither an image nor a chunk of one is a whole number of draws.
const SHAPE: [usize; 4] = [3, 13, 11, 36];

/// Output and gradient of the input for the images from `first` on.
fn normalised(first: usize, dropout: Option<Dropout>, w: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let [n, h, width, c] = SHAPE;
    let image = h * width * c;
    let shape = [n - first, h, width, c];
    let x = tracked(&Random(5).values(n * image)[first * image..], shape);
    let (weight, bias) = (tensor(&Random(6).values(c), [c]), tensor(&Random(7).values(c), [c]));
    let autodiff = burn::tensor::Device::flex().autodiff();
    let (weight, bias) = (weight.to_device(&autodiff), bias.to_device(&autodiff));
    let film = untracked(&vec![0.5; (n - first) * 2 * c], [n - first, 2 * c]);
    let norm = GroupNorm { groups: 4, eps: 1e-5, silu: true, dropout };
    let y = group_norm(x.clone(), weight, bias, Some(film), norm);
    let grads = backward(y.clone(), &w[first * image..]);
    (read(y), grad(&x, &grads))
}

#[test]
fn dropout_drops_its_share_and_the_gradient_knows_which() {
    let w = Random(8).values(SHAPE.iter().product());
    let dropout = Dropout { probability: 0.3, seed: 11, position: 40, layer: 2 };
    let (plain, _) = normalised(0, None, &w);
    let (y, dx) = normalised(0, Some(dropout), &w);
    let factors: Vec<f32> =
        y.iter().zip(&plain).map(|(y, plain)| if *plain == 0.0 { 1.0 } else { y / plain }).collect();
    let kept = factors.iter().filter(|f| **f != 0.0).count();
    // The standard deviation of the share is 0.4 %.
    assert!((kept as f64 / y.len() as f64 - 0.7).abs() < 0.02, "{kept} of {} kept", y.len());
    assert!(factors.iter().all(|f| *f == 0.0 || (f - 1.0 / 0.7).abs() < 1e-5));
    // An image's mask is its stream, value by value.
    for (i, factors) in (0..).zip(factors.chunks(SHAPE[1..].iter().product())) {
        let mut stream = Stream::new(11, Domain::Dropout, 40 + i, 2);
        let threshold = (0.3 * f64::from(u32::MAX)) as u32;
        assert!(factors.iter().all(|f| (*f == 0.0) == (stream.next_u32() < threshold)), "image {i}");
    }
    let masked: Vec<f32> = w.iter().zip(&factors).map(|(w, f)| w * f).collect();
    let (_, expected) = normalised(0, None, &masked);
    assert_close(&dx, &doubles(&expected), 1e-4);

    let other = |change: fn(&mut Dropout)| {
        let mut dropout = dropout;
        change(&mut dropout);
        normalised(0, Some(dropout), &w).0
    };
    assert!(y != other(|d| d.seed += 1) && y != other(|d| d.layer += 1) && y != other(|d| d.position += 1));
    // The mask goes with the image's place in the run, not with its place in the batch.
    let (second, dx_second) = normalised(1, Some(Dropout { position: 41, ..dropout }), &w);
    let image = SHAPE[1..].iter().product::<usize>();
    assert!(bits(&second) == bits(&y[image..]) && bits(&dx_second) == bits(&dx[image..]));
    assert_same_on_any_threads(|| {
        let (y, dx) = normalised(0, Some(dropout), &w);
        vec![y, dx]
    });
}
