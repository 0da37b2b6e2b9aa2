//! Where plans run.

mod cpu;

use crate::plan::Plan;
use std::ops::Range;

/// A kind of device: which kernels run a plan's operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
}

impl Device {
    /// All that this build knows.
    pub const ALL: [Self; 1] = [Self::Cpu];

    /// Its name, as flags have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
        }
    }

    /// Runs some of a plan's steps.
    pub(crate) fn run(self, plan: &Plan, steps: Range<usize>, memory: Memory, context: Context) {
        match self {
            Self::Cpu => cpu::run(plan, steps, memory, context),
        }
    }
}

/// What a plan runs in.
pub(crate) struct Memory<'a> {
    /// At least as many bytes as the plan says.
    pub(crate) arena: &'a mut [u8],
    /// The network's parameters.
    pub(crate) parameters: &'a [f32],
    /// The buffer of the gradient, if the plan has it outside.
    pub(crate) gradient: &'a mut [f32],
}

/// What differs between two runs of a plan beside its inputs.
#[derive(Clone, Copy, Default)]
pub(crate) struct Context<'a> {
    /// The class of each image.
    pub(crate) labels: Option<&'a [u32]>,
    /// Where in a run the images stand; without it there is no dropout.
    pub(crate) position: Option<RunPosition>,
}

/// Where in a run a training step's images stand: an image's dropout masks depend on the seed, its position and the layer,
/// not on batch size, microbatches or threads.
#[derive(Clone, Copy, Debug)]
pub struct RunPosition {
    /// The run's seed.
    pub seed: u64,
    /// Images the run has seen before this batch's first.
    pub position: u64,
}
