//! Dropout inside of group normalisation.

use crate::plain::Norm;
use crate::run;
use crate::support::*;
use ddpm_kernels::Dropout;
use ddpm_math::{Domain, Stream};

/// Sizes for which neither an image nor a chunk of one is a whole number of draws.
const SHAPE: [usize; 4] = [3, 13, 11, 36];

/// Output and gradient of the input for the images from `first` on.
fn normalised(first: usize, dropout: Option<Dropout>, w: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let [n, h, width, c] = SHAPE;
    let image = h * width * c;
    let s = Norm { n: n - first, pixels: h * width, c, groups: 4, eps: 1e-5, silu: true };
    let x = Random(5).values(n * image)[first * image..].to_vec();
    let i = [x, Random(6).values(c), Random(7).values(c), vec![0.5; (n - first) * 2 * c]];
    let mut grads = run::norm_grads::<f32>(s, dropout, &i, &w[first * image..], None);
    (run::norm::<f32>(s, dropout, &i), grads.swap_remove(0))
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
