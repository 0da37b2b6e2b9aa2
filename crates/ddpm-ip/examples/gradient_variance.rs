//! How much an image's gradient varies with its noise, for the sampled and the equivalent form of input perturbation, and
//! how much it should by `docs/equivalent-loss.md`:
//!
//! ```text
//! gradient_variance CHECKPOINT [GAMMA] [IMAGES] [ROUNDS]
//! ```
//!
//! The checkpoint's configuration names the data. Each of the first images of its first epoch has one timestep, which
//! stays. A round draws the noise of every image twice, and half the squared distance of an image's two gradients estimates
//! the trace of its covariance. Both forms see the same y_t. Errors are standard errors over rounds.

use ddpm_ip::config::Config;
use ddpm_ip::data::{Batch, Dataset, Loader, Options};
use ddpm_ip::diffusion::{Diffusion, Noised};
use ddpm_ip::net::network::Unet;
use ddpm_ip::net::{Device, Engine, Feed, Parameters};
use ddpm_ip::{checkpoint, config::Respacing};
use ddpm_math::perturb::{loss_constant, rotate};
use ddpm_math::{Domain, Mode, Perturbation, Stream, TimeSampler, TimeSamplerKind};
use rayon::prelude::*;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

/// Seed of the images, the timesteps and the noise.
const SEED: u64 = 0;

/// What is measured of one image in one round.
const COLUMNS: [&str; 5] = ["mse + c", "sampled", "equivalent", "excess", "predicted"];

type Row = [f64; COLUMNS.len()];

struct Experiment {
    engine: Engine<Unet>,
    parameters: Parameters,
    diffusion: Diffusion,
    batch: Batch,
    t: Vec<usize>,
    size: usize,
    gamma: f64,
}

impl Experiment {
    fn open(path: &Path, gamma: f64, images: usize) -> Result<Self, Box<dyn Error>> {
        let file = checkpoint::resolve(path)?;
        let config: Config = checkpoint::config_of(&file)?.ok_or("the checkpoint has no configuration")?;
        let config = checkpoint::with_classes(&config, &file)?;
        let engine = Engine::new(Unet::new(config.model.network(config.diffusion.variance)?), Device::Cpu);
        let parameters = checkpoint::load(&file, ddpm_ip::net::network::Network::layout(engine.network()), "")?;
        let diffusion = Diffusion::new(&config.diffusion, &Respacing::Full)?;
        let data = Dataset::open(
            &config.data.data_dir,
            &Options {
                labels: config.data.labels,
                fit: config.data.fit,
                allow_upscale: config.data.allow_upscale,
                on_bad_image: config.data.on_bad_image,
                exif_rotate: config.data.exif_rotate,
                ..Options::new(config.model.image_size, config.model.in_channels)
            },
        )?;
        let mut batch = Loader::start(Arc::new(data), images, SEED, 0, 1, 1)?.next()?;
        batch.labels = batch.labels.filter(|_| config.model.class_cond);
        let times = TimeSampler::new(TimeSamplerKind::Uniform, diffusion.schedule.len());
        let t = (0..images as u64).map(|i| times.draw(SEED, i).0).collect();
        Ok(Self { engine, parameters, diffusion, batch, t, size: config.model.image_size, gamma })
    }

    /// Values of an image.
    fn per_image(&self) -> usize {
        self.batch.images.len() / self.t.len()
    }

    fn noise(&self, image: usize, mode: Mode, eps: &[f32], xi: &[f32]) -> Noised {
        let d = self.per_image();
        let mix = Perturbation { mode, ..Perturbation::default() }.mix(self.gamma);
        let x_start = &self.batch.images[image * d..(image + 1) * d];
        self.diffusion.noise(x_start, &[self.t[image]], &[mix], eps, Some(xi))
    }

    /// J_θᵀ times what `loss` writes for the output, and what it returns.
    fn backward<R: Send>(
        &self,
        image: usize,
        noised: &Noised,
        loss: impl Fn(&[f32], &mut [f32]) -> R + Sync,
    ) -> (Vec<f32>, R) {
        let times = self.diffusion.model_times(&noised.t);
        let labels = self.batch.labels.as_ref().map(|labels| &labels[image..=image]);
        let feed = Feed { labels, ..Feed::new(&noised.x_t, [self.size; 2], &times) };
        let (mut gradient, mut results) =
            self.engine.gradient(&self.parameters, feed, true, |_, output, grad| loss(output, grad));
        (gradient.values().to_vec(), results.remove(0))
    }

    /// The gradient of an image's loss, and its mean squared error.
    fn gradient(&self, image: usize, noised: &Noised) -> (Vec<f32>, f64) {
        let (gradient, mse) = self.backward(image, noised, |output, grad| {
            let terms = self.diffusion.losses(noised, 0..1, output, &[1.0], Some(grad));
            terms[0].mse
        });
        (gradient, mse.unwrap_or(f64::NAN))
    }

    /// An image's row in a round.
    fn row(&self, image: usize, round: usize) -> Row {
        let d = self.per_image();
        let c = loss_constant(self.gamma);
        let draws = [0, 1].map(|which| {
            let index = ((2 * round + which) * self.t.len() + image) as u64;
            let [eps, xi, zeta] = [0, 1, 2].map(|step| {
                let mut values = vec![0.0; d];
                Stream::new(SEED, Domain::Noise, index, step).fill_normal(&mut values);
                values
            });
            let pairs = eps.iter().zip(&xi);
            let rotated: Vec<f32> =
                pairs.map(|(&e, &x)| rotate(f64::from(e), f64::from(x), self.gamma).0 as f32).collect();
            let (sampled, _) = self.gradient(image, &self.noise(image, Mode::Sampled, &eps, &xi));
            let noised = self.noise(image, Mode::Equivalent, &rotated, &xi);
            let (equivalent, mse) = self.gradient(image, &noised);
            // The loss is a multiple of the mean squared error. Its fresh ζ goes to the prediction, not to the variance.
            let (pulled_back, ()) = self.backward(image, &noised, |_, grad| {
                grad.fill(0.0);
                grad[..d].copy_from_slice(&zeta);
            });
            let scale = self.diffusion.loss.scale(d) / d as f64;
            (sampled, equivalent, mse + c, 4.0 * c * scale * scale * squares(&pulled_back, None))
        });
        let [(sampled, equivalent, mse, predicted), other] = draws;
        let [of_sampled, of_equivalent] =
            [(&sampled, &other.0), (&equivalent, &other.1)].map(|(a, b)| 0.5 * squares(a, Some(b)));
        let mean = f64::midpoint;
        [mean(mse, other.2), of_sampled, of_equivalent, of_sampled - of_equivalent, mean(predicted, other.3)]
    }
}

/// ‖a‖², or ‖a − b‖².
fn squares(a: &[f32], b: Option<&[f32]>) -> f64 {
    let square = |(i, &a): (usize, &f32)| (f64::from(a) - b.map_or(0.0, |b| f64::from(b[i]))).powi(2);
    a.iter().enumerate().map(square).sum()
}

/// Mean and standard error.
fn estimate(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n * (n - 1.0))).sqrt())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().ok_or("usage: gradient_variance CHECKPOINT [GAMMA] [IMAGES] [ROUNDS]")?;
    let gamma = arguments.get(1).map_or(Ok(0.1), |text| text.parse())?;
    let images = arguments.get(2).map_or(Ok(256), |text| text.parse())?;
    let rounds = arguments.get(3).map_or(Ok(40), |text| text.parse())?;
    let experiment = Experiment::open(Path::new(path), gamma, images)?;
    let rows: Vec<Vec<Row>> = (0..rounds)
        .map(|round| (0..images).into_par_iter().map(|image| experiment.row(image, round)).collect())
        .collect();
    println!("gamma {gamma}, {images} images, {rounds} rounds of 2 draws");
    let steps = experiment.diffusion.schedule.len();
    for quarter in [None, Some(0), Some(1), Some(2), Some(3)] {
        let chosen: Vec<usize> =
            (0..images).filter(|&i| quarter.is_none_or(|q| 4 * experiment.t[i] / steps == q)).collect();
        let name = quarter.map_or("all t".to_string(), |q| format!("quarter {q}"));
        println!("{name}, {} images", chosen.len());
        let by_round = |value: &dyn Fn(&Row) -> f64| -> Vec<f64> {
            rows.iter().map(|row| chosen.iter().map(|&i| value(&row[i])).sum::<f64>() / chosen.len() as f64).collect()
        };
        let columns: Vec<Vec<f64>> = (0..COLUMNS.len()).map(|column| by_round(&|row| row[column])).collect();
        for (name, values) in COLUMNS.iter().zip(&columns) {
            let (mean, error) = estimate(values);
            println!("  {name:12} {mean:.5e} ± {error:.1e}");
        }
        let difference: Vec<f64> = columns[3].iter().zip(&columns[4]).map(|(a, b)| a - b).collect();
        let ((off, error), (predicted, _)) = (estimate(&difference), estimate(&columns[4]));
        println!("  excess / predicted     {:.4} ± {:.4}", 1.0 + off / predicted, error / predicted);
        let (equivalent, _) = estimate(&columns[2]);
        let (excess, error) = estimate(&columns[3]);
        println!("  sampled / equivalent   {:.4} ± {:.4}", 1.0 + excess / equivalent, error / equivalent);
    }
    Ok(())
}
