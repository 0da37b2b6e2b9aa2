//! Folders of image files.

use super::{DataError, Labels, Pixels};
use crate::Error;
use crate::config::listed;
use ddpm_formats::kind;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::io::{BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

/// Memory that decoding one image may take.
const MOST_DECODED_BYTES: u64 = 1 << 30;

/// How names of images end. The reference lists jpg, jpeg, png and gif.
const ENDINGS: [&str; 10] = ["jpg", "jpeg", "png", "gif", "bmp", "webp", "tif", "tiff", "jfif", "jpe"];

/// How names of images and films end that are not read.
const UNREAD: [&str; 28] = [
    "heic", "heif", "avif", "jxl", "jp2", "svg", "psd", "exr", "dng", "cr2", "cr3", "nef", "arw", "raf", "orf", "ppm",
    "pgm", "pbm", "pnm", "tga", "ico", "hdr", "dds", "mp4", "mov", "avi", "mkv", "webm",
];

/// No more images than these are looked at for what is remarkable about them.
const MOST_LOOKED_AT: usize = 10_000;

/// All images in a folder and below, as the reference lists them: sorted by name, folders in their place. Links are
/// followed, but not back into a folder that is being listed; hidden files are passed over.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    Ok(ddpm_formats::folder::list(folder, is_image)?)
}

/// Whether a file is named like an image that is read.
pub(crate) fn is_image(path: &Path) -> bool {
    ends(path, &ENDINGS)
}

/// The files in a folder and below that are images, or films, of kinds that are not read.
pub(super) fn unread(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    Ok(ddpm_formats::folder::list(folder, |path| ends(path, &UNREAD))?)
}

fn ends(path: &Path, endings: &[&str]) -> bool {
    path.extension().is_some_and(|ending| endings.iter().any(|known| ending.eq_ignore_ascii_case(known)))
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

/// Decodes an image: grey as one channel, everything else as three, without transparency; of several pictures in a file
/// the first. It is turned as its EXIF data says if `rotate` is set.
pub(super) fn decode(path: &Path, rotate: bool) -> Result<Pixels, DataError> {
    let bad = |reason: String| DataError::BadImage { image: path.display().to_string(), reason };
    let cannot = |e: std::io::Error| bad(format!("cannot be read ({e})"));
    let mut file = ddpm_formats::open(path).map_err(|e| match e {
        ddpm_formats::Error::Io { cause, .. } => cannot(cause),
        ddpm_formats::Error::File { message, .. } => bad(message),
    })?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(cannot)?;
    decode_bytes(&bytes, rotate).map_err(bad)
}

/// As [`decode`], from memory, of any kind that the `image` crate was built with; says what is wrong.
pub(crate) fn decode_bytes(bytes: &[u8], rotate: bool) -> Result<Pixels, String> {
    if is_cut_off_jpeg(bytes) {
        return Err("the JPEG is cut off".into());
    }
    let mut decoder = decoder_of(bytes)?;
    let turn = if rotate { decoder.orientation().map_err(failed)? } else { Orientation::NoTransforms };
    let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    image.apply_orientation(turn);
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (channels, data) = match image {
        DynamicImage::ImageLuma8(_)
        | DynamicImage::ImageLuma16(_)
        | DynamicImage::ImageLumaA8(_)
        | DynamicImage::ImageLumaA16(_) => (1, image.to_luma8().into_raw()),
        DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_) => {
            return Err("holds floats, whose range is not known: save it with 8 bits".into());
        }
        colour => (3, colour.to_rgb8().into_raw()),
    };
    Ok(Pixels { width, height, channels, data })
}

/// A picture in colour, over white where it is transparent; says what is wrong.
pub(crate) fn decode_over_white(bytes: &[u8]) -> Result<Pixels, String> {
    let image = DynamicImage::from_decoder(decoder_of(bytes)?).map_err(failed)?.into_rgba8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    let over =
        |value: u8, alpha: u8| (u32::from(value) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 127) / 255;
    let data = image.pixels().flat_map(|p| [0, 1, 2].map(|c| over(p.0[c], p.0[3]) as u8)).collect();
    Ok(Pixels { width, height, channels: 3, data })
}

/// What is wrong with an image.
fn failed(error: ImageError) -> String {
    match error {
        ImageError::Limits(_) => "has too many pixels".into(),
        e => format!("cannot be decoded ({e})"),
    }
}

/// A decoder of an image in memory, whose pixels are not too many; says what is wrong.
fn decoder_of(bytes: &[u8]) -> Result<impl ImageDecoder, String> {
    let decoder = decoder(Cursor::new(bytes))
        .map_err(|e| kind::tell(&bytes[..bytes.len().min(kind::BYTES)]).map_or(failed(e), |kind| kind.to_string()))?;
    if decoder.total_bytes() > MOST_DECODED_BYTES {
        return Err(format!("has too many pixels: {} bytes when decoded", decoder.total_bytes()));
    }
    Ok(decoder)
}

fn decoder<'a>(bytes: impl std::io::BufRead + std::io::Seek + 'a) -> image::ImageResult<impl ImageDecoder + 'a> {
    let mut reader = ImageReader::new(bytes).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_DECODED_BYTES);
    reader.limits(limits);
    reader.into_decoder()
}

/// What the heads of a folder's images say.
pub(super) struct Looks {
    /// Images looked at.
    pub(super) images: usize,
    /// Of these, those in colour.
    pub(super) colour: usize,
    /// Those that their EXIF data turns.
    pub(super) turned: usize,
}

/// Looks at images, or at some all over a large set. What cannot be read is left out.
pub(super) fn look(files: &[PathBuf]) -> Looks {
    let step = files.len().div_ceil(MOST_LOOKED_AT).max(1);
    let one = |file: &PathBuf| {
        let mut decoder = decoder(BufReader::new(ddpm_formats::open(file).ok()?)).ok()?;
        let turned = decoder.orientation().is_ok_and(|turn| turn != Orientation::NoTransforms);
        Some((decoder.color_type().has_color(), turned))
    };
    let seen: Vec<_> = files.par_iter().step_by(step).map(one).collect();
    let count = |which: fn(&(bool, bool)) -> bool| seen.iter().flatten().filter(|seen| which(seen)).count();
    Looks { images: seen.iter().flatten().count(), colour: count(|seen| seen.0), turned: count(|seen| seen.1) }
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
