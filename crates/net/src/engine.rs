//! A network with its plans: batches in, outputs and gradients out.

use crate::backward::{With, differentiate};
use crate::device::{Context, Device, OnChip, RunPosition, Session, done};
use crate::graph::{Graph, Value};
use crate::kind::Precision;
use crate::network::{Network, Recorded, timestep_embedding};
use crate::plan::{GradientPlace, Plan, Plans};
use crate::shards::{Gradient, Shards, Tree, each};
use crate::state::Parameters;
use ddpm_cuda::{self as gpu, Address, Convolution, Gpu, Pass, Turn};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// The label of an image that the network is told no class of: no embedding is added.
pub const NO_CLASS: u32 = u32::MAX;

/// What a network is given for a batch of N images.
#[derive(Clone, Copy, Debug)]
pub struct Feed<'a> {
    /// Noisy images `[N, C, H, W]`.
    pub images: &'a [f32],
    /// Rows and columns of an image.
    pub size: [usize; 2],
    /// Times `[N]` as the network sees them.
    pub times: &'a [f32],
    /// Classes `[N]`, for a network that has them; [`NO_CLASS`] for an image without one.
    pub labels: Option<&'a [u32]>,
    /// Small images enlarged to `[N, C, H, W]`, for a network of super-resolution.
    pub low_res: Option<&'a [f32]>,
    /// Where in a run a training step is; without it there is no dropout.
    pub position: Option<RunPosition>,
}

impl<'a> Feed<'a> {
    /// Images without anything beside them.
    pub fn new(images: &'a [f32], size: [usize; 2], times: &'a [f32]) -> Self {
        Self { images, size, times, labels: None, low_res: None, position: None }
    }

    /// Images.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// The part for some of the images.
    #[must_use]
    pub fn part(&self, images: Range<usize>) -> Self {
        let per_image = self.images.len() / self.len().max(1);
        let planes = |all: &'a [f32]| &all[images.start * per_image..images.end * per_image];
        Self {
            images: planes(self.images),
            size: self.size,
            times: &self.times[images.clone()],
            labels: self.labels.map(|labels| &labels[images.clone()]),
            low_res: self.low_res.map(planes),
            position: self.position.map(|at| RunPosition { position: at.position + images.start as u64, ..at }),
        }
    }
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The output alone.
    Output,
    /// The gradient of the parameters.
    Training(GradientPlace),
    /// The gradient of the images.
    ImageGradient,
}

/// What a batch takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanMemory {
    /// Bytes in which one piece of the batch runs: activations, with the gradient where it lies over them.
    pub arena: usize,
    /// Pieces that run at once.
    pub arenas: usize,
    /// Bytes that the kernels keep, all threads together.
    pub scratch: usize,
    /// Bytes of weights that stay packed for the next batch.
    pub packed: usize,
}

/// Who is shown a gradient in parts, each as soon as the backward pass has completed it.
pub struct Parts<'a> {
    /// Values of a part at most.
    pub size: usize,
    /// Takes a part's place and values.
    pub ready: &'a mut dyn FnMut(Range<usize>, &[f32]),
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    n: usize,
    size: [usize; 2],
    purpose: Purpose,
    dropout: bool,
}

struct Planned {
    plan: Plan,
    recorded: Recorded,
    /// Takes the gradient of the output.
    seed: Option<Value>,
    /// The gradient of the images.
    of_images: Option<Value>,
}

/// A network on a device, with plans for the sizes of batches that it met last.
pub struct Engine<N> {
    network: N,
    device: Device,
    plans: Plans<Key, Planned>,
    /// Sinusoids of the times that it met, by their bits.
    sinusoids: Mutex<HashMap<u32, Vec<f32>>>,
}

impl<N: Network> Engine<N> {
    /// A network that has met no batch.
    pub fn new(network: N, device: Device) -> Self {
        Self { network, device, plans: Plans::default(), sinusoids: Mutex::default() }
    }

    /// The network.
    pub fn network(&self) -> &N {
        &self.network
    }

    /// How its batches are cut into pieces.
    pub fn shards(&self) -> Shards {
        Shards::new(self.network.parameter_count(), self.device)
    }

    /// Bytes that a batch of `n` images of that size takes on so many threads.
    pub fn memory(&self, n: usize, size: [usize; 2], purpose: Purpose, threads: usize) -> PlanMemory {
        let pieces = self.shards().count(n);
        let dropout = matches!(purpose, Purpose::Training(_));
        let planned = self.planned(Key { n: n.div_ceil(pieces), size, purpose, dropout });
        let arenas = pieces.min(threads);
        let [arena, scratch, packed] = self.device.plan_bytes(&planned.plan, threads);
        PlanMemory { arena, arenas, scratch, packed }
    }

    /// The convolutions that cuDNN computes for a batch on a chip that is not there, in their order, and the engine of each;
    /// nothing on another device.
    pub fn convolutions(&self, n: usize, size: [usize; 2], purpose: Purpose) -> Vec<(Convolution, Pass, gpu::Planned)> {
        let Device::Chip(chip) = self.device else { return Vec::new() };
        let dropout = matches!(purpose, Purpose::Training(_));
        done(OnChip::new(chip, &self.planned(Key { n, size, purpose, dropout }).plan)).convolutions
    }

    /// The device that it runs on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The sinusoids of times. Training and sampling meet the same few hundred again and again.
    fn embedding(&self, times: &[f32]) -> Vec<f32> {
        /// Times that are kept.
        const KEPT: usize = 4096;
        let config = self.network.config();
        let mut known = self.sinusoids.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > KEPT {
            known.clear();
        }
        let mut all = Vec::with_capacity(times.len() * config.model_channels);
        for &time in times {
            let own = || timestep_embedding(&[time], config.model_channels, config.family);
            all.extend_from_slice(known.entry(time.to_bits()).or_insert_with(own));
        }
        all
    }

    fn planned(&self, key: Key) -> Arc<Planned> {
        self.plans.get(key, || self.plan(key))
    }

    fn plan(&self, key: Key) -> Planned {
        let mut graph = Graph::new(Arc::clone(self.network.layout()));
        let recorded = self.network.record(&mut graph, key.n, key.size, key.dropout);
        let recompute = self.network.config().use_checkpoint;
        let (seed, of_images, place) = match key.purpose {
            Purpose::Output => (None, None, GradientPlace::Outside),
            Purpose::Training(place) => {
                let (seed, _) = differentiate(&mut graph, recorded.output, With::Parameters, recompute);
                (Some(seed), None, place)
            }
            Purpose::ImageGradient => {
                let (seed, made) = differentiate(&mut graph, recorded.output, With::Input(recorded.images), false);
                (Some(seed), made, GradientPlace::Outside)
            }
        };
        let wanted: Vec<Value> = [recorded.output].into_iter().chain(of_images).collect();
        // A GPU computes weight gradients beside what comes next, into a buffer of their own.
        let (place, slack) = if self.device.is_whole() { (GradientPlace::Outside, 8) } else { (place, 0) };
        let mut plan = Plan::with_slack(&graph, &wanted, place, slack);
        plan.split = self.network.config().precision == Precision::Bf16x3;
        Planned { plan, recorded, seed, of_images }
    }

    /// The network's output for a batch: planes `[N, out, H, W]`, or logits `[N, classes]`.
    ///
    /// # Panics
    /// If labels or small images are given to a network without them, or missing for one with; callers check user input
    /// before.
    pub fn forward(&self, parameters: &Parameters, feed: Feed) -> Vec<f32> {
        if feed.is_empty() {
            return Vec::new();
        }
        let mut parts = self.shards().map(feed.len(), |part| {
            let feed = feed.part(part);
            let dropout = feed.position.is_some();
            let planned = self.planned(Key { n: feed.len(), size: feed.size, purpose: Purpose::Output, dropout });
            let mut run = Run::new(self, &planned, parameters, feed);
            run.forward();
            run.read(planned.recorded.output).to_vec()
        });
        if parts.len() == 1 { parts.remove(0) } else { parts.concat() }
    }

    /// The gradient of the parameters for a batch, and what `loss` gives for each piece of it in turn. `loss` is called
    /// with the places of a piece's images in the batch and the network's output for them, and writes the gradient of the
    /// output. A batch that is `alone`, all that a step sees, needs least memory.
    ///
    /// # Panics
    /// As [`forward`](Self::forward), and of an empty batch.
    pub fn gradient<R: Send>(
        &self,
        parameters: &Parameters,
        feed: Feed,
        alone: bool,
        loss: impl Fn(Range<usize>, &[f32], &mut [f32]) -> R + Sync,
    ) -> (Gradient, Vec<R>) {
        let shards = self.shards();
        let count = shards.count(feed.len());
        let place = if alone && count == 1 { GradientPlace::Inside } else { GradientPlace::Outside };
        let tree = Tree::new(count);
        let made = each(count, |piece| {
            let images = shards.images(feed.len(), piece);
            let planned = self.planned_training(feed.part(images.clone()), place);
            let mut run = Run::new(self, &planned, parameters, feed.part(images.clone()));
            let result = run.both(|output, grad| loss(images, output, grad));
            (result, tree.add(piece, run.session.into_gradient()))
        });
        let (mut sum, mut results) = (None, Vec::with_capacity(count));
        for (result, gradient) in made {
            results.push(result);
            sum = sum.or(gradient);
        }
        (sum.expect("the last piece completes the sum"), results)
    }

    /// [`gradient`](Self::gradient) on the processor of a batch that is [one piece](Shards::count), which is shown in parts meanwhile.
    /// Their order depends on the network alone.
    ///
    /// # Panics
    /// As [`gradient`](Self::gradient), and on another device or of more than one piece.
    pub fn gradient_in_parts<R>(
        &self,
        parameters: &Parameters,
        feed: Feed,
        alone: bool,
        loss: impl FnOnce(Range<usize>, &[f32], &mut [f32]) -> R,
        parts: Parts,
    ) -> (Gradient, R) {
        assert_eq!(self.shards().count(feed.len()), 1, "pieces of a batch");
        let place = if alone { GradientPlace::Inside } else { GradientPlace::Outside };
        let planned = self.planned_training(feed, place);
        let mut run = Run::new(self, &planned, parameters, feed);
        run.forward();
        let result = run.answer(|output, grad| loss(0..feed.len(), output, grad));
        run.session.run_in_parts(run.context(), parts);
        (run.session.into_gradient(), result)
    }

    fn planned_training(&self, feed: Feed, place: GradientPlace) -> Arc<Planned> {
        let (n, size, dropout) = (feed.len(), feed.size, feed.position.is_some());
        self.planned(Key { n, size, purpose: Purpose::Training(place), dropout })
    }

    /// The GPU that it runs on, if it is one.
    pub fn gpu(&self) -> Option<&'static Gpu> {
        match self.device {
            Device::Cpu | Device::Chip(_) => None,
            Device::Cuda(gpu) => Some(gpu),
        }
    }

    /// [`forward`](Self::forward) on a GPU, between kernels of the caller's: `before` writes the images `[N, C, H, W]`, those
    /// of the feed are not looked at, and `after` reads the output. Both give work to the GPU, and wait for none.
    ///
    /// # Panics
    /// As [`forward`](Self::forward), and on another device.
    pub fn forward_between(
        &self,
        parameters: &Parameters,
        feed: Feed,
        before: impl FnOnce(&Turn, Address) -> gpu::Result<()>,
        after: impl FnOnce(&Turn, Address) -> gpu::Result<()>,
    ) {
        let key = Key { n: feed.len(), size: feed.size, purpose: Purpose::Output, dropout: feed.position.is_some() };
        let planned = self.planned(key);
        let mut run = Run::new(self, &planned, parameters, feed);
        run.call(planned.recorded.images, before);
        run.forward();
        run.call(planned.recorded.output, after);
    }

    /// [`gradient`](Self::gradient) on a GPU, between kernels of the caller's: `before` writes the images, `loss` reads the
    /// output (the first address) and writes its gradient (the second).
    ///
    /// # Panics
    /// As [`gradient`](Self::gradient), and on another device.
    pub fn gradient_between(
        &self,
        parameters: &Parameters,
        feed: Feed,
        before: impl FnOnce(&Turn, Address) -> gpu::Result<()>,
        loss: impl FnOnce(&Turn, [Address; 2]) -> gpu::Result<()>,
    ) -> Gradient {
        let planned = self.planned_training(feed, GradientPlace::Outside);
        let mut run = Run::new(self, &planned, parameters, feed);
        run.call(planned.recorded.images, before);
        run.forward();
        run.answer_between(loss);
        run.backward();
        run.session.into_gradient()
    }

    /// [`image_gradient`](Self::image_gradient) on a GPU, between kernels of the caller's: `before` writes the images, `loss`
    /// reads the output (the first address) and writes its gradient (the second), `after` reads the gradient of the images.
    ///
    /// # Panics
    /// As [`forward`](Self::forward), and on another device.
    pub fn image_gradient_between(
        &self,
        parameters: &Parameters,
        feed: Feed,
        before: impl FnOnce(&Turn, Address) -> gpu::Result<()>,
        loss: impl FnOnce(&Turn, [Address; 2]) -> gpu::Result<()>,
        after: impl FnOnce(&Turn, Address) -> gpu::Result<()>,
    ) {
        let planned =
            self.planned(Key { n: feed.len(), size: feed.size, purpose: Purpose::ImageGradient, dropout: false });
        let mut run = Run::new(self, &planned, parameters, feed);
        run.call(planned.recorded.images, before);
        run.forward();
        run.answer_between(loss);
        run.backward();
        run.call(planned.of_images.expect("the output depends on the images"), after);
    }

    /// The gradient of the images `[N, C, H, W]` of what `loss` gives, which is called as in [`gradient`](Self::gradient).
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn image_gradient(
        &self,
        parameters: &Parameters,
        feed: Feed,
        loss: impl Fn(Range<usize>, &[f32], &mut [f32]) + Sync,
    ) -> Vec<f32> {
        let parts = self.shards().map(feed.len(), |images| {
            let feed = feed.part(images.clone());
            let key = Key { n: feed.len(), size: feed.size, purpose: Purpose::ImageGradient, dropout: false };
            let planned = self.planned(key);
            let mut run = Run::new(self, &planned, parameters, feed);
            run.both(|output, grad| loss(images, output, grad));
            run.read(planned.of_images.expect("the output depends on the images")).to_vec()
        });
        parts.concat()
    }
}

/// One run of a plan on a batch.
struct Run<'a, N> {
    engine: &'a Engine<N>,
    planned: &'a Planned,
    feed: Feed<'a>,
    session: Session<'a>,
}

impl<'a, N: Network> Run<'a, N> {
    fn new(engine: &'a Engine<N>, planned: &'a Planned, parameters: &'a Parameters, feed: Feed<'a>) -> Self {
        Self { engine, planned, feed, session: Session::new(engine.device, &planned.plan, parameters) }
    }

    fn read(&mut self, value: Value) -> &[f32] {
        self.session.read(self.planned.plan.slot(value).expect("a value that was asked for"))
    }

    fn fill(&mut self, value: Value, values: &[f32]) {
        if let Some(slot) = self.planned.plan.slot(value) {
            self.session.fill(slot, values);
        }
    }

    fn context(&self) -> Context<'a> {
        Context { labels: self.feed.labels, position: self.feed.position }
    }

    fn forward(&mut self) {
        let (config, feed, recorded) = (self.engine.network.config(), self.feed, self.planned.recorded);
        assert_eq!(
            feed.labels.is_some(),
            config.num_classes.is_some(),
            "labels if and only if the network has classes"
        );
        assert_eq!(feed.low_res.is_some(), config.low_res, "small images if and only if the network enlarges them");
        if !feed.images.is_empty() {
            self.fill(recorded.images, feed.images);
        }
        if let Some((value, low_res)) = recorded.low_res.zip(feed.low_res) {
            self.fill(value, low_res);
        }
        self.fill(recorded.times, &self.engine.embedding(feed.times));
        let context = self.context();
        self.session.run(true, context);
    }

    /// Forward and backward pass, with what gives the gradient of the output between.
    fn both<R>(&mut self, loss: impl FnOnce(&[f32], &mut [f32]) -> R) -> R {
        self.forward();
        let result = self.answer(loss);
        self.backward();
        result
    }

    fn answer<R>(&mut self, loss: impl FnOnce(&[f32], &mut [f32]) -> R) -> R {
        let plan = &self.planned.plan;
        let seed = self.planned.seed.and_then(|seed| plan.slot(seed)).expect("a plan with a backward pass");
        let output = plan.slot(self.planned.recorded.output).expect("a plan with an output");
        self.session.answer(output, seed, loss)
    }

    fn backward(&mut self) {
        let context = self.context();
        self.session.run(false, context);
    }

    /// Gives the GPU work that reads the output and writes its gradient.
    fn answer_between(&self, loss: impl FnOnce(&Turn, [Address; 2]) -> gpu::Result<()>) {
        let seed = self.planned.seed.expect("a plan with a backward pass");
        let [output, grad] = [self.planned.recorded.output, seed].map(|value| self.place(value).1);
        done(loss(self.place(seed).0, [output, grad]));
    }

    /// Where a value lies on a GPU.
    fn place(&self, value: Value) -> (&Turn, Address) {
        self.session.place(self.planned.plan.slot(value).expect("a value of the plan's edge"))
    }

    /// Gives the GPU work on a value.
    fn call(&self, value: Value, work: impl FnOnce(&Turn, Address) -> gpu::Result<()>) {
        let (turn, at) = self.place(value);
        done(work(turn, at));
    }
}
