//! The Inception Score.

use crate::FidelityError;
use crate::features::check;

/// The Inception Score of class probabilities that arrive in batches, over splits of consecutive rows,
///
/// ```text
/// exp( mean over x of KL( p(y|x) ‖ p(y) ) )
/// ```
///
/// (Salimans et al. 2016, arXiv 1606.03498, section 4), where `p(y)` is the mean over the split. As in the reference
/// evaluator the score is the mean over the splits, of which the last may be smaller. Memory does not grow with the
/// number of rows: with the entropy `H`, the exponent is `H(p(y)) − mean H(p(y|x))`.
#[derive(Debug, Clone)]
pub struct InceptionScore {
    classes: usize,
    split: usize,
    /// Of the split at hand: rows, sums of probabilities, and the sum of `p ln p`.
    rows: usize,
    sums: Vec<f64>,
    negative_entropy: f64,
    scores: Vec<f64>,
}

/// `p ln p`, which is 0 at 0.
fn p_ln_p(p: f64) -> f64 {
    if p > 0.0 { p * p.ln() } else { 0.0 }
}

impl InceptionScore {
    /// The rows per split of the reference evaluator.
    pub const SPLIT: usize = 5000;

    /// A score of no rows yet, over splits of `split` rows (at least one).
    pub fn new(classes: usize, split: usize) -> Self {
        let (split, sums) = (split.max(1), vec![0.0; classes]);
        Self { classes, split, rows: 0, sums, negative_entropy: 0.0, scores: Vec::new() }
    }

    /// Adds probabilities `[n, classes]`, C-order, of which each row sums to 1.
    ///
    /// # Errors
    /// When the shape has another width or does not match the number of values, and when a value is not finite.
    pub fn push<T: Copy + Into<f64>>(&mut self, probabilities: &[T], shape: [usize; 2]) -> Result<(), FidelityError> {
        if shape[1] != self.classes {
            return Err(FidelityError::WidthMismatch { expected: self.classes, found: shape[1] });
        }
        check(probabilities, shape)?;
        for row in probabilities.chunks_exact(self.classes.max(1)) {
            for (sum, &p) in self.sums.iter_mut().zip(row) {
                *sum += p.into();
                self.negative_entropy += p_ln_p(p.into());
            }
            self.rows += 1;
            if self.rows == self.split {
                self.end_split();
            }
        }
        Ok(())
    }

    /// The scores of the splits: their mean, and their standard deviation.
    ///
    /// # Errors
    /// When no row was seen.
    pub fn finish(mut self) -> Result<[f64; 2], FidelityError> {
        if self.rows > 0 {
            self.end_split();
        }
        if self.scores.is_empty() {
            return Err(FidelityError::TooFewRows { needed: 1, found: 0 });
        }
        Ok(mean_and_deviation(&self.scores))
    }

    fn end_split(&mut self) {
        let rows = self.rows as f64;
        let marginal: f64 = self.sums.iter().map(|sum| p_ln_p(sum / rows)).sum();
        self.scores.push((self.negative_entropy / rows - marginal).exp());
        self.sums.fill(0.0);
        (self.rows, self.negative_entropy) = (0, 0.0);
    }
}

/// Mean and standard deviation (of the values themselves, as `numpy.std`).
pub(crate) fn mean_and_deviation(values: &[f64]) -> [f64; 2] {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    [mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt()]
}
