//! What a plan's steps call, and the memory that they need beside the plan's.

use super::call::{Attention, Call, Wanted, is_rows, wanted};
use super::steps::Scratch;
use crate::kind::Precision;
use crate::op::{Op, extent};
use crate::plan::{Plan, Step};
use ddpm_cuda::{
    Address, Buffer, Chip, Convolution, ConvolutionPlan, Event, Gpu, Graph, Multiplication, Pass, Planned, Result,
    Type, Unit, WORKSPACE,
};
use std::collections::HashMap;
use std::sync::Mutex;

/// Bytes between which parts of the memory begin.
pub(super) const ALIGNMENT: usize = 256;

/// The types of layers.
const KINDS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::F16];

/// Weights or biases to be prepared, as the kernel has them.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Layer {
    /// The first value among the parameters.
    from: u64,
    /// The first byte in the plan's memory.
    to: u64,
    /// Outputs, inputs and taps.
    sizes: [i32; 3],
    /// The first block that works on it.
    first: i32,
}

impl Layer {
    fn new(from: usize, to: usize, sizes: [usize; 3], last: Option<&Self>) -> Self {
        let first = last.map_or(0, Self::end) as i32;
        Self { from: from as u64, to: to as u64, sizes: sizes.map(|n| n as i32), first }
    }

    /// Where the blocks of what follows begin.
    fn end(&self) -> usize {
        /// Values that a block prepares at most.
        const TILE: usize = 2304;
        let [o, i, taps] = self.sizes.map(|n| n as usize);
        let blocks = if taps == 1 { (o * i).div_ceil(TILE) } else { o * i.div_ceil(TILE / taps / 8 * 8) };
        self.first as usize + blocks
    }
}

/// A half of a plan recorded, for the addresses that it was recorded with.
pub(super) struct Recorded {
    pub(super) addresses: [Address; 3],
    pub(super) forward: bool,
    /// None until it ran once.
    pub(super) graph: Option<Graph>,
}

/// Where things lie in the memory that a plan runs in, beside its values.
pub(super) struct Places {
    /// Weights and biases in the type and layout of their step, by the places of the weights.
    pub(super) prepared: HashMap<Vec<usize>, [usize; 2]>,
    /// What is prepared for each of [`KINDS`].
    layers: [Vec<Layer>; KINDS.len()],
    /// Labels and the place in the run.
    pub(super) context: usize,
    /// What the kernels need for themselves.
    pub(super) scratch: usize,
    /// The same for the steps that run aside.
    pub(super) side_scratch: usize,
    /// The sums of a normalisation's backward pass, which are read aside.
    pub(super) partials: HashMap<usize, usize>,
    bytes: usize,
}

impl Places {
    fn new(plan: &Plan, scratches: &[Scratch]) -> Self {
        let mut end = plan.bytes().next_multiple_of(ALIGNMENT);
        let mut take = |bytes: usize| {
            let at = end;
            end = (end + bytes).next_multiple_of(ALIGNMENT);
            at
        };
        let mut prepared = HashMap::new();
        let mut layers: [Vec<Layer>; KINDS.len()] = Default::default();
        for step in &plan.steps {
            let (conv, x) = match &step.op {
                Op::Conv(conv) => (conv, step.inputs[0].kind.shape),
                Op::ConvInputGrad(conv, x, _) => (conv, *x),
                _ => continue,
            };
            if prepared.contains_key(&conv.places) {
                continue;
            }
            let (geometry, precision) = (conv.geometry(x, &plan.layout), step.precision());
            if is_rows(&geometry, precision) && conv.places.len() == 1 {
                continue;
            }
            let weight = take(geometry.weight_len() * precision.bytes());
            let bias = take(geometry.o * precision.bytes());
            prepared.insert(conv.places.clone(), [weight, bias]);
            let kind = KINDS.iter().position(|&kind| kind == precision).expect("a type that activations are kept in");
            let table = &mut layers[kind];
            let (mut to, taps) = ([weight, bias], geometry.kernel[0] * geometry.kernel[1]);
            for &place in &conv.places {
                let o = plan.layout.specs()[place].shape[0];
                for (part, sizes) in [[o, geometry.c, taps], [1, o, 1]].into_iter().enumerate() {
                    table.push(Layer::new(plan.layout.range(place + part).start, to[part], sizes, table.last()));
                    to[part] += sizes.iter().product::<usize>() * precision.bytes();
                }
            }
        }
        let images = plan.steps.iter().flat_map(|step| &step.inputs).map(|slot| slot.kind.shape.n).max().unwrap_or(0);
        let context = take(16 + 4 * images);
        let (mut most, mut partials) = ([0, 0], HashMap::new());
        for (i, (step, scratch)) in plan.steps.iter().zip(scratches).enumerate() {
            if matches!(step.op, Op::NormGrad(..)) {
                partials.insert(i, take(scratch.bytes()));
            } else {
                let most = &mut most[usize::from(runs_aside(step))];
                *most = scratch.bytes().max(*most);
            }
        }
        let [scratch, side_scratch] = most.map(&mut take);
        Self { prepared, layers, context, scratch, side_scratch, partials, bytes: take(0) }
    }
}

/// What a plan takes on a chip that is not there.
pub(crate) struct OnChip {
    /// What it computes by cuDNN, and the engine of each.
    pub(crate) convolutions: Vec<(Convolution, Pass, Planned)>,
    /// Bytes of memory that it runs in. Which workspace cuBLASLt would take is not known: the most that it may.
    pub(crate) bytes: usize,
}

impl OnChip {
    /// Chooses engines as [`Program::new`] does.
    pub(crate) fn new(chip: &Chip, plan: &Plan) -> Result<Self> {
        let (mut convolutions, mut scratches) = (Vec::new(), Vec::new());
        for step in &plan.steps {
            let planned = |c: &Convolution, pass| Ok((*c, pass, chip.convolution(c, pass)?));
            let call = wanted(step, &plan.layout).choose(|wanted| wanted.choose(planned), |_| Ok(WORKSPACE))?;
            scratches.push(Scratch::of(step, &call, &plan.layout, |(.., planned)| planned.workspace, |&bytes| bytes));
            if let Call::Convolution(planned) = call {
                convolutions.push(planned);
            }
        }
        Ok(Self { convolutions, bytes: Places::new(plan, &scratches).bytes })
    }
}

/// A plan made ready for a GPU.
pub(crate) struct Program {
    pub(super) gpu: &'static Gpu,
    pub(super) calls: Vec<Call<ConvolutionPlan, Multiplication>>,
    /// What the kernels of each step need for themselves.
    pub(super) scratches: Vec<Scratch>,
    pub(super) places: Places,
    /// What prepares the weights of a type: a table of layers, their number, and blocks.
    pub(super) tables: Vec<(Type, Buffer, [usize; 2])>,
    /// Before and after what each step does aside.
    pub(super) events: HashMap<usize, [Event; 2]>,
    pub(super) recorded: Mutex<Vec<Recorded>>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} calls on {:?}", self.calls.len(), self.gpu)
    }
}

impl Program {
    /// Chooses engines and places for all of a plan's steps.
    pub(crate) fn new(gpu: &'static Gpu, plan: &Plan) -> Result<Self> {
        gpu.prepare(&units(plan))?;
        let turn = gpu.turn()?;
        let (mut calls, mut scratches) = (Vec::new(), Vec::new());
        for step in &plan.steps {
            let convolution = |wanted: Wanted| wanted.choose(|c, pass| turn.plan_convolution(c, pass));
            let call = wanted(step, &plan.layout).choose(convolution, |product| turn.choose(product))?;
            let (of_plan, of_product) = (ConvolutionPlan::workspace, Multiplication::workspace);
            scratches.push(Scratch::of(step, &call, &plan.layout, of_plan, of_product));
            calls.push(call);
        }
        drop(turn);
        let places = Places::new(plan, &scratches);
        let mut tables = Vec::new();
        for (precision, layers) in KINDS.into_iter().zip(&places.layers) {
            if let Some(last) = layers.last() {
                tables.push((precision.into(), gpu.upload(layers)?, [layers.len(), last.end()]));
            }
        }
        let mut events = HashMap::new();
        for (i, step) in plan.steps.iter().enumerate() {
            if runs_aside(step) || sums_aside(step) {
                events.insert(i, [gpu.event()?, gpu.event()?]);
            }
        }
        Ok(Self { gpu, calls, scratches, places, tables, events, recorded: Mutex::default() })
    }

    /// Bytes of memory that it runs in.
    pub(crate) fn bytes(&self) -> usize {
        self.places.bytes
    }
}

/// The kernels that a plan needs, with those of training if it has a backward part.
fn units(plan: &Plan) -> Vec<Unit> {
    let mut units = vec![Unit::Plain];
    for step in &plan.steps {
        let kind = step.precision().into();
        let attention = match step.op {
            Op::Attention(heads, order) | Op::AttentionGrad(heads, order)
                if Attention::is_fused(step, heads, order) =>
            {
                let qkv = step.inputs.last().expect("queries, keys and values come last").kind;
                Some(Unit::Attention(extent(qkv.shape, heads, order).ch, kind))
            }
            _ => None,
        };
        for unit in [Unit::Typed(kind)].into_iter().chain(attention) {
            if !units.contains(&unit) {
                units.push(unit);
            }
        }
    }
    units
}

/// Whether nothing but the optimizer waits for a step.
pub(super) fn runs_aside(step: &Step) -> bool {
    matches!(step.op, Op::ConvWeightGrad(_))
}

/// Whether nothing but the optimizer waits for a part of a step: the gradients of a normalisation's parameters.
pub(super) fn sums_aside(step: &Step) -> bool {
    matches!(&step.op, Op::NormGrad(_, wanted) if wanted.parameters)
}
