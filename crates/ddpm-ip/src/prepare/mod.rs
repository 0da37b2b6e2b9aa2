//! Preparing published data sets: from the form their makers give them out in to an npz or a folder of PNGs.
//!
//! A source passes its images in a fixed order to a maker, which decodes and shapes those that are not there yet, side by
//! side, and hands them to the output in order. Memory does not grow with the number of images, but for their names.

mod batch;
mod cifar;
mod emoji;
mod fit;
mod imagenet;
mod images;
mod lsun;
mod maker;
mod output;
mod source;
mod squash;

pub use fit::Fit;
pub use source::Split;

use crate::Error;
use crate::config::ConfigError;
use crate::data::Labels;
use crate::event::{Emit, Event, Outcome};
use crate::file::{check_folder, spelled, stamp};
use crate::ranks::Ranks;
use crate::record::Record;
use ddpm_formats::lmdb;
use fit::{Form, Shaping};
use maker::Maker;
use output::{Output, Shape};
use source::Source;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// A data set that can be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// CIFAR-10, binary or Python version.
    Cifar10,
    /// ImageNet downsampled to 32x32.
    ImageNet32,
    /// CelebA, aligned and cropped.
    CelebA64,
    /// FFHQ's thumbnails.
    Ffhq128,
    /// A category of LSUN.
    Lsun,
    /// The bitmaps of a colour font.
    Emoji,
    /// Any image files.
    Images,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Cifar10, Self::ImageNet32, Self::CelebA64, Self::Ffhq128, Self::Lsun, Self::Emoji, Self::Images];

    /// The name that users write.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cifar10 => "cifar10",
            Self::ImageNet32 => "imagenet32",
            Self::CelebA64 => "celeba64",
            Self::Ffhq128 => "ffhq128",
            Self::Lsun => "lsun",
            Self::Emoji => "emoji",
            Self::Images => "images",
        }
    }
}

/// What to prepare and where to put it. What is not given has the kind's own default; what a kind has no use for is
/// refused.
#[derive(Clone, Debug)]
pub struct Job {
    /// The data set.
    pub kind: Kind,
    /// Where it lies: an archive, a folder, a database.
    pub source: PathBuf,
    /// An npz (`arr_0` uint8 NHWC, `arr_1` int64 labels if there are any), or a folder for PNGs.
    pub out: PathBuf,
    /// For data sets of two parts.
    pub split: Option<Split>,
    /// How other proportions become squares.
    pub fit: Option<Fit>,
    /// Side of the squares.
    pub image_size: Option<usize>,
    /// 1 for grey, 3 for colour.
    pub channels: Option<usize>,
    /// Where the labels of images come from.
    pub labels: Option<Labels>,
    /// What the names of LSUN's PNGs begin with.
    pub prefix: Option<String>,
    /// Whether images are turned as their EXIF data says.
    pub exif_rotate: bool,
    /// Whether another number of images than the data set has is all right.
    pub allow_count: bool,
}

/// The largest image that can be asked for.
const LARGEST_SIDE: usize = 1 << 13;

/// Prepares a data set, whose images all `ranks` share, going on where an interrupted call with the same settings stopped: PNGs that are there are not
/// made again, the images of an unfinished npz lie in `OUT.partial`.
///
/// # Errors
/// Settings that do not fit the kind, images that are damaged or of a wrong number, failing reads or writes. Finished
/// images are kept.
pub fn run(job: &Job, ranks: &Ranks, stop: &AtomicBool, emit: &mut Emit) -> Result<Outcome, Error> {
    job.validate()?;
    let (source, form) = job.open()?;
    if !ranks.leads() {
        return help(job, source.as_ref(), form, ranks, stop, emit);
    }
    if let Some(count) = source.count() {
        job.check_count(count, source.as_ref())?;
    }
    let shape = Shape { image: [form.height, form.width, form.channels], labelled: source.labelled() };
    let identity = job.identity(&form, source.as_ref())?;
    let what = format!("images of {}, prepared as {}", job.source.display(), job.kind.name());
    if output::is_npz(&job.out) {
        let record = Record::new(&identity, usize::MAX, what.clone());
        if let Some(found) = record.found_at(&job.out, "Choose another --out, or remove it")? {
            emit(Event::Prepared { done: found.count, total: Some(found.count) });
            emit(Event::Found(job.out.clone()));
            return Ok(Outcome::Finished);
        }
    } else {
        check_folder("--out", &job.out, "end it in .npz, or name a folder")?;
    }
    let output = Output::open(&job.out, &identity, &job.record(), shape)?;
    ranks.told(&(output.done() as u64).to_le_bytes())?;
    emit(Event::Begins(format!(
        "preparing {} from {} into {}",
        job.kind.name(),
        job.source.display(),
        job.out.display()
    )));
    let expected = source.expected().filter(|_| !job.allow_count);
    let total = source.count().or(expected);
    let mut maker = Maker::new(job, form, output, total, ranks.clone(), stop, emit);
    let fed = source.feed(&mut maker);
    let ended = maker.end(fed.is_err());
    fed?;
    let Some((count, output)) = ended? else { return Ok(Outcome::Interrupted) };
    job.check_count(count, source.as_ref())?;
    let mut record = Record::new(&identity, count, format!("{count} {what}"));
    record.classes = source.classes().to_vec();
    output.finish(count, &record)?;
    Ok(Outcome::Finished)
}

/// Makes this process's share of the images for rank 0.
fn help(
    job: &Job,
    source: &dyn Source,
    form: Form,
    ranks: &Ranks,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<Outcome, Error> {
    let done = u64::from_le_bytes(ranks.told(&[])?.try_into().unwrap_or_default());
    let output = Output::Elsewhere(done as usize);
    let mut maker = Maker::new(job, form, output, None, ranks.clone(), stop, emit);
    let fed = source.feed(&mut maker);
    let ended = maker.end(fed.is_err());
    fed?;
    Ok(if ended?.is_some() { Outcome::Finished } else { Outcome::Interrupted })
}

fn is_inside(path: &Path, folder: &Path) -> bool {
    let absolute = |path| std::path::absolute(path).ok();
    absolute(path).zip(absolute(folder)).is_some_and(|(path, folder)| path.starts_with(folder))
}

impl Job {
    fn validate(&self) -> Result<(), ConfigError> {
        use Kind::{CelebA64, Cifar10, Emoji, ImageNet32, Images, Lsun};
        let name = self.kind.name();
        let settings: [(&str, bool, &[Kind]); 7] = [
            ("split", self.split.is_some(), &[Cifar10, ImageNet32]),
            ("fit", self.fit.is_some(), &[CelebA64, Images]),
            ("image-size", self.image_size.is_some(), &[CelebA64, Lsun, Emoji, Images]),
            ("channels", self.channels.is_some(), &[Images]),
            ("labels", self.labels.is_some(), &[Images]),
            ("prefix", self.prefix.is_some(), &[Lsun]),
            ("exif-rotate", self.exif_rotate, &[Images]),
        ];
        if let Some((flag, ..)) = settings.iter().find(|(_, given, kinds)| *given && !kinds.contains(&self.kind)) {
            return Err(ConfigError(format!("--{flag} has no meaning for {name}: leave it out")));
        }
        match (self.kind, self.fit) {
            (CelebA64, None | Some(Fit::Pad)) => {
                return Err(ConfigError(
                    "celeba64 needs --fit crop (the middle, as the reference's loader cuts it) or --fit squash (all of \
                     it, as the reference's script resizes it): models trained on one do not fit the other"
                        .into(),
                ));
            }
            _ if self.source.is_dir() && is_inside(&self.out, &self.source) => {
                return Err(ConfigError(format!(
                    "--out {} lies in {}, among the images: choose another folder",
                    self.out.display(),
                    self.source.display()
                )));
            }
            (Images, Some(_)) if self.image_size.is_none() => {
                return Err(ConfigError("--fit needs --image-size".into()));
            }
            _ => {}
        }
        if let Some(size) = self.image_size.filter(|size| !(1..=LARGEST_SIDE).contains(size)) {
            return Err(ConfigError(format!("--image-size {size}: use 1 to {LARGEST_SIDE}")));
        }
        if let Some(channels) = self.channels.filter(|channels| ![1, 3].contains(channels)) {
            return Err(ConfigError(format!("--channels {channels}: use 1 or 3")));
        }
        if let Some(prefix) = self.prefix.as_ref().filter(|p| p.starts_with('.') || p.contains(['/', '\\', '\0'])) {
            return Err(ConfigError(format!("--prefix {prefix:?} cannot be the start of a file name")));
        }
        Ok(())
    }

    /// The images, and the form that they are to have.
    fn open(&self) -> Result<(Box<dyn Source>, Form), Error> {
        let (path, split) = (self.source.as_path(), self.split.unwrap_or_default());
        Ok(match self.kind {
            Kind::Cifar10 => {
                let cifar = cifar::Cifar::open(path, split, self.allow_count)?;
                (Box::new(cifar), Form::square(batch::SIDE, Shaping::Exact))
            }
            Kind::ImageNet32 => {
                let imagenet = imagenet::ImageNet::open(path, split, self.allow_count)?;
                (Box::new(imagenet), Form::square(batch::SIDE, Shaping::Exact))
            }
            Kind::CelebA64 => {
                let form = Form::square(self.image_size.unwrap_or(64), self.fit.map_or(Shaping::Exact, Shaping::Fit));
                (Box::new(images::Images::known(path, 202_599)?), form)
            }
            Kind::Ffhq128 => (Box::new(images::Images::known(path, 70_000)?), Form::square(128, Shaping::Exact)),
            Kind::Lsun => {
                let form = Form::square(self.image_size.unwrap_or(256), Shaping::BoxCrop);
                (Box::new(lsun::Lsun::open(path, self.prefix.as_deref())?), form)
            }
            Kind::Emoji => {
                let form = Form::square(self.image_size.unwrap_or(32), Shaping::Fit(Fit::Crop));
                (Box::new(emoji::Emoji::open(path)?), form)
            }
            Kind::Images => {
                let images = images::Images::any(path, self.labels())?;
                let first = images.first(self.exif_rotate)?;
                let (channels, drops_colour) = (self.channels.unwrap_or(first.channels), self.channels.is_some());
                let form = match self.image_size {
                    Some(side) => {
                        let shaping = Shaping::Fit(self.fit.unwrap_or(Fit::Crop));
                        Form { channels, drops_colour, ..Form::square(side, shaping) }
                    }
                    None => Form {
                        width: first.width,
                        height: first.height,
                        channels,
                        drops_colour,
                        shaping: Shaping::Exact,
                    },
                };
                (Box::new(images), form)
            }
        })
    }

    fn labels(&self) -> Labels {
        self.labels.unwrap_or(Labels::None)
    }

    fn check_count(&self, count: usize, source: &dyn Source) -> Result<(), Error> {
        match source.expected() {
            _ if count == 0 => Err(Error::file(&self.source, "has no images")),
            Some(expected) if expected != count && !self.allow_count => {
                let name = self.kind.name();
                let message = format!(
                    "has {count} images, but this part of {name} has {expected}: download it again, or accept it \
                     with --allow-count"
                );
                Err(Error::file(&self.source, message))
            }
            _ => Ok(()),
        }
    }

    /// Text that differs between two calls whenever their images could.
    fn identity(&self, form: &Form, source: &dyn Source) -> Result<String, Error> {
        let data = if self.kind == Kind::Lsun { lmdb::data_file(&self.source) } else { self.source.clone() };
        let path = data.canonicalize().map_err(Error::io("read", &data))?;
        // A folder's files may be mended between two calls, but not be others.
        let stamp = if path.is_file() { stamp(&path)? } else { spelled(&path).into() };
        let mut files = DefaultHasher::new();
        source.files().hash(&mut files);
        let mut line = serde_json::json!({
            "prepare": self.kind.name(), "source": stamp, "images": source.count(), "files": files.finish(),
            "split": format!("{:?}", self.split.unwrap_or_default()), "labels": self.labels(),
            "form": format!("{form:?}"),
        });
        if self.exif_rotate {
            line["exif_rotate"] = true.into();
        }
        Ok(line.to_string())
    }

    /// The file in a folder of PNGs that holds their identity. Both parts of a data set, and categories of LSUN, may lie
    /// in one folder.
    fn record(&self) -> String {
        let part = match (&self.prefix, self.split.unwrap_or_default()) {
            (Some(prefix), _) => format!("-{prefix}"),
            (None, Split::Test) => "-test".into(),
            (None, Split::Train) => String::new(),
        };
        format!("{}{}{part}", output::RECORD, self.kind.name())
    }
}
