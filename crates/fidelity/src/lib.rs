//! Fidelity metrics for generated images, and the networks whose features they compare. The crate knows nothing of diffusion
//! and opens no files but ONNX models.
//!
//! Features arrive in batches of rows `[n, d]`, C-order, and are accumulated in `f64` whatever their own type.
//!
//! ```
//! use fidelity::{Moments, frechet_distance};
//!
//! let mut reference = Moments::new(2);
//! reference.push(&[0.0_f32, 0.0, 1.0, 0.0, 0.0, 1.0], [3, 2])?;
//! let mut sample = Moments::new(2);
//! sample.push(&[3.0_f32, 4.0, 4.0, 4.0], [2, 2])?;
//! sample.push(&[3.0_f32, 5.0], [1, 2])?;
//! assert!((frechet_distance(&reference.gaussian()?, &sample.gaussian()?)? - 25.0).abs() < 1e-12);
//! # Ok::<(), fidelity::FidelityError>(())
//! ```

pub mod error;
pub mod features;
pub mod frechet;
pub mod inception;
pub mod inception_score;
pub mod kernel_distance;
pub mod moments;
pub mod onnx;
pub mod precision_recall;
pub mod resize;

pub use error::FidelityError;
pub use features::Features;
pub use frechet::{
    FrechetParts, Gaussian, LEAST_EXTRAPOLATED, extrapolated_frechet_distance, frechet_distance, frechet_parts,
};
pub use inception::{Inception, InceptionFeatures};
pub use inception_score::InceptionScore;
pub use kernel_distance::{Subsets, kernel_distance};
pub use moments::Moments;
pub use onnx::Onnx;
pub use precision_recall::{PrecisionRecall, precision_recall};
pub use resize::resize_tf1;
