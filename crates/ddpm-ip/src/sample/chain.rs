//! One batch of sampling chains.

use super::on_gpu::OnGpu;
use super::{Guidance, Guide, Predictor};
use crate::diffusion::{Diffusion, Reverse, StepInputs, StepOutputs, variance};
use ddpm_math::{Bands, Call, Domain, Stage, Stream, Update, haar_correct};
use rayon::prelude::*;
use std::borrow::Cow;

/// Where a chain's random numbers come from.
pub trait Draws: Sync {
    /// x_T of image `image`, into `values` `[C, H, W]`.
    fn initial(&self, image: u64, values: &mut [f32]);

    /// The noise that the `k`-th step taken (from 0) adds to image `image`, into `values` `[C, H, W]`.
    fn step(&self, image: u64, k: usize, values: &mut [f32]);

    /// The seed of [`Seeded`] noise, which a GPU can draw itself.
    fn seed(&self) -> Option<u64> {
        None
    }
}

/// Noise that depends on this seed, the image and the step alone.
pub struct Seeded(pub u64);

impl Draws for Seeded {
    fn initial(&self, image: u64, values: &mut [f32]) {
        Stream::new(self.0, Domain::Sample, image, 0).fill_normal(values);
    }

    fn step(&self, image: u64, k: usize, values: &mut [f32]) {
        Stream::new(self.0, Domain::SampleStep, image, k as u32).fill_normal(values);
    }

    fn seed(&self) -> Option<u64> {
        Some(self.0)
    }
}

/// Everything a chain needs but its images.
pub struct Chain<'a> {
    /// The process, respaced to the steps to take.
    pub diffusion: &'a Diffusion,
    /// The network.
    pub network: &'a dyn Predictor,
    /// How it samples.
    pub reverse: &'a Reverse,
    /// A classifier whose gradient leads the chain.
    pub guide: Option<&'a Guide>,
    /// A weaker answer that the network's is led away from.
    pub guidance: Option<&'a Guidance<'a>>,
    /// Channels, rows and columns of an image.
    pub shape: [usize; 3],
}

/// What a batch of chains is about.
#[derive(Clone, Copy)]
pub struct Subjects<'a> {
    /// The numbers of its images.
    pub images: &'a [u64],
    /// Their classes, where the network has classes or a classifier guides.
    pub labels: Option<&'a [u32]>,
    /// Their small images, enlarged `[N, C, H, W]`, where the network wants them.
    pub low_res: Option<&'a [f32]>,
    /// Their random numbers.
    pub draws: &'a dyn Draws,
}

/// A batch of chains on its way.
pub struct Walk<'a> {
    chain: &'a Chain<'a>,
    subjects: Subjects<'a>,
    stages: Vec<Stage>,
    /// Stages that are done.
    done: usize,
    x: Vec<f32>,
    kept: Option<Vec<f32>>,
    /// Predictions of x_0, the newest first.
    x_start: [Option<Vec<f32>>; 2],
}

/// A step that was taken, as its first network call saw it.
pub struct Taken {
    /// That call.
    pub stage: Stage,
    /// x `[N, C, H, W]` at the call's noise level.
    pub x: Vec<f32>,
    /// The network's answer `[N, C or 2C, H, W]`, guided, before corrections.
    pub output: Vec<f32>,
    /// The predicted x_0 `[N, C, H, W]`.
    pub x_start: Vec<f32>,
}

impl Chain<'_> {
    /// Draws the images `[N, C, H, W]`, on the network's GPU where that can take the whole chain.
    ///
    /// `each` is called after every step with the number of steps taken, and stops the chain by returning false; then there
    /// is no result.
    pub fn draw(&self, subjects: Subjects, mut each: impl FnMut(usize) -> bool) -> Option<Vec<f32>> {
        match OnGpu::new(self, subjects) {
            Some(chain) => ddpm_net::done(chain.run(each)),
            None => self.run(subjects, |step, _, _| each(step)),
        }
    }

    /// Draws the images: `[N, C, H, W]`.
    ///
    /// `each` is called after every step with the number of steps taken, x̂_0 and x, and stops the chain by returning
    /// false; then there is no result.
    pub fn run(&self, subjects: Subjects, mut each: impl FnMut(usize, &[f32], &[f32]) -> bool) -> Option<Vec<f32>> {
        let mut walk = Walk::new(self, subjects);
        while let Some(taken) = walk.step() {
            if !each(taken.stage.step + 1, &taken.x_start, &walk.x) {
                return None;
            }
        }
        Some(walk.x)
    }
}

impl<'a> Walk<'a> {
    /// Chains that begin with noise.
    pub fn new(chain: &'a Chain<'a>, subjects: Subjects<'a>) -> Self {
        let x = draw(chain, &subjects, |image, values| subjects.draws.initial(image, values));
        Self::begin(chain, subjects, x, chain.diffusion.schedule.len() - 1)
    }

    /// Chains that begin with `x` `[N, C, H, W]` at index `first` of the schedule.
    pub fn begin(chain: &'a Chain<'a>, subjects: Subjects<'a>, x: Vec<f32>, first: usize) -> Self {
        let stages = chain.reverse.rule.stages(&chain.diffusion.schedule, first);
        Self { chain, subjects, stages, done: 0, x, kept: None, x_start: [None, None] }
    }

    /// x now: `[N, C, H, W]`.
    pub fn x(&self) -> &[f32] {
        &self.x
    }

    /// The next stage; none at the end.
    pub fn next(&self) -> Option<&Stage> {
        self.stages.get(self.done)
    }

    /// Takes a step; none at the end.
    pub fn step(&mut self) -> Option<Taken> {
        let mut first = None;
        loop {
            let stage = *self.next()?;
            let taken = self.take(stage);
            self.done += 1;
            if stage.ends_step {
                // Of two predictions the later one is what the step ends with.
                let x_start = taken.x_start;
                let taken = Taken { x_start, ..first.unwrap_or(Taken { x_start: Vec::new(), ..taken }) };
                self.correct(&taken);
                return Some(taken);
            }
            first = Some(taken);
        }
    }

    /// One stage.
    fn take(&mut self, stage: Stage) -> Taken {
        let Chain { diffusion, network, reverse, guide, guidance, .. } = *self.chain;
        let Subjects { images, labels, low_res, draws } = self.subjects;
        let corrections = &reverse.corrections;
        let noise = || {
            let mut noise = draw(self.chain, &self.subjects, |image, values| draws.step(image, stage.step, values));
            let scale = corrections.noise() as f32;
            for v in &mut noise {
                *v *= scale;
            }
            noise
        };
        if let Some([of_x, of_noise]) = stage.churn.map(|c| c.map(|v| v as f32)) {
            let noise = noise();
            self.x.iter_mut().zip(noise).for_each(|(x, z)| *x = *x * of_x + z * of_noise);
        }
        let x = std::mem::take(&mut self.x);
        let call = corrections.call(&diffusion.schedule, &stage);
        let times = self.times(&stage, &call, &x);
        let seen = if call.input == 1.0 {
            Cow::Borrowed(&x)
        } else {
            Cow::Owned(x.iter().map(|&x| x * call.input as f32).collect())
        };
        let output = match guidance.filter(|guidance| guidance.rule.acts_at(stage.level)) {
            Some(guidance) => guidance.answer(network, &seen, &times, &self.subjects),
            None => network.predict(&seen, &times, labels, low_res),
        };
        let n = images.len();
        let gradient = guide.zip(labels).map(|(guide, labels)| {
            let time = diffusion.model_time(stage.level.time);
            guide.gradient(&x, [self.chain.shape[1], self.chain.shape[2]], &vec![time; n], labels)
        });
        let noise = stage.draws().then(noise);
        let corrected = (!call.is_plain()).then(|| diffusion.corrected(&stage, &call, n, &x, output.clone()));
        let inputs = StepInputs {
            output: corrected.as_deref().unwrap_or(&output),
            guidance: gradient.as_deref(),
            noise: noise.as_deref(),
            x_start: [self.x_start[0].as_deref(), self.x_start[1].as_deref()],
            kept: self.kept.as_deref(),
        };
        let StepOutputs { next, x_start, kept } = diffusion.step(reverse, &stage, n, &x, inputs);
        self.x = next;
        if matches!(stage.update, Update::Mix { .. }) {
            self.kept = Some(kept);
            self.x_start[1] = self.x_start[0].replace(x_start.clone());
        }
        Taken { stage, x, output, x_start }
    }

    /// The times that the network is told of each image.
    fn times(&self, stage: &Stage, call: &Call, x: &[f32]) -> Vec<f32> {
        let Chain { diffusion, reverse, .. } = self.chain;
        let n = self.subjects.images.len();
        if !reverse.corrections.wants_variance() {
            return vec![diffusion.model_time(call.time); n];
        }
        let last = (diffusion.schedule.original_steps() - 1) as f64;
        let time = |x: &[f32]| {
            let shift = reverse.corrections.time_shift(&diffusion.schedule, stage, variance(x));
            diffusion.model_time((call.time + shift).clamp(0.0, last))
        };
        x.par_chunks(x.len() / n).map(time).collect()
    }

    /// What is corrected after a step.
    fn correct(&mut self, taken: &Taken) {
        let Chain { reverse, shape: [_, height, width], .. } = self.chain;
        let Some(weights) = reverse.corrections.dcw(taken.stage.level) else { return };
        let [low, high] = weights.map(|v| v as f32);
        let planes = self.x.par_chunks_mut(height * width).zip(taken.x_start.par_chunks(height * width));
        planes.for_each(|(x, x_start)| {
            if reverse.corrections.dcw_on_pixels() {
                x.iter_mut().zip(x_start).for_each(|(x, x_start)| *x += low * (*x - x_start));
            } else {
                haar_correct(x, x_start, *height, *width, Bands { low, high });
            }
        });
    }
}

/// Random numbers for every image.
fn draw(chain: &Chain, subjects: &Subjects, fill: impl Fn(u64, &mut [f32]) + Sync) -> Vec<f32> {
    let per_image: usize = chain.shape.iter().product();
    let mut values = vec![0.0; subjects.images.len() * per_image];
    values.par_chunks_mut(per_image).zip(subjects.images).for_each(|(values, &image)| fill(image, values));
    values
}
