//! What the pixels of images say without a network.

/// Sums over images of one size. They are integers, so that the order of the images changes nothing.
pub(super) struct PixelSums {
    images: u128,
    /// Of each value of an image `[H, W, C]`, over the images.
    values: Vec<u64>,
    /// Of the squares of all values.
    squares: u128,
    /// Of the squares of the images' sums.
    squares_of_images: u128,
}

/// Brightness and spread of at least two images, their values scaled to [-1, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PixelStatistics {
    /// Mean over images, pixels and channels, and its standard error over images.
    pub(super) brightness: [f64; 2],
    /// Mean over pixels and channels of the unbiased variance over images.
    pub(super) variance: f64,
}

/// Bytes to one of the scaled values.
const SCALE: f64 = 127.5;

impl PixelSums {
    /// Of no images yet, of `size` values each.
    pub(super) fn new(size: usize) -> Self {
        Self { images: 0, values: vec![0; size], squares: 0, squares_of_images: 0 }
    }

    /// Adds images `[n, H, W, C]`.
    pub(super) fn add(&mut self, images: &[u8]) {
        for image in images.chunks_exact(self.values.len()) {
            let (mut sum, mut squares) = (0, 0);
            for (total, &value) in self.values.iter_mut().zip(image) {
                let value = u64::from(value);
                *total += value;
                sum += value;
                squares += value * value;
            }
            self.images += 1;
            self.squares += u128::from(squares);
            self.squares_of_images += u128::from(sum).pow(2);
        }
    }

    pub(super) fn finish(&self) -> PixelStatistics {
        let (n, size) = (self.images, self.values.len() as f64);
        let total: u128 = self.values.iter().map(|&v| u128::from(v)).sum();
        let squares_of_values: u128 = self.values.iter().map(|&v| u128::from(v).pow(2)).sum();
        // n Σ x² − (Σ x)² of n values is n (n − 1) times their variance.
        let pairs = (n * (n - 1)) as f64;
        let of_images = (n * self.squares_of_images - total.pow(2)) as f64 / pairs;
        let of_values = (n * self.squares - squares_of_values) as f64 / pairs;
        PixelStatistics {
            brightness: [
                total as f64 / (n as f64 * size) / SCALE - 1.0,
                (of_images / n as f64).sqrt() / (size * SCALE),
            ],
            variance: of_values / size / SCALE.powi(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_give_what_two_plain_passes_give_whatever_the_batches() {
        let (count, size) = (23, 12);
        let bytes: Vec<u8> = (0..count * size).map(|i| (i * i * 37 + i / size * 11) as u8).collect();
        let of_batches = |batch: usize| {
            let mut sums = PixelSums::new(size);
            bytes.chunks(batch * size).for_each(|images| sums.add(images));
            sums.finish()
        };
        let found = of_batches(count);
        assert_eq!((of_batches(1), of_batches(7)), (found, found));

        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let variance = |values: &[f64]| {
            let squares: f64 = values.iter().map(|v| (v - mean(values)).powi(2)).sum();
            squares / (values.len() - 1) as f64
        };
        let scaled: Vec<f64> = bytes.iter().map(|&v| f64::from(v) / 127.5 - 1.0).collect();
        let of_images: Vec<f64> = scaled.chunks(size).map(mean).collect();
        let at = |j: usize| scaled.iter().skip(j).step_by(size).copied().collect::<Vec<_>>();
        let variances: Vec<f64> = (0..size).map(|j| variance(&at(j))).collect();
        let expected = [mean(&scaled), (variance(&of_images) / count as f64).sqrt(), mean(&variances)];
        let [brightness, error] = found.brightness;
        for (found, expected) in [brightness, error, found.variance].iter().zip(expected) {
            assert!((found - expected).abs() < 1e-14, "{found} instead of {expected}");
        }
    }
}
