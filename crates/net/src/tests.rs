//! Backward rules by central differences, and plans against graphs in which nothing shares memory.
//!
//! Memory that tests are lent is filled with values that are not numbers.

use crate::arena::Lease;
use crate::backward::{With, differentiate};
use crate::device::{Context, Device, Memory, RunPosition, cpu};
use crate::graph::{Graph, Value};
use crate::kind::{Precision, Shape};
use crate::op::{Conv, Norm, Op};
use crate::plan::{GradientPlace, Plan, tests::KEEP_ALL};
use crate::state::{Init, Layout, Parameters, Spec};
use ddpm_kernels::{Conv2d, HeadOrder, Padding, Resample};
use ddpm_math::{Domain, Stream};
use proptest::prelude::*;
use std::sync::Arc;

fn normal(count: usize, index: u64) -> Vec<f32> {
    let mut values = vec![0.0; count];
    Stream::new(17, Domain::Noise, index, 0).fill_normal(&mut values);
    values
}

fn layout(shapes: &[&[usize]]) -> Arc<Layout> {
    let spec = |(i, shape): (usize, &&[usize])| Spec { name: format!("{i}"), shape: shape.to_vec(), init: Init::One };
    Arc::new(Layout::new(shapes.iter().enumerate().map(spec).collect()))
}

/// What a graph gives: the output, the gradient of the parameters, that of each input.
#[derive(Debug, PartialEq)]
struct Results {
    output: Vec<f32>,
    parameters: Vec<f32>,
    inputs: Vec<Vec<f32>>,
}

/// A graph to be tested: its parameters' layout, the shapes of its inputs, and the rest.
struct Case<'a> {
    layout: Arc<Layout>,
    inputs: Vec<Shape>,
    record: &'a dyn Fn(&mut Graph, &[Value]) -> Value,
    labels: Vec<u32>,
    recompute: bool,
}

impl<'a> Case<'a> {
    fn new(shapes: &[&[usize]], inputs: &[Shape], record: &'a dyn Fn(&mut Graph, &[Value]) -> Value) -> Self {
        Self { layout: layout(shapes), inputs: inputs.to_vec(), record, labels: Vec::new(), recompute: false }
    }

    fn values(&self) -> (Vec<f32>, Vec<Vec<f32>>) {
        let inputs = self.inputs.iter().enumerate().map(|(i, shape)| normal(shape.len(), 10 + i as u64)).collect();
        (normal(self.layout.len(), 1).iter().map(|v| v * 0.5).collect(), inputs)
    }

    /// Weights of the outputs in the sum that is differentiated.
    fn seed(&self) -> Vec<f32> {
        let mut graph = Graph::new(Arc::clone(&self.layout));
        let (_, output) = self.forward(&mut graph);
        normal(graph.shape(output).len(), 2)
    }

    fn forward(&self, graph: &mut Graph) -> (Vec<Value>, Value) {
        let inputs: Vec<Value> = self.inputs.iter().map(|&shape| graph.input(shape, Precision::F32)).collect();
        let output = (self.record)(graph, &inputs);
        (inputs, output)
    }

    /// Output, and the gradient with respect to something.
    fn differentiated(
        &self,
        parameters: &[f32],
        values: &[Vec<f32>],
        with: Option<usize>,
        place: GradientPlace,
    ) -> (Vec<f32>, Vec<f32>) {
        let mut graph = Graph::new(Arc::clone(&self.layout));
        let (inputs, output) = self.forward(&mut graph);
        let what = with.map_or(With::Parameters, |i| With::Input(inputs[i]));
        let (seed, of_input) = differentiate(&mut graph, output, what, self.recompute);
        let wanted: Vec<Value> = [output].into_iter().chain(of_input).collect();
        let plan = Plan::new(&graph, &wanted, place);
        let parameters = Parameters::new(Arc::clone(&self.layout), parameters.to_vec());
        let mut memory = Lease::new(plan.bytes());
        let arena = memory.bytes();
        let mut outside = vec![f32::NAN; if place == GradientPlace::Outside { self.layout.len() } else { 0 }];
        let fill = |arena: &mut [u8], value: Value, values: &[f32]| {
            if let Some(slot) = plan.slot(value) {
                bytemuck::cast_slice_mut(&mut arena[slot.bytes.clone()]).copy_from_slice(values);
            }
        };
        let read = |arena: &[u8], value: Value| -> Vec<f32> {
            bytemuck::cast_slice(&arena[plan.slot(value).unwrap().bytes.clone()]).to_vec()
        };
        inputs.iter().zip(values).for_each(|(&value, values)| fill(arena, value, values));
        let context = Context { labels: Some(&self.labels), position: Some(RunPosition { seed: 3, position: 5 }) };
        let run = |steps, arena: &mut [u8], outside: &mut [f32]| {
            cpu::run(&plan, steps, Memory::new(&plan, &parameters, arena, outside), context);
        };
        run(0..plan.forward, arena, &mut outside);
        let made = read(arena, output);
        fill(arena, seed, &self.seed());
        run(plan.forward..plan.steps.len(), arena, &mut outside);
        let gradient = match (of_input, place) {
            (Some(value), _) => read(arena, value),
            (None, GradientPlace::Outside) => outside,
            (None, GradientPlace::Inside) => bytemuck::cast_slice(&arena[..4 * self.layout.len()]).to_vec(),
        };
        (made, gradient)
    }

    fn results(&self, parameters: &[f32], values: &[Vec<f32>], place: GradientPlace) -> Results {
        let (output, of_parameters) = self.differentiated(parameters, values, None, place);
        let of = |i| self.differentiated(parameters, values, Some(i), GradientPlace::Outside).1;
        Results { output, parameters: of_parameters, inputs: (0..self.inputs.len()).map(of).collect() }
    }

    /// Σ seed·output.
    fn sum(&self, parameters: &[f32], values: &[Vec<f32>]) -> f64 {
        let (output, _) = self.differentiated(parameters, values, None, GradientPlace::Inside);
        output.iter().zip(self.seed()).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
    }

    /// Compares gradients with differences along random directions.
    fn check(&self, what: &str) {
        let (parameters, values) = self.values();
        let results = self.results(&parameters, &values, GradientPlace::Outside);
        assert_eq!(results, self.results(&parameters, &values, GradientPlace::Inside), "{what}: place of the gradient");
        assert!(results.output.iter().all(|v| v.is_finite()), "{what}: {:?}", results.output);
        let h = 4e-3f32;
        let slope = |at: &dyn Fn(f32) -> f64| (at(h) - at(-h)) / (2.0 * f64::from(h));
        let near = |part: &str, gradient: &[f32], direction: &[f32], slope: f64| {
            let actual: f64 = gradient.iter().zip(direction).map(|(g, d)| f64::from(g * d)).sum();
            let size: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            assert!((actual - slope).abs() < 4e-3 * (1.0 + size), "{what}: {part}: {actual}, by differences {slope}");
        };
        let moved = |values: &[f32], direction: &[f32], step: f32| -> Vec<f32> {
            values.iter().zip(direction).map(|(v, d)| v + step * d).collect()
        };
        for round in 0..3 {
            if !parameters.is_empty() {
                let direction = normal(parameters.len(), 100 + round);
                let by = slope(&|step| self.sum(&moved(&parameters, &direction, step), &values));
                near("parameters", &results.parameters, &direction, by);
            }
            for (i, gradient) in results.inputs.iter().enumerate() {
                let direction = normal(gradient.len(), 200 + 10 * round + i as u64);
                let at = |step: f32| {
                    let mut all = values.clone();
                    all[i] = moved(&values[i], &direction, step);
                    self.sum(&parameters, &all)
                };
                near(&format!("input {i}"), gradient, &direction, slope(&at));
            }
        }
    }
}

fn conv(places: Vec<usize>, kernel: [usize; 2], stride: usize, padding: Padding) -> Op {
    Op::Conv(Conv { places, settings: Conv2d { kernel, stride, padding }, relu: false })
}

const X: Shape = Shape { n: 3, h: 5, w: 7, c: 6 };

#[test]
fn convolutions_pass_gradients_back() {
    for (kernel, stride, padding) in [
        ([1, 1], 1, Padding::Same),
        ([3, 3], 1, Padding::Same),
        ([3, 3], 2, Padding::Same),
        ([3, 3], 2, Padding::After),
        ([5, 3], 1, Padding::Valid),
    ] {
        let [k, l] = kernel;
        let record = move |g: &mut Graph, x: &[Value]| g.add(conv(vec![0], kernel, stride, padding), x);
        Case::new(&[&[4, 6, k, l], &[4]], &[X], &record).check(&format!("{kernel:?} {stride} {padding:?}"));
    }
    let onto = |g: &mut Graph, x: &[Value]| g.add(conv(vec![0], [3, 3], 1, Padding::Same), x);
    Case::new(&[&[4, 6, 3, 3], &[4]], &[X, X.with_channels(4)], &onto).check("with a residual");
    // What comes before it in the sum of the input's gradient is added in the epilogue.
    let again = |g: &mut Graph, x: &[Value]| {
        let h = g.add(conv(vec![0], [3, 3], 1, Padding::Same), x);
        g.add(conv(vec![2], [1, 1], 1, Padding::Same), &[h, x[0]])
    };
    Case::new(&[&[6, 6, 3, 3], &[6], &[6, 6, 1], &[6]], &[X], &again).check("used twice");
    let joined = |g: &mut Graph, x: &[Value]| g.add(conv(vec![0, 2, 4], [1, 1], 1, Padding::Same), x);
    let shapes: [&[usize]; 6] = [&[4, 6, 1], &[4], &[3, 6, 1], &[3], &[2, 6, 1], &[2]];
    Case::new(&shapes, &[X], &joined).check("layers side by side");
    // Linear maps of rows, and a parameter that nothing depends on.
    let linear = |g: &mut Graph, x: &[Value]| g.add(conv(vec![1], [1, 1], 1, Padding::Same), x);
    Case::new(&[&[3], &[5, 6], &[5]], &[Shape::rows(4, 6)], &linear).check("rows");
}

#[test]
fn normalisations_pass_gradients_back() {
    for (silu, film, dropout) in [(false, false, None), (true, true, None), (true, true, Some((0.3, 2)))] {
        let norm = Norm { place: 0, groups: 3, eps: 1e-5, silu, dropout, film };
        let inputs = if film { vec![X, Shape::rows(3, 12)] } else { vec![X] };
        let record = move |g: &mut Graph, x: &[Value]| g.add(Op::Norm(norm), x);
        Case::new(&[&[6], &[6]], &inputs, &record).check(&format!("{norm:?}"));
        let again = move |g: &mut Graph, x: &[Value]| {
            let h = g.add(Op::Norm(norm), x);
            g.add(Op::Add, &[h, x[0]])
        };
        Case::new(&[&[6], &[6]], &inputs, &again).check("used twice");
    }
}

#[test]
fn attention_and_tokens_pass_gradients_back() {
    for order in [HeadOrder::HeadsFirst, HeadOrder::QkvFirst] {
        let record = move |g: &mut Graph, x: &[Value]| g.add(Op::Attention(2, order), x);
        Case::new(&[], &[Shape { n: 2, h: 3, w: 3, c: 18 }], &record).check(&format!("{order:?}"));
    }
    let head = |g: &mut Graph, x: &[Value]| {
        let tokens = g.add(Op::Tokens(0), x);
        let tokens = g.add(Op::Attention(1, HeadOrder::QkvFirst), &[tokens]);
        g.add(Op::FirstToken, &[tokens])
    };
    Case::new(&[&[6, 13]], &[Shape { n: 3, h: 3, w: 4, c: 6 }], &head).check("a classifier's head");
}

#[test]
fn all_else_passes_gradients_back() {
    let even = Shape { n: 2, h: 4, w: 6, c: 3 };
    for (to, scale, shape) in [(Resample::Up, 1.0, X), (Resample::Down, 0.25, even)] {
        let record = move |g: &mut Graph, x: &[Value]| g.add(Op::Resample(to, scale), x);
        Case::new(&[], &[shape], &record).check(&format!("{to:?}"));
    }
    let concat = |g: &mut Graph, x: &[Value]| g.add(Op::Concat, &[x[0], x[1], x[0]]);
    Case::new(&[], &[X, X.with_channels(5)], &concat).check("concatenation");
    Case::new(&[], &[Shape::rows(4, 9)], &|g, x| g.add(Op::Silu, x)).check("SiLU");
    // Far from its kink.
    let relu = |g: &mut Graph, x: &[Value]| {
        let far = g.add(conv(vec![0], [1, 1], 1, Padding::Same), x);
        g.add(Op::Relu, &[far])
    };
    Case::new(&[&[40, 9], &[40]], &[Shape::rows(2, 9)], &relu).check("ReLU");
    Case::new(&[], &[X, Shape::rows(3, 6)], &|g, x| g.add(Op::AddRows, x)).check("rows added");
    Case::new(&[], &[X], &|g, x| g.add(Op::SumPixels(1.0 / 35.0), x)).check("means");
    let planes = |g: &mut Graph, x: &[Value]| {
        let pixels = g.add(Op::Enter(Precision::F32), &x[..1]);
        let pixels = g.add(conv(vec![0], [1, 1], 1, Padding::Same), &[pixels]);
        g.add(Op::Leave(4), &[pixels])
    };
    Case::new(&[&[4, 6, 1], &[4]], &[X], &planes).check("the edges");
    let embed = |g: &mut Graph, x: &[Value]| {
        let rows = g.add(Op::Embed(0), x);
        g.add(Op::Silu, &[rows])
    };
    let labels = vec![2, 0, crate::NO_CLASS, 2];
    Case { labels, ..Case::new(&[&[3, 5]], &[Shape::rows(4, 5)], &embed) }.check("classes");
    let cast = |g: &mut Graph, x: &[Value]| {
        let halves = g.add(Op::Cast(Precision::Bf16), x);
        g.add(Op::Cast(Precision::F32), &[halves])
    };
    let (parameters, values) = Case::new(&[], &[X], &cast).values();
    let case = Case::new(&[], &[X], &cast);
    let results = case.results(&parameters, &values, GradientPlace::Outside);
    let rounded = |v: &f32| ddpm_kernels::bf16::from_f32(*v).to_f32();
    assert_eq!(results.output, values[0].iter().map(rounded).collect::<Vec<_>>());
    assert_eq!(results.inputs[0], case.seed().iter().map(rounded).collect::<Vec<_>>());
}

/// Operations that keep the shape, chosen by numbers: a random network in stages.
fn random(graph: &mut Graph, input: Value, choices: &[u8], precision: Precision) -> Value {
    let mut values = vec![graph.add(Op::Enter(precision), &[input])];
    let mut place = 0;
    for &choice in choices {
        let at = |back: u8| values[values.len() - 1 - usize::from(back) % values.len()];
        let (x, other) = (at(0), at(choice / 8));
        let mut layer = |kernel| {
            place += 2;
            conv(vec![place - 2], [kernel; 2], 1, Padding::Same)
        };
        let made = match choice % 8 {
            0 => graph.add(layer(3), &[x]),
            1 => graph.add(layer(1), &[x, other]),
            2 => graph.add(Op::Add, &[x, other]),
            3 => {
                let up = graph.add(Op::Resample(Resample::Up, 1.0), &[other]);
                graph.add(Op::Resample(Resample::Down, 0.25), &[up])
            }
            4 => {
                let both = graph.add(Op::Concat, &[x, other]);
                graph.add(Op::TakeChannels(0, 6), &[both])
            }
            5 => {
                let rows = graph.add(Op::SumPixels(0.1), &[other]);
                graph.add(Op::AddRows, &[x, rows])
            }
            6 => {
                graph.stage();
                graph.add(layer(3), &[other])
            }
            _ => {
                let norm = Norm { place: 0, groups: 3, eps: 1e-5, silu: true, dropout: Some((0.2, 1)), film: false };
                let spec = place;
                place += 2;
                graph.add(Op::Norm(Norm { place: spec, ..norm }), &[x])
            }
        };
        values.push(made);
    }
    graph.stage();
    graph.add(Op::Leave(6), &[values[values.len() - 1]])
}

/// Weights that stay packed are those of the parameters as they are.
#[test]
fn packed_weights_are_made_again_when_parameters_change() {
    let layout = layout(&[&[32, 32, 3, 3], &[32], &[32, 32, 1], &[32]]);
    let plan = |n: usize, side: usize| {
        let mut graph = Graph::new(Arc::clone(&layout));
        let shape = Shape { n, h: side, w: side, c: 32 };
        let x = graph.input(shape, Precision::F32);
        let h = graph.add(Op::Cast(Precision::Bf16), &[x]);
        let h = graph.add(conv(vec![0], [3, 3], 1, Padding::Same), &[h]);
        let h = graph.add(conv(vec![2], [1, 1], 1, Padding::Same), &[h]);
        let y = graph.add(Op::Cast(Precision::F32), &[h]);
        (Plan::new(&graph, &[y], GradientPlace::Outside), shape, [x, y])
    };
    let plans = [plan(2, 6), plan(1, 6), plan(1, 3)];
    let run = |parameters: &Parameters| {
        plans.each_ref().map(|(plan, shape, [x, y])| {
            Device::Cpu.compute(plan, parameters, &[(*x, &normal(shape.len(), 3))], &[*y]).concat()
        })
    };
    let fresh = |seed: u64| Parameters::new(Arc::clone(&layout), normal(layout.len(), seed));
    let mut parameters = fresh(4);
    let first = run(&parameters);
    assert_eq!(run(&parameters), first, "the second time");
    assert_eq!(run(&parameters.clone()), first, "a copy");
    parameters.values_mut().copy_from_slice(fresh(5).values());
    assert_eq!(run(&parameters), run(&fresh(5)), "other values");
    assert_ne!(run(&parameters), first);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_give_what_graphs_without_shared_memory_give(
        choices in prop::collection::vec(0u8..64, 1..24), half: bool, inside: bool,
    ) {
        // Taking channels has no derivative: it is left to plans of outputs alone.
        let choices: Vec<u8> = choices.into_iter().map(|c| if c % 8 == 4 { c + 1 } else { c }).collect();
        let mut shapes: Vec<&[usize]> = Vec::new();
        for choice in &choices {
            match choice % 8 {
                0 | 6 => shapes.extend([&[6, 6, 3, 3][..], &[6]]),
                1 => shapes.extend([&[6, 6, 1][..], &[6]]),
                7 => shapes.extend([&[6][..], &[6]]),
                _ => {}
            }
        }
        let precision = if half { Precision::Bf16 } else { Precision::F32 };
        let record = |g: &mut Graph, x: &[Value]| random(g, x[0], &choices, precision);
        let input = Shape { n: 2, h: 3, w: 5, c: 6 };
        let mut case = Case::new(&shapes, &[input], &record);
        let place = if inside { GradientPlace::Inside } else { GradientPlace::Outside };
        let (parameters, values) = case.values();
        let found = case.results(&parameters, &values, place);
        KEEP_ALL.set(true);
        let apart = case.results(&parameters, &values, place);
        KEEP_ALL.set(false);
        let bits = |r: &Results| -> Vec<u32> {
            r.output.iter().chain(&r.parameters).chain(&r.inputs[0]).map(|v| v.to_bits()).collect()
        };
        prop_assert_eq!(bits(&found), bits(&apart));
        // Computing stages again changes no bit.
        case.recompute = true;
        prop_assert_eq!(bits(&found), bits(&case.results(&parameters, &values, place)));
    }
}
