//! Real images by which drawn ones are measured, again and again.

use super::features::Sum;
use super::side::{Side, know, network};
use super::{FeatureNetwork, Settings};
use crate::config::Config;
use crate::data::Shape;
use crate::event::{Emit, Event};
use crate::ranks::Ranks;
use crate::{Error, weights};
use ddpm_net::Device;
use fidelity::{Gaussian, frechet_distance};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Moments of real images' features, and the network that gives them.
pub(crate) struct Yardstick {
    network: FeatureNetwork,
    reference: Gaussian,
    /// The real images, as they were named.
    pub(crate) name: String,
    /// Differs between two whose distances do not compare.
    pub(crate) identity: String,
}

impl Yardstick {
    /// Measures the real images that a configuration's evaluation names, as its network sees them. None if `stop` was set
    /// before the end.
    ///
    /// # Errors
    /// Real images that cannot be used, missing weights.
    pub(crate) fn new(
        config: &Config,
        settings: &Settings,
        device: Device,
        stop: &AtomicBool,
        emit: &mut Emit,
    ) -> Result<Option<Self>, Error> {
        let (wanted, data, model) = (&config.evaluation, &config.data, &config.model);
        let shape = Shape {
            image_size: model.image_size,
            fit: data.fit,
            allow_upscale: data.allow_upscale,
            channels: Some(model.in_channels),
        };
        let features = if wanted.features.is_empty() { None } else { Some(wanted.features.parse()?) };
        let metrics = Vec::new();
        let exif_rotate = data.exif_rotate;
        let settings = Settings { features, metrics, shape: Some(shape), exif_rotate, ..settings.clone() };
        let name = if wanted.reference.is_empty() { &data.data_dir } else { &wanted.reference };
        let mut side = Side::open(&name.as_str().into(), &settings)?;
        let network = network(&[&side], &settings, device)?;
        if !side.go_through(&network, stop)? {
            return Ok(None);
        }
        let content = match (&side.content, &side.statistics) {
            (Some(content), None) => content.hash.clone(),
            _ => weights::check_hash(Path::new(&side.name))?,
        };
        if let Some(remark) = network.remark() {
            emit(Event::Notice(remark));
        }
        let Some(reference) = know(side, &network, &settings, &Ranks::default(), stop, emit)? else { return Ok(None) };
        let identity = format!("{} {content}", network.name());
        Ok(Some(Self { network, reference: reference.statistics.features, name: name.clone(), identity }))
    }

    /// The feature network's name.
    pub(crate) fn features(&self) -> &str {
        self.network.name()
    }

    /// What its distances are called: only those of one network are FIDs.
    pub(crate) fn key(&self) -> &'static str {
        if self.network.is_inception() { "fid" } else { "frechet_distance" }
    }

    /// The Fréchet distance of images of that size and so many channels, which `draw` passes on batch by batch `[n, H, W, C]`;
    /// none if it does not come to its end.
    ///
    /// # Errors
    /// What `draw` says; images from which no distance follows, as `failed` says it.
    pub(crate) fn distance(
        &self,
        [size, channels]: [usize; 2],
        failed: impl Fn(fidelity::FidelityError) -> Error,
        draw: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<bool, Error>,
    ) -> Result<Option<f64>, Error> {
        let mut sum = Sum::new(self.network.width());
        let whole = draw(&mut |images| {
            let n = images.len() / (size * size * channels);
            sum.add(&self.network.features(images, [n, size, size, channels])?.features).map_err(&failed)
        })?;
        if !whole {
            return Ok(None);
        }
        let drawn = sum.finish().map_err(&failed)?;
        frechet_distance(&self.reference, &drawn).map(Some).map_err(failed)
    }
}
