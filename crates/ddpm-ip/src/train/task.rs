//! What is trained, and what a batch tells it.

use super::StepReport;
use super::trainer::{Draws, Trainer};
use crate::config::{Config, Precision};
use crate::data::Batch;
use crate::model::{Classifier, Condition, Parameters, RunPosition, Shards, Spec, Unet, host_values, low_res};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use ddpm_math::{Domain, Stream};
use std::ops::Range;

/// A network and what it learns.
pub enum Task {
    /// To predict the noise of images.
    Diffusion(Unet),
    /// To tell the classes of noised images.
    Classifier(Classifier),
}

impl From<Unet> for Task {
    fn from(network: Unet) -> Self {
        Self::Diffusion(network)
    }
}

impl From<Classifier> for Task {
    fn from(network: Classifier) -> Self {
        Self::Classifier(network)
    }
}

impl Task {
    /// The network's parameters.
    pub fn specs(&self) -> &[Spec] {
        match self {
            Self::Diffusion(network) => network.specs(),
            Self::Classifier(network) => network.specs(),
        }
    }

    /// Number of values over all parameters.
    pub fn parameter_count(&self) -> usize {
        self.specs().iter().map(Spec::len).sum()
    }

    /// The type of its activations.
    pub(super) fn precision(&self, config: &Config) -> Precision {
        match self {
            Self::Diffusion(_) => config.model.precision,
            Self::Classifier(_) => config.classifier.precision,
        }
    }

    pub(crate) fn shards(&self) -> Shards {
        Shards { parameters: self.parameter_count() }
    }

    /// The network that predicts noise, if it is one.
    pub(crate) fn unet(&self) -> Option<&Unet> {
        match self {
            Self::Diffusion(network) => Some(network),
            Self::Classifier(_) => None,
        }
    }
}

/// Loss terms by name, image by image.
type Terms = Vec<(&'static str, Vec<f64>)>;

fn values(x: Tensor<1>) -> Vec<f64> {
    host_values(x).into_iter().map(f64::from).collect()
}

impl Trainer {
    /// The gradient of some images' share of the mean loss, times `scale`, and their loss terms.
    pub(super) fn gradient(
        &self,
        batch: &Batch,
        draws: &Draws,
        images: Range<usize>,
        scale: f64,
    ) -> (Parameters, Terms) {
        match &self.task {
            Task::Diffusion(network) => self.diffusion_gradient(network, batch, draws, images, scale),
            Task::Classifier(network) => {
                let parameters = self.state.parameters.tracked();
                let device = self.device.clone().autodiff();
                let share = scale / draws.t.len() as f64;
                let (loss, terms) = self.classify(network, &parameters, batch, draws, images, &device, &TRAIN);
                let mut grads = (loss.sum() * share).backward();
                (parameters.gradients(&mut grads), terms)
            }
        }
    }

    fn diffusion_gradient(
        &self,
        network: &Unet,
        batch: &Batch,
        draws: &Draws,
        images: Range<usize>,
        scale: f64,
    ) -> (Parameters, Terms) {
        let device = self.device.clone().autodiff();
        let noised = self.diffusion.noise(
            self.some(&batch.images, &images, &device),
            &draws.t[images.clone()],
            &draws.mixes[images.clone()],
            self.some(&draws.eps, &images, &device),
            draws.xi.as_deref().map(|xi| self.some(xi, &images, &device)),
        );
        let position = RunPosition { seed: self.config.train.seed, position: batch.position + images.start as u64 };
        let labels = network.config().num_classes.and(batch.labels.as_ref()).map(|l| &l[images.clone()]);
        let low_res = network.config().low_res.then(|| self.low_res(&batch.images, &images, &device));
        let condition = Condition { labels, low_res };
        let times = self.diffusion.model_times(&noised.t);
        let share = scale / draws.t.len() as f64;
        let weights: Vec<f32> = draws.weights[images.clone()].iter().map(|w| (w * share) as f32).collect();
        let weights = Tensor::<1>::from_data(TensorData::new(weights, [images.len()]), &device);
        let x_t = noised.x_t.clone();
        let (gradient, terms) = if network.config().use_checkpoint {
            let parameters = &self.state.parameters;
            let condition = Condition { low_res: condition.low_res.map(Tensor::inner), ..condition };
            let (output, kept) = network.forward_kept(parameters, x_t.inner(), &times, condition, Some(position));
            let output = Tensor::<4>::from_inner(output).require_grad();
            let terms = self.diffusion.losses(&noised, output.clone());
            let mut grads = (terms.loss.clone() * weights).sum().backward();
            let grad = output.grad_remove(&mut grads).expect("the loss depends on the output");
            (network.backward_kept(parameters, kept, grad), terms)
        } else {
            let tracked = self.state.parameters.tracked();
            let output = network.forward(&tracked, x_t, &times, condition, Some(position));
            let terms = self.diffusion.losses(&noised, output);
            let mut grads = (terms.loss.clone() * weights).sum().backward();
            (tracked.gradients(&mut grads), terms)
        };
        let named = [("loss", Some(terms.loss)), ("mse", terms.mse), ("vb", terms.vb)];
        (gradient, named.into_iter().filter_map(|(name, term)| Some((name, values(term?)))).collect())
    }

    /// Some of the images `[N, C, H, W]`.
    fn some(&self, all: &[f32], images: &Range<usize>, device: &Device) -> Tensor<4> {
        let (per_image, m) = (self.per_image(), &self.config.model);
        let values = all[images.start * per_image..images.end * per_image].to_vec();
        Tensor::from_data(TensorData::new(values, [images.len(), m.in_channels, m.image_size, m.image_size]), device)
    }

    /// What a super-resolution network sees of some images: made small, and enlarged again.
    fn low_res(&self, all: &[f32], images: &Range<usize>, device: &Device) -> Tensor<4> {
        let (per_image, m) = (self.per_image(), &self.config.model);
        let of_image = |i: usize| {
            let small = low_res::area_mean(&all[i * per_image..(i + 1) * per_image], m.image_size, m.small_size);
            low_res::enlarge(&small, m.small_size, m.image_size)
        };
        let values: Vec<f32> = images.clone().flat_map(of_image).collect();
        Tensor::from_data(TensorData::new(values, [images.len(), m.in_channels, m.image_size, m.image_size]), device)
    }

    /// A classifier's cross entropy on some images, and its terms: the loss and whether the class was among the first one
    /// and five.
    #[expect(clippy::too_many_arguments, reason = "training and validation differ in each")]
    fn classify(
        &self,
        network: &Classifier,
        parameters: &Parameters,
        batch: &Batch,
        draws: &Draws,
        images: Range<usize>,
        device: &Device,
        names: &[&'static str; 3],
    ) -> (Tensor<1>, Terms) {
        let x = self.some(&batch.images, &images, device);
        let t = &draws.t[images.clone()];
        let position = RunPosition { seed: self.config.train.seed, position: batch.position + images.start as u64 };
        let (x, times) = if self.config.classifier.noised {
            let eps = self.some(&draws.eps, &images, device);
            let xi = draws.xi.as_deref().map(|xi| self.some(xi, &images, device));
            let noised = self.diffusion.noise(x, t, &draws.mixes[images.clone()], eps, xi);
            (noised.x_t, self.diffusion.model_times(t))
        } else {
            (x, vec![0.0; images.len()])
        };
        let labels = batch.labels.as_ref().map_or(&[][..], |l| &l[images.clone()]);
        let logits = network.forward(parameters, x, &times, Some(position));
        let top = |k: usize| -> Vec<f64> {
            let all = host_values(logits.clone());
            let rows = all.chunks_exact(network.classes()).zip(labels);
            rows.map(|(row, &label)| {
                // As many classes before the right one as have more, or as much and come first.
                let own = row[label as usize];
                let before =
                    row.iter().enumerate().filter(|&(i, &v)| v > own || (v == own && i < label as usize)).count();
                f64::from(u8::from(before < k))
            })
            .collect()
        };
        let accuracies = [top(1), top(5)];
        let places: Vec<i64> = labels.iter().map(|&l| i64::from(l)).collect();
        let places = Tensor::<2, Int>::from_data(TensorData::new(places, [images.len(), 1]), device);
        let loss = log_softmax(logits, 1).gather(1, places).neg().reshape([images.len()]);
        let [first, five] = accuracies;
        let terms = vec![(names[0], values(loss.clone())), (names[1], first), (names[2], five)];
        (loss, terms)
    }

    /// What the classifier makes of images that it is not trained on: their terms, noised by draws that depend on the seed
    /// and their position alone. Nothing for other networks.
    pub fn validate(&self, batch: &Batch) -> Option<StepReport> {
        let Task::Classifier(network) = &self.task else { return None };
        let (seed, per_image) = (self.config.train.seed, self.per_image());
        let (count, steps) = (batch.images.len() / per_image, self.diffusion.schedule.len());
        let stream = |i: usize, step| Stream::new(seed, Domain::Validation, batch.position + i as u64, step);
        let t = (0..count).map(|i| stream(i, 0).below(steps as u64) as usize).collect();
        let mut eps = vec![0.0; count * per_image];
        eps.chunks_exact_mut(per_image).enumerate().for_each(|(i, values)| stream(i, 1).fill_normal(values));
        let mixes = vec![self.config.perturbation.mix(0.0); count];
        let draws = Draws { t, weights: vec![1.0; count], mixes, eps, xi: None };
        let mut report = StepReport { t: draws.t.clone(), weights: draws.weights.clone(), ..StepReport::default() };
        for terms in self.task.shards().map(count, |images| {
            self.classify(network, &self.state.parameters, batch, &draws, images, &self.device, &VALIDATION).1
        }) {
            report.extend(terms);
        }
        Some(report)
    }
}

/// The reference's names of a classifier's terms.
const TRAIN: [&str; 3] = ["train_loss", "train_acc@1", "train_acc@5"];
const VALIDATION: [&str; 3] = ["val_loss", "val_acc@1", "val_acc@5"];
