//! Fidelity metrics for generated images. The crate sees features alone, and knows nothing of diffusion.
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
//! assert!((frechet_distance(&reference, &sample)? - 25.0).abs() < 1e-12);
//! # Ok::<(), fidelity::FidelityError>(())
//! ```

pub mod error;
pub mod features;
pub mod frechet;
pub mod inception_score;
pub mod kernel_distance;
pub mod moments;
pub mod precision_recall;

pub use error::FidelityError;
pub use features::Features;
pub use frechet::{extrapolated_frechet_distance, frechet_distance};
pub use inception_score::InceptionScore;
pub use kernel_distance::{Subsets, kernel_distance};
pub use moments::Moments;
pub use precision_recall::{PrecisionRecall, precision_recall};
