//! One stage of a sampling chain on a batch.

use super::Diffusion;
use crate::config::{SampleConfig, SamplerKind};
use ddpm_math::{Call, Churn, Corrections, DdimStep, Pixel, ReverseStep, Rule, Stage, Stepped};
use rayon::prelude::*;

/// What becomes of a predicted image that leaves the range of pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clip {
    /// Nothing.
    None,
    /// It is clipped to [-1, 1].
    Range,
    /// It is clipped to what this share of its values' magnitudes keep, if that is more than 1, and divided by it: dynamic
    /// thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3).
    Dynamic(f64),
}

impl Clip {
    /// To what an image is clipped; `magnitudes` are those of its values, in any order.
    fn limit(self, magnitudes: impl Iterator<Item = f32>) -> Option<f32> {
        match self {
            Self::None => None,
            Self::Range => Some(1.0),
            Self::Dynamic(share) => {
                let mut sorted: Vec<f32> = magnitudes.collect();
                sorted.sort_unstable_by(f32::total_cmp);
                let place = share * (sorted.len() - 1) as f64;
                let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
                Some((below + (above - below) * place.fract() as f32).max(1.0))
            }
        }
    }
}

/// How a chain samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Reverse {
    /// The sampler.
    pub rule: Rule,
    /// What becomes of predicted images out of range.
    pub clip: Clip,
    /// Corrections of exposure bias.
    pub corrections: Corrections,
}

impl Reverse {
    /// What a configuration asks for.
    pub fn new(settings: &SampleConfig) -> Self {
        let churn = Churn { amount: settings.churn, least: settings.churn_min, most: settings.churn_max };
        Self {
            rule: match settings.sampler {
                SamplerKind::Ddpm => Rule::Ddpm,
                SamplerKind::Ddim => Rule::Ddim { eta: settings.eta },
                SamplerKind::DpmSolver => Rule::DpmSolver { stochastic: false },
                SamplerKind::DpmSolverSde => Rule::DpmSolver { stochastic: true },
                SamplerKind::UniPc => Rule::UniPc,
                SamplerKind::Heun => Rule::Heun(churn),
            },
            clip: match (settings.dynamic_threshold, settings.clip_denoised) {
                (share, _) if share > 0.0 => Clip::Dynamic(share),
                (_, true) => Clip::Range,
                (_, false) => Clip::None,
            },
            corrections: settings.correct.clone(),
        }
    }
}

/// What a stage takes beside x.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs<'a> {
    /// The network's output `[N, C or 2C, H, W]`.
    pub output: &'a [f32],
    /// The gradient of a classifier's log-probability `[N, C, H, W]`.
    pub guidance: Option<&'a [f32]>,
    /// A standard normal draw `[N, C, H, W]`, needed where [`Stage::draws`] says so.
    pub noise: Option<&'a [f32]>,
    /// Earlier predictions of x_0 `[N, C, H, W]`, the newest first, as far as there are any.
    pub x_start: [Option<&'a [f32]>; 2],
    /// The x `[N, C, H, W]` that was kept last.
    pub kept: Option<&'a [f32]>,
}

impl<'a> StepInputs<'a> {
    /// An output and nothing beside it.
    pub fn new(output: &'a [f32]) -> Self {
        Self { output, guidance: None, noise: None, x_start: [None; 2], kept: None }
    }
}

/// What a stage makes, each `[N, C, H, W]`.
#[derive(Clone, Debug, Default)]
pub struct StepOutputs {
    /// The next x.
    pub next: Vec<f32>,
    /// The predicted x_0.
    pub x_start: Vec<f32>,
    /// The x that is kept from here on.
    pub kept: Vec<f32>,
}

impl Diffusion {
    /// The network's answer `[N, C or 2C, H, W]` to `x` `[N, C, H, W]` with a correction's scales in it; the learned
    /// variance stays.
    pub fn corrected(&self, stage: &Stage, call: &Call, n: usize, x: &[f32], mut output: Vec<f32>) -> Vec<f32> {
        let own = self.stage(stage);
        let seen = own.reading().moved(call.level);
        // Where the network saw x itself its answer is read as always.
        let seen = if call.input == 1.0 { own.reading() } else { &seen };
        let (per_image, per_output) = (x.len() / n, output.len() / n);
        let (input, divisor) = (call.input as f32, call.eps as f32);
        output.par_chunks_mut(per_output).zip(x.par_chunks(per_image)).for_each(|(output, x)| {
            for (answer, &x) in output.iter_mut().zip(x) {
                *answer = own.reading().corrected(x, *answer, seen, input, divisor);
            }
        });
        output
    }

    /// What the network's answer `[N, C or 2C, H, W]` to `n` images `x` `[N, C, H, W]` at a stage's noise level says, without
    /// any correction: ε and x̂_0, each `[N, C, H, W]`.
    pub fn read(&self, clip: Clip, stage: &Stage, n: usize, x: &[f32], output: &[f32]) -> [Vec<f32>; 2] {
        let step = self.stage(stage);
        let reading = step.reading();
        let (per_image, per_output) = (x.len() / n, output.len() / n);
        let (mut eps, mut x_start) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let made = eps.par_chunks_mut(per_image).zip(x_start.par_chunks_mut(per_image));
        made.zip(x.par_chunks(per_image).zip(output.par_chunks(per_output))).for_each(
            |((eps, x_start), (x, output))| {
                let pixels = || x.iter().zip(output);
                let limit = clip.limit(pixels().map(|(&x, &answer)| reading.x_start(x, answer, None).abs()));
                for ((eps, x_start), (&x, &answer)) in eps.iter_mut().zip(x_start).zip(pixels()) {
                    (*eps, *x_start) = (reading.implied_eps(x, answer), reading.x_start(x, answer, limit));
                }
            },
        );
        [eps, x_start]
    }

    fn stage(&self, stage: &Stage) -> ReverseStep<f32> {
        ReverseStep::new(&self.schedule, self.prediction, self.variance, stage)
    }

    /// One stage for `n` images `x` `[N, C, H, W]`. The formulas stand in `ddpm_math::reverse`.
    pub fn step(&self, reverse: &Reverse, stage: &Stage, n: usize, x: &[f32], inputs: StepInputs) -> StepOutputs {
        let step = self.stage(stage);
        let (per_image, per_output) = (x.len() / n, inputs.output.len() / n);
        let mut made = StepOutputs { next: vec![0.0; x.len()], x_start: vec![0.0; x.len()], kept: vec![0.0; x.len()] };
        let images = made.next.par_chunks_mut(per_image).zip(made.x_start.par_chunks_mut(per_image));
        let images = images.zip(made.kept.par_chunks_mut(per_image)).zip(inputs.output.par_chunks(per_output));
        images.enumerate().for_each(|(image, (((next, x_start), kept), output))| {
            let place = image * per_image..(image + 1) * per_image;
            let x = &x[place.clone()];
            let [newer, older] = inputs.x_start;
            let [guidance, noise, last, newer, older] = [inputs.guidance, inputs.noise, inputs.kept, newer, older]
                .map(|all| all.map(|all| &all[place.clone()]));
            // A network without a learned variance has no second half.
            let values = if per_output > per_image { &output[per_image..] } else { output };
            let magnitude = |at: usize| step.reading().x_start(x[at], output[at], None).abs();
            let limit = reverse.clip.limit((0..per_image).map(magnitude));
            let step = self.with_shifted_end(reverse, stage, x, step);
            let or_0 = |all: Option<&[f32]>, at: usize| all.map_or(0.0, |all| all[at]);
            for at in 0..per_image {
                let pixel = Pixel {
                    x: x[at],
                    prediction: output[at],
                    values: values[at],
                    guidance: guidance.map(|guidance| guidance[at]),
                    noise: or_0(noise, at),
                    x_start: [or_0(newer, at), or_0(older, at)],
                    kept: or_0(last, at),
                };
                let stepped = step.step(pixel, limit);
                Stepped { next: next[at], x_start: x_start[at], kept: kept[at] } = stepped;
            }
        });
        made
    }

    /// The stage for one image, which `time-shift-released` may lead elsewhere.
    fn with_shifted_end(
        &self,
        reverse: &Reverse,
        stage: &Stage,
        x: &[f32],
        step: ReverseStep<f32>,
    ) -> ReverseStep<f32> {
        let Rule::Ddim { eta } = reverse.rule else { return step };
        let corrections = &reverse.corrections;
        let end =
            corrections.wants_variance().then(|| corrections.shifted_end(&self.schedule, stage, variance(x))).flatten();
        end.map_or(step, |end| step.with_ddim(DdimStep::between(stage.level.alpha_bar, end, eta)))
    }
}

/// The variance of values, unbiased.
pub fn variance(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / (n - 1.0)
}

/// Images in [-1, 1] `[N, C, H, W]` of `channels` channels and `pixels` pixels as bytes `[N, H, W, C]`: (x + 1)·127.5, clamped
/// and cut off as the reference does.
pub fn to_u8(x: &[f32], channels: usize, pixels: usize) -> Vec<u8> {
    let byte = |v: f32| ((v + 1.0) * 127.5).clamp(0.0, 255.0) as u8;
    let image = |image: &[f32], bytes: &mut Vec<u8>| {
        for pixel in 0..pixels {
            bytes.extend((0..channels).map(|c| byte(image[c * pixels + pixel])));
        }
    };
    let mut bytes = Vec::with_capacity(x.len());
    x.chunks_exact(channels * pixels).for_each(|planes| image(planes, &mut bytes));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_threshold_is_a_quantile_between_two_values_and_at_least_1() {
        let limit = |clip: Clip, values: &[f32]| clip.limit(values.iter().map(|v| v.abs()));
        // Of 5 magnitudes 0.6 stands for place 2.4 from 0.
        assert_eq!(limit(Clip::Dynamic(0.6), &[-4.0, 0.5, 2.0, -1.0, 3.0]), Some(2.0 + 0.4_f32));
        assert_eq!(limit(Clip::Dynamic(1.0), &[-4.0, 0.5]), Some(4.0));
        assert_eq!(limit(Clip::Dynamic(0.5), &[0.1, -0.2, 0.9]), Some(1.0));
        assert_eq!((limit(Clip::Range, &[9.0]), limit(Clip::None, &[9.0])), (Some(1.0), None));
    }
}
