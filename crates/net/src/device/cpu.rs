//! The processor: each step is a call of a kernel on slices of the plan's memory.

use super::given::{Context, Memory};
use crate::engine::NO_CLASS;
use crate::kind::Precision;
use crate::op::{Op, extent};
use crate::packed::{self, PackedWeights};
use crate::plan::{GradientPlace, Plan, Slot, Step};
use crate::state::Layout;
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use ddpm_kernels::conv::Pass;
use ddpm_kernels::profile::timed;
use ddpm_kernels::{
    Dropout, Element, GroupNorm, Resample, bf16, conv, convert, elementwise, f16, norm, pool, resample,
};
use std::borrow::Cow;
use std::ops::Range;

/// The most slices that a step takes and makes, with that of the gradient.
const SLICES: usize = 8;

pub(crate) fn run(plan: &Plan, steps: Range<usize>, memory: Memory, context: Context) {
    let Memory { arena, parameters, packed, gradient } = memory;
    for step in &plan.steps[steps] {
        let mut ranges: [Range<usize>; SLICES] = Default::default();
        let slots = step.inputs.iter().chain(&step.outputs);
        for (i, (range, slot)) in ranges.iter_mut().zip(slots).enumerate() {
            // A value that is taken twice is borrowed once.
            if first_use(step, i) == i {
                *range = slot.bytes.clone();
            }
        }
        let inside = plan.gradient == GradientPlace::Inside;
        if let Some(writes) = step.writes.as_ref().filter(|_| inside) {
            ranges[SLICES - 1] = 4 * writes.start..4 * writes.end;
        }
        let slices = arena.get_disjoint_mut(ranges).expect("what lives at a time lies apart");
        let [operands @ .., written] = slices;
        let written = match &step.writes {
            Some(writes) if !inside => &mut gradient[writes.clone()],
            _ => cast_slice_mut(written),
        };
        let call = Call { step, layout: &plan.layout, split: plan.split, parameters, packed, context };
        timed(|| step.work(&plan.layout, Some(plan.split)), || call.run(operands, written));
    }
}

/// Bytes that the kernels of a plan keep or take beside its memory on so many threads: the most of any step.
pub(super) fn scratch_bytes(plan: &Plan, threads: usize) -> usize {
    // Packed weights that stay are no scratch.
    let own = |step| step_scratch(plan, step, threads) - packed_bytes_of(plan, step);
    plan.steps.iter().map(own).max().unwrap_or(0)
}

/// Bytes of packed weights that a plan leaves for its next run.
pub(super) fn packed_bytes(plan: &Plan) -> usize {
    plan.steps.iter().map(|step| packed_bytes_of(plan, step)).sum()
}

fn packed_bytes_of(plan: &Plan, step: &Step) -> usize {
    let Op::Conv(layer) = &step.op else { return 0 };
    let g = layer.on_cpu(step.inputs[0].kind.shape, &plan.layout, plan.split);
    match step.inputs[0].kind.precision {
        _ if plan.writes_gradient() => 0,
        Precision::Bf16 => packed::bytes::<bf16>(g),
        _ => packed::bytes::<f32>(g),
    }
}

fn step_scratch(plan: &Plan, step: &Step, threads: usize) -> usize {
    let slots = step.inputs.iter().chain(&step.outputs);
    // f16 is widened for the kernel.
    let wide: usize =
        slots.filter(|slot| slot.kind.precision == Precision::F16).map(|slot| 4 * slot.kind.shape.len()).sum();
    let (conv, x, pass) = match &step.op {
        Op::Conv(conv) => (conv, step.inputs[0].kind.shape, Pass::Forward),
        Op::ConvInputGrad(conv, x, _) => (conv, *x, Pass::InputGrad),
        Op::ConvWeightGrad(conv) => (conv, step.inputs[0].kind.shape, Pass::WeightGrad),
        // A copy of the gradient of an image for each thread.
        Op::NormGrad(..) => {
            let shape = step.inputs[1].kind.shape;
            return wide + 4 * shape.len() / shape.n.max(1) * threads.min(shape.n);
        }
        // Scores, weights and their gradient of a head for each thread.
        Op::Attention(..) | Op::AttentionGrad(..) => {
            let shape = step.inputs[0].kind.shape;
            return wide + 16 * shape.pixels().pow(2) * threads.min(shape.n);
        }
        _ => return wide,
    };
    let g = conv.on_cpu(x, &plan.layout, plan.split);
    let kernel = match step.inputs[0].kind.precision {
        Precision::Bf16 => g.scratch_bytes::<bf16>(pass, threads),
        _ => g.scratch_bytes::<f32>(pass, threads),
    };
    wide + kernel
}

/// Which of a step's operands is the first that is the same value as this one.
fn first_use(step: &Step, i: usize) -> usize {
    let same = |slot: &Slot| step.inputs.get(i).is_some_and(|own| own.bytes == slot.bytes);
    step.inputs.iter().position(same).unwrap_or(i)
}

/// A step about to run.
struct Call<'a> {
    step: &'a Step,
    layout: &'a Layout,
    split: bool,
    parameters: &'a [f32],
    packed: Option<&'a PackedWeights>,
    context: Context<'a>,
}

type Slices<'a> = [&'a mut [u8]; SLICES - 1];

fn read<T: Pod>(slice: &[u8]) -> &[T] {
    cast_slice(slice)
}

fn write<T: Pod>(slice: &mut [u8]) -> &mut [T] {
    cast_slice_mut(slice)
}

impl Call<'_> {
    fn run(&self, operands: Slices, written: &mut [f32]) {
        match self.step.precision() {
            Precision::F32 if self.step.inputs.iter().all(|slot| slot.kind.precision != Precision::F16) => {
                self.run_as::<f32>(operands, written);
            }
            Precision::Bf16 => self.run_as::<bf16>(operands, written),
            _ => self.run_halves(operands, written),
        }
    }

    /// f16 is storage: few processors multiply it into f32 sums, so what enters a kernel is widened, which is exact, and
    /// what leaves it is rounded once; beyond 65 504 that is infinity.
    fn run_halves(&self, mut operands: Slices, written: &mut [f32]) {
        let (inputs, outputs) = (&self.step.inputs, &self.step.outputs);
        let is_half = |i: usize| {
            let slot = inputs.get(i).or_else(|| outputs.get(i.wrapping_sub(inputs.len())));
            slot.is_some_and(|slot| slot.kind.precision == Precision::F16)
        };
        let mut wide: [Vec<f32>; SLICES - 1] = Default::default();
        for (i, (wide, slice)) in wide.iter_mut().zip(&operands).enumerate().filter(|(i, _)| is_half(*i)) {
            wide.resize(slice.len() / 2, 0.0);
            // Of a concatenation only some channels are written at a time.
            if i < inputs.len() || matches!(self.step.op, Op::Place(_)) {
                convert::widen(read::<f16>(slice), wide);
            }
        }
        let mut next = wide.iter_mut().zip(operands.iter_mut()).enumerate();
        let as_floats: Slices = std::array::from_fn(|_| {
            let (i, (wide, slice)) = next.next().expect("as many as there are slices");
            if is_half(i) { cast_slice_mut(wide) } else { &mut **slice }
        });
        self.run_as::<f32>(as_floats, written);
        for (i, (wide, slice)) in wide.iter().zip(&mut operands).enumerate().filter(|(i, _)| is_half(*i)) {
            if i >= inputs.len() {
                convert::narrow(wide, write::<f16>(slice));
            }
        }
    }

    /// A parameter.
    fn parameter(&self, place: usize) -> &[f32] {
        &self.parameters[self.layout.range(place)]
    }

    /// Parameters of layers side by side, as one.
    fn joined(&self, places: &[usize], offset: usize) -> Cow<'_, [f32]> {
        match places {
            [one] => Cow::Borrowed(self.parameter(one + offset)),
            many => many.iter().flat_map(|place| self.parameter(place + offset)).copied().collect(),
        }
    }

    fn normalisation(&self, norm: &crate::op::Norm) -> GroupNorm {
        let dropout = norm.dropout.zip(self.context.position).map(|((probability, layer), at)| Dropout {
            probability,
            seed: at.seed,
            position: at.position,
            layer,
        });
        GroupNorm { groups: norm.groups, eps: norm.eps, silu: norm.silu, dropout }
    }

    fn run_as<E: Element>(&self, mut operands: Slices, written: &mut [f32]) {
        let step = self.step;
        let (inputs, outputs) = operands.split_at_mut(step.inputs.len());
        let inputs: Vec<&[u8]> = (0..inputs.len()).map(|i| &*inputs[first_use(step, i)]).collect();
        let mut outputs = outputs.iter_mut();
        let mut out = || &mut **outputs.next().expect("a slice for each output");
        let shape = |i: usize| step.inputs[i].kind.shape;
        match &step.op {
            Op::Input(..) | Op::Concat => unreachable!("no step of a plan"),
            Op::Enter(_) => {
                let (of, out) = (step.outputs[0].kind.shape, write::<E>(out()));
                let mut at = 0;
                for (i, planes) in inputs.iter().enumerate() {
                    let c = shape(i).c;
                    elementwise::planes_to_pixels(read(planes), c, of.pixels(), out, of.c, at);
                    at += c;
                }
            }
            Op::Leave(c) => {
                let of = shape(0);
                elementwise::pixels_to_planes(read::<E>(inputs[0]), of.c, 0, *c, of.pixels(), write(out()));
            }
            Op::Conv(layer) => {
                let (g, weight) = (layer.on_cpu(shape(0), self.layout, self.split), || self.joined(&layer.places, 0));
                let (x, bias) = (read::<E>(inputs[0]), self.joined(&layer.places, 1));
                let residual = inputs.get(1).map(|residual| read::<E>(residual));
                let epilogue = conv::Epilogue { bias: Some(&bias), residual, relu: layer.relu };
                match self.packed.filter(|_| packed::is_kept::<E>(g)) {
                    Some(packed) => packed.with(layer.places[0], g, weight, |packed| {
                        conv::forward_packed(g, x, packed, epilogue, write(out()));
                    }),
                    None => conv::forward(g, x, &weight(), epilogue, write(out())),
                }
            }
            Op::ConvInputGrad(layer, x, _) => {
                let (weight, g) = (self.joined(&layer.places, 0), layer.on_cpu(*x, self.layout, self.split));
                let onto = inputs.get(1).map(|onto| read::<E>(onto));
                conv::input_grad(g, read::<E>(inputs[0]), &weight, onto, write(out()));
            }
            Op::ConvWeightGrad(layer) => {
                let g = layer.on_cpu(shape(0), self.layout, self.split);
                let (x, grad) = (read::<E>(inputs[0]), read::<E>(inputs[1]));
                if layer.places.len() == 1 {
                    let (weight, bias) = written.split_at_mut(g.weight_len());
                    return conv::weight_grad(g, x, grad, weight, bias);
                }
                let (mut weights, mut biases) = (vec![0.0; g.weight_len()], vec![0.0; g.o]);
                conv::weight_grad(g, x, grad, &mut weights, &mut biases);
                let (mut weights, mut biases, mut rest) = (&weights[..], &biases[..], written);
                for &place in &layer.places {
                    let (weight, bias) = (self.layout.range(place).len(), self.layout.range(place + 1).len());
                    let (own, others) = rest.split_at_mut(weight + bias);
                    own[..weight].copy_from_slice(&weights[..weight]);
                    own[weight..].copy_from_slice(&biases[..bias]);
                    (weights, biases, rest) = (&weights[weight..], &biases[bias..], others);
                }
            }
            Op::Norm(settings) => {
                let x = shape(0);
                let e = norm::Extent { n: x.n, pixels: x.pixels(), c: x.c, norm: self.normalisation(settings) };
                let affine = self.affine(settings, inputs.get(1).copied());
                norm::forward(e, read::<E>(inputs[0]), affine, write(out()), write(out()));
            }
            Op::NormGrad(settings, wanted) => {
                let x = shape(1);
                let e = norm::Extent { n: x.n, pixels: x.pixels(), c: x.c, norm: self.normalisation(settings) };
                let affine = self.affine(settings, settings.film.then(|| inputs[3]));
                let onto = wanted.onto.then(|| read::<E>(inputs[inputs.len() - 1]));
                let mut unwanted = vec![0.0; if wanted.parameters { 0 } else { 2 * x.c }];
                let (weight, bias) =
                    if wanted.parameters { written.split_at_mut(x.c) } else { unwanted.split_at_mut(x.c) };
                let grads = norm::Grads { x: write(out()), weight, bias, film: settings.film.then(|| write(out())) };
                let (grad, values, statistics) = (read::<E>(inputs[0]), read::<E>(inputs[1]), read(inputs[2]));
                norm::backward(e, grad, values, statistics, affine, onto, grads);
            }
            Op::Attention(heads, order) => {
                let e = extent(shape(0), *heads, *order);
                ddpm_kernels::attention::forward(e, read::<E>(inputs[0]), write(out()));
            }
            Op::AttentionGrad(heads, order) => {
                let e = extent(shape(1), *heads, *order);
                ddpm_kernels::attention::backward(e, read::<E>(inputs[0]), read::<E>(inputs[1]), write(out()));
            }
            Op::Resample(to, scale) => {
                let (x, of) = (read::<E>(inputs[0]), shape(0));
                match to {
                    Resample::Up => resample::repeat(x, [of.w, of.c], *scale, write(out())),
                    Resample::Down => resample::sum(x, [of.w / 2, of.c], *scale, write(out())),
                }
            }
            Op::Place(at) => {
                let of = step.outputs[0].kind.shape;
                resample::place_channels(read::<E>(inputs[0]), shape(0).c, write(out()), of.c, *at);
            }
            Op::TakeChannels(from, count) => {
                resample::take_channels(read::<E>(inputs[0]), shape(0).c, *from, *count, write(out()));
            }
            Op::Silu => elementwise::silu(read::<E>(inputs[0]), write(out())),
            Op::SiluGrad => elementwise::silu_grad(read::<E>(inputs[0]), read::<E>(inputs[1]), write(out())),
            Op::Relu => elementwise::relu(read::<E>(inputs[0]), write(out())),
            Op::ReluGrad => elementwise::relu_grad(read::<E>(inputs[0]), read::<E>(inputs[1]), write(out())),
            Op::AddRows => {
                let of = shape(0);
                elementwise::add_rows(read::<E>(inputs[0]), read(inputs[1]), of.pixels(), of.c, write(out()));
            }
            Op::SumPixels(scale) => {
                let of = shape(0);
                elementwise::sum_pixels(read::<E>(inputs[0]), of.pixels(), of.c, *scale, write(out()));
            }
            Op::SpreadRows(of, _, scale) => {
                elementwise::spread_rows(read(inputs[0]), of.pixels(), of.c, *scale, write::<E>(out()));
            }
            Op::Embed(place) => {
                let (table, c) = (self.parameter(*place), shape(0).c);
                let rows = read::<f32>(inputs[0]).chunks_exact(c).zip(self.labels());
                for (sum, (row, &label)) in write::<f32>(out()).chunks_exact_mut(c).zip(rows) {
                    if label == NO_CLASS {
                        sum.copy_from_slice(row);
                        continue;
                    }
                    let own = &table[label as usize * c..][..c];
                    sum.iter_mut().zip(row.iter().zip(own)).for_each(|(sum, (a, b))| *sum = a + b);
                }
            }
            Op::EmbedGrad(_) => {
                let c = shape(0).c;
                written.fill(0.0);
                let labelled = read::<f32>(inputs[0]).chunks_exact(c).zip(self.labels());
                for (grad, &label) in labelled.filter(|&(_, &label)| label != NO_CLASS) {
                    let own = &mut written[label as usize * c..][..c];
                    own.iter_mut().zip(grad).for_each(|(sum, g)| *sum += g);
                }
            }
            Op::Tokens(place) => tokens(read(inputs[0]), self.parameter(*place), shape(0).c, write(out())),
            Op::TokensGrad(_, x, wanted) => {
                let positions = wanted.parameters.then_some(written);
                tokens_grad(read(inputs[0]), x.pixels(), x.c, write(out()), positions);
            }
            Op::FirstToken => {
                let of = shape(0);
                let images = read::<f32>(inputs[0]).chunks_exact(of.w * of.c);
                for (out, image) in write::<f32>(out()).chunks_exact_mut(of.c).zip(images) {
                    out.copy_from_slice(&image[..of.c]);
                }
            }
            Op::FirstTokenGrad(count) => {
                let c = shape(0).c;
                let out = write::<f32>(out());
                out.fill(0.0);
                for (out, grad) in out.chunks_exact_mut(count * c).zip(read::<f32>(inputs[0]).chunks_exact(c)) {
                    out[..c].copy_from_slice(grad);
                }
            }
            Op::Cast(_) => match step.inputs[0].kind.precision {
                Precision::Bf16 => convert::to_f32(read::<bf16>(inputs[0]), write(out())),
                _ => convert::round(read(inputs[0]), write::<E>(out())),
            },
            Op::Add => elementwise::add(read::<E>(inputs[0]), read::<E>(inputs[1]), write(out())),
            Op::Pool(settings) => {
                let (x, to) = (shape(0), step.outputs[0].kind.shape);
                pool::forward(*settings, read::<E>(inputs[0]), [x.n, x.h, x.w, x.c], [to.h, to.w], write(out()));
            }
            Op::Clear(_) => written.fill(0.0),
        }
    }

    fn labels(&self) -> &[u32] {
        self.context.labels.expect("labels if and only if the network has classes")
    }

    fn affine<'a>(&'a self, norm: &crate::op::Norm, film: Option<&'a [u8]>) -> norm::Affine<'a> {
        let (weight, bias) = (self.parameter(norm.place), self.parameter(norm.place + 1));
        norm::Affine { weight, bias, film: film.map(read) }
    }
}

/// The mean of an image's pixels, then the pixels, plus what is learned for each position `[C, T + 1]`.
fn tokens(x: &[f32], positions: &[f32], c: usize, out: &mut [f32]) {
    let count = positions.len() / c;
    let pixels = count - 1;
    for (out, x) in out.chunks_exact_mut(count * c).zip(x.chunks_exact(pixels * c)) {
        let (mean, others) = out.split_at_mut(c);
        mean.fill(0.0);
        for pixel in x.chunks_exact(c) {
            mean.iter_mut().zip(pixel).for_each(|(sum, v)| *sum += v);
        }
        for sum in &mut *mean {
            *sum /= pixels as f32;
        }
        others.copy_from_slice(x);
        for (at, token) in out.chunks_exact_mut(c).enumerate() {
            token.iter_mut().zip(positions[at..].iter().step_by(count)).for_each(|(v, position)| *v += position);
        }
    }
}

fn tokens_grad(grad: &[f32], pixels: usize, c: usize, out: &mut [f32], positions: Option<&mut [f32]>) {
    let count = pixels + 1;
    for (out, grad) in out.chunks_exact_mut(pixels * c).zip(grad.chunks_exact(count * c)) {
        let (mean, others) = grad.split_at(c);
        for (out, grad) in out.chunks_exact_mut(c).zip(others.chunks_exact(c)) {
            out.iter_mut().zip(grad.iter().zip(mean)).for_each(|(out, (g, mean))| *out = g + mean / pixels as f32);
        }
    }
    let Some(positions) = positions else { return };
    positions.fill(0.0);
    for grad in grad.chunks_exact(count * c) {
        for (at, token) in grad.chunks_exact(c).enumerate() {
            positions[at..].iter_mut().step_by(count).zip(token).for_each(|(sum, g)| *sum += g);
        }
    }
}
