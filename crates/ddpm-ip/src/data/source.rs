//! What the name of a data set stands for, and how its images are brought into shape.

use super::{DataError, Fit, Pixels, folder, pillow};
use crate::Error;
use crate::file::{missing, quoted};
use crate::npz::Npz;
use ddpm_formats::{idx, kind};
use ddpm_math::Stream;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What a name stands for.
pub(super) enum Kind {
    /// The embedded digits.
    Digits,
    /// An IDX file, or the one of training images in a folder of the MNIST family.
    Idx(PathBuf),
    /// The images of a folder, at least one.
    Files(Vec<PathBuf>),
    /// An npz or npy file.
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
            if files.is_empty() {
                return Err(empty(path));
            }
            return Ok(Self::Files(files));
        }
        let named = |ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
        if named("npz") || named("npy") || Npz::is_one(path) {
            return Ok(Self::Npz(path.into()));
        }
        Err(DataError::Unknown { file: path.into(), advice: instead_of_data(path) }.into())
    }
}

/// That there is no image in a folder, and what it holds instead.
pub(crate) fn empty(folder: &Path) -> Error {
    instead_of_images(folder)
        .map_or_else(|error| error, |advice| DataError::Empty { folder: folder.into(), advice }.into())
}

/// What a folder without images holds, and what to do with it.
fn instead_of_images(folder: &Path) -> Result<String, Error> {
    let has = |name: &str| folder.join(name).exists();
    let prepared = [
        ("data_batch_1", "cifar10"),
        ("data_batch_1.bin", "cifar10"),
        ("train_data_batch_1", "imagenet32"),
        ("data.mdb", "lsun"),
    ];
    if let Some((_, kind)) = prepared.iter().find(|(name, _)| has(name)) {
        return Ok(format!(
            ": convert it with `ddpm-ip prepare {kind} {} --out {kind}.npz`",
            quoted(&folder.to_string_lossy())
        ));
    }
    if let Some(file) = folder::unread(folder)?.first() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let kind = kind::of(file)
            .map_or("is an unsupported kind of file: make it a PNG first".into(), |kind| kind.to_string());
        return Ok(format!(": {name} {kind}"));
    }
    let files = ddpm_formats::folder::list(folder, |_| true)?;
    let named = |file: &&PathBuf| kind::of(file).is_some_and(|kind| kind.what != "empty");
    Ok(match files.iter().find(named) {
        Some(file) => {
            let kind = kind::of(file).map(|kind| kind.to_string()).unwrap_or_default();
            format!(": {} {kind}", file.file_name().unwrap_or_default().to_string_lossy())
        }
        None => String::new(),
    })
}

/// What a file is that is no data, and what to do with it.
fn instead_of_data(path: &Path) -> String {
    let shown = path.to_string_lossy();
    if let Some(kind) = kind::of(path) {
        return kind.to_string();
    }
    let mut begin = [0; 4];
    let is_archive = ddpm_formats::open(path).is_ok_and(|mut file| file.read_exact(&mut begin).is_ok())
        && (begin.starts_with(b"PK") || begin.starts_with(&[0x1f, 0x8b]));
    if is_archive || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar")) {
        return format!(
            "is an archive: unpack it, or make its images an npz with `ddpm-ip prepare images {} --out images.npz`",
            quoted(&shown)
        );
    }
    if folder::is_image(path) {
        return "is one image: name the folder that the images lie in".into();
    }
    if !path.is_file() {
        return "is not a regular file: use a folder of images, an .npz, .npy or IDX file".into();
    }
    "is not a known kind of data: use a folder of images, an .npz, .npy or IDX file".into()
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
