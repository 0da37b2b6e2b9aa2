//! What the name of a data set stands for, and how its images are brought into shape.

use super::{DataError, Fit, Pixels, folder, pillow};
use crate::Error;
use crate::file::missing;
use ddpm_formats::idx;
use ddpm_math::Stream;
use std::path::{Path, PathBuf};

/// What a name stands for.
pub(super) enum Kind {
    /// The embedded digits.
    Digits,
    /// An IDX file, or the one of training images in a folder of the MNIST family.
    Idx(PathBuf),
    /// The images of a folder, at least one.
    Files(Vec<PathBuf>),
    Npz(PathBuf),
}

impl Kind {
    /// # Errors
    /// What does not exist, is empty or of an unknown kind.
    pub(super) fn of(name: &str) -> Result<Self, Error> {
        let path = Path::new(name);
        if name == "digits" {
            return Ok(Self::Digits);
        }
        if !path.exists() {
            if path.is_symlink() {
                return Err(Error::file(path, missing(path)));
            }
            return Err(DataError::Missing(path.into()).into());
        }
        if is_run(path) {
            return Err(DataError::Run(path.into()).into());
        }
        let idx_file = if path.is_dir() { idx::in_folder(path) } else { idx::is_named(path).then(|| path.into()) };
        if let Some(file) = idx_file {
            return Ok(Self::Idx(file));
        }
        if path.is_dir() {
            let files = folder::list(path)?;
            // The grids of a run are no images.
            let grids = |file: &PathBuf| {
                let folder = file.parent().filter(|folder| folder.ends_with("samples"))?;
                folder.parent().filter(|run| is_run(run)).map(Path::to_path_buf)
            };
            if let Some(run) = files.iter().find_map(grids) {
                return Err(DataError::Run(run).into());
            }
            return if files.is_empty() { Err(DataError::Empty(path.into()).into()) } else { Ok(Self::Files(files)) };
        }
        if path.extension().is_some_and(|e| e == "npz") {
            return Ok(Self::Npz(path.into()));
        }
        Err(DataError::Unknown(path.into()).into())
    }
}

/// Whether a folder is a run directory.
pub(crate) fn is_run(path: &Path) -> bool {
    path.join("config.toml").is_file() && path.join("checkpoints").is_dir()
}

/// A square of side `size` from an image, cropped at random if there is a stream; else says why there is none.
pub(super) fn square(
    image: Pixels,
    size: usize,
    fit: Fit,
    allow_upscale: bool,
    random_crop: Option<&mut Stream>,
) -> Result<Pixels, String> {
    let (w, h) = (image.width, image.height);
    if fit == Fit::Pad {
        if w > size || h > size {
            return Err(format!(
                "{w}x{h} pixels are larger than {size}x{size}: use --fit crop or a larger --image-size"
            ));
        }
        return Ok(image.pad(size));
    }
    if w.min(h) < size && !allow_upscale {
        return Err(format!(
            "{w}x{h} pixels are smaller than {size}x{size}: use a smaller --image-size, --fit pad, or --allow-upscale"
        ));
    }
    Ok(match random_crop {
        Some(stream) => pillow::random_crop(&image, size, stream),
        None if (w, h) == (size, size) => image,
        None => pillow::center_crop(&image, size),
    })
}
