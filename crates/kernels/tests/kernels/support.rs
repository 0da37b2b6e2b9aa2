//! Inputs, outputs, comparisons and thread pools shared by the tests.

use ddpm_kernels::Element;
use proptest::test_runner::{Config, RngSeed};

/// A property's configuration: the same few cases on every run.
pub(crate) fn config(cases: u32) -> Config {
    Config { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(20_240_917), ..Config::default() }
}

/// Values that depend on a seed alone (splitmix64, Steele et al. 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An index below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// A multiple of 2⁻²³ in [−1, 1).
    pub(crate) fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// The nearest values of a type.
pub(crate) fn rounded<E: Element>(values: &[f32]) -> Vec<E> {
    values.iter().map(|&v| E::from_f32(v)).collect()
}

pub(crate) fn read<E: Element>(values: &[E]) -> Vec<f32> {
    values.iter().map(|v| v.to_f32()).collect()
}

/// What `fill` writes into a slice of that length, which holds what no test expects.
pub(crate) fn written<E: Element>(len: usize, fill: impl FnOnce(&mut [E])) -> Vec<f32> {
    let mut out = vec![E::from_f32(-7e33); len];
    fill(&mut out);
    read(&out)
}

pub(crate) fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Asserts that every value is within `tolerance` of the expected one.
pub(crate) fn assert_close(actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "number of values");
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        assert!((f64::from(a) - e).abs() <= tolerance, "value {i} is {a}, not {e}, beyond {tolerance:e}");
    }
}

/// The largest magnitude, at least 1.
pub(crate) fn scale(values: &[f64]) -> f64 {
    values.iter().fold(1.0, |a, v| a.max(v.abs()))
}

/// Compares gradients of `f` with its central differences, in a few random directions and along single coordinates of
/// each input. `tolerance` is relative to the largest slope, `floor` is added to it.
pub(crate) fn assert_gradients(
    f: impl Fn(&[Vec<f64>]) -> f64,
    inputs: &[Vec<f32>],
    gradients: &[Vec<f32>],
    tolerance: f64,
    floor: f64,
) {
    let inputs: Vec<Vec<f64>> = inputs.iter().map(|x| doubles(x)).collect();
    let mut random = Random(7);
    for (i, gradient) in gradients.iter().enumerate() {
        let len = gradient.len();
        assert_eq!(len, inputs[i].len(), "size of gradient {i}");
        let gradient = doubles(gradient);
        let mut directions: Vec<Vec<f64>> = (0..3).map(|_| doubles(&random.values(len))).collect();
        let coordinates =
            if len <= 12 { (0..len).collect() } else { (0..8).map(|_| random.below(len)).collect::<Vec<_>>() };
        directions.extend(coordinates.iter().map(|&at| {
            let mut direction = vec![0.0; len];
            direction[at] = 1.0;
            direction
        }));
        for direction in directions {
            let at = |step: f64| {
                let mut moved = inputs.clone();
                moved[i].iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
                f(&moved)
            };
            let step = 1e-5 * scale(&inputs[i]);
            let expected = (at(step) - at(-step)) / (2.0 * step);
            let terms: Vec<f64> = gradient.iter().zip(&direction).map(|(g, d)| g * d).collect();
            let actual: f64 = terms.iter().sum();
            let allowed = tolerance * scale(&gradient) * terms_scale(&direction) + floor;
            assert!(
                (actual - expected).abs() <= allowed,
                "gradient {i}: slope {actual}, not {expected}, beyond {allowed:e}"
            );
        }
    }
}

/// Length of a direction: rounding errors of independent gradients add up like it.
fn terms_scale(direction: &[f64]) -> f64 {
    direction.iter().map(|d| d * d).sum::<f64>().sqrt()
}

/// Asserts that `f` gives the same bits on 1, 2 and 3 threads.
pub(crate) fn assert_same_on_any_threads(f: impl Fn() -> Vec<Vec<f32>> + Sync) {
    let results = [1, 2, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        pool.install(|| f().iter().map(|values| bits(values)).collect::<Vec<_>>())
    });
    assert!(results[0] == results[1], "2 threads give other values than 1");
    assert!(results[0] == results[2], "3 threads give other values than 1");
}
