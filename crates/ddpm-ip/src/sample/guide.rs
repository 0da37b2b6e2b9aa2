//! Classifier guidance (Dhariwal & Nichol, arXiv 2105.05233, section 4).

use ddpm_math::cross_entropy;
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
