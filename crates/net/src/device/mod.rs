//! Where plans run.

pub(crate) mod cpu;
pub(crate) mod cuda;
mod given;

pub use cuda::{AVERAGES as GPU_AVERAGES, accumulate};
pub(crate) use cuda::{OnChip, Program};
pub use given::RunPosition;
pub(crate) use given::{Context, Memory};

use crate::arena::Lease;
use crate::engine::Parts;
use crate::graph::Value;
use crate::kind::Precision;
use crate::plan::{GradientPlace, Plan, Slot};
use crate::shards::{Gradient, GradientMemory};
use crate::state::Parameters;
use ddpm_cuda::{Address, Buffer, Chip, Gpu, Note, Turn};
use ddpm_kernels::profile::{self, Work, timed};
use ddpm_kernels::{AdamW, optim};
use std::ops::Range;
use std::sync::Arc;

/// A kind of device: which kernels run a plan's operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU. Work on it that fails unwinds with a [`DeviceError`]: whoever starts a job on it does so in
    /// [`Device::guard`].
    Cuda(&'static Gpu),
    /// A kind of GPU that is not there. What a plan takes on it is known; what would run fails as on a GPU that is lost.
    Chip(&'static Chip),
}

/// What a device said when it failed. A run of a network that meets it unwinds with it, past all that could only pass it on;
/// whoever started the job [catches](Device::guard) it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DeviceError(#[from] pub ddpm_cuda::Error);

/// What a GPU did, or the way out of the job, to whoever [guards](Device::guard) it.
pub fn done<T>(result: ddpm_cuda::Result<T>) -> T {
    // Not a panic: no message is printed, and the job's starter has the error.
    result.unwrap_or_else(|e| std::panic::resume_unwind(Box::new(DeviceError(e))))
}

impl Device {
    /// Does a job that may meet a device's failure.
    ///
    /// # Errors
    /// The failure.
    pub fn guard<T>(job: impl FnOnce() -> T) -> Result<T, DeviceError> {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).map_err(|payload| {
            payload.downcast::<DeviceError>().map_or_else(|other| std::panic::resume_unwind(other), |e| *e)
        })
    }

    /// Whether it takes batches whole instead of in pieces.
    pub(crate) fn is_whole(self) -> bool {
        self != Self::Cpu
    }

    /// Runs a plan whole on inputs, and reads some of the values that it was made for.
    ///
    /// # Panics
    /// If an input has another length than was recorded.
    pub fn compute(
        self,
        plan: &Plan,
        parameters: &Parameters,
        inputs: &[(Value, &[f32])],
        read: &[Value],
    ) -> Vec<Vec<f32>> {
        let mut session = Session::new(self, plan, parameters);
        for (value, values) in inputs {
            if let Some(slot) = plan.slot(*value) {
                session.fill(slot, values);
            }
        }
        session.run(true, Context::default());
        session.run(false, Context::default());
        let values = |value: &Value| session.read(plan.slot(*value).expect("a value that was asked for")).to_vec();
        read.iter().map(values).collect()
    }

    /// What it reaches at best in a precision: operations per second, and bytes per second of memory that are read and written
    /// together.
    pub fn limits(self, precision: Precision) -> [f64; 2] {
        match self {
            Self::Cpu => {
                let arithmetic = match precision {
                    Precision::Bf16 => profile::peak_flop_per_sec(true),
                    // Three products make up one.
                    Precision::Bf16x3 if profile::has_tiles() => profile::peak_flop_per_sec(true) / 3.0,
                    _ => profile::peak_flop_per_sec(false),
                };
                [arithmetic, profile::peak_bytes_per_sec()]
            }
            Self::Cuda(gpu) => done(cuda::limits(gpu, precision)),
            Self::Chip(chip) => done(Err(chip.absent())),
        }
    }

    /// The most bytes of a GPU's memory that this process was given; nothing of the processor's.
    pub fn most_given(self) -> Option<usize> {
        match self {
            Self::Cpu | Self::Chip(_) => None,
            Self::Cuda(gpu) => Some(gpu.most_given()),
        }
    }

    /// Graphs, and kernels beside them, that a GPU has started so far; nothing of the processor's.
    pub fn started(self) -> Option<[usize; 2]> {
        match self {
            Self::Cuda(gpu) => Some(gpu.started()),
            Self::Cpu | Self::Chip(_) => None,
        }
    }

    /// Bytes of memory that a plan runs in, what its kernels keep or take beside it on so many threads, and packed weights.
    pub(crate) fn plan_bytes(self, plan: &Plan, threads: usize) -> [usize; 3] {
        match self {
            Self::Cpu => [plan.bytes(), cpu::scratch_bytes(plan, threads), cpu::packed_bytes(plan)],
            Self::Cuda(gpu) => [plan.bytes(), plan.program(gpu).bytes() - plan.bytes(), 0],
            Self::Chip(chip) => [plan.bytes(), done(OnChip::new(chip, plan)).bytes - plan.bytes(), 0],
        }
    }
}

/// One run of a plan.
pub(crate) enum Session<'a> {
    Cpu { plan: &'a Plan, parameters: &'a Parameters, arena: Lease, gradient: Option<Lease> },
    Cuda(cuda::Session<'a>),
}

impl<'a> Session<'a> {
    /// A run with these parameters.
    pub(crate) fn new(device: Device, plan: &'a Plan, parameters: &'a Parameters) -> Self {
        let len = parameters.layout().len();
        let outside = plan.writes_gradient() && (plan.gradient == GradientPlace::Outside || device.is_whole());
        match device {
            Device::Cpu => Self::Cpu {
                plan,
                parameters,
                arena: Lease::new(plan.bytes()),
                gradient: outside.then(|| Lease::new(4 * len)),
            },
            Device::Cuda(gpu) => Self::Cuda(cuda::Session::new(plan, gpu, parameters.gpu(gpu), outside.then_some(len))),
            Device::Chip(chip) => done(Err(chip.absent())),
        }
    }

    /// Gives a value.
    pub(crate) fn fill(&mut self, slot: &Slot, values: &[f32]) {
        match self {
            Self::Cpu { arena, .. } => {
                bytemuck::cast_slice_mut(&mut arena.bytes()[slot.bytes.clone()]).copy_from_slice(values);
            }
            Self::Cuda(session) => session.fill(slot, values),
        }
    }

    /// Runs the forward part, or the backward part.
    pub(crate) fn run(&mut self, forward: bool, context: Context) {
        match self {
            Self::Cpu { plan, parameters, arena, gradient } => {
                let gradient = gradient.as_mut().map_or(&mut [][..], |memory| memory.values(plan.layout.len()));
                let memory = Memory::new(plan, parameters, arena.bytes(), gradient);
                let steps = if forward { 0..plan.forward } else { plan.forward..plan.steps.len() };
                cpu::run(plan, steps, memory, context);
            }
            Self::Cuda(session) => session.run(forward, context),
        }
    }

    /// Runs the backward part on the processor, and shows the gradient in parts.
    pub(crate) fn run_in_parts(&mut self, context: Context, parts: Parts) {
        let Self::Cpu { plan, parameters, arena, gradient } = self else { panic!("a GPU completes no parts") };
        let mut done = plan.forward;
        for (steps, part) in plan.parts(parts.size) {
            let outside = gradient.as_mut().map(|memory| memory.values(plan.layout.len()));
            let memory = Memory::new(plan, parameters, arena.bytes(), outside.unwrap_or_default());
            cpu::run(plan, done..steps, memory, context);
            done = steps;
            let memory = gradient.as_mut().unwrap_or(arena);
            (parts.ready)(part.clone(), &memory.values(plan.layout.len())[part]);
        }
        let memory = Memory::new(plan, parameters, arena.bytes(), &mut []);
        cpu::run(plan, done..plan.steps.len(), memory, context);
    }

    /// A value.
    pub(crate) fn read(&mut self, slot: &Slot) -> &[f32] {
        match self {
            Self::Cpu { arena, .. } => bytemuck::cast_slice(&arena.bytes()[slot.bytes.clone()]),
            Self::Cuda(session) => session.read(slot),
        }
    }

    /// Looks at a value and gives another.
    pub(crate) fn answer<R>(&mut self, output: &Slot, seed: &Slot, with: impl FnOnce(&[f32], &mut [f32]) -> R) -> R {
        match self {
            Self::Cpu { arena, .. } => {
                let both = arena.bytes().get_disjoint_mut([output.bytes.clone(), seed.bytes.clone()]);
                let [output, seed] = both.expect("what lives at a time lies apart");
                with(bytemuck::cast_slice(output), bytemuck::cast_slice_mut(seed))
            }
            Self::Cuda(session) => session.answer(output, seed, with),
        }
    }

    /// Where a value lies on a GPU.
    pub(crate) fn place(&self, slot: &Slot) -> (&Turn, Address) {
        match self {
            Self::Cpu { .. } => panic!("the processor has no addresses to give"),
            Self::Cuda(session) => session.place(slot),
        }
    }

    /// The gradient of the parameters.
    pub(crate) fn into_gradient(self) -> Gradient {
        match self {
            Self::Cpu { plan, arena, gradient, .. } => {
                Gradient::new(GradientMemory::Host(gradient.unwrap_or(arena)), plan.layout.len())
            }
            Self::Cuda(session) => session.into_gradient(),
        }
    }
}

/// How a gradient is brought to its size.
#[derive(Clone, Copy, Debug)]
pub struct Clip {
    /// How many times too large it is: the loss scale.
    pub scale: f64,
    /// The norm to which a longer one is cut; 0 to cut none.
    pub max_norm: f64,
}

impl Clip {
    /// What a gradient of that norm (without the scale) is multiplied by, as `torch.nn.utils.clip_grad_norm_` does.
    fn factor(self, norm: f64) -> f64 {
        let cut = if self.max_norm > 0.0 { (self.max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        cut / self.scale
    }
}

/// The norm of a gradient. A GPU may be computing it still.
#[derive(Clone, Debug)]
pub enum Norm {
    /// It is there.
    Known(f64),
    /// A GPU sends it.
    Coming(Arc<Note>),
}

impl Norm {
    /// The norm, once it is there.
    pub fn get(&self) -> f64 {
        match self {
            Self::Known(norm) => *norm,
            Self::Coming(note) => done(note.read(1))[0],
        }
    }
}

/// The sums of a gradient's squares, one for each [`GRAIN`] of its values: where the gradient lies.
#[derive(Debug)]
pub enum Squares {
    /// In main memory.
    Host(Vec<f64>),
    /// In a GPU's, and how many.
    Gpu(Buffer, usize),
}

/// Values whose squares are one sum.
pub const GRAIN: usize = optim::CHUNK;

/// One step of AdamW for a part of the parameters, from its gradient, and then each of the averages (rate, values), where the
/// gradient lies. `squares` are those of all parameters. Moments and averages are of the part alone. Nothing changes if the norm of
/// the whole gradient is not finite.
///
/// # Panics
/// If there are more than eight averages on a GPU, and of lengths that differ.
pub fn update(
    settings: &AdamW,
    clip: Clip,
    (param, part): (&mut Parameters, Range<usize>),
    (gradient, squares): (Gradient, Squares),
    moments: [&mut Parameters; 2],
    averages: &mut [(f64, &mut Parameters)],
) -> Norm {
    let len = part.len();
    assert!([&*moments[0], &*moments[1]].iter().all(|of| of.layout().len() == len) && gradient.len() == len);
    let (mut memory, squares) = match (gradient.memory, squares) {
        (GradientMemory::Host(memory), Squares::Host(squares)) => (memory, squares),
        (GradientMemory::Gpu(memory), Squares::Gpu(squares, count)) => {
            let squares = (&squares, count);
            let norm = cuda::update(settings, clip, (param, part), (&memory, squares), moments, averages);
            return Norm::Coming(Arc::new(done(norm)));
        }
        _ => unreachable!("a gradient and its squares on two devices"),
    };
    let norm = squares.iter().sum::<f64>().sqrt() / clip.scale;
    if norm.is_finite() {
        let settings = AdamW { grad_scale: clip.factor(norm), ..*settings };
        let [m, v] = moments;
        let mut averages: Vec<(f64, &mut [f32])> =
            averages.iter_mut().map(|(rate, average)| (*rate, average.values_mut())).collect();
        // The gradient is read; parameters, moments and averages are read and written.
        let moved = Work { flop: 0.0, bytes: 4.0 * (len * (7 + 2 * averages.len())) as f64 };
        let param = &mut param.values_mut()[part];
        timed(
            || ("AdamW and averages, f32".into(), moved),
            || optim::adamw(&settings, param, memory.values(len), m.values_mut(), v.values_mut(), &mut averages),
        );
    }
    Norm::Known(norm)
}
