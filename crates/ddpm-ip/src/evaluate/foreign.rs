//! Feature networks of ONNX files.

use crate::data::{Pixels, bicubic_crop};
use crate::{Error, weights};
use fidelity::{FidelityError, Onnx};
use rayon::prelude::*;
use std::path::PathBuf;

/// An ONNX file and what images need before they enter it.
#[derive(Clone, Debug, PartialEq)]
pub struct OnnxChoice {
    /// The file.
    pub path: PathBuf,
    /// Side of the images, where the model leaves it open.
    pub size: Option<usize>,
    /// Name of the output; the first that gives features if there is none.
    pub output: Option<String>,
    /// Means of the channels of images in 0 to 1, taken off them.
    pub mean: [f32; 3],
    /// What they are divided by then.
    pub std: [f32; 3],
}

impl OnnxChoice {
    /// A file with ImageNet's means and deviations, as DINOv2 wants them.
    pub fn new(path: PathBuf) -> Self {
        Self { path, size: None, output: None, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] }
    }
}

/// A network of an ONNX file, and what images need before they enter it.
pub(super) struct Foreign {
    name: String,
    choice: OnnxChoice,
    network: Onnx,
}

impl Foreign {
    /// Loads the network. Its name is that of the file with a hash of the file and of all that is done to images.
    pub(super) fn load(choice: &OnnxChoice) -> Result<Self, Error> {
        if choice.std.iter().chain(&choice.mean).any(|v| !v.is_finite()) || choice.std.contains(&0.0) {
            let message =
                "--feature-mean and --feature-std must be finite numbers, and --feature-std must not be 0".into();
            return Err(crate::config::ConfigError(message).into());
        }
        let network =
            Onnx::load(&choice.path, choice.size, choice.output.as_deref()).map_err(|e| failed(choice, &e))?;
        // A name that promises a hash is held to it. Weights may lie in files of their own.
        let files = std::iter::once(&choice.path).chain(network.files_beside());
        let hash = files.map(|path| weights::check_hash(path)).collect::<Result<Vec<_>, _>>()?.join(" ");
        let OnnxChoice { output, mean, std, .. } = choice;
        let settings = format!("{hash} {} {output:?} {mean:?} {std:?}", network.size());
        let stem = choice.path.file_stem().unwrap_or_default().to_string_lossy();
        let stem: String = stem.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).take(60).collect();
        Ok(Self {
            name: format!("onnx-{stem}-{}", weights::short_hash(settings.as_bytes())),
            choice: choice.clone(),
            network,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn size(&self) -> usize {
        self.network.size()
    }

    pub(super) fn width(&self) -> usize {
        self.network.width()
    }

    pub(super) fn channels(&self) -> usize {
        self.network.channels()
    }

    /// `[n, width]` of images `[n, H, W, C]`.
    pub(super) fn features(&self, images: &[u8], [n, height, width, channels]: [usize; 4]) -> Result<Vec<f32>, Error> {
        let (size, wanted) = (self.network.size(), self.network.channels());
        let image = |data: &[u8]| -> Vec<f32> {
            let image = Pixels { width, height, channels, data: data.to_vec() };
            let image = image.with_channels(wanted).expect("grey and colour become each other");
            let image = if [height, width] == [size; 2] { image } else { bicubic_crop(image, size) };
            let value = |c: usize, v: u8| (f32::from(v) / 255.0 - self.choice.mean[c]) / self.choice.std[c];
            (0..wanted)
                .flat_map(|c| image.data.iter().skip(c).step_by(wanted).map(move |&v| value(c, v)).collect::<Vec<_>>())
                .collect()
        };
        let values: Vec<Vec<f32>> = images.par_chunks_exact(height * width * channels).map(image).collect();
        self.network.features(&values.concat(), n).map_err(|e| failed(&self.choice, &e))
    }
}

fn failed(choice: &OnnxChoice, error: &FidelityError) -> Error {
    match error {
        FidelityError::Network { path, problem } => Error::file(path, problem),
        other => Error::file(&choice.path, other.to_string()),
    }
}
