//! The backward pass with less memory: of the forward pass it keeps what passes between stages, and computes each stage
//! again before its backward pass (Chen et al. 2016, arXiv 1604.06174).
//!
//! The operations are the same on the same values, and gradients are added in the same order: so are the results, bit for
//! bit.

use crate::backward::Backward;
use crate::graph::{Graph, Value};
use crate::op::Op;
use std::collections::HashMap;

/// Adds the backward pass of all stages, from the last to the first. What comes before the first stage is kept.
pub(crate) fn backward(graph: &mut Graph, pass: &mut Backward, forward: usize) {
    let stages: Vec<_> = (0..=graph.stages.len())
        .map(|stage| {
            let nodes = graph.stage_nodes(stage);
            nodes.start..nodes.end.min(forward)
        })
        .collect();
    for (stage, nodes) in stages.into_iter().enumerate().rev() {
        let mut again: HashMap<Value, Value> = HashMap::new();
        for place in nodes.clone().filter(|_| stage > 0) {
            let node = graph.nodes[place].clone();
            if matches!(node.op, Op::Input(..)) {
                continue;
            }
            let inputs: Vec<Value> =
                node.inputs.iter().map(|input| again.get(input).copied().unwrap_or(*input)).collect();
            graph.add(node.op, &inputs);
            let made = graph.last_outputs().to_vec();
            again.extend(node.outputs.into_iter().zip(made));
        }
        // What another stage takes is kept, and its copy is not needed; what nothing needs is left out of the plan.
        for place in nodes.rev() {
            pass.node(graph, place, &again);
        }
    }
}
