//! One level of the two-dimensional Haar transform, without forming it.
//!
//! The orthonormal transform turns every 2×2 block of a plane into four coefficients: one of the low band LL, twice the
//! block's mean, and one each of the high bands LH, HL and HH, which hold what differs from the mean. So the low part of
//! a pixel is its block's mean, and the high part is the rest.

use crate::real::Real;

/// One number for the low band and one for the three high bands together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bands<R> {
    /// Of LL.
    pub low: R,
    /// Of LH, HL and HH.
    pub high: R,
}

/// The mean square of the coefficients in each of the bands of a plane `[height, width]`, summed in f64.
///
/// The bands have `height · width / 4` and `3 · height · width / 4` coefficients. Their squares sum to those of the pixels
/// (Parseval). Of an empty plane both are NaN.
///
/// # Panics
/// If the plane is shorter than its sides say. Debug builds also want it no longer, and both sides even.
pub fn haar_energy<R: Real>(plane: &[R], height: usize, width: usize) -> Bands<f64> {
    debug_assert_eq!(plane.len(), height * width, "a plane has height · width pixels");
    let (mut low, mut high) = (0.0, 0.0);
    for block in blocks(height, width) {
        let values = block.map(|i| plane[i].to_f64());
        let mean = mean(values);
        low += 4.0 * mean * mean;
        high += values.map(|value| (value - mean) * (value - mean)).iter().sum::<f64>();
    }
    let count = (height * width / 4) as f64;
    Bands { low: low / count, high: high / (3.0 * count) }
}

/// Moves a plane `[height, width]` away from the clean one predicted for it, band by band:
/// x^f ← x^f + λ_f (x^f − x̂_0^f) for each band f, with the same λ for the three high ones.
///
/// This is the correction of a sampling step of DCW (arXiv 2604.16044). λ without unit; a negative one moves towards x̂_0.
/// If both are 0, every bit stays.
///
/// # Panics
/// If a plane is shorter than its sides say. Debug builds also want them no longer, and both sides even.
pub fn haar_correct<R: Real>(x: &mut [R], x_start: &[R], height: usize, width: usize, lambda: Bands<R>) {
    debug_assert_eq!(x.len(), height * width, "a plane has height · width pixels");
    debug_assert_eq!(x.len(), x_start.len(), "both planes have the same pixels");
    // Adding 0 would turn −0 into 0, and infinities into NaN.
    if lambda == (Bands { low: R::of(0.0), high: R::of(0.0) }) {
        return;
    }
    for block in blocks(height, width) {
        let difference = block.map(|i| x[i] - x_start[i]);
        let mean = mean(difference);
        let low = lambda.low * mean;
        for (i, d) in block.into_iter().zip(difference) {
            x[i] = x[i] + (low + lambda.high * (d - mean));
        }
    }
}

/// Where the four pixels of each 2×2 block lie.
fn blocks(height: usize, width: usize) -> impl Iterator<Item = [usize; 4]> {
    debug_assert!(
        height.is_multiple_of(2) && width.is_multiple_of(2),
        "a plane has even sides, got {height} × {width}"
    );
    (0..height / 2).flat_map(move |row| {
        (0..width / 2).map(move |column| {
            let i = 2 * (row * width + column);
            [i, i + 1, i + width, i + width + 1]
        })
    })
}

fn mean<R: Real>([a, b, c, d]: [R; 4]) -> R {
    ((a + b) + (c + d)) * R::of(0.25)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{Domain, Stream};

    const HEIGHT: usize = 4;
    const WIDTH: usize = 6;

    fn noise(index: u64) -> Vec<f32> {
        let mut plane = vec![0.0; HEIGHT * WIDTH];
        Stream::new(7, Domain::Noise, index, 0).fill_normal(&mut plane);
        plane
    }

    /// LL, LH, HL and HH of a block. The matrix is its own inverse.
    fn transform([a, b, c, d]: [f64; 4]) -> [f64; 4] {
        [a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d].map(|sum| 0.5 * sum)
    }

    #[test]
    fn the_bands_hold_all_of_the_energy() {
        let plane = noise(0);
        let energy = haar_energy(&plane, HEIGHT, WIDTH);
        let count = (HEIGHT * WIDTH / 4) as f64;
        let total: f64 = plane.iter().map(|&value| f64::from(value).powi(2)).sum();
        assert!((count * energy.low + 3.0 * count * energy.high - total).abs() < 1e-12 * total);
    }

    #[test]
    fn constants_are_low_and_checkerboards_high() {
        let constant = haar_energy(&[0.3_f64; HEIGHT * WIDTH], HEIGHT, WIDTH);
        assert!((constant.low - 0.36).abs() < 1e-15 && constant.high < 1e-30, "{constant:?}");
        let board: Vec<f32> =
            (0..HEIGHT * WIDTH).map(|i| if (i / WIDTH + i % WIDTH).is_multiple_of(2) { 1.0 } else { -1.0 }).collect();
        // One coefficient of three is ±2.
        assert_eq!(haar_energy(&board, HEIGHT, WIDTH), Bands { low: 0.0, high: 4.0 / 3.0 });
    }

    #[test]
    fn the_correction_is_one_of_the_coefficients() {
        let [x, x_start] = [noise(0), noise(1)].map(|plane| plane.into_iter().map(f64::from).collect::<Vec<_>>());
        let lambda = Bands { low: 0.2, high: -0.3 };
        let mut got = x.clone();
        haar_correct(&mut got, &x_start, HEIGHT, WIDTH, lambda);
        for row in (0..HEIGHT).step_by(2) {
            for column in (0..WIDTH).step_by(2) {
                let block = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(down, right)| (row + down) * WIDTH + column + right);
                let (mut of_x, of_start) = (transform(block.map(|i| x[i])), transform(block.map(|i| x_start[i])));
                for (f, by) in [lambda.low, lambda.high, lambda.high, lambda.high].into_iter().enumerate() {
                    of_x[f] += by * (of_x[f] - of_start[f]);
                }
                for (i, expected) in block.into_iter().zip(transform(of_x)) {
                    assert!((got[i] - expected).abs() < 1e-14, "pixel {i}: {} and {expected}", got[i]);
                }
            }
        }
    }

    #[test]
    fn equal_lambdas_move_pixel_by_pixel() {
        let (mut x, x_start) = (noise(0), noise(1));
        let expected: Vec<f32> = x.iter().zip(&x_start).map(|(&x, &x_start)| x + 0.4 * (x - x_start)).collect();
        haar_correct(&mut x, &x_start, HEIGHT, WIDTH, Bands { low: 0.4, high: 0.4 });
        assert!(x.iter().zip(&expected).all(|(got, expected)| (got - expected).abs() < 2e-6), "{x:?}\n{expected:?}");
    }

    #[test]
    fn without_lambdas_every_bit_stays() {
        let mut x = [-0.0_f32, f32::INFINITY, 0.0, 1.0];
        haar_correct(&mut x, &[-1.0, 2.0, -0.0, 0.5], 2, 2, Bands { low: 0.0, high: -0.0 });
        assert_eq!(x.map(f32::to_bits), [-0.0_f32, f32::INFINITY, 0.0, 1.0].map(f32::to_bits));
    }
}
