//! Chains whose noise is given in a file.

use super::Draws;
use crate::Error;
use crate::npz::{Array, Npz};
use std::path::Path;

/// Noise from an npz: `initial_noise` `[N, C, H, W]` and, if the sampler adds noise, `step_noise` `[T', N, C, H, W]`.
pub struct GivenNoise {
    initial: Array<f32>,
    step: Option<Array<f32>>,
}

impl GivenNoise {
    /// Reads the file and checks it against the images to draw.
    ///
    /// # Errors
    /// A missing or damaged file, wrong shapes, no `step_noise` where the sampler needs it.
    pub fn read(path: &Path, image: [usize; 3], steps: usize, needs_steps: bool) -> Result<Self, Error> {
        let mut npz = Npz::open(path)?;
        let initial = npz.floats("initial_noise")?;
        if initial.shape.len() != 4 || initial.shape[1..] != image || initial.shape[0] == 0 {
            return Err(Error::file(
                path,
                format!(
                    "`initial_noise` has shape {:?}, expected [N, C, H, W] with [C, H, W] = {image:?}",
                    initial.shape
                ),
            ));
        }
        let step = if npz.has("step_noise") {
            let step = npz.floats("step_noise")?;
            let expected = [&[steps], initial.shape.as_slice()].concat();
            if step.shape != expected {
                return Err(Error::file(
                    path,
                    format!("`step_noise` has shape {:?}, expected {expected:?}", step.shape),
                ));
            }
            Some(step)
        } else if needs_steps {
            return Err(Error::file(
                path,
                format!(
                    "has no `step_noise` [{steps}, N, C, H, W], and this sampler adds noise at its steps: add it, or use a sampler without noise (ddim with eta 0, dpm-solver++, unipc, heun)"
                ),
            ));
        } else {
            None
        };
        Ok(Self { initial, step })
    }

    /// Number of images the file has noise for.
    pub fn images(&self) -> usize {
        self.initial.shape[0]
    }
}

impl Draws for GivenNoise {
    fn initial(&self, image: u64, values: &mut [f32]) {
        let from = image as usize * values.len();
        values.copy_from_slice(&self.initial.values[from..from + values.len()]);
    }

    fn step(&self, image: u64, k: usize, values: &mut [f32]) {
        if let Some(step) = &self.step {
            let from = (k * self.images() + image as usize) * values.len();
            values.copy_from_slice(&step.values[from..from + values.len()]);
        }
    }
}
