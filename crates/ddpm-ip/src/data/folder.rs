//! Folders of image files.

use super::{DataError, Labels, Pixels};
use crate::Error;
use crate::config::listed;
use image::{DynamicImage, ImageReader, Limits};
use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// Memory that decoding one image may take.
const MOST_DECODED_BYTES: u64 = 1 << 30;

/// All PNG and JPEG files in a folder and below, as the reference lists them: sorted by name, folders in their place.
/// Links are followed, but not back into a folder that is being listed.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    Ok(ddpm_formats::folder::list(folder, is_image)?)
}

/// Whether a file is named like a PNG or JPEG.
pub(crate) fn is_image(path: &Path) -> bool {
    let ending = path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
    ending.is_some_and(|e| e == "png" || e == "jpg" || e == "jpeg")
}

/// Class number of each file, and the classes' names.
pub(crate) fn classes(root: &Path, files: &[PathBuf], labels: Labels) -> Option<(Vec<u32>, Vec<String>)> {
    let name = |path: &PathBuf| -> String {
        if labels == Labels::Prefix {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            return name.split('_').next().unwrap_or_default().to_string();
        }
        let folder = path.parent().unwrap_or(root);
        folder.strip_prefix(root).unwrap_or(folder).to_string_lossy().into_owned()
    };
    if matches!(labels, Labels::None | Labels::Auto) {
        return None;
    }
    let names: Vec<String> = files.iter().map(name).collect();
    let sorted: Vec<String> = names.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
    let number = |name: &String| sorted.binary_search(name).unwrap_or_default() as u32;
    Some((names.iter().map(number).collect(), sorted))
}

/// Whether any file is named `CLASS_…`.
pub(crate) fn has_prefixes(files: &[PathBuf]) -> bool {
    files.iter().any(|file| file.file_name().unwrap_or_default().to_string_lossy().contains('_'))
}

/// Why the classes of files say nothing, and what would, if that is so: no name has a class, or every image is a class of
/// its own.
pub(crate) fn check_classes(
    source: &str,
    root: &Path,
    files: &[PathBuf],
    labels: Labels,
    classes: &[String],
) -> Result<(), DataError> {
    let problem = if labels == Labels::Prefix && !has_prefixes(files) {
        let name = files[0].file_name().unwrap_or_default().to_string_lossy();
        format!("the names of its images, such as {name}, carry no class before a `_`")
    } else if files.len() > 1 && classes.len() == files.len() {
        format!("each of its {} images would be a class of its own", files.len())
    } else {
        return Ok(());
    };
    let folders = self::classes(root, files, Labels::Folder).map(|(_, names)| names).unwrap_or_default();
    let advice = if labels == Labels::Prefix && folders.len() > 1 && folders.len() < files.len() {
        let names = folders.iter().map(|name| if name.is_empty() { "." } else { name });
        format!("--labels folder takes the folders' names: {}", listed(names))
    } else {
        "Name them CLASS_NUMBER.png, or put those of each class into a folder and use --labels folder".into()
    };
    Err(DataError::NoClasses { source_name: source.into(), problem, advice })
}

/// Decodes a PNG or JPEG: grey as one channel, everything else as three, without transparency.
pub(super) fn decode(path: &Path) -> Result<Pixels, DataError> {
    let bad = |reason: String| DataError::BadImage { image: path.display().to_string(), reason };
    // Reading a pipe would wait for ever.
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return Err(bad("not a regular file".into()));
    }
    let bytes = std::fs::read(path).map_err(|e| bad(format!("cannot be read ({e})")))?;
    decode_bytes(&bytes).map_err(bad)
}

/// As [`decode`], from memory, of any kind that the `image` crate was built with; says what is wrong.
pub(crate) fn decode_bytes(bytes: &[u8]) -> Result<Pixels, String> {
    if is_cut_off_jpeg(bytes) {
        return Err("the JPEG is cut off".into());
    }
    let mut reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| format!("cannot be read ({e})"))?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_DECODED_BYTES);
    reader.limits(limits);
    let image = reader.decode().map_err(|e| format!("cannot be decoded ({e})"))?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (channels, data) = match image {
        DynamicImage::ImageLuma8(_)
        | DynamicImage::ImageLuma16(_)
        | DynamicImage::ImageLumaA8(_)
        | DynamicImage::ImageLumaA16(_) => (1, image.to_luma8().into_raw()),
        colour => (3, colour.to_rgb8().into_raw()),
    };
    Ok(Pixels { width, height, channels, data })
}

/// Whether a JPEG has no end after its last scan. Decoders fill in what is missing without a word.
fn is_cut_off_jpeg(bytes: &[u8]) -> bool {
    const SCAN: [u8; 2] = [0xFF, 0xDA];
    const END: [u8; 2] = [0xFF, 0xD9];
    bytes.starts_with(&[0xFF, 0xD8]) && {
        let scan = bytes.windows(2).rposition(|w| w == SCAN).unwrap_or(0);
        !bytes[scan..].windows(2).any(|w| w == END)
    }
}
