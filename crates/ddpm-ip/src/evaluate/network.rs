//! The networks whose features are compared.

use super::foreign::{Foreign, OnnxChoice};
use super::grey::Grey;
use crate::checkpoint::Tensors;
use crate::config::ConfigError;
use crate::data::bicubic_floats;
use crate::{Error, weights};
use ddpm_net::Device;
use fidelity::Inception;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Which network's features are compared.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// FID-Inception, its weights from this file, or else from the folder of weights.
    Inception(Option<PathBuf>),
    /// The embedded network for small grey images.
    Grey,
    /// A network in an ONNX file.
    Onnx(OnnxChoice),
}

impl std::str::FromStr for Choice {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text.split_once(':') {
            None if text == "inception" => Ok(Self::Inception(None)),
            None if text == "grey" => Ok(Self::Grey),
            Some(("inception", path)) if !path.is_empty() => Ok(Self::Inception(Some(path.into()))),
            _ if text.to_ascii_lowercase().ends_with(".onnx") => Ok(Self::Onnx(OnnxChoice::new(text.into()))),
            _ => Err(ConfigError(format!(
                "--features {text}: use inception, inception:WEIGHTS.pth, grey or the path of an .onnx file"
            ))),
        }
    }
}

/// How images come to the 299x299 pixels that FID-Inception takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resize {
    /// Bilinear as the network's graph does in TensorFlow 1: what the FIDs of guided-diffusion, ADM and DDPM-IP are of.
    #[default]
    TensorFlow1,
    /// Bicubic by Pillow on floats, cut to 0 to 255 and not rounded: what the FIDs of clean-fid are of (Parmar et al. 2022,
    /// arXiv 2104.11222).
    Clean,
}

/// Features of a batch, row by row independent of the batch.
pub struct Rows {
    /// `[n, width]`
    pub features: Vec<f32>,
    /// `[n, spatial_width]`; empty where the network has none.
    pub spatial: Vec<f32>,
}

/// A network that makes features of images.
pub struct FeatureNetwork {
    name: String,
    kind: Kind,
    resize: Resize,
    device: Device,
}

enum Kind {
    Inception(Box<Inception>),
    Grey(Box<Grey>),
    Foreign(Box<Foreign>),
}

/// The name of the network that published FIDs are measured with.
pub const FID_INCEPTION: &str = "inception-2015-12-05";

/// What its name ends in where images are resized as clean-fid does.
pub(super) const CLEAN: &str = "-clean";

/// SHA-256 of the usual conversion of its weights.
const FID_INCEPTION_SHA256: &str = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2";

impl FeatureNetwork {
    /// The name of the embedded network for small grey images.
    pub const GREY: &str = Grey::NAME;

    /// Loads a network. Weights without a path are looked for in the folder `weights`.
    ///
    /// # Errors
    /// Weights that are not there, are damaged or another network's.
    pub fn open(choice: &Choice, weights: &Path, device: Device) -> Result<Self, Error> {
        match choice {
            Choice::Grey => {
                let grey = Grey::load(device)?;
                Ok(Self {
                    name: Grey::NAME.into(),
                    kind: Kind::Grey(Box::new(grey)),
                    resize: Resize::default(),
                    device,
                })
            }
            Choice::Inception(path) => {
                let path = match path {
                    Some(path) => path.clone(),
                    None => found_in(weights)?,
                };
                let hash = weights::check_hash(&path)?;
                let mut tensors = Tensors::open(&path, "", &|_| true)?;
                let inception = Inception::load(&mut |name, shape| tensors.floats(name, shape), device)?;
                let name = match hash.as_str() {
                    FID_INCEPTION_SHA256 => FID_INCEPTION.into(),
                    other => format!("inception-{}", &other[..8]),
                };
                Ok(Self { name, kind: Kind::Inception(Box::new(inception)), resize: Resize::default(), device })
            }
            Choice::Onnx(choice) => {
                let network = Foreign::load(choice)?;
                let (name, device) = (network.name().into(), Device::Cpu);
                Ok(Self { name, kind: Kind::Foreign(Box::new(network)), resize: Resize::default(), device })
            }
        }
    }

    /// The network with images resized in this way, which its name tells.
    ///
    /// # Errors
    /// Another way than the default for a network that is not Inception.
    pub fn with_resize(mut self, resize: Resize) -> Result<Self, ConfigError> {
        if resize == Resize::Clean {
            if !self.is_inception() {
                let message =
                    format!("--resize is only for Inception, but the features are of {}: leave it out", self.name);
                return Err(ConfigError(message));
            }
            self.name.push_str(CLEAN);
            self.resize = resize;
        }
        Ok(self)
    }

    /// Its name, which statistics carry: distances of features with different names cannot be compared.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it computes.
    pub(super) fn device(&self) -> Device {
        self.device
    }

    /// Whether its images have three channels.
    pub(super) fn is_for_colour(&self) -> bool {
        match &self.kind {
            Kind::Inception(_) => true,
            Kind::Grey(_) => false,
            Kind::Foreign(network) => network.channels() == 3,
        }
    }

    /// How images are resized, where it is an Inception network.
    pub(super) fn inception_resize(&self) -> Option<Resize> {
        self.is_inception().then_some(self.resize)
    }

    /// Whether it is an Inception network, whatever its weights.
    pub(super) fn is_inception(&self) -> bool {
        matches!(self.kind, Kind::Inception(_))
    }

    /// What is done to images before they enter it.
    pub fn resize(&self) -> String {
        match &self.kind {
            Kind::Inception(_) => match self.resize {
                Resize::TensorFlow1 => "bilinear to 299x299 as TensorFlow 1 does".into(),
                Resize::Clean => "bicubic to 299x299 as Pillow does on floats (clean-fid)".into(),
            },
            Kind::Grey(_) => {
                "bicubic to 32x32 as Pillow does, the middle of others than squares, colour to grey".into()
            }
            Kind::Foreign(network) => {
                format!("bicubic to {0}x{0} as Pillow does, the middle of others than squares", network.size())
            }
        }
    }

    /// What must be known of its distances.
    pub fn remark(&self) -> Option<String> {
        match &self.kind {
            Kind::Inception(_) if self.name == FID_INCEPTION => None,
            Kind::Inception(_) if self.name.strip_suffix(CLEAN) == Some(FID_INCEPTION) => Some(
                "with clean-fid's resize: compare with its numbers (mode clean), not with those of other programs"
                    .into(),
            ),
            Kind::Inception(_) => Some(format!(
                "these weights are not {FID_INCEPTION}'s usual file: compare their distances with published ones only if \
                 you know them to be the same"
            )),
            Kind::Foreign(_) => {
                Some("distances of a network of your own compare only with each other, not with FIDs".into())
            }
            Kind::Grey(_) => {
                Some("distances of the embedded grey network compare only with each other, not with FIDs".into())
            }
        }
    }

    /// Columns of its features.
    pub fn width(&self) -> usize {
        match &self.kind {
            Kind::Inception(_) => Inception::WIDTH,
            Kind::Grey(_) => Grey::WIDTH,
            Kind::Foreign(network) => network.width(),
        }
    }

    /// Columns of its spatial features, for sFID; 0 if it has none.
    pub fn spatial_width(&self) -> usize {
        match &self.kind {
            Kind::Inception(_) => Inception::SPATIAL_WIDTH,
            Kind::Grey(_) | Kind::Foreign(_) => 0,
        }
    }

    /// Classes of [`Self::logits`]; 0 if it has none.
    pub fn classes(&self) -> usize {
        match &self.kind {
            Kind::Inception(_) => Inception::CLASSES,
            Kind::Grey(_) => Grey::CLASSES,
            Kind::Foreign(_) => 0,
        }
    }

    /// Why images of some channels cannot enter it, if they cannot.
    pub fn refuses(&self, channels: usize) -> Option<String> {
        let taken = channels == 1 || channels == 3;
        (!taken).then(|| format!("images with {channels} channels: {} takes grey and colour", self.name))
    }

    /// Features of images `[n, H, W, C]`.
    ///
    /// # Errors
    /// A network of an ONNX file that fails.
    ///
    /// # Panics
    /// When the number of values is not that of the shape, or the network [`refuses`](Self::refuses) the channels.
    pub fn features(&self, images: &[u8], shape: [usize; 4]) -> Result<Rows, Error> {
        Ok(match &self.kind {
            Kind::Inception(network) => {
                let found = match self.resize {
                    Resize::TensorFlow1 => network.features(images, shape),
                    Resize::Clean => network.features_of_resized(clean(images, shape), [shape[0], shape[3]]),
                };
                Rows { features: found.pool, spatial: found.spatial }
            }
            Kind::Grey(network) => Rows { features: network.features(images, shape), spatial: Vec::new() },
            Kind::Foreign(network) => Rows { features: network.features(images, shape)?, spatial: Vec::new() },
        })
    }

    /// Logits `[n, classes]` of features `[n, width]`, from which the Inception Score is made.
    pub fn logits(&self, features: &[f32]) -> Vec<f32> {
        match &self.kind {
            Kind::Inception(network) => network.logits(features),
            Kind::Grey(network) => network.logits(features),
            Kind::Foreign(_) => Vec::new(),
        }
    }
}

/// Images `[n, H, W, C]` as clean-fid resizes them: `[n, 299, 299, C]` of values from 0 to 255.
///
/// # Panics
/// When the number of values is not that of the shape.
fn clean(images: &[u8], [n, h, w, c]: [usize; 4]) -> Vec<f32> {
    assert_eq!(images.len(), n * h * w * c, "values of {n} images of {h}x{w}x{c}");
    let size = Inception::SIZE;
    let mut out = vec![0.0; n * size * size * c];
    out.par_chunks_exact_mut(size * size * c).zip(images.par_chunks_exact(h * w * c)).for_each(|(out, image)| {
        for channel in 0..c {
            let values: Vec<f32> = image.iter().skip(channel).step_by(c).map(|&v| f32::from(v)).collect();
            let resized = bicubic_floats(&values, [h, w], size);
            for (out, v) in out.iter_mut().skip(channel).step_by(c).zip(resized) {
                *out = v.clamp(0.0, 255.0);
            }
        }
    });
    out
}

/// The weights of FID-Inception in a folder, under either name of the usual conversion.
fn found_in(folder: &Path) -> Result<PathBuf, Error> {
    let names = [weights::INCEPTION.name, "pt_inception-2015-12-05-6726825d.pth"];
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.exists());
    found.ok_or_else(|| {
        let message = format!(
            "the weights of FID-Inception were not found: download them with `ddpm-ip weights fetch inception` ({} \
             MB), or give them with --features inception:PATH. Small grey images can be compared with --features \
             grey, which needs nothing",
            weights::INCEPTION.bytes.div_ceil(1_000_000)
        );
        Error::file(&folder.join(names[0]), message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_images_stay_in_range_and_channels_apart() {
        let image: Vec<u8> = (0..4 * 5 * 3).map(|i| if i % 3 == 1 { 77 } else { (i * 53 % 256) as u8 }).collect();
        let out = clean(&image, [1, 4, 5, 3]);
        assert_eq!(out.len(), 299 * 299 * 3);
        assert!(out.iter().skip(1).step_by(3).all(|v| (v - 77.0).abs() < 1e-4));
        assert!(out.iter().all(|v| (0.0..=255.0).contains(v)) && out.contains(&0.0) && out.contains(&255.0));
        assert!(out.iter().any(|v| v.fract() != 0.0), "nothing is rounded");
        assert!(clean(&[], [0, 4, 5, 3]).is_empty());
    }
}
