//! Improved precision and recall.

use crate::{Features, FidelityError};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows and columns of a block of distances.
const BLOCK_ROWS: usize = 256;
const BLOCK_COLUMNS: usize = 2048;

/// Squared distances below this share of the two rows' squared lengths are what rounding leaves of equal rows.
const RESOLUTION: f32 = 1e-6;

/// Which share of the samples lies where the reference lies, and the other way round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrecisionRecall {
    /// Share of the samples within reach of a reference row.
    pub precision: f64,
    /// Share of the reference rows within reach of a sample.
    pub recall: f64,
}

/// Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): a set's manifold is the union of balls
/// around its rows, each as large as the distance to the row's `k`-th neighbour in its own set. The reference evaluator
/// has `k = 3`.
///
/// Distances are computed in blocks of `f32` products from rows that are centred on the reference's mean, which costs no
/// digits however far from zero the features lie. Time is that of three products `[n, d] × [d, n]`; memory is that of the
/// features, twice, and a block per thread. The result depends neither on the blocks nor on the number of threads.
///
/// # Errors
/// When the widths differ or a side has no more than `k` rows.
pub fn precision_recall(reference: Features, sample: Features, k: usize) -> Result<PrecisionRecall, FidelityError> {
    reference.require(reference.width(), k + 1)?;
    sample.require(reference.width(), k + 1)?;
    let mean = mean(reference);
    let (reference, sample) = (Centred::new(reference, &mean), Centred::new(sample, &mean));
    let precision = share_within(&sample, &reference, &radii(&reference, k));
    let recall = share_within(&reference, &sample, &radii(&sample, k));
    Ok(PrecisionRecall { precision, recall })
}

fn mean(features: Features) -> Vec<f32> {
    let mut sums = vec![0.0_f64; features.width()];
    for i in 0..features.rows() {
        for (sum, &v) in sums.iter_mut().zip(features.row(i)) {
            *sum += f64::from(v);
        }
    }
    sums.into_iter().map(|sum| (sum / features.rows() as f64) as f32).collect()
}

/// Rows less a mean, and their squared lengths.
struct Centred {
    values: Vec<f32>,
    squares: Vec<f32>,
    width: usize,
}

impl Centred {
    fn new(features: Features, mean: &[f32]) -> Self {
        let width = features.width();
        let mut values = Vec::with_capacity(features.rows() * width);
        let mut squares = Vec::with_capacity(features.rows());
        for i in 0..features.rows() {
            values.extend(features.row(i).iter().zip(mean).map(|(v, m)| v - m));
            let square = values[i * width..].iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
            squares.push(square as f32);
        }
        Self { values, squares, width }
    }

    fn rows(&self) -> usize {
        self.squares.len()
    }

    /// Passes the squared distances from `rows` of these to all rows of `others`, a block after another: the row, the
    /// first column and its distances.
    fn distances(&self, rows: std::ops::Range<usize>, others: &Self, mut take: impl FnMut(usize, usize, &[f32])) {
        let mut block = vec![0.0; BLOCK_ROWS * BLOCK_COLUMNS];
        let width = self.width;
        let own = &self.values[rows.start * width..rows.end * width];
        for from in (0..others.rows()).step_by(BLOCK_COLUMNS) {
            let columns = from..(from + BLOCK_COLUMNS).min(others.rows());
            let (n, m) = (rows.len(), columns.len());
            // Rows in C-order are the columns of a matrix: the block is others' transpose times own.
            matmul(
                MatMut::from_column_major_slice_mut(&mut block[..m * n], m, n),
                Accum::Replace,
                MatRef::from_column_major_slice(&others.values[columns.start * width..columns.end * width], width, m)
                    .transpose(),
                MatRef::from_column_major_slice(own, width, n),
                -2.0,
                Par::Seq,
            );
            for (i, row) in block[..m * n].chunks_exact_mut(m).enumerate() {
                let square = self.squares[rows.start + i];
                for (d, other) in row.iter_mut().zip(&others.squares[columns.clone()]) {
                    let lengths = square + other;
                    let distance = *d + lengths;
                    *d = if distance <= RESOLUTION * lengths { 0.0 } else { distance };
                }
                take(i, from, row);
            }
        }
    }
}

fn blocks(rows: usize) -> impl IndexedParallelIterator<Item = std::ops::Range<usize>> {
    (0..rows.div_ceil(BLOCK_ROWS)).into_par_iter().map(move |b| b * BLOCK_ROWS..((b + 1) * BLOCK_ROWS).min(rows))
}

/// Squared distance of each row to its `k`-th neighbour in its own set.
fn radii(set: &Centred, k: usize) -> Vec<f32> {
    let of_block = |rows: std::ops::Range<usize>| -> Vec<f32> {
        // The k nearest so far, the farthest of them last.
        let mut nearest = vec![vec![f32::INFINITY; k]; rows.len()];
        set.distances(rows.clone(), set, |i, from, distances| {
            let nearest = &mut nearest[i];
            for (j, &d) in distances.iter().enumerate() {
                if k > 0 && d < nearest[k - 1] && from + j != rows.start + i {
                    let place = nearest.partition_point(|&other| other <= d);
                    nearest[place..].rotate_right(1);
                    nearest[place] = d;
                }
            }
        });
        nearest.into_iter().map(|nearest| nearest.last().copied().unwrap_or(0.0)).collect()
    };
    blocks(set.rows()).flat_map_iter(of_block).collect()
}

/// The share of `points` that lie in a ball around a row of `set`.
fn share_within(points: &Centred, set: &Centred, radii: &[f32]) -> f64 {
    let of_block = |rows: std::ops::Range<usize>| -> usize {
        let mut within = vec![false; rows.len()];
        points.distances(rows, set, |i, from, distances| {
            within[i] = within[i] || distances.iter().zip(&radii[from..]).any(|(d, radius)| d <= radius);
        });
        within.into_iter().filter(|&w| w).count()
    };
    blocks(points.rows()).map(of_block).sum::<usize>() as f64 / points.rows() as f64
}
