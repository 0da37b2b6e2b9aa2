//! The part of a training step that belongs to diffusion, on a GPU: noising and losses, before and between the network's
//! halves.

use super::trainer::{Draws, Trainer};
use crate::data::Batch;
use ddpm_math::{ImageLoss, Terms};
use ddpm_net::gpu::{Gpu, Mailbox, Result, Shape, args};
use ddpm_net::network::{Network, Unet};
use ddpm_net::{Engine, Feed, Gradient};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Threads of a block of a kernel that draws noise.
const THREADS: usize = 256;

/// Clean images, how each is noised, and how its loss is read, on their way to a GPU.
#[derive(Default)]
pub(super) struct Mail(Mutex<Option<[Mailbox; 3]>>);

/// A grid for `n` images of so many values, two of which are drawn at a time.
pub(crate) fn pairs(values: usize, n: usize) -> Shape {
    Shape { grid: [values.div_ceil(2 * THREADS), n], block: THREADS, shared: 0 }
}

impl Trainer {
    /// The GPU that draws noise and computes losses, if one does. The gradient penalty is the processor's.
    pub(super) fn gpu(&self) -> Option<&'static Gpu> {
        self.task.unet().and_then(Engine::gpu).filter(|_| self.config.train.gradient_penalty == 0.0)
    }

    /// The gradient of Σ weight·loss of some of a batch's images, and the terms of their losses. The feed has everything but
    /// the images.
    pub(super) fn gradient_on_gpu(
        &self,
        engine: &Engine<Unet>,
        gpu: &'static Gpu,
        (batch, draws, images): (&Batch, &Draws, Range<usize>),
        weights: &[f64],
        feed: Feed,
    ) -> Result<(Gradient, Vec<Terms>)> {
        let (n, values, d) = (images.len(), self.per_image(), &self.diffusion);
        let outputs = values / self.config.model.in_channels * engine.network().config().out_channels;
        let x_start = &batch.images[images.start * values..images.end * values];
        let loss = |&t: &usize| ImageLoss::<f32>::new(&d.schedule, d.prediction, d.variance, d.loss, t);
        let losses: Vec<ImageLoss<f32>> = draws.t[images.clone()].iter().map(loss).collect();
        let readings: Vec<[u32; 16]> = losses.iter().zip(weights).map(|(loss, &w)| loss.words(w, values)).collect();
        let mixing = |i: usize| {
            let (t, mix) = (draws.t[i], &draws.mixes[i]);
            let (signal, noise) = (d.schedule.sqrt_alpha_bar[t], d.schedule.sqrt_one_minus_alpha_bar[t]);
            [signal, noise, mix.noise, mix.xi, mix.target, 0.0, 0.0, 0.0].map(|v| v as f32)
        };
        let mixings: Vec<[f32; 8]> = images.map(mixing).collect();
        let mut mail = self.mail.0.lock().unwrap_or_else(PoisonError::into_inner);
        if mail.as_ref().is_none_or(|[images, ..]| !images.holds(4 * n * values)) {
            *mail = Some([
                Mailbox::new(gpu, 4 * n * values)?,
                Mailbox::new(gpu, size_of_val(&mixings[..]))?,
                Mailbox::new(gpu, size_of_val(&readings[..]))?,
            ]);
        }
        let [of_images, of_mixings, of_readings] = mail.as_mut().expect("just made");
        let [x_t, eps, terms] = [4 * n * values, 4 * n * values, 16 * n].map(|bytes| gpu.alloc(bytes));
        let (x_t, eps, terms, mut sums) = (x_t?, eps?, terms?, gpu.note(16 * n)?);
        let at = feed.position.expect("a training step has a place in its run");
        let clean = of_images.address();
        let gradient = engine.gradient_between(
            &self.state.parameters,
            feed,
            |turn, images| {
                of_images.send(turn, x_start)?;
                let (mixings, count) = (of_mixings.send(turn, &mixings)?, values as i32);
                let args =
                    args![clean, x_t.address(), eps.address(), mixings, at.seed as i64, at.position as i64, count];
                turn.launch("mix_noise", pairs(values, n), args)?;
                turn.copy(images, x_t.address(), 4 * n * values)
            },
            |turn, [output, grad]| {
                let readings = of_readings.send(turn, &readings)?;
                let (values, outputs) = (values as i32, outputs as i32);
                let has_error = i32::from(!d.loss.is_vb());
                let args = args![
                    clean,
                    x_t.address(),
                    eps.address(),
                    output,
                    grad,
                    terms.address(),
                    readings,
                    values,
                    outputs,
                    has_error,
                ];
                turn.launch("diffusion_loss", Shape { grid: [n, 1], block: 512, shared: 0 }, args)?;
                sums.receive(turn, terms.address())
            },
        );
        // The backward pass goes on meanwhile.
        let sums: &[[f64; 2]] = sums.read(n)?;
        Ok((gradient, losses.iter().zip(sums).map(|(loss, &sums)| loss.terms(sums, values)).collect()))
    }
}
