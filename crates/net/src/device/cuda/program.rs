//! What a plan's steps call, and the memory that they need beside the plan's.

use super::steps::Scratch;
use crate::kind::{Precision, Shape};
use crate::op::{Conv, Op, extent};
use crate::plan::{Plan, Step};
use crate::state::Layout;
use ddpm_cuda::{
    Address, Buffer, Convolution, ConvolutionPlan, Event, Gpu, Graph, Matrix, Multiplication, Pass, Product, Result,
    Turn, Type, Unit,
};
use ddpm_kernels::HeadOrder;
use ddpm_kernels::conv::Geometry;
use std::collections::HashMap;
use std::sync::Mutex;

/// Bytes between which parts of the memory begin.
pub(super) const ALIGNMENT: usize = 256;

/// What a step calls beside kernels of our own.
pub(super) enum Call {
    /// Nothing.
    Kernels,
    /// A convolution, and whether bias, residual and ReLU are still to be done after it.
    Convolution(ConvolutionPlan, bool),
    /// Matrix products.
    Products(Vec<Multiplication>),
    /// Products of a few rows in f32, by a kernel of our own.
    Rows,
    /// Attention whose scores never leave the multiprocessors.
    Attention,
}

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

/// A plan made ready for a GPU.
pub(crate) struct Program {
    pub(super) gpu: &'static Gpu,
    pub(super) calls: Vec<Call>,
    /// Where weights and biases lie in the type and layout of their step, by the places of the weights.
    pub(super) prepared: HashMap<Vec<usize>, [usize; 2]>,
    /// What prepares the weights of a type: a table of layers, their number, and blocks.
    pub(super) tables: Vec<(Type, Buffer, [usize; 2])>,
    /// Where labels and the place in the run lie, and what the kernels need for themselves.
    pub(super) context: usize,
    pub(super) scratch: usize,
    /// The same for the steps that run aside.
    pub(super) side_scratch: usize,
    /// Where the sums of a normalisation's backward pass lie, which are read aside.
    pub(super) partials: HashMap<usize, usize>,
    /// Before and after what each step does aside.
    pub(super) events: HashMap<usize, [Event; 2]>,
    bytes: usize,
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
        let mut end = plan.bytes().next_multiple_of(ALIGNMENT);
        let mut take = |bytes: usize| {
            let at = end;
            end = (end + bytes).next_multiple_of(ALIGNMENT);
            at
        };
        let mut prepared = HashMap::new();
        let mut layers: [Vec<Layer>; 3] = Default::default();
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
            let table = &mut layers[precision as usize];
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
        gpu.prepare(&units(plan))?;
        let mut tables = Vec::new();
        for (precision, layers) in [Precision::F32, Precision::Bf16, Precision::F16].into_iter().zip(layers) {
            if let Some(last) = layers.last() {
                tables.push((precision.into(), gpu.upload(&layers)?, [layers.len(), last.end()]));
            }
        }
        let turn = gpu.turn()?;
        let calls: Vec<Call> = plan.steps.iter().map(|step| call(&turn, step, &plan.layout)).collect::<Result<_>>()?;
        let (mut most, mut partials) = ([0, 0], HashMap::new());
        let mut events = HashMap::new();
        for (i, (step, call)) in plan.steps.iter().zip(&calls).enumerate() {
            let needed = Scratch::of(step, call, &plan.layout).bytes();
            let aside = runs_aside(step);
            if matches!(step.op, Op::NormGrad(..)) {
                partials.insert(i, take(needed));
            } else {
                most[usize::from(aside)] = needed.max(most[usize::from(aside)]);
            }
            if aside || sums_aside(step) {
                events.insert(i, [gpu.event()?, gpu.event()?]);
            }
        }
        let [scratch, side_scratch] = most.map(&mut take);
        let (bytes, recorded) = (take(0), Mutex::default());
        Ok(Self { gpu, calls, prepared, tables, context, scratch, side_scratch, partials, events, bytes, recorded })
    }

    /// Bytes of memory that it runs in.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
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

/// Whether a convolution is a product of its pixels with the weights as they are.
pub(super) fn is_product(g: &Geometry) -> bool {
    g.kernel == [1, 1] && g.stride == 1 && g.padding == [[0; 2]; 2]
}

/// Whether a convolution is a product of a few rows in f32.
fn is_rows(g: &Geometry, precision: Precision) -> bool {
    precision == Precision::F32 && is_product(g) && [g.h, g.w] == [1, 1]
}

fn call(turn: &Turn, step: &Step, layout: &Layout) -> Result<Call> {
    let precision: Type = step.precision().into();
    Ok(match &step.op {
        Op::Conv(conv) => {
            let g = conv.geometry(step.inputs[0].kind.shape, layout);
            let residual = step.inputs.len() > 1;
            if is_rows(&g, step.precision()) && conv.places.len() == 1 && !conv.relu {
                return Ok(Call::Rows);
            }
            if is_product(&g) && !conv.relu {
                let (w, x, y) = factors(&g, precision);
                let product = Product { a: w.transpose(), b: x, d: y, batch: 1, bias: true, onto: residual };
                return Ok(Call::Products(vec![turn.choose(product)?]));
            }
            let fused = if residual { Pass::ResidualBias } else { Pass::Bias };
            let c = convolution(&g, precision);
            // Where no engine has all of it, a kernel does the rest.
            match turn.plan_convolution(&c, fused) {
                Ok(plan) if !conv.relu => Call::Convolution(plan, false),
                _ => Call::Convolution(turn.plan_convolution(&c, Pass::Plain)?, true),
            }
        }
        Op::ConvInputGrad(conv, x, wanted) => {
            let g = conv.geometry(*x, layout);
            if is_rows(&g, step.precision()) && conv.places.len() == 1 {
                return Ok(Call::Rows);
            }
            if is_product(&g) {
                let (w, x, y) = factors(&g, precision);
                let product = Product { a: w, b: y, d: x, batch: 1, bias: false, onto: wanted.onto };
                return Ok(Call::Products(vec![turn.choose(product)?]));
            }
            Call::Convolution(turn.plan_convolution(&convolution(&g, precision), Pass::InputGrad)?, false)
        }
        Op::ConvWeightGrad(conv) => {
            let g = conv.geometry(step.inputs[0].kind.shape, layout);
            if is_rows(&g, step.precision()) && conv.places.len() == 1 {
                return Ok(Call::Rows);
            }
            if is_product(&g) {
                return Ok(Call::Products(weight_products(turn, conv, &g, precision, layout)?));
            }
            Call::Convolution(turn.plan_convolution(&convolution(&g, precision), Pass::WeightGrad)?, false)
        }
        Op::Attention(heads, order) | Op::AttentionGrad(heads, order) if Attention::is_fused(step, *heads, *order) => {
            Call::Attention
        }
        Op::Attention(heads, order) => {
            let parts = Attention::new(step.inputs[0].kind.shape, *heads, *order, precision);
            Call::Products(vec![turn.choose(parts.scores())?, turn.choose(parts.output())?])
        }
        Op::AttentionGrad(heads, order) => {
            let parts = Attention::new(step.inputs[1].kind.shape, *heads, *order, precision);
            let products = [parts.scores(), parts.weights_grad(), parts.q_grad(), parts.k_grad(), parts.v_grad()];
            Call::Products(products.into_iter().map(|product| turn.choose(product)).collect::<Result<_>>()?)
        }
        _ => Call::Kernels,
    })
}

fn convolution(g: &Geometry, kind: Type) -> Convolution {
    Convolution {
        kind,
        n: g.n,
        input: [g.h, g.w, g.c],
        output: [g.out_h(), g.out_w(), g.o],
        kernel: g.kernel,
        stride: g.stride,
        before: g.padding.map(|[before, _]| before),
        after: g.padding.map(|[_, after]| after),
    }
}

/// Weights, input and output of a convolution over single pixels.
fn factors(g: &Geometry, kind: Type) -> (Matrix, Matrix, Matrix) {
    let rows = |rows, columns| Matrix::new(kind, [rows, columns], rows, 0);
    (rows(g.c, g.o), rows(g.c, g.rows()), rows(g.o, g.rows()))
}

/// The weights' gradients of layers side by side, each of its channels of the output's gradient, in f32.
fn weight_products(turn: &Turn, conv: &Conv, g: &Geometry, kind: Type, layout: &Layout) -> Result<Vec<Multiplication>> {
    let product = |&place: &usize| {
        let outputs = layout.specs()[place].shape[0];
        let x = Matrix::new(kind, [g.c, g.rows()], g.c, 0);
        let grad = Matrix::new(kind, [outputs, g.rows()], g.o, 0);
        let d = Matrix::new(Type::F32, [g.c, outputs], g.c, 0);
        turn.choose(Product { a: x, b: grad.transpose(), d, batch: 1, bias: false, onto: false })
    };
    conv.places.iter().map(product).collect()
}

/// The products of one head's attention, over all images.
pub(super) struct Attention {
    /// Images, positions, channels of a head, and heads.
    pub(super) n: usize,
    pub(super) t: usize,
    pub(super) ch: usize,
    pub(super) heads: usize,
    order: HeadOrder,
    kind: Type,
}

impl Attention {
    pub(super) fn new(qkv: Shape, heads: usize, order: HeadOrder, kind: Type) -> Self {
        let e = extent(qkv, heads, order);
        Self { n: e.n, t: e.t, ch: e.ch, heads, order, kind }
    }

    /// Whether there are kernels of our own for it.
    fn is_fused(step: &Step, heads: usize, order: HeadOrder) -> bool {
        let qkv = step.inputs.last().expect("queries, keys and values come last").kind;
        qkv.precision != Precision::F32 && matches!(extent(qkv.shape, heads, order).ch, 32 | 64)
    }

    /// Channels from one head to the next, and from queries to keys.
    pub(super) fn channel_steps(&self) -> [usize; 2] {
        match self.order {
            HeadOrder::HeadsFirst => [3 * self.ch, self.ch],
            HeadOrder::QkvFirst => [self.ch, self.c()],
        }
    }

    fn c(&self) -> usize {
        self.heads * self.ch
    }

    /// The first channel of queries, keys and values of a head.
    pub(super) fn offsets(&self, head: usize) -> [usize; 3] {
        let [from_head, from_part] = self.channel_steps();
        [0, 1, 2].map(|i| head * from_head + i * from_part)
    }

    /// Queries, keys or values.
    fn part(&self) -> Matrix {
        Matrix::new(self.kind, [self.ch, self.t], 3 * self.c(), 3 * self.c() * self.t)
    }

    /// A head of the output.
    fn head(&self) -> Matrix {
        Matrix::new(self.kind, [self.ch, self.t], self.c(), self.c() * self.t)
    }

    /// For each query a row of keys.
    fn square(&self, kind: Type) -> Matrix {
        Matrix::new(kind, [self.t; 2], self.t, self.t * self.t)
    }

    fn product(&self, a: Matrix, b: Matrix, d: Matrix) -> Product {
        Product { a, b, d, batch: self.n, bias: false, onto: false }
    }

    /// Of keys and queries.
    fn scores(&self) -> Product {
        self.product(self.part().transpose(), self.part(), self.square(Type::F32))
    }

    /// Of values and weights.
    fn output(&self) -> Product {
        self.product(self.part(), self.square(self.kind), self.head())
    }

    /// Of values and the output's gradient.
    fn weights_grad(&self) -> Product {
        self.product(self.part().transpose(), self.head(), self.square(Type::F32))
    }

    /// Of keys and the scores' gradient.
    fn q_grad(&self) -> Product {
        self.product(self.part(), self.square(self.kind), self.part())
    }

    /// Of queries and the scores' gradient.
    fn k_grad(&self) -> Product {
        self.product(self.part(), self.square(self.kind).transpose(), self.part())
    }

    /// Of the output's gradient and the weights.
    fn v_grad(&self) -> Product {
        self.product(self.head(), self.square(self.kind).transpose(), self.part())
    }
}
