//! Data whose exact score is known, in the place of a network, and what the instruments are pointed at.

use ddpm_ip::bias::{Curve, Readings, Subject};
use ddpm_ip::config::DiffusionConfig;
use ddpm_ip::diffusion::{Clip, Diffusion, Reverse};
use ddpm_ip::net::NO_CLASS;
use ddpm_ip::sample::Predictor;
use ddpm_math::{Domain, Level, Rule, Schedule, Spacing, Stream, Variance};

/// A mixture of normal distributions with one variance for each pixel, equally likely.
pub(crate) struct Data {
    pub(crate) shape: [usize; 3],
    /// The means.
    pub(crate) modes: Vec<Vec<f64>>,
    /// The variance about them.
    pub(crate) variance: Vec<f64>,
}

impl Data {
    /// A normal distribution of 4×4 pixels with variances from 0.02 to 0.6 and all kinds of means.
    pub(crate) fn gaussian() -> Self {
        let variance: Vec<f64> = (0..16).map(|p| 0.02 * 30.0_f64.powf(f64::from(p * 7 % 16) / 15.0)).collect();
        let mean = (0..16).map(|p| 0.6 * (1.7 * f64::from(p)).sin()).collect();
        Self { shape: [1, 4, 4], modes: vec![mean], variance }
    }

    /// Three modes that noise blurs.
    pub(crate) fn mixture() -> Self {
        let modes = (0..3).map(|k| (0..16).map(|p| 0.6 * (1.7 * f64::from(p + 5 * k)).sin()).collect()).collect();
        let variance = (0..16).map(|p| 0.01 + 0.005 * f64::from(p % 4)).collect();
        Self { shape: [1, 4, 4], modes, variance }
    }

    /// Values of an image.
    pub(crate) fn len(&self) -> usize {
        self.variance.len()
    }

    /// `n` images, and of which mode each is.
    pub(crate) fn draw(&self, n: usize, seed: u64) -> (Vec<f32>, Vec<u32>) {
        let (mut images, mut modes) = (Vec::new(), Vec::new());
        for image in 0..n as u64 {
            let mut stream = Stream::new(seed, Domain::Noise, image, 0);
            let mode = (stream.uniform() * self.modes.len() as f64) as usize;
            let pixels = self.modes[mode].iter().zip(&self.variance);
            images.extend(pixels.map(|(mean, v)| (mean + v.sqrt() * f64::from(stream.normal())) as f32));
            modes.push(mode as u32);
        }
        (images, modes)
    }

    /// The variance of every pixel over all modes.
    pub(crate) fn pixel_variance(&self) -> Vec<f64> {
        let over_modes = |p: usize| {
            let means = self.modes.iter().map(|mode| mode[p]);
            let [sum, squares] = means.fold([0.0; 2], |[sum, squares], m| [sum + m, squares + m * m]);
            let n = self.modes.len() as f64;
            squares / n - (sum / n).powi(2)
        };
        (0..self.len()).map(|p| self.variance[p] + over_modes(p)).collect()
    }
}

/// The network that has learned all there is to learn about data, or one that is wrong in a known way.
#[derive(Clone, Copy)]
pub(crate) struct Exact<'a> {
    pub(crate) data: &'a Data,
    pub(crate) diffusion: &'a Diffusion,
    /// √(1 + γ²) of the input perturbation it was trained with.
    pub(crate) s: f64,
    /// What its ε is multiplied by.
    pub(crate) scale: f64,
    /// How many timesteps later it believes to be than it is told.
    pub(crate) shift: f64,
    /// Whether its labels say of which mode an image is.
    pub(crate) labelled: bool,
}

impl<'a> Exact<'a> {
    pub(crate) fn new(data: &'a Data, diffusion: &'a Diffusion) -> Self {
        Self { data, diffusion, s: 1.0, scale: 1.0, shift: 0.0, labelled: false }
    }

    fn level(&self, time: f64) -> Level {
        self.diffusion.schedule.level_at(time + self.shift)
    }

    /// The variance of a pixel of noised images of one mode.
    fn noised_variance(&self, p: usize, level: Level) -> f64 {
        level.alpha_bar * self.data.variance[p] + (self.s * level.sigma()).powi(2)
    }

    /// E Var(x_0 | x_t) of a pixel of one mode.
    pub(crate) fn posterior_variance(&self, p: usize, level: Level) -> f64 {
        self.data.variance[p] * level.sigma().powi(2) / self.noised_variance(p, level)
    }

    /// How likely each mode is, given noised pixels.
    pub(crate) fn likely(&self, x: &[f32], level: Level, label: Option<u32>) -> Vec<f64> {
        if let Some(label) = label {
            return (0..self.data.modes.len()).map(|k| f64::from(u8::from(k == label as usize))).collect();
        }
        let distance = |mode: &Vec<f64>| {
            let squares = x.iter().zip(mode).enumerate();
            let of_pixel = |(p, (&x, m)): (usize, (&f32, &f64))| {
                (f64::from(x) - level.alpha() * m).powi(2) / self.noised_variance(p, level)
            };
            0.5 * squares.map(of_pixel).sum::<f64>()
        };
        let distances: Vec<f64> = self.data.modes.iter().map(distance).collect();
        let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
        let weights: Vec<f64> = distances.iter().map(|d| (least - d).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    }

    fn mean_mode(&self, likely: &[f64], p: usize) -> f64 {
        self.data.modes.iter().zip(likely).map(|(mode, r)| mode[p] * r).sum()
    }

    /// ε of a pixel whose mean over the likely modes is `mean`.
    pub(crate) fn eps(&self, p: usize, x: f64, mean: f64, time: f64) -> f64 {
        let level = self.level(time);
        self.scale * level.sigma() * (x - level.alpha() * mean) / self.noised_variance(p, level)
    }

    /// The logarithm of the variance of a pixel of x_{t−1} given x_t.
    pub(crate) fn log_variance(&self, p: usize, time: f64) -> f64 {
        let schedule = &self.diffusion.schedule;
        let i = schedule.times.iter().position(|&t| (t - time).abs() < 1e-3).unwrap();
        let spread = schedule.posterior_mean_coef1[i].powi(2) * self.posterior_variance(p, schedule.level(i));
        (schedule.posterior_variance[i] + spread).ln()
    }

    /// ‖∂ε/∂x‖²_F at a noised image.
    pub(crate) fn gradient(&self, x: &[f32], time: f64) -> f64 {
        let d = self.data.len();
        let unit = |q: usize| (0..d).map(|p| f32::from(u8::from(p == q))).collect::<Vec<_>>();
        let rows = (0..d).map(|q| self.pull_back(x, &[time as f32], None, &unit(q)));
        rows.flatten().map(|v| f64::from(v).powi(2)).sum()
    }
}

impl Predictor for Exact<'_> {
    fn predict(&self, x: &[f32], times: &[f32], labels: Option<&[u32]>, _: Option<&[f32]>) -> Vec<f32> {
        let d = self.data.len();
        let mut output = Vec::new();
        for (image, (x, &time)) in x.chunks_exact(d).zip(times).enumerate() {
            let time = f64::from(time);
            let label = labels.filter(|_| self.labelled).map(|labels| labels[image]).filter(|&label| label != NO_CLASS);
            let likely = self.likely(x, self.level(time), label);
            let eps = |(p, &x): (usize, &f32)| self.eps(p, f64::from(x), self.mean_mode(&likely, p), time) as f32;
            output.extend(x.iter().enumerate().map(eps));
            if self.diffusion.variance == Variance::Learned {
                output.extend((0..d).map(|p| self.log_variance(p, time) as f32));
            }
        }
        output
    }

    fn pull_back(&self, x: &[f32], times: &[f32], _: Option<&[u32]>, u: &[f32]) -> Vec<f32> {
        let d = self.data.len();
        let mut pulled = Vec::new();
        for ((x, &time), u) in x.chunks_exact(d).zip(times).zip(u.chunks_exact(d)) {
            let level = self.level(f64::from(time));
            let likely = self.likely(x, level, None);
            // Each mode's mean moves its own likelihood.
            let along = |mode: &Vec<f64>| {
                let pixels = u.iter().zip(mode).enumerate();
                pixels.map(|(p, (&u, m))| f64::from(u) * m / self.noised_variance(p, level)).sum::<f64>()
            };
            let along: Vec<f64> = self.data.modes.iter().map(along).collect();
            for (q, &u) in u.iter().enumerate() {
                let mean = self.mean_mode(&likely, q);
                let modes = self.data.modes.iter().zip(&likely).zip(&along);
                let spread: f64 = modes.map(|((mode, r), along)| r * (mode[q] - mean) * along).sum();
                let gain = self.scale * level.sigma() / self.noised_variance(q, level);
                pulled.push((gain * (f64::from(u) - level.alpha_bar * spread)) as f32);
            }
        }
        pulled
    }
}

/// A process of 1000 steps of which `respacing` are taken.
pub(crate) fn diffusion(respacing: &str, variance: Variance) -> Diffusion {
    let config = DiffusionConfig { variance, ..DiffusionConfig::default() };
    Diffusion::new(&config, &respacing.parse().unwrap()).unwrap()
}

/// The same, evenly in the logarithm of the signal-to-noise ratio.
pub(crate) fn log_snr(steps: usize) -> Diffusion {
    let config = DiffusionConfig::default();
    let schedule = Schedule::spaced(config.noise_schedule, config.diffusion_steps, Spacing::LogSnr, steps).unwrap();
    Diffusion { schedule, ..diffusion("", Variance::FixedLarge) }
}

/// A sampler with corrections that clips nothing.
pub(crate) fn reverse(rule: Rule, corrections: &str) -> Reverse {
    Reverse { rule, clip: Clip::None, corrections: corrections.parse().unwrap() }
}

/// What is measured: a network, how it samples, and how many images with which seed.
pub(crate) struct Case<'a> {
    pub(crate) network: Exact<'a>,
    pub(crate) reverse: Reverse,
    pub(crate) images: usize,
    pub(crate) seed: u64,
}

impl Case<'_> {
    /// Points the instruments at it.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&Subject) -> T) -> T {
        let Exact { data, diffusion, labelled, .. } = self.network;
        let (x_start, modes) = data.draw(self.images, self.seed + 1000);
        let all = data.pixel_variance();
        read(&Subject {
            network: &self.network,
            diffusion,
            reverse: &self.reverse,
            shape: data.shape,
            x_start: &x_start,
            labels: labelled.then_some(&modes),
            data_variance: if labelled { &data.variance } else { &all },
            batch: 128,
            seed: self.seed,
            short: 3,
        })
    }

    pub(crate) fn measure(&self) -> Readings {
        self.with(|subject| subject.measure(|_| None, |_, _| true)).unwrap()
    }
}

/// How many errors the numbers of a curve are away from what they should be; those that could not be measured are left out.
pub(crate) fn deviations(curve: &Curve, expected: impl Fn(usize) -> f64) -> Vec<f64> {
    let all = (0..curve.len()).map(|i| curve.at(i).deviations_from(expected(i)));
    all.filter(|d| !d.is_nan()).collect()
}

/// The root of the mean square.
pub(crate) fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
}

/// The largest magnitude.
pub(crate) fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, v| f64::max(most, v.abs()))
}

/// Asserts that a curve is what it should be: within its errors, which are below `most` and a tenth of what should be.
#[track_caller]
pub(crate) fn assert_within(name: &str, curve: &Curve, most: f64, expected: impl Fn(usize) -> f64) {
    let off = deviations(curve, &expected);
    assert!(!off.is_empty() && rms(&off) < 1.8 && largest(&off) < 4.5, "{name}: {off:.1?}");
    for (i, &error) in curve.error.iter().enumerate() {
        assert!(error.is_nan() || error < most + 0.1 * expected(i).abs(), "{name} is not known well: {error}");
    }
}
