//! A network for one size of batch, as operations on values.
//!
//! Each value has one producer; nodes stand in the order in which they are computed. A graph is recorded by
//! [networks](crate::network), extended by [`backward`](crate::backward) and turned into a [`Plan`](crate::Plan).

use crate::kind::{Kind, Precision, Shape};
use crate::op::Op;
use crate::state::Layout;
use std::ops::Range;
use std::sync::Arc;

/// What an operation makes or takes, by its place in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(crate) usize);

/// An operation with what it takes and makes.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) op: Op,
    pub(crate) inputs: Vec<Value>,
    pub(crate) outputs: Vec<Value>,
}

/// A network for one size of batch.
#[derive(Clone, Debug)]
pub struct Graph {
    pub(crate) layout: Arc<Layout>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) values: Vec<Kind>,
    /// Where stages begin, as places among the nodes: what recomputation keeps is what passes between them.
    pub(crate) stages: Vec<usize>,
    /// Nodes from this place on are computed after the caller has looked at the output; none are if there is no such place.
    pub(crate) backward: Option<usize>,
}

impl Graph {
    /// An empty graph over parameters laid out like this.
    pub fn new(layout: Arc<Layout>) -> Self {
        Self { layout, nodes: Vec::new(), values: Vec::new(), stages: Vec::new(), backward: None }
    }

    /// What follows belongs to the next stage.
    pub fn stage(&mut self) {
        self.stages.push(self.nodes.len());
    }

    /// Sizes of a value.
    pub fn shape(&self, value: Value) -> Shape {
        self.values[value.0].shape
    }

    /// Type of a value.
    pub fn precision(&self, value: Value) -> Precision {
        self.values[value.0].precision
    }

    pub(crate) fn kind(&self, value: Value) -> Kind {
        self.values[value.0]
    }

    pub(crate) fn value(&mut self, kind: Kind) -> Value {
        self.values.push(kind);
        Value(self.values.len() - 1)
    }

    /// Adds an operation; its first output.
    ///
    /// # Panics
    /// If the inputs do not fit the operation.
    pub fn add(&mut self, op: Op, inputs: &[Value]) -> Value {
        let kinds: Vec<Kind> = inputs.iter().map(|&input| self.kind(input)).collect();
        let made = op.outputs(&kinds, &self.layout);
        let outputs: Vec<Value> = made.into_iter().map(|kind| self.value(kind)).collect();
        let first = outputs.first().copied();
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs });
        first.unwrap_or(Value(usize::MAX))
    }

    /// The further outputs of the node that was added last.
    pub(crate) fn last_outputs(&self) -> &[Value] {
        self.nodes.last().map_or(&[], |node| &node.outputs)
    }

    /// What the caller gives: rows `[N, C]` or pixels, or planes `[N, C, H, W]` of that shape.
    pub fn input(&mut self, shape: Shape, precision: Precision) -> Value {
        self.add(Op::Input(shape, precision), &[])
    }

    /// The nodes of a stage.
    pub(crate) fn stage_nodes(&self, stage: usize) -> Range<usize> {
        let begin = if stage == 0 { 0 } else { self.stages[stage - 1] };
        begin..self.stages.get(stage).copied().unwrap_or(self.nodes.len())
    }
}
