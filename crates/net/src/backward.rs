//! The backward pass, as further operations of the graph.
//!
//! A value's gradient is the sum over its uses. They are added from the last use to the first, each onto what is there;
//! this order is the engine's own and part of what it promises: the same for any number of threads and whether blocks are
//! [computed again](crate::recompute) or not. Convolutions and normalisations add onto what is there before they round.

use crate::graph::{Graph, Value};
use crate::kind::Precision;
use crate::op::{Norm, Op, Wanted};
use crate::recompute;
use ddpm_kernels::Resample;
use std::collections::HashMap;
use std::ops::Range;

/// With respect to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum With {
    /// The parameters.
    Parameters,
    /// An input of the graph.
    Input(Value),
}

/// Gradients of values while they are added up.
pub(crate) struct Backward {
    with: With,
    /// Which of the graph's first values depend on what is asked for.
    depends: Vec<bool>,
    gradients: HashMap<Value, Value>,
}

impl Backward {
    /// A pass that begins with the gradient `seed` of `output`.
    pub(crate) fn new(graph: &Graph, with: With, output: Value, seed: Value) -> Self {
        let mut depends = vec![false; graph.values.len()];
        if let With::Input(value) = with {
            depends[value.0] = true;
        }
        for node in &graph.nodes {
            let own = with == With::Parameters && node.op.has_parameters();
            if own || node.inputs.iter().any(|input| depends[input.0]) {
                node.outputs.iter().for_each(|output| depends[output.0] = true);
            }
        }
        Self { with, depends, gradients: HashMap::from([(output, seed)]) }
    }

    /// The gradient of a value, if anything depends on it.
    pub(crate) fn gradient(&self, value: Value) -> Option<Value> {
        self.gradients.get(&value).copied()
    }

    /// Adds what node `place` passes back to its inputs. `again` says which values stand for those of the forward pass.
    pub(crate) fn node(&mut self, graph: &mut Graph, place: usize, again: &HashMap<Value, Value>) {
        let node = graph.nodes[place].clone();
        let Some(grad) = node.outputs.first().and_then(|output| self.gradients.remove(output)) else { return };
        let now = |value: Value| again.get(&value).copied().unwrap_or(value);
        let parameters = self.with == With::Parameters;
        let input = |i: usize| node.inputs[i];
        let shape = |graph: &Graph, i: usize| graph.shape(input(i));
        match &node.op {
            Op::Input(..) => {
                // The caller may ask for it.
                self.gradients.insert(node.outputs[0], grad);
            }
            Op::Enter(_) => {
                let back = Op::Leave(shape(graph, 0).c);
                self.plain(graph, input(0), back, &[grad]);
            }
            Op::Leave(c) => {
                let (all, precision) = (shape(graph, 0).c, graph.precision(input(0)));
                assert_eq!(*c, all, "a part of the channels leaves without a derivative");
                self.plain(graph, input(0), Op::Enter(precision), &[grad]);
            }
            Op::Conv(conv) => {
                assert!(!conv.relu, "a convolution with ReLU has no derivative");
                if parameters {
                    graph.add(Op::ConvWeightGrad(conv.clone()), &[now(input(0)), grad]);
                }
                if let Some(&residual) = node.inputs.get(1) {
                    self.pass(graph, residual, grad);
                }
                if self.depends[input(0).0] {
                    let onto = self.gradients.get(&input(0)).copied();
                    let wanted = Wanted { parameters, onto: onto.is_some() };
                    let inputs: Vec<Value> = [grad].into_iter().chain(onto).collect();
                    let x = shape(graph, 0);
                    let made = graph.add(Op::ConvInputGrad(conv.clone(), x, wanted), &inputs);
                    self.gradients.insert(input(0), made);
                }
            }
            Op::Norm(norm) => self.norm(graph, *norm, &node.inputs, [grad, now(node.outputs[1])], &now),
            Op::Attention(heads, order) => {
                self.plain(graph, input(0), Op::AttentionGrad(*heads, *order), &[grad, now(input(0))]);
            }
            Op::Resample(to, scale) => {
                let back = if *to == Resample::Up { Resample::Down } else { Resample::Up };
                self.plain(graph, input(0), Op::Resample(back, *scale), &[grad]);
            }
            Op::Concat => {
                let mut from = 0;
                for &each in &node.inputs {
                    let count = graph.shape(each).c;
                    self.plain(graph, each, Op::TakeChannels(from, count), &[grad]);
                    from += count;
                }
            }
            Op::Silu => self.plain(graph, input(0), Op::SiluGrad, &[grad, now(input(0))]),
            Op::Relu => self.plain(graph, input(0), Op::ReluGrad, &[grad, now(input(0))]),
            Op::AddRows => {
                self.plain(graph, input(1), Op::SumPixels(1.0), &[grad]);
                self.pass(graph, input(0), grad);
            }
            Op::SumPixels(scale) => {
                let back = Op::SpreadRows(shape(graph, 0), graph.precision(input(0)), *scale);
                self.plain(graph, input(0), back, &[grad]);
            }
            Op::Embed(place) => {
                if parameters {
                    graph.add(Op::EmbedGrad(*place), &[grad]);
                }
                self.pass(graph, input(0), grad);
            }
            Op::Tokens(place) => {
                let wanted = Wanted { parameters, onto: false };
                let made = graph.add(Op::TokensGrad(*place, shape(graph, 0), wanted), &[grad]);
                self.pass(graph, input(0), made);
            }
            Op::FirstToken => {
                let tokens = shape(graph, 0).w;
                self.plain(graph, input(0), Op::FirstTokenGrad(tokens), &[grad]);
            }
            Op::Cast(_) => {
                let precision = graph.precision(input(0));
                self.plain(graph, input(0), Op::Cast(precision), &[grad]);
            }
            Op::Add => {
                self.pass(graph, input(0), grad);
                self.pass(graph, input(1), grad);
            }
            other => panic!("{other:?} has no derivative"),
        }
    }

    fn norm(
        &mut self,
        graph: &mut Graph,
        norm: Norm,
        inputs: &[Value],
        [grad, statistics]: [Value; 2],
        now: &dyn Fn(Value) -> Value,
    ) {
        let x = inputs[0];
        let onto = self.gradients.get(&x).copied();
        let wanted = Wanted { parameters: self.with == With::Parameters, onto: onto.is_some() };
        let film = inputs.get(1).copied();
        let mut taken = vec![grad, now(x), statistics];
        taken.extend(film.map(now));
        taken.extend(onto);
        let made = graph.add(Op::NormGrad(norm, wanted), &taken);
        if self.depends[x.0] {
            self.gradients.insert(x, made);
        }
        if let Some(film) = film {
            let of_film = graph.last_outputs()[1];
            self.pass(graph, film, of_film);
        }
    }

    /// What an operation makes is added to the gradient of `to`.
    fn plain(&mut self, graph: &mut Graph, to: Value, op: Op, inputs: &[Value]) {
        if self.depends[to.0] {
            let made = graph.add(op, inputs);
            self.pass(graph, to, made);
        }
    }

    /// A gradient is added to that of `to`.
    fn pass(&mut self, graph: &mut Graph, to: Value, grad: Value) {
        if !self.depends[to.0] {
            return;
        }
        let sum = match self.gradients.get(&to) {
            Some(&there) => graph.add(Op::Add, &[there, grad]),
            None => grad,
        };
        self.gradients.insert(to, sum);
    }
}

/// Extends a graph whose forward part ends in `output` by the backward pass; the input that takes the gradient of `output`,
/// and the gradient of the input asked for. With `recompute` the stages of the forward part are computed again before their
/// backward pass.
pub(crate) fn differentiate(graph: &mut Graph, output: Value, with: With, recompute: bool) -> (Value, Option<Value>) {
    let forward = graph.nodes.len();
    graph.backward = Some(forward);
    let seed = graph.input(graph.shape(output), Precision::F32);
    let mut pass = Backward::new(graph, with, output, seed);
    for stage in (0..=graph.stages.len()).rev() {
        let Range { start, end } = graph.stage_nodes(stage);
        let nodes = start..end.min(forward);
        // What comes before the first stage is kept.
        let again = if recompute && stage > 0 { recompute::stage(graph, nodes.clone()) } else { HashMap::new() };
        for place in nodes.rev() {
            pass.node(graph, place, &again);
        }
    }
    let of_input = match with {
        With::Parameters => None,
        With::Input(value) => pass.gradient(value),
    };
    if with == With::Parameters {
        let mut missing = vec![true; graph.layout.specs().len()];
        for node in &graph.nodes {
            node.op.writes().into_iter().for_each(|place| missing[place] = false);
        }
        for place in (0..missing.len()).filter(|&place| missing[place]) {
            graph.add(Op::Clear(place), &[]);
        }
    }
    (seed, of_input)
}
