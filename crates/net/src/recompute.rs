//! The backward pass with less memory: of the forward pass it keeps what passes between stages, and computes each stage
//! again before its backward pass (Chen et al. 2016, arXiv 1604.06174).
//!
//! The operations are the same on the same values, and gradients are added in the same order: so are the results, bit for
//! bit.

use crate::graph::{Graph, Value};
use crate::op::Op;
use std::collections::HashMap;
use std::ops::Range;

/// Adds the operations of a stage's nodes once more; which of the new values stand for those of the forward pass. What
/// another stage takes is kept, and its copy is not needed; what nothing needs is left out of the plan.
pub(crate) fn stage(graph: &mut Graph, nodes: Range<usize>) -> HashMap<Value, Value> {
    let mut again = HashMap::new();
    for place in nodes {
        let node = graph.nodes[place].clone();
        if matches!(node.op, Op::Input(..)) {
            continue;
        }
        let inputs: Vec<Value> = node.inputs.iter().map(|input| again.get(input).copied().unwrap_or(*input)).collect();
        graph.add(node.op, &inputs);
        let made = graph.last_outputs().to_vec();
        again.extend(node.outputs.into_iter().zip(made));
    }
    again
}
