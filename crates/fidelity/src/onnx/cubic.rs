//! Cubic resizing, which the runtime would silently do linearly, as matrix products.

use rten::{Model, NodeId, RunOptions, Value, ValueView};
use rten_onnx::onnx::{DataType, GraphProto, ModelProto, NodeProto, TensorProto};

/// The constant of Keys (1981) that exporters use; the runtime refuses others.
const A: f64 = -0.75;

/// Whether a model resizes cubically, as DINOv2 does with its positions.
pub(super) fn is_used(model: &ModelProto) -> bool {
    model.graph.as_ref().is_some_and(graph_uses)
}

/// Replaces `Resize` nodes that are cubic by a product from each side, `Y = V X Hᵀ`.
///
/// `model` is what the runtime made of `proto` without optimising it. A run on a black image finds the shapes, which are
/// then fixed.
///
/// # Errors
/// When the run fails, and when a cubic node is of a kind that image encoders do not use.
pub(super) fn replace(
    proto: &mut ModelProto,
    model: &Model,
    input: NodeId,
    image: ValueView,
    options: &RunOptions,
) -> Result<(), String> {
    let Some(graph) = &mut proto.graph else { return Ok(()) };
    let mut nodes = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node) {
        if !is_cubic(&node) {
            nodes.push(node);
            continue;
        }
        let run = |name: &str| -> Result<Value, String> {
            let id = model.node_id(name).map_err(|error| error.to_string())?;
            let run = model.run_n(vec![(input, image.clone().into())], [id], Some(options.clone()));
            run.map(|[value]| value).map_err(|error| format!("{name} fails: {error}"))
        };
        let size = |name: &str| -> Result<[usize; 4], String> {
            Ok(run(name)?.into_shape_vec::<f32, 4>().map_err(|error| format!("{name}: {error}"))?.0)
        };
        let (Some(from), Some(to)) = (node.input.first(), node.output.first()) else {
            return Err("a Resize without input or output".into());
        };
        let [n, c, h, w] = size(from)?;
        let [resized_n, resized_c, resized_h, resized_w] = size(to)?;
        let scales = match node.input.get(2).filter(|name| !name.is_empty()) {
            Some(name) => run(name)?.into_shape_vec::<f32, 1>().map_err(|error| format!("{name}: {error}"))?.1,
            None => Vec::new(),
        };
        let scale = |axis: usize, from: usize, to: usize| match scales.get(axis) {
            Some(&scale) => f64::from(scale),
            None => to as f64 / from as f64,
        };
        let half_pixel = match text(&node, "coordinate_transformation_mode") {
            None | Some("half_pixel") => true,
            Some("pytorch_half_pixel") => resized_h.min(resized_w) > 1,
            Some(_) => false,
        };
        if !half_pixel || [n, c] != [resized_n, resized_c] || n * c * h * w == 0 || resized_h.max(resized_w) > 1 << 14 {
            return Err(format!("{to} resizes cubically in a way that is not supported"));
        }
        let vertical = weights(h, resized_h, scale(2, h, resized_h));
        let mut horizontal = vec![0.0; w * resized_w];
        for (i, row) in weights(w, resized_w, scale(3, w, resized_w)).chunks(w).enumerate() {
            for (j, &weight) in row.iter().enumerate() {
                horizontal[j * resized_w + i] = weight;
            }
        }
        let [v, t, x] = ["vertical", "horizontal", "half"].map(|part| format!("{to}/cubic/{part}"));
        graph.initializer.push(tensor(&v, [resized_h, h], vertical));
        graph.initializer.push(tensor(&t, [w, resized_w], horizontal));
        nodes.push(product(&v, from, &x));
        nodes.push(product(&x, &t, to));
    }
    graph.node = nodes;
    if graph_uses(graph) { Err("it resizes cubically in one branch of a condition".into()) } else { Ok(()) }
}

fn graph_uses(graph: &GraphProto) -> bool {
    let within = |node: &NodeProto| node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()).any(graph_uses);
    graph.node.iter().any(|node| is_cubic(node) || within(node))
}

fn is_cubic(node: &NodeProto) -> bool {
    node.op_type.as_deref() == Some("Resize") && text(node, "mode") == Some("cubic")
}

fn text<'a>(node: &'a NodeProto, name: &str) -> Option<&'a str> {
    node.attribute.iter().find(|attribute| attribute.name.as_deref() == Some(name))?.s.as_deref()
}

/// What each of `from` values weighs in each of `to` values, `[to, from]`; beyond its ends, a row has its end's value.
fn weights(from: usize, to: usize, scale: f64) -> Vec<f32> {
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((x - 5.0) * x + 8.0) * x * A - 4.0 * A;
    let mut weights = vec![0.0; to * from];
    for (i, row) in weights.chunks_mut(from).enumerate() {
        let x = (i as f64 + 0.5) / scale - 0.5;
        let t = x - x.floor();
        for (tap, weight) in [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)].into_iter().enumerate() {
            let at = x.floor() + tap as f64 - 1.0;
            row[at.clamp(0.0, (from - 1) as f64) as usize] += weight as f32;
        }
    }
    weights
}

fn tensor(name: &str, [rows, columns]: [usize; 2], values: Vec<f32>) -> TensorProto {
    TensorProto {
        dims: vec![rows as i64, columns as i64],
        data_type: Some(DataType::FLOAT),
        float_data: values,
        name: Some(name.into()),
        ..TensorProto::default()
    }
}

fn product(left: &str, right: &str, output: &str) -> NodeProto {
    NodeProto {
        op_type: Some("MatMul".into()),
        input: vec![left.into(), right.into()],
        output: vec![output.into()],
        ..NodeProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::weights;

    #[test]
    fn every_value_is_a_weighted_mean() {
        for (from, to) in [(1, 1), (1, 5), (5, 1), (37, 16), (16, 37), (4, 8)] {
            for row in weights(from, to, to as f64 / from as f64).chunks(from) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn the_same_size_changes_nothing() {
        assert_eq!(weights(2, 2, 1.0), [1.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn half_way_is_keys_kernel() {
        // Value 1 of 2 from 4 lies at 2.5, between -0.09375, 0.59375, 0.59375, -0.09375; the last two fall on the end.
        assert_eq!(weights(4, 2, 0.5)[4..], [0.0, -0.09375, 0.59375, 0.5]);
    }
}
