//! What a batch tells a network that is trained: the gradient, and the terms of the loss.

use super::penalty::Penalty;
use super::task::Task;
use super::trainer::{Draws, StepReport, Trainer};
use crate::data::Batch;
use crate::diffusion::Noised;
use crate::low_res;
use ddpm_math::{Domain, Stream, cross_entropy};
use ddpm_net::network::Network;
use ddpm_net::{Accumulator, Engine, Feed, Gradient, NO_CLASS, Parameters, Parts, RunPosition};
use std::borrow::Cow;
use std::ops::Range;

/// Loss terms by name, image by image.
type Terms = Vec<(&'static str, Vec<f64>)>;

/// [`Engine::gradient`], in parts if somebody waits for them.
fn differentiate<N: Network, R: Send>(
    engine: &Engine<N>,
    parameters: &Parameters,
    feed: Feed,
    alone: bool,
    parts: Option<Parts>,
    loss: impl Fn(Range<usize>, &[f32], &mut [f32]) -> R + Sync,
) -> (Gradient, Vec<R>) {
    let Some(parts) = parts else { return engine.gradient(parameters, feed, alone, loss) };
    let (gradient, made) = engine.gradient_in_parts(parameters, feed, alone, loss, parts);
    (gradient, vec![made])
}

/// What enters a network in a step.
struct Inputs<'a> {
    images: Vec<f32>,
    times: Vec<f32>,
    labels: Option<Cow<'a, [u32]>>,
    low_res: Option<Vec<f32>>,
    position: RunPosition,
}

impl Inputs<'_> {
    fn feed(&self, size: usize) -> Feed<'_> {
        Feed {
            images: &self.images,
            size: [size; 2],
            times: &self.times,
            labels: self.labels.as_deref(),
            low_res: self.low_res.as_deref(),
            position: Some(self.position),
        }
    }
}

impl Trainer {
    /// Adds the gradient of some images' share of the mean loss, times `scale`, to `gradients`; returns their loss terms.
    /// Images that are `alone` are all that the step sees. Those whose gradient is shown in `parts` are one piece on the processor, without
    /// gradient penalty.
    pub(super) fn gradient(
        &self,
        batch: &Batch,
        draws: &Draws,
        images: Range<usize>,
        alone: bool,
        scale: f64,
        (gradients, parts): (&mut Accumulator, Option<Parts>),
    ) -> Terms {
        let share = scale / self.share_of(draws.t.len()).batch as f64;
        let size = self.config.model.image_size;
        match &self.task {
            Task::Diffusion(engine) => {
                let config = engine.network().config();
                let on_gpu = self.gpu().filter(|_| draws.eps.is_empty());
                let noised = on_gpu.is_none().then(|| self.noised(batch, draws, &images));
                let inputs = Inputs {
                    images: noised.as_ref().map(|noised| noised.x_t.clone()).unwrap_or_default(),
                    times: self.diffusion.model_times(&draws.t[images.clone()]),
                    labels: config.num_classes.and_then(|_| self.labels(batch, &images)),
                    low_res: config.low_res.then(|| self.low_res(&batch.images, &images)),
                    position: self.position(batch, &images),
                };
                let weights: Vec<f64> =
                    draws.weights[images.clone()].iter().map(|w| f64::from((w * share) as f32)).collect();
                let (parameters, feed, per_image) = (&self.state.parameters, inputs.feed(size), self.per_image());
                let Some(noised) = noised else {
                    let gpu = on_gpu.expect("noised here or there");
                    let made = self.gradient_on_gpu(engine, gpu, (batch, draws, images), &weights, feed);
                    let (gradient, found) = ddpm_net::done(made);
                    gradients.add(gradient);
                    return loss_terms(&found);
                };
                let lambda = self.config.train.gradient_penalty;
                let penalty = (lambda > 0.0).then(|| {
                    Penalty::new(lambda, feed.images, per_image, inputs.position, |images| {
                        engine.forward(parameters, Feed { images, ..feed })
                    })
                });
                let alone = alone && penalty.is_none();
                let (gradient, found) = differentiate(engine, parameters, feed, alone, parts, |part, output, grad| {
                    let weights = &weights[part.clone()];
                    let terms = self.diffusion.losses(&noised, part.clone(), output, weights, Some(&mut *grad));
                    let slopes = penalty.as_ref().map_or_else(Vec::new, |penalty| {
                        let slopes = penalty.slopes(part, output);
                        penalty.differentiate(&slopes, weights, true, grad);
                        slopes
                    });
                    (terms, slopes)
                });
                gradients.add(gradient);
                let (found, slopes): (Vec<_>, Vec<_>) = found.into_iter().unzip();
                let mut found: Vec<ddpm_math::Terms> = found.concat();
                let penalties = penalty.map(|penalty| {
                    let slopes = slopes.concat();
                    let feed = Feed { images: &penalty.images, ..feed };
                    let (gradient, _) = engine.gradient(parameters, feed, alone, |part, _, grad| {
                        let slopes = &slopes[part.start * per_image..part.end * per_image];
                        grad.fill(0.0);
                        penalty.differentiate(slopes, &weights[part], false, grad);
                    });
                    gradients.add(gradient);
                    let values = penalty.values(&slopes);
                    found.iter_mut().zip(&values).for_each(|(terms, value)| terms.loss += value);
                    ("penalty", values)
                });
                loss_terms(&found).into_iter().chain(penalties).collect()
            }
            Task::Classifier(engine) => {
                let inputs = self.classifier_inputs(batch, draws, &images);
                let labels = &batch.labels.as_ref().map_or(&[][..], |l| &l[images]);
                let classes = engine.network().classes();
                let (parameters, feed) = (&self.state.parameters, inputs.feed(size));
                let (gradient, found) = differentiate(engine, parameters, feed, alone, parts, |part, logits, grad| {
                    classified(logits, &labels[part], classes, share, Some(grad))
                });
                gradients.add(gradient);
                named(&found.concat(), TRAIN)
            }
        }
    }

    /// Some of the images, noised by their draws.
    fn noised(&self, batch: &Batch, draws: &Draws, images: &Range<usize>) -> Noised {
        let place = images.start * self.per_image()..images.end * self.per_image();
        let xi = draws.xi.as_deref().map(|xi| &xi[place.clone()]);
        let (t, mixes) = (&draws.t[images.clone()], &draws.mixes[images.clone()]);
        self.diffusion.noise(&batch.images[place.clone()], t, mixes, &draws.eps[place], xi)
    }

    /// The classes of some images, as far as the network is told them.
    fn labels<'a>(&self, batch: &'a Batch, images: &Range<usize>) -> Option<Cow<'a, [u32]>> {
        let labels = &batch.labels.as_ref()?[images.clone()];
        let (seed, dropout) = (self.config.train.seed, self.config.train.label_dropout);
        if dropout == 0.0 {
            return Some(Cow::Borrowed(labels));
        }
        let told = |(i, &label): (usize, &u32)| {
            let position = batch.position + (images.start + i) as u64;
            let dropped = Stream::new(seed, Domain::LabelDropout, position, 0).uniform() < dropout;
            if dropped { NO_CLASS } else { label }
        };
        Some(labels.iter().enumerate().map(told).collect())
    }

    fn position(&self, batch: &Batch, images: &Range<usize>) -> RunPosition {
        RunPosition { seed: self.config.train.seed, position: batch.position + images.start as u64 }
    }

    /// What a super-resolution network sees of some images: made small, and enlarged again.
    fn low_res(&self, all: &[f32], images: &Range<usize>) -> Vec<f32> {
        let (per_image, m) = (self.per_image(), &self.config.model);
        let of_image = |i: usize| {
            let small = low_res::area_mean(&all[i * per_image..(i + 1) * per_image], m.image_size, m.small_size);
            low_res::enlarge(&small, m.small_size, m.image_size)
        };
        images.clone().flat_map(of_image).collect()
    }

    /// What a classifier sees of some images.
    fn classifier_inputs(&self, batch: &Batch, draws: &Draws, images: &Range<usize>) -> Inputs<'static> {
        let (images_seen, times) = if self.config.classifier.noised {
            let noised = self.noised(batch, draws, images);
            let times = self.diffusion.model_times(&noised.t);
            (noised.x_t, times)
        } else {
            let place = images.start * self.per_image()..images.end * self.per_image();
            (batch.images[place].to_vec(), vec![0.0; images.len()])
        };
        let position = self.position(batch, images);
        Inputs { images: images_seen, times, labels: None, low_res: None, position }
    }

    /// What the classifier makes of images that it is not trained on: their terms, noised by draws that depend on the seed
    /// and their position alone. Nothing for other networks.
    pub fn validate(&self, batch: &Batch) -> Option<StepReport> {
        let Task::Classifier(engine) = &self.task else { return None };
        let (seed, per_image) = (self.config.train.seed, self.per_image());
        let (count, steps) = (batch.images.len() / per_image, self.diffusion.schedule.len());
        let stream = |i: usize, step| Stream::new(seed, Domain::Validation, batch.position + i as u64, step);
        let t = (0..count).map(|i| stream(i, 0).below(steps as u64) as usize).collect();
        let mut eps = vec![0.0; count * per_image];
        eps.chunks_exact_mut(per_image).enumerate().for_each(|(i, values)| stream(i, 1).fill_normal(values));
        let mixes = vec![self.config.perturbation.mix(0.0); count];
        let draws = Draws { t, weights: vec![1.0; count], mixes, eps, xi: None };
        let mut report = StepReport { t: draws.t.clone(), weights: draws.weights.clone(), ..StepReport::default() };
        let inputs = self.classifier_inputs(batch, &draws, &(0..count));
        // No position: it is tried out without dropout.
        let feed = Feed { position: None, ..inputs.feed(self.config.model.image_size) };
        let logits = engine.forward(&self.state.parameters, feed);
        let labels = batch.labels.as_deref().unwrap_or_default();
        let found = classified(&logits, labels, engine.network().classes(), 1.0, None);
        report.extend(named(&found, VALIDATION));
        Some(report)
    }
}

/// The terms of diffusion's losses that there are, by name.
fn loss_terms(found: &[ddpm_math::Terms]) -> Terms {
    let of = |name, term: &dyn Fn(&ddpm_math::Terms) -> Option<f64>| {
        Some((name, found.iter().map(term).collect::<Option<Vec<f64>>>()?))
    };
    let terms = [of("loss", &|t| Some(t.loss)), of("mse", &|t| t.mse), of("vb", &|t| t.vb)];
    terms.into_iter().flatten().collect()
}

/// Of each image the cross entropy of its class, and whether this was among the first one and five. `grad` becomes the
/// derivative of Σ weight·entropy by the logits.
fn classified(
    logits: &[f32],
    labels: &[u32],
    classes: usize,
    weight: f64,
    mut grad: Option<&mut [f32]>,
) -> Vec<[f64; 3]> {
    let rows = logits.chunks_exact(classes).zip(labels).enumerate();
    rows.map(|(i, (row, &label))| {
        let grad = grad.as_deref_mut().map(|grad| &mut grad[i * classes..(i + 1) * classes]);
        let loss = cross_entropy(row, label as usize, weight, grad);
        // As many classes before the right one as have more, or as much and come first.
        let own = row[label as usize];
        let before = row.iter().enumerate().filter(|&(i, &v)| v > own || (v == own && i < label as usize)).count();
        let top = |k: usize| f64::from(u8::from(before < k));
        [loss, top(1), top(5)]
    })
    .collect()
}

fn named(found: &[[f64; 3]], names: [&'static str; 3]) -> Terms {
    names.into_iter().enumerate().map(|(i, name)| (name, found.iter().map(|terms| terms[i]).collect())).collect()
}

/// The reference's names of a classifier's terms.
const TRAIN: [&str; 3] = ["train_loss", "train_acc@1", "train_acc@5"];
const VALIDATION: [&str; 3] = ["val_loss", "val_acc@1", "val_acc@5"];
