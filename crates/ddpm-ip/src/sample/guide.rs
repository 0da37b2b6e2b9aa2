//! Classifier guidance (Dhariwal & Nichol, arXiv 2105.05233, section 4).

use ddpm_math::cross_entropy;
use ddpm_net::gpu::{Address, Gpu, Shape, args};
use ddpm_net::network::Classifier;
use ddpm_net::{Engine, Feed, Parameters};

/// A classifier of noisy images that leads chains to classes.
pub struct Guide {
    classifier: Engine<Classifier>,
    parameters: Parameters,
    scale: f64,
}

impl Guide {
    /// A guide whose gradient is multiplied by `scale`.
    pub fn new(classifier: Engine<Classifier>, parameters: Parameters, scale: f64) -> Self {
        Self { classifier, parameters, scale }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classifier.network().classes()
    }

    /// The GPU that it runs on, if it is one.
    pub(super) fn gpu(&self) -> Option<&'static Gpu> {
        self.classifier.gpu()
    }

    /// By what gradients are multiplied.
    pub(super) fn scale(&self) -> f64 {
        self.scale
    }

    /// ∇_x log p(label | x_t) on a GPU, without the scale, into the memory `to`, for images `x` in its memory; else as
    /// [`gradient`](Self::gradient).
    pub(super) fn gradient_on_gpu(&self, size: [usize; 2], times: &[f32], [x, labels, to]: [Address; 3], bytes: usize) {
        let (n, classes) = (times.len(), self.classes() as i32);
        self.classifier.image_gradient_between(
            &self.parameters,
            Feed::new(&[], size, times),
            |turn, images| turn.copy(images, x, bytes),
            |turn, [logits, grad]| {
                let shape = Shape { grid: [n, 1], block: 256, shared: 0 };
                turn.launch("class_slopes", shape, args![logits, grad, labels, classes])
            },
            |turn, gradient| turn.copy(to, gradient, bytes),
        );
    }

    /// scale · ∇_x log p(label | x_t), `[N, C, H, W]`, for `x` `[N, C, H, W]` of `size` rows and columns at times `[N]` as the
    /// networks see them.
    pub fn gradient(&self, x: &[f32], size: [usize; 2], times: &[f32], labels: &[u32]) -> Vec<f32> {
        let classes = self.classes();
        let feed = Feed::new(x, size, times);
        let mut gradient = self.classifier.image_gradient(&self.parameters, feed, |images, logits, grad| {
            let rows = logits.chunks_exact(classes).zip(grad.chunks_exact_mut(classes));
            for ((logits, grad), &label) in rows.zip(&labels[images]) {
                cross_entropy(logits, label as usize, -1.0, Some(grad));
            }
        });
        for v in &mut gradient {
            *v *= self.scale as f32;
        }
        gradient
    }
}
