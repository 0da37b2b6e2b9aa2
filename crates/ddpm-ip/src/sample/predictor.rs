//! What answers for noised images: a network, or in its place a function whose exact answer is known.

use ddpm_net::network::{Network, Unet};
use ddpm_net::{Engine, Feed, Parameters};

/// Something that predicts ε (or what else [`ddpm_math::Prediction`] has) for noised images.
pub trait Predictor: Sync {
    /// The answer `[N, C or 2C, H, W]` to images `x` `[N, C, H, W]` at `times` `[N]` as networks are told them. `labels` `[N]`
    /// and `low_res` `[N, C, H, W]` are for networks that want them; others ignore them.
    fn predict(&self, x: &[f32], times: &[f32], labels: Option<&[u32]>, low_res: Option<&[f32]>) -> Vec<f32>;

    /// Jᵀu `[N, C, H, W]`, image by image, where J is the derivative of the answer's first C channels by x, and `u`
    /// `[N, C, H, W]`.
    fn pull_back(&self, x: &[f32], times: &[f32], labels: Option<&[u32]>, u: &[f32]) -> Vec<f32>;

    /// The network, if it is one.
    fn model(&self) -> Option<&Model<'_>> {
        None
    }
}

/// A network with parameters.
pub struct Model<'a> {
    /// The network.
    pub network: &'a Engine<Unet>,
    /// Its parameters.
    pub parameters: &'a Parameters,
    /// Rows and columns of an image.
    pub size: [usize; 2],
}

impl Model<'_> {
    pub(super) fn feed<'f>(
        &self,
        x: &'f [f32],
        times: &'f [f32],
        labels: Option<&'f [u32]>,
        low_res: Option<&'f [f32]>,
    ) -> Feed<'f> {
        let labels = self.network.network().config().num_classes.and(labels);
        Feed { labels, low_res, ..Feed::new(x, self.size, times) }
    }
}

impl Predictor for Model<'_> {
    fn predict(&self, x: &[f32], times: &[f32], labels: Option<&[u32]>, low_res: Option<&[f32]>) -> Vec<f32> {
        self.network.forward(self.parameters, self.feed(x, times, labels, low_res))
    }

    fn model(&self) -> Option<&Model<'_>> {
        Some(self)
    }

    fn pull_back(&self, x: &[f32], times: &[f32], labels: Option<&[u32]>, u: &[f32]) -> Vec<f32> {
        let per_image = u.len() / times.len();
        self.network.image_gradient(self.parameters, self.feed(x, times, labels, None), |images, output, grad| {
            let per_output = output.len() / images.len();
            let u = u[images.start * per_image..images.end * per_image].chunks_exact(per_image);
            grad.fill(0.0);
            for (grad, u) in grad.chunks_exact_mut(per_output).zip(u) {
                grad[..per_image].copy_from_slice(u);
            }
        })
    }
}
