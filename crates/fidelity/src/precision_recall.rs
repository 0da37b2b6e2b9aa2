//! Improved precision and recall.

use crate::{Features, FidelityError};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Rows and columns of a block of distances.
const BLOCK_ROWS: usize = 512;

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
/// digits however far from zero the features lie. Time is that of two products `[n, d] × [d, n]`, as each pair of rows is looked
/// at once; memory is that of the features, twice, and a block per thread. The result depends neither on the blocks nor on the number of threads.
///
/// # Errors
/// When the widths differ or a side has no more than `k` rows.
pub fn precision_recall(reference: Features, sample: Features, k: usize) -> Result<PrecisionRecall, FidelityError> {
    reference.require(reference.width(), k + 1)?;
    sample.require(reference.width(), k + 1)?;
    let mean = mean(reference);
    let (reference, sample) = (Centred::new(reference, &mean), Centred::new(sample, &mean));
    let radii = [&reference, &sample].map(|set| radii(set, k));
    let [precision, recall] = shares_within([&reference, &sample], &radii);
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

    /// Rows of block `b`.
    fn block(&self, b: usize) -> Range<usize> {
        b * BLOCK_ROWS..((b + 1) * BLOCK_ROWS).min(self.rows())
    }

    fn blocks(&self) -> usize {
        self.rows().div_ceil(BLOCK_ROWS)
    }

    /// The squared distances from `rows` of these to `columns` of others, row by row.
    fn distances(&self, rows: Range<usize>, others: &Self, columns: Range<usize>) -> Vec<f32> {
        let (n, m, width) = (rows.len(), columns.len(), self.width);
        let mut block = vec![0.0; n * m];
        // Rows in C-order are the columns of a matrix: the block is others' transpose times own.
        matmul(
            MatMut::from_column_major_slice_mut(&mut block, m, n),
            Accum::Replace,
            MatRef::from_column_major_slice(&others.values[columns.start * width..columns.end * width], width, m)
                .transpose(),
            MatRef::from_column_major_slice(&self.values[rows.start * width..rows.end * width], width, n),
            -2.0,
            Par::Seq,
        );
        for (row, square) in block.chunks_exact_mut(m).zip(&self.squares[rows]) {
            for (d, other) in row.iter_mut().zip(&others.squares[columns.clone()]) {
                let lengths = square + other;
                let distance = *d + lengths;
                *d = if distance <= RESOLUTION * lengths { 0.0 } else { distance };
            }
        }
        block
    }
}

/// The `k` smallest of the distances that each row of a block has seen, ascending.
struct Nearest {
    k: usize,
    /// `[rows, k]`
    smallest: Vec<f32>,
}

impl Nearest {
    fn new(rows: usize, k: usize) -> Self {
        Self { k, smallest: vec![f32::INFINITY; rows * k] }
    }

    /// The last of a row's smallest.
    fn radius(&self, row: usize) -> f32 {
        self.smallest[(row + 1) * self.k - 1]
    }

    fn add(&mut self, row: usize, distance: f32) {
        let smallest = &mut self.smallest[row * self.k..(row + 1) * self.k];
        if distance < smallest[self.k - 1] {
            let place = smallest.partition_point(|&other| other <= distance);
            smallest[place..].rotate_right(1);
            smallest[place] = distance;
        }
    }
}

/// Squared distance of each row to its `k`-th neighbour in its own set. Each pair is looked at once, and whichever task comes
/// first, the smallest are the same.
fn radii(set: &Centred, k: usize) -> Vec<f32> {
    if k == 0 {
        return vec![0.0; set.rows()];
    }
    let blocks = set.blocks();
    let nearest: Vec<Mutex<Nearest>> = (0..blocks).map(|b| Mutex::new(Nearest::new(set.block(b).len(), k))).collect();
    let pairs: Vec<(usize, usize)> = (0..blocks).flat_map(|a| (a..blocks).map(move |b| (a, b))).collect();
    pairs.into_par_iter().for_each(|(a, b)| {
        let distances = set.distances(set.block(a), set, set.block(b));
        let columns = set.block(b).len();
        let of = |block: usize| nearest[block].lock().unwrap_or_else(PoisonError::into_inner);
        let mut of_rows = of(a);
        for (i, row) in distances.chunks_exact(columns).enumerate() {
            let radius = of_rows.radius(i);
            if row.iter().any(|&d| d < radius) {
                row.iter().enumerate().filter(|(j, _)| a != b || i != *j).for_each(|(_, &d)| of_rows.add(i, d));
            }
        }
        drop(of_rows);
        if a != b {
            let mut of_columns = of(b);
            let mut radii: Vec<f32> = (0..columns).map(|j| of_columns.radius(j)).collect();
            for row in distances.chunks_exact(columns) {
                if row.iter().zip(&radii).any(|(d, radius)| d < radius) {
                    for (j, (&d, radius)) in row.iter().zip(&mut radii).enumerate() {
                        of_columns.add(j, d);
                        *radius = of_columns.radius(j);
                    }
                }
            }
        }
    });
    let of_block = |nearest: Mutex<Nearest>| {
        let nearest = nearest.into_inner().unwrap_or_else(PoisonError::into_inner);
        (0..nearest.smallest.len() / k).map(|row| nearest.radius(row)).collect::<Vec<_>>()
    };
    nearest.into_iter().flat_map(of_block).collect()
}

/// The share of the second set that lies in a ball around a row of the first, and of the first in one of the second.
fn shares_within([reference, sample]: [&Centred; 2], radii: &[Vec<f32>; 2]) -> [f64; 2] {
    let flags = |set: &Centred| -> Vec<AtomicBool> { (0..set.rows()).map(|_| AtomicBool::new(false)).collect() };
    let within = [flags(sample), flags(reference)];
    let pairs: Vec<(usize, usize)> =
        (0..sample.blocks()).flat_map(|a| (0..reference.blocks()).map(move |b| (a, b))).collect();
    pairs.into_par_iter().for_each(|(a, b)| {
        let (rows, columns) = (sample.block(a), reference.block(b));
        let distances = sample.distances(rows.clone(), reference, columns.clone());
        let balls = &radii[0][columns.clone()];
        let mut reached = vec![false; columns.len()];
        for (i, row) in rows.zip(distances.chunks_exact(columns.len())) {
            if row.iter().zip(balls).any(|(d, radius)| d <= radius) {
                within[0][i].store(true, Ordering::Relaxed);
            }
            let ball = radii[1][i];
            reached.iter_mut().zip(row).for_each(|(reached, &d)| *reached |= d <= ball);
        }
        for (j, _) in columns.zip(reached).filter(|(_, reached)| *reached) {
            within[1][j].store(true, Ordering::Relaxed);
        }
    });
    within.map(|flags| {
        let count = flags.iter().filter(|flag| flag.load(Ordering::Relaxed)).count();
        count as f64 / flags.len() as f64
    })
}
