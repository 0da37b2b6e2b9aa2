//! The two sides of a comparison: what they are, and what can be known of them.

use super::features::{Content, FeatureFile, Measured, content, measure, share};
use super::network::{CLEAN, Resize};
use super::pixels::PixelStatistics;
use super::{Choice, FID_INCEPTION, FeatureNetwork, Settings, SideReport, Source, Statistics};
use crate::Error;
use crate::data::{ImageSet, is_run};
use crate::event::{Emit, Event};
use crate::npz::Npz;
use crate::ranks::Ranks;
use ddpm_net::Device;
use fidelity::Gaussian;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// A side that is open: statistics, images, or both.
pub(super) struct Side {
    pub(super) name: String,
    pub(super) statistics: Option<Statistics>,
    /// Whether the file of statistics says whose features they are of.
    says_network: bool,
    pub(super) images: Option<ImageSet>,
    /// Of the images, once they were gone through.
    pub(super) content: Option<Content>,
}

impl Side {
    /// Opens a file of statistics, a run's samples or images.
    pub(super) fn open(source: &Source, settings: &Settings) -> Result<Self, Error> {
        let name = match source {
            Source::Named(name) => name,
            Source::Given(array) => {
                let name = format!("an array {:?}", array.shape());
                let images = Some(ImageSet::of_array(&name, array, settings.shape, settings.per_class)?);
                return Ok(Self { name, statistics: None, images, content: None, says_network: false });
            }
        };
        let path = run_samples(Path::new(name))?;
        let name = path.as_ref().map_or(name.into(), |path| path.to_string_lossy().into_owned());
        let path = Path::new(&name);
        let (mut statistics, mut says_network) = (None, false);
        if path.extension().is_some_and(|e| e == "npz") && path.is_file() {
            statistics = Statistics::read(path)?;
            let npz = Npz::open(path)?;
            says_network = npz.has("features");
            if statistics.is_some() && !npz.has("arr_0") {
                return Ok(Self { name, statistics, says_network, images: None, content: None });
            }
        }
        let labels = settings.per_class.then_some(settings.labels);
        let images = Some(ImageSet::open(&name, settings.shape, labels, settings.exif_rotate)?);
        Ok(Self { name, statistics, says_network, images, content: None })
    }

    /// What is to be known of the images before they are compared.
    pub(super) fn remark(&self) -> Option<Event> {
        let remark = self.images.as_ref()?.remark()?;
        Some(Event::Notice(format!("{}: {remark}", self.name)))
    }

    /// What is to be known of statistics that do not say how images were resized for them, as pytorch-fid's and clean-fid's.
    pub(super) fn remark_on_resize(&self, network: &FeatureNetwork) -> Option<Event> {
        let nameless = self.statistics.as_ref().filter(|of| !self.says_network && of.spatial.is_none())?;
        let resize = network.inception_resize().filter(|_| nameless.network == FID_INCEPTION)?;
        let file = Path::new(&self.name).file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        // clean-fid names its files NAME_MODE_SPLIT_SIZE.npz.
        let other = match resize {
            _ if file.contains("_legacy_pytorch_") => Some("resized by PyTorch, which --resize does not offer"),
            Resize::TensorFlow1 if file.contains("_clean_") => Some("clean-fid's, of --resize clean"),
            Resize::Clean if file.contains("_legacy_tensorflow_") => Some("of --resize tf1"),
            _ => None,
        };
        Some(match other {
            Some(other) => Event::Warning(format!("{}: by its name these statistics are {other}", self.name)),
            None => Event::Notice(format!(
                "{}: these statistics do not say how images were resized for them; they are compared with images resized {}",
                self.name,
                network.resize()
            )),
        })
    }

    /// That there are images enough for a distribution.
    pub(super) fn check_count(&self) -> Result<(), Error> {
        match &self.images {
            Some(set) if set.len() < 2 => {
                Err(Error::file(Path::new(&self.name), "holds one image: a distribution needs at least two"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn labels(&self) -> Option<&[u32]> {
        self.images.as_ref().and_then(ImageSet::labels)
    }

    /// Goes through the images once, which tells mistakes before any features are made. Whether it came to the end.
    pub(super) fn go_through(&mut self, network: &FeatureNetwork, stop: &AtomicBool) -> Result<bool, Error> {
        if let Some(statistics) = &self.statistics {
            check_statistics(Path::new(&self.name), statistics, self.says_network, network)?;
        }
        self.check_count()?;
        if let Some(set) = &self.images {
            if let Some(reason) = network.refuses(set.image_shape()[2]) {
                return Err(Error::file(Path::new(&self.name), reason));
            }
            self.content = content(set, stop)?;
        }
        Ok(self.images.is_none() || self.content.is_some())
    }
}

/// A side with everything that can be known of it.
pub(super) struct Known {
    pub(super) name: String,
    pub(super) statistics: Statistics,
    pub(super) features: Option<FeatureFile>,
    pub(super) images: Option<ImageSet>,
    pub(super) pixels: Option<PixelStatistics>,
}

impl Known {
    /// Features in memory.
    pub(super) fn rows(&self) -> Result<Option<Vec<f32>>, Error> {
        self.features.as_ref().map(FeatureFile::all).transpose()
    }

    pub(super) fn report(&self) -> SideReport {
        SideReport {
            source: self.name.clone(),
            images: self.statistics.images,
            brightness: self.pixels.map(|pixels| pixels.brightness),
            pixel_variance: self.pixels.map(|pixels| pixels.variance),
        }
    }
}

/// The newest `samples_*.npz` of a run directory; none if `path` is none.
fn run_samples(path: &Path) -> Result<Option<PathBuf>, Error> {
    if !is_run(path) {
        return Ok(None);
    }
    let entries = std::fs::read_dir(path).map_err(Error::io("list", path))?;
    let samples = entries.filter_map(Result::ok).filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("samples_") && name.ends_with(".npz")
    });
    let newest = samples.max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok());
    let none = || {
        let message = format!(
            "this run has no samples_*.npz yet: draw some with `ddpm-ip sample --checkpoint {0} --out {0}`",
            path.display()
        );
        Error::file(path, message)
    };
    newest.map(|entry| Some(entry.path())).ok_or_else(none)
}

/// The run directory that samples lie in, if they do.
pub(super) fn run_of(samples: &Path) -> Option<&Path> {
    [Some(samples), samples.parent()].into_iter().flatten().find(|path| is_run(path))
}

/// The network that was asked for, or fits the images.
pub(super) fn network(sides: &[&Side], settings: &Settings, device: Device) -> Result<FeatureNetwork, Error> {
    let grey = sides.iter().all(|side| match (&side.images, &side.statistics) {
        (Some(set), _) => set.image_shape()[2] == 1,
        (None, Some(statistics)) => statistics.network == FeatureNetwork::GREY,
        (None, None) => false,
    });
    let choice = settings.features.clone().unwrap_or(if grey { Choice::Grey } else { Choice::Inception(None) });
    Ok(FeatureNetwork::open(&choice, &settings.weights, device)?.with_resize(settings.resize)?)
}

/// Whether features of a side's images have to be made. Statistics of a file do for a Fréchet distance, and for nothing else.
fn needs_features(side: &Side, settings: &Settings) -> bool {
    let wanted =
        !settings.metrics.is_empty() || settings.extrapolate || settings.per_class || settings.neighbours.is_some();
    side.statistics.is_none() || wanted
}

/// Makes a share of what rank 0 needs to [`know`] a side.
pub(super) fn help(
    side: &Side,
    network: &FeatureNetwork,
    settings: &Settings,
    ranks: &Ranks,
    stop: &AtomicBool,
) -> Result<(), Error> {
    match (&side.images, &side.content) {
        (Some(set), Some(_)) if needs_features(side, settings) => {
            share(set, network, settings.batch_size, 0, ranks, stop, |_, _| Ok(())).map(|_| ())
        }
        _ => Ok(()),
    }
}

/// Statistics of a side that was gone through, from its file or its images, and their features; none if `stop` was set.
pub(super) fn know(
    side: Side,
    network: &FeatureNetwork,
    settings: &Settings,
    ranks: &Ranks,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<Option<Known>, Error> {
    let measured = match (&side.images, &side.content) {
        (Some(set), Some(content)) if needs_features(&side, settings) => {
            if set.image_shape()[2] == 1 && network.is_for_colour() {
                emit(Event::Notice(format!("{}: grey images count as three equal channels", side.name)));
            }
            let measured = measure(set, &content.hash, network, settings, ranks, stop, emit)?;
            let Some(measured) = measured else { return Ok(None) };
            Some(measured)
        }
        _ => None,
    };
    let (of_images, features) = match measured {
        Some(Measured { statistics, features }) => (Some(statistics), Some(features)),
        None => (None, None),
    };
    // What a file says goes before what its images give: the reference's hold a part of the images alone.
    let statistics = side.statistics.or(of_images).unwrap_or_else(|| unreachable!("a side has one or the other"));
    let pixels = side.content.map(|content| content.pixels);
    Ok(Some(Known { name: side.name, statistics, features, images: side.images, pixels }))
}

fn check_statistics(
    path: &Path,
    statistics: &Statistics,
    says_network: bool,
    network: &FeatureNetwork,
) -> Result<(), Error> {
    if let Some(resize) = network.inception_resize() {
        // The reference's statistics do not say it, but are the only ones with spatial features.
        let theirs = match statistics.network.ends_with(CLEAN) {
            true => Some(Resize::Clean),
            false if says_network || statistics.spatial.is_some() => Some(Resize::TensorFlow1),
            false => None,
        };
        if theirs.is_some_and(|theirs| theirs != resize) {
            let (theirs, how) = match resize {
                Resize::TensorFlow1 => ("clean", "as clean-fid does"),
                Resize::Clean => ("tf1", "as TensorFlow 1 does"),
            };
            let message = format!(
                "these are statistics of images resized {how}, but other images would be resized {}, and their \
                 distance would mean nothing. Use --resize {theirs}, or compute the statistics again",
                network.resize()
            );
            return Err(Error::file(path, message));
        }
    }
    let usual = statistics.network.strip_suffix(CLEAN).unwrap_or(&statistics.network) == FID_INCEPTION;
    if statistics.network != network.name() && !(usual && network.is_inception()) {
        let message = format!(
            "these are statistics of {}, but the features asked for are of {}, and their distance would mean \
             nothing. Choose the network with --features",
            statistics.network,
            network.name()
        );
        return Err(Error::file(path, message));
    }
    let widths = [Some(network.width()), statistics.spatial.as_ref().map(|_| network.spatial_width())];
    let found = [Some(&statistics.features), statistics.spatial.as_ref()].map(|g| g.map(Gaussian::width));
    if found != widths {
        let message = format!(
            "its statistics have {} columns, but the features of {} have {}: they are from another network",
            found.iter().flatten().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
            network.name(),
            widths.iter().flatten().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
        );
        return Err(Error::file(path, message));
    }
    Ok(())
}
