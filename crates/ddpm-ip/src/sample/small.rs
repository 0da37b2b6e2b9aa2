//! The small images that a super-resolution network enlarges.

use crate::Error;
use crate::config::Config;
use crate::data::{DataError, Dataset, Fit, Labels, Options};
use crate::low_res;
use std::path::Path;

/// Small images, taken in turn.
pub struct SmallImages {
    /// `[N, C, h, h]` in [-1, 1].
    values: Vec<f32>,
    labels: Option<Vec<u32>>,
    channels: usize,
    size: usize,
}

impl SmallImages {
    /// Reads `count` images at most of anything that holds images, such as an npz of samples.
    ///
    /// # Errors
    /// What cannot be read, and images of another size than the configuration's `small_size`.
    pub fn read(source: &Path, config: &Config, count: usize) -> Result<Self, Error> {
        let (name, model) = (source.to_string_lossy(), &config.model);
        let size = model.small_size;
        let (_, [height, width, _]) = Dataset::count_and_shape(&name)?;
        if [height, width] != [size, size] {
            let reason =
                format!("{width}x{height} pixels, but the network enlarges images of {size}x{size} (--small-size)");
            return Err(DataError::Misfit { image: format!("{name}, first image"), reason }.into());
        }
        let options = Options {
            labels: if model.class_cond { Labels::Prefix } else { Labels::None },
            fit: Fit::Pad,
            on_bad_image: config.data.on_bad_image,
            exif_rotate: config.data.exif_rotate,
            ..Options::new(size, model.in_channels)
        };
        let mut dataset = Dataset::open_any(&name, &options)?;
        if dataset.check_classes().is_err() {
            // Their names carry no classes.
            dataset = Dataset::open_any(&name, &Options { labels: Labels::None, ..options })?;
        }
        let dataset = dataset.numbered_by(&config.classes.names)?;
        let count = count.min(dataset.len());
        let images = (0..count).map(|i| dataset.plain_example(i)).collect::<Result<Vec<_>, _>>()?;
        let labels = dataset.labels().map(|l| l[..count].to_vec());
        Ok(Self { values: images.concat(), labels, channels: model.in_channels, size })
    }

    /// Number of images that a source holds.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn count(source: &Path) -> Result<usize, Error> {
        Ok(Dataset::count_and_shape(&source.to_string_lossy())?.0)
    }

    /// The first `count` images of a data set, made small.
    ///
    /// # Errors
    /// Images that cannot be read.
    pub fn of_large(dataset: &Dataset, config: &Config, count: usize) -> Result<Self, Error> {
        let (model, count) = (&config.model, count.min(dataset.len()));
        let mut values = Vec::new();
        for i in 0..count {
            let large = dataset.plain_example(i)?;
            values.extend(low_res::area_mean(&large, model.image_size, model.small_size));
        }
        let labels = dataset.labels().map(|l| l[..count].to_vec());
        Ok(Self { values, labels, channels: model.in_channels, size: model.small_size })
    }

    /// Number of images.
    #[expect(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.values.len() / (self.channels * self.size * self.size)
    }

    /// The images with these numbers, from the first again after the last, enlarged to squares of side `large`:
    /// `[N, C, large, large]`.
    pub fn enlarged(&self, images: &[u64], large: usize) -> Vec<f32> {
        let per_image = self.channels * self.size * self.size;
        let of_image = |&i: &u64| {
            let first = (i % self.len() as u64) as usize * per_image;
            low_res::enlarge(&self.values[first..first + per_image], self.size, large)
        };
        images.iter().flat_map(of_image).collect()
    }

    /// Their classes, where they are known.
    pub fn labels(&self, images: &[u64]) -> Option<Vec<u32>> {
        let labels = self.labels.as_ref()?;
        Some(images.iter().map(|i| labels[(i % labels.len() as u64) as usize]).collect())
    }
}
