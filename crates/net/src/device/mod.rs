//! Where plans run.

mod cpu;
mod given;

pub use given::RunPosition;
pub(crate) use given::{Context, Memory};

use crate::arena::Lease;
use crate::graph::Value;
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

    /// Runs a plan whole on inputs, and reads some of the values that it was made for.
    ///
    /// # Panics
    /// If an input has another length than was recorded.
    pub fn compute(self, plan: &Plan, parameters: &[f32], inputs: &[(Value, &[f32])], read: &[Value]) -> Vec<Vec<f32>> {
        let mut lease = Lease::new(plan.bytes());
        let arena = lease.bytes();
        for (value, values) in inputs {
            if let Some(slot) = plan.slot(*value) {
                bytemuck::cast_slice_mut(&mut arena[slot.bytes.clone()]).copy_from_slice(values);
            }
        }
        let memory = Memory { arena: &mut *arena, parameters, gradient: &mut [] };
        self.run(plan, 0..plan.steps.len(), memory, Context::default());
        let values = |value: &Value| {
            let slot = plan.slot(*value).expect("a value that was asked for");
            bytemuck::cast_slice(&arena[slot.bytes.clone()]).to_vec()
        };
        read.iter().map(values).collect()
    }

    /// Bytes that the kernels of a plan keep or take beside its memory on so many threads.
    pub(crate) fn scratch_bytes(self, plan: &Plan, threads: usize) -> usize {
        match self {
            Self::Cpu => cpu::scratch_bytes(plan, threads),
        }
    }

    /// Runs some of a plan's steps.
    pub(crate) fn run(self, plan: &Plan, steps: Range<usize>, memory: Memory, context: Context) {
        match self {
            Self::Cpu => cpu::run(plan, steps, memory, context),
        }
    }
}
