//! The instruments: what a network does on inputs of training, and what it does on states that it made itself.

use super::curve::{Curve, Estimate, PerPixel, SIGNIFICANT, over_pixels};
use super::readings::{Readings, StartStep};
use crate::diffusion::{Diffusion, Reverse};
use crate::sample::{Chain, Draws, Predictor, Seeded, Subjects, Taken, Walk};
use ddpm_math::{Domain, Level, Normality, Rule, Stage, Stream, haar_energy};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

/// The fewest images with which Shapiro and Wilk's test says anything.
pub const LEAST_IMAGES: usize = 20;

/// The most images, and the most pixels, that the test looks at.
const MOST_TESTED: (usize, usize) = (5000, 1024);

/// A shift that is known no better than to this share of the process is not measurable.
const COARSEST: f64 = 0.1;

/// A network, how it samples, and the images to measure it on.
pub struct Subject<'a> {
    /// The network.
    pub network: &'a dyn Predictor,
    /// The process, respaced to the steps to take.
    pub diffusion: &'a Diffusion,
    /// How it samples.
    pub reverse: &'a Reverse,
    /// Channels, rows and columns of an image.
    pub shape: [usize; 3],
    /// Images `[N, C, H, W]` in [-1, 1].
    pub x_start: &'a [f32],
    /// Their classes `[N]`, where the network has classes.
    pub labels: Option<&'a [u32]>,
    /// The variance of every pixel over the data `[C, H, W]`, within classes where the network has them.
    pub data_variance: &'a [f64],
    /// Images that go through the network together.
    pub batch: usize,
    /// Seed of all noise.
    pub seed: u64,
    /// Steps of the short chains.
    pub short: usize,
}

/// Measurements at one level on true x_t.
struct Truth {
    norms: Vec<f64>,
    bands: [Vec<[f64; 2]>; 2],
    errors: Vec<f32>,
}

/// Where the noise of an instrument comes from: its use, so that no two share any.
#[derive(Clone, Copy)]
enum Use {
    Truth,
    Direction,
    Short,
    Start,
}

impl Subject<'_> {
    /// Values of an image.
    fn per_image(&self) -> usize {
        self.shape.iter().product()
    }

    /// Images.
    fn count(&self) -> usize {
        self.x_start.len() / self.per_image()
    }

    fn batches(&self) -> impl Iterator<Item = Range<usize>> {
        let (n, batch) = (self.count(), self.batch);
        (0..n).step_by(batch).map(move |from| from..n.min(from + batch))
    }

    fn part<'a>(&self, all: &'a [f32], images: &Range<usize>) -> &'a [f32] {
        &all[images.start * self.per_image()..images.end * self.per_image()]
    }

    /// Reads all instruments. `ends` is given the images `[N, C, H, W]` that chains from some of the levels end with, and may
    /// say how far they are from real ones. `go_on` is told how many of how many parts are done, and stops it by returning false; then there are no
    /// readings.
    pub fn measure(
        &self,
        mut ends: impl FnMut(&[f32]) -> Option<f64>,
        mut go_on: impl FnMut(usize, usize) -> bool,
    ) -> Option<Readings> {
        let schedule = &self.diffusion.schedule;
        let levels = schedule.len();
        let starts = start_levels(levels);
        let (mut done, total) = (0, 2 * levels + 2 * starts.len());
        if !go_on(0, total) {
            return None;
        }
        let mut part_is_done = || {
            done += 1;
            go_on(done, total)
        };
        let images: Vec<u64> = (0..self.count() as u64).collect();
        let chain = self.chain(self.reverse);
        let draws = Seeded(self.seed);
        let mut walks: Vec<Walk> = self
            .batches()
            .map(|batch| {
                let subjects = self.subjects(&images, &batch, &draws);
                let noise = |image: u64, values: &mut [f32]| draws.initial(image, values);
                Walk::begin(&chain, subjects, self.noised(&batch, schedule.level(levels - 1), noise), levels - 1)
            })
            .collect();
        let mut found = Vec::new();
        for index in (0..levels).rev() {
            let stage = *walks[0].next().expect("a step for every level");
            let truth = self.truth(&stage);
            if !part_is_done() {
                return None;
            }
            let mut sampled = Sampled::default();
            for (walk, batch) in walks.iter_mut().zip(self.batches()) {
                let Taken { x, output, .. } = walk.step().expect("a step for every level");
                // Where corrections move the call, the network is asked once more, as training asks it.
                let moved = self.reverse.corrections.move_calls();
                let output = if moved { self.answer(&x, stage.level.time, &batch) } else { output };
                self.add(&mut sampled, &stage, &x, &output);
            }
            let above: Option<&AtLevel> = found.get((levels - 1 - index).wrapping_sub(self.short));
            let short = above.map(|above| self.short_chain(index, above));
            found.push(self.at_level(&stage, &truth, &sampled, short));
            if !part_is_done() {
                return None;
            }
        }
        found.reverse();
        let mut start = Vec::new();
        for index in starts {
            let mut distances = [[f64::NAN; 2]; 2];
            let mut frechet = Vec::new();
            for (kind, rule) in [Rule::Ddim { eta: 0.0 }, Rule::Ddpm].into_iter().enumerate() {
                let reverse = Reverse { rule, ..self.reverse.clone() };
                let last = self.chain_from(&reverse, index, index + 1, Use::Start);
                let d = self.per_image();
                let rms = |(x, x_start): (&[f32], &[f32])| {
                    (x.iter().zip(x_start).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / d as f64).sqrt()
                };
                let each: Vec<f64> = last.par_chunks(d).zip(self.x_start.par_chunks(d)).map(rms).collect();
                let Estimate { value, error } = Estimate::mean(&each);
                distances[kind] = [value, error];
                frechet.extend(ends(&last));
                if !part_is_done() {
                    return None;
                }
            }
            let [deterministic, stochastic] = distances;
            start.push(StartStep {
                t: schedule.times[index],
                deterministic,
                stochastic,
                frechet: frechet.try_into().ok(),
            });
        }
        Some(Self::readings(&found, start))
    }

    /// Reads the instruments at one index on states `[N, C, H, W]` from elsewhere, one for each image: all that needs no chain.
    pub fn measure_states(&self, index: usize, x: &[f32]) -> Readings {
        let schedule = &self.diffusion.schedule;
        let stages = self.reverse.rule.stages(schedule, schedule.len() - 1);
        let stage = stages.iter().find(|stage| stage.index == index).expect("a step for every level");
        let mut sampled = Sampled::default();
        for batch in self.batches() {
            let x = self.part(x, &batch);
            self.add(&mut sampled, stage, x, &self.answer(x, stage.level.time, &batch));
        }
        Self::readings(&[self.at_level(stage, &self.truth(stage), &sampled, None)], Vec::new())
    }

    fn readings(found: &[AtLevel], start: Vec<StartStep>) -> Readings {
        let curve = |of: &dyn Fn(&AtLevel) -> Estimate| found.iter().map(of).collect::<Curve>();
        let list = |of: &dyn Fn(&AtLevel) -> f64| found.iter().map(of).collect::<Vec<f64>>();
        Readings {
            t: list(&|l| l.level.time),
            alpha_bar: list(&|l| l.level.alpha_bar),
            prediction_error: curve(&|l| l.prediction_error),
            not_normal: list(&|l| l.not_normal),
            squared_error: curve(&|l| l.squared_error),
            variance_error: curve(&|l| l.variance_error),
            variance_error_floor: list(&|l| l.variance_error_floor),
            variance_error_excess: curve(&|l| l.variance_error_excess),
            variance_excess: curve(&|l| l.variance_excess),
            short_variance: curve(&|l| l.short.map_or(Estimate::NONE, |s| s.variance)),
            short_variance_floor: list(&|l| l.short.map_or(f64::NAN, |s| s.floor)),
            short_variance_excess: curve(&|l| l.short.map_or(Estimate::NONE, |s| s.excess)),
            norm_training: curve(&|l| l.norm_training),
            norm_sampling: curve(&|l| l.norm_sampling),
            effective_shift: curve(&|l| l.effective_shift),
            state_energy: [0, 1].map(|band| curve(&|l| l.state_energy[band])),
            x_start_energy: [0, 1].map(|band| curve(&|l| l.x_start_energy[band])),
            input_gradient: curve(&|l| l.input_gradient),
            start,
        }
    }

    fn chain<'a>(&'a self, reverse: &'a Reverse) -> Chain<'a> {
        let Self { diffusion, network, shape, .. } = *self;
        Chain { diffusion, network, reverse, guide: None, guidance: None, shape }
    }

    fn subjects<'a>(&'a self, images: &'a [u64], batch: &Range<usize>, draws: &'a dyn Draws) -> Subjects<'a> {
        let labels = self.labels.map(|labels| &labels[batch.clone()]);
        Subjects { images: &images[batch.clone()], labels, low_res: None, draws }
    }

    /// Some images at a noise level: √ᾱ x_0 + √(1 − ᾱ) ε.
    fn noised(&self, batch: &Range<usize>, level: Level, noise: impl Fn(u64, &mut [f32]) + Sync) -> Vec<f32> {
        let (d, signal, sigma) = (self.per_image(), level.alpha() as f32, level.sigma() as f32);
        let mut x = vec![0.0; batch.len() * d];
        let images = x.par_chunks_mut(d).zip(self.part(self.x_start, batch).par_chunks(d)).zip(batch.clone());
        images.for_each(|((x, x_start), image)| {
            noise(image as u64, x);
            x.iter_mut().zip(x_start).for_each(|(x, x_start)| *x = signal * x_start + sigma * *x);
        });
        x
    }

    /// The noise of an instrument.
    fn noise(&self, what: Use, index: usize) -> impl Fn(u64, &mut [f32]) + Sync + use<> {
        let (seed, step) = (self.seed, (index * 4 + what as usize) as u32);
        move |image, values| Stream::new(seed, Domain::Bias, image, step).fill_normal(values)
    }

    /// The network's answers for states x, told `time`.
    fn answer(&self, x: &[f32], time: f64, batch: &Range<usize>) -> Vec<f32> {
        let times = vec![self.diffusion.model_time(time); batch.len()];
        self.network.predict(x, &times, self.labels.map(|labels| &labels[batch.clone()]), None)
    }

    /// What is measured on true x_t.
    fn truth(&self, stage: &Stage) -> Truth {
        let mut truth = Truth { norms: Vec::new(), bands: [Vec::new(), Vec::new()], errors: Vec::new() };
        for batch in self.batches() {
            let x = self.noised(&batch, stage.level, self.noise(Use::Truth, stage.index));
            let output = self.answer(&x, stage.level.time, &batch);
            let [eps, x_start] = self.diffusion.read(self.reverse.clip, stage, batch.len(), &x, &output);
            truth.norms.extend(self.norms(&eps));
            truth.bands[0].extend(self.energies(&x));
            truth.bands[1].extend(self.energies(&x_start));
            let clean = self.part(self.x_start, &batch);
            truth.errors.extend(x_start.iter().zip(clean).map(|(a, b)| a - b));
        }
        truth
    }

    /// What is measured on states of some images, with the network's answers.
    fn add(&self, sampled: &mut Sampled, stage: &Stage, x: &[f32], output: &[f32]) {
        let n = x.len() / self.per_image();
        let [eps, x_start] = self.diffusion.read(self.reverse.clip, stage, n, x, output);
        sampled.norms.extend(self.norms(&eps));
        sampled.bands[0].extend(self.energies(x));
        sampled.bands[1].extend(self.energies(&x_start));
        sampled.x.extend_from_slice(x);
    }

    /// ‖ε‖₂ of every image.
    fn norms(&self, eps: &[f32]) -> Vec<f64> {
        let norm = |eps: &[f32]| eps.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        eps.par_chunks(self.per_image()).map(norm).collect()
    }

    /// The energies of every image's low and high bands; NaN where sides are odd.
    fn energies(&self, x: &[f32]) -> Vec<[f64; 2]> {
        let [channels, height, width] = self.shape;
        let of_image = |image: &[f32]| {
            if height % 2 + width % 2 > 0 {
                return [f64::NAN; 2];
            }
            let planes = image.chunks_exact(height * width).map(|plane| haar_energy(plane, height, width));
            planes.fold([0.0; 2], |sum, bands| {
                [sum[0] + bands.low / channels as f64, sum[1] + bands.high / channels as f64]
            })
        };
        x.par_chunks(self.per_image()).map(of_image).collect()
    }

    /// x_0 paired with states: x − √ᾱ x_0.
    fn residuals(&self, x: &[f32], level: Level) -> Vec<f32> {
        let signal = level.alpha() as f32;
        x.iter().zip(self.x_start).map(|(x, x_start)| x - signal * x_start).collect()
    }

    /// States less the mean of their class, stretched to the variance that they have within classes, as the data's is. One that
    /// is alone in its class says nothing and is left out.
    fn within_classes<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        let Some(labels) = self.labels else { return Cow::Borrowed(x) };
        let d = self.per_image();
        let mut classes: BTreeMap<u32, (f64, Vec<f64>)> = BTreeMap::new();
        for (x, &label) in x.chunks_exact(d).zip(labels) {
            let (count, sums) = classes.entry(label).or_insert_with(|| (0.0, vec![0.0; d]));
            *count += 1.0;
            sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        let kept: f64 = classes.values().map(|&(count, _)| count).filter(|&count| count > 1.0).sum();
        let mut within = Vec::with_capacity(x.len());
        for (x, label) in x.chunks_exact(d).zip(labels) {
            let (count, sums) = &classes[label];
            if *count > 1.0 {
                // Of all degrees of freedom one goes to each class's mean, and not one to all.
                let stretch = (count / (count - 1.0) * (kept - 1.0) / kept).sqrt();
                within.extend(x.iter().zip(sums).map(|(&x, sum)| ((f64::from(x) - sum / count) * stretch) as f32));
            }
        }
        Cow::Owned(within)
    }

    fn at_level(&self, stage: &Stage, truth: &Truth, sampled: &Sampled, short: Option<Short>) -> AtLevel {
        let (d, level) = (self.per_image(), stage.level);
        let errors = PerPixel::new(&truth.errors, d);
        let squares: Vec<f64> = truth
            .errors
            .par_chunks(d)
            .map(|e| e.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / d as f64)
            .collect();
        let noise = 1.0 - level.alpha_bar;
        let floor =
            over_pixels(&vec![[0.0; 2]; d], |p, _, _| (noise + 2.0 * level.alpha_bar * self.data_variance[p]).sqrt());
        let floor = (floor - noise.sqrt()).powi(2);
        let residuals = PerPixel::new(&self.residuals(&sampled.x, level), d);
        let off = residuals.estimate(|m| over_pixels(m, |_, _, variance| variance.sqrt()) - noise.sqrt());
        let variance_error = off.value.powi(2);
        // Near 0 a square is off by more than its slope says, and one that is small by chance by more than it says itself.
        let error = |square: f64| (4.0 * square * off.error.powi(2) + 2.0 * off.error.powi(4)).sqrt();
        let variance_excess = PerPixel::new(&self.within_classes(&sampled.x), d).estimate(|m| {
            over_pixels(m, |p, _, variance| variance - (level.alpha_bar * self.data_variance[p] + noise))
        });
        let (norm_training, norm_sampling) = (Estimate::mean(&truth.norms), Estimate::mean(&sampled.norms));
        AtLevel {
            level,
            prediction_error: errors.estimate(|m| over_pixels(m, |_, _, variance| variance.sqrt())),
            not_normal: self.not_normal(&truth.errors),
            squared_error: Estimate::mean(&squares),
            variance_error: Estimate { value: variance_error, error: error(variance_error) },
            variance_error_floor: floor,
            variance_error_excess: Estimate { value: variance_error - floor, error: error(variance_error.max(floor)) },
            variance_excess,
            short,
            norm_training,
            norm_sampling,
            effective_shift: self.effective_shift(stage, &truth.norms, norm_sampling),
            state_energy: [0, 1].map(|band| relative(&truth.bands[0], &sampled.bands[0], band)),
            x_start_energy: [0, 1].map(|band| relative(&truth.bands[1], &sampled.bands[1], band)),
            input_gradient: self.input_gradient(stage),
        }
    }

    /// The share of pixels with errors that are not normal.
    fn not_normal(&self, errors: &[f32]) -> f64 {
        let d = self.per_image();
        let n = self.count().min(MOST_TESTED.0);
        let Some(test) = Normality::new(n) else { return f64::NAN };
        let pixels: Vec<usize> = (0..d).step_by(d.div_ceil(MOST_TESTED.1)).collect();
        let p_of = |&pixel: &usize| {
            let mut values: Vec<f64> = errors.chunks_exact(d).take(n).map(|e| f64::from(e[pixel])).collect();
            test.test(&mut values).map(|found| found.p)
        };
        let ps: Vec<f64> = pixels.par_iter().filter_map(p_of).collect();
        ps.iter().filter(|&&p| p < 0.05).count() as f64 / ps.len() as f64
    }

    /// States at index `index`, or after the last step, of chains that begin `steps` before at index `first` at
    /// q(x_s | x_0).
    fn chain_from(&self, reverse: &Reverse, first: usize, steps: usize, what: Use) -> Vec<f32> {
        let images: Vec<u64> = (0..self.count() as u64).collect();
        let chain = self.chain(reverse);
        // The noise of steps is not that of the long chains.
        let draws = Seeded(self.seed ^ (1 << 63 | (first as u64) << 8 | what as u64));
        let mut ends = Vec::with_capacity(self.x_start.len());
        for batch in self.batches() {
            let x = self.noised(&batch, self.diffusion.schedule.level(first), self.noise(what, first));
            let mut walk = Walk::begin(&chain, self.subjects(&images, &batch, &draws), x, first);
            for _ in 0..steps {
                walk.step();
            }
            ends.extend_from_slice(walk.x());
        }
        ends
    }

    /// A short chain that ends at `index` and began at `above`.
    fn short_chain(&self, index: usize, above: &AtLevel) -> Short {
        let schedule = &self.diffusion.schedule;
        let (to, from) = (schedule.level(index), schedule.level(index + self.short));
        let x = self.chain_from(self.reverse, index + self.short, self.short, Use::Short);
        let residuals = PerPixel::new(&self.residuals(&x, to), self.per_image());
        let variance = residuals.estimate(|m| over_pixels(m, |_, _, variance| variance));
        let ancestral =
            matches!(self.reverse.rule, Rule::Ddpm | Rule::Ddim { eta: 1.0 } | Rule::DpmSolver { stochastic: true });
        if !ancestral {
            return Short { variance, floor: f64::NAN, excess: Estimate::NONE };
        }
        let b = to.alpha() * (1.0 - from.alpha_bar / to.alpha_bar) / (1.0 - from.alpha_bar);
        let gain = 2.0 * b * to.alpha();
        let floor = 1.0 - to.alpha_bar + gain * above.squared_error.value;
        let error = variance.error.hypot(gain * above.squared_error.error);
        Short { variance, floor, excess: Estimate { value: variance.value - floor, error } }
    }

    /// ‖J_x‖_F from the pull-back of a random sign for each value, whose square has ‖J_x‖²_F as its mean (Hutchinson 1990).
    fn input_gradient(&self, stage: &Stage) -> Estimate {
        let mut squares = Vec::new();
        for batch in self.batches() {
            let x = self.noised(&batch, stage.level, self.noise(Use::Truth, stage.index));
            let direction = self.noise(Use::Direction, stage.index);
            let mut u = vec![0.0; x.len()];
            u.par_chunks_mut(self.per_image()).zip(batch.clone()).for_each(|(u, image)| {
                direction(image as u64, u);
                for v in u {
                    *v = v.signum();
                }
            });
            let times = vec![self.diffusion.model_time(stage.level.time); batch.len()];
            let labels = self.labels.map(|labels| &labels[batch.clone()]);
            let pulled = self.network.pull_back(&x, &times, labels, &u);
            squares.extend(self.norms(&pulled).into_iter().map(|norm| norm * norm));
        }
        let Estimate { value, error } = Estimate::mean(&squares);
        Estimate { value: value.sqrt(), error: 0.5 * error / value.sqrt() }
    }

    /// The mean norm of the network's ε, told the stage's time, on states of q(x_s | x_0) with the noise of the true x_t,
    /// image by image.
    fn norms_at(&self, stage: &Stage, s: f64) -> Vec<f64> {
        let level = self.diffusion.schedule.level_at(s);
        let mut norms = Vec::new();
        for batch in self.batches() {
            let x = self.noised(&batch, level, self.noise(Use::Truth, stage.index));
            let output = self.answer(&x, stage.level.time, &batch);
            // What the network says is read as at t: it knows of no other level.
            let [eps, _] = self.diffusion.read(self.reverse.clip, stage, batch.len(), &x, &output);
            norms.extend(self.norms(&eps));
        }
        norms
    }

    /// By how much t has to be moved for true states to have the norm of sampled ones.
    fn effective_shift(&self, stage: &Stage, at_t: &[f64], sampled: Estimate) -> Estimate {
        let t = stage.level.time;
        let last = (self.diffusion.schedule.original_steps() - 1) as f64;
        let mut step = (last / 100.0).max(1.0);
        let t0 = Estimate::mean(at_t);
        // The slope decides on which side the wanted norm lies.
        let side = if t + step <= last { 1.0 } else { -1.0 };
        let beside = self.norms_at(stage, t + side * step);
        let change: Vec<f64> = beside.iter().zip(at_t).map(|(b, a)| b - a).collect();
        let change = Estimate::mean(&change);
        if change.value.is_nan() || change.deviations_from(0.0).abs() < SIGNIFICANT {
            return Estimate::NONE;
        }
        let slope = side * change.value / step;
        let gap = sampled.value - t0.value;
        let gap_error = sampled.error.hypot(t0.error);
        if gap_error.is_nan() || gap_error > COARSEST * last * slope.abs() {
            return Estimate::NONE;
        }
        let direction = (gap / slope).signum();
        let mut here = [t, t0.value];
        let mut there = here;
        let passed = |a: [f64; 2], b: [f64; 2]| (a[1] - sampled.value) * (b[1] - sampled.value) <= 0.0;
        // Steps out until the wanted norm is passed.
        loop {
            let s = (there[0] + direction * step).clamp(0.0, last);
            if s == there[0] {
                return Estimate::NONE;
            }
            here = there;
            there = [s, Estimate::mean(&self.norms_at(stage, s)).value];
            if passed(here, there) {
                break;
            }
            step *= 2.0;
        }
        let cut = |here: [f64; 2], there: [f64; 2]| {
            let slope = (there[1] - here[1]) / (there[0] - here[0]);
            [here[0] + (sampled.value - here[1]) / slope, slope]
        };
        // The norm bends little over one step, and a point or two more between take that out.
        for _ in 0..2 {
            let [s, _] = cut(here, there);
            if (s - here[0]).abs() < 0.01 || (s - there[0]).abs() < 0.01 {
                break;
            }
            let between = [s, Estimate::mean(&self.norms_at(stage, s)).value];
            if passed(here, between) { there = between } else { here = between }
        }
        let [s, local] = cut(here, there);
        // Where the norm bends on the way there, no shift at all is as likely as no gap.
        let error = gap_error / local.abs().min((gap / (s - t)).abs());
        if error <= COARSEST * last { Estimate { value: s - t, error } } else { Estimate::NONE }
    }
}

/// Measurements at one level on sampled x_t.
#[derive(Default)]
struct Sampled {
    x: Vec<f32>,
    norms: Vec<f64>,
    bands: [Vec<[f64; 2]>; 2],
}

#[derive(Clone, Copy)]
struct Short {
    variance: Estimate,
    floor: f64,
    excess: Estimate,
}

/// What is known of one level.
struct AtLevel {
    level: Level,
    prediction_error: Estimate,
    not_normal: f64,
    squared_error: Estimate,
    variance_error: Estimate,
    variance_error_floor: f64,
    variance_error_excess: Estimate,
    variance_excess: Estimate,
    short: Option<Short>,
    norm_training: Estimate,
    norm_sampling: Estimate,
    effective_shift: Estimate,
    state_energy: [Estimate; 2],
    x_start_energy: [Estimate; 2],
    input_gradient: Estimate,
}

/// By what share the mean energy of sampled images differs from that of true ones.
fn relative(truth: &[[f64; 2]], sampled: &[[f64; 2]], band: usize) -> Estimate {
    let [truth, sampled] = [truth, sampled].map(|all| Estimate::mean(&all.iter().map(|e| e[band]).collect::<Vec<_>>()));
    sampled.over(truth).less(1.0)
}

/// The levels from which chains begin: up to ten, evenly, the last among them.
fn start_levels(levels: usize) -> Vec<usize> {
    let count = levels.min(10);
    (1..=count).map(|k| k * levels / count - 1).collect()
}
