//! Doubling and halving of image sides.

use crate::plain::dot;
use crate::support::*;
use ddpm_kernels::{downsample, upsample};
use proptest::prelude::*;

/// Sizes of the smaller image.
type Shape = [usize; 4];

fn shapes() -> impl Strategy<Value = Shape> {
    [1usize..6, 1usize..6, 1usize..6, 1usize..20]
}

fn larger([n, h, w, c]: Shape) -> Shape {
    [n, 2 * h, 2 * w, c]
}

/// Each value of the larger image, and where its square is in the smaller one.
fn squares(s: Shape) -> impl Iterator<Item = usize> {
    let [n, h, w, c] = larger(s);
    (0..n * h * w * c).map(move |at| {
        let (image, y, x, i) = (at / (h * w * c), at / (w * c) % h, at / c % w, at % c);
        ((image * h / 2 + y / 2) * w / 2 + x / 2) * c + i
    })
}

fn plain_up(s: Shape, x: &[f64]) -> Vec<f64> {
    squares(s).map(|at| x[at]).collect()
}

fn plain_down(s: Shape, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; s.iter().product()];
    squares(s).zip(x).for_each(|(at, v)| y[at] += v / 4.0);
    y
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn values_and_gradients_are_the_plain_loops(s in shapes(), seed: u64) {
        let small: usize = s.iter().product();
        let mut random = Random(seed);
        let (x, w) = (random.values(small), random.values(4 * small));
        prop_assert_eq!(doubles(&read(upsample(tensor(&x, s)))), plain_up(s, &doubles(&x)));
        assert_close(&read(downsample(tensor(&w, larger(s)))), &plain_down(s, &doubles(&w)), 1e-6);
        let input = tracked(&x, s);
        let found = grad(&input, &backward(upsample(input.clone()), &w));
        assert_gradients(|v| dot(&plain_up(s, &v[0]), &w), std::slice::from_ref(&x), &[found], 2e-6, 1e-7);
        let input = tracked(&w, larger(s));
        let found = grad(&input, &backward(downsample(input.clone()), &x));
        assert_gradients(|v| dot(&plain_down(s, &v[0]), &x), &[w], &[found], 2e-6, 1e-7);
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let x = Random(3).values(3 * 18 * 22 * 5);
    assert_same_on_any_threads(|| {
        vec![read(upsample(tensor(&x, [3, 18, 22, 5]))), read(downsample(tensor(&x, [3, 18, 22, 5])))]
    });
}

#[test]
fn a_view_gives_what_its_copy_gives() {
    let x = Random(5).values(2 * 4 * 6 * 3);
    let view = || tensor(&read(tensor(&x, [2, 4, 6, 3]).swap_dims(1, 3)), [2, 3, 6, 4]).swap_dims(1, 3);
    assert_eq!(read(upsample(view())), read(upsample(tensor(&x, [2, 4, 6, 3]))));
    assert_eq!(read(downsample(view())), read(downsample(tensor(&x, [2, 4, 6, 3]))));
}

#[test]
fn nan_stays_in_its_square() {
    let mut x = vec![1.0; 2 * 4 * 4];
    x[5] = f32::NAN;
    let y = read(downsample(tensor(&x, [2, 4, 4, 1])));
    assert!(y.iter().enumerate().all(|(at, v)| v.is_nan() == (at == 0)));
    let y = read(upsample(tensor(&x, [2, 4, 4, 1])));
    assert!(squares([2, 4, 4, 1]).zip(&y).all(|(at, v)| v.is_nan() == (at == 5)));
}

#[test]
#[should_panic(expected = "cannot be halved")]
fn an_odd_side_is_refused() {
    let _ = downsample(tensor(&[0.0; 12], [1, 2, 3, 2]));
}
