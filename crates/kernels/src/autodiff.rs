//! The backward passes.

use crate::{Conv2d, GradKernels, GroupNorm, HeadOrder, Kernels, Resample};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn_autodiff::Autodiff;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

/// Parents: input, weight, bias and perhaps the residual.
#[derive(Debug)]
struct Conv2dBackward;

impl<B: Kernels + GradKernels, const N: usize> Backward<B, N> for Conv2dBackward {
    type State = (NodeId, NodeId, Conv2d);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let (x, weight, conv) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let x: FloatTensor<B> = saved.retrieve_node_output(x);
        let weight: FloatTensor<B> = saved.retrieve_node_output(weight);
        if let Some(node) = &ops.parents[0] {
            let dx = B::conv2d_input_grad(grad.clone(), weight.clone(), x.shape(), conv);
            grads.register::<B>(node.id, dx);
        }
        if ops.parents[1].is_some() || ops.parents[2].is_some() {
            let (dweight, dbias) = B::conv2d_weight_grad(x, grad.clone(), weight, conv);
            for (node, grad) in ops.parents[1..3].iter().zip([dweight, dbias]) {
                if let Some(node) = node {
                    grads.register::<B>(node.id, grad);
                }
            }
        }
        if let Some(Some(node)) = ops.parents.get(3) {
            grads.register::<B>(node.id, grad);
        }
    }
}

/// Parents: input, weight, bias and perhaps scale and shift.
#[derive(Debug)]
struct GroupNormBackward;

impl<B: Kernels + GradKernels, const N: usize> Backward<B, N> for GroupNormBackward {
    type State = ([NodeId; N], FloatTensor<B>, GroupNorm);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let (inputs, statistics, norm) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let mut inputs = inputs.into_iter().map(|input| saved.retrieve_node_output::<FloatTensor<B>>(input));
        let mut next = || inputs.next().expect("as many inputs as parents");
        let (x, weight, bias) = (next(), next(), next());
        let (dx, dweight, dbias, dfilm) = B::group_norm_grads(grad, x, statistics, weight, bias, inputs.next(), norm);
        let all = [Some(dx), Some(dweight), Some(dbias), dfilm];
        for (node, grad) in ops.parents.into_iter().zip(all) {
            if let (Some(node), Some(grad)) = (node, grad) {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

impl<B: Kernels + GradKernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn conv2d_nhwc(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        conv: Conv2d,
    ) -> FloatTensor<Self> {
        let y = B::conv2d_nhwc(x.primitive().clone(), weight.primitive().clone(), bias.primitive().clone(), conv);
        let nodes = [x.node(), weight.node(), bias.node()];
        match Conv2dBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&weight), conv);
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn conv2d_add_nhwc(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        conv: Conv2d,
    ) -> FloatTensor<Self> {
        let y = B::conv2d_add_nhwc(
            x.primitive().clone(),
            weight.primitive().clone(),
            bias.primitive().clone(),
            residual.primitive().clone(),
            conv,
        );
        let nodes = [x.node(), weight.node(), bias.node(), residual.node()];
        match Conv2dBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&weight), conv);
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn group_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        norm: GroupNorm,
    ) -> FloatTensor<Self> {
        let (y, statistics) = B::group_norm_forward(
            x.primitive().clone(),
            weight.primitive().clone(),
            bias.primitive().clone(),
            None,
            norm,
        );
        let nodes = [x.node(), weight.node(), bias.node()];
        match GroupNormBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let inputs = [&x, &weight, &bias].map(|input| prep.checkpoint(input));
                prep.finish((inputs, statistics, norm), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn group_norm_film(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        film: FloatTensor<Self>,
        norm: GroupNorm,
    ) -> FloatTensor<Self> {
        let (y, statistics) = B::group_norm_forward(
            x.primitive().clone(),
            weight.primitive().clone(),
            bias.primitive().clone(),
            Some(film.primitive().clone()),
            norm,
        );
        let nodes = [x.node(), weight.node(), bias.node(), film.node()];
        match GroupNormBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let inputs = [&x, &weight, &bias, &film].map(|input| prep.checkpoint(input));
                prep.finish((inputs, statistics, norm), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn resample(x: FloatTensor<Self>, to: Resample, scale: f32) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct ResampleBackward;
        impl<B: Kernels + GradKernels> Backward<B, 1> for ResampleBackward {
            type State = (Resample, f32);
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                let ([on_x], (to, scale)) = (ops.parents, ops.state);
                let grad = grads.consume::<B>(&ops.node);
                let back = if to == Resample::Up { Resample::Down } else { Resample::Up };
                if let Some(node) = on_x {
                    grads.register::<B>(node.id, B::resample(grad, back, scale));
                }
            }
        }
        let y = B::resample(x.primitive().clone(), to, scale);
        match ResampleBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((to, scale), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn concat_channels(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct ConcatBackward;
        impl<B: Kernels + GradKernels> Backward<B, 2> for ConcatBackward {
            type State = [usize; 2];
            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                let [a, b] = ops.state;
                for (node, (from, count)) in ops.parents.into_iter().zip([(0, a), (a, b)]) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, B::take_channels(grad.clone(), from, count));
                    }
                }
            }
        }
        let channels = [&a, &b].map(|x| x.primitive().shape()[3]);
        let y = B::concat_channels(a.primitive().clone(), b.primitive().clone());
        match ConcatBackward.prepare::<C>([a.node(), b.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(channels, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn self_attention(qkv: FloatTensor<Self>, heads: usize, order: HeadOrder) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct AttentionBackward;
        impl<B: Kernels + GradKernels> Backward<B, 1> for AttentionBackward {
            type State = (NodeId, usize, HeadOrder);
            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, saved: &mut Checkpointer) {
                let [on_qkv] = ops.parents;
                let (qkv, heads, order) = ops.state;
                let grad = grads.consume::<B>(&ops.node);
                let qkv: FloatTensor<B> = saved.retrieve_node_output(qkv);
                if let Some(node) = on_qkv {
                    grads.register::<B>(node.id, B::attention_grad(grad, qkv, heads, order));
                }
            }
        }
        let y = B::self_attention(qkv.primitive().clone(), heads, order);
        match AttentionBackward.prepare::<C>([qkv.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&qkv), heads, order);
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
