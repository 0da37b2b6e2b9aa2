//! One step of a plan, as calls.

use super::call::{Attention, Call};
use super::program::{ALIGNMENT, Program, runs_aside};
use crate::kind::{Precision, Shape};
use crate::op::{Norm, Op, Wanted};
use crate::plan::{Plan, Slot, Step};
use crate::state::Layout;
use ddpm_cuda::{Address, Arg, Factors, Multiplication, Operands, Pass, Result, Shape as Launch, Turn, Type, args};
use ddpm_kernels::{Padding, PoolKind, Resample};
use std::ops::Range;

/// Threads of a block of most kernels.
const THREADS: usize = 256;

/// Blocks that keep a large GPU busy.
const BLOCKS: usize = 1024;

/// Memory that a step's kernels need for themselves: sizes of its parts.
pub(super) struct Scratch(Vec<usize>);

impl Scratch {
    /// What a step needs, with the workspace of its convolution or of its products.
    pub(super) fn of<C, P>(
        step: &Step,
        call: &Call<C, P>,
        layout: &Layout,
        of_convolution: impl Fn(&C) -> usize,
        of_product: impl Fn(&P) -> usize,
    ) -> Self {
        let kind = step.precision();
        let workspace = match call {
            Call::Kernels | Call::Rows | Call::Attention => 0,
            Call::Convolution(plan) => of_convolution(plan),
            Call::Products(all) => all.iter().map(of_product).max().unwrap_or(0),
        };
        Self(match &step.op {
            Op::ConvWeightGrad(conv) => {
                let g = conv.geometry(step.inputs[0].kind.shape, layout);
                let staged = if matches!(call, Call::Convolution(..)) { g.weight_len() * kind.bytes() } else { 0 };
                vec![workspace, staged, 4 * column_chunks(g.rows()).0 * g.o, 4 * g.o]
            }
            Op::Norm(_) => vec![Chunks::of(step.inputs[0].kind.shape).bytes()],
            Op::NormGrad(..) => vec![Chunks::of(step.inputs[1].kind.shape).bytes()],
            // Two numbers of each query.
            Op::AttentionGrad(heads, _) if matches!(call, Call::Attention) => {
                let shape = step.inputs[1].kind.shape;
                vec![8 * shape.n * heads * shape.pixels()]
            }
            Op::Attention(..) if matches!(call, Call::Attention) => vec![],
            Op::Attention(..) | Op::AttentionGrad(..) => {
                let shape = step.inputs.last().expect("queries, keys and values").kind.shape;
                let scores = shape.n * shape.pixels().pow(2);
                vec![workspace, 4 * scores, kind.bytes() * scores, kind.bytes() * scores]
            }
            _ => vec![workspace],
        })
    }

    /// Bytes of all parts.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|bytes| bytes.next_multiple_of(ALIGNMENT)).sum()
    }

    /// Where the parts lie, the memory beginning at `at`.
    fn places<const N: usize>(&self, mut at: Address) -> [Address; N] {
        std::array::from_fn(|i| {
            let place = at;
            at = at.at(self.0[i].next_multiple_of(ALIGNMENT));
            place
        })
    }
}

/// How the pixels of images are shared out to blocks that sum over them.
#[derive(Clone, Copy)]
struct Chunks {
    shape: Shape,
    /// Pixels of a chunk.
    chunk: usize,
}

impl Chunks {
    fn of(shape: Shape) -> Self {
        let pixels = shape.pixels();
        let wanted = 512usize.div_ceil(shape.n.max(1)).clamp(1, 16);
        Self { shape, chunk: pixels.div_ceil(wanted).max(64).min(pixels.max(1)) }
    }

    fn count(self) -> usize {
        self.shape.pixels().div_ceil(self.chunk)
    }

    /// Of two numbers for each image, chunk and channel.
    fn bytes(self) -> usize {
        8 * self.shape.n * self.count() * self.shape.c
    }

    /// Blocks of an image where its pixels are streamed: each has enough to do, and there are enough.
    fn streams(self, kind: Type) -> usize {
        let bytes = self.shape.pixels() * self.shape.c * kind.bytes();
        let enough = BLOCKS.div_ceil(self.shape.n.max(1)).max(bytes.div_ceil(64 << 10));
        bytes.div_ceil(8 << 10).min(enough).max(1)
    }
}

/// Chunks of rows, and rows of each, for sums over rows.
fn column_chunks(rows: usize) -> (usize, usize) {
    let chunk = rows.div_ceil(512).max(64);
    (rows.div_ceil(chunk), chunk)
}

/// What a step reads aside, of what others may overwrite.
fn read_aside(step: &Step) -> &[Slot] {
    match &step.op {
        Op::NormGrad(norm, _) => &step.inputs[3..3 + usize::from(norm.film)],
        _ => &step.inputs,
    }
}

/// Whether a step writes where a value lies.
fn meets(step: &Step, slot: &Slot) -> bool {
    step.outputs.iter().any(|output| output.bytes.start < slot.bytes.end && slot.bytes.start < output.bytes.end)
}

/// Runs a plan's steps.
pub(super) struct Steps<'a> {
    pub(super) turn: &'a Turn,
    pub(super) program: &'a Program,
    pub(super) plan: &'a Plan,
    pub(super) memory: Address,
    pub(super) parameters: Address,
    pub(super) gradient: Address,
}

impl Steps<'_> {
    fn kernel(&self, name: &str, kind: Type, grid: [usize; 2], args: &[Arg]) -> Result<()> {
        let shape = Launch { grid, block: THREADS, shared: 0 };
        self.turn.launch(&format!("{name}_{}", kind.name()), shape, args)
    }

    /// A kernel without a type.
    fn plain(&self, name: &str, grid: [usize; 2], args: &[Arg]) -> Result<()> {
        self.turn.launch(name, Launch { grid, block: THREADS, shared: 0 }, args)
    }

    /// Where a parameter lies.
    fn parameter(&self, place: usize) -> Address {
        self.parameters.at(4 * self.plan.layout.range(place).start)
    }

    /// Where a parameter's gradient lies.
    fn gradient(&self, place: usize) -> Address {
        self.gradient.at(4 * self.plan.layout.range(place).start)
    }

    fn labels(&self) -> Address {
        self.memory.at(self.program.places.context + 16)
    }

    /// Weights and biases in the form that the steps take.
    pub(super) fn prepare(&self) -> Result<()> {
        for (kind, table, [layers, blocks]) in &self.program.tables {
            let args = args![self.parameters, self.memory, table.address(), *layers as i32];
            self.kernel("prepare", *kind, [*blocks, 1], args)?;
        }
        Ok(())
    }

    /// A product of rows in f32: `d[m, n] = Σ a·b`, with strides of rows and depth of `a`, of depth and columns of `b`.
    fn rows(&self, [m, n, depth]: [usize; 3], strides: [usize; 4], [a, b, bias, onto, d]: [Address; 5]) -> Result<()> {
        let [m_, n_, depth] = [m, n, depth].map(|n| n as i32);
        let [a_row, a_depth, b_depth, b_column] = strides.map(|n| n as i32);
        let args = args![a, b, bias, onto, d, m_, n_, depth, a_row, a_depth, b_depth, b_column];
        self.plain("product", [n.div_ceil(32), m.div_ceil(32)], args)
    }

    /// Starts a range of steps: those that nothing waits for in a stream of their own, beside the others. What they read is
    /// not written again before they are done.
    pub(super) fn run(&self, steps: Range<usize>) -> Result<()> {
        let mut behind: Vec<usize> = Vec::new();
        for i in steps {
            let step = &self.plan.steps[i];
            if !runs_aside(step) {
                let read = |&other: &usize| read_aside(&self.plan.steps[other]).iter().any(|input| meets(step, input));
                if let Some(last) = behind.iter().rposition(read) {
                    self.wait_for(behind[last])?;
                    // They run one after another: those before are done as well.
                    behind.drain(..=last);
                }
                self.step(i)?;
            }
            if let Some([before, after]) = self.program.events.get(&i) {
                self.turn.mark(before)?;
                self.turn.aside(|| {
                    self.turn.follow(before)?;
                    if runs_aside(step) {
                        self.step(i)?;
                    } else {
                        self.norm_parameters(i)?;
                    }
                    self.turn.mark(after)
                })?;
                behind.push(i);
            }
        }
        behind.last().map_or(Ok(()), |&last| self.wait_for(last))
    }

    fn wait_for(&self, aside: usize) -> Result<()> {
        self.turn.follow(&self.program.events[&aside][1])
    }

    /// Starts one step.
    pub(super) fn step(&self, i: usize) -> Result<()> {
        let (step, call) = (&self.plan.steps[i], &self.program.calls[i]);
        let kind: Type = step.precision().into();
        let at = |slot: &Slot| self.memory.at(slot.bytes.start);
        let input = |i: usize| at(&step.inputs[i]);
        let output = |i: usize| at(&step.outputs[i]);
        let shape = |i: usize| step.inputs[i].kind.shape;
        let (scratch, places) = (&self.program.scratches[i], &self.program.places);
        let free = self.memory.at(if runs_aside(step) { places.side_scratch } else { places.scratch });
        let long = |n: usize| n as i64;
        let int = |n: usize| n as i32;
        let prepared = |places: &Vec<usize>| {
            match self.program.places.prepared.get(places) {
                Some(&[weight, bias]) => (self.memory.at(weight), self.memory.at(bias)),
                // Rows take the parameters as they are.
                None => (self.parameter(places[0]), self.parameter(places[0] + 1)),
            }
        };
        let none = Address::NULL;
        // Value by value over tensors as long as the first output.
        let each = |name: &str, operands: &[Address]| {
            let len = step.outputs[0].kind.shape.len();
            let args: Vec<Arg> = operands.iter().map(|&a| a.into()).chain([long(len).into()]).collect();
            self.kernel(name, kind, [blocks(len / 16), 1], &args)
        };
        match &step.op {
            Op::Input(..) | Op::Concat => unreachable!("no step of a plan"),
            Op::Enter(_) => {
                let (of, mut channel) = (step.outputs[0].kind.shape, 0);
                for i in 0..step.inputs.len() {
                    let c = shape(i).c;
                    let sizes = [of.n, c, of.pixels(), of.c, channel].map(int);
                    let [n, ci, p, c_all, first] = sizes;
                    let grid = [blocks(of.n * of.pixels()), 1];
                    self.kernel("enter", kind, grid, args![input(i), output(0), n, ci, p, c_all, first])?;
                    channel += c;
                }
                Ok(())
            }
            Op::Leave(c) => {
                let of = shape(0);
                let [n, ci, p, all] = [of.n, *c, of.pixels(), of.c].map(int);
                self.kernel("leave", kind, [blocks(of.n * of.pixels()), 1], args![input(0), output(0), n, ci, p, all])
            }
            Op::Conv(conv) => {
                let ((w, bias), [workspace]) = (prepared(&conv.places), scratch.places(free));
                let residual = if step.inputs.len() > 1 { input(1) } else { none };
                match call {
                    Call::Products(all) => {
                        let factors = Factors { a: w, b: input(0), onto: residual, bias, d: output(0) };
                        self.turn.multiply(&all[0], factors, workspace)
                    }
                    Call::Convolution(plan) => {
                        let operands = Operands { x: input(0), w, y: output(0), residual, bias };
                        self.turn.convolve(plan, operands, workspace)?;
                        if plan.pass() == Pass::Plain {
                            let g = conv.geometry(shape(0), &self.plan.layout);
                            let [rows, c, relu] = [int(g.rows()), int(g.o), i32::from(conv.relu)];
                            let bias = self.parameter(conv.places[0] + 1);
                            let grid = [blocks(g.output_len() / 8), 1];
                            let args = args![output(0), bias, residual, output(0), rows, c, relu];
                            self.kernel("bias_residual", kind, grid, args)?;
                        }
                        Ok(())
                    }
                    Call::Rows => {
                        let g = conv.geometry(shape(0), &self.plan.layout);
                        self.rows([g.n, g.o, g.c], [g.c, 1, 1, g.c], [input(0), w, bias, residual, output(0)])
                    }
                    Call::Kernels | Call::Attention => unreachable!("a convolution without a call"),
                }
            }
            Op::ConvInputGrad(conv, x, wanted) => {
                let ((w, _), [workspace]) = (prepared(&conv.places), scratch.places(free));
                let onto = if wanted.onto { input(1) } else { none };
                match call {
                    Call::Products(all) => {
                        let factors = Factors { a: w, b: input(0), onto, bias: none, d: output(0) };
                        self.turn.multiply(&all[0], factors, workspace)
                    }
                    Call::Convolution(plan) => {
                        let operands = Operands { x: output(0), w, y: input(0), residual: none, bias: none };
                        self.turn.convolve(plan, operands, workspace)?;
                        if wanted.onto { each("add", &[output(0), onto, output(0)]) } else { Ok(()) }
                    }
                    Call::Rows => {
                        let g = conv.geometry(*x, &self.plan.layout);
                        self.rows([g.n, g.c, g.o], [g.o, 1, g.c, 1], [input(0), w, none, onto, output(0)])
                    }
                    Call::Kernels | Call::Attention => unreachable!("a convolution without a call"),
                }
            }
            Op::ConvWeightGrad(conv) => {
                let g = conv.geometry(shape(0), &self.plan.layout);
                let [workspace, staged, partial, sums] = scratch.places(free);
                let taps = g.kernel[0] * g.kernel[1];
                if let Call::Convolution(plan) = call {
                    let operands = Operands { x: input(0), w: staged, y: input(1), residual: none, bias: none };
                    self.turn.convolve(plan, operands, workspace)?;
                }
                let (chunks, chunk) = column_chunks(g.rows());
                let [rows, c, chunk] = [g.rows(), g.o, chunk].map(int);
                self.kernel("column_sums", kind, [chunks, 1], args![input(1), partial, rows, c, chunk])?;
                // Of one layer the sums go straight to the bias' gradient.
                let alone = conv.places.len() == 1;
                let sums = if alone { self.gradient(conv.places[0] + 1) } else { sums };
                self.finish_columns(partial, sums, chunks, g.o)?;
                let mut first = 0;
                for (i, &place) in conv.places.iter().enumerate() {
                    let outputs = self.plan.layout.specs()[place].shape[0];
                    match call {
                        Call::Products(all) => {
                            let grad = input(1).at(first * kind.bytes());
                            let d = self.gradient(place);
                            let factors = Factors { a: input(0), b: grad, onto: none, bias: none, d };
                            self.turn.multiply(&all[i], factors, workspace)?;
                        }
                        Call::Rows => {
                            let d = self.gradient(place);
                            self.rows([g.o, g.c, g.n], [1, g.o, g.c, 1], [input(1), input(0), none, none, d])?;
                        }
                        _ => {
                            let from = staged.at(first * taps * g.c * kind.bytes());
                            let [o, i, t] = [outputs, g.c, taps].map(int);
                            let grid = [blocks(outputs * g.c * taps / 8), 1];
                            self.kernel("weights_out", kind, grid, args![from, self.gradient(place), o, i, t])?;
                        }
                    }
                    if !alone {
                        self.turn.copy(self.gradient(place + 1), sums.at(4 * first), 4 * outputs)?;
                    }
                    first += outputs;
                }
                Ok(())
            }
            Op::Norm(norm) => {
                let [partial] = scratch.places(free);
                let film = if norm.film { input(1) } else { none };
                self.norm(norm, kind, shape(0), [input(0), film, output(0), output(1), partial])
            }
            Op::NormGrad(norm, wanted) => self.norm_grad(step, norm, *wanted, self.memory.at(places.partials[&i])),
            Op::Attention(heads, order) => {
                let parts = Attention::new(shape(0), *heads, *order, kind);
                if matches!(call, Call::Attention) {
                    return self.attention("", 128, &parts, kind, &[input(0), output(0)]);
                }
                let Call::Products(products) = call else { unreachable!("attention without products") };
                let [workspace, scores, weights, _] = scratch.places(free);
                for head in 0..parts.heads {
                    let [q, k, v] = parts.offsets(head).map(|offset| input(0).at(offset * kind.bytes()));
                    self.attention_weights(&parts, kind, products, [q, k, scores, weights, workspace])?;
                    let d = output(0).at(head * parts.ch * kind.bytes());
                    let factors = Factors { a: v, b: weights, onto: none, bias: none, d };
                    self.turn.multiply(&products[1], factors, workspace)?;
                }
                Ok(())
            }
            Op::AttentionGrad(heads, order) => {
                let parts = Attention::new(shape(1), *heads, *order, kind);
                if matches!(call, Call::Attention) {
                    let [rows] = scratch.places(free);
                    self.attention("rows_", 128, &parts, kind, &[input(0), input(1), rows])?;
                    let tile = if parts.ch == 32 { 128 } else { 64 };
                    self.attention("keys_", tile, &parts, kind, &[input(0), input(1), rows, output(0)])?;
                    return self.attention("queries_", 128, &parts, kind, &[input(0), input(1), rows, output(0)]);
                }
                let Call::Products(products) = call else { unreachable!("attention without products") };
                let [workspace, scores, weights, scores_grad] = scratch.places(free);
                let multiply = |product: usize, a, b, d| {
                    let factors = Factors { a, b, onto: none, bias: none, d };
                    self.turn.multiply(&products[product], factors, workspace)
                };
                for head in 0..parts.heads {
                    let offsets = parts.offsets(head).map(|offset| offset * kind.bytes());
                    let [q, k, v] = offsets.map(|offset| input(1).at(offset));
                    let [dq, dk, dv] = offsets.map(|offset| output(0).at(offset));
                    let grad = input(0).at(head * parts.ch * kind.bytes());
                    self.attention_weights(&parts, kind, products, [q, k, scores, weights, workspace])?;
                    multiply(4, grad, weights, dv)?;
                    multiply(1, v, grad, scores)?;
                    let rows = parts.n * parts.t;
                    let args = args![weights, scores, scores_grad, long(rows), int(parts.t), scale(&parts)];
                    self.kernel("softmax_grad", kind, [rows.div_ceil(8), 1], args)?;
                    multiply(2, k, scores_grad, dq)?;
                    multiply(3, q, scores_grad, dk)?;
                }
                Ok(())
            }
            Op::Resample(to, factor) => {
                let of = step.outputs[0].kind.shape;
                let small = if *to == Resample::Up { shape(0) } else { of };
                let [n, h, w, c] = [small.n, small.h, small.w, small.c].map(int);
                let name = if *to == Resample::Up { "up" } else { "down" };
                self.kernel(name, kind, [blocks(of.len() / 8), 1], args![input(0), output(0), n, h, w, c, *factor])
            }
            Op::Place(at) => {
                let (x, of) = (shape(0), step.outputs[0].kind.shape);
                let [c, all, first] = [x.c, of.c, *at].map(int);
                let rows = long(x.n * x.pixels());
                self.kernel("place", kind, [blocks(x.len() / 8), 1], args![input(0), output(0), rows, c, all, first])
            }
            Op::TakeChannels(from, count) => {
                let x = shape(0);
                let [c, from, count] = [x.c, *from, *count].map(int);
                let rows = long(x.n * x.pixels());
                let grid = [blocks(step.outputs[0].kind.shape.len() / 8), 1];
                self.kernel("take", kind, grid, args![input(0), output(0), rows, c, from, count])
            }
            Op::Silu => each("silu", &[input(0), output(0)]),
            Op::SiluGrad => each("silu_grad", &[input(0), input(1), output(0)]),
            Op::Relu => each("relu", &[input(0), output(0)]),
            Op::ReluGrad => each("relu_grad", &[input(0), input(1), output(0)]),
            Op::Add => each("add", &[input(0), input(1), output(0)]),
            Op::AddRows => {
                let of = shape(0);
                let [n, p, c] = [of.n, of.pixels(), of.c].map(int);
                let grid = [(of.pixels() * of.c).div_ceil(4096), of.n];
                self.kernel("add_rows", kind, grid, args![input(0), input(1), output(0), n, p, c])
            }
            Op::SumPixels(factor) => {
                let of = shape(0);
                let [n, p, c] = [of.n, of.pixels(), of.c].map(int);
                let grid = [of.c.div_ceil(64), of.n];
                self.kernel("sum_pixels", kind, grid, args![input(0), output(0), n, p, c, *factor])
            }
            Op::SpreadRows(of, _, factor) => {
                let [n, p, c] = [of.n, of.pixels(), of.c].map(int);
                let grid = [(of.pixels() * of.c).div_ceil(4096), of.n];
                self.kernel("spread_rows", kind, grid, args![input(0), output(0), n, p, c, *factor])
            }
            Op::Embed(place) => {
                let [n, c] = [shape(0).n, shape(0).c];
                let args = args![input(0), self.parameter(*place), self.labels(), output(0), int(n), int(c)];
                self.plain("embed", [blocks(n * c), 1], args)
            }
            Op::EmbedGrad(place) => {
                let (of, classes) = (shape(0), self.plan.layout.specs()[*place].shape[0]);
                let [n, c, classes] = [of.n, of.c, classes].map(int);
                let args = args![input(0), self.labels(), self.gradient(*place), n, c, classes];
                self.plain("embed_grad", [blocks(of.c * classes as usize), 1], args)
            }
            Op::Tokens(place) => {
                let of = shape(0);
                let [n, p, c] = [of.n, of.pixels(), of.c].map(int);
                self.plain(
                    "tokens",
                    [of.c.div_ceil(32), of.n],
                    args![input(0), self.parameter(*place), output(0), n, p, c],
                )
            }
            Op::TokensGrad(place, x, wanted) => {
                let [n, p, c] = [x.n, x.pixels(), x.c].map(int);
                self.plain("tokens_grad", [blocks(x.pixels() * x.c), x.n], args![input(0), output(0), n, p, c])?;
                if wanted.parameters {
                    let threads = x.c * (x.pixels() + 1);
                    self.plain(
                        "positions_grad",
                        [blocks(threads), 1],
                        args![input(0), self.gradient(*place), n, p, c],
                    )?;
                }
                Ok(())
            }
            Op::FirstToken => {
                let of = shape(0);
                let [n, t, c] = [of.n, of.w, of.c].map(int);
                self.plain("first_token", [blocks(of.n * of.c), 1], args![input(0), output(0), n, t, c])
            }
            Op::FirstTokenGrad(count) => {
                let of = shape(0);
                let [n, t, c] = [of.n, *count, of.c].map(int);
                self.plain("first_token_grad", [blocks(of.n * count * of.c), 1], args![input(0), output(0), n, t, c])
            }
            Op::Cast(_) => {
                let (from, to) = (step.inputs[0].kind.precision, step.outputs[0].kind.precision);
                let len = shape(0).len();
                let (name, kind) = if to == Precision::F32 { ("to_f32", from) } else { ("from_f32", to) };
                assert!(from == Precision::F32 || to == Precision::F32, "a cast between half types");
                self.kernel(name, kind.into(), [blocks(len / 8), 1], args![input(0), output(0), long(len)])
            }
            Op::Pool(settings) => {
                let (x, to) = (shape(0), step.outputs[0].kind.shape);
                let before = usize::from(settings.padding == Padding::Same);
                let sizes = [x.n, x.h, x.w, x.c, to.h, to.w, settings.stride, before];
                let [n, h, w, c, oh, ow, stride, padding] = sizes.map(int);
                let largest = i32::from(settings.kind == PoolKind::Max);
                let args = args![input(0), output(0), n, h, w, c, oh, ow, stride, padding, largest];
                self.kernel("pool", kind, [blocks(to.len() / 8), 1], args)
            }
            Op::Clear(place) => self.turn.clear(self.gradient(*place), 4 * self.plan.layout.range(*place).len()),
        }
    }

    fn finish_columns(&self, partial: Address, out: Address, chunks: usize, c: usize) -> Result<()> {
        let shape = Launch { grid: [c.div_ceil(8), 1], block: 512, shared: 0 };
        self.turn.launch("column_sums_finish", shape, args![partial, out, chunks as i32, c as i32])
    }

    /// One of attention's own kernels, whose blocks have tiles of so many positions.
    fn attention(&self, name: &str, tile: usize, parts: &Attention, kind: Type, operands: &[Address]) -> Result<()> {
        let [from_head, from_part] = parts.channel_steps().map(|n| n as i32);
        let sizes = args![parts.t as i32, parts.heads as i32, from_head, from_part, scale(parts)];
        let args: Vec<Arg> = operands.iter().map(|&a| a.into()).chain(sizes.iter().copied()).collect();
        let shape = Launch { grid: [parts.heads * parts.t.div_ceil(tile), parts.n], block: 128, shared: 0 };
        self.turn.launch(&format!("attention_{name}{}_{}", parts.ch, kind.name()), shape, &args)
    }

    /// The softmax of one head's scaled scores.
    fn attention_weights(
        &self,
        parts: &Attention,
        kind: Type,
        products: &[Multiplication],
        [q, k, scores, weights, workspace]: [Address; 5],
    ) -> Result<()> {
        let none = Address::NULL;
        self.turn.multiply(&products[0], Factors { a: k, b: q, onto: none, bias: none, d: scores }, workspace)?;
        let rows = parts.n * parts.t;
        let args = args![scores, weights, rows as i64, parts.t as i32, scale(parts)];
        self.kernel("softmax", kind, [rows.div_ceil(8), 1], args)
    }

    /// What dropout takes: the factor of what is kept (0 without dropout), the threshold and the layer.
    fn dropout(norm: &Norm) -> (f32, u32, u32) {
        norm.dropout.map_or((0.0, 0, 0), |(probability, layer)| {
            let threshold = (probability * f64::from(u32::MAX)) as u32;
            ((1.0 / (1.0 - probability)) as f32, threshold, layer)
        })
    }

    fn norm(&self, norm: &Norm, kind: Type, of: Shape, [x, film, y, statistics, partial]: [Address; 5]) -> Result<()> {
        let chunks = Chunks::of(of);
        let [pixels, c, chunk, groups] = [of.pixels(), of.c, chunks.chunk, norm.groups].map(|n| n as i32);
        self.kernel("norm_sums", kind, [chunks.count(), of.n], args![x, partial, pixels, c, chunk])?;
        let (keep, threshold, layer) = Self::dropout(norm);
        let (weight, bias) = (self.parameter(norm.place), self.parameter(norm.place + 1));
        let (silu, position) = (i32::from(norm.silu), self.memory.at(self.program.places.context));
        let args = args![
            x, partial, weight, bias, film, y, statistics, position, pixels, c, groups, chunk, norm.eps, silu, keep,
            threshold, layer,
        ];
        let shape = Launch { grid: [chunks.streams(kind), of.n], block: THREADS, shared: 8 * norm.groups };
        self.turn.launch(&format!("norm_apply_{}", kind.name()), shape, args)
    }

    fn norm_grad(&self, step: &Step, norm: &Norm, wanted: Wanted, partial: Address) -> Result<()> {
        let kind: Type = step.precision().into();
        let at = |slot: &Slot| self.memory.at(slot.bytes.start);
        let input = |i: usize| at(&step.inputs[i]);
        let of = step.inputs[1].kind.shape;
        let (grad, x, statistics) = (input(0), input(1), input(2));
        let film = if norm.film { input(3) } else { Address::NULL };
        let onto = if wanted.onto { input(step.inputs.len() - 1) } else { Address::NULL };
        let chunks = Chunks::of(of);
        let [pixels, c, chunk, groups] = [of.pixels(), of.c, chunks.chunk, norm.groups].map(|n| n as i32);
        let (keep, threshold, layer) = Self::dropout(norm);
        let (weight, bias) = (self.parameter(norm.place), self.parameter(norm.place + 1));
        let (silu, position) = (i32::from(norm.silu), self.memory.at(self.program.places.context));
        let args = args![
            grad, x, statistics, weight, bias, film, partial, position, pixels, c, chunk, silu, keep, threshold, layer,
        ];
        self.kernel("norm_grad_sums", kind, [chunks.count(), of.n], args)?;
        let args = args![
            grad,
            x,
            statistics,
            weight,
            bias,
            film,
            partial,
            onto,
            at(&step.outputs[0]),
            position,
            pixels,
            c,
            groups,
            chunk,
            silu,
            keep,
            threshold,
            layer,
        ];
        let shape = Launch { grid: [chunks.streams(kind), of.n], block: THREADS, shared: 8 * norm.groups };
        self.turn.launch(&format!("norm_grad_apply_{}", kind.name()), shape, args)?;
        let count = chunks.count() as i32;
        if norm.film {
            let shape = Launch { grid: [of.c.div_ceil(THREADS), of.n], block: THREADS, shared: 0 };
            self.turn.launch("norm_grad_film", shape, args![partial, weight, bias, at(&step.outputs[1]), c, count])?;
        }
        Ok(())
    }

    /// The gradients of a normalisation's parameters, from the sums that its backward pass left.
    fn norm_parameters(&self, i: usize) -> Result<()> {
        let step = &self.plan.steps[i];
        let Op::NormGrad(norm, _) = &step.op else { unreachable!("only normalisations leave sums") };
        let of = step.inputs[1].kind.shape;
        let film = if norm.film { self.memory.at(step.inputs[3].bytes.start) } else { Address::NULL };
        let (partial, count) = (self.memory.at(self.program.places.partials[&i]), Chunks::of(of).count() as i32);
        let (weight, bias) = (self.gradient(norm.place), self.gradient(norm.place + 1));
        let shape = Launch { grid: [of.c.div_ceil(8), 1], block: 512, shared: 0 };
        let args = args![partial, film, weight, bias, of.n as i32, of.c as i32, count];
        self.turn.launch("norm_grad_parameters", shape, args)
    }
}

fn scale(parts: &Attention) -> f32 {
    1.0 / (parts.ch as f32).sqrt()
}

/// Blocks for so many threads; kernels stride over what is more.
fn blocks(threads: usize) -> usize {
    threads.div_ceil(THREADS).clamp(1, 65_535)
}
