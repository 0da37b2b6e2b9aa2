//! What can go wrong when a metric is computed.

use std::path::PathBuf;

/// Why a metric could not be computed, phrased for the person who asked for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FidelityError {
    /// Features of one width met features of another.
    #[error("features have {found} columns where {expected} are expected")]
    WidthMismatch {
        /// The width asked for.
        expected: usize,
        /// The width given.
        found: usize,
    },
    /// A batch holds another number of values than its shape says.
    #[error("a batch of shape [{rows}, {width}] cannot be made from {found} values")]
    ShapeMismatch {
        /// Rows of the shape.
        rows: usize,
        /// Columns of the shape.
        width: usize,
        /// Values given.
        found: usize,
    },
    /// A feature is infinite or not a number.
    #[error("the feature in row {row}, column {column} of the batch is not finite")]
    NonFinite {
        /// Row within the batch, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
    },
    /// The statistic is not defined for so few rows.
    #[error("{found} rows of features are too few: at least {needed} are needed")]
    TooFewRows {
        /// The fewest rows that define the statistic.
        needed: usize,
        /// Rows seen.
        found: usize,
    },
    /// A matrix is no covariance.
    #[error(
        "row {row}, column {column} of the matrix is not that of a covariance, which is symmetric and has no negative variance"
    )]
    NoCovariance {
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
    },
    /// A symmetric matrix has negative eigenvalues.
    #[error("the matrix has negative eigenvalues, so it is not a covariance")]
    Indefinite,
    /// The features are finite, but so large that their statistics are not.
    #[error("the features are too large for their statistics to fit a 64-bit float")]
    Overflow,
    /// A network that makes features cannot be read or run.
    #[error("{}: {problem}", path.display())]
    Network {
        /// The network's file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The eigenvalue iteration gave up.
    #[error("the eigenvalues of a covariance did not converge")]
    NoConvergence,
}
