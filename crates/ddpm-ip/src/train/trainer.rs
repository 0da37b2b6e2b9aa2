//! One optimizer step after another.

use super::loss_scale;
use super::on_gpu::Mail;
use super::task::Task;
use crate::Error;
use crate::checkpoint::State;
use crate::config::{Config, Precision};
use crate::data::Batch;
use crate::diffusion::Diffusion;
use crate::ranks::{Ranks, Share};
use ddpm_kernels::AdamW;
use ddpm_math::{Domain, Mix, Stream, TimeSampler, TimeSamplerKind, posthoc};
use ddpm_net::{Accumulator, Clip, Device, Feed, Gradient, Norm, Parameters, Parts, Squares};
use rayon::prelude::*;
use std::sync::Arc;
use std::time::Instant;

/// What one step saw, image by image where a field is a list.
#[derive(Clone, Debug, Default)]
pub struct StepReport {
    /// Indices of the process.
    pub t: Vec<usize>,
    /// Importance weights.
    pub weights: Vec<f64>,
    /// What was minimised, before weighting; then other terms, under the names that the logs have: `mse`, `vb` and
    /// `penalty`, as far as the loss has them, or a classifier's accuracies.
    pub terms: Vec<(&'static str, Vec<f64>)>,
    /// What separates each loss from the reference's (the equivalent form's c).
    pub constant: Vec<f64>,
    /// Norm of the gradient, before clipping and without the loss scale; none before the first step. Where a GPU computes it,
    /// whoever asks for it waits for the step's end.
    pub grad_norm: Option<Norm>,
    /// log₂ of the loss scale, where the precision needs one.
    pub lg_loss_scale: Option<f64>,
    /// Learning rate of the step.
    pub lr: f64,
    /// Seconds that the step took, waiting for its images included; nothing that hooks do.
    pub secs: f64,
    /// What a classifier made of images that it is not trained on, after this step.
    pub validation: Option<Box<StepReport>>,
}

impl StepReport {
    /// The weighted mean loss of the step.
    pub fn mean_loss(&self) -> f64 {
        self.loss().iter().zip(&self.weights).map(|(l, w)| l * w).sum::<f64>() / self.loss().len() as f64
    }

    /// What was minimised, before weighting.
    pub fn loss(&self) -> &[f64] {
        self.terms.first().map_or(&[], |(_, values)| values)
    }

    /// The term of that name.
    pub fn term(&self, name: &str) -> Option<&[f64]> {
        self.terms.iter().find(|(n, _)| *n == name).map(|(_, values)| values.as_slice())
    }

    /// Whether the scaled gradient did not fit into f16, so that the step changed no parameter.
    pub fn overflowed(&self) -> bool {
        self.grad_norm.as_ref().is_some_and(|norm| !norm.get().is_finite())
    }

    /// Learns what the other processes saw, in the order of the images.
    fn gather(&mut self, ranks: &Ranks) -> Result<(), Error> {
        if ranks.count() == 1 {
            return Ok(());
        }
        let t: Vec<f64> = self.t.iter().map(|&t| t as f64).collect();
        let terms = self.terms.iter().map(|(_, values)| values);
        let mine: Vec<f64> = [&t, &self.weights, &self.constant].into_iter().chain(terms).flatten().copied().collect();
        let mut columns = vec![Vec::new(); 3 + self.terms.len()];
        for theirs in ranks.gather_numbers(&mine)? {
            let images = theirs.len() / columns.len();
            columns
                .iter_mut()
                .zip(theirs.chunks(images.max(1)))
                .for_each(|(all, theirs)| all.extend_from_slice(theirs));
        }
        let mut columns = columns.into_iter();
        let mut next = || columns.next().unwrap_or_default();
        (self.t, self.weights, self.constant) = (next().iter().map(|&t| t as usize).collect(), next(), next());
        self.terms.iter_mut().for_each(|(_, values)| *values = next());
        Ok(())
    }

    pub(super) fn extend(&mut self, terms: Vec<(&'static str, Vec<f64>)>) {
        for (name, values) in terms {
            match self.terms.iter_mut().find(|(n, _)| *n == name) {
                Some((_, mine)) => mine.extend(values),
                None => self.terms.push((name, values)),
            }
        }
    }
}

/// A run between two steps.
pub struct Trainer {
    pub(crate) config: Config,
    pub(crate) task: Task,
    pub(crate) diffusion: Diffusion,
    pub(crate) state: State,
    pub(crate) time_sampler: TimeSampler,
    pub(super) mail: Mail,
    /// Who takes a share of each step.
    pub(super) ranks: Ranks,
    /// The norm of the newest gradient, if a GPU has not sent it yet when the step is counted.
    late: Option<Norm>,
    /// Whether averages and moments are of all parameters, not of this rank's part.
    is_whole: bool,
}

/// The random draws of one step, for a batch of N images.
#[derive(Clone, Debug)]
pub struct Draws {
    /// Indices of the process `[N]`.
    pub t: Vec<usize>,
    /// Importance weights `[N]`.
    pub weights: Vec<f64>,
    /// How each image mixes its noises `[N]`.
    pub mixes: Vec<Mix>,
    /// Standard normal `[N, C, H, W]`; empty where a GPU draws it.
    pub eps: Vec<f32>,
    /// A second draw `[N, C, H, W]`, if any image's mixture uses it.
    pub xi: Option<Vec<f32>>,
}

impl Trainer {
    /// A trainer of a network at `state`, or at the beginning.
    ///
    /// # Errors
    /// An impossible respacing, or a time-sampler history of another length.
    pub fn new(config: Config, task: impl Into<Task>, state: Option<State>) -> Result<Self, Error> {
        let task = task.into();
        let diffusion = Diffusion::new(&config.diffusion, &config.diffusion.timestep_respacing)?;
        let mut time_sampler = TimeSampler::new(config.train.schedule_sampler, diffusion.schedule.len());
        let state =
            state.unwrap_or_else(|| State::new(Parameters::initial(task.layout(), config.train.seed), &config.train));
        let history = state.progress.time_sampler.clone();
        if let Some(history) = history.filter(|_| config.train.schedule_sampler == TimeSamplerKind::LossSecondMoment) {
            time_sampler.restore(history).map_err(|e| crate::config::ConfigError(e.to_string()))?;
        }
        Ok(Self {
            config,
            task,
            diffusion,
            state,
            time_sampler,
            mail: Mail::default(),
            ranks: Ranks::default(),
            late: None,
            is_whole: true,
        })
    }

    /// The trainer of one of several processes, with the state of rank 0. From now on it trains on its [share](Ranks::share) of
    /// each batch, and all of them come to the same state.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn among(mut self, ranks: Ranks) -> Result<Self, Error> {
        let ranks = ranks.with(&self.config.train);
        if ranks.count() > 1 {
            let progress = serde_json::to_vec(&self.state.progress).expect("numbers");
            let progress = serde_json::from_slice(&ranks.told(&progress)?);
            self.state.progress = progress.map_err(|e| ranks.failure(0, &format!("sent no progress: {e}")))?;
            ranks.spread(&mut self.state.parameters)?;
            let part = ranks.part(ranks.rank(), self.state.parameters.layout().len());
            // Rank 0 may have to draw or evaluate before the first step.
            self.is_whole = ranks.leads() || !ranks.shards();
            for values in self.state.divided() {
                ranks.spread(values)?;
                if !self.is_whole {
                    *values = values.part(part.clone());
                }
            }
            if let Some(history) =
                self.state.progress.time_sampler.clone().filter(|_| self.time_sampler.state().is_some())
            {
                self.time_sampler.restore(history).map_err(|e| crate::config::ConfigError(e.to_string()))?;
            }
        }
        self.ranks = ranks;
        Ok(self)
    }

    /// Leaves averages and moments to the ranks, a part to each, if they are to have one.
    fn shard(&mut self) {
        if self.ranks.shards() && self.is_whole {
            let part = self.ranks.part(self.ranks.rank(), self.state.parameters.layout().len());
            self.state.divided().for_each(|values| *values = values.part(part.clone()));
            self.is_whole = false;
        }
    }

    /// Gives rank 0 all of the averages and moments, of which each rank has a part with `shard_optimizer`: until the next step. All
    /// ranks call it.
    ///
    /// # Errors
    /// A process that is gone.
    pub fn unshard(&mut self) -> Result<(), Error> {
        if self.is_whole {
            return Ok(());
        }
        let layout = Arc::clone(self.state.parameters.layout());
        for values in self.state.divided() {
            if let Some(whole) = self.ranks.whole(values, &layout)? {
                *values = whole;
            }
        }
        self.is_whole = self.ranks.leads();
        Ok(())
    }

    /// Whether it has averages and moments of all parameters.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The images of each step that it trains on.
    pub fn share(&self) -> Share {
        self.ranks.share(&self.config.train)
    }

    /// The share of a step that so many images are. A process alone trains on as many as it is given.
    pub(super) fn share_of(&self, images: usize) -> Share {
        if self.ranks.count() == 1 { images.into() } else { self.share() }
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.state.progress.step
    }

    /// Parameters, averages, moments and counters. Where [processes](crate::ranks) keep a part of averages and moments each, rank 0
    /// has all of them after [`unshard`](Self::unshard), and for hooks that [want](super::Hook::wants_state) them.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// log₂ of what the loss is multiplied by; nothing in precisions that need no scale.
    pub fn lg_loss_scale(&self) -> Option<f64> {
        let precision = self.task.precision(&self.config);
        (precision == Precision::F16).then(|| self.state.progress.lg_loss_scale.unwrap_or(loss_scale::INITIAL))
    }

    /// The parameters to sample with: the first average, or the network's own.
    pub fn sampling_parameters(&self) -> &Parameters {
        self.state.ema.first().map_or(&self.state.parameters, |(_, ema)| ema)
    }

    /// The learning rate of a step (from 0): warm-up, then the reference's annealing, which reaches a step of its
    /// diffusion training one late.
    fn learning_rate(&self, step: u64) -> f64 {
        let c = &self.config.train;
        let warm = if step < c.lr_warmup_steps { (step + 1) as f64 / c.lr_warmup_steps as f64 } else { 1.0 };
        let since = match self.task {
            Task::Diffusion(_) => step.saturating_sub(1),
            Task::Classifier(_) => step,
        };
        let annealed = match c.lr_anneal_steps {
            0 => 1.0,
            n => 1.0 - since as f64 / n as f64,
        };
        c.lr * warm * annealed.max(0.0)
    }

    /// Images per second that a training step may be expected to reach, by the time of a network call on four of them: the
    /// backward pass takes about twice as long as the forward one.
    pub(super) fn expected_speed(&self) -> f64 {
        /// Forward and backward pass and the rest, in forward passes.
        const PASSES: f64 = 3.2;
        let (n, model) = (self.config.train.microbatch_size().min(4), &self.config.model);
        let (images, times, labels) = (vec![0.0; n * self.per_image()], vec![0.0; n], vec![0; n]);
        let config = self.task.network().config();
        let feed = Feed {
            labels: config.num_classes.is_some().then_some(&labels),
            low_res: config.low_res.then_some(&images),
            ..Feed::new(&images, [model.image_size; 2], &times)
        };
        let since = Instant::now();
        self.task.forward(&self.state.parameters, feed);
        n as f64 / (PASSES * since.elapsed().as_secs_f64())
    }

    /// Trains on one batch. The trainer is unchanged if it fails.
    ///
    /// A GPU may be at work on the step's second half still when it returns; a gradient that is not finite changes no
    /// parameter, but is an error of the next step or of [`settle`](Self::settle).
    ///
    /// # Errors
    /// [`Error::Diverged`] if the loss is not finite, or the gradient and no lower loss scale is left to try.
    pub fn train_step(&mut self, batch: &Batch) -> Result<StepReport, Error> {
        let split = self.task.shards().count(batch.images.len() / self.per_image()) > 1;
        let mut step = || {
            let draws = self.draw(batch);
            self.train_step_with(batch, draws)
        };
        // From inside the pool of threads, many small pieces of work need no handing over.
        if split { rayon::scope(|_| step()) } else { step() }
    }

    /// Values of one image.
    pub(super) fn per_image(&self) -> usize {
        self.config.model.in_channels * self.config.model.image_size.pow(2)
    }

    /// Each image's draws: from the seed and its position in the run alone.
    pub fn draw(&self, batch: &Batch) -> Draws {
        let (seed, rule) = (self.config.train.seed, &self.config.perturbation);
        let (schedule, per_image) = (&self.diffusion.schedule, self.per_image());
        let count = batch.images.len() / per_image;
        let stream = |domain, i: usize| Stream::new(seed, domain, batch.position + i as u64, 0);
        let (t, weights): (Vec<usize>, Vec<f64>) =
            (0..count).map(|i| self.time_sampler.draw(seed, batch.position + i as u64)).unzip();
        let mixes: Vec<Mix> = (0..count)
            .map(|i| {
                let u = stream(Domain::Gamma, i).uniform();
                rule.mix(rule.gamma_for(t[i], schedule, self.state.progress.step, u))
            })
            .collect();
        let normal = |domain: Domain| {
            let mut values = vec![0.0; count * per_image];
            values.par_chunks_mut(per_image).enumerate().for_each(|(i, v)| stream(domain, i).fill_normal(v));
            values
        };
        if self.gpu().is_some() {
            return Draws { t, weights, mixes, eps: Vec::new(), xi: None };
        }
        let xi = mixes.iter().any(|m| m.xi != 0.0).then(|| normal(Domain::Perturbation));
        Draws { t, weights, mixes, eps: normal(Domain::Noise), xi }
    }

    /// Trains on one batch with given draws. The trainer is unchanged if it fails.
    ///
    /// # Errors
    /// As [`Self::train_step`].
    pub fn train_step_with(&mut self, batch: &Batch, draws: Draws) -> Result<StepReport, Error> {
        self.shard();
        let step = self.state.progress.step;
        let diverged = |what| Error::Diverged { step: step + 1, what, last_good: None };
        let count = draws.t.len();
        let mut report = StepReport {
            lr: self.learning_rate(step),
            constant: draws.mixes.iter().map(|m| m.constant).collect(),
            lg_loss_scale: self.lg_loss_scale(),
            ..StepReport::default()
        };
        let scale = report.lg_loss_scale.map_or(1.0, f64::exp2);
        let (micro, share) = (self.config.train.microbatch_size(), self.share_of(count));
        let pieces = share.batch.div_ceil(micro);
        let sums = self.ranks.partial_sums(self.ranks.rank(), pieces);
        let alone = sums.len() == 1 && sums[0].len() == 1;
        // The piece whose gradient leaves while it is computed.
        let last = sums.last().map(|sum| sum.end - 1).filter(|_| self.sums_meanwhile(micro));
        let (mut gradients, mut summed) = (Vec::with_capacity(sums.len()), None);
        for sum in sums {
            let mut waiting = Accumulator::default();
            for piece in sum {
                let images = piece * micro..((piece + 1) * micro).min(share.batch);
                let images = images.start - share.images.start..images.end - share.images.start;
                let terms = if Some(piece) == last {
                    let (earlier, waiting) = (std::mem::take(&mut gradients), std::mem::take(&mut waiting));
                    let size = Ranks::bucket(self.state.parameters.layout().len());
                    let (sum, terms) = self.ranks.sum_meanwhile(earlier, waiting, pieces, |ready| {
                        let (mut own, parts) = (Accumulator::default(), Some(Parts { size, ready }));
                        let terms = self.gradient(batch, &draws, images, alone, scale, (&mut own, parts));
                        (own.sum().expect("one gradient"), terms)
                    })?;
                    summed = Some(sum);
                    terms
                } else {
                    self.gradient(batch, &draws, images, alone, scale, (&mut waiting, None))
                };
                report.extend(terms);
            }
            gradients.extend(waiting.sum());
        }
        (report.t, report.weights) = (draws.t, draws.weights);
        report.gather(&self.ranks)?;
        if !report.mean_loss().is_finite() {
            return Err(diverged("loss"));
        }
        // What the GPU was still at work on when this step began.
        self.settle()?;
        let mut gradient = summed.map_or_else(|| self.ranks.sum(gradients, pieces), Ok)?;
        let squares = self.ranks.squares(gradient.squares(), self.state.parameters.layout().len())?;
        let norm = self.update((gradient, squares), report.lr, scale);
        self.ranks.collect(&mut self.state.parameters, self.task.device())?;
        report.grad_norm = Some(norm.clone());
        let mut overflowed = false;
        let mut next_scale = None;
        if let (Norm::Coming(_), None) = (&norm, report.lg_loss_scale) {
            self.late = Some(norm);
        } else {
            overflowed = report.overflowed();
            let growth = self.config.train.fp16_scale_growth;
            next_scale = report.lg_loss_scale.and_then(|lg| loss_scale::after(lg, overflowed, growth));
            if overflowed && next_scale.is_none() {
                return Err(diverged("gradient"));
            }
        }
        let updates = self.state.progress.updates;
        self.state.progress.updates =
            if overflowed { updates.or(Some(step)) } else { updates.map(|updates| updates + 1) };
        self.state.progress.lg_loss_scale = next_scale;
        // The reference's loss differs by c: the sampler looks at its square. A classifier's tells it nothing.
        let scale = self.diffusion.loss.scale(self.per_image());
        let comparable: Vec<f64> = report.loss().iter().zip(&report.constant).map(|(l, c)| l + c * scale).collect();
        if matches!(self.task, Task::Diffusion(_)) {
            self.time_sampler.update(&report.t, &comparable);
        }
        self.state.progress.step += 1;
        self.state.progress.images += share.batch as u64;
        self.state.progress.time_sampler = self.time_sampler.state().cloned();
        Ok(report)
    }

    /// Whether gradients of other processes are added while this one's is computed: all processes come to the same answer.
    fn sums_meanwhile(&self, micro: usize) -> bool {
        let (is_shared, is_whole) = (self.ranks.count() > 1, !self.ranks.shards());
        let in_one_pass = self.config.train.gradient_penalty == 0.0 && self.task.shards().count(micro) == 1;
        is_shared && is_whole && in_one_pass && self.task.device() == Device::Cpu
    }

    /// Waits for the newest step's end.
    ///
    /// # Errors
    /// [`Error::Diverged`] if its gradient was not finite.
    pub fn settle(&self) -> Result<(), Error> {
        match self.late.as_ref().map(Norm::get) {
            Some(norm) if !norm.is_finite() => {
                Err(Error::Diverged { step: self.state.progress.step, what: "gradient", last_good: None })
            }
            _ => Ok(()),
        }
    }

    /// AdamW and the averages, in place, from a gradient that is `scale` times too large; its norm.
    fn update(&mut self, gradient: (Gradient, Squares), lr: f64, scale: f64) -> Norm {
        let c = &self.config.train;
        let updates = self.state.progress.updates.unwrap_or(self.state.progress.step);
        let adamw = AdamW {
            lr,
            weight_decay: c.weight_decay,
            betas: c.adam_betas,
            eps: c.adam_eps,
            step: updates + 1,
            grad_scale: 1.0,
        };
        let clip = Clip { scale, max_norm: c.grad_clip };
        let most = if c.ema_warmup { (1 + updates) as f64 / (10 + updates) as f64 } else { 1.0 };
        let State { parameters, ema, posthoc, moments: [m, v], .. } = &mut self.state;
        let ema = ema.iter_mut().map(|(rate, average)| (rate.min(most), average));
        let by_power = |length: f64| posthoc::rate(posthoc::exponent(length), updates + 1);
        let by_powers = posthoc.iter_mut().map(|(length, average)| (by_power(*length), average));
        let mut averages: Vec<(f64, &mut Parameters)> = ema.chain(by_powers).collect();
        let part = self.ranks.part(self.ranks.rank(), parameters.layout().len());
        ddpm_net::update(&adamw, clip, (parameters, part), gradient, [m, v], &mut averages)
    }
}
