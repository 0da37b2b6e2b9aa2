//! Where prepared images go: an npz, or a folder of PNGs.

use crate::Error;
use crate::config::ConfigError;
use crate::file::{create_folder, write_atomic};
use crate::npz::NpzWriter;
use crate::partial::Partial;
use crate::record::Record;
use ddpm_net::Device;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of a label in the records of an unfinished npz.
const LABEL_BYTES: usize = size_of::<i64>();

/// How the names of the records of calls begin.
pub(super) const RECORD: &str = ".prepared-";

/// A prepared image.
pub(super) struct Made {
    /// File name of its PNG, without the ending.
    pub(super) name: String,
    pub(super) label: Option<u32>,
    /// `[H, W, C]`.
    pub(super) data: Vec<u8>,
}

/// What the images of a set have in common.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Height, width and channels.
    pub(super) image: [usize; 3],
    pub(super) labelled: bool,
}

impl Shape {
    fn image_bytes(&self) -> usize {
        self.image.iter().product()
    }

    fn record_bytes(&self) -> usize {
        self.image_bytes() + if self.labelled { LABEL_BYTES } else { 0 }
    }
}

/// Takes finished images, and knows which are there already.
pub(super) enum Output {
    /// The images lie in `OUT.partial`, each followed by its label, until all are there.
    Npz {
        /// The npz.
        out: PathBuf,
        partial: Partial,
        /// Images that are there.
        done: usize,
        shape: Shape,
    },
    /// Rank 0 has it; so many images are there.
    Elsewhere(usize),
    /// Every image is a file.
    Folder {
        /// Its path.
        folder: PathBuf,
        shape: Shape,
    },
}

/// Whether a path names an npz; everything else is a folder.
pub(super) fn is_npz(out: &Path) -> bool {
    out.extension().is_some_and(|e| e.eq_ignore_ascii_case("npz"))
}

impl Output {
    /// Goes on with what an earlier call of the same `identity` left, or begins anew. `record` names the file in a
    /// folder that holds the identity of its images.
    ///
    /// # Errors
    /// An output of another call, and what the system says.
    pub(super) fn open(out: &Path, identity: &str, record: &str, shape: Shape) -> Result<Self, Error> {
        let out = out.to_path_buf();
        if is_npz(&out) {
            if out.is_dir() {
                return Err(ConfigError(format!("--out {} is a folder: name a file", out.display())).into());
            }
            if let Some(parent) = out.parent() {
                create_folder(parent)?;
            }
            let bytes = shape.record_bytes();
            let (partial, done) = Partial::open(&out, identity, bytes, false, Device::Cpu, &mut |_| {})?;
            return Ok(Self::Npz { out, partial, done, shape });
        }
        create_folder(&out)?;
        let record = out.join(record);
        match fs::read_to_string(&record) {
            Ok(before) if before != identity => {
                let message = "the images beside this file were made from another source or with other settings: \
                               choose another --out, or delete them and this file";
                return Err(Error::file(&record, message));
            }
            Ok(_) => {}
            Err(_) if has_foreign_images(&out)? => {
                let message = "holds PNGs that `prepare` has not written: name another folder";
                return Err(ConfigError(format!("--out {} {message}", out.display())).into());
            }
            Err(_) => write_atomic(&record, |w| std::io::Write::write_all(w, identity.as_bytes()))?,
        }
        Ok(Self::Folder { folder: out, shape })
    }

    /// Whether image `index` is yet to be made.
    pub(super) fn wants(&self, index: usize, name: &str) -> bool {
        match self {
            Self::Npz { done, .. } | Self::Elsewhere(done) => index >= *done,
            Self::Folder { folder, .. } => !folder.join(png(name)).exists(),
        }
    }

    /// How many images need not be made; of a folder it is said of each.
    pub(super) fn done(&self) -> usize {
        match self {
            Self::Npz { done, .. } | Self::Elsewhere(done) => *done,
            Self::Folder { .. } => 0,
        }
    }

    /// Takes the next images that are wanted.
    ///
    /// # Errors
    /// What the system says. Images before that are kept.
    pub(super) fn put(&mut self, images: &[Made]) -> Result<(), Error> {
        match self {
            Self::Npz { partial, shape, .. } => {
                let mut records = Vec::with_capacity(images.len() * shape.record_bytes());
                for image in images {
                    records.extend_from_slice(&image.data);
                    if shape.labelled {
                        records.extend_from_slice(&i64::from(image.label.unwrap_or_default()).to_le_bytes());
                    }
                }
                partial.append(&records)
            }
            Self::Elsewhere(_) => Ok(()),
            Self::Folder { folder, shape } => {
                images.par_iter().try_for_each(|made| write_png(&folder.join(png(&made.name)), &made.data, shape.image))
            }
        }
    }

    /// Notes that the source or the settings cannot be used, so that others may take this place. PNGs of a folder are not removed.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn fail(&mut self) -> Result<(), Error> {
        if let Self::Npz { partial, .. } = self { partial.fail() } else { Ok(()) }
    }

    /// All `count` images are there: the npz is written, a folder is complete as it is.
    ///
    /// # Errors
    /// What the system says; then an npz can still be finished by another call.
    pub(super) fn finish(self, count: usize, how: &Record) -> Result<(), Error> {
        let Self::Npz { out, mut partial, shape, .. } = self else { return Ok(()) };
        let [height, width, channels] = shape.image;
        let (image, record) = (shape.image_bytes(), shape.record_bytes());
        write_atomic(&out, |w| {
            let mut npz = NpzWriter::new(w);
            npz.array::<u8>("arr_0", &[count, height, width, channels], |push| {
                partial.read(count, |bytes| bytes.chunks_exact(record).try_for_each(|r| push(&r[..image])))
            })?;
            if shape.labelled {
                npz.array::<i64>("arr_1", &[count], |push| {
                    partial.read(count, |bytes| {
                        bytes.chunks_exact(record).try_for_each(|r| {
                            let mut label = [0; LABEL_BYTES];
                            label.copy_from_slice(&r[image..]);
                            push(&[i64::from_le_bytes(label)])
                        })
                    })
                })?;
            }
            npz.finish_with(&how.line())
        })?;
        partial.remove()
    }
}

/// Whether there are PNGs and no record of a call that wrote them.
fn has_foreign_images(folder: &Path) -> Result<bool, Error> {
    let mut images = false;
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))?.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(RECORD) {
            return Ok(false);
        }
        images |= entry.path().extension().is_some_and(|ending| ending == "png");
    }
    Ok(images)
}

fn png(name: &str) -> String {
    format!("{name}.png")
}

fn write_png(path: &Path, data: &[u8], [height, width, channels]: [usize; 3]) -> Result<(), Error> {
    let colour = if channels == 3 { ExtendedColorType::Rgb8 } else { ExtendedColorType::L8 };
    write_atomic(path, |w| {
        let png = PngEncoder::new(w);
        png.write_image(data, width as u32, height as u32, colour).map_err(std::io::Error::other)
    })
}
