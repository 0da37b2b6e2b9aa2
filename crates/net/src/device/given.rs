//! What a run of a plan is given beside the plan.

use crate::packed::PackedWeights;
use crate::plan::Plan;
use crate::state::Parameters;

/// What a plan runs in.
pub(crate) struct Memory<'a> {
    /// At least as many bytes as the plan says.
    pub(crate) arena: &'a mut [u8],
    /// The network's parameters.
    pub(crate) parameters: &'a [f32],
    /// Where packed weights stay for the next run, if the parameters are not about to change.
    pub(crate) packed: Option<&'a PackedWeights>,
    /// The buffer of the gradient, if the plan has it outside.
    pub(crate) gradient: &'a mut [f32],
}

impl<'a> Memory<'a> {
    pub(crate) fn new(plan: &Plan, parameters: &'a Parameters, arena: &'a mut [u8], gradient: &'a mut [f32]) -> Self {
        // A gradient is there to change the parameters.
        let packed = (!plan.writes_gradient()).then(|| parameters.packed());
        Self { arena, parameters: parameters.values(), packed, gradient }
    }
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
