//! A network's answer, led away from a weaker one. The rule stands in `ddpm_math::guidance`.

use super::{Predictor, Subjects};
use crate::Device;
use crate::config::{Config, ConfigError, SampleConfig};
use crate::memory;
use ddpm_net::NO_CLASS;
use rayon::prelude::*;

/// Guidance of a chain.
pub struct Guidance<'a> {
    /// How far, and at which noise levels.
    pub rule: ddpm_math::Guidance,
    /// From what.
    pub weak: Weak<'a>,
}

/// Whose the weaker answer is.
#[derive(Clone, Copy)]
pub enum Weak<'a> {
    /// The network's own, when it is not told the class: classifier-free guidance.
    Unconditional {
        /// Whether both calls are made in one batch.
        together: bool,
    },
    /// An inferior network's, which is told the class if it has classes: autoguidance.
    Network(&'a dyn Predictor),
}

impl Guidance<'static> {
    /// The rule that settings ask for, if they ask for guidance.
    pub fn rule(settings: &SampleConfig) -> Option<ddpm_math::Guidance> {
        let interval = settings.guidance_interval.as_slice().try_into().unwrap_or([0.0, f64::INFINITY]);
        (settings.guidance_scale != 1.0).then_some(ddpm_math::Guidance { scale: settings.guidance_scale, interval })
    }

    /// Classifier-free guidance, if the settings ask for guidance; both calls are one batch where the device's memory takes it.
    ///
    /// # Errors
    /// A network that knows no images without class.
    pub(crate) fn classifier_free(
        config: &Config,
        settings: &SampleConfig,
        device: Device,
    ) -> Result<Option<Self>, ConfigError> {
        let Some(rule) = Self::rule(settings) else { return Ok(None) };
        config.check_guidance(settings)?;
        let twice = SampleConfig { batch_size: 2 * settings.batch_size.min(settings.num_samples), ..settings.clone() };
        let needed = memory::of_sampling(&Config { sample: twice, ..config.clone() }, device)?.total();
        let together = memory::of_device(device).is_none_or(|machine| needed <= machine.free);
        Ok(Some(Self { rule, weak: Weak::Unconditional { together } }))
    }
}

impl Guidance<'_> {
    /// The guided answer `[N, C or 2C, H, W]` of a network to `x` `[N, C, H, W]`. A learned variance stays the network's.
    pub(super) fn answer(&self, network: &dyn Predictor, x: &[f32], times: &[f32], of: &Subjects) -> Vec<f32> {
        let Subjects { labels, low_res, .. } = *of;
        let n = times.len();
        let (mut strong, weak) = match self.weak {
            Weak::Unconditional { together: true } => {
                let labels = both_labels(labels, n);
                let low_res = low_res.map(twice);
                let mut both = network.predict(&twice(x), &twice(times), Some(&labels), low_res.as_deref());
                let weak = both.split_off(both.len() / 2);
                (both, weak)
            }
            Weak::Unconditional { together: false } => {
                let weak = network.predict(x, times, Some(&vec![NO_CLASS; n]), low_res);
                (network.predict(x, times, labels, low_res), weak)
            }
            Weak::Network(other) => {
                (network.predict(x, times, labels, low_res), other.predict(x, times, labels, low_res))
            }
        };
        let [image, of_strong, of_weak] = [x.len(), strong.len(), weak.len()].map(|all| all / n);
        strong.par_chunks_mut(of_strong).zip(weak.par_chunks(of_weak)).for_each(|(strong, weak)| {
            for (strong, &weak) in strong[..image].iter_mut().zip(weak) {
                *strong = self.rule.answer(*strong, weak);
            }
        });
        strong
    }
}

/// The images' classes, and as many times none.
pub(super) fn both_labels(labels: Option<&[u32]>, n: usize) -> Vec<u32> {
    let mut labels = labels.unwrap_or_default().to_vec();
    labels.extend(std::iter::repeat_n(NO_CLASS, n));
    labels
}

/// Values, and the same again.
pub(super) fn twice(values: &[f32]) -> Vec<f32> {
    [values, values].concat()
}
