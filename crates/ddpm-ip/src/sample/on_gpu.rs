//! Chains whose images stay on a GPU from x_T to the end.

use super::guidance::{both_labels, twice};
use super::{Chain, Model, Subjects, Weak};
use crate::diffusion::Clip;
use crate::train::pairs;
use ddpm_math::{Level, ReverseStep, Stage, Update};
use ddpm_net::NO_CLASS;
use ddpm_net::gpu::{Address, Arg, Buffer, Gpu, Mailbox, Result, Shape, Turn, args};
use ddpm_net::network::Network;

/// A chain that a GPU can take whole: noise from a seed, and nothing that looks at whole images (a dynamic threshold, the
/// variance that `time-shift` asks for).
pub(super) struct OnGpu<'a> {
    chain: &'a Chain<'a>,
    model: &'a Model<'a>,
    subjects: Subjects<'a>,
    gpu: &'static Gpu,
    seed: u64,
}

/// A batch's memory. Planes are `[N, C, H, W]`.
struct Memory {
    /// The images' numbers.
    images: Buffer,
    /// Their classes, where a classifier guides.
    labels: Option<Buffer>,
    x: Buffer,
    kept: Buffer,
    /// The prediction at hand and the two before it.
    x_start: [Buffer; 3],
    /// The gradient of a classifier.
    slopes: Option<Buffer>,
    /// The answers of a weaker network, or of the same without classes, where they are not those of one batch.
    weak: Option<Buffer>,
    /// Earlier predictions that there are.
    known: usize,
    /// What a step is told.
    words: Mailbox,
}

impl<'a> OnGpu<'a> {
    /// The chain on the GPU of its network, if that can take it.
    pub(super) fn new(chain: &'a Chain<'a>, subjects: Subjects<'a>) -> Option<Self> {
        let model = chain.network.model()?;
        let (gpu, seed) = (model.network.gpu()?, subjects.draws.seed()?);
        let reverse = chain.reverse;
        let whole = reverse.corrections.wants_variance() || matches!(reverse.clip, Clip::Dynamic(_));
        let mut elsewhere = chain.guide.is_some_and(|guide| guide.gpu() != Some(gpu));
        if let Some(Weak::Network(weak)) = chain.guidance.map(|guidance| guidance.weak) {
            elsewhere |= weak.model().and_then(|model| model.network.gpu()) != Some(gpu);
        }
        (!whole && !elsewhere).then_some(Self { chain, model, subjects, gpu, seed })
    }

    /// [`Chain::draw`].
    pub(super) fn run(&self, mut each: impl FnMut(usize) -> bool) -> Result<Option<Vec<f32>>> {
        let Chain { diffusion, reverse, .. } = *self.chain;
        let mut memory = self.begin()?;
        let mut begins = None;
        for stage in reverse.rule.stages(&diffusion.schedule, diffusion.schedule.len() - 1) {
            self.take(&stage, &mut memory)?;
            let level = *begins.get_or_insert(stage.level);
            if stage.ends_step {
                self.correct(level, &memory)?;
                begins = None;
            }
            if matches!(stage.update, Update::Mix { .. }) {
                memory.x_start.rotate_right(1);
                memory.known = (memory.known + 1).min(2);
            }
            if stage.ends_step && !each(stage.step + 1) {
                return Ok(None);
            }
        }
        memory.x.download(self.values() * self.subjects.images.len()).map(Some)
    }

    /// Values of an image.
    fn values(&self) -> usize {
        self.chain.shape.iter().product()
    }

    /// Values of a network's answer to an image.
    fn outputs(&self, model: &Model) -> usize {
        let [_, height, width] = self.chain.shape;
        height * width * model.network.network().config().out_channels
    }

    /// The network whose answer is the weaker one.
    fn weak_model<'m>(&'m self, weak: Weak<'m>) -> &'m Model<'m> {
        match weak {
            Weak::Unconditional { .. } => self.model,
            Weak::Network(weak) => weak.model().expect("checked at the beginning"),
        }
    }

    fn begin(&self) -> Result<Memory> {
        let (n, values) = (self.subjects.images.len(), self.values());
        let plane = || self.gpu.alloc(4 * n * values);
        let (labels, slopes) = match (self.chain.guide, self.subjects.labels) {
            (Some(_), Some(labels)) => (Some(self.gpu.upload(labels)?), Some(plane()?)),
            _ => (None, None),
        };
        let weak = match self.chain.guidance.map(|guidance| guidance.weak) {
            None | Some(Weak::Unconditional { together: true }) => None,
            Some(weak) => Some(self.gpu.alloc(4 * n * self.outputs(self.weak_model(weak)))?),
        };
        let memory = Memory {
            images: self.gpu.upload(self.subjects.images)?,
            labels,
            x: plane()?,
            kept: plane()?,
            x_start: [plane()?, plane()?, plane()?],
            slopes,
            weak,
            known: 0,
            words: Mailbox::new(self.gpu, size_of::<[u32; 32]>())?,
        };
        let turn = self.gpu.turn()?;
        let args = args![memory.x.address(), memory.images.address(), self.seed as i64, values as i32];
        turn.launch("initial_noise", pairs(values, n), args)?;
        // Before anything is kept it counts for nothing.
        turn.clear(memory.kept.address(), 4 * n * values)?;
        drop(turn);
        Ok(memory)
    }

    /// One stage, as [`Walk`](super::Walk) takes it.
    fn take(&self, stage: &Stage, memory: &mut Memory) -> Result<()> {
        let Chain { diffusion, reverse, guide, guidance, shape: [_, height, width], .. } = *self.chain;
        let (n, values, corrections) = (self.subjects.images.len(), self.values(), &reverse.corrections);
        let (all, count, seed, number) = (pairs(values, n), values as i32, self.seed as i64, stage.step as i32);
        let (bytes, x, images) = (4 * n * values, memory.x.address(), memory.images.address());
        let noise_scale = corrections.noise() as f32;
        if let Some([of_x, of_noise]) = stage.churn.map(|c| c.map(|v| v as f32)) {
            let args = args![x, of_x, of_noise * noise_scale, images, seed, number, count];
            self.gpu.turn()?.launch("churn", all, args)?;
        }
        let mut slopes = Address::NULL;
        if let (Some(guide), Some(labels), Some(buffer)) = (guide, &memory.labels, &memory.slopes) {
            slopes = buffer.address();
            let times = vec![diffusion.model_time(stage.level.time); n];
            guide.gradient_on_gpu([height, width], &times, [x, labels.address(), slopes], bytes);
        }
        let step = ReverseStep::new(&diffusion.schedule, diffusion.prediction, diffusion.variance, stage);
        let call = corrections.call(&diffusion.schedule, stage);
        let own = step.reading();
        let seen = if call.input == 1.0 { *own } else { own.moved(call.level) };
        let words = step.words(matches!(reverse.clip, Clip::Range).then_some(1.0));
        let [newer, older] =
            [1, 2].map(|i| if i <= memory.known { memory.x_start[i].address() } else { Address::NULL });
        let (network, x_start, kept) = (self.model.network, memory.x_start[0].address(), memory.kept.address());
        let outputs = self.outputs(self.model) as i32;
        let (input, divisor) = (call.input as f32, call.eps as f32);
        let show = |turn: &Turn, to: Address| match call.input {
            1.0 => turn.copy(to, x, bytes),
            _ => turn.launch("scaled", all, args![x, to, input, count]),
        };
        let guidance = guidance.filter(|guidance| guidance.rule.acts_at(stage.level));
        let together = matches!(guidance.map(|guidance| guidance.weak), Some(Weak::Unconditional { together: true }));
        let times = vec![diffusion.model_time(call.time); if together { 2 * n } else { n }];
        let Subjects { labels, low_res, .. } = self.subjects;
        let unlabelled = vec![NO_CLASS; n];
        if let (Some(guidance), Some(buffer)) = (guidance, &memory.weak) {
            let model = self.weak_model(guidance.weak);
            let labels = if matches!(guidance.weak, Weak::Network(_)) { labels } else { Some(&unlabelled[..]) };
            let size = 4 * n * self.outputs(model);
            let keep = |turn: &Turn, output| turn.copy(buffer.address(), output, size);
            model.network.forward_between(model.parameters, model.feed(&[], &times, labels, low_res), show, keep);
        }
        let both = together.then(|| (both_labels(labels, n), low_res.map(twice)));
        let (labels, low_res) = match &both {
            Some((labels, low_res)) => (Some(&labels[..]), low_res.as_deref()),
            None => (labels, low_res),
        };
        network.forward_between(
            self.model.parameters,
            self.model.feed(&[], &times, labels, low_res),
            |turn, to| {
                show(turn, to)?;
                if together { show(turn, to.at(bytes)) } else { Ok(()) }
            },
            |turn, output| {
                if let Some(guidance) = guidance {
                    let (weak, of_weak) = match &memory.weak {
                        Some(buffer) => (buffer.address(), self.outputs(self.weak_model(guidance.weak)) as i32),
                        None => (output.at(4 * n * outputs as usize), outputs),
                    };
                    let further = (guidance.rule.scale - 1.0) as f32;
                    turn.launch("guide", all, args![output, weak, further, count, outputs, of_weak])?;
                }
                if !call.is_plain() {
                    let (own, seen) = (own.words(), seen.words());
                    let (own, seen) = (Arg::value(&own), Arg::value(&seen));
                    turn.launch("correct_answer", all, args![x, output, own, seen, input, divisor, count, outputs])?;
                }
                let step = memory.words.send(turn, &words)?;
                let scale = guide.map_or(0.0, |guide| guide.scale() as f32);
                let args = args![
                    x,
                    output,
                    x_start,
                    newer,
                    older,
                    kept,
                    slopes,
                    scale,
                    noise_scale,
                    step,
                    images,
                    seed,
                    number,
                    count,
                    outputs,
                ];
                turn.launch("reverse_step", all, args)
            },
        );
        Ok(())
    }

    /// What is corrected after a step that began at `level`.
    fn correct(&self, level: Level, memory: &Memory) -> Result<()> {
        let Chain { reverse, shape: [channels, height, width], .. } = *self.chain;
        let Some([low, high]) = reverse.corrections.dcw(level).map(|weights| weights.map(|v| v as f32)) else {
            return Ok(());
        };
        let planes = channels * self.subjects.images.len();
        let shape = Shape { grid: [planes, pairs(height * width, 1).grid[0]], ..pairs(0, 0) };
        let on_pixels = i32::from(reverse.corrections.dcw_on_pixels());
        let (x, x_start) = (memory.x.address(), memory.x_start[0].address());
        let args = args![x, x_start, low, high, on_pixels, height as i32, width as i32];
        self.gpu.turn()?.launch("dcw", shape, args)
    }
}
