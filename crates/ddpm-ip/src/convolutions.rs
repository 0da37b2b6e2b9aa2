//! What cuDNN would take for a network's convolutions on a kind of GPU that is not there.

use crate::Device;
use crate::config::{Config, ConfigError};
use crate::train::Task;
use ddpm_net::gpu::{Convolution, Pass, Planned};
use ddpm_net::{GradientPlace, Purpose};
use serde::Serialize;

/// A convolution with its engine. Sizes are rows, columns and channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// What is computed: `plain`, `bias`, `residual + bias`, `input gradient` or `weight gradient`.
    pub pass: &'static str,
    /// The type of the operands.
    pub precision: &'static str,
    /// Images.
    pub images: usize,
    /// Size of the input.
    pub input: [usize; 3],
    /// Size of the output.
    pub output: [usize; 3],
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Step between output pixels.
    pub stride: usize,
    /// cuDNN's number of the engine.
    pub engine: i64,
    /// Bytes that it takes beside its operands.
    pub workspace: usize,
    /// Whether that holds a whole input or output: copies of operands that are laid out otherwise, or transformed.
    pub copies: bool,
    /// Whether its kernel is compiled when it is planned, not ready-made.
    pub compiled: bool,
    /// Whether it transforms tiles of the images.
    pub winograd: bool,
}

impl Choice {
    fn new((c, pass, planned): (Convolution, Pass, Planned)) -> Self {
        let pass = match pass {
            Pass::Plain => "plain",
            Pass::Bias => "bias",
            Pass::ResidualBias => "residual + bias",
            Pass::InputGrad => "input gradient",
            Pass::WeightGrad => "weight gradient",
        };
        let Convolution { kind, n: images, input, output, kernel, stride, .. } = c;
        let Planned { engine, workspace, compiled, winograd } = planned;
        let precision = kind.name();
        let tensor = |of: [usize; 3]| kind.bytes() * images * of.iter().product::<usize>();
        let copies = workspace >= tensor(input).min(tensor(output));
        Self { pass, precision, images, input, output, kernel, stride, engine, workspace, copies, compiled, winograd }
    }
}

fn choices(task: &Task, n: usize, config: &Config, purpose: Purpose) -> Vec<Choice> {
    let size = [config.model.image_size; 2];
    let all = match task {
        Task::Diffusion(engine) => engine.convolutions(n, size, purpose),
        Task::Classifier(engine) => engine.convolutions(n, size, purpose),
    };
    all.into_iter().map(Choice::new).collect()
}

/// The convolutions of a training step that cuDNN computes on a kind of GPU, in their order; none on another device.
///
/// # Errors
/// Flags that describe no network.
pub fn of_training(config: &Config, device: Device) -> Result<Vec<Choice>, ConfigError> {
    let microbatch = config.train.microbatch_size().min(config.train.batch_size);
    Ok(choices(&Task::new(config, device)?, microbatch, config, Purpose::Training(GradientPlace::Outside)))
}

/// The same of a sampling step.
///
/// # Errors
/// Flags that describe no network.
pub fn of_sampling(config: &Config, device: Device) -> Result<Vec<Choice>, ConfigError> {
    Ok(choices(&Task::new(config, device)?, config.sample.batch_size, config, Purpose::Output))
}
