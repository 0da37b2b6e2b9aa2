//! A graph in the order of its computation, with a place in memory for each value.

use crate::device::{Program, done};
use crate::graph::{Graph, Value};
use crate::kind::{Kind, Precision};
use crate::op::Op;
use crate::state::Layout;
use ddpm_cuda::Gpu;
use ddpm_kernels::profile::Work;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Bytes between which values begin: a cache line.
const ALIGNMENT: usize = 64;

/// Where the gradient of the parameters goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GradientPlace {
    /// At the beginning of the plan's memory, over activations that are dead by the time that each part is written.
    Inside,
    /// In a buffer of its own.
    Outside,
}

/// A value's bytes in the plan's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) bytes: Range<usize>,
    pub(crate) kind: Kind,
}

/// An operation with the places of what it takes and makes.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) op: Op,
    pub(crate) inputs: Vec<Slot>,
    pub(crate) outputs: Vec<Slot>,
    /// The part of the parameters' gradient that it writes.
    pub(crate) writes: Option<Range<usize>>,
}

impl Step {
    /// The type of the activations.
    pub(crate) fn precision(&self) -> Precision {
        let kind = match self.op {
            Op::Enter(_) | Op::SpreadRows(..) | Op::Cast(_) => self.outputs.first(),
            _ => self.inputs.first().or(self.outputs.first()),
        };
        kind.map_or(Precision::F32, |slot| slot.kind.precision)
    }

    /// Its name and work, as measurements have it; the name as [`Op::name`].
    pub(crate) fn work(&self, layout: &Layout, split: Option<bool>) -> (String, Work) {
        let kinds: Vec<Kind> = self.inputs.iter().map(|slot| slot.kind).collect();
        let name = format!("{}, {}", self.op.name(&kinds, layout, split), self.precision().name());
        let read = match &self.op {
            Op::Conv(conv) | Op::ConvInputGrad(conv, ..) => {
                conv.places.iter().map(|&place| layout.range(place).len()).sum()
            }
            _ => 0,
        };
        let floats = self.writes.as_ref().map_or(0, Range::len) + read;
        let values: usize = self.inputs.iter().chain(&self.outputs).map(|slot| slot.kind.bytes()).sum();
        (name, Work { flop: self.op.flop(&kinds, layout), bytes: (values + 4 * floats) as f64 })
    }
}

/// A graph in the order of its computation, with a place in memory for each value.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) layout: Arc<Layout>,
    pub(crate) steps: Vec<Step>,
    /// Steps before the caller looks at the output.
    pub(crate) forward: usize,
    pub(crate) gradient: GradientPlace,
    /// Whether the processor may [split](ddpm_kernels::conv::Geometry::split) f32.
    pub(crate) split: bool,
    slots: HashMap<Value, Slot>,
    bytes: usize,
    /// Bytes of what the caller gives and looks at.
    pub(crate) edges: usize,
    /// What it calls on a GPU, once it ran there.
    program: Arc<OnceLock<Program>>,
}

impl Plan {
    /// Plans what `wanted` needs, and every gradient that the graph writes. Of `wanted` the first is looked at between the
    /// forward and the backward part, the others at the end.
    pub fn new(graph: &Graph, wanted: &[Value], gradient: GradientPlace) -> Self {
        Self::with_slack(graph, wanted, gradient, 0)
    }

    /// The same, with weight gradients that may lag by so many steps: what they read lives on so long.
    pub(crate) fn with_slack(graph: &Graph, wanted: &[Value], gradient: GradientPlace, slack: usize) -> Self {
        let live = live_nodes(graph, wanted);
        let backward = graph.backward.unwrap_or(graph.nodes.len());
        // Operations as steps; a concatenation is one for each of its inputs.
        let mut steps: Vec<(Op, Vec<Value>, Vec<Value>)> = Vec::new();
        let mut inputs = Vec::new();
        let mut forward = None;
        for (place, node) in graph.nodes.iter().enumerate() {
            if place == backward {
                forward = Some(steps.len());
            }
            if !live[place] {
                continue;
            }
            match &node.op {
                Op::Input(..) => inputs.push((node.outputs[0], place >= backward)),
                Op::Concat => {
                    let mut at = 0;
                    for &input in &node.inputs {
                        steps.push((Op::Place(at), vec![input], node.outputs.clone()));
                        at += graph.shape(input).c;
                    }
                }
                op => steps.push((op.clone(), node.inputs.clone(), node.outputs.clone())),
            }
        }
        let forward = forward.unwrap_or(steps.len());
        // Step i takes place at 2i + 1; the caller acts at the even times between.
        let end = 2 * steps.len();
        let mut spans: HashMap<Value, [usize; 2]> = HashMap::new();
        let mut seen = |value: Value, time: usize| {
            let span = spans.entry(value).or_insert([time, time]);
            *span = [span[0].min(time), span[1].max(time)];
        };
        for &(value, late) in &inputs {
            seen(value, if late { 2 * forward } else { 0 });
        }
        for (i, (op, inputs, outputs)) in steps.iter().enumerate() {
            inputs.iter().chain(outputs).for_each(|&value| seen(value, 2 * i + 1));
            if matches!(op, Op::ConvWeightGrad(_)) {
                for &value in inputs {
                    seen(value, (2 * (i + slack) + 1).min(end));
                }
            }
        }
        for (i, &value) in wanted.iter().enumerate() {
            seen(value, if i == 0 { 2 * forward } else { end });
        }
        let mut order: Vec<Value> = spans.keys().copied().collect();
        order.sort();
        let mut blocks: Vec<Block> = order
            .iter()
            .map(|value| Block { bytes: graph.kind(*value).bytes(), span: spans[value], at: None })
            .collect();
        let written: Vec<Option<Range<usize>>> = steps.iter().map(|(op, ..)| written(op, &graph.layout)).collect();
        if gradient == GradientPlace::Inside {
            for (i, range) in written.iter().enumerate() {
                if let Some(range) = range {
                    blocks.push(Block { bytes: 4 * range.len(), span: [2 * i + 1, end], at: Some(4 * range.start) });
                }
            }
        }
        #[cfg(test)]
        if tests::KEEP_ALL.get() {
            blocks.iter_mut().filter(|block| block.at.is_none()).for_each(|block| block.span = [0, end]);
        }
        let (places, bytes) = place(&blocks);
        let slots: HashMap<Value, Slot> = order
            .iter()
            .zip(places)
            .map(|(&value, at)| {
                let kind = graph.kind(value);
                (value, Slot { bytes: at..at + kind.bytes(), kind })
            })
            .collect();
        let located = |values: &[Value]| values.iter().map(|value| slots[value].clone()).collect();
        let steps = steps
            .into_iter()
            .zip(written)
            .map(|((op, inputs, outputs), writes)| Step {
                inputs: located(&inputs),
                outputs: located(&outputs),
                writes,
                op,
            })
            .collect();
        // With labels, the place in the run, and what alignment takes.
        let given = inputs.iter().map(|(value, _)| value).chain(wanted);
        let edges = given.map(|value| graph.kind(*value).bytes() + 8 * graph.kind(*value).shape.n + 256).sum();
        let (layout, program) = (Arc::clone(&graph.layout), Arc::default());
        Self { layout, steps, forward, gradient, split: false, slots, bytes, edges, program }
    }

    /// Whether it writes the gradient of parameters.
    pub(crate) fn writes_gradient(&self) -> bool {
        self.steps.iter().any(|step| step.writes.is_some())
    }

    /// Parts of the parameters' gradient of at most `size` values, in the order in which the steps complete them: with how many steps
    /// have been made then.
    pub(crate) fn parts(&self, size: usize) -> Vec<(usize, Range<usize>)> {
        let len = self.layout.len();
        let complete = |part: &Range<usize>| {
            let touches =
                |step: &Step| step.writes.as_ref().is_some_and(|of| of.start < part.end && part.start < of.end);
            self.steps.iter().rposition(touches).map_or(self.forward, |last| last + 1)
        };
        let parts = (0..len).step_by(size).map(|begin| begin..(begin + size).min(len));
        let mut parts: Vec<_> = parts.map(|part| (complete(&part), part)).collect();
        parts.sort_by_key(|(steps, part)| (*steps, part.start));
        parts
    }

    /// What it calls on a GPU.
    pub(crate) fn program(&self, gpu: &'static Gpu) -> &Program {
        self.program.get_or_init(|| done(Program::new(gpu, self)))
    }

    /// Bytes of memory that it runs in.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where a value lies that the caller gives or looks at; none if nothing needs it.
    pub(crate) fn slot(&self, value: Value) -> Option<&Slot> {
        self.slots.get(&value)
    }
}

/// The plans of a network: those for the few sizes of batches that occur, the newest last.
#[derive(Debug)]
pub struct Plans<K, P>(Mutex<Vec<(K, Arc<P>)>>);

impl<K, P> Default for Plans<K, P> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<K: PartialEq + Copy, P> Plans<K, P> {
    /// The plan for that, made if it is not there.
    pub fn get(&self, key: K, make: impl FnOnce() -> P) -> Arc<P> {
        /// Plans that are kept.
        const KEPT: usize = 12;
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = plans.iter().position(|(other, _)| *other == key);
        let entry = found.map_or_else(|| (key, Arc::new(make())), |at| plans.remove(at));
        if plans.len() == KEPT {
            plans.remove(0);
        }
        let plan = Arc::clone(&entry.1);
        plans.push(entry);
        plan
    }
}

/// The part of the gradient that an operation writes.
fn written(op: &Op, layout: &Layout) -> Option<Range<usize>> {
    let places = op.writes();
    let (&first, &last) = (places.first()?, places.last()?);
    assert!(places.iter().enumerate().all(|(i, &place)| place == first + i), "parameters of a layer that lie apart");
    Some(layout.range(first).start..layout.range(last).end)
}

/// Which nodes are needed.
fn live_nodes(graph: &Graph, wanted: &[Value]) -> Vec<bool> {
    let mut needed = vec![false; graph.values.len()];
    for value in wanted {
        needed[value.0] = true;
    }
    let mut live = vec![false; graph.nodes.len()];
    for (place, node) in graph.nodes.iter().enumerate().rev() {
        if node.outputs.iter().any(|output| needed[output.0]) || !node.op.writes().is_empty() {
            live[place] = true;
            node.inputs.iter().for_each(|input| needed[input.0] = true);
        }
    }
    live
}

/// Something that needs memory from one time to another, both included, perhaps at a given place.
#[derive(Clone, Copy, Debug)]
struct Block {
    bytes: usize,
    span: [usize; 2],
    at: Option<usize>,
}

/// A place for each block, those that live at a time apart from each other, and the end of all. Blocks come in the order
/// of their bytes, or of these times how long they live, whichever needs less; each takes the lowest place that is free for
/// as long as it lives.
fn place(blocks: &[Block]) -> (Vec<usize>, usize) {
    let length = |block: &Block| block.span[1] - block.span[0] + 1;
    let orders: [&dyn Fn(&Block) -> usize; 2] = [&|block| block.bytes, &|block| block.bytes * length(block)];
    let tried = orders.iter().map(|weight| {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|&i| (blocks[i].at.is_none(), std::cmp::Reverse(weight(&blocks[i])), i));
        place_in(&order, blocks)
    });
    tried.min_by_key(|(_, end)| *end).expect("there are orders")
}

fn place_in(order: &[usize], blocks: &[Block]) -> (Vec<usize>, usize) {
    let mut places = vec![0; blocks.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(blocks.len());
    let mut end = 0;
    for &i in order {
        let block = blocks[i];
        places[i] = block.at.unwrap_or_else(|| {
            let meets = |other: &Block| other.span[0] <= block.span[1] && block.span[0] <= other.span[1];
            let mut taken: Vec<[usize; 2]> = placed
                .iter()
                .filter(|&&other| blocks[other].bytes > 0 && meets(&blocks[other]))
                .map(|&other| [places[other], places[other] + blocks[other].bytes])
                .collect();
            taken.sort_unstable();
            let mut at = 0;
            for [from, to] in taken {
                if at + block.bytes <= from {
                    break;
                }
                at = at.max(to.next_multiple_of(ALIGNMENT));
            }
            at
        });
        placed.push(i);
        end = end.max(places[i] + block.bytes);
    }
    (places, end)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    thread_local! {
        /// Whether plans of this thread give each value a place of its own.
        pub(crate) static KEEP_ALL: Cell<bool> = const { Cell::new(false) };
    }

    proptest! {
        #[test]
        fn blocks_that_live_together_lie_apart(
            sizes in prop::collection::vec((0usize..5000, 0usize..60, 0usize..20), 1..80),
            fixed in 0usize..4,
        ) {
            let mut at = 0;
            let blocks: Vec<Block> = sizes.iter().enumerate().map(|(i, &(bytes, from, length))| {
                let place = (i < fixed).then_some(at);
                at += bytes;
                Block { bytes, span: [from, from + length], at: place }
            }).collect();
            let (places, end) = place(&blocks);
            for (i, a) in blocks.iter().enumerate() {
                prop_assert!(places[i] + a.bytes <= end);
                for (j, b) in blocks.iter().enumerate().skip(i + 1) {
                    let together = a.span[0] <= b.span[1] && b.span[0] <= a.span[1] && a.bytes > 0 && b.bytes > 0;
                    let apart = places[i] + a.bytes <= places[j] || places[j] + b.bytes <= places[i];
                    prop_assert!(!together || apart, "{i} {a:?} at {} and {j} {b:?} at {}", places[i], places[j]);
                }
            }
        }
    }
}
