//! Precision, recall, kernel distance and score on sets whose values are known or computed plainly.

#![allow(clippy::unwrap_used)]

use ddpm_math::{Domain, Stream};
use fidelity::{
    Features, FidelityError, InceptionScore, Moments, PrecisionRecall, Subsets, extrapolated_frechet_distance,
    frechet_distance, kernel_distance, precision_recall,
};
use proptest::prelude::*;

/// Normal values around `centre`.
fn cloud(seed: u64, rows: usize, width: usize, centre: f32, scale: f32) -> Vec<f32> {
    let mut values = vec![0.0; rows * width];
    Stream::new(seed, Domain::Subset, 0, 0).fill_normal(&mut values);
    values.into_iter().map(|v| centre + scale * v).collect()
}

fn features(values: &[f32], width: usize) -> Features<'_> {
    Features::new(values, [values.len() / width, width]).unwrap()
}

/// Pair by pair in f64.
fn plain_precision_recall(a: &[f32], b: &[f32], width: usize, k: usize) -> PrecisionRecall {
    let distance = |x: &[f32], y: &[f32]| -> f64 { x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum() };
    let radius = |set: &[f32], i: usize| -> f64 {
        let row = &set[i * width..][..width];
        let others = set.chunks_exact(width).enumerate().filter(|(j, _)| *j != i);
        let mut all: Vec<f64> = others.map(|(_, other)| distance(row, other)).collect();
        all.sort_by(f64::total_cmp);
        all[k - 1]
    };
    let share = |points: &[f32], set: &[f32]| -> f64 {
        let radii: Vec<f64> = (0..set.len() / width).map(|i| radius(set, i)).collect();
        let within =
            |point: &&[f32]| set.chunks_exact(width).zip(&radii).any(|(row, radius)| distance(point, row) <= *radius);
        points.chunks_exact(width).filter(within).count() as f64 / (points.len() / width) as f64
    };
    PrecisionRecall { precision: share(b, a), recall: share(a, b) }
}

#[test]
fn precision_and_recall_of_blocks_are_those_of_pairs() {
    // More rows than a block has, and features far from zero.
    for (rows, width, centre) in [(300, 5, 0.0), (2100, 3, 0.0), (400, 40, 1000.0)] {
        let a = cloud(1, rows, width, centre, 1.0);
        let b = cloud(2, rows / 2, width, centre + 0.3, 0.7);
        for k in [1, 3] {
            let found = precision_recall(features(&a, width), features(&b, width), k).unwrap();
            assert_eq!(found, plain_precision_recall(&a, &b, width, k), "{rows}x{width}");
        }
    }
}

#[test]
fn precision_and_recall_of_constructed_sets() {
    let set = cloud(3, 200, 8, 0.0, 1.0);
    let far = cloud(4, 200, 8, 100.0, 1.0);
    let both = [set.clone(), far.clone()].concat();
    let pr = |a: &[f32], b: &[f32]| {
        let PrecisionRecall { precision, recall } = precision_recall(features(a, 8), features(b, 8), 3).unwrap();
        [precision, recall]
    };
    assert_eq!(pr(&set, &set), [1.0, 1.0]);
    assert_eq!(pr(&set, &far), [0.0, 0.0]);
    // One of two modes is drawn; or one too many.
    assert_eq!(pr(&both, &set), [1.0, 0.5]);
    assert_eq!(pr(&set, &both), [0.5, 1.0]);
    // Many times the same image: radius 0, reached by itself alone.
    let same = set[..8].repeat(50);
    assert_eq!(pr(&same, &same), [1.0, 1.0]);
    assert_eq!(pr(&same, &far), [0.0, 0.0]);
}

#[test]
fn results_do_not_depend_on_threads() {
    let (a, b) = (cloud(5, 700, 12, 0.0, 1.0), cloud(6, 600, 12, 0.2, 1.1));
    let subsets = Subsets { count: 7, size: 90, seed: 3 };
    let run = |threads: usize| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let pr = precision_recall(features(&a, 12), features(&b, 12), 3).unwrap();
            (pr, kernel_distance(features(&a, 12), features(&b, 12), subsets).unwrap())
        })
    };
    assert_eq!(run(1), run(3));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// One subset of all rows is the whole, whatever their order.
    #[test]
    fn the_kernel_distance_is_that_of_plain_loops(width in 1..9_usize, rows in 2..40_usize, seed in 0..1000_u64) {
        let (a, b) = (cloud(seed, rows, width, 0.0, 1.0), cloud(seed + 1, rows, width, 0.5, 1.0));
        let kernel = |x: &[f32], y: &[f32]| -> f64 {
            let dot: f64 = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            (dot / width as f64 + 1.0).powi(3)
        };
        let sum = |x: &[f32], y: &[f32], same: bool| -> f64 {
            let (n, m) = (x.len() / width, y.len() / width);
            let pairs = (0..n).flat_map(|i| (0..m).map(move |j| (i, j))).filter(|(i, j)| !same || i != j);
            pairs.map(|(i, j)| kernel(&x[i * width..][..width], &y[j * width..][..width])).sum()
        };
        let pairs = (rows * (rows - 1)) as f64;
        let expected = (sum(&a, &a, true) + sum(&b, &b, true)) / pairs - 2.0 * sum(&a, &b, false) / (rows * rows) as f64;
        let subsets = Subsets { count: 1, size: 1000, seed };
        let [found, deviation] = kernel_distance(features(&a, width), features(&b, width), subsets).unwrap();
        prop_assert!((found - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{found} instead of {expected}");
        prop_assert_eq!(deviation, 0.0);
    }
}

#[test]
fn the_kernel_distance_of_like_sets_is_about_zero_and_of_others_is_not() {
    let (a, b, c) = (cloud(7, 2000, 16, 0.0, 1.0), cloud(8, 2000, 16, 0.0, 1.0), cloud(9, 2000, 16, 0.3, 1.0));
    let of = |x: &[f32], y: &[f32]| {
        kernel_distance(features(x, 16), features(y, 16), Subsets { count: 20, size: 500, seed: 0 }).unwrap()
    };
    let ([alike, deviation], [other, _]) = (of(&a, &b), of(&a, &c));
    assert!(alike.abs() < 2.0 * deviation && other > 0.2, "{alike} ± {deviation}, {other}");
}

#[test]
fn scores_of_known_probabilities() {
    let score = |rows: &[[f64; 4]], split: usize| {
        let mut score = InceptionScore::new(4, split);
        for row in rows {
            score.push(row, [1, 4]).unwrap();
        }
        score.finish().unwrap()
    };
    let one = |class: usize| std::array::from_fn(|c| f64::from(u8::from(c == class)));
    // Sure and even: as many as classes. Sure of one, or never sure: 1.
    let sure: Vec<[f64; 4]> = (0..8).map(|i| one(i % 4)).collect();
    assert!((score(&sure, 100)[0] - 4.0).abs() < 1e-12);
    assert!((score(&[one(2); 5], 100)[0] - 1.0).abs() < 1e-12 && (score(&[[0.25; 4]; 5], 100)[0] - 1.0).abs() < 1e-12);
    // Splits of two classes each, then one of one.
    let [mean, deviation] = score(&[one(0), one(1), one(2), one(3), one(0)], 2);
    assert!((mean - 5.0 / 3.0).abs() < 1e-12 && (deviation - (2.0_f64 / 9.0).sqrt()).abs() < 1e-12);
    assert!(InceptionScore::new(4, 10).finish().is_err());
}

#[test]
fn the_extrapolated_distance_is_nearer_to_the_true_one() {
    // The same distribution on both sides, so the true distance is 0.
    let (a, b) = (cloud(10, 20_000, 24, 0.0, 1.0), cloud(11, 1500, 24, 0.0, 1.0));
    let mut reference = Moments::new(24);
    reference.push(&a, [20_000, 24]).unwrap();
    let mut sample = Moments::new(24);
    sample.push(&b, [1500, 24]).unwrap();
    let plain = frechet_distance(&reference.gaussian().unwrap(), &sample.gaussian().unwrap()).unwrap();
    let [extrapolated, error] =
        extrapolated_frechet_distance(&reference.gaussian().unwrap(), features(&b, 24), 15, 0).unwrap();
    assert!(extrapolated.abs() < 0.4 * plain && error > 0.0 && error < plain, "{plain}, {extrapolated} ± {error}");
}

#[test]
fn sets_that_cannot_be_compared_are_errors() {
    let (a, b) = (cloud(12, 6, 4, 0.0, 1.0), cloud(13, 6, 3, 0.0, 1.0));
    let wide = FidelityError::WidthMismatch { expected: 4, found: 3 };
    assert_eq!(precision_recall(features(&a, 4), features(&b, 3), 3), Err(wide.clone()));
    assert_eq!(kernel_distance(features(&a, 4), features(&b, 3), Subsets::default()), Err(wide));
    let few = FidelityError::TooFewRows { needed: 4, found: 3 };
    assert_eq!(precision_recall(features(&a, 4), features(&a[..12], 4), 3), Err(few));
    assert!(matches!(Features::new(&a, [5, 5]), Err(FidelityError::ShapeMismatch { .. })));
    let bad = [1.0, f32::NAN];
    assert!(matches!(Features::new(&bad, [1, 2]), Err(FidelityError::NonFinite { row: 0, column: 1 })));
}
