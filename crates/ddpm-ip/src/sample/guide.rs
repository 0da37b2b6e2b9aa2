//! Classifier guidance (Dhariwal & Nichol, arXiv 2105.05233, section 4).

use crate::model::{Classifier, Parameters};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};

/// A classifier of noisy images that leads chains to classes.
pub struct Guide {
    classifier: Classifier,
    parameters: Parameters,
    scale: f64,
}

impl Guide {
    /// A guide whose gradient is multiplied by `scale`; the parameters are on a device without autodiff.
    pub fn new(classifier: Classifier, parameters: &Parameters, scale: f64) -> Self {
        Self { classifier, parameters: parameters.constant(), scale }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classifier.classes()
    }

    /// scale · ∇_x log p(label | x_t) for `x` `[N, C, H, W]` at times `[N]` as the networks see them.
    pub fn gradient(&self, x: Tensor<4>, times: &[f32], labels: &[u32]) -> Tensor<4> {
        let parts = self.classifier.shards().map(labels.len(), |part| {
            let labels: Vec<i64> = labels[part.clone()].iter().map(|&l| i64::from(l)).collect();
            let x = Tensor::from_inner(x.clone().narrow(0, part.start, part.len())).require_grad();
            let logits = self.classifier.forward(&self.parameters, x.clone(), &times[part.clone()], None);
            let labels = Tensor::<2, Int>::from_data(TensorData::new(labels, [part.len(), 1]), &x.device());
            let mut grads = log_softmax(logits, 1).gather(1, labels).sum().backward();
            x.grad_remove(&mut grads).expect("the logits depend on the images")
        });
        Tensor::cat(parts, 0) * self.scale
    }
}
