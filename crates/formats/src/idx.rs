//! The IDX files of the MNIST family, gzipped or not.

use crate::{Error, MOST_EXPANSION};
use flate2::read::GzDecoder;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// The image files of a folder of the MNIST family: as their makers, torchvision and Kaggle lay them.
const IMAGE_FILES: [&str; 4] =
    ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "raw/train-images-idx3-ubyte", "train-images.idx3-ubyte"];

/// The image file in a folder of the MNIST family.
pub fn in_folder(folder: &Path) -> Option<PathBuf> {
    IMAGE_FILES.iter().map(|name| folder.join(name)).find(|p| p.is_file())
}

/// Whether a file is named like one of images.
pub fn is_named(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.contains("idx3-ubyte"))
}

/// The label file that belongs to a file of images, if it lies beside it.
fn label_file(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?.replace("images", "labels").replace("idx3", "idx1");
    let plain = name.trim_end_matches(".gz");
    [plain.to_string(), format!("{plain}.gz")].iter().map(|n| images.with_file_name(n)).find(|p| p.is_file())
}

/// Dimensions and bytes of an IDX file.
fn read(path: &Path, rank: usize) -> Result<(Vec<usize>, Vec<u8>), Error> {
    let file = crate::open(path)?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let gzipped = path.extension().is_some_and(|e| e == "gz");
    let (mut reader, most): (Box<dyn Read>, u64) = if gzipped {
        (Box::new(GzDecoder::new(BufReader::new(file))), length.saturating_mul(MOST_EXPANSION))
    } else {
        (Box::new(BufReader::new(file)), length)
    };
    let damaged = |what: String| Error::file(path, format!("not a complete IDX file: {what}"));
    let mut magic = [0; 4];
    reader.read_exact(&mut magic).map_err(|e| damaged(format!("its first bytes cannot be read ({e})")))?;
    if magic != [0, 0, 8, rank as u8] {
        return Err(damaged(format!(
            "it starts with {magic:?}, but {rank}-dimensional bytes start with [0, 0, 8, {rank}]"
        )));
    }
    let mut dims = Vec::new();
    for _ in 0..rank {
        let mut dim = [0; 4];
        reader.read_exact(&mut dim).map_err(|e| damaged(format!("its dimensions cannot be read ({e})")))?;
        dims.push(u32::from_be_bytes(dim) as usize);
    }
    let claimed = dims.iter().try_fold(1u64, |a, &b| a.checked_mul(b as u64)).unwrap_or(u64::MAX);
    if claimed > most {
        return Err(damaged(format!("its dimensions {dims:?} need more bytes than the file can hold")));
    }
    let mut data = Vec::new();
    reader.take(claimed + 1).read_to_end(&mut data).map_err(|e| damaged(format!("its values cannot be read ({e})")))?;
    if data.len() as u64 != claimed {
        let found = if data.len() as u64 > claimed { "more".into() } else { data.len().to_string() };
        return Err(damaged(format!("its dimensions {dims:?} need {claimed} bytes, but it has {found}")));
    }
    Ok((dims, data))
}

/// Dimensions `[N, H, W]`, values, and labels if there are any.
pub type Images = ([usize; 3], Vec<u8>, Option<Vec<u32>>);

/// Images and, where the label file lies beside them, labels.
///
/// # Errors
/// Files that are missing or damaged; another number of labels than of images.
pub fn load(path: &Path) -> Result<Images, Error> {
    let (dims, images) = read(path, 3)?;
    let labels = match label_file(path) {
        Some(file) => {
            let (count, labels) = read(&file, 1)?;
            if count[0] != dims[0] {
                return Err(Error::file(
                    &file,
                    format!("{} labels for {} images in {}", count[0], dims[0], path.display()),
                ));
            }
            Some(labels.into_iter().map(u32::from).collect())
        }
        None => None,
    };
    Ok(([dims[0], dims[1], dims[2]], images, labels))
}
